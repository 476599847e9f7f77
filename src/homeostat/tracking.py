"""Tracking: shows each training in MLflow, without ever stopping or delaying the loop.

It takes a candidate with its verdict and writes them into a spool, `.homeostat/tracking/`; a child
(`python -m homeostat.recording ROOT`) records them in order and keeps what a store that is down
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
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TypeAlias

from homeostat.contracts import Tracker
from homeostat.records import Candidate, Json, Release, Verdict
from homeostat.settings import Tracking

LOGGER = logging.getLogger(__name__)
Entry: TypeAlias = tuple[Mapping[str, Json], Mapping[str, bytes]]
"""Facts for the record, and files by name."""

MAX_ENTRIES = 100  # of a store that stays down; beyond them the oldest is dropped
MAX_LOG = 1_000_000  # bytes; a longer log is begun anew
MAX_TAG = 5_000  # characters, MLflow's bound
SECRET = "HOMEOSTAT_SIGNING_KEY"  # noqa: S105 - the variable's name; the child must not see it
QUIET = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "GIT_PYTHON_REFRESH": "quiet",
}


@dataclass(frozen=True, slots=True)
class Store:
    """Where the child records; told over its standard input, since a URI may hold a password."""

    uri: str
    experiment: str
    timeout: float  # seconds for one entry


class NoTracker:
    """Records nothing."""

    def training(
        self,
        candidate: Candidate,
        verdict: Verdict,
        release: Release | None,
        report: Path | None,
        *,
        serves: bool = True,
    ) -> None:
        """Does nothing."""

    def serves(self, release: Release) -> None:
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
        self._store = Store(tracking.uri, experiment, tracking.timeout.total_seconds())
        self._worker: subprocess.Popen[bytes] | None = None

    def training(
        self,
        candidate: Candidate,
        verdict: Verdict,
        release: Release | None,
        report: Path | None,
        *,
        serves: bool = True,
    ) -> None:
        """Keep this training for the record; returns before it is recorded, and never raises.

        `release` is what came of it, if anything, and `serves` whether it does so at once.
        """

        def made() -> Entry:
            facts = _facts(candidate, verdict, release, serves=serves)
            return facts, {"model.pkl": candidate.objects["model"]}

        self._keep(made, report)

    def serves(self, release: Release) -> None:
        """Keep for the record that a release serves which was recorded before; as `training`."""
        self._keep(lambda: ({"format": 1, "serves": release.id}, {}), None)

    def _keep(self, made: Callable[[], Entry], report: Path | None) -> None:
        try:
            self._write(*made(), report)
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

    def _write(
        self, facts: Mapping[str, Json], files: Mapping[str, bytes], report: Path | None
    ) -> None:
        self._spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = f"{time.time_ns():020d}"
        draft = self._spool / f".{name}"
        draft.mkdir(mode=0o700)
        try:
            (draft / "entry.json").write_text(json.dumps(facts))
            for file, content in files.items():
                (draft / file).write_bytes(content)
            if report is not None and report.is_file():
                shutil.copyfile(report, draft / "drift_report.html")
            draft.rename(self._spool / name)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        for old in entries(self._spool)[:-MAX_ENTRIES]:
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
                [sys.executable, "-P", "-m", "homeostat.recording", str(self._root)],
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


def entries(spool: Path) -> list[Path]:
    """Whole entries, oldest first."""
    if not spool.is_dir():
        return []
    return sorted(path for path in spool.iterdir() if path.is_dir() and path.name[0] != ".")


def _facts(
    candidate: Candidate, verdict: Verdict, release: Release | None, *, serves: bool = True
) -> dict[str, Json]:
    """What MLflow is told: parameters and tags as text, metrics as finite numbers."""
    training, promoted = candidate.training, release is not None and serves
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
        "homeostat.promoted": str(promoted).lower(),
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
        "promoted": promoted,
        "params": {**candidate.params, "seed": str(candidate.seed)},
        "metrics": {k: v for k, v in measured.items() if v is not None and math.isfinite(v)},
        "tags": {name: value[:MAX_TAG] for name, value in tags.items()},
        "versions": versions,
        "log": candidate.log,
    }
