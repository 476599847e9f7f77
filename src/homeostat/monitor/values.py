"""Values: what is wrong with the values of one feature in a window.

Takes the counts, traits and values of the feature in reference and window. Gives the gravest
finding, or None; the others would be its echo. Shares are held against the largest that the
reference had in any stretch of as many blocks as the window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from scipy import special

from homeostat.monitor import units
from homeostat.monitor.sums import Values
from homeostat.profile import Column
from homeostat.records import Finding
from homeostat.schema import Feature
from homeostat.traits import Number

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]
    Counts: TypeAlias = NDArray[np.int64]

NULL_BLOCK = 0.5  # rise of the null share above the most that the reference saw
NULL_WARN = 0.1
UNSEEN_BLOCK = 0.5  # the same for levels that training never saw
UNSEEN_WARN = 0.05
INFINITE_BLOCK = 0.05  # the same for values that are not finite; any such value warns
OUTSIDE_WARN = 0.05  # share of values beyond the range of the reference
FAR_BLOCK = 0.2  # share of values beyond it by more than its whole width
STUCK_WARN = 0.25  # rise of the share of values that repeat the one before
STUCK_BLOCK = 0.4  # of values that do not, what is left at most
CONSTANT_SHARE = 0.9  # a column is no constant to begin with below this share of one value
CONSTANT_BLOCK = 0.5  # where no level had more than this share, a single one is a fault
SIGNIFICANCE = 1e-3  # what is found in a column must be rarer than this by chance of its rows


@dataclass(frozen=True, slots=True)
class Sight:
    """One feature in reference and window."""

    feature: Feature
    column: Column
    before: Counts  # of the reference, shape (blocks, cells)
    after: Counts  # of the window, shape (blocks, cells)
    length: int  # blocks of the window
    sample: Floats  # of a number: values of the window, NaN for null; else of no length
    usual: Number | None  # traits of the reference; None for other kinds, and where not known
    sizes: Counts  # rows of the blocks of `usual`, shape (blocks,)
    now: Values | None  # of a number: what its values in the window came to

    @property
    def name(self) -> str:
        return self.feature.name

    @property
    def rows(self) -> int:
        return int(self.after.sum())


def gravest(sight: Sight) -> Finding | None:
    """The first finding that blocks, or else the first that warns."""
    if not sight.rows or not sight.before.sum():
        return None
    found = [finding for finding in _found(sight) if finding is not None]
    return next((f for f in found if f.severity == "block"), found[0] if found else None)


def _found(sight: Sight) -> Iterator[Finding | None]:
    null = int(sight.after[:, -1].sum())
    usual = most(sight.before[:, -1], sight.before.sum(axis=1), sight.length)
    if null == sight.rows:
        yield _empty(sight, usual)
        return
    yield _spike("null_spike", sight, null, usual)
    yield _infinite(sight)
    yield _constant(sight)
    yield _unit(sight)
    yield _outside(sight)
    yield _unseen(sight)
    yield _stuck(sight)


def _empty(sight: Sight, usual: float) -> Finding | None:
    if usual**sight.rows > SIGNIFICANCE:
        return None
    message = f"{sight.name!r} is null throughout; the reference held values."
    return Finding("empty_column", "block", sight.name, 1.0, usual, message)


SPIKES = {
    "null_spike": (NULL_BLOCK, NULL_WARN, "null"),
    "unseen_levels": (UNSEEN_BLOCK, UNSEEN_WARN, "a level that training never saw"),
    "not_finite": (INFINITE_BLOCK, 0.0, "infinite"),
}


def _spike(check: str, sight: Sight, count: int, usual: float) -> Finding | None:
    """`count` rows are null, say, where the reference had at most the share `usual`."""
    block, warn, what = SPIKES[check]
    share = count / sight.rows
    rise = share - usual
    if rise <= warn or tail(count, sight.rows, usual) > SIGNIFICANCE:
        return None
    return Finding(
        check,
        "block" if rise > block else "warn",
        sight.name,
        share,
        usual + (block if rise > block else warn),
        f"{sight.name!r} is {what} in {share:.0%} of the rows, {usual:.0%} at most before.",
    )


def _unseen(sight: Sight) -> Finding | None:
    if sight.column.kind != "category":
        return None
    usual = most(sight.before[:, -2], sight.before.sum(axis=1), sight.length)
    found = _spike("unseen_levels", sight, int(sight.after[:, -2].sum()), usual)
    if found is None or found.severity == "warn":
        return found
    # Where new levels came all the time, as the months of a year do, they are no fault.
    if found.value > _novel(sight) + UNSEEN_BLOCK:
        return found
    return replace(found, severity="warn", threshold=usual + UNSEEN_WARN)


def _infinite(sight: Sight) -> Finding | None:
    if sight.usual is None or sight.now is None:
        return None
    usual = most(sight.usual.infinite, sight.sizes, sight.length)
    return _spike("not_finite", sight, sight.now.infinite, usual)


def _stuck(sight: Sight) -> Finding | None:
    if sight.usual is None or sight.now is None:
        return None
    usual = most(sight.usual.stuck, sight.sizes, sight.length)
    count = sight.now.stuck
    share = count / sight.rows
    if share - usual <= STUCK_WARN or tail(count, sight.rows, usual) > SIGNIFICANCE:
        return None
    # A share that was high already cannot rise by much: what counts is how much still moves.
    limit = max(1 - STUCK_BLOCK * (1 - usual), usual + STUCK_WARN)
    severe = share > limit
    return Finding(
        "stuck_values",
        "block" if severe else "warn",
        sight.name,
        share,
        limit if severe else usual + STUCK_WARN,
        f"{sight.name!r} repeats the row before in {share:.0%} of the rows, {usual:.0%} at most "
        "before.",
    )


def _constant(sight: Sight) -> Finding | None:
    values = sight.after[:, :-1].sum(axis=0)
    place, rows = int(values.argmax()), int(values.sum())
    if int(values[place]) != rows:
        return None
    if sight.column.kind == "category" and place == len(values) - 1:
        return None  # all other levels together are no constant
    if sight.column.ordered and (sight.now is None or sight.now.low != sight.now.high):
        return None
    # Of whichever value: a month, say, is the same throughout each stretch.
    usual = _largest(sight.before[:, :-1], sight.length)
    if usual > CONSTANT_SHARE or usual**rows > SIGNIFICANCE:
        return None
    # A bin of a number holds many values, so one of them alone is a fault whatever it held.
    severe = sight.column.ordered or usual <= CONSTANT_BLOCK
    what = "one value" if sight.column.ordered else "one level"
    message = f"{sight.name!r} holds {what} only; none had over {usual:.0%} of the rows before."
    limit = CONSTANT_BLOCK if severe else CONSTANT_SHARE
    return Finding(
        "constant_column", "block" if severe else "warn", sight.name, 1.0, limit, message
    )


def _unit(sight: Sight) -> Finding | None:
    if sight.feature.kind != "number" or len(sight.feature.edges) < units.LEAST_VALUES:
        return None
    known = sight.sample[np.isfinite(sight.sample)]
    edges, bins = np.array(sight.feature.edges), sight.before[:, :-1]
    stretches = units.quantiles(runs(bins, sight.length), edges)
    whole = units.quantiles(bins.sum(axis=0), edges)
    found = units.change(known, whole, stretches)
    if found is None:
        return None
    message = f"{sight.name!r} looks {found}, as by another unit; hardly anything else changed."
    limit = units.FACTOR_BLOCK if found.certain else units.FACTOR_WARN
    return Finding(
        "unit_change",
        "block" if found.certain else "warn",
        sight.name,
        found.size,
        limit,
        message,
    )


def _outside(sight: Sight) -> Finding | None:
    if sight.now is None:
        return None
    outside = sight.now.outside
    shares = outside / sight.rows, sight.now.far / sight.rows
    if shares[0] <= OUTSIDE_WARN or tail(outside, sight.rows, 0.0) > SIGNIFICANCE:
        return None
    # A range that the reference had only just reached is none to hold the window against.
    severe = shares[1] > FAR_BLOCK and shares[1] > FAR_BLOCK + _jumped(sight)
    how = "far beyond" if severe else "beyond"
    share = shares[severe]
    return Finding(
        "out_of_range",
        "block" if severe else "warn",
        sight.name,
        share,
        FAR_BLOCK if severe else OUTSIDE_WARN,
        f"{sight.name!r} lies {how} all that the reference held in {share:.0%} of the rows.",
    )


def _jumped(sight: Sight) -> float:
    """The largest share of the rows of any stretch in the later half of the reference that lay
    further beyond all that came before that stretch than its range was wide, as far as cells tell:
    all of a cell counts that reaches so far.
    """
    edges, cells = np.array(sight.feature.edges), sight.before[:, :-1]
    lows, highs = np.append(edges[:1], edges), np.append(edges, edges[-1:])
    earlier, found = np.cumsum(cells, axis=0), 0.0
    for start in range(-(-len(cells) // 2), len(cells)):
        held = np.flatnonzero(earlier[start - 1])
        stretch = cells[start : start + sight.length].sum(axis=0)
        if not len(held) or not stretch.any():
            continue
        low, high = lows[held[0]], highs[held[-1]]
        above = (lows >= high) & (highs > high + (high - low))
        far = above | ((highs <= low) & (lows < low - (high - low)))
        found = max(found, float(stretch[far].sum() / stretch.sum()))
    return found


def _novel(sight: Sight) -> float:
    """The largest share of the rows of any stretch in the later half of the reference whose level
    had not come before that stretch.
    """
    cells = sight.before[:, :-1]
    earlier, found = np.cumsum(cells, axis=0), 0.0
    for start in range(-(-len(cells) // 2), len(cells)):
        stretch = cells[start : start + sight.length].sum(axis=0)
        if start and stretch.any():
            found = max(found, float(stretch[earlier[start - 1] == 0].sum() / stretch.sum()))
    return found


def runs(counts: Counts, length: int) -> Counts:
    """Sums over each run of `length` blocks, along the first axis."""
    length = min(length, len(counts))
    sums = np.cumsum(np.concatenate([np.zeros_like(counts[:1]), counts]), axis=0)
    return np.asarray(sums[length:] - sums[: len(sums) - length])


def most(counts: Counts, sizes: Counts, length: int) -> float:
    """The largest share that `counts` had of `sizes` in any run of `length` blocks of the
    reference; both have shape (blocks,).
    """
    if not len(counts):
        return 0.0
    held, total = runs(counts, length), runs(sizes, length)
    return float((held[total > 0] / total[total > 0]).max(initial=0.0))


def _largest(counts: Counts, length: int) -> float:
    """The largest share that any cell had in any run of `length` blocks."""
    held = runs(counts, length)
    total = held.sum(axis=1)
    return float((held.max(axis=1)[total > 0] / total[total > 0]).max(initial=0.0))


def tail(count: int, rows: int, share: float) -> float:
    """P(X ≥ count) of a binomial variable, rows independent."""
    return float(special.bdtrc(count - 1, rows, share)) if count else 1.0
