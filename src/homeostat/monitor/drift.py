"""Drift: how far each column of a window lies from the reference, and whether that is unusual.

Takes the profiles of reference and window. Gives per column a distance, the threshold that it had
to pass, and p-values against two nulls: rows that are independent, and this stream's own variation
from one stretch of the reference to another, which is the larger of the two wherever rows of the
same day resemble each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from scipy import special

from homeostat.profile import Column, Profile
from homeostat.records import ColumnDrift
from homeostat.stats import holm

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]
    Counts: TypeAlias = NDArray[np.int64]

MIN_WINDOWS = 10  # disjoint reference windows below which nothing is calibrated on them
MIN_EXPECTED = 5.0  # rarer levels are tested together, as the chi-square test has it
KOLMOGOROV_SQUARE = np.pi**2 / 12  # E[K²] of Kolmogorov's distribution
HEAVIER = (1.15, 0.03)
"""Margins, found by simulation, for the tail of the χ fit: one for many cells, one for few. Without
them, distances beyond its 0.001 quantile are up to twice as frequent as that."""


@dataclass(frozen=True, slots=True)
class RowsNull:
    """The distance of two samples of `n` and `m` independent rows of one distribution.

    Ordered cells: Kolmogorov's distribution with Stephens' correction for small samples,
    P(D > d) = Q((√e + .12 + .11/√e)·d), e = nm/(n+m) (Stephens 1970, J. R. Stat. Soc. B 32:115);
    in cells instead of values it is conservative. Unordered cells: the distance is the sum of
    absolute Gaussian variables, so c·χ with ν degrees of freedom is given its mean and variance,
    both exact, and then a margin for its tail; half a row is taken off as a continuity correction.
    """

    scale: float  # what multiplies the distance
    freedom: float  # ν, or 0 where Kolmogorov's distribution holds
    offset: float  # taken off the distance first
    square: float  # mean squared distance

    @classmethod
    def ordered(cls, n: float, m: float) -> RowsNull:
        root = np.sqrt(n * m / (n + m))
        scale = float(root + 0.12 + 0.11 / root)
        return cls(scale, 0.0, 0.0, float(KOLMOGOROV_SQUARE / scale**2))

    @classmethod
    def unordered(cls, shares: Floats, n: float, m: float) -> RowsNull:
        """`shares` of the cells in both samples together, shape (cells,)."""
        # A cell may be rarer still than a group is meant to be; its noise is that of five rows.
        least = min(0.5, MIN_EXPECTED / min(n, m))
        shares = np.maximum(shares[shares > 0], least) if len(shares) > 1 else shares
        each = 1 / n + 1 / m
        offset = float(each / 2)
        if len(shares) < 2:
            return cls(1.0, 1.0, offset, 0.0)
        deviation = np.sqrt(shares * (1 - shares) * each)
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
        return cls(float(scale), freedom, offset, square)

    def p_value(self, distance: float) -> float:
        scaled = max(0.0, distance - self.offset) * self.scale
        if not self.freedom:
            return float(special.kolmogorov(scaled))
        return float(special.gammaincc(self.freedom / 2, scaled**2 / 2))

    def distance(self, level: float) -> float:
        """The distance at which the p-value is `level`."""
        if not self.freedom:
            return float(special.kolmogi(level)) / self.scale
        scaled = np.sqrt(2 * special.gammainccinv(self.freedom / 2, level))
        return float(scaled / self.scale + self.offset)


@dataclass(frozen=True, slots=True)
class BlocksNull:
    """The distance of a window of this stream from the rest of it, beyond the noise of its rows.

    Of each squared distance the mean that independent rows would make is taken off, and the
    root r of what is left is compared: with mean μ and standard deviation s of √r in W disjoint
    windows, one more lies above with P(t_{W−1} > (√r − μ) / (s·√(1 + 1/W))), the prediction
    interval of one more observation (Hahn and Meeker 1991, Statistical Intervals, 4.7). Powers
    of 1/3 to 2/3 bring a χ variable close to a Gaussian one (Wilson and Hilferty 1931, PNAS
    17:684); the half leaves some room for heavier tails. W ≥ 2.
    """

    mean: float
    spread: float  # s·√(1 + 1/W)
    windows: int
    noise: float  # mean squared distance of the current window, its rows being independent

    @classmethod
    def of(cls, distances: Floats, noises: Floats, noise: float) -> BlocksNull:
        """From the distances and noises of the windows, shape (W,), and the current noise."""
        roots = np.maximum(0.0, distances**2 - noises) ** 0.25
        spread = float(roots.std(ddof=1) * np.sqrt(1 + 1 / len(roots)))
        return cls(float(roots.mean()), spread, len(roots), noise)

    def p_value(self, distance: float) -> float:
        excess = max(0.0, distance**2 - self.noise) ** 0.25 - self.mean
        if self.spread == 0:
            return 0.0 if excess > 0 else 1.0
        return float(special.stdtr(self.windows - 1, -excess / self.spread))

    def distance(self, level: float) -> float:
        """The distance at which the p-value is `level`, for levels up to one half."""
        quantile = -float(special.stdtrit(self.windows - 1, level))
        return float(np.sqrt((self.mean + quantile * self.spread) ** 4 + self.noise))


@dataclass(frozen=True, slots=True)
class Test:
    """One column's distance with its nulls; the larger p-value of the two counts."""

    column: str
    statistic: str
    distance: float
    rows: RowsNull
    blocks: BlocksNull | None

    @property
    def p_value(self) -> float:
        independent = self.rows.p_value(self.distance)
        if self.blocks is None:
            return independent
        return max(independent, self.blocks.p_value(self.distance))

    def critical(self, level: float) -> float:
        """The distance beyond which the p-value falls below `level`."""
        independent = self.rows.distance(level)
        if self.blocks is None:
            return independent
        return max(independent, self.blocks.distance(level))


def drift(
    reference: Profile,
    current: Profile,
    *,
    alpha: float,
    min_effect: float,
    columns: Sequence[str],
) -> tuple[ColumnDrift, ...]:
    """Compare `columns` of the window `current` with the reference, in the order given.

    Distances lie in [0, 1]. Numbers: sup |F − G| over the bin edges, null counted as smaller
    than every number. Categories and booleans: total variation ½·Σ|p − q|, levels too rare to
    expect five of in the smaller sample taken together in groups. p-values are adjusted after
    Holm (1979, Scand. J. Stat. 6:65) over `columns`, so that the chance of any false alarm is at
    most `alpha`; a distance up to `min_effect` is never called drift. Columns without rows on
    either side are left out. Where the reference has fewer than ten disjoint windows as long as the
    current one, independent rows are assumed, and the test's name says "rows".
    """
    tests = [test for name in columns if (test := _test(reference, current, name)) is not None]
    p_values = [test.p_value for test in tests]
    adjusted = holm(p_values)
    return tuple(
        _judged(test, p, adjusted[i], holm_level(p_values, i, alpha), min_effect)
        for i, (test, p) in enumerate(zip(tests, p_values, strict=True))
    )


def _judged(
    test: Test, p_value: float, adjusted: float, level: float, min_effect: float
) -> ColumnDrift:
    threshold = max(min_effect, test.critical(level))
    return ColumnDrift(
        column=test.column,
        test=f"{test.statistic}, {'rows' if test.blocks is None else 'blocks'}",
        distance=test.distance,
        threshold=threshold,
        p_value=p_value,
        adjusted_p_value=adjusted,
        drifted=test.distance > threshold,
        minimum_detectable_shift=threshold,
        windows=0 if test.blocks is None else test.blocks.windows,
    )


def holm_level(p_values: Sequence[float], place: int, alpha: float) -> float:
    """The largest p-value that column `place` may have for its adjusted one to be ≤ `alpha`,
    the other columns being what they are: α / (C − r), r of the others being rejected first.
    """
    count = len(p_values)
    others = sorted(p for i, p in enumerate(p_values) if i != place)
    rejected = 0
    while rejected < len(others) and others[rejected] * (count - rejected) <= alpha:
        rejected += 1
    return alpha / (count - rejected)


def _test(reference: Profile, current: Profile, name: str) -> Test | None:
    column, before = _counted(reference, name)
    other, after = _counted(current, name)
    if other != column:
        raise ValueError(f"reference and window count {name!r} in different bins")
    if not len(before) or not len(after):
        return None
    n, m = float(before.sum()), float(after.sum())
    if column.ordered:
        # Null first, as if it were smaller than every number.
        before, after = np.roll(before, 1, axis=1), np.roll(after, 1, axis=1)
        rows = RowsNull.ordered(n, m)
    else:
        before, after = _pooled(before, after)
        rows = RowsNull.unordered((before.sum(axis=0) + after.sum(axis=0)) / (n + m), n, m)
    distance = _distance(before.sum(axis=0), after.sum(axis=0), column)
    blocks = _blocks(before, len(after), column, rows, m)
    return Test(name, "ks" if column.ordered else "tv", float(distance), rows, blocks)


def _counted(profile: Profile, name: str) -> tuple[Column, Counts]:
    column, counts = profile.column(name)
    return column, counts[counts.sum(axis=1) > 0]


def _blocks(
    reference: Counts, length: int, column: Column, rows: RowsNull, m: float
) -> BlocksNull | None:
    """The null from disjoint runs of `length` blocks of the reference, each against the rest."""
    count = len(reference) // length
    if count < MIN_WINDOWS:
        return None
    newest = reference[len(reference) - count * length :]
    windows = newest.reshape(count, length, -1).sum(axis=1)
    total = reference.sum(axis=0)
    distances = _distance(windows, total - windows, column)
    n, sizes = float(total.sum()), windows.sum(axis=1)
    # Under independence the mean square goes with 1/n + 1/m, whatever the cells.
    unit = rows.square / (1 / n + 1 / m)
    return BlocksNull.of(distances, unit * (1 / sizes + 1 / (n - sizes)), rows.square)


def _distance(left: Counts, right: Counts, column: Column) -> Floats:
    """Distance of the shares along the last axis."""
    gap = left / left.sum(axis=-1, keepdims=True) - right / right.sum(axis=-1, keepdims=True)
    if column.ordered:
        return np.asarray(np.abs(gap.cumsum(axis=-1)).max(axis=-1).clip(0.0, 1.0))
    return np.asarray((np.abs(gap).sum(axis=-1) / 2).clip(0.0, 1.0))


def _pooled(before: Counts, after: Counts) -> tuple[Counts, Counts]:
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
