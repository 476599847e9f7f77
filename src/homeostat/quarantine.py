"""Quarantine: served rows that no model may learn from, or be judged on, until someone says so.

Takes evidence of broken data and the audit chain, which alone holds what is quarantined and what
was released. Gives the quarantines that are open, and rows without those that they cover. Rows
that `load()` brought are the user's own, and never quarantined.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from homeostat.audit import canonical, jsonable
from homeostat.contracts import Audit, Journal
from homeostat.errors import HomeostatError
from homeostat.records import Evidence, Json, Quarantine, State, Window
from homeostat.schema import TIMESTAMP, Schema

HELD, RELEASED, LEFT_OUT = "quarantined", "quarantine_released", "left_out"
"""Kinds of line in the audit chain."""

SOUND = frozenset({"stale_feed", "unusable_times"})
"""Checks that say nothing against the rows that are there, or of which no row has a time."""


def hold(audit: Audit, evidence: Evidence, at: datetime) -> Evidence:
    """Record what broken data adds to the quarantine; the evidence with all that is open then.

    What is covered already is not recorded again, and what was released stays so: only the rest
    of the window is new. Raises AuditError.
    """
    for new in _wanted(audit.lines(), evidence, at):
        audit.write(HELD, at, {**jsonable(new), "release": evidence.release})
    return replace(evidence, quarantined=held(audit.lines()))


def held(lines: Sequence[Mapping[str, Json]]) -> tuple[Quarantine, ...]:
    """The quarantines that are open, oldest first."""
    closed = {line["body"]["id"] for line in lines if line["kind"] == RELEASED}
    return tuple(each for each in _all(lines) if each.id not in closed)


def release(audit: Audit, ids: Sequence[str], why: str, at: datetime) -> tuple[Quarantine, ...]:
    """Close the quarantines with these ids or beginnings of ids, and record it.

    Raises HomeostatError, with nothing released, where one stands for none or for several.
    """
    known, chosen = held(audit.lines()), []
    for asked in ids:
        found = [each for each in known if asked and each.id.startswith(asked)]
        if len(found) != 1:
            raise HomeostatError(
                f"{len(found)} open quarantines have the id {asked[:64]!r}.",
                hint="`homeostat quarantine` lists them.",
            )
        chosen += [each for each in found if each not in chosen]
    for each in chosen:
        body = {**jsonable(each), "reason": f"Released by hand: {why or 'no reason was given'}."}
        audit.write(RELEASED, at, body)
    return tuple(chosen)


def sound(
    rows: pa.Table, audit: Audit, schema: Schema, *, until: datetime | None = None
) -> pa.Table:
    """The rows that no open quarantine covers, for a model with the features of `schema`.

    A quarantine of columns covers a row only for models that have one of them. With `until`, those
    count that were open then.
    """
    names = set(schema.names)
    covered = pa.repeat(pa.scalar(False), rows.num_rows)
    lines = audit.lines()
    if until is not None:
        lines = [line for line in lines if datetime.fromisoformat(line["at"]) <= until]
    for each in held(lines):
        if not each.columns or names & set(each.columns):
            covered = pc.or_(covered, _within(rows, each.window))
    return rows.filter(pc.invert(covered))


def left_out(rows: pa.Table, audit: Audit, schema: Schema, at: datetime) -> pa.Table:
    """What `sound` gives, for a training; how many rows it costs is recorded."""
    kept = sound(rows, audit, schema)
    if lost := rows.num_rows - kept.num_rows:
        reason = f"{lost:,} labelled rows are quarantined: they neither train nor judge."
        audit.write(LEFT_OUT, at, {"reason": reason, "rows": lost})
    return kept


def counted(each: Quarantine, journal: Journal) -> int:
    """How many rows of the journal it covers by now."""
    parts = journal.scan(each.window)
    return sum(int(pc.sum(_within(part, each.window)).as_py() or 0) for part in parts)


def _within(rows: pa.Table, window: Window) -> pa.ChunkedArray:
    times = rows.column("occurred_at")
    served = pc.fill_null(pc.not_equal(rows.column("source"), "load"), fill_value=True)
    since = pc.greater_equal(times, pa.scalar(window.start, TIMESTAMP))
    until = pc.less(times, pa.scalar(window.end, TIMESTAMP))
    return pc.and_(served, pc.and_(since, until))


def _wanted(
    lines: Sequence[Mapping[str, Json]], evidence: Evidence, at: datetime
) -> list[Quarantine]:
    blocking = [f for f in evidence.findings if f.severity == "block" and f.check not in SOUND]
    if evidence.state is not State.BROKEN_DATA or not blocking:
        return []
    whole = any(finding.column is None for finding in blocking)
    columns = () if whole else tuple(sorted({str(finding.column) for finding in blocking}))
    rest = [evidence.window]
    for each in _all(lines):
        if not each.columns or (columns and set(columns) <= set(each.columns)):
            rest = [part for window in rest for part in _less(window, each.window)]
    checks = ", ".join(sorted({finding.check for finding in blocking}))
    reason = f"{blocking[0].message} ({checks})"
    return [_made(window, columns, reason, at) for window in rest]


def _less(window: Window, other: Window) -> list[Window]:
    """What of `window` lies outside of `other`."""
    before = (window.start, min(window.end, other.start))
    after = (max(window.start, other.end), window.end)
    return [Window(start, end) for start, end in (before, after) if start < end]


def _made(window: Window, columns: tuple[str, ...], reason: str, at: datetime) -> Quarantine:
    told = jsonable({"window": window, "columns": columns, "at": at})
    name = hashlib.sha256(canonical(told)).hexdigest()[:8]
    return Quarantine(name, window, columns, reason, at)


def _all(lines: Sequence[Mapping[str, Json]]) -> list[Quarantine]:
    """Every quarantine there ever was."""
    return [Quarantine.of(line["body"]) for line in lines if line["kind"] == HELD]
