"""Segments: whether the rows of one level of a column drifted, beside the reference's rows of it.

Takes the release's profiles of its training rows by level, and those of a window. Gives for each
level of the columns named a verdict by the same test as the whole window's; the chance that any of
them is called drift while nothing has changed is at most `alpha`, all of them together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from homeostat.levels import LARGEST, Level, Levels, Parting, unknown
from homeostat.monitor.drift import LEAST, drift, nearest
from homeostat.records import Finding, Segment, State
from homeostat.schema import Feature

REST = (
    f"These rows have no value, or a level that is not among the {LARGEST} largest of the "
    "reference: they are in no segment."
)


@dataclass(frozen=True, slots=True)
class Rule:
    """What segments are judged by; fields as in the settings' section `monitor`."""

    block: timedelta
    alpha: float  # of all segments together
    min_effect: float
    min_rows: int  # on either side; with fewer a segment is not judged


@dataclass(frozen=True, slots=True)
class _Case:
    """One level in reference and window."""

    level: Level  # of the reference
    now: Level  # of the window
    columns: tuple[str, ...]  # that are compared


def segments(
    reference: Levels | None,
    window: Parting,
    features: Sequence[Feature],
    names: Sequence[str],
    rule: Rule,
    *,
    columns: Sequence[str],
) -> tuple[Segment, ...]:
    """A verdict on each level of each of `names` that the reference counts apart, in its order.

    Of `columns`, those that are sound, all but the segment's own are compared. With k segments that
    have rows enough each is tested at alpha/k (Bonferroni), and `adjusted_p_value` is k times that
    within the segment. Where a column cannot be parted, and for rows in no segment, an entry
    without a level says so. `reference` None: an older release. Names that are no category or
    boolean are left to `unknown_segments`.
    """
    wrong = unknown(features, names)
    found: list[Segment | _Case] = []
    for name in dict.fromkeys(names):
        if name in wrong:
            continue
        if name not in columns:
            reason = f"{name!r} is broken in this window: its rows cannot be told apart."
            found.append(_untold(name, window.rows, 0, reason))
        elif reference is None or name not in reference.columns:
            reason = (
                f"The champion was released before {name!r} was named in monitor.segments: its "
                "segments are known from the next release on."
            )
            found.append(_untold(name, window.rows, 0, reason))
        else:
            found += _cases(reference, name, window, [n for n in columns if n != name])
    judged = sum(isinstance(one, _Case) and _enough(one, rule) for one in found)
    return tuple(_judged(one, rule, judged) if isinstance(one, _Case) else one for one in found)


def unknown_segments(features: Sequence[Feature], names: Sequence[str]) -> tuple[Finding, ...]:
    """That a name is no feature by which rows can be parted is told in the look, and warns."""
    return tuple(
        Finding(
            "unknown_segment",
            "warn",
            name,
            1.0,
            0.0,
            f"monitor.segments names {name!r}, which is no categorical or boolean feature of the "
            "champion: it has no segments.",
        )
        for name in unknown(features, names)
    )


def _cases(
    reference: Levels, name: str, window: Parting, columns: Sequence[str]
) -> Iterator[Segment | _Case]:
    """The levels that the reference counts apart, and what is said of the rows of all others."""
    cases = [
        _Case(level, window.level(name, level.name), tuple(columns))
        for level in reference.within(name)
    ]
    yield from cases
    rest = window.rows - sum(case.now.rows for case in cases)
    if rest:
        known = sum(case.level.rows for case in cases)
        yield _untold(name, rest, reference.rows - known, REST)


def _enough(case: _Case, rule: Rule) -> bool:
    return min(case.now.rows, case.level.rows) >= max(LEAST, rule.min_rows)


def _untold(column: str, rows: int, reference_rows: int, reason: str) -> Segment:
    return Segment(column, None, State.INSUFFICIENT_DATA, rows, reference_rows, reason=reason)


def _judged(case: _Case, rule: Rule, judged: int) -> Segment:
    """One of so many segments that are judged. No more than one profile is laid out at a time."""
    level, now = case.level, case.now
    told = Segment(level.column, level.name, State.INSUFFICIENT_DATA, now.rows, level.rows)
    if not _enough(case, rule):
        reason = (
            f"{now.rows} rows in the window and {level.rows} in the reference; {rule.min_rows} of "
            "each are needed to compare."
        )
        return replace(told, reason=reason)
    found = drift(
        level.profile,
        now.profile,
        alpha=rule.alpha / judged,
        min_effect=rule.min_effect,
        columns=case.columns,
    )
    if not found.columns:
        return replace(told, reason="There is no other column to compare.")
    furthest = nearest([*found.columns, *([found.joint] if found.joint else [])])
    return replace(
        told,
        verdict=State.DRIFT if found.drifted else State.STABLE,
        calibrated=found.calibrated,
        furthest=replace(furthest, adjusted_p_value=min(1.0, judged * furthest.adjusted_p_value)),
    )
