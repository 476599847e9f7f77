import json
import os
import pickle
import socket
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from types import SimpleNamespace

import cloudpickle
import numpy as np
import pytest
import sklearn
from sklearn.ensemble import HistGradientBoostingClassifier

from homeostat.recording import _attempt
from homeostat.records import Candidate, Release, TrainingRows, Verdict
from homeostat.settings import Tracking
from homeostat.tracking import (
    MAX_ENTRIES,
    MlflowTracker,
    NoTracker,
    Store,
    _facts,
    tracker,
)

pytestmark = pytest.mark.skipif(
    find_spec("mlflow") is None, reason="the extra homeostat[mlflow] is not installed"
)

NOW = datetime(2024, 1, 1, tzinfo=UTC)
PATIENCE = timedelta(seconds=120)
MANY = {f"p{place:03}": str(place) for place in range(150)}
X = np.random.default_rng(0).normal(size=(60, 2))


def model(depth):
    return HistGradientBoostingClassifier(max_iter=2, max_depth=depth).fit(X, X[:, 0] > 0)


def pickled(depth):
    return cloudpickle.dumps(model(depth))


def candidate(content, params=None):
    return Candidate(
        kind="retrain",
        parent="a" * 64,
        objects={"model": content},
        training=TrainingRows(60, NOW - timedelta(days=30), NOW, NOW, "c" * 64),
        seconds=1.5,
        params=params or {"max_iter": "2"},
        versions={
            "python": "3.11.7",
            "homeostat": "0.1.0",
            "numpy": np.__version__,
            "scikit-learn": sklearn.__version__,
        },
        seed=7,
        log="fitting 60\n",
    )


def verdict(promote):
    return Verdict(promote, "Better by 3 %.", "log_loss", 0.5, 0.4, -0.1, None, None, 90, 7, None)


RELEASE = Release("b" * 64, 2, {})


@pytest.fixture
def project(tmp_path):
    (tmp_path / ".homeostat").mkdir()
    return tmp_path


def made(project, **settings):
    return MlflowTracker(project, Tracking(**settings), "flights/2013")


def spooled(project):
    return [path for path in (project / ".homeostat/tracking").iterdir() if path.name[0] != "."]


def log(project):
    return (project / ".homeostat/tracking.log").read_text()


# Another process, since MLflow warns at import, and keeps its store open.
LOOK = """
import json, pickle, mlflow
mlflow.set_tracking_uri("sqlite:///.homeostat/mlflow.db")
client = mlflow.MlflowClient()
X = pickle.load(open("X.pkl", "rb"))
found = {}
for alias in ("champion", "challenger"):
    version = client.get_model_version_by_alias("flights-2013", alias)
    run = client.get_run(version.run_id)
    uri = f"models:/flights-2013@{alias}"
    found[alias] = {
        "version": int(version.version), "status": run.info.status,
        "params": run.data.params, "metrics": run.data.metrics, "tags": run.data.tags,
        "files": sorted(f.path for f in client.list_artifacts(version.run_id)),
        "proba": mlflow.sklearn.load_model(uri).predict_proba(X)[:, 1].tolist(),
        "pyfunc": [bool(p) for p in mlflow.pyfunc.load_model(uri).predict(X)],
    }
print(json.dumps(found))
"""


def looked(project):
    look = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOOK],
        cwd=project,
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert look.returncode == 0, log(project)
    return json.loads(look.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A training while the store is down, one that is tampered with, a promoted, a rejected one."""
    project = tmp_path_factory.mktemp("project")
    report = project / "drift_report.html"
    report.write_text("<html>drift</html>")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    down = made(project, uri=f"http://user:s3cret@127.0.0.1:{port}")
    began = time.monotonic()
    down.training(candidate(pickled(1)), verdict(False), None, None)
    delay = time.monotonic() - began
    down.close(PATIENCE)
    waiting = len(spooled(project))
    up = made(project)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(up, "_wake", lambda: None)
        up.training(candidate(pickled(1)), verdict(False), None, None)
    (max(spooled(project)) / "model.pkl").write_bytes(b"something else")
    up.training(candidate(pickled(1), MANY), verdict(True), RELEASE, report)
    up.training(candidate(pickled(2)), verdict(False), None, None)
    up.close(PATIENCE)
    (project / "X.pkl").write_bytes(pickle.dumps(X))
    return SimpleNamespace(project=project, delay=delay, waiting=waiting, **looked(project))


def test_a_training_is_a_run_with_parameters_metrics_tags_and_report(story):
    assert story.champion["status"] == story.challenger["status"] == "FINISHED"
    assert story.champion["params"] == {**MANY, "seed": "7"}
    assert story.champion["metrics"]["gate_difference"] == -0.1
    assert story.champion["metrics"]["training_rows"] == 60
    assert "gate_low" not in story.champion["metrics"]
    assert story.champion["tags"]["homeostat.release"] == RELEASE.id
    assert story.challenger["tags"]["homeostat.promoted"] == "false"
    assert story.challenger["tags"]["homeostat.reason"] == "Better by 3 %."
    assert story.champion["files"] == ["drift_report.html", "fit.log"]
    assert story.challenger["files"] == ["fit.log"]


@pytest.mark.parametrize(("alias", "depth"), [("champion", 1), ("challenger", 2)])
def test_a_model_loads_back_through_mlflow_and_predicts_the_same(story, alias, depth):
    found = getattr(story, alias)
    assert found["proba"] == model(depth).predict_proba(X)[:, 1].tolist()
    assert found["pyfunc"] == model(depth).predict(X).tolist()


def test_the_champions_alias_moves_only_on_promotion(story):
    assert story.challenger["version"] == story.champion["version"] + 1


def test_a_release_that_waited_has_the_champions_alias_once_it_serves(project):
    (project / "X.pkl").write_bytes(pickle.dumps(X))
    waits = Release("d" * 64, 3, {})
    tracker = made(project)
    tracker.training(candidate(pickled(1)), verdict(True), RELEASE, None)
    tracker.training(candidate(pickled(2)), verdict(True), waits, None, serves=False)
    tracker.close(PATIENCE)
    before = looked(project)
    assert before["champion"]["tags"]["homeostat.release"] == RELEASE.id
    assert before["challenger"]["tags"]["homeostat.promoted"] == "false"
    tracker = made(project)
    tracker.serves(waits)
    tracker.serves(Release("f" * 64, 9, {}))  # of a time when nothing was recorded
    tracker.close(PATIENCE)
    after = looked(project)
    assert after["champion"]["tags"]["homeostat.release"] == waits.id
    assert after["champion"]["tags"]["homeostat.promoted"] == "true"
    assert after["champion"]["proba"] == model(2).predict_proba(X)[:, 1].tolist()
    assert spooled(project) == []
    assert "was never recorded" in log(project)


def test_a_store_that_is_down_delays_nothing_and_loses_nothing(story):
    assert story.delay < 1
    assert story.waiting == 1
    assert "No store (trainings that wait: 1)" in log(story.project)
    assert story.champion["version"] == 2  # the one that waited was recorded first
    assert spooled(story.project) == []
    assert "s3cret" not in log(story.project)


def test_a_model_that_was_tampered_with_is_given_up_and_the_log_says_why(story):
    assert log(story.project).count("is given up") == 1
    assert "the spooled model is not what was written" in log(story.project)


def test_an_entry_that_takes_too_long_is_given_up():
    began = time.monotonic()
    problem = _attempt(Store("uri", "flights", 0.05), lambda: time.sleep(30))
    assert problem == "TimeoutError: it took longer than 0.05 seconds (tracking.timeout)"
    assert time.monotonic() - began < 5


def test_a_folder_that_cannot_be_written_is_logged_and_stops_nothing(project, caplog):
    (project / ".homeostat/tracking").write_text("in the way")
    made(project).training(candidate(b"model"), verdict(False), None, None)
    assert "A training was not tracked" in caplog.text


def test_the_spool_is_bounded_and_drops_the_oldest(project, caplog):
    tracking = made(project)
    tracking._wake = lambda: None
    for _ in range(MAX_ENTRIES + 2):
        tracking.training(candidate(b"model"), verdict(False), None, None)
    assert len(spooled(project)) == MAX_ENTRIES
    assert "the oldest is dropped" in caplog.text


def test_the_signing_key_does_not_reach_the_child(project, monkeypatch):
    monkeypatch.setenv("HOMEOSTAT_SIGNING_KEY", "s3cret")
    tracking = made(project)
    tracking._wake()
    worker = tracking._worker
    if sys.platform == "linux":
        with open(f"/proc/{worker.pid}/environ", "rb") as file:  # noqa: PTH123 - no regular file
            assert b"s3cret" not in file.read()
    tracking.close(PATIENCE)
    assert worker.returncode == 0


@pytest.mark.parametrize(
    ("settings", "environ"),
    [(Tracking(), {"CI": "true"}), (Tracking(), {"CI": "1"}), (Tracking(enabled=False), {})],
)
def test_it_is_off_in_ci_and_by_settings(project, settings, environ):
    quiet = tracker(project, settings, "flights", environ)
    assert isinstance(quiet, NoTracker)
    quiet.training(candidate(b"model"), verdict(False), None, None)
    quiet.close()
    assert list((project / ".homeostat").iterdir()) == []


def test_it_is_on_elsewhere(project):
    assert isinstance(tracker(project, Tracking(), "flights", {}), MlflowTracker)


def test_mlflow_is_not_imported_by_the_loop():
    code = "import homeostat.tracking, sys; assert 'mlflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_only_the_copy_of_a_blend_needs_this_package():
    one = candidate(b"a model")
    blend = replace(one, members=(one.training, one.training))
    told = [_facts(each, verdict(promote=True), None) for each in (one, blend)]
    assert ["homeostat" in facts["versions"] for facts in told] == [False, True]
    assert [facts["tags"]["homeostat.members"] for facts in told] == ["1", "2"]
