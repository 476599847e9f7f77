"""Quality: whether a window's data can be trusted at all, before anything is said about drift.

Takes the window's sums, profile and refusals, and the champion's reference. Gives findings:
`block` where a column or the window is broken, `warn` where someone should look. What the
reference itself went through in any stretch as long as the window is never called broken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow as pa
from scipy import special

from homeostat.monitor.sums import Sums
from homeostat.monitor.values import SIGNIFICANCE, Sight, gravest, most, runs, tail
from homeostat.profile import Profile
from homeostat.records import EPOCH, MICROSECOND, Evidence, Finding, State, Window
from homeostat.schema import Feature, Schema
from homeostat.traits import Traits, reach_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Counts: TypeAlias = NDArray[np.int64]

REFUSED_BLOCK = 0.5  # share of all rows sent that the server refused
REFUSED_WARN = 0.05
REFUSED_NAMED = 3  # reasons that the message tells
VOLUME = 0.1  # rows, as a share of what there used to be
REPEATED_BLOCK = 0.2  # rise of the share of rows that repeat another one of the window
REPEATED_WARN = 0.1
DOUBLED_BLOCK = 0.01  # share of rows whose id another one has; any such row warns
GAPS = 2.0  # how many times the longest gap of the reference a feed may be silent


STILL = frozenset({"constant_column", "stuck_values"})
"""Checks that find a column that does not move."""


@dataclass(frozen=True)
class Case:
    """One window, and what it is held against."""

    schema: Schema
    reference: Profile
    traits: Traits | None  # of the reference; None in releases made before there were any
    sums: Sums  # of the window's rows
    current: Profile  # of the same rows
    window: Window
    refused: Mapping[str, int]  # refused rows by reason
    now: datetime
    last: Evidence | None  # of the look before
    known: frozenset[str | None] = frozenset()  # columns of which something worse was found already

    @property
    def length(self) -> int:
        """Blocks of the window."""
        return max(-(-self.window.length // self.current.block), 1)


def quality(case: Case) -> tuple[Finding, ...]:
    """The findings of one window: those about all of it first, then one by column at most."""
    columns = _alike([f for sight in _sights(case) if (f := gravest(sight)) is not None], case)
    whole = (
        _refused(case),
        _volume(case),
        _gap(case),
        _stale(case),
        _doubled(case),
        _repeated(case, columns),
        _early(case),
    )
    return (*(finding for finding in whole if finding is not None), *columns)


def _alike(columns: list[Finding], case: Case) -> list[Finding]:
    """Where most columns stand still at once it is the rows that are alike, as those of one client
    or of a trial, and no column is broken: then these findings only warn.
    """
    still = [finding for finding in columns if finding.check in STILL]
    if 2 * len(still) <= len(case.schema.features):
        return columns
    return [replace(f, severity="warn") if f.check in STILL else f for f in columns]


def _sights(case: Case) -> Iterator[Sight]:
    for feature in case.schema.features:
        if feature.name in case.known:
            continue
        column, before = case.reference.column(feature.name)
        yield Sight(
            feature,
            column,
            before,
            case.current.column(feature.name)[1],
            case.length,
            _values(case.sums.sample, feature),
            case.traits.numbers.get(feature.name) if case.traits else None,
            case.traits.sizes if case.traits else np.empty(0, dtype=np.int64),
            case.sums.numbers.get(feature.name),
        )


def _values(rows: pa.Table, feature: Feature) -> NDArray[np.float64]:
    if feature.kind != "number" or feature.name not in rows.column_names:
        return np.empty(0)
    return np.asarray(rows.column(feature.name).cast(pa.float64()).to_numpy())


def _refused(case: Case) -> Finding | None:
    count = sum(case.refused.values())
    sent = max(count + case.current.rows, 1)
    share = count / sent
    if share <= REFUSED_WARN:
        return None
    ranked = sorted(case.refused.items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"{why!r} {n / sent:.0%}" for why, n in ranked[:REFUSED_NAMED] if n)
    return Finding(
        "refused_rows",
        "block" if share > REFUSED_BLOCK else "warn",
        None,
        share,
        REFUSED_BLOCK if share > REFUSED_BLOCK else REFUSED_WARN,
        f"{share:.0%} of the rows sent were refused: {named}.",
    )


def _volume(case: Case) -> Finding | None:
    """Rows of the window: a collapse since the last look blocks. Beside the reference it warns
    only: the traffic of training is not always that of serving.
    """
    rows, last = case.current.rows, case.last
    if last is not None and last.state in (State.STABLE, State.DRIFT):
        times = case.window.length / max(last.window.length, MICROSECOND)
        limit = VOLUME * last.rows * times
        if rows < limit and _poisson(rows, last.rows * times) < SIGNIFICANCE:
            message = f"The window holds {rows:,} rows, that of the last look held {last.rows:,}."
            return Finding("row_volume", "block", None, rows, limit, message)
    sizes = _dense(case.reference.blocks, case.reference.sizes)
    if not len(sizes):
        return None
    usual = int(runs(sizes, case.length).min()) * case.length / min(case.length, len(sizes))
    if rows >= VOLUME * usual:
        return None
    share = rows / usual
    message = f"The window holds {share:.1%} of the rows that the reference held at the least."
    return Finding("row_volume", "warn", None, rows, VOLUME * usual, message)


def _gap(case: Case) -> Finding | None:
    """A block nearly without rows among others that are full, as no stretch of the reference
    has one. The first block with rows and the last of the window may be cut, and do not count.
    """
    sizes = _dense(case.current.blocks, case.current.sizes)[1:]
    last = (case.window.end - MICROSECOND - EPOCH) // case.current.block
    if len(sizes) and int(case.current.blocks[-1]) == last:
        sizes = sizes[:-1]
    usual = _dense(case.reference.blocks, case.reference.sizes)
    if len(sizes) < 3 or len(usual) < 2 * len(sizes):
        return None
    middle, least = float(np.median(sizes)), int(sizes.min())
    stretches = np.lib.stride_tricks.sliding_window_view(usual, len(sizes))
    middles = np.median(stretches, axis=1)
    shares = stretches.min(axis=1)[middles > 0] / middles[middles > 0]
    limit = middle * min(VOLUME, float(shares.min(initial=1.0)))
    if least >= limit or len(sizes) * _poisson(least, middle) > SIGNIFICANCE:
        return None
    message = f"A block of the window holds {least:,} rows, the middle one {middle:,.0f}."
    return Finding("row_gap", "block", None, least, limit, message)


def _stale(case: Case) -> Finding | None:
    """Nothing has come for longer than the reference ever paused; it blocks where nothing came
    for more than a whole window.
    """
    newest = case.sums.newest
    if newest is None or not len(case.reference.blocks):
        return None
    paused = int(np.diff(case.reference.blocks).max(initial=1)) * case.current.block
    age, limit = case.now - newest, max(GAPS * paused, timedelta(0))
    if age <= limit:
        return None
    severe = age > limit + case.window.length
    if severe:
        limit += case.window.length
    days = age / timedelta(days=1)
    message = f"The newest row came {days:,.1f} days ago; the reference never paused that long."
    return Finding(
        "stale_feed",
        "block" if severe else "warn",
        None,
        age.total_seconds(),
        limit.total_seconds(),
        message,
    )


def _doubled(case: Case) -> Finding | None:
    if not case.sums.doubled:
        return None
    share = 1 - (case.sums.rows - case.sums.doubled) / case.sums.rows
    severe = share > DOUBLED_BLOCK
    message = f"{share:.1%} of the rows have an id that another row has."
    limit = DOUBLED_BLOCK if severe else 0.0
    return Finding("duplicated_ids", "block" if severe else "warn", None, share, limit, message)


def _repeated(case: Case, columns: Sequence[Finding]) -> Finding | None:
    """Rows that are equal in all features to one before them in the window.

    Where a column is lost, rows that it told apart are equal by that, which is no fault of theirs.
    """
    usual, rows = case.traits, case.current.rows
    lost = any(case.known) or any(finding.check != "stuck_values" for finding in columns)
    if usual is None or not rows or lost:
        return None
    count = case.sums.repeated
    within = usual.repeats[:, : reach_of(case.length - 1) + 1].sum(axis=1)
    before = most(within, usual.sizes, case.length)
    rise = count / rows - before
    if rise <= REPEATED_WARN or tail(count, rows, before) > SIGNIFICANCE:
        return None
    limit = REPEATED_BLOCK if rise > REPEATED_BLOCK else REPEATED_WARN
    return Finding(
        "repeated_rows",
        "block" if rise > REPEATED_BLOCK else "warn",
        None,
        count / rows,
        before + limit,
        f"{count / rows:.0%} of the rows repeat another one in all features, {before:.0%} at most "
        "before.",
    )


def _early(case: Case) -> Finding | None:
    """The window ends before the first row that the champion was fitted on."""
    if not len(case.reference.blocks):
        return None
    first = EPOCH + int(case.reference.blocks[0]) * case.reference.block
    if case.window.end > first:
        return None
    days = (first - case.window.end) / timedelta(days=1)
    message = "The window lies before all rows of the reference: it is compared with its future."
    return Finding("window_before_reference", "warn", None, days, 0.0, message)


def _dense(blocks: Counts, sizes: Counts) -> Counts:
    """The rows of every block from the first to the last, those without any too."""
    if not len(blocks):
        return sizes
    dense = np.zeros(int(blocks[-1] - blocks[0]) + 1, dtype=np.int64)
    dense[blocks - blocks[0]] = sizes
    return dense


def _poisson(count: int, mean: float) -> float:
    """P(X ≤ count) of a Poisson variable."""
    return float(special.pdtr(count, mean)) if mean > 0 else 1.0
