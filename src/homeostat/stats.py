"""Statistics that several rooms share: means over blocks of rows, and corrections for many tests.

Rows of one block of time are alike, not independent, so every error here is that of block sums.
Takes NumPy arrays and gives plain numbers; the same rows in any order give the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from homeostat.records import MICROSECOND, Interval

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]

FEWEST = 5
"""Blocks under which no interval is reported."""

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class BlockMean:
    """The mean of values of rows, and its error from sums over blocks of rows that are alike."""

    mean: float  # over all rows
    error: float  # standard error of `mean`; infinite with one block
    rows: int
    blocks: int

    @classmethod
    def of(cls, values: Floats, keys: NDArray[np.int64]) -> BlockMean:
        """Rows with the same key form a block. The same rows in any order give the same bits.

        With S_b the sum and n_b the number of values in block b, n = Σ n_b, m = Σ S_b / n:
        SE² = B/(B−1) · Σ (S_b − n_b·m)² / n², the cluster-robust variance of an intercept (CR1).
        Liang and Zeger (1986), Biometrika 73; Cameron and Miller (2015), J. Human Resources 50;
        the same as the ratio estimator of Cochran (1977), Sampling Techniques, §9A.
        """
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.diff(keys[order])) + 1
        parts = np.split(values[order], starts)
        sums = [(math.fsum(part.tolist()), len(part)) for part in parts]  # exact, in any order
        rows, blocks = len(values), len(parts)
        mean = math.fsum(total for total, _ in sums) / rows
        if blocks == 1:
            return cls(mean, math.inf, rows, blocks)
        spread = math.fsum((total - count * mean) ** 2 for total, count in sums)
        return cls(mean, math.sqrt(blocks / (blocks - 1) * spread) / rows, rows, blocks)

    def bound(self, probability: float) -> float:
        """Mean + t · SE, where t is that quantile of Student's t with B − 1 degrees of freedom."""
        from scipy import special

        if self.blocks == 1:
            return math.copysign(math.inf, probability - 0.5)
        return self.mean + float(special.stdtrit(self.blocks - 1, probability)) * self.error

    def interval(self) -> Interval:
        """The mean with its 95 % interval; no bounds under five blocks."""
        if self.blocks < FEWEST:
            return Interval(self.mean, None, None, self.rows, self.blocks)
        low, high = self.bound((1 - CONFIDENCE) / 2), self.bound((1 + CONFIDENCE) / 2)
        return Interval(self.mean, low, high, self.rows, self.blocks)

    def p_greater(self) -> float:
        """One-sided p-value of the mean being no greater than 0; 1 with fewer than two blocks."""
        from scipy import special

        if self.blocks < 2:
            return 1.0
        if self.error == 0:
            return 0.0 if self.mean > 0 else 1.0
        return float(special.stdtr(self.blocks - 1, -self.mean / self.error))


def block_keys(times: NDArray[Any], block: timedelta) -> NDArray[np.int64]:
    """Number of the block of each row, counted from 1970 in UTC; `times` is datetime64[us]."""
    length = max(block // MICROSECOND, 1)
    return np.asarray(times.astype("datetime64[us]").astype(np.int64) // length)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the order given, after Holm (1979), Scandinavian J. of Statistics 6."""
    order = np.argsort(p_values, kind="stable")
    steps = np.asarray(p_values, dtype=float)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps)) if len(order) else steps
    return [float(value) for value in adjusted]
