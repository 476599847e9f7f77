"""What one sees while the demo runs: progress, the newest weeks, and each decision as it falls.

Takes the outcomes of the loop one by one and draws them with Rich; on a screen that is no
terminal it prints one line a week instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from homeostat.demo.result import Result, did
from homeostat.records import Action, Outcome

SHOWN = 12  # weeks in view


class View:
    def __init__(self, weeks: int) -> None:
        self._console = Console(highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("weeks"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._bar = self._progress.add_task("", total=weeks)
        self._rows: list[tuple[str, ...]] = []
        self._decisions: list[str] = []
        self._predicted = self._labelled = 0
        self._live: Live | None = None

    @contextmanager
    def live(self) -> Iterator[None]:
        """The display, while the demo runs."""
        if not self._console.is_terminal:
            yield
            return
        with Live(self, console=self._console, refresh_per_second=4, transient=True):
            yield

    def __rich__(self) -> RenderableType:
        counts = f"{self._predicted:,} flights predicted, {self._labelled:,} landed"
        decisions = Panel("\n".join(self._decisions[-6:]) or "…", title="decisions")
        return Group(self._progress, counts, self._table(self._rows[-SHOWN:]), decisions)

    def says(self, what: str) -> None:
        self._progress.update(self._bar, description=f"{what:36}")

    def advance(self, predicted: int, labelled: int) -> None:
        self._predicted += predicted
        self._labelled += labelled

    def week(self, outcome: Outcome) -> None:
        row = _row(outcome)
        self._rows.append(row)
        self._progress.advance(self._bar)
        decision, verdict = outcome.decision, outcome.verdict
        if decision.action is not Action.HOLD or verdict is not None:
            judged = f" {verdict.reason}" if verdict else ""
            colour = "green" if outcome.promoted else "yellow"
            self._decisions.append(
                f"[{colour}]{row[0]}[/] {escape(decision.reason)}{escape(judged)}"
            )
        if not self._console.is_terminal:
            self._console.print("  ".join(f"{cell:>10}" for cell in row), soft_wrap=True)

    def closing(self, result: Result, root: Path) -> None:
        """The table of all weeks, the sums, and where things lie."""
        table = Table("week of", "flights", "frozen", "served", "gain", "decision")
        for week in result.weeks:
            table.add_row(
                f"{week.start:%d %b}",
                f"{week.rows:,}",
                f"{week.frozen:.4f}",
                f"{week.served:.4f}",
                f"{1 - week.served / week.frozen:+.1%}",
                week.decision,
            )
        self._console.print(table)
        self._console.print(
            f"[bold]log loss[/] {result.frozen.log_loss:.4f} frozen, "
            f"{result.served.log_loss:.4f} served, gain [bold]{result.relative_gain:.2%}[/]; "
            f"AUC {result.frozen.auc:.3f} and {result.served.auc:.3f}"
        )
        self._console.print(
            f"{result.rows:,} flights, {result.retrains} retrainings, {result.recalibrations} "
            f"recalibrations, {result.promotions} promotions, {result.harmful_promotions} harmful, "
            f"{result.seconds:.0f} s"
        )
        for name in (
            "demo.png",
            "demo.json",
            "reports/monitor_report.html",
            "reports/drift_report.html",
            "reports/decisions.jsonl",
            "data/logs/predictions.csv",
        ):
            self._console.print(f"[dim]{escape(str(root / name))}[/]", soft_wrap=True)

    def _table(self, rows: list[tuple[str, ...]]) -> Table:
        table = Table("week of", "state", "drifted", "log loss", "AUC", "did", "release")
        for row in rows:
            table.add_row(*map(escape, row))
        return table


def _row(outcome: Outcome) -> tuple[str, ...]:
    found = outcome.evidence
    performance = found.performance if found else None
    realised = performance.realised if performance else None
    auc = performance.measures.get("auc") if performance else None
    drifted = [c for c in found.columns if c.drifted] if found else []
    return (
        f"{found.window.start:%d %b}" if found else "–",
        found.state.value if found else "–",
        f"{len(drifted)} of {len(found.columns)}" if found else "–",
        f"{realised.value:.4f}" if realised else "–",
        f"{auc.value:.3f}" if auc is not None else "–",
        did(outcome),
        (outcome.release or "–")[:12],
    )
