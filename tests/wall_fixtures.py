"""What tests of the page need: projects for it to show, and the page itself, in a thread."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import httpx
import uvicorn
from loop_fixtures import LOADED, InProcess, days, make, serve, stream, turning
from loop_fixtures import project as project_of
from serving_fixtures import until

from homeostat import looks
from homeostat.audit import _append
from homeostat.build import Project, load_project
from homeostat.notes import orders
from homeostat.records import EPOCH
from homeostat.testing import START, FakeClock
from homeostat.wall.app import create_app
from homeostat.wall.run import wall
from homeostat.wall.turns import Turns

MORE = "\n[monitor]\nstaleness = false\n"
DECIDE = {"cooldown": "21d", "growth": 0.1, "backoff": 1, "budget": "none", "recalibrate": False}
STEPS = (21, 28, 35, 42)  # days at whose end the loop steps; then one that leaves a release waiting
SCRIPT = "<img src=x onerror=\"document.title='broken in'\">"
"""A name that would act where it is not escaped."""
HOSTILE = [SCRIPT, "{{ 7 * 7 }}", "a|b", "\u202eevil", 'it\'s "it"', "x" * 300]
ADMIN, VIEWER = "an admin's key", "a viewer's key"
KEYS = "".join(
    f'\n[[serving.keys]]\nname = "{name}"\nrole = "{role}"\n'
    f'sha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\n'
    for name, role, key in (("ada", "admin", ADMIN), ("ben", "predict", VIEWER))
)


def lived(root: Path) -> Path:
    """A project in which a challenger was promoted and another one waits for an approval."""
    frame, engine = stream(), InProcess()
    make(root, days(frame, 0, LOADED), more=MORE)
    with turning(root, engine, LOADED) as loop:
        loop.train()
    for day in STEPS:
        serve(root, days(frame, day - 7, day))
        with turning(root, engine, day, decide=DECIDE) as loop:
            loop.step()
    serve(root, days(frame, 42, 49))
    with turning(root, engine, 49, decide={"mode": "approve", **DECIDE}) as loop:
        outcome = loop.step()
    assert outcome.decision.trigger == "approve", outcome.decision
    report = (
        b"<script>document.title = 'ran'; try { parent.document.title = 'out' } catch {}</script>"
    )
    end = outcome.evidence.window.end
    looks.keep(root / "reports", end, outcome.evidence.release, "report.html", report)
    return root


def bare(root: Path, more: str = "") -> Path:
    """A project in which nothing happened yet."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "homeostat.toml").write_text('[project]\nname = "rides"\n' + more)
    return root


def invented(root: Path, looks: int, columns: list[str], *, more: str = "") -> Path:
    """A project whose files tell of so many daily looks at these columns, the last of which drifts
    in each third column.
    """
    bare(root, more)
    lines, text, body = [], [], {}
    for look in range(looks):
        at = START + look * timedelta(days=1)
        body = _look(at, look, columns)
        told = {"action": "hold", "trigger": "none", "reason": "No reason.", "numbers": {}}
        text.append(_append(lines, "decided", at, {"decision": told, "evidence": body}))
    reports = root / "reports"
    reports.mkdir(exist_ok=True)
    (reports / "decisions.jsonl").write_bytes(b"".join(text))
    told = {name: _feature(name, body["distances"][name]) for name in columns}
    status = {**_status(body), "features": told}
    (reports / "drift_status.json").write_text(json.dumps(status))
    shape = {
        "labels": ["a", SCRIPT, "null"],
        "reference": [0.5, 0.4, 0.1],
        "current": [0.2, 0.7, 0.1],
    }
    shapes = {"window": body["window"], "importance": dict.fromkeys(columns[:3], 0.1)}
    shapes["columns"] = dict.fromkeys(columns, shape)
    (reports / "drift_shapes.json").write_text(json.dumps(shapes))
    return root


def _look(at, number, columns):
    wave = (number % 50) / 100
    return {
        "state": "drift", "hurts": "no", "release": "c" * 64, "rows": 1000, "labelled": 900,
        "data_drift": True, "history": 0, "drifted": columns[::3], "reason": "It drifted.",
        "window": {"start": (at - timedelta(days=1)).isoformat(), "end": at.isoformat()},
        "performance": {
            "metric": "log_loss", "lag_days": 0.0, "greater_is_better": False,
            "realised": [0.5 + wave / 10, 0.48, 0.56, 900], "baseline": [0.5, 0.45, 0.55, 1000],
            "first_release": [0.6 + wave / 10, 0.55, 0.7, 900],
        },
        "distances": {
            name: [round(wave + 0.3 * (place % 3 == 0), 4), 0.2]
            for place, name in enumerate(columns)
        },
    }  # fmt: skip


def _feature(name, numbers):
    return {
        "distance": numbers[0], "threshold": numbers[1], "drifted": numbers[0] > numbers[1],
        "test": "location, blocks", "p_value": 0.01, "adjusted_p_value": 0.02, "windows": 34,
        "minimum_detectable_shift": 0.2,
        "quality": [{"check": "nulls", "message": f"{name!r} has nulls.", "severity": "warn"}],
    }  # fmt: skip


def _status(look):
    return {
        "verdict": "drift", "hurts": "no", "reason": look["reason"], "window": look["window"],
        "segments": [], "joint_drift": None, "false_alarms_per_year": 0.5,
        "created_at": EPOCH.isoformat(),
    }  # fmt: skip


class Still:
    """A project's loop for orders alone: a step of it does nothing."""

    def __init__(self, loop):
        self._loop = loop

    def step(self):
        return None

    def __getattr__(self, name):
        return getattr(self._loop, name)


@contextmanager
def ordered(project: Project, clock: FakeClock):
    """The loop under the project's lock; a folder in which nothing happened has none."""
    with project.loop(clock=clock) as loop:
        yield Still(loop)


def later(project: Project) -> FakeClock:
    """An hour after the last line of the project's chain."""
    lines = project.audit.lines()
    last = datetime.fromisoformat(lines[-1]["at"]) if lines else START
    return FakeClock(last + timedelta(hours=1))


class Visitor:
    """A client of the page in this process, which keeps its cookies and follows nothing."""

    def __init__(self, app, base, turns):
        self.turns = turns
        self._client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=base)

    def get(self, path, **options):
        return asyncio.run(self._client.get(path, **options))

    def post(self, path, **options):
        return asyncio.run(self._client.post(path, **options))


@dataclass
class Shown:
    """A page that is served, and the loop's thread beside it."""

    project: Project
    url: str
    port: int

    def bodies(self, kind):
        return [line["body"] for line in self.project.audit.lines() if line["kind"] == kind]


@contextmanager
def showing(root: Path, port: int = 0, **overrides):
    """Serve the page of a project, with its orders carried out, while the block runs."""
    project = project_of(root, **overrides) if overrides else load_project(root)
    held = orders(project.settings.path(".homeostat"))
    clock = later(project)
    turns = Turns(lambda: ordered(project, clock), held, clock, timedelta(days=1))
    listening = socket.create_server(("127.0.0.1", port))
    shown = wall(project, turns)
    app = create_app(shown)
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1, ws="none")
    server = uvicorn.Server(config)
    told = {"report": lambda _: None, "problem": lambda _: None, "waits": lambda _: None}
    threads = [
        threading.Thread(target=server.run, args=([listening],)),
        threading.Thread(target=turns.run, kwargs=told),
    ]
    for thread in threads:
        thread.start()
    try:
        until(lambda: server.started, what="the page to start")
        port = listening.getsockname()[1]
        yield Shown(project, f"http://127.0.0.1:{port}", port)
    finally:
        turns.stop()
        shown.closing.set()
        server.should_exit = True
        for thread in threads:
            thread.join(30)
        listening.close()
