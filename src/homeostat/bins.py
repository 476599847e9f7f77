"""The bin of each number among ascending edges, found by a table instead of a search.

Takes the edges of one feature, and arrays of numbers. Gives what `np.searchsorted` gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Counts: TypeAlias = NDArray[np.int64]

_BUCKETS = (1 << 10, 1 << 12, 1 << 14, 1 << 16)
_SHARED = 0.02  # share of bins that may touch a bucket with several edges


class Bins:
    """Finds the bin of each number as `np.searchsorted(edges, numbers)` does, in fewer steps.

    The range of the edges is cut into equal buckets, of which nearly all hold one edge at most, so
    that one look at a table and one comparison tell the bin. Bucket numbers never fall as numbers
    rise, whatever the rounding, so the answer is exact; where edges lie too close together for
    that, they are searched.
    """

    def __init__(self, edges: Sequence[float]) -> None:
        self.edges = np.array(edges, dtype=np.float64)
        self._scale = 0.0
        for buckets in _BUCKETS:
            if self._cut(buckets):
                break

    def _cut(self, buckets: int) -> bool:
        """Whether so many buckets tell the edges apart."""
        edges = self.edges
        if len(edges) < 2:
            return False
        with np.errstate(over="ignore", divide="ignore"):
            scale = buckets / (edges[-1] - edges[0])
        if not 0 < scale < np.inf:
            return False
        self._low, self._last, self._scale = edges[0], buckets - 1.0, scale
        first, number = np.unique(self._bucket(edges), return_counts=True)
        if number[number > 1].sum() > _SHARED * len(edges):
            self._scale = 0.0
            return False
        below = np.zeros(buckets + 1, dtype=np.int64)
        below[first + 1] = number
        # How many edges lie in earlier buckets, and the one that lies in this.
        self._below = np.cumsum(below)[:-1]
        self._edge = np.full(buckets, np.inf)
        self._edge[first] = edges[self._below[first]]
        several = np.zeros(buckets, dtype=bool)
        several[first[number > 1]] = True
        self._several = several if several.any() else None
        return True

    def _bucket(self, numbers: NDArray[np.float64]) -> Counts:
        with np.errstate(over="ignore", invalid="ignore"):
            place = numbers - self._low
            np.multiply(place, self._scale, out=place)
            # NaN goes to the first bucket.
            np.fmax(place, 0.0, out=place)
            np.minimum(place, self._last, out=place)
            bucket: Counts = place.astype(np.int64)
            return bucket

    def find(self, numbers: NDArray[np.float64]) -> Counts:
        """How many edges are below each number, shape as given; anything for NaN."""
        if not self._scale:
            return np.searchsorted(self.edges, numbers, side="left").astype(np.int64)
        bucket = self._bucket(numbers)
        found = self._below.take(bucket)
        found += numbers > self._edge.take(bucket)
        if self._several is not None:
            unsure = np.flatnonzero(self._several.take(bucket))
            found[unsure] = np.searchsorted(self.edges, numbers[unsure], side="left")
        return found
