"""Joint drift: what no column shows by itself.

Takes the profiles of reference and window. Gives two groups of tests against stretches of the
reference: each column's location and spread as far as those of the others do not explain them, and
the rank correlation of each pair of columns.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from homeostat.monitor.columns import Aspect, Tested, number_scores
from homeostat.monitor.stretches import ROUNDING, Layout, Parts, means, two_sided
from homeostat.profile import PAIRED, Profile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]
    Counts: TypeAlias = NDArray[np.int64]

FOLDS = 5  # parts of the reference that a regression is tried on without having seen them
BLOCKS_EACH = 5  # blocks that the reference must have for each regressor
LARGEST = 1 - 1e-15  # distance
CLOSEST = 0.999  # correlations beyond count as this
PAIRED_ROWS = 10  # of a window, below which a correlation near 1 often comes by chance


def given_the_others(reference: Profile, current: Profile, layout: Layout) -> Tested | None:
    """Each column's location and spread, given all the others'.

    The daily means of the k scores (location and spread of each number, the share of each
    category's top level) are regressed on one another by ridge regression over the blocks of the
    reference: with R their correlation matrix and P = (R + λI)⁻¹, λ = k/B, what is left of score j
    is Σ_i x_i·P_ij / P_jj. The gap of what is left is again a difference of means, so it is tested
    as any contrast. Each stretch is judged by a fit to the four fifths of the reference that do
    not contain it. None where there are fewer than five blocks to a score.
    """
    scored = _scored(reference, current)
    if scored is None or reference.blocks.size < BLOCKS_EACH * len(scored[0]):
        return None
    names, before, after = scored
    rows = reference.sizes.astype(float)
    parts = Parts.of((rows, before), (current.sizes.astype(float), after), layout, means)
    fold = np.arange(len(rows)) * FOLDS // len(rows)
    of_stretch = fold[layout.starts + layout.length // 2]
    whole = np.zeros_like(parts.whole)
    without = None if parts.without is None else np.zeros_like(parts.without)
    for number in np.unique(of_stretch):
        chosen = of_stretch == number
        unseen = np.ones(len(rows), dtype=bool)
        unseen[layout.places[chosen]] = False
        left = _residual(before[unseen], rows[unseen])
        whole[chosen] = parts.whole[chosen] @ left
        if without is not None and parts.without is not None:
            without[chosen] = parts.without[chosen] @ left
    left = _residual(before, rows)
    now_without = None if parts.now_without is None else parts.now_without @ left
    found = Parts(whole, without, parts.now @ left, now_without, parts.each, parts.now_each)
    return _tested([f"{name} given the others" for name in names], found, layout)


def _scored(reference: Profile, current: Profile) -> tuple[list[str], Floats, Floats] | None:
    """Names, and sums of scores by block, shape (blocks, k), of reference and window."""
    names: list[str] = []
    before, after = [], []
    columns = zip(reference.columns, reference.counts, current.counts, strict=True)
    for column, old, new in list(columns)[:PAIRED]:
        pool = old.sum(axis=0) + new.sum(axis=0)
        if column.kind == "prediction" or not pool[:-1].sum():
            continue
        if column.ordered:
            scores = number_scores(pool)[:, :2]
        else:
            scores = np.eye(len(pool))[:, [int(pool.argmax())]]
        names += [column.name] * scores.shape[1]
        before.append(old @ scores)
        after.append(new @ scores)
    if len(before) < 2:
        return None
    return names, np.concatenate(before, axis=1), np.concatenate(after, axis=1)


def _residual(sums: Floats, rows: Floats) -> Floats:
    """What turns k scores into what is left of each given the others, shape (k, k)."""
    weight = rows / rows.sum()
    daily = sums / rows[:, None]
    centred = (daily - weight @ daily) * np.sqrt(weight)[:, None]
    spread = np.sqrt((centred**2).sum(axis=0))
    alike = spread <= ROUNDING  # in every block, but for rounding
    centred[:, alike], spread[alike] = 0.0, 1.0
    square, k = centred.T @ centred, len(spread)
    inverse = np.linalg.inv(square / np.outer(spread, spread) + (k / len(rows)) * np.eye(k))
    return np.asarray(inverse / np.diag(inverse) / spread[:, None] * spread)


def pairs(reference: Profile, current: Profile, layout: Layout) -> Tested | None:
    """The correlation of the scores of each pair of columns (`Column.scores`), as Fisher's z.

    The scores are places among bins of equal share, so that it is close to Spearman's correlation.
    None where the profiles hold no products, and where the window has fewer than ten rows.
    """
    count = reference.products.shape[1]
    if not count or count != current.products.shape[1] or current.rows < PAIRED_ROWS:
        return None
    columns = [c for c in reference.columns if c.kind != "prediction"][:PAIRED]
    above = np.triu_indices(len(columns), 1)
    sides = [_moments(profile, len(columns)) for profile in (reference, current)]
    parts = Parts.of(sides[0], sides[1], layout, partial(_fisher, above=above))
    names = [f"{columns[i].name} with {columns[j].name}" for i, j in zip(*above, strict=True)]
    return _tested(names, parts, layout)


def _moments(profile: Profile, count: int) -> tuple[NDArray[Any], ...]:
    """Rows, Σs, Σs² of each column and Σs·s of each pair, by block."""
    used = [
        (column.scores, counts)
        for column, counts in zip(profile.columns, profile.counts, strict=True)
        if column.kind != "prediction"
    ][:count]
    first = np.stack([counts @ scores for scores, counts in used], axis=1)
    second = np.stack([counts @ scores**2 for scores, counts in used], axis=1)
    return profile.sizes, first, second, profile.products


def _fisher(
    rows: Counts, first: Counts, second: Counts, products: Counts, above: tuple[Counts, Counts]
) -> Floats:
    """Fisher's z, artanh r, of each pair, 0 where a column is constant."""
    n = rows[..., None]
    mean = first / n
    variance = np.maximum(second / n - mean**2, 0.0)
    left, right = above
    spread = np.sqrt(variance[..., left] * variance[..., right])
    with np.errstate(divide="ignore", invalid="ignore"):
        r = np.where(spread > 0, (products / n - mean[..., left] * mean[..., right]) / spread, 0.0)
    return np.asarray(np.arctanh(np.clip(r, -CLOSEST, CLOSEST)))


def _tested(names: list[str], parts: Parts, layout: Layout) -> Tested:
    gaps = parts.gaps()
    p_values, scale = gaps.p_values(layout, None)
    aspects = tuple(
        Aspect(
            name,
            float(np.tanh(abs(gap))),
            partial(_student, scale=float(scale[place]), windows=layout.windows),
            _never,
        )
        for place, (name, gap) in enumerate(zip(names, gaps.window, strict=True))
    )
    return Tested(aspects, p_values.min(axis=1))


def _student(distance: float, scale: float, windows: int) -> float:
    # The distance is the tanh of a gap, so that it lies in [0, 1] as all others do.
    return float(two_sided(np.arctanh(min(distance, LARGEST)), scale, windows))


def _never(distance: float) -> float:
    """Rows alone are no reason: the variance comes from stretches, and with it their noise."""
    del distance
    return 0.0
