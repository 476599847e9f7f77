"""Serving, measured beside its peers: `python benchmarks/serving.py [--json FILE]`.

It takes nothing but a quiet Linux machine with `wrk` and `taskset`: peers get environments of their
own, the model is trained in each. It gives requests per second and latencies in one table, their
ratios beside the aims in another, and all figures as JSON where a file is named.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from aims import ALONE, DISK, Measured
from environments import PEERS, made, run, variables
from load import BenchmarkError, Case, Figures, measured, of_rounds
from peers.model import FEATURES, drawn
from processes import free_port, posted, running
from rich.console import Console
from systems import CASES, OURS, SYSTEMS, Site, System
from view import Conditions, rows_of, show

BODIES = {1: 256, 100: 32}  # different requests, by rows of each
RECORD = 320  # bytes of a record with these features, for the disk
RECORDS = 200
ENVIRONMENTS = Path("~/.cache/homeostat-bench")

Rounds = dict[tuple[str, Case], list[Figures]]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write. Returns 1 when some figures do not count, 2 when there are none."""
    asked = _arguments().parse_args(argv)
    seconds, rounds = (1.0, 1) if asked.quick else (asked.seconds, asked.rounds)
    console = Console(stderr=True)
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda number, _: sys.exit(128 + number))
    try:
        _need("wrk", "taskset")
        chosen = _chosen(asked.only)
        kept = asked.envs.expanduser().resolve()
        kept.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="run-", dir=kept) as folder:
            bench = Bench(Path(folder), seconds, console)
            bench.prepare(chosen, kept)
            for turn in range(rounds):
                bench.round(chosen, turn, rounds)
    except BenchmarkError as error:
        console.print(str(error), style="red", markup=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("stopped; every server was ended.")
        return 130
    found = bench.found()
    tried = list(bench.rounds)
    show(found, tried, bench.conditions, Console())
    if asked.json:
        asked.json.write_text(json.dumps(rows_of(found, tried), indent=1) + "\n")
    for line in bench.failures:
        console.print(line, style="red", markup=False, soft_wrap=True)
    return 1 if bench.failures else 0


class Bench:
    """One run: what it needs, and what it found."""

    def __init__(self, folder: Path, seconds: float, console: Console) -> None:
        self.folder = folder
        self.seconds = seconds
        self.console = console
        self.cores = sorted(os.sched_getaffinity(0))
        python = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
        self.conditions = Conditions(len(self.cores), os.getloadavg()[0], python)
        self.rounds: Rounds = defaultdict(list)
        self.failures: list[str] = []
        self._failed: set[tuple[str, Case]] = set()
        self._site = Site({}, None, None)

    def prepare(self, chosen: Sequence[System], kept: Path) -> None:
        """Environments, Homeostat's project, bodies."""
        if len(self.cores) < 2:
            raise BenchmarkError("the server and the load need a core each, and there is one.")
        environments = {}
        for name in dict.fromkeys(s.environment for s in chosen if s.name != OURS):
            with self.console.status(f"environment of {name}"):
                environments[name] = made(name, kept)
        trained = onnx = None
        if any(s.name == OURS or s.onnx for s in chosen):
            import project

            with self.console.status("training Homeostat's model"):
                trained = project.trained(self.folder / "project", FEATURES)
            onnx = project.twin(trained, self.folder / "twin.onnx")
            if onnx is None:
                self.failures.append("Homeostat's release has no twin: the model itself answers.")
        self._site = Site(environments, trained, onnx)
        for system in chosen:
            for rows in BODIES:
                self._write_bodies(system, rows)

    def round(self, chosen: Sequence[System], turn: int, rounds: int) -> None:
        """Each system once in every case, beginning with another one than the last time."""
        start = turn * len(chosen) // rounds
        for system in [*chosen[start:], *chosen[:start]]:
            with self.console.status(f"round {turn + 1} of {rounds}: {system.key}"):
                self._measure_disk()  # now and then, so that no single moment speaks for it
                self._measure(system)

    def found(self) -> Measured:
        """Medians of what counts: a case that failed in one round has failed."""
        return {
            case: of_rounds(figures)
            for case, figures in self.rounds.items()
            if figures and case not in self._failed
        }

    def _measure(self, system: System) -> None:
        try:
            with self._served(system) as address:
                for case in CASES:
                    self._ask(system, case, address)
        except BenchmarkError as error:
            self._fail(system.key, error, *CASES)

    def _ask(self, system: System, case: Case, address: str) -> None:
        figures = self.rounds[system.key, case]
        bodies = self._bodies(system, case.rows_per_request)
        asked = (address, system.path, bodies, case.concurrency)
        first = bodies.read_bytes().splitlines()[0]
        try:
            system.check(*posted(address, system.path, first), case.rows_per_request)
            measured(*asked, self.seconds / 4, self.cores[-1])
            figures.append(measured(*asked, self.seconds, self.cores[-1]))
        except BenchmarkError as error:
            self._fail(system.key, error, case)

    def _fail(self, key: str, error: BenchmarkError, *cases: Case) -> None:
        where = "; ".join(f"{c.concurrency} × {c.rows_per_request}" for c in cases)
        self.failures.append(f"{key} ({where}): {error}")
        for case in cases:
            self.rounds[key, case]  # a cell of the table, though an invalid one
            self._failed.add((key, case))

    @contextmanager
    def _served(self, system: System) -> Iterator[str]:
        """The system in a folder of its own, which goes with it."""
        port = free_port()
        address = f"127.0.0.1:{port}"
        first = self._bodies(system, 1).read_bytes().splitlines()[0]
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            folder = Path(name)
            if system.name == OURS and self._site.project:
                shutil.copytree(self._site.project, folder / "project")
            command = system.command(self._site, port)
            env = variables(**system.variables(self._site, folder))
            # The load has the last core; several workers share it where there are only two.
            cores = self.cores[: system.workers]
            with running(
                command, env, folder, cores, lambda: posted(address, system.path, first)[0] == 200
            ):
                yield address

    def _measure_disk(self) -> None:
        disk = ["taskset", "-c", str(self.cores[0]), sys.executable, str(PEERS / "disk.py")]
        told = json.loads(run(*disk, str(self.folder), str(RECORD), str(RECORDS)))
        figures = Figures(1e3 / told["p50_ms"], told["p50_ms"], told["p99_ms"])
        self.rounds[DISK, ALONE].append(figures)

    def _bodies(self, system: System, rows: int) -> Path:
        return self.folder / f"{system.name}-{system.mode}-{rows}.jsonl"

    def _write_bodies(self, system: System, rows: int) -> None:
        frames = (drawn(rows, seed=100 + i) for i in range(BODIES[rows]))
        lines = [json.dumps(system.wrapped(f.to_dict("records"))) for f in frames]
        self._bodies(system, rows).write_text("\n".join(lines) + "\n")


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure serving beside its peers.")
    add = parser.add_argument
    add("--json", type=Path, metavar="FILE", help="write all figures there")
    add("--seconds", type=float, default=5, help="of load per system and case (default 5)")
    add("--rounds", type=int, default=3, help="each system's turns; medians count (default 3)")
    add("--quick", action="store_true", help="one round of one second: a look, no measurement")
    add("--envs", type=Path, default=ENVIRONMENTS, help="keeps the peers' environments")
    add(
        "--only",
        action="append",
        metavar="SYSTEM",
        help="this system, or system:mode; may be repeated. "
        + ", ".join(system.key for system in SYSTEMS),
    )
    return parser


def _chosen(only: Sequence[str] | None) -> list[System]:
    if not only:
        return list(SYSTEMS)
    known = {name for system in SYSTEMS for name in (system.key, system.name)}
    for name in only:
        if name not in known:
            raise BenchmarkError(f"there is no {name!r}; there are {', '.join(sorted(known))}.")
    return [system for system in SYSTEMS if {system.key, system.name} & set(only)]


def _need(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            raise BenchmarkError(
                f"{program} is missing: apt-get install wrk util-linux. "
                "The benchmark runs on Linux only."
            )


if __name__ == "__main__":
    sys.exit(main())
