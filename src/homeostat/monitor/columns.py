"""Columns: in what ways each column by itself may have moved, and how unusual that is.

Takes one column's counts in reference and window. Gives for each aspect (location, spread, nulls
and shape of a number; each level and the mix of a category) a distance, its p-value among
independent rows and among stretches of the reference, and the smallest p-value of each stretch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from scipy import special

from homeostat.monitor.nulls import (
    MIN_EXPECTED,
    BlocksNull,
    RowsNull,
    kolmogorov_smirnov,
    pooled,
    total_variation,
)
from homeostat.monitor.stretches import JACKKNIFE, Layout, Parts, means, two_sided
from homeostat.profile import Column

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]
    Counts: TypeAlias = NDArray[np.int64]

Tail: TypeAlias = Callable[[float], float]

TAIL = 0.02  # share of a number's rows up to which a bin counts as rare
TAILS = ("low tail", "high tail")
SPELL = 2  # blocks that a spell may last
LEAST_CELLS = 5  # that a number has where its ends have inner neighbours: two, two, and null


@dataclass(frozen=True)
class Aspect:
    """One test of the window: `blocks` and `rows` give its p-value at any distance."""

    name: str
    distance: float
    blocks: Tail
    rows: Tail


@dataclass(frozen=True)
class Tested:
    """The tests of one column, or of the columns together.

    `smallest` is the smallest p-value of each stretch, shape (T,).
    """

    aspects: tuple[Aspect, ...]
    smallest: Floats


def column_tests(column: Column, before: Counts, after: Counts, layout: Layout) -> Tested:
    """Both with shape (blocks, cells), null last; without stretches rows are independent."""
    scores, names = _scores(column, before, after)
    parts = [
        _contrasts(names, scores, before, after, layout),
        _shape(column, before, after, layout),
    ]
    return Tested(
        tuple(aspect for part in parts for aspect in part.aspects),
        np.min([part.smallest for part in parts], axis=0),
    )


def _scores(column: Column, before: Counts, after: Counts) -> tuple[Floats, tuple[str, ...]]:
    """A score for each cell and aspect, shape (cells, k): an aspect's contrast is a mean score.

    Numbers: *location*, the ridit 2u − 1 of the pooled rows (Bross 1958, Biometrics 14:18), so that
    a gap is P(X > Y) − P(X < Y), Cliff's delta; *spread*, |2u − 1|, the scores of Ansari and
    Bradley (1960, Ann. Math. Stat. 31:1174); null is neutral in both; *nulls*, whether it is null;
    *low tail* and *high tail*, whether it lies at one end (`_ends`): ridits end at ±1 however far a
    column moves, while the share of values that were hardly ever seen grows from next to nothing.
    Levels: whether it is this one, those together of which five are not expected in the window.
    """
    pool = before.sum(axis=0) + after.sum(axis=0)
    if column.ordered:
        scores = np.column_stack([number_scores(pool), _ends(pool)])
        return scores, ("location", "spread", "nulls", *TAILS)
    enough = pool * (after.sum() / pool.sum()) >= MIN_EXPECTED
    scores = np.eye(len(pool))[:, enough]
    if pool[~enough].sum():
        scores = np.column_stack([scores, ~enough])
    return scores, ("share of a level",) * scores.shape[1]


def _ends(pool: Counts) -> Floats:
    """What lies below and above the reference, shape (cells, 2), each with the bin beside it where
    that one is rare: where it is not, as among whole numbers, it would hide what lies beyond.
    """
    ends = np.zeros((len(pool), 2))
    rare = TAIL * pool[:-1].sum()
    for side, (outer, inner) in enumerate(((0, 1), (-2, -3))):
        ends[outer, side] = 1.0
        if len(pool) > LEAST_CELLS and pool[inner] <= rare:
            ends[inner, side] = 1.0
    return ends


def number_scores(pool: Counts) -> Floats:
    """Location, spread and nulls, shape (cells, 3), from the counts of both samples together."""
    filled = pool[:-1].astype(float)
    rows = max(float(filled.sum()), 1.0)
    place = np.append(2 * (np.cumsum(filled) - filled / 2) / rows - 1, 0.0)
    far = np.abs(place)
    far[:-1] -= far[:-1] @ filled / rows
    far[-1] = 0.0
    return np.column_stack([place, far, np.arange(len(pool)) == len(pool) - 1])


def _contrasts(
    names: tuple[str, ...], scores: Floats, before: Counts, after: Counts, layout: Layout
) -> Tested:
    pool = before.sum(axis=0) + after.sum(axis=0)
    share = pool / pool.sum()
    variance = np.maximum(0.0, share @ scores**2 - (share @ scores) ** 2)
    n, m = float(before.sum()), float(after.sum())
    sums = [(counts.sum(axis=1), counts @ scores) for counts in (before, after)]
    gaps = Parts.of(sums[0], sums[1], layout, means).gaps()
    p_values, scale = gaps.p_values(layout, variance)
    smallest = p_values.min(axis=1)
    aspects = []
    for place, name in enumerate(names):
        gap, held = float(gaps.window[place]), float(sums[0][1].sum(axis=0)[place])
        if name in {"location", "spread"}:
            rows: Tail = partial(_gaussian, scale=float(np.sqrt(variance[place] * gaps.now)))
        else:
            rows = partial(_share, sign=np.sign(gap), before=held, n=n, m=m)
        blocks: Tail = partial(_student, scale=float(scale[place]), windows=layout.windows)
        if name in TAILS and layout.known and not layout.calibrated:
            blocks = partial(_spell, least=SPELL / len(after), blocks=blocks)
        aspects.append(Aspect(name, abs(gap), blocks, rows))
    return Tested(tuple(aspects), smallest)


def _student(distance: float, scale: float, windows: int) -> float:
    return float(two_sided(distance, scale, windows))


def _spell(distance: float, least: float, blocks: Tail) -> float:
    """Of a tail among shorter stretches. A stream leaves its range in spells, and how often, a few
    of them cannot say: as much as some whole blocks of the window could bring is no sign of drift.
    """
    return blocks(distance) if distance > least else 1.0


def _gaussian(distance: float, scale: float) -> float:
    if distance == 0:
        return 1.0
    return float(2 * special.ndtr(-distance / scale)) if scale else 0.0


def _share(distance: float, sign: float, before: float, n: float, m: float) -> float:
    """Two-sided p of a share that differs by `distance` from `before` of `n` rows in `m` rows.

    Given how many there are on both sides together, those in the window are binomial with
    probability m/(n+m), exactly so for Poisson counts (Przyborowski and Wilenski 1940, Biometrika
    31:313), and for rows less spread than that.
    """
    share = before / n
    if share > 0.5:
        share, before, sign = 1 - share, n - before, -sign
    count = min(max(m * (share + sign * distance), 0.0), m)
    total, chance = before + count, m / (n + m)
    above = float(special.betainc(count, before + 1, chance)) if count > 0 else 1.0
    below = float(special.betaincc(count + 1, before, chance)) if before > 0 else 1.0
    return min(1.0, 2 * min(above, below)) if total else 1.0


def _tail(distance: float, null: RowsNull | BlocksNull, noise: float) -> float:
    return float(null.p_value(distance, noise))


def _shape(column: Column, before: Counts, after: Counts, layout: Layout) -> Tested:
    """Kolmogorov-Smirnov for numbers, total variation for levels."""
    n, m = float(before.sum()), float(after.sum())
    if column.ordered:
        # Null first, as if it were smaller than every number.
        before, after = np.roll(before, 1, axis=1), np.roll(after, 1, axis=1)
        name, measure, null = "ks", kolmogorov_smirnov, RowsNull()
    else:
        before, after = pooled(before, after)
        shares = (before.sum(axis=0) + after.sum(axis=0)) / (n + m)
        name, measure, null = "tv", total_variation, RowsNull.unordered(shares, n, m)
    total, window, now = before.sum(axis=0), after.sum(axis=0), 1 / n + 1 / m
    distance = float(measure(window, total))
    if len(after) >= JACKKNIFE:
        distance = float(measure(window - after, total).min())
    rows: Tail = partial(_tail, null=null, noise=now)
    if not layout.known:
        return Tested((Aspect(name, distance, rows, rows),), np.zeros(0))
    stretches = layout.sums(before)
    rest = total - stretches
    each = 1 / stretches.sum(axis=1) + 1 / rest.sum(axis=1)
    whole = measure(stretches, rest)
    kept = whole
    if layout.length >= JACKKNIFE:
        without = stretches[:, None] - before[layout.places]
        kept = measure(without, rest[:, None]).min(axis=1)
    noise = null.noise(each)
    others = BlocksNull.without_each(whole, noise, layout).p_value(kept, noise)
    known = BlocksNull.of(whole, noise, layout.windows)
    blocks: Tail = partial(_tail, null=known, noise=float(null.noise(now)))
    smallest = np.maximum(others, null.p_value(kept, each))
    return Tested((Aspect(name, distance, blocks, rows),), smallest)
