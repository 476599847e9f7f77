"""What a run found, for people and for machines.

It takes the figures by system and case. It gives two tables, of figures and of aims, and the rows
of the JSON file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aims import AIMS, MAIN, Aim, Measured, ahead
from load import Case, Figures
from rich.console import Console
from rich.table import Table
from systems import CASES

BUSY = 0.5  # load average from which others are at work on the machine
WIDTH = 140  # below which the table of figures folds


@dataclass(frozen=True)
class Conditions:
    """What a run's figures hang on."""

    cores: int  # that the benchmark may use
    load: float  # average of a minute, before the start
    versions: str

    def __str__(self) -> str:
        busy = (
            ": others are at work here, so measure again when it is quiet"
            if self.load > BUSY
            else ""
        )
        return f"{self.cores} cores, {self.versions}, load before the start {self.load:.1f}{busy}"


def rows_of(found: Measured, tried: list[tuple[str, Case]]) -> list[dict[str, Any]]:
    """One object per system, mode and case; figures that do not count are null."""
    rows = []
    for key, case in tried:
        name, mode = key.split(":")
        figures = found.get((key, case))
        rows.append(
            {
                "system": name,
                "mode": mode,
                "concurrency": case.concurrency,
                "rows_per_request": case.rows_per_request,
                "rps": figures and round(figures.rps, 1),
                "p50_ms": figures and round(figures.p50_ms, 3),
                "p99_ms": figures and round(figures.p99_ms, 3),
            }
        )
    return rows


def show(
    found: Measured, tried: list[tuple[str, Case]], conditions: Conditions, console: Console
) -> None:
    """Print the table of figures, that of aims, and who was ahead."""
    console.width = max(console.width, WIDTH)
    console.print(_figures(found, tried))
    console.print(str(conditions))
    if any(key == MAIN for key, _ in found):
        console.print(_aims(found, conditions.cores))
    for line in ahead(found):
        console.print(line)


def _figures(found: Measured, tried: list[tuple[str, Case]]) -> Table:
    table = Table(title="Requests per second, and p50 / p99 in ms, by connections and rows")
    table.add_column("system", no_wrap=True)
    for case in CASES:
        rows = f"{case.rows_per_request} row{'s' * (case.rows_per_request > 1)}"
        table.add_column(f"{case.concurrency} × {rows}", justify="right")
        table.add_column("ms", justify="right")
    for key in dict.fromkeys(key for key, _ in tried):
        cells: list[str] = []
        for case in CASES:
            cells += _cells(found.get((key, case)), tried=(key, case) in tried)
        table.add_row(key.replace(":", " "), *cells)
    return table


def _cells(figures: Figures | None, *, tried: bool) -> tuple[str, str]:
    if figures is None:
        return ("invalid" if tried else "–"), "–"
    return f"{figures.rps:,.0f}", f"{_short(figures.p50_ms)} / {_short(figures.p99_ms)}"


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def _aims(found: Measured, cores: int) -> Table:
    table = Table(title="Homeostat with its journal on, fsync before the answer; 32 connections")
    for name in ("times", "aim", "measured", "reached"):
        table.add_column(name, justify="left" if name == "times" else "right")
    for aim in AIMS:
        bound = f"{'≤' if aim.most else '≥'} {aim.bound:g} ×"
        table.add_row(aim.what, bound, *_judged(aim, found, cores))
    return table


def _judged(aim: Aim, found: Measured, cores: int) -> tuple[str, str]:
    try:
        ratio = aim.ratio(found)
    except KeyError:
        return "–", "not measured"
    if cores < aim.cores:
        return f"{ratio:.2f} ×", f"says nothing: needs {aim.cores} cores, there are {cores}"
    return f"{ratio:.2f} ×", "yes" if aim.reached(ratio) else "no"
