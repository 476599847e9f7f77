"""What Homeostat is held to, as ratios between systems of one run.

It takes the figures of a run. It gives each aim beside what was measured, and the peers that were
ahead of Homeostat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from load import Case, Figures
from systems import OURS, SYSTEMS

Measured = Mapping[tuple[str, Case], Figures]
"""Figures by `System.key` and case; what was not measured, or does not count, is not in it."""

SINGLE, MANY, ALONE = Case(32, 1), Case(32, 100), Case(1, 1)
MAIN = f"{OURS}:fsync"
DISK = "disk:fsync"
CORES = 3  # two workers and the load


@dataclass(frozen=True)
class Aim:
    """One ratio that is to be reached."""

    what: str
    bound: float
    ratio: Callable[[Measured], float]  # raises KeyError for what was not measured
    most: bool = False  # the ratio may be at most the bound, not at least
    cores: int = 2  # with fewer, the ratio says nothing

    def reached(self, ratio: float) -> bool:
        return ratio <= self.bound if self.most else ratio >= self.bound


def faster(system: str, case: Case, *than: str) -> Callable[[Measured], float]:
    """Requests per second of `system` over those of the best of `than`."""

    def ratio(found: Measured) -> float:
        return found[system, case].rps / max(found[other, case].rps for other in than)

    return ratio


def slower_alone(found: Measured) -> float:
    wait = found["fastapi:echo", ALONE].p50_ms + found[DISK, ALONE].p50_ms
    return found[MAIN, ALONE].p50_ms / wait


BENTOML = ("bentoml:plain", "bentoml:batched")
LITSERVE = ("litserve:plain", "litserve:batched")
AIMS = (
    Aim("rps of mlflow models serve, 1 row", 50, faster(MAIN, SINGLE, "mlflow:serve")),
    Aim("rps of BentoML's best mode, 1 row", 10, faster(MAIN, SINGLE, *BENTOML)),
    Aim("rps of LitServe's best mode, 1 row", 10, faster(MAIN, SINGLE, *LITSERVE)),
    Aim("rps of bare ASGI and the same ONNX, 1 row", 0.6, faster(MAIN, SINGLE, "asgi:onnx")),
    Aim("rps of the best of both, 100 rows", 8, faster(MAIN, MANY, *BENTOML, *LITSERVE)),
    Aim("rps without the journal, 1 row", 0.85, faster(MAIN, SINGLE, f"{OURS}:unjournalled")),
    Aim("p50 of FastAPI's echo plus an fsync, alone", 3, slower_alone, most=True),
    Aim(
        "rps of one worker, by two, 1 row",
        1.7,
        faster(f"{OURS}:two-workers", SINGLE, MAIN),
        cores=CORES,
    ),
)


def ahead(found: Measured) -> list[str]:
    """A line for each peer that answers from the model faster than Homeostat does."""
    lines = []
    for system in SYSTEMS:
        if system.name == OURS or system.scores is None:
            continue
        for (key, case), figures in found.items():
            if key == system.key and (MAIN, case) in found:
                ratio = figures.rps / found[MAIN, case].rps
                if ratio > 1:
                    lines.append(
                        f"{key} is ahead of {MAIN}, {ratio:.2f} ×, with {case.concurrency} "
                        f"connections and {case.rows_per_request} rows a request."
                    )
    return lines
