"""The journey: January trains, February and March stream through a real server, a step a week.

The loop is the demo's, on two months; somebody keeps asking the server all the while. What it did
is then checked from outside, by the files it left and by scikit-learn.
"""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import httpx
import pandas as pd
import pytest
from scipy import special
from sklearn.metrics import log_loss

from homeostat import build, flights, project
from homeostat.build import Project, load_project
from homeostat.demo.server import Server
from homeostat.demo.stream import WEEK, Stream
from homeostat.loop import Loop
from homeostat.records import Outcome, Window
from homeostat.testing import FakeClock

START = datetime(2013, 2, 1, tzinfo=UTC)
WEEKS = 8
END = START + WEEKS * WEEK
ASKED = "asked-"
BEFORE = "2012-12-01T12:00:00Z"  # event time of what is only asked to see who answers

pytestmark = [pytest.mark.journey, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Journey:
    here: Project
    outcomes: list[Outcome]  # the first training's, then one a week
    answered: list[tuple[int, str]]  # status code and release of each answer while the loop ran

    @property
    def promotions(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes[1:] if outcome.promoted]

    @property
    def line(self) -> list[str]:
        """The releases that served, in order."""
        return [str(outcome.release) for outcome in self.outcomes if outcome.promoted]


@contextmanager
def asking(server: Server, answered: list[tuple[int, str]]) -> Iterator[None]:
    """Somebody asks one row after another, as long as the context is open."""
    over = threading.Event()
    row = dict.fromkeys(flights.FEATURES) | {"occurred_at": BEFORE}
    row |= {"carrier": "UA", "origin": "EWR", "dest": "ORD"}

    def ask() -> None:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            while not over.wait(0.05):
                asked = {**row, "prediction_id": f"{ASKED}{len(answered)}"}
                try:
                    answer = client.post("/predict", json=asked)
                except httpx.TransportError as error:
                    answered.append((0, repr(error)))
                else:
                    version = answer.json().get("model_version", answer.text)
                    answered.append((answer.status_code, version))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def until(end: datetime) -> pd.DataFrame:
    """The flights that depart before `end`."""
    year = flights.read()
    return year[year["occurred_at"] < end]


def stream(source: Stream, server: Server, end: datetime) -> None:
    for batch in source.until(end):
        server.predict(batch.rows)
        server.feedback(batch.labels)


def week(source: Stream, server: Server, loop: Loop, clock: FakeClock) -> Outcome:
    stream(source, server, clock.advance(WEEK))
    outcome = loop.step()
    if outcome.promoted:
        server.wait_for(str(outcome.release))
    return outcome


@pytest.fixture(scope="module")
def untracked() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOMEOSTAT_TRACKING__ENABLED", "false")
        yield


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory, untracked: None) -> Journey:
    root = tmp_path_factory.mktemp("journey")
    project.init(root)
    here, clock = load_project(root), FakeClock(START)
    source = Stream(until(END), START)
    done = Journey(here, [], [])
    with here.loop(clock=clock) as loop:
        done.outcomes.append(loop.train())
        with Server(root) as server, asking(server, done.answered):
            for _ in range(WEEKS):
                done.outcomes.append(week(source, server, loop, clock))
    return done


def departed() -> pd.DataFrame:
    """The flights of February and March, by id."""
    known = until(END)
    return known[known["occurred_at"] >= START].set_index("prediction_id")


def said(here: Project, *command: str) -> Any:
    """What a verb prints with --json."""
    done = subprocess.run(
        [sys.executable, "-m", "homeostat", *command, "--json", "--project", str(here.root)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def loss(here: Project, release: str, rows: pd.DataFrame) -> float:
    """Log loss of one release on journalled rows, by its model and the map over it."""
    found = here.releases.get(release)
    model = pickle.loads(here.releases.object(found, "model"))
    likely = model.predict_proba(rows[flights.FEATURES])[:, 1]
    if "calibrator" in found.manifest["objects"]:
        told = json.loads(here.releases.object(found, "calibrator"))
        likely = special.expit(told["scale"] * special.logit(likely) + told["shift"][0])
    return float(log_loss(rows["label"].astype(int), likely))


def test_a_challenger_is_promoted_and_deserved_it(journey):
    assert journey.promotions, "\n".join(outcome.decision.reason for outcome in journey.outcomes)
    judged = 0
    for promotion in journey.promotions:
        release = journey.here.releases.get(str(promotion.release))
        later = Window(promotion.at, END)
        rows = journey.here.journal.read(later, labelled=True).to_pandas()
        if later.length < WEEK:
            continue
        judged += 1
        promoted = loss(journey.here, release.id, rows)
        replaced = loss(journey.here, str(release.manifest["parent"]), rows)
        assert promoted < replaced
    assert judged


def test_no_challenger_saw_a_row_that_judged_it(journey):
    for outcome in journey.outcomes:
        if outcome.verdict is not None and outcome.verdict.window is not None:
            assert outcome.verdict.window.end <= outcome.at
    lines = journey.here.audit.lines()
    fits = [line["body"]["training"]["cutoff"] for line in lines if line["kind"] == "trained"]
    looks = [line["body"]["window"]["start"] for line in lines if line["kind"] == "gate"]
    assert fits == looks
    ends = [line["body"]["window"]["end"] for line in lines if line["kind"] == "gate"]
    assert all(end <= start for end, start in zip(ends, looks[1:], strict=False))


def test_the_server_took_up_each_release_without_a_failed_request(journey):
    assert {status for status, _ in journey.answered} == {200}
    versions = [version for _, version in journey.answered]
    seen = [v for v, before in zip(versions, [None, *versions], strict=False) if v != before]
    assert seen == journey.line


def test_every_flight_is_journalled_once_and_has_its_label(journey):
    expected = departed()
    logs = journey.here.settings.path("data", "logs")
    lines = pd.concat([pd.read_csv(file, dtype=str) for file in logs.glob("predictions*.csv")])
    lines = lines[~lines["prediction_id"].str.startswith(ASKED)]
    assert sorted(lines["prediction_id"]) == sorted(expected.index)
    rows = journey.here.journal.read(Window(START, END), as_of=END).to_pandas()
    rows = rows.set_index("prediction_id")
    assert set(rows["source"]) == {"serve"}
    known = expected[flights.TARGET].where(expected["labelled_at"] < END)
    labels = rows["label"].astype("float64").reindex(known.index)
    pd.testing.assert_series_equal(labels, known, check_names=False)
    assert known.notna().mean() > 0.9
    assert known.isna().any(), "cancelled flights never get a label"


def test_status_audit_and_releases_tell_the_same(journey):
    here, served = journey.here, journey.line
    pointer = json.loads(here.settings.path("models", "champion.json").read_bytes())
    status = said(here, "status")
    assert [pointer["release"], status["champion"]["id"]] == [served[-1], served[-1]]
    last = journey.outcomes[-1]
    assert status["last"]["decision"]["trigger"] == last.decision.trigger
    assert status["evidence"]["window"]["end"] == END.isoformat()
    history = said(here, "history", "--limit", "10000")
    kinds = [line["kind"] for line in history]
    assert kinds.count("decided") == WEEKS
    assert [li["body"]["release"] for li in history if li["kind"] == "promoted"] == served
    assert "training_failed" not in kinds
    assert said(here, "verify")["audit_lines"] == len(history)
    assert [release.id for release in here.releases.line()] == served[::-1]
    model = here.releases.object(here.releases.get(served[-1]), "model")
    assert here.settings.path("models", "model.pkl").read_bytes() == model


SHUFFLED = """
honest = fit


def fit(frame):
    shuffled = frame[flights.TARGET].sample(frac=1, random_state=0).to_numpy()
    return honest(frame.assign(**{flights.TARGET: shuffled}))


if __name__"""


@pytest.mark.parametrize("blend", [1, 4])
def test_a_challenger_of_shuffled_labels_is_refused_and_changes_nothing(journey, tmp_path, blend):
    """Alone it is worse; a blend that it is a quarter of need not be, and is refused as well."""
    root = tmp_path / "sabotaged"
    shutil.copytree(journey.here.root, root)
    script = root / project.TRAIN
    script.write_text(script.read_text().replace("if __name__", SHUFFLED, 1))
    here, now = load_project(root), END + WEEK
    service = build.predictor(here.settings)
    service.refresh()
    for batch in Stream(until(now), END).until(now):
        service.predict(batch.rows)
        service.feedback(batch.labels)
    kept = ("models/champion.json", "models/model.pkl", "data/processed/reference.csv")
    before = {name: (root / name).read_bytes() for name in kept}
    training = here.settings.training.model_copy(update={"blend": blend})
    chosen = here.settings.model_copy(update={"training": training})
    with here.loop(clock=FakeClock(now)) as loop:
        outcome = replace(loop, settings=chosen).retrain(force=True)
    verdict = outcome.verdict
    assert verdict is not None, outcome.decision.reason
    assert not outcome.promoted
    assert not verdict.promote
    assert verdict.rows > 10_000
    if blend == 1:
        assert verdict.challenger > verdict.champion
        assert "The challenger is worse" in verdict.reason
    assert {name: (root / name).read_bytes() for name in kept} == before
    assert here.audit.lines()[-1]["kind"] == "gate"
    assert said(here, "verify")["audit_lines"] == len(here.audit.lines())
