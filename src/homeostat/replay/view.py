"""What one sees of a replay in a terminal: the time that is left, and the table at the end.

Takes what is to be done, and the result. Gives a Rich progress bar on standard error, silent where
nobody watches, the table on the console it is handed, and the files.
"""

from __future__ import annotations

from collections.abc import Iterator
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
from homeostat.plot import can_draw
from homeostat.replay.result import NAMES, ReplayResult


class Bar:
    """What is left of a replay: models to be fitted and windows to be stepped through."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=None)

    def expect(self, steps: int) -> None:
        self._bar.update(self._task, total=steps)

    def say(self, what: str) -> None:
        self._bar.update(self._task, description=f"{escape(what):12}")

    def tick(self) -> None:
        """One step is done; may be called from any thread."""
        self._bar.advance(self._task)


@contextmanager
def progress(*, shown: bool) -> Iterator[Bar]:
    """A bar over all that is to be done, with the time that is left."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not shown,
    )
    with bar:
        yield Bar(bar)


def report(result: ReplayResult, out: Path | None, console: Console, *, as_json: bool) -> None:
    """Print the result, and write `replay.json`, `replay.png` where Matplotlib is there, and
    `recommended.toml` where `homeostat` was compared, into `out`.

    Raises HomeostatError where these cannot be written.
    """
    if as_json:
        print(result.to_json(), end="")
    else:
        _show(result, console)
    if out is None:
        return
    names = [out / "replay.json"]
    try:
        out.mkdir(parents=True, exist_ok=True)
        names[0].write_text(result.to_json(), encoding="utf-8")
        if result.advice is not None:
            names.append(out / "recommended.toml")
            names[-1].write_text(result.advice.settings, encoding="utf-8")
        if can_draw():
            names.append(out / "replay.png")
            result.plot(names[-1])
    except OSError as error:
        raise HomeostatError(f"{out} cannot be written: {error.strerror}.") from error
    if not as_json:
        for name in names:
            console.print(f"[dim]wrote[/] {escape(str(name))}")
        if not can_draw():
            console.print(
                "no picture: Matplotlib is missing, which 'homeostat[demo]' brings", markup=False
            )


def _show(result: ReplayResult, console: Console) -> None:
    """What was assumed, what each policy came to and what it took, and what to do."""
    for line in result.said:
        console.print(f"[dim]•[/] {escape(line)}")
    metric = NAMES[result.rows[0].metric]
    came = _table("policy", metric, "gain", "kept", "of the oracle", "regret")
    took = _table("policy", "retrains", "needless", "maps", "promoted", "harmful", "CPU s")
    for row in result.rows:
        name, style = escape(row.policy), "dim" if row.baseline else ""
        shares = row.gain_kept, row.oracle_share, row.total_regret
        gain = _share(row.relative_gain, sign="+")
        came.add_row(name, f"{row.value:.5g}", gain, *map(_share, shares), style=style)
        counts = (
            *(row.retrains, row.needless_retrains, row.recalibrations),
            *(row.promotions, row.harmful_promotions),
        )
        took.add_row(name, *map(str, counts), f"{row.cpu_seconds:.1f}", style=style)
    console.print(came, took)
    first, last = result.windows[0].start, result.windows[-1].end
    console.print(
        f"[dim]{result.compared:,} labelled rows in {len(result.windows)} windows, "
        f"{first:%Y-%m-%d} to {last:%Y-%m-%d}[/]"
    )
    if result.advice is not None:
        console.print(escape(f"Recommended: {result.advice.reason}"))
        console.print(escape(result.advice.settings), end="")


def _table(*names: str) -> Table:
    table = Table(*names)
    for column in table.columns:
        column.no_wrap = True
        column.justify = "left" if column.header == "policy" else "right"
    return table


def _share(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.1%}"
