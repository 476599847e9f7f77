"""The load: wrk on a core of its own, with bodies that take turns.

It takes the address of a server that answers, a file of bodies and how many connections. It gives
requests per second and latencies, or says why they do not count.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from statistics import median

SCRIPT = Path(__file__).with_name("load.lua")
PATIENCE = 10  # seconds that wrk waits for an answer, and the benchmark for wrk


class BenchmarkError(Exception):
    """The benchmark cannot go on, or cannot go on with this system; the text says what to do."""


@dataclass(frozen=True)
class Figures:
    """What one system did in one case."""

    rps: float  # requests, not rows, per second
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Case:
    """How a system is asked."""

    concurrency: int  # connections, each of which waits for its answer before it asks again
    rows_per_request: int


def measured(
    address: str, path: str, bodies: Path, connections: int, seconds: float, core: int
) -> Figures:
    """The figures of `connections` for `seconds`. Raises BenchmarkError for a status of 400
    or more, a socket error or a timeout; wrk does not count a connection that the server closes.
    """
    url = f"http://{address}{path}"
    command = ["taskset", "-c", str(core), "wrk", "-t1", f"-c{connections}"]
    command += [f"-d{max(1, round(seconds))}s", "--timeout", f"{PATIENCE}s"]
    command += ["-s", str(SCRIPT), url, "--", str(bodies), path]
    limit = seconds + 3 * PATIENCE
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=True)
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError(f"wrk did not end within {limit:.0f} s.") from error
    except subprocess.CalledProcessError as error:
        raise BenchmarkError(f"wrk failed: {error.stderr.strip()}") from error
    told = json.loads(ran.stdout.splitlines()[-1])
    if not told["requests"]:
        raise BenchmarkError(f"no answer came within {seconds:g} s; --seconds gives it longer.")
    if told["refused"] or told["broken"]:
        raise BenchmarkError(
            f"{told['refused']} of {told['requests']} answers were errors, and "
            f"{told['broken']} requests failed."
        )
    rps = told["requests"] / (told["microseconds"] / 1e6)
    return Figures(rps, told["p50"] / 1e3, told["p99"] / 1e3)


def of_rounds(rounds: list[Figures]) -> Figures:
    """Each figure's median over the rounds."""
    return Figures(
        median(each.rps for each in rounds),
        median(each.p50_ms for each in rounds),
        median(each.p99_ms for each in rounds),
    )
