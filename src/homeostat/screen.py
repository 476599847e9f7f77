"""What the command line prints: Rich tables for people, or one JSON document for programs.

Takes records and writes to standard output; problems go to standard error. Names that come from
data are never read as markup.
"""

from __future__ import annotations

import json
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from homeostat import approval, autonomy, quarantine, report
from homeostat.audit import jsonable
from homeostat.errors import HomeostatError
from homeostat.page import shown
from homeostat.records import Evidence, Json, Outcome, Quarantine, Segment, State, Verdict

if TYPE_CHECKING:
    from homeostat.build import Project
    from homeostat.doctor import Check
    from homeostat.project import Made
    from homeostat.rebuild import Frame

SEGMENTS = 20  # most that are listed; the report has all

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    out.print(escape(text))


def problem(error: HomeostatError) -> None:
    err.print(f"[bold red]error[/] {escape(str(error))}")


def note(text: str) -> None:
    """Something to be seen to, which is no error of this call."""
    err.print(f"[yellow]note[/] {escape(text)}")


def working(what: str) -> AbstractContextManager[Any]:
    """A spinner while something runs; silent where nobody watches."""
    return err.status(f"{what} …")


@contextmanager
def progress(what: str, unit: str) -> Iterator[Callable[[float, int], None]]:
    """A bar, told the share that is done and how much that was; silent where nobody watches."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[done]:,} {task.fields[unit]}, {task.fields[speed]:,.0f}/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(what, total=1.0, done=0, unit=unit, speed=0.0)
        began = time.monotonic()

        def told(share: float, done: int) -> None:
            speed = done / max(time.monotonic() - began, 1e-9)
            bar.update(task, completed=share, done=done, speed=speed)

        yield told


def document(value: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(jsonable(value), indent=1, sort_keys=True))


def made(result: Made, *, as_json: bool) -> None:
    if as_json:
        document({**asdict(result), "folder": str(result.folder)})
        return
    for line in result.said:
        out.print(f"[green]•[/] {escape(line)}")
    for name in result.written:
        out.print(f"[dim]wrote[/] {escape(str(result.folder / name))}")
    out.print(f"Next: homeostat train --project {escape(shlex.quote(str(result.folder)))}")


def evidence(found: Evidence, reports: Path, *, as_json: bool) -> None:
    if as_json:
        document(found)
        return
    colour = {"stable": "green", "drift": "yellow"}.get(found.state.value, "red")
    out.print(f"[bold {colour}]{found.state.value}[/] {escape(found.reason)}")
    out.print(
        f"[dim]{escape(str(found.window))}: {found.rows} rows, {found.labelled} labelled, "
        f"{found.refused} refused[/]"
    )
    drifted = [column for column in found.columns if column.drifted]
    if drifted:
        table = Table("column", "distance", "threshold", "adjusted p", "test")
        for column in sorted(drifted, key=lambda c: -c.distance)[:20]:
            table.add_row(
                escape(column.column),
                f"{column.distance:.3f}",
                f"{column.threshold:.3f}",
                f"{column.adjusted_p_value:.2g}",
                column.test,
            )
        out.print(table)
    _segments(found.segments)
    for finding in found.findings:
        out.print(
            f"[{'red' if finding.severity == 'block' else 'yellow'}]{finding.severity}[/] "
            f"{escape(finding.message)}"
        )
    for name in ("monitor_report.html", "drift_report.html"):
        out.print(f"[dim]{escape(str(reports / name))}[/]")


def _segments(found: Sequence[Segment]) -> None:
    """Those that drifted, how many did not, and what is said of a column as a whole."""
    drifted = [(one, one.furthest) for one in found if one.verdict is State.DRIFT]
    table = Table("segment", "rows", "furthest", "distance", "threshold", "adjusted p")
    for one, furthest in drifted[:SEGMENTS]:
        if furthest is not None:
            table.add_row(
                escape(f"{shown(one.column)} = {shown(one.level or '')}"),
                str(one.rows),
                escape(shown(furthest.column)),
                f"{furthest.distance:.3f}",
                f"{furthest.threshold:.3f}",
                f"{furthest.adjusted_p_value:.2g}",
            )
    if drifted:
        out.print(table)
    counts = Counter(one.verdict.value for one in found if one.level is not None)
    if counts:
        told = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))
        out.print(f"[dim]segments: {told}[/]")
    for one in found:
        if one.level is None:
            out.print(f"[dim]{escape(shown(one.column))}, {one.rows} rows: {escape(one.reason)}[/]")


def outcome(result: Outcome, reports: Path, *, as_json: bool) -> None:
    if as_json:
        document(result)
        return
    if result.evidence is not None:
        evidence(result.evidence, reports, as_json=False)
    decision = result.decision
    out.print(f"[bold]{decision.action.value}[/] {escape(decision.reason)}")
    if result.verdict is not None:
        out.print(_gate(result.verdict))
        out.print(escape(result.verdict.reason))
    if result.release is not None:
        word = "promoted" if result.promoted else "serving"
        out.print(f"[bold]{word}[/] release {result.release[:12]} [dim]({result.seconds:.1f} s)[/]")


def _gate(verdict: Verdict) -> Table:
    table = Table("gate", "champion", "challenger", "difference", "rows", "blocks")
    table.add_row(
        verdict.metric,
        _figure(verdict.champion),
        _figure(verdict.challenger),
        f"{_figure(verdict.difference)} [{_figure(verdict.low)}, {_figure(verdict.high)}]".replace(
            "[", "\\["
        ),
        str(verdict.rows),
        str(verdict.blocks),
    )
    return table


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.5f}"


def status(project: Project, *, as_json: bool, markdown: bool) -> None:
    reports = project.settings.path("reports")
    champion, last = project.releases.champion(), report.read(reports)
    turn = report.newest_turn(project.audit.lines(), last)
    sealed, held = project.journal.sealed, quarantine.held(project.audit.lines())
    waits = approval.waiting(project.audit.lines())
    unearned = autonomy.unearned(project.settings, project.audit.lines())
    if as_json:
        told = {"champion": champion, "evidence": last, "last": turn, "sealed": sealed}
        document({**told, "quarantined": held, "waiting": waits, "unearned": unearned})
    elif markdown:
        shown = turn or last
        print(report.summary(shown) if shown else "No window was looked at yet.")
    else:
        if champion is None:
            say("No champion yet: run `homeostat train`.")
        else:
            rows, since = champion.manifest["training"]["rows"], champion.manifest["created_at"]
            count = len(champion.members)
            blended = f", a blend of {count} models" if count > 1 else ""
            say(f"{champion.short} serves, made {since[:16]} UTC of {rows:,} rows{blended}")
        if last is None:
            say("No window was looked at yet: run `homeostat monitor`.")
        else:
            evidence(last, reports, as_json=False)
        if unearned:
            say(f"`homeostat run` works by the mode approve: {unearned}")
        for each in waits:
            say(
                f"{each.release[:12]} ({each.kind}) waits since {each.since:%Y-%m-%d %H:%M} UTC "
                f"for `homeostat approve`: {each.reason}"
            )
        if held:
            say(f"{len(held)} stretches of served rows are quarantined: see `homeostat quarantine`")
            _quarantines(held)
        if sealed.conflicts or sealed.orphans:
            say(
                f"left out of history so far: {sealed.conflicts:,} predictions whose id stands for "
                f"other content there, {sealed.orphans:,} labels without a prediction"
            )


def quarantined(
    project: Project,
    held: Sequence[Quarantine],
    released: Sequence[Quarantine],
    *,
    as_json: bool,
) -> None:
    """What is quarantined, with how many rows that is by now, and what was released just now."""
    rows = {each.id: quarantine.counted(each, project.journal) for each in held}
    if as_json:
        told = [{**jsonable(each), "rows": rows[each.id]} for each in held]
        document({"quarantined": told, "released": [each.id for each in released]})
        return
    for each in released:
        say(f"released {each.id}: {each.window}")
    if held:
        _quarantines(held, rows)
    else:
        say("Nothing is quarantined.")


def _quarantines(held: Sequence[Quarantine], rows: Mapping[str, int] | None = None) -> None:
    table = Table("id", "rows of", "columns", "why", *(["rows"] if rows is not None else []))
    for each in held:
        columns = escape(", ".join(each.columns)) or "[dim]all[/]"
        counted = [f"{rows[each.id]:,}"] if rows is not None else []
        table.add_row(each.id, str(each.window), columns, escape(each.reason), *counted)
    out.print(table)


def history(lines: Sequence[Mapping[str, Json]], *, as_json: bool) -> None:
    if as_json:
        document(list(lines))
        return
    table = Table("#", "at", "what", "why")
    for line in lines:
        body = line["body"]
        why = body.get("reason") or body.get("decision", {}).get("reason", "")
        table.add_row(str(line["seq"]), line["at"][:16], line["kind"], escape(str(why)))
    out.print(table)


def verified(
    lines: int,
    checked: int,
    frames: Sequence[Frame],
    erased: Mapping[str, datetime],
    *,
    forgets: bool,  # rows beyond `journal.keep` are forgotten
    as_json: bool,
) -> bool:
    """Whether nothing is amiss; `erased` names releases of which training rows were erased since,
    and when.
    """
    same = sum(frame.result == "same" for frame in frames)
    gone = {f.release for f in frames if f.result == "fewer" and (forgets or f.release in erased)}
    amiss = [f for f in frames if f.result != "same" and f.release not in gone]
    if as_json:
        told: dict[str, Json] = {"audit_lines": lines, "releases": checked, "frames": same}
        told |= {"erased": erased} if erased else {}
        told |= {"forgotten": sorted(gone - erased.keys())} if gone - erased.keys() else {}
        told |= {"other_frames": amiss} if amiss else {}
        document(told)
        return not amiss
    out.print(
        f"[green]verified[/] {lines} lines of the audit chain, {checked} releases, {same} training "
        "frames"
    )
    for release, at in erased.items():
        say(
            f"{release[:12]} was trained on rows that were erased on {at:%Y-%m-%d}: its frame "
            "cannot be rebuilt as it was"
        )
    for release in sorted(gone - erased.keys()):
        say(f"{release[:12]} was trained on rows that history forgot since (journal.keep)")
    for frame in amiss:
        out.print(
            f"[red]not verified[/] the training frame of {frame.release[:12]}: the journal gives "
            f"{frame.found:,} rows that do not have its hash; it names {frame.named:,}"
        )
    return not amiss


def counts(result: Mapping[str, Json], *, as_json: bool) -> None:
    if as_json:
        document(result)
        return
    say(", ".join(f"{value} {name.replace('_', ' ')}" for name, value in result.items()))


def scored(report: Mapping[str, Json], *, as_json: bool) -> None:
    if as_json:
        document(report)
        return
    refused = sum(report["refused"].values())
    out.print(
        f"{report['answered']:,} of {report['rows']:,} rows answered, {report['repeated']:,} of "
        f"them as before, {refused:,} refused [dim]({report['seconds']:.1f} s)[/]"
    )
    for code, count in sorted(report["refused"].items()):
        out.print(f"[yellow]{count:,}[/] {escape(code)}")
    for each in report["refusals"]:
        out.print(f"[dim]row {each['row']}: {escape(each['why'])}[/]")
    if report["ignored"]:
        say(f"No features: {', '.join(report['ignored'])}.")
    out.print(f"[dim]{escape(report['out'])}[/]")


def checks(found: Sequence[Check], *, as_json: bool) -> None:
    if as_json:
        document(list(found))
        return
    colours = {"well": "green", "note": "yellow", "wrong": "red"}
    for check in found:
        out.print(
            f"[{colours[check.result]}]{check.result:5}[/] {escape(check.name)}: "
            f"{escape(check.message)}"
        )
