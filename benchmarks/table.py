"""The figures of a benchmark that measures its parts in processes of their own, as one table.

It takes what measures them, and the sizes, full and small. It gives the benchmark's command line,
the table of figures and aims, and with `--json FILE` the same as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    value: float
    unit: str
    aim: str = ""
    met: bool | None = None


def main(
    what: str, run: Callable[[Any, Path], Iterator[Row]], full: Any, quick: Any, *, decimals: int
) -> None:
    """Measure in a temporary folder as the command line asks, and tell; `what` stands in its help.

    Children import this module for `Row`, and what they import counts in their figures.
    """
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--folder", type=Path, help="where temporary folders are made")
    asked = parser.parse_args()
    console, rows = Console(), []
    table = Table("what", "value", "unit", "aim", "met")
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        for row in run(quick if asked.quick else full, Path(folder)):
            rows.append(row)
            met = {True: "yes", False: "no", None: ""}[row.met]
            table.add_row(row.what, f"{row.value:,.{decimals}f}", row.unit, row.aim, met)
    console.print(table)
    console.print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    if asked.json:
        asked.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
