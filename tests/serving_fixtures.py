"""A project folder with a real signed release, and a real server on it, for tests of serving."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import cloudpickle
import httpx
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from homeostat.infer import infer
from homeostat.records import Candidate, TrainingRows, Verdict
from homeostat.release import FileReleases
from homeostat.scoring import Calibrator, Scorer
from homeostat.signing import signing_key
from homeostat.testing import drifting_stream

AT = datetime(2025, 1, 29, tzinfo=UTC)
ROW = {"amount": 0.5, "gap": None, "city": "Oslo", "member": True}
SOURCE = Path(__file__).resolve().parent.parent / "src"


def training_frame(seed: int = 0, task: str = "binary") -> pd.DataFrame:
    frame = drifting_stream(300, seed=seed).drop(columns="occurred_at")
    if task == "multiclass":
        draw = np.random.default_rng(seed).choice(["a", "b", "c"], size=len(frame))
        frame["target"] = pd.Series(draw, dtype="str")
    if task == "regression":
        frame["target"] = frame["amount"] * 3.0 + 0.25
    return frame


def estimator(task: str = "binary"):
    columns = make_column_transformer(
        (SimpleImputer(), ["amount", "gap", "member"]),
        (OneHotEncoder(handle_unknown="ignore"), ["city"]),
    )
    last = LinearRegression() if task == "regression" else LogisticRegression()
    return make_pipeline(columns, last)


def parquet(table) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


def objects(seed: int = 0, task: str = "binary", calibrator: Calibrator | None = None, model=None):
    """Model, schema, golden rows and, where given, the calibrator, as bytes."""
    frame = training_frame(seed, task)
    schema = infer(frame, target="target", task=task)
    fitted = model or estimator(task).fit(frame.drop(columns="target"), frame["target"])
    columns = {n: [None if pd.isna(v) else v for v in frame[n][:20]] for n in schema.names}
    features = schema.table(columns)
    scores = Scorer(fitted, schema, calibrator).score(features)
    golden = pa.table({n: t.column(n) for t in (features, scores) for n in t.column_names})
    made = {
        "model": cloudpickle.dumps(fitted),
        "schema": schema.to_json().encode(),
        "golden": parquet(golden),
    }
    return made if calibrator is None else {**made, "calibrator": calibrator.to_json()}


def promote(root: Path, made: dict[str, bytes]):
    """Sign and promote a release of these objects, as the loop would."""
    models = root / "models"
    releases = FileReleases(models, signing_key(root / ".homeostat", models, {}))
    champion = releases.champion()
    candidate = Candidate(
        kind="first" if champion is None else "retrain",
        parent=None if champion is None else champion.id,
        objects=made,
        training=TrainingRows(300, AT - timedelta(days=28), AT, AT, "0" * 64),
        seconds=0.1,
        params={},
        versions={},
        seed=0,
    )
    verdict = Verdict(True, "first", "log_loss", None, None, None, None, None, 0, 0, None)
    release = releases.add(candidate, verdict, AT)
    releases.promote(release)
    return release


@dataclass
class Server:
    """A uvicorn process and how to reach it."""

    process: subprocess.Popen
    root: Path
    url: str
    uds: Path | None = None

    def client(self, **options) -> httpx.Client:
        transport = httpx.HTTPTransport(uds=str(self.uds)) if self.uds else None
        return httpx.Client(base_url=self.url, transport=transport, timeout=30, **options)

    @property
    def log(self) -> str:
        return (self.root / "server.log").read_text()


def until(condition, seconds: float = 30, what: str = "the condition"):
    """The first true value of `condition()`; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what} did not come true within {seconds} s")


@contextmanager
def serving(root: Path, *options: str, uds: Path | None = None):
    """A server on the project in `root`; ended when the block is left."""
    where = ["--uds", str(uds)] if uds else ["--port", "0"]
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "--factory",
        os.environ.get("TEST_APP", "homeostat.web.api:create_app"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    log = root / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *where, *options], cwd=root, env=environment, stdout=output, stderr=output
        )
    try:
        started = re.compile(r"running on (?:unix socket|https?://[^\s:]+:(\d+))")

        def up():
            assert process.poll() is None, log.read_text()
            return started.search(log.read_text())

        port = until(up, what="the server").group(1)
        yield Server(process, root, f"http://127.0.0.1:{port or 80}", uds)
    finally:
        process.terminate()
        process.wait(20)
