"""The first brief, to the letter: its commands as written, in a fresh clone and in a made project.

Everything is real: pip and a new virtual environment, the server that uvicorn reloads, requests
over HTTP, and the clock. Only what pip installs may come over the network.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest

from homeostat import flights

ROOT = Path(__file__).resolve().parents[1]
OURS = ("HOMEOSTAT_", "MLFLOW_", "PYTHON", "PYTEST_", "VIRTUAL_ENV", "CI", "GITHUB_", "UVICORN_")
PATIENCE = 120.0  # seconds, for whatever happens in another process

pytestmark = [pytest.mark.journey, pytest.mark.timeout(1200)]

TRACKED = """
import json, mlflow
mlflow.set_tracking_uri("sqlite:///.homeostat/mlflow.db")
client = mlflow.MlflowClient()
champion = client.get_model_version_by_alias("flights", "champion")
runs = mlflow.search_runs(experiment_names=["flights"], output_format="list")
print(json.dumps({
    "runs": [run.info.status for run in runs],
    "champion": client.get_run(champion.run_id).data.tags["homeostat.release"],
    "files": [file.path for file in client.list_artifacts(champion.run_id)],
}))
"""


@dataclass(frozen=True)
class Place:
    """A folder in which someone types commands, and the variables that are set there."""

    root: Path
    env: dict[str, str]

    def __call__(self, command: str) -> str:
        """Type the command; what it printed, once it has succeeded."""
        done = subprocess.run(
            shlex.split(command),
            cwd=self.root,
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def json(self, name: str) -> Any:
        return json.loads((self.root / name).read_bytes())

    def bytes(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    @property
    def champion(self) -> str:
        return str(self.json("models/champion.json")["release"])


@dataclass(frozen=True)
class Service:
    """The running service, as somebody uses it who has read its documentation."""

    client: httpx.Client
    log: Path

    @property
    def example(self) -> dict[str, Any]:
        document = self.client.get("/openapi.json").json()
        content = document["paths"]["/predict"]["post"]["requestBody"]["content"]
        return dict(content["application/json"]["examples"]["one"]["value"])

    def predict(self, rows: Any) -> Any:
        answer = self.client.post("/predict", json=rows)
        assert answer.status_code == 200, answer.text
        return answer.json()


def until(ready: Callable[[], bool], what: Callable[[], str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < deadline, what()
        time.sleep(0.1)


# --- the places ---


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A fresh clone, a new virtual environment, and the first command of the brief in it."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone of the repository, so it cannot be cloned")
    folder = tmp_path_factory.mktemp("brief")
    venv = folder / "venv"
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(OURS)}
    path = f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}"
    place = Place(folder / "clone", {**inherited, "PATH": path, "OMP_NUM_THREADS": "1"})
    here = replace(place, root=folder)
    here(f"git clone --quiet --no-hardlinks '{ROOT}' clone")
    if find_spec("ensurepip"):
        here(f"'{sys.executable}' -m venv venv")
    else:  # Debian's Python without python3-venv
        here(f"'{sys.executable}' -m venv --without-pip venv")
        here(f"'{sys.executable}' -m pip --python venv/bin/python install --quiet pip")
    place("pip install -r requirements.txt")
    return place


@pytest.fixture
def made(clone: Place) -> Place:
    """What `homeostat init` makes, with the first command of the brief, as CI would have it."""
    place = Place(clone.root.with_name("made"), {**clone.env, "CI": "true"})
    told = replace(place, root=clone.root.parent)("homeostat init made")
    assert "Next: homeostat train" in told
    before = installed(place)
    place("pip install -r requirements.txt")
    assert installed(place) == before
    return place


def installed(place: Place) -> dict[str, str]:
    listed = json.loads(place("pip list --format=json"))
    return {package["name"]: package["version"] for package in listed}


@contextmanager
def serving(place: Place) -> Iterator[Service]:
    """`uvicorn … --reload` on a free port, in a process group that ends with the test."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = place.root.with_name(f"{place.root.name}.log")
    command = f"uvicorn src.inference.api:app --reload --port {port}"
    with log.open("wb") as out:
        process = subprocess.Popen(
            shlex.split(command),
            cwd=place.root,
            env=place.env,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            until(lambda: answers(client, process), log.read_text)
            yield Service(client, log)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answers(client: httpx.Client, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "uvicorn ended"
    try:
        return client.get("/docs").status_code == 200
    except httpx.TransportError:
        return False


# --- the commands ---


def train(place: Place) -> None:
    place("python src/training/train.py")
    assert place.bytes("models/model.pkl")
    sample = pd.read_csv(place.root / "data/processed/reference.csv")
    assert set(flights.FEATURES) <= set(sample.columns)
    assert len(sample) > 100


def monitor(place: Place) -> dict[str, Any]:
    """The status that `monitor.py` writes; the report is there with it."""
    for name in ("drift_report.html", "drift_status.json"):
        (place.root / "reports" / name).unlink(missing_ok=True)
    place("python src/monitoring/monitor.py")
    assert b"<html" in place.bytes("reports/drift_report.html")
    status: dict[str, Any] = place.json("reports/drift_status.json")
    assert isinstance(status["data_drift"], bool)
    return status


def too_little(place: Place, rows: int) -> None:
    """With no log or too few rows both files are there and say so, and nothing is trained."""
    status = monitor(place)
    assert status["data_drift"] is False
    assert status["verdict"] == "insufficient_data"
    assert f"{rows} rows" in status["reason"]
    assert f"{rows} rows" in place.bytes("reports/drift_report.html").decode()
    before = place.bytes("models/model.pkl")
    assert "not enough data" in place("python src/training/retrain.py")
    assert place.bytes("models/model.pkl") == before


def paste_the_example(place: Place, service: Service, **when: str) -> None:
    """Whoever opens /docs and presses Execute gets an answer, and the request is logged."""
    assert "swagger" in service.client.get("/docs").text.lower()
    answer = service.predict({**service.example, **when})
    assert answer["prediction"] in (0, 1)
    assert 0 <= answer["probability"] <= 1
    assert answer["model_version"] == place.champion
    logged = pd.read_csv(place.root / "data/logs/predictions.csv")
    assert logged["prediction_id"].tolist() == [answer["prediction_id"]]
    assert logged["carrier"].tolist() == [service.example["carrier"]]


def drift_and_retrain(place: Place, service: Service, traffic: list[dict[str, Any]]) -> None:
    """Drifted traffic ends in a model.pkl that passed the gate and answers without a restart."""
    for start in range(0, len(traffic), 500):
        service.predict(traffic[start : start + 500])
    status = monitor(place)
    assert status["data_drift"] is True
    assert status["verdict"] == "drift", status["reason"]
    assert status["window"]["labelled"] == 0
    assert len(place.bytes("reports/drift_report.html")) > 100_000, "not Evidently's report"
    was, model = place.champion, place.bytes("models/model.pkl")
    reference = place.bytes("data/processed/reference.csv")
    printed = place("python src/training/retrain.py")
    assert "promoted" in printed
    assert "The challenger is better" in printed
    assert place.champion != was, printed
    assert place.bytes("models/model.pkl") != model
    assert place.bytes("data/processed/reference.csv") != reference
    example, now = service.example, place.champion
    until(lambda: service.predict(example)["model_version"] == now, service.log.read_text)
    assert service.log.read_text().count("Started server process") == 1


def retrain_again(place: Place) -> None:
    """The status is about the model before this one, so it moves nothing, and says why."""
    was, model = place.champion, place.bytes("models/model.pkl")
    assert "run the monitor again" in place("python src/training/retrain.py")
    assert place.champion == was
    assert place.bytes("models/model.pkl") == model


def verify(place: Place) -> None:
    assert (place.root / ".github/workflows/monitor-and-retrain.yml").is_file()
    assert "verified" in place("homeostat verify")


# --- the traffic ---


def warmer_later_elsewhere(example: dict[str, Any]) -> list[dict[str, Any]]:
    """Three hundred flights like the example, but on humid evenings and of other carriers."""
    return [
        {
            **example,
            "carrier": ("B6", "EV", "MQ")[row % 3],
            "departure_minute": 1100.0 + row % 200,
            "temp": 80.0 + row % 15,
            "dewp": 70.0 + row % 5,
            "humid": 85.0 + row % 10,
            "pressure": 1000.0 + row % 6,
        }
        for row in range(300)
    ]


def summer() -> list[dict[str, Any]]:
    """All flights of the first week of July, with their own ids and event times."""
    year = flights.read()
    week = year[year["occurred_at"].between("2013-07-01T00:00Z", "2013-07-07T23:59Z")]
    rows = week[["prediction_id", *flights.FEATURES]].astype(object)
    rows = rows.where(rows.notna(), None)
    rows["occurred_at"] = week["occurred_at"].dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    return rows.to_dict("records")


def test_in_a_fresh_clone_every_command_does_what_the_brief_says(clone):
    train(clone)
    too_little(clone, 0)
    with serving(clone) as service:
        paste_the_example(clone, service)
        too_little(clone, 1)
        drift_and_retrain(clone, service, warmer_later_elsewhere(service.example))
        retrain_again(clone)
    verify(clone)
    assert clone(f"git -C '{clone.root}' status --short") == ""
    spool = clone.root / ".homeostat" / "tracking"
    until(lambda: not list(spool.glob("[!.]*")), lambda: str(list(spool.iterdir())))
    tracked = json.loads(clone(f"python -W ignore -c {shlex.quote(TRACKED)}"))
    assert tracked["runs"] == ["FINISHED", "FINISHED"]
    assert tracked["champion"] == clone.champion
    assert "drift_report.html" in tracked["files"]


def test_in_a_made_project_every_command_does_so_as_well_and_ci_tracks_nothing(made):
    train(made)
    too_little(made, 0)
    with serving(made) as service:
        paste_the_example(made, service, occurred_at="2013-07-01T00:00:00Z")
        too_little(made, 1)
        drift_and_retrain(made, service, summer())
        retrain_again(made)
    verify(made)
    assert not list((made.root / ".homeostat").glob("mlflow*"))
