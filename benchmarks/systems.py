"""The systems: how each is started, what it is asked, and what its answers must hold.

It takes the site: environments, project and ONNX model. It gives one `System` for each mode, in the
order of the table.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from environments import PEERS, Environment
from load import BenchmarkError, Case

CASES = tuple(Case(concurrency, rows) for rows in (1, 100) for concurrency in (1, 32))
OURS = "homeostat"
OK = 200
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Site:
    """What the servers of one run are made from."""

    environments: Mapping[str, Environment]
    project: Path | None  # of Homeostat, trained; each of its servers gets a copy
    onnx: Path | None  # the twin that this project's release holds, if it has one


@dataclass(frozen=True)
class System:
    """One system in one mode."""

    name: str
    mode: str
    environment: str  # of `environments.STORED`; of Homeostat: the one that runs the benchmark
    command: Callable[[Site, int], Sequence[str]]  # from site and port
    wrapped: Callable[[Rows], Any]  # the JSON of a request
    scores: Callable[[Any], list[float]] | None  # of an answer's JSON; None: no model answers
    path: str = "/predict"
    env: Mapping[str, str] = field(default_factory=dict)
    workers: int = 1

    @property
    def key(self) -> str:
        return f"{self.name}:{self.mode}"

    @property
    def onnx(self) -> bool:
        return self.mode == "onnx"

    def variables(self, site: Site, folder: Path) -> dict[str, str]:
        """What its processes need to know, beside `environments.variables`.

        Raises BenchmarkError where there is no ONNX model for it.
        """
        if self.name == OURS:
            return dict(self.env)
        here = site.environments[self.environment]
        path = f"{here.python.parent}{os.pathsep}{os.environ['PATH']}"  # mlflow calls uvicorn
        told = {"PEER_MODEL": str(here.model), "PEER_LOG": str(folder / "log.csv"), "PATH": path}
        if self.onnx:
            if site.onnx is None:
                raise BenchmarkError("Homeostat's release has no twin, so there is no ONNX model.")
            told["PEER_ONNX"] = str(site.onnx)
        return {**told, "PYTHONPATH": str(PEERS), **self.env}

    def check(self, status: int, answer: bytes, rows: int) -> None:
        """Raises BenchmarkError for an answer without one probability a row."""
        if status != OK:
            raise BenchmarkError(f"status {status}: {answer[:200]!r}")
        if self.scores is None:
            return
        try:
            scores = self.scores(json.loads(answer))
        except (ValueError, LookupError, TypeError):
            scores = []
        if len(scores) != rows or not all(0 <= score <= 1 for score in scores):
            raise BenchmarkError(f"the answer to {rows} rows has no {rows} probabilities.")


def bare(rows: Rows) -> Any:
    """An object for one row, an array for several."""
    return rows[0] if len(rows) == 1 else rows


def split(rows: Rows) -> Any:
    """MLflow's `dataframe_split`, the most compact of its forms."""
    data = [list(row.values()) for row in rows]
    return {"dataframe_split": {"columns": list(rows[0]), "data": data}}


def probabilities(answer: Any) -> list[float]:
    """Of one object or an array of them."""
    answers = answer if isinstance(answer, list) else [answer]
    return [each["probability"] for each in answers]


def ours(mode: str, *, without: str = "", workers: int = 1, **env: str) -> System:
    """Homeostat by its own command, or, `without` a part, by that command minus the part."""
    program = [str(PEERS / "variant.py"), without] if without else ["-m", "homeostat"]

    def command(_: Site, port: int) -> list[str]:
        return [sys.executable, *program, "serve", "--project", "project", "--port", str(port)]

    env = {**env, "HOMEOSTAT_SERVING__WORKERS": str(workers)}
    return System(OURS, mode, OURS, command, bare, probabilities, env=env, workers=workers)


def app(name: str, mode: str, target: str, *options: str, **how: Any) -> System:
    """An application of `peers` under uvicorn, with the fastest of its parts."""

    def command(site: Site, port: int) -> list[str]:
        python = str(site.environments["apps"].python)
        where = ["--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"]
        fast = ["--loop", "uvloop", "--http", "httptools", "--no-access-log"]
        return [python, "-m", "uvicorn", target, *where, *fast, *options]

    how = {"wrapped": bare, "scores": probabilities, **how}
    return System(name, mode, "apps", command, **how)


def mlflow(site: Site, port: int) -> list[str]:
    here = site.environments["mlflow"]
    where = ["-h", "127.0.0.1", "-p", str(port), "--workers", "1", "--env-manager", "local"]
    return [here.script("mlflow"), "models", "serve", "-m", str(here.model), *where]


def bentoml(service: str) -> System:
    def command(site: Site, port: int) -> list[str]:
        program = site.environments["bentoml"].script("bentoml")
        where = ["--host", "127.0.0.1", "--port", str(port), "--working-dir", str(PEERS)]
        return [program, "serve", f"bento:{service}", *where]

    return System("bentoml", service.lower(), "bentoml", command, lambda r: {"rows": r}, list)


def litserve(mode: str) -> System:
    def command(site: Site, port: int) -> list[str]:
        python = str(site.environments["litserve"].python)
        return [python, str(PEERS / "lit.py"), str(port), mode]

    return System("litserve", mode, "litserve", command, list, list)


SYSTEMS = (
    ours("fsync"),
    ours("write", HOMEOSTAT_JOURNAL__ACK="write"),
    ours("unjournalled", without="journal"),
    ours("two-workers", workers=2),
    ours("native", without="twin"),
    System(
        "mlflow",
        "serve",
        "mlflow",
        mlflow,
        split,
        lambda answer: [pair[1] for pair in answer["predictions"]],
        path="/invocations",
        env={"UVICORN_ACCESS_LOG": "false", "UVICORN_LOG_LEVEL": "warning"},
    ),
    bentoml("Plain"),
    bentoml("Batched"),
    bentoml("Onnx"),
    litserve("plain"),
    litserve("batched"),
    litserve("onnx"),
    app("fastapi", "tutorial", "tutorial:app", wrapped=list),
    app("fastapi", "onnx", "fast:scored"),
    app("asgi", "onnx", "asgi:scored", "--lifespan", "off"),
    app("fastapi", "echo", "fast:echo", scores=None),
    app("asgi", "constant", "asgi:constant", "--lifespan", "off", scores=None),
)
