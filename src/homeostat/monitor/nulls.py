"""Distances of whole distributions: how large they get by chance, of rows and of stretches.

Takes counts of cells. Gives the Kolmogorov-Smirnov distance of numbers and the total variation of
levels, with their distribution for independent rows and, from stretches of the reference, for
windows of this stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from scipy import special

from homeostat.monitor.stretches import Layout, overlapping

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]
    Counts: TypeAlias = NDArray[np.int64]

MIN_EXPECTED = 5.0  # rarer levels are tested together, as the chi-square test has it
KOLMOGOROV_SQUARE = np.pi**2 / 12  # E[K²] of Kolmogorov's distribution
HEAVIER = (1.15, 0.03)
"""Margins, found by simulation, for the tail of the χ fit: one for many cells, one for few. Without
them, distances beyond its 0.001 quantile are up to twice as frequent as that."""


@dataclass(frozen=True, slots=True)
class RowsNull:
    """The distance of two samples of `n` and `m` independent rows of one distribution.

    `each` is 1/n + 1/m. Ordered cells: Kolmogorov's distribution with Stephens' correction for
    small samples, P(D > d) = Q((√e + .12 + .11/√e)·d), e = 1/each (Stephens 1970, J. R. Stat. Soc.
    B 32:115); in cells instead of values it is conservative. Unordered cells: the distance is the
    sum of absolute Gaussian variables, so c·χ with ν degrees of freedom is given its mean and
    variance, both exact, and then a margin for its tail; half a row is taken off as a continuity
    correction.
    """

    freedom: float = 0.0  # ν, or 0 where Kolmogorov's distribution holds
    scale: float = 1.0  # what multiplies the distance over √each, for unordered cells
    square: float = 0.0  # mean squared distance over `each`, for unordered cells

    @classmethod
    def unordered(cls, shares: Floats, n: float, m: float) -> RowsNull:
        """`shares` of the cells in both samples together, shape (cells,)."""
        # A cell may be rarer still than a group is meant to be; its noise is that of five rows.
        floor = min(0.5, MIN_EXPECTED / min(n, m))
        shares = np.maximum(shares[shares > 0], floor) if len(shares) > 1 else shares
        if len(shares) < 2:
            return cls(1.0)
        deviation = np.sqrt(shares * (1 - shares))
        odds = np.sqrt(shares / (1 - shares))
        rho = np.clip(-np.outer(odds, odds), -1.0, 1.0)
        # Moments of |X|, |Y| for bivariate normal X, Y with correlation ρ.
        product = np.sqrt(1 - rho**2) + rho * np.arcsin(rho)
        np.fill_diagonal(product, np.pi / 2)
        mean = float(deviation.sum() / np.sqrt(2 * np.pi))
        square = float(np.outer(deviation, deviation).ravel() @ product.ravel()) / (2 * np.pi)
        many, few = HEAVIER
        freedom = 1 + (_freedom(mean**2 / square) - 1) / many
        scale = np.sqrt(freedom / square) / (1 + few / np.sqrt(freedom))
        return cls(freedom, float(scale), square)

    def noise(self, each: Any) -> Any:
        """The mean squared distance."""
        if self.freedom:
            return self.square * each
        return KOLMOGOROV_SQUARE / _stephens(each) ** 2

    def p_value(self, distance: Any, each: Any) -> Floats:
        """P(D ≥ distance), for arrays as well."""
        if not self.freedom:
            return np.asarray(special.kolmogorov(distance * _stephens(each)))
        scaled = np.maximum(0.0, distance - each / 2) * self.scale / np.sqrt(each)
        return np.asarray(special.gammaincc(self.freedom / 2, scaled**2 / 2))


def _stephens(each: Any) -> Any:
    root = 1 / np.sqrt(each)
    return root + 0.12 + 0.11 / root


@dataclass(frozen=True, slots=True)
class BlocksNull:
    """The distance of a window of this stream from the rest of it, beyond the noise of its rows.

    Of each squared distance the mean that independent rows would make is taken off, and the
    root r of what is left is compared: with mean μ and standard deviation s of √r over stretches,
    W of them disjoint, one more lies above with P(t_{W−1} > (√r − μ) / (s·√(1 + 1/W))), the
    prediction interval of one more observation (Hahn and Meeker 1991, Statistical Intervals, 4.7).
    Powers of 1/3 to 2/3 bring a χ variable close to a Gaussian one (Wilson and Hilferty 1931, PNAS
    17:684); the half leaves some room for heavier tails. W ≥ 2.
    """

    mean: Any  # one number, or one for each stretch, of the others
    spread: Any  # s·√(1 + 1/W)
    windows: int

    @classmethod
    def of(cls, distances: Floats, noises: Floats, windows: int) -> BlocksNull:
        """From distances and row noise of the stretches, shape (T,), T ≥ 2."""
        roots = _roots(distances, noises)
        spread = float(roots.std(ddof=1)) * overlapping(windows) * np.sqrt(1 + 1 / windows)
        return cls(float(roots.mean()), spread, windows)

    @classmethod
    def without_each(cls, distances: Floats, noises: Floats, layout: Layout) -> BlocksNull:
        """The same for each stretch from the others that do not overlap it."""
        roots = _roots(distances, noises)
        mean = layout.others(roots)
        square = np.maximum(0.0, layout.others(roots**2) - mean**2) * (1 + 1 / layout.windows)
        return cls(mean, np.sqrt(square) * overlapping(layout.windows), layout.windows)

    def p_value(self, distance: Any, noise: Any) -> Floats:
        """P(D ≥ distance); `noise` is the mean squared distance of rows alone. Arrays as well."""
        excess = _roots(distance, noise) - self.mean
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(excess == 0, 0.0, excess / self.spread)
        return np.asarray(special.stdtr(max(self.windows - 1, 1), -ratio))


def _roots(distance: Any, noise: Any) -> Any:
    return np.maximum(0.0, distance**2 - noise) ** 0.25


def kolmogorov_smirnov(left: NDArray[Any], right: NDArray[Any]) -> Floats:
    """The largest |F − G| over the cells of the last axis, in the order they have."""
    return np.asarray(np.abs(_gap(left, right).cumsum(axis=-1)).max(axis=-1).clip(0.0, 1.0))


def total_variation(left: NDArray[Any], right: NDArray[Any]) -> Floats:
    """½·Σ|p − q| over the cells of the last axis."""
    return np.asarray((np.abs(_gap(left, right)).sum(axis=-1) / 2).clip(0.0, 1.0))


def _gap(left: NDArray[Any], right: NDArray[Any]) -> Floats:
    sizes = (np.maximum(side.sum(axis=-1, keepdims=True), 1) for side in (left, right))
    return np.asarray(left / next(sizes) - right / next(sizes))


def pooled(before: Counts, after: Counts) -> tuple[Counts, Counts]:
    """Rare cells together, rarest first, in groups of which five are expected in the smaller
    sample; which ones, both samples together tell, so that under the null it is no choice.
    """
    total = before.sum(axis=0) + after.sum(axis=0)
    expected = total * (min(before.sum(), after.sum()) / total.sum())
    order = np.argsort(expected, kind="stable")
    starts, held = [], np.inf
    for place, cell in enumerate(expected[order]):
        # A frequent cell stays alone, lest what is left over of the rare ones hide in it.
        if held >= MIN_EXPECTED or cell >= MIN_EXPECTED:
            starts.append(place)
            held = 0.0
        held += cell
    left, right = (np.add.reduceat(c[:, order], starts, axis=1) for c in (before, after))
    return left, right


def _freedom(ratio: float) -> float:
    """ν of the χ distribution whose squared mean is `ratio` of its mean square.

    That ratio is 2·(Γ((ν+1)/2) / Γ(ν/2))² / ν; it rises with ν from 2/π at ν = 1 towards 1.
    """
    low, high = 1.0, 1e6
    for _ in range(60):
        middle = np.sqrt(low * high)
        log = special.gammaln((middle + 1) / 2) - special.gammaln(middle / 2)
        if 2 * np.exp(2 * log) / middle < ratio:
            low = middle
        else:
            high = middle
    return float(np.sqrt(low * high))
