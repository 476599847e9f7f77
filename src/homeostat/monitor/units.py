"""Units: whether a number came in another unit than the one that training saw.

Takes a column's quantiles in the window, and those of the reference as a whole and in each of its
stretches as long as the window. Gives the scaling or shift by a constant that makes one into the
other, where that is larger than any that the reference went through, and leaves next to nothing
unexplained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]
    Counts: TypeAlias = NDArray[np.int64]

LEVELS = np.linspace(0.05, 0.95, 19)
LEAST_ROWS = 30
LEAST_VALUES = 12  # distinct quantiles: many equal ones cannot tell scale from shape
FACTOR_WARN = 1.5  # up or down; what lies under it is taken for drift
FACTOR_BLOCK = 2.1
RESIDUAL = 0.12  # mean |what is left|, as a share of the mean distance from the median, at `HELD`
HELD = 2.1  # for larger changes more may be left, in proportion to their logarithm, up to MOST
MOST = 0.35
CLEARER = 4.0  # how many times less is left than without any change of unit
BEYOND = 1.25  # the spread is so many times wider or narrower than in any stretch
AWAY = 0.5  # or the median lies so many widths of the reference beyond that of any stretch
SHIFT = 2.0  # widths of the reference, from which a shift is none of the world's
CELSIUS = ((1.8, 32.0), (1 / 1.8, -32 / 1.8))
"""Factor and offset of the one change of unit in use that both scales and shifts."""


@dataclass(frozen=True, slots=True)
class Change:
    """The window's values are `factor` · the reference's + `offset`."""

    factor: float
    offset: float
    size: float  # as a factor ≥ 1; of a shift, one more than its widths of the reference
    certain: bool  # large enough to be called a fault by itself

    def __str__(self) -> str:
        if not self.offset:
            return f"multiplied by {self.factor:.3g}"
        if self.factor == 1:
            return f"shifted by {self.offset:.3g}"
        return f"multiplied by {self.factor:.3g} and shifted by {self.offset:.3g}"


def quantiles(counts: Counts, edges: Floats) -> Floats:
    """The values at `LEVELS` of rows counted in bins, shape (…, levels).

    `counts` has shape (…, bins), each bin (edge before, edge]; the last bin is given the last
    edge, since it has no upper one. A row without counts gives NaN.
    """
    total = counts.sum(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        reached = counts.cumsum(axis=-1) / total
    upper = np.append(edges, edges[-1])
    place = (reached[..., None, :] < LEVELS[:, None] - 1e-12).sum(axis=-1)
    found = upper[np.minimum(place, len(upper) - 1)]
    return np.where(total > 0, found, np.nan)


def change(values: Floats, whole: Floats, stretches: Floats) -> Change | None:
    """The change of unit between the reference and the window, or None.

    `values` are those of the window, finite, shape (rows,); `whole` and `stretches` quantiles at
    `LEVELS` of the reference and of its stretches, shapes (levels,) and (stretches, levels). With
    q the window's quantiles and r those of a stretch, three maps are tried on each: q = a·r (least
    squares), q = r + b (the mean difference), and that between °C and °F. What is left of the
    best, mean |q − map(r)| over mean |q − median q|, is compared with the same of no map at all.
    Where spread and median are such as a stretch of the reference had, nothing is tried.
    """
    if len(values) < LEAST_ROWS or _few(whole):
        return None
    now = np.quantile(values, LEVELS, method="inverted_cdf")
    if _few(now):
        return None
    known = np.vstack([whole[None], stretches[np.isfinite(stretches).all(axis=1)]])
    if not _extraordinary(now, known):
        return None
    spread = _spread(now)
    plain = float(np.abs(now - known).mean(axis=1).min()) / spread
    best: tuple[float, Change] | None = None
    for mapped, found in _maps(now, whole, known):
        if found is None:
            continue
        left = np.abs(now - mapped).mean(axis=1).min() / spread
        allowed = min(MOST, RESIDUAL * max(1.0, np.log(found.size) / np.log(HELD)))
        if left <= allowed and plain >= CLEARER * left and (best is None or left < best[0]):
            best = float(left), found
    return None if best is None else best[1]


def _spread(found: Floats) -> Floats:
    """Mean distance from the median, along the last axis."""
    middle = np.median(found, axis=-1, keepdims=True)
    return np.asarray(np.abs(found - middle).mean(axis=-1))


def _extraordinary(now: Floats, known: Floats) -> bool:
    """Whether spread or median lie well outside of those of all stretches."""
    spreads, middles = _spread(known), np.median(known, axis=1)
    here, middle = float(_spread(now)), float(np.median(now))
    room = AWAY * float(known[0][-1] - known[0][0])
    wider = here > BEYOND * spreads.max() or here < spreads.min() / BEYOND
    return bool(wider or middle > middles.max() + room or middle < middles.min() - room)


def _few(found: Floats) -> bool:
    return len(np.unique(found)) < LEAST_VALUES


def _maps(now: Floats, whole: Floats, known: Floats) -> list[tuple[Floats, Change | None]]:
    """Each map applied to `known`, with the change that it stands for if that is large enough."""
    tried = [_scaled(now, known), _shifted(now, whole, known)]
    width = float(whole[-1] - whole[0])
    if np.median(now) * np.median(whole) < 0 and (whole[0] > 0 or whole[-1] < 0):
        mapped, factors = _fitted(now, -known[:, ::-1])
        factor = -_nearest(now, mapped, factors)
        tried.append((mapped, Change(factor, 0.0, max(-factor, -1 / factor), certain=True)))
    for factor, offset in CELSIUS:
        meant = Change(factor, offset, 1.8, certain=True)
        # Beside a wide enough column the offset is nothing, and this would be any scaling.
        tried.append((known * factor + offset, meant if 4 * abs(offset) > width else None))
    return tried


def _fitted(now: Floats, known: Floats) -> tuple[Floats, Floats]:
    """`known`, each multiplied by the factor that brings it closest to `now`, and the factors."""
    squares = (known * known).sum(axis=1)
    factors = np.divide(known @ now, squares, out=np.zeros(len(known)), where=squares > 0)
    return known * factors[:, None], factors


def _nearest(now: Floats, mapped: Floats, parameters: Floats) -> float:
    return float(parameters[np.abs(now - mapped).mean(axis=1).argmin()])


def _scaled(now: Floats, known: Floats) -> tuple[Floats, Change | None]:
    mapped, factors = _fitted(now, known)
    factor = _nearest(now, mapped, factors)
    if factor <= 0:
        return mapped, None
    size = max(factor, 1 / factor)
    if size <= FACTOR_WARN:
        return mapped, None
    return mapped, Change(factor, 0.0, size, certain=size > FACTOR_BLOCK)


def _shifted(now: Floats, whole: Floats, known: Floats) -> tuple[Floats, Change | None]:
    offsets = (now - known).mean(axis=1)
    mapped = known + offsets[:, None]
    offset = _nearest(now, mapped, offsets)
    size = abs(offset) / float(whole[-1] - whole[0])
    if size <= SHIFT:
        return mapped, None
    return mapped, Change(1.0, offset, 1 + size, certain=True)
