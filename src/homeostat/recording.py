"""Recording: the child that shows in MLflow what the loop spooled.

Takes a project's folder and, over standard input, where the store is. Records the entries of the
spool in order, and keeps them while the store cannot be reached; its log is
`.homeostat/tracking.log`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from homeostat.records import Json
from homeostat.tracking import Store, entries

LOGGER = logging.getLogger(__name__)
BATCH = 100  # parameters that MLflow takes at once


def main(root: Path) -> None:
    """Record what is spooled: once at each line of standard input, and a last time at its end."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    os.nice(10)  # records are for people: serving and training go first
    first = sys.stdin.readline()
    if not first:
        return
    store = Store(**json.loads(first))
    while sys.stdin.readline():
        _drain(root, store)
    _drain(root, store)


def _drain(root: Path, store: Store) -> None:
    """Record all entries in order; stop where the store cannot be reached, and keep the rest."""
    from filelock import FileLock

    spool = root / ".homeostat" / "tracking"
    with FileLock(root / ".homeostat" / "tracking.lock"):
        while waiting := entries(spool):
            problem = _attempt(store, lambda: _experiment(root, store))
            if problem:
                LOGGER.error("No store (trainings that wait: %s): %s", len(waiting), problem)
                return
            entry = waiting[0]
            problem = _attempt(store, lambda entry=entry: _record(root, store, entry))
            if problem:
                LOGGER.error("Training %s is given up: %s", entry.name, problem)
            shutil.rmtree(entry)


def _attempt(store: Store, work: Any) -> str:
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


def _client(store: Store) -> Any:
    import mlflow

    mlflow.set_tracking_uri(store.uri)
    return mlflow.MlflowClient()


def _experiment(root: Path, store: Store) -> str:
    """The experiment's id; made where there is none, a local one with artifacts in the project."""
    client = _client(store)
    known = client.get_experiment_by_name(store.experiment)
    if known is not None:
        return str(known.experiment_id)
    local = store.uri.startswith("sqlite:")
    folder = (root / ".homeostat" / "mlartifacts").as_uri() if local else None
    return str(client.create_experiment(store.experiment, artifact_location=folder))


def _record(root: Path, store: Store, entry: Path) -> None:
    """One run with parameters, metrics, tags, model and report; its version and its aliases."""
    from mlflow.entities import Metric, Param, RunTag

    facts = json.loads((entry / "entry.json").read_text())
    client, experiment = _client(store), _experiment(root, store)
    if "serves" in facts:
        _promote(client, store, experiment, facts["serves"])
        return
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


def _promote(client: Any, store: Store, experiment: str, release: str) -> None:
    """Tag the run of a release, and move the champion's alias to its version."""
    name = _registered(store.experiment)
    for run in client.search_runs([experiment], f"tags.`homeostat.release` = '{release}'"):
        client.set_tag(run.info.run_id, "homeostat.promoted", "true")
        versions = client.search_model_versions(f"run_id = '{run.info.run_id}'")
        for version in versions:
            client.set_registered_model_alias(name, "champion", version.version)
        return
    raise LookupError(f"release {release[:12]} was never recorded")


def _forget(client: Any, experiment: str, entry: str) -> None:
    """Delete runs of this entry that a killed child left half-done."""
    for run in client.search_runs([experiment], f"tags.`homeostat.entry` = '{entry}'"):
        client.delete_run(run.info.run_id)


def _registered(experiment: str) -> str:
    """The registered model's name: MLflow takes neither slash nor colon in it."""
    return experiment.replace("/", "-").replace(":", "-")


def _model(store: Store, run: str, pickled: Path, facts: Mapping[str, Json]) -> str:
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
