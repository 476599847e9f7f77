"""Stretches: how a stream's own past tells how far one of its windows may lie from the rest.

Takes sums by block of a reference. Gives overlapping stretches as long as the window, each with its
gap to the rest of the reference, and from these the p-value of a gap and the chance that the
smallest p-value of many tests is as small as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from scipy import special

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]
    Counts: TypeAlias = NDArray[np.int64]

MIN_WINDOWS = 10  # disjoint stretches below which nothing is calibrated on them
OVERLAP = 4  # stretches that begin within the length of one
JACKKNIFE = 5  # blocks in a window from which on no single one of them may decide
HALVINGS = 60
GUMBEL = 5.4  # kurtosis
SMALLEST = 1e-300  # p-values below count as this
ROUNDING = 1e-12  # differences of means of scores, which are of the order of 1, that are none
LEAST_SPREAD = 1.0  # of scores of p-values: as if the tests were independent, at least
LEAST_OF_MAXIMA = 0.75  # and of the largest of several groups, each of them standardised


@dataclass(frozen=True)
class Layout:
    """Which stretches of a reference of `blocks` blocks stand for a window.

    They are as long as the window, or shorter where fewer than ten disjoint ones of that length
    would fit: in a stream that stays as it is the mean of a shorter stretch varies more, never
    less, so that a null made of them is on the safe side. Below ten blocks there are none. They
    overlap, for the sake of steadier estimates; `windows`, the disjoint ones, is what degrees of
    freedom are counted by.
    """

    blocks: int
    window: int  # blocks
    length: int  # of a stretch, blocks
    windows: int
    starts: Counts  # first block of each, ascending; shape (T,)

    @classmethod
    def of(cls, blocks: int, window: int) -> Layout:
        length = max(1, min(window, blocks // MIN_WINDOWS))
        if blocks < MIN_WINDOWS:
            return cls(blocks, window, length, 0, np.zeros(0, dtype=np.int64))
        step = max(1, length // OVERLAP)
        starts = np.arange(blocks - length, -1, -step, dtype=np.int64)[::-1]
        return cls(blocks, window, length, blocks // length, starts)

    @property
    def known(self) -> bool:
        """There are stretches to learn from."""
        return self.windows > 0

    @property
    def disjoint(self) -> int:
        """Windows that the reference is long, at least one; 0 where rows alone are the null."""
        return max(1, self.blocks // self.window) if self.known else 0

    @property
    def calibrated(self) -> bool:
        """They are as long as the window."""
        return self.known and self.length == self.window

    @property
    def places(self) -> Counts:
        """The blocks of each stretch, shape (T, length)."""
        return self.starts[:, None] + np.arange(self.length)

    def sums(self, values: NDArray[Any]) -> NDArray[Any]:
        """Sums over each stretch of values by block, shape (blocks, …) → (T, …)."""
        total = np.concatenate([np.zeros_like(values[:1]), np.cumsum(values, axis=0)])
        return np.asarray(total[self.starts + self.length] - total[self.starts])

    def others(self, values: Floats) -> Floats:
        """For each stretch the mean of `values` over those that share no block with it."""
        count = len(self.starts)
        first = np.searchsorted(self.starts, self.starts - self.length, side="right")
        last = np.searchsorted(self.starts, self.starts + self.length, side="left")
        total = np.concatenate([np.zeros_like(values[:1]), np.cumsum(values, axis=0)])
        kept = (count - (last - first)).reshape(-1, *[1] * (values.ndim - 1))
        return np.asarray((total[-1] - (total[last] - total[first])) / np.maximum(kept, 1))


def least(gaps: Floats, axis: int) -> Floats:
    """The gap of smallest size along `axis`; 0 where they have not all the same sign."""
    low, high = gaps.min(axis=axis), gaps.max(axis=axis)
    return np.where(low > 0, low, np.where(high < 0, high, 0.0))


@dataclass(frozen=True)
class Gaps:
    """Gaps of k contrasts: of each stretch to the rest, and of the window to the reference.

    `stretches` and `spread` of shape (T, k), `window` of shape (k,). `spread` holds plain gaps,
    whose mean square tells the variance; `stretches` and `window` what is left of them whichever
    single block is taken away, where there are five blocks or more.
    """

    spread: Floats
    stretches: Floats
    window: Floats
    each: Floats  # 1/n + 1/m of the rows of each stretch and of the rest, shape (T,)
    now: float  # the same of the window and the reference

    def p_values(self, layout: Layout, variance: Floats | None) -> tuple[Floats, Floats]:
        """p-values of the stretches, shape (T, k), and what the window's gap is to be divided by.

        `variance`, shape (k,), is that of one row's score. With s² the mean square of the plain
        gaps, τ² = max(0, s² − variance · mean(each)) is how much the stream itself varies, and a
        gap's variance is τ² + variance · now: the row noise is that of the rows there are. Without
        `variance` it is s², more by as much as the window has fewer rows than a stretch. A gap
        over its root follows Student's t with W − 1 degrees of freedom, W the disjoint stretches,
        as far as means over blocks are Gaussian (the method of batch means: Schmeiser 1982,
        Operations Research 30:556). Each stretch is judged by the others that do not overlap it.
        Without stretches only the noise of rows is known.
        """
        if variance is not None and not layout.known:
            return np.zeros_like(self.spread), np.sqrt(variance * self.now)
        squares = self.spread**2
        if variance is None:
            more = np.maximum(1.0, self.each / self.each.mean())[:, None]
            others = layout.others(squares) * more
            scale = squares.mean(axis=0) * max(1.0, self.now / float(self.each.mean()))
        else:
            noise = variance * self.each[:, None]
            others = np.maximum(0.0, layout.others(squares - noise)) + noise
            scale = np.maximum(0.0, (squares - noise).mean(axis=0)) + variance * self.now
        return two_sided(self.stretches, np.sqrt(others), layout.windows), np.sqrt(scale)


def overlapping(windows: int) -> float:
    """What a standard deviation over overlapping stretches is to be multiplied by.

    About the mean of W disjoint ones squares are too small by (W − 1)/W, however many overlap.
    """
    return float(np.sqrt(windows / (windows - 1)))


def two_sided(gaps: Any, scale: Any, windows: int) -> Floats:
    """P(|t_{W−1}| ≥ |gap| / scale); a gap of 0 has p = 1, whatever the scale."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(gaps == 0, 0.0, np.abs(gaps) / scale)
    return np.asarray(2 * special.stdtr(max(windows - 1, 1), -ratio))


def normal_score(p_value: Any, tests: int) -> Floats:
    """Φ⁻¹ of the chance that none of so many independent tests has a p-value as small."""
    p = np.clip(p_value, SMALLEST, 1 - 1e-12)
    return np.asarray(-special.ndtri(np.clip(-np.expm1(tests * np.log1p(-p)), SMALLEST, 1 - 1e-15)))


@dataclass(frozen=True)
class Family:
    """The smallest p-value of several groups of tests, against that of the stretches.

    The idea is that of Westfall and Young (1993, Resampling-Based Multiple Testing), min-P in one
    step: what counts is how small the smallest of all p-values gets in stretches of the reference,
    so that dependence between the tests, and tails heavier than each test believes, are in it. Each
    group's smallest p becomes a normal score, standardised by those of the stretches; the largest
    over the groups, M, is then compared with the M of the stretches twice, and the larger p counts:
    a t prediction interval, P(t_ν > (M − mean) / (s·√(1 + 1/W))), which reaches beyond what was
    ever seen, and the share of stretches that came as far, which needs no distribution.
    """

    windows: int
    groups: Mapping[str, tuple[int, float, float]]  # tests, mean, spread
    maxima: Floats  # of the stretches, shape (T,)

    @classmethod
    def of(cls, windows: int, smallest: Mapping[str, tuple[int, Floats]]) -> Family:
        """From each group's number of tests and the smallest p-value in each stretch."""
        scores = {name: normal_score(p, tests) for name, (tests, p) in smallest.items()}
        groups = {
            name: (
                smallest[name][0],
                float(found.mean()),
                max(LEAST_SPREAD, float(found.std(ddof=1))),
            )
            for name, found in scores.items()
        }
        standard = [(scores[name] - mean) / spread for name, (_, mean, spread) in groups.items()]
        return cls(windows, groups, np.max(standard, axis=0))

    def p_value(self, group: str, p_value: float) -> float:
        """Adjusted over all tests of all groups."""
        tests, mean, spread = self.groups[group]
        score = (float(normal_score(p_value, tests)) - mean) / spread
        centre, error, freedom = self._interval
        beyond = float(special.stdtr(freedom, (centre - score) / error))
        return max(beyond, float(np.mean(self.maxima >= score)))

    @cached_property
    def _interval(self) -> tuple[float, float, float]:
        """Mean of M, standard error of one more, and degrees of freedom.

        A largest value is skewed: with the kurtosis κ of Gumbel's distribution, 5.4, a variance of
        W values is known as if from 2·(W − 1) / (κ − 1) + 1 Gaussian ones (Satterthwaite).
        """
        found = max(LEAST_OF_MAXIMA, float(self.maxima.std(ddof=1)) * overlapping(self.windows))
        freedom = 2 * (self.windows - 1) / (GUMBEL - 1)
        return float(self.maxima.mean()), found * np.sqrt(1 + 1 / self.windows), freedom

    def level(self, group: str, alpha: float) -> float:
        """The largest p-value of a test of `group` whose adjusted one is at most `alpha`."""
        low, high = np.log(SMALLEST), 0.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            reached = self.p_value(group, float(np.exp(middle))) <= alpha
            low, high = (middle, high) if reached else (low, middle)
        return float(np.exp(low))


@dataclass(frozen=True)
class Parts:
    """Gaps of k contrasts whole, and with each single block taken away.

    `whole` of shape (T, k) and `now` of shape (k,); `without` of shape (T, length, k) and
    `now_without` of shape (blocks of the window, k), None below five blocks.
    """

    whole: Floats
    without: Floats | None
    now: Floats
    now_without: Floats | None
    each: Floats
    now_each: float

    @classmethod
    def of(
        cls,
        before: tuple[NDArray[Any], ...],
        after: tuple[NDArray[Any], ...],
        layout: Layout,
        contrast: Callable[..., Floats],
    ) -> Parts:
        """From additive sums by block, the rows of each block first, and the k values that
        `contrast` makes of sums with any leading shape. A gap is the difference of two of them.
        """
        total, stretches = [s.sum(axis=0) for s in before], [layout.sums(s) for s in before]
        rest = [all_ - some for all_, some in zip(total, stretches, strict=True)]
        window = [s.sum(axis=0) for s in after]
        far, base = contrast(*rest), contrast(*total)
        without = now_without = None
        if layout.length >= JACKKNIFE:
            kept = (s[:, None] - b[layout.places] for s, b in zip(stretches, before, strict=True))
            without = _apart(contrast(*kept), far[:, None])
        if len(after[0]) >= JACKKNIFE:
            kept = (s - b for s, b in zip(window, after, strict=True))
            now_without = _apart(contrast(*kept), base)
        return cls(
            _apart(contrast(*stretches), far),
            without,
            _apart(contrast(*window), base),
            now_without,
            1 / stretches[0] + 1 / rest[0],
            float(1 / window[0] + 1 / total[0]),
        )

    def gaps(self) -> Gaps:
        """What no single block decides."""
        stretches = self.whole if self.without is None else least(self.without, axis=1)
        now = self.now if self.now_without is None else least(self.now_without, axis=0)
        return Gaps(self.whole, stretches, now, self.each, self.now_each)


def _apart(one: Floats, other: Floats) -> Floats:
    """Their difference; where it is rounding none, since beside a column that is alike in every
    block the rounding of one window would be as unusual as can be.
    """
    apart = one - other
    return np.where(np.abs(apart) <= ROUNDING, 0.0, apart)


def means(rows: NDArray[Any], sums: NDArray[Any]) -> Floats:
    """The contrast of plain means, for `Parts.of`."""
    return np.asarray(sums / rows[..., None])
