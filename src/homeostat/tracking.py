"""Tracking: shows each training in MLflow, without ever stopping or delaying the loop.

It takes a candidate with its verdict and writes them into a spool, `.homeostat/tracking/`; a child
(`python -m homeostat.tracking ROOT`) records them in order and keeps what a store that is down
could not take.
It gives a `contracts.Tracker` whose methods never raise; the child's log is
`.homeostat/tracking.log`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

from homeostat.contracts import Tracker
from homeostat.records import Candidate, Json, Release, Verdict
from homeostat.settings import Tracking

LOGGER = logging.getLogger(__name__)
MAX_ENTRIES = 100  # of a store that stays down; beyond them the oldest is dropped
MAX_LOG = 1_000_000  # bytes; a longer log is begun anew
MAX_TAG = 5_000  # characters, MLflow's bound
BATCH = 100  # parameters that MLflow takes at once
SECRET = "HOMEOSTAT_SIGNING_KEY"  # noqa: S105 - the variable's name; the child must not see it
QUIET = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "GIT_PYTHON_REFRESH": "quiet",
}


class NoTracker:
    """Records nothing."""

    def training(
        self, candidate: Candidate, verdict: Verdict, release: Release | None, report: Path | None
    ) -> None:
        """Does nothing."""

    def close(self, wait: timedelta | None = None) -> None:
        """Does nothing."""


def tracker(root: Path, tracking: Tracking, experiment: str, environ: Mapping[str, str]) -> Tracker:
    """What records trainings of the project in `root` under the name `experiment`.

    It records nothing where the settings say so, where the variable CI is true, and where MLflow
    is not installed.
    """
    in_ci = environ.get("CI", "").lower() in ("1", "true")
    if in_ci or not tracking.enabled or find_spec("mlflow") is None:
        return NoTracker()
    return MlflowTracker(root, tracking, experiment)


class MlflowTracker:
    """Spools trainings, and wakes the child that records them."""

    def __init__(self, root: Path, tracking: Tracking, experiment: str) -> None:
        self._root = root.resolve()
        self._spool = self._root / ".homeostat" / "tracking"
        self._store = _Store(tracking.uri, experiment, tracking.timeout.total_seconds())
        self._worker: subprocess.Popen[bytes] | None = None

    def training(
        self, candidate: Candidate, verdict: Verdict, release: Release | None, report: Path | None
    ) -> None:
        """Keep this training for the record; returns before it is recorded, and never raises."""
        try:
            self._write(_facts(candidate, verdict, release), candidate, report)
            self._wake()
        except Exception as error:  # noqa: BLE001 - tracking must not stop the loop; the log says why
            LOGGER.warning("A training was not tracked: %s: %s", type(error).__name__, error)

    def close(self, wait: timedelta | None = None) -> None:
        """Let the child record what is left and end; with `wait`, not longer than that for it."""
        worker, self._worker = self._worker, None
        if worker is None:
            return
        with suppress(OSError):
            _pipe(worker).close()
        if wait is not None:
            with suppress(subprocess.TimeoutExpired):
                worker.wait(wait.total_seconds())

    def _write(self, facts: Mapping[str, Json], candidate: Candidate, report: Path | None) -> None:
        self._spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = f"{time.time_ns():020d}"
        draft = self._spool / f".{name}"
        draft.mkdir(mode=0o700)
        try:
            (draft / "entry.json").write_text(json.dumps(facts))
            (draft / "model.pkl").write_bytes(candidate.objects["model"])
            if report is not None and report.is_file():
                shutil.copyfile(report, draft / "drift_report.html")
            draft.rename(self._spool / name)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        for old in _entries(self._spool)[:-MAX_ENTRIES]:
            LOGGER.warning("%s trainings wait for MLflow; the oldest is dropped.", MAX_ENTRIES)
            shutil.rmtree(old, ignore_errors=True)

    def _wake(self) -> None:
        if self._worker is None or self._worker.poll() is not None:
            self._worker = self._started()
            _say(self._worker, json.dumps(asdict(self._store)))
        _say(self._worker, "")

    def _started(self) -> subprocess.Popen[bytes]:
        log = self._root / ".homeostat" / "tracking.log"
        long = log.is_file() and log.stat().st_size > MAX_LOG
        with log.open("wb" if long else "ab") as output:
            worker = subprocess.Popen(  # noqa: S603 - this interpreter, this module
                [sys.executable, "-P", "-m", "homeostat.tracking", str(self._root)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._root,
                env={**{k: v for k, v in os.environ.items() if k != SECRET}, **QUIET},
                start_new_session=True,  # an interrupt at the terminal is not meant for it
            )
        # Reaps the child whenever it ends, also when nobody waits for it.
        threading.Thread(target=worker.wait, daemon=True).start()
        return worker


def _pipe(worker: subprocess.Popen[bytes]) -> IO[bytes]:
    if worker.stdin is None:
        raise ValueError("the child was started without a pipe.")
    return worker.stdin


def _say(worker: subprocess.Popen[bytes], line: str) -> None:
    pipe = _pipe(worker)
    pipe.write(line.encode() + b"\n")
    pipe.flush()


def _entries(spool: Path) -> list[Path]:
    """Whole entries, oldest first."""
    if not spool.is_dir():
        return []
    return sorted(path for path in spool.iterdir() if path.is_dir() and path.name[0] != ".")


def _facts(candidate: Candidate, verdict: Verdict, release: Release | None) -> dict[str, Json]:
    """What MLflow is told: parameters and tags as text, metrics as finite numbers."""
    training = candidate.training
    measured = {
        "training_rows": training.rows,
        "training_seconds": candidate.seconds,
        "gate_champion": verdict.champion,
        "gate_challenger": verdict.challenger,
        "gate_difference": verdict.difference,
        "gate_low": verdict.low,
        "gate_high": verdict.high,
        "gate_rows": verdict.rows,
        "gate_blocks": verdict.blocks,
    }
    tags = {
        "homeostat.kind": candidate.kind,
        "homeostat.release": release.id if release else "",
        "homeostat.parent": candidate.parent or "",
        "homeostat.promoted": str(release is not None).lower(),
        "homeostat.reason": verdict.reason,
        "homeostat.metric": verdict.metric,
        "homeostat.cutoff": training.cutoff.isoformat(),
        "homeostat.as_of": training.as_of.isoformat(),
        "homeostat.training_sha256": training.sha256,
        "homeostat.members": str(max(len(candidate.members), 1)),
        "homeostat.model_sha256": hashlib.sha256(candidate.objects["model"]).hexdigest(),
    }
    blended = len(candidate.members) > 1  # whose class is of this package
    versions = {n: v for n, v in candidate.versions.items() if blended or n != "homeostat"}
    return {
        "format": 1,
        "promoted": release is not None,
        "params": {**candidate.params, "seed": str(candidate.seed)},
        "metrics": {k: v for k, v in measured.items() if v is not None and math.isfinite(v)},
        "tags": {name: value[:MAX_TAG] for name, value in tags.items()},
        "versions": versions,
        "log": candidate.log,
    }


# --- the child ---


@dataclass(frozen=True, slots=True)
class _Store:
    """Where the child records; told over its standard input, since a URI may hold a password."""

    uri: str
    experiment: str
    timeout: float  # seconds for one entry


def main(root: Path) -> None:
    """Record what is spooled: once at each line of standard input, and a last time at its end."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    os.nice(10)  # records are for people: serving and training go first
    first = sys.stdin.readline()
    if not first:
        return
    store = _Store(**json.loads(first))
    while sys.stdin.readline():
        _drain(root, store)
    _drain(root, store)


def _drain(root: Path, store: _Store) -> None:
    """Record all entries in order; stop where the store cannot be reached, and keep the rest."""
    from filelock import FileLock

    spool = root / ".homeostat" / "tracking"
    with FileLock(root / ".homeostat" / "tracking.lock"):
        while entries := _entries(spool):
            problem = _attempt(store, lambda: _experiment(root, store))
            if problem:
                LOGGER.error("No store (trainings that wait: %s): %s", len(entries), problem)
                return
            entry = entries[0]
            problem = _attempt(store, lambda entry=entry: _record(root, store, entry))
            if problem:
                LOGGER.error("Training %s is given up: %s", entry.name, problem)
            shutil.rmtree(entry)


def _attempt(store: _Store, work: Any) -> str:
    """Why `work` failed or took longer than the store's timeout; empty when it did not."""
    try:
        with _alarm(store.timeout):
            work()
    except Exception as error:  # noqa: BLE001 - the record is lost or waits; the log says why
        return f"{type(error).__name__}: {error}".replace(store.uri, "<tracking.uri>")
    return ""


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise TimeoutError(f"it took longer than {seconds:g} seconds (tracking.timeout)")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _client(store: _Store) -> Any:
    import mlflow

    mlflow.set_tracking_uri(store.uri)
    return mlflow.MlflowClient()


def _experiment(root: Path, store: _Store) -> str:
    """The experiment's id; made where there is none, a local one with artifacts in the project."""
    client = _client(store)
    known = client.get_experiment_by_name(store.experiment)
    if known is not None:
        return str(known.experiment_id)
    local = store.uri.startswith("sqlite:")
    folder = (root / ".homeostat" / "mlartifacts").as_uri() if local else None
    return str(client.create_experiment(store.experiment, artifact_location=folder))


def _record(root: Path, store: _Store, entry: Path) -> None:
    """One run with parameters, metrics, tags, model and report; its version and its aliases."""
    from mlflow.entities import Metric, Param, RunTag

    facts = json.loads((entry / "entry.json").read_text())
    client, experiment = _client(store), _experiment(root, store)
    _forget(client, experiment, entry.name)
    now = time.time_ns() // 1_000_000
    run = client.create_run(experiment, tags={"homeostat.entry": entry.name}).info.run_id
    try:
        params = [Param(name, value) for name, value in facts["params"].items()]
        for place in range(0, len(params), BATCH):
            client.log_batch(run, params=params[place : place + BATCH])
        metrics = [Metric(name, value, now, 0) for name, value in facts["metrics"].items()]
        client.log_batch(run, metrics, tags=[RunTag(*tag) for tag in facts["tags"].items()])
        if facts["log"]:
            client.log_text(run, facts["log"], "fit.log")
        if (entry / "drift_report.html").is_file():
            client.log_artifact(run, str(entry / "drift_report.html"))
        version = _model(store, run, entry / "model.pkl", facts)
        name = _registered(store.experiment)
        client.set_registered_model_alias(name, "challenger", version)
        if facts["promoted"]:
            client.set_registered_model_alias(name, "champion", version)
    except BaseException:
        client.set_terminated(run, "FAILED")
        raise
    client.set_terminated(run)


def _forget(client: Any, experiment: str, entry: str) -> None:
    """Delete runs of this entry that a killed child left half-done."""
    for run in client.search_runs([experiment], f"tags.`homeostat.entry` = '{entry}'"):
        client.delete_run(run.info.run_id)


def _registered(experiment: str) -> str:
    """The registered model's name: MLflow takes neither slash nor colon in it."""
    return experiment.replace("/", "-").replace(":", "-")


def _model(store: _Store, run: str, pickled: Path, facts: Mapping[str, Json]) -> str:
    """Log and register the verified bytes as they are; gives the version."""
    from mlflow.models import Model

    digest = hashlib.sha256(pickled.read_bytes()).hexdigest()
    if digest != facts["tags"]["homeostat.model_sha256"]:
        raise ValueError("the spooled model is not what was written; it is not logged.")
    info = Model.log(
        artifact_path=None,
        name="model",
        flavor=SimpleNamespace(__name__="mlflow.sklearn", save_model=_save_model),
        registered_model_name=_registered(store.experiment),
        run_id=run,
        serialization_format="cloudpickle",
        pickled=pickled,
        versions=facts["versions"],
    )
    return str(info.registered_model_version)


def _save_model(
    path: str,
    mlflow_model: Any,
    serialization_format: str,
    pickled: Path,
    versions: Mapping[str, str],
) -> None:
    """MLflow's scikit-learn flavor from pickled bytes, which are copied and never unpickled.

    `mlflow.sklearn.save_model` would want the estimator itself, and pickle it anew.
    """
    from mlflow import pyfunc

    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(pickled, folder / "model.pkl")
    pins = [f"{name}=={version}" for name, version in versions.items() if name != "python"]
    (folder / "requirements.txt").write_text("\n".join([*pins, "cloudpickle", ""]))
    (folder / "python_env.yaml").write_text(
        f"python: {versions['python']}\n"
        "build_dependencies:\n- pip\ndependencies:\n- -r requirements.txt\n"
    )
    pyfunc.add_to_model(
        mlflow_model,
        loader_module="mlflow.sklearn",
        model_path="model.pkl",
        python_env="python_env.yaml",
        predict_fn="predict",
    )
    mlflow_model.add_flavor(
        "sklearn",
        pickled_model="model.pkl",
        sklearn_version=versions["scikit-learn"],
        serialization_format=serialization_format,
        code=None,
    )
    mlflow_model.save(str(folder / "MLmodel"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
