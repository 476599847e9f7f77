"""Servers that are killed or refused by the system, and clients that remember each answer."""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from serving_fixtures import SOURCE, until

# The calls by which a process changes what is in a file, or which, or makes it durable.
CALLS = (
    *("write", "pwrite64", "writev", "pwritev", "pwritev2", "sendfile", "copy_file_range"),
    *("fsync", "fdatasync", "sync_file_range", "ftruncate", "truncate", "fallocate"),
    *("rename", "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat"),
)
CITIES = ["Oslo", "Rome", "Wien, AT", 'a "quoted"\nnewline\r\n', "日本 \u2028", "'", "\\", None]


def system(reason: str) -> None:
    """Skip where the system has not what a test needs, and fail where it must have it."""
    if os.environ.get("HOMEOSTAT_REQUIRE_SYSTEM"):
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass
class Child:
    """One process of a nursery, and strace on it if there is one."""

    nursery: Nursery
    pid: int
    root: Path
    log: Path
    strace: subprocess.Popen | None = None
    code: int | None = None

    def ended(self) -> bool:
        if self.code is None:
            self.code = self.nursery.ask(wait=self.pid)["code"]
        return self.code is not None

    @property
    def killed(self) -> bool:
        """Whether SIGKILL ended it, which here only strace sends."""
        return self.code == -signal.SIGKILL

    def up(self) -> tuple[str, int] | None:
        """Host and port once the server listens; None when it died before."""
        found = re.compile(r"running on http://([\d.]+):(\d+)")

        def listening():
            return found.search(self.log.read_text()) or self.ended()

        match = until(listening, what="the server")
        if match is True:
            assert self.killed, self.log.read_text()
            return None
        return match[1], int(match[2])

    def end(self, seconds: float = 20) -> None:
        """End it as a service manager would, if it is not dead yet."""
        if not self.ended():
            os.kill(self.pid, signal.SIGTERM)
            until(self.ended, seconds, "the end of the server")
        if self.strace is not None:
            self.strace.wait(20)


class Nursery:
    """A process that has imported everything and forks children that run a driver."""

    def __init__(self, folder: Path) -> None:
        if not sys.platform.startswith("linux"):
            pytest.skip("forks and strace as these tests need them are Linux's")
        self._folder = folder
        self._lock = threading.Lock()
        self._number = 0
        script = Path(__file__).with_name("fault_drivers.py")
        environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, **order):
        with self._lock:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())

    def start(self, run: str, root: Path, *, strace: tuple[str, ...] = (), **options) -> Child:
        """A child that runs `run` in `root`, under strace with these arguments if any."""
        self._number += 1
        log, gate = (self._folder / f"{self._number}.{name}" for name in ("log", "gate"))
        log.touch()
        os.mkfifo(gate)
        pid = self.ask(run=run, root=str(root), log=str(log), gate=str(gate), options=options)
        child = Child(self, pid["pid"], root, log)
        if strace:
            log, errors = (child.log.with_suffix(name) for name in (".strace", ".errors"))
            child.strace = attach(child.pid, log, errors, *strace, traceable=True)
        gate.write_bytes(b"")
        gate.unlink()
        return child

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()


def as_root(*command: str) -> list[str]:
    """The command with the rights of root, where they can be had without a password."""
    sudo = ["sudo", "-n"] if os.geteuid() and shutil.which("sudo") else []
    return [*sudo, *command]


def attach(
    pid: int, log: Path, errors: Path, *arguments: str, traceable: bool = False
) -> subprocess.Popen:
    """strace on all threads of a process, at work when this returns; `traceable` is a process that
    lets any other one trace it.
    """
    if shutil.which("strace") is None:
        system("strace is not installed")
    command = ["strace", "-f", "-q", "-o", str(log), "-p", str(pid), *arguments]
    if not traceable:
        command = as_root(*command)
    with errors.open("wb") as output:
        process = subprocess.Popen(command, stderr=output)

    def attached():
        if process.poll() is not None:
            os.kill(pid, signal.SIGKILL)
            system(f"strace cannot attach: {errors.read_text()}")
        return "TracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text()

    until(attached, what="strace")
    return process


def journal_files(root: Path) -> list[Path]:
    """The folder of the journal and the files that are made in it."""
    logs = root / "data" / "logs"
    known = ("predictions.csv", "predictions.schema.json", "labels.csv", "rejected.jsonl")
    made = {logs, *(logs / name for name in known), *logs.glob("*.*")}
    return sorted(path for one in made for path in (one, one.with_name(f"{one.name}.new")))


def row_of(name: str) -> dict[str, object]:
    """The row that belongs to an id: the same whenever it is sent."""
    draw = random.Random(name)
    return {
        "amount": draw.gauss(0, 1),
        "gap": None if draw.random() < 0.3 else draw.expovariate(1),
        "city": draw.choice(CITIES),
        "member": draw.random() < 0.5,
    }


@dataclass
class Memory:
    """What all clients of one folder sent and were told, over all lives of its servers."""

    answers: dict[str, dict] = field(default_factory=dict)  # by id, as first answered
    rows: dict[str, dict] = field(default_factory=dict)  # by id, what was answered
    waiting: set[str] = field(default_factory=set)  # ids that were sent and never answered
    nameless: int = 0  # rows sent without an id and never answered
    labels: dict[str, list[str]] = field(default_factory=dict)  # by id, in order; all told but …
    untold: set[str] = field(default_factory=set)  # … the last one of these ids
    refused: Counter = field(default_factory=Counter)  # answers by status, other than 200
    again: bool = True  # whether rows that were answered are sent again
    wrong: set[str] = field(default_factory=set)  # what no server may say
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answered(self, sent: list[dict], answers: list[dict]) -> list[str]:
        """Remember the answers; the ids that had none before."""
        if len(sent) != len(answers):
            self.wrong.add(f"{len(sent)} rows got {len(answers)} answers")
        fresh = []
        for row, answer in zip(sent, answers, strict=False):
            name = answer["prediction_id"]
            if row.get("prediction_id", name) != name:
                self.wrong.add(f"{row['prediction_id']} was answered as {name}")
            self.rows[name] = {n: v for n, v in row.items() if n != "prediction_id"}
            first = self.answers.setdefault(name, answer)
            if first is answer:
                fresh.append(name)
            elif first != answer:
                self.wrong.add(f"{name} had another answer before")
            self.waiting.discard(name)
        return fresh


class Client(threading.Thread):
    """Sends rows and labels one after the other until the server dies or `requests` are done."""

    def __init__(self, address: tuple[str, int], memory: Memory, name: str, requests: int) -> None:
        super().__init__(name=name)
        self._connection = http.client.HTTPConnection(*address, timeout=60)
        self._memory = memory
        self._requests = requests
        self._draw = random.Random(name)
        self._mine: list[str] = []
        self._made = 0
        self.done = 0

    def run(self) -> None:
        try:
            for _ in range(self._requests):
                self.step()
                self.done += 1
        except TimeoutError:
            self._memory.wrong.add(f"{self.name} waited a minute for an answer")
        except (OSError, http.client.HTTPException):
            pass  # the server died
        finally:
            self._connection.close()

    def step(self) -> None:
        kind = self._draw.random()
        if kind < 0.05:
            self._label(self._new())  # of an id that nobody has predicted
        elif kind < 0.1 and self._memory.untold:
            self._tell(self._draw.choice(tuple(self._memory.untold) or [self._new()]))
        elif kind < 0.3 and self._mine:
            self._label(self._draw.choice(self._mine))
        else:
            self._predict([self._row() for _ in range(self._draw.choice([1, 1, 1, 2, 5]))])

    def post(self, path: str, content: object) -> object:
        """The answer with status 200; None for a refusal, which is remembered."""
        body = json.dumps(content)
        self._connection.request("POST", path, body, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        text = response.read()
        if response.status == 200:
            return json.loads(text)
        self._memory.refused[response.status] += 1
        if response.status != 503:
            self._memory.wrong.add(text.decode())
        return None

    def _row(self) -> dict:
        """A row without an id, one that had no answer, one that had one, or a fresh one."""
        kind = self._draw.random()
        if kind < 0.3:
            return row_of(self._new())
        name = self._new()
        if kind < 0.5:
            name = self._draw.choice(tuple(self._memory.waiting) or [name])
        elif kind < 0.6 and self._memory.again:
            name = self._draw.choice(tuple(self._memory.answers) or [name])
        return {**(self._memory.rows.get(name) or row_of(name)), "prediction_id": name}

    def _new(self) -> str:
        self._made += 1
        return f"{self.name}.{self._made}"

    def _predict(self, rows: list[dict]) -> None:
        named = [row["prediction_id"] for row in rows if "prediction_id" in row]
        self._memory.waiting |= {name for name in named if name not in self._memory.answers}
        with self._memory.lock:
            self._memory.nameless += len(rows) - len(named)
        single = len(rows) == 1 and self._draw.random() < 0.7
        answer = self.post("/predict", rows[0] if single else rows)
        if answer is not None:
            with self._memory.lock:
                self._memory.nameless -= len(rows) - len(named)
                self._mine += self._memory.answered(rows, [answer] if single else answer)

    def _label(self, name: str) -> None:
        """The next label of an id that is this client's own; one that is not told comes first."""
        if name not in self._memory.untold:
            self._memory.untold.add(name)
            self._memory.labels.setdefault(name, []).append(str(self._draw.randrange(2)))
        self._tell(name)

    def _tell(self, name: str) -> None:
        given = self._memory.labels.get(name, ["1"])
        item = {"prediction_id": name, "label": int(given[-1])}
        if self.post("/feedback", item if self._draw.random() < 0.5 else [item]) is not None:
            self._memory.untold.discard(name)


def load(address: tuple[str, int], memory: Memory, names: list[str], requests: int) -> int:
    """Let one client for each name work beside the others; how many requests were answered."""
    clients = [Client(address, memory, name, requests) for name in names]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    return sum(client.done for client in clients)
