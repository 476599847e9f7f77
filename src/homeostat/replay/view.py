"""What one sees of a replay in a terminal: the time that is left, and the table at the end.

Takes the number of windows and policies, and the result. Gives a Rich progress bar on standard
error, silent where nobody watches, the table on the console it is handed, and the two files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from homeostat.errors import HomeostatError
from homeostat.replay.result import NAMES, ReplayResult

Start = Callable[[str], Callable[[], object]]
"""Called with a policy's name when it begins; gives what to call after each of its windows."""


@contextmanager
def progress(policies: int, windows: int, *, shown: bool) -> Iterator[Start]:
    """A bar over all windows of all policies, with the time that is left."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("windows"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not shown,
    )
    task = bar.add_task("", total=policies * windows)

    def start(name: str) -> Callable[[], object]:
        bar.update(task, description=f"{escape(name):12}")
        return lambda: bar.advance(task)

    with bar:
        yield start


def report(result: ReplayResult, out: Path | None, console: Console, *, as_json: bool) -> None:
    """Print the result, and write `replay.json` and `replay.png` into `out`.

    Raises HomeostatError where these cannot be written.
    """
    if as_json:
        print(result.to_json(), end="")
    else:
        _show(result, console)
    if out is None:
        return
    names = out / "replay.json", out / "replay.png"
    try:
        out.mkdir(parents=True, exist_ok=True)
        names[0].write_text(result.to_json(), encoding="utf-8")
        result.plot(names[1])
    except OSError as error:
        raise HomeostatError(f"{out} cannot be written: {error.strerror}.") from error
    if not as_json:
        for name in names:
            console.print(f"[dim]wrote[/] {escape(str(name))}")


def _show(result: ReplayResult, console: Console) -> None:
    """What was assumed, and the table of policies."""
    for line in result.said:
        console.print(f"[dim]•[/] {escape(line)}")
    metric = NAMES[result.rows[0].metric]
    names = ("policy", metric, "gain", "kept", "retrains", "promoted", "harmful", "CPU s")
    table = Table(*names)
    for column in table.columns:
        column.no_wrap = True
        column.justify = "left" if column.header == "policy" else "right"
    for row in result.rows:
        table.add_row(
            escape(row.policy),
            f"{row.value:.5g}",
            _share(row.relative_gain, sign="+"),
            _share(row.gain_kept),
            str(row.retrains),
            str(row.promotions),
            str(row.harmful_promotions),
            f"{row.cpu_seconds:.1f}",
        )
    console.print(table)
    first, last = result.windows[0].start, result.windows[-1].end
    console.print(
        f"[dim]{result.compared:,} labelled rows in {len(result.windows)} windows, "
        f"{first:%Y-%m-%d} to {last:%Y-%m-%d}[/]"
    )


def _share(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.1%}"
