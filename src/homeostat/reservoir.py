"""Reservoirs: a random sample of rows that come piece by piece, in memory that does not grow.

Takes tables with the same columns, one behind the other, and a seed. Gives all rows while they are
few, and from then on a sample of as many as were asked for.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from homeostat import codes


class Reservoir:
    """The `size` rows of the lowest priorities, which are drawn from the seed and a row's place.

    So each set of rows is as likely as any other, and the sample depends on the rows and their
    order, but not on how they were divided. They stay in their order. Bottom-k sampling: Cohen
    and Kaplan (2007), PODC. Memory is that of at most 2 · `size` rows and a piece.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.seen = 0  # rows that were added
        self._size = size
        self._seed = seed
        self._held: list[pa.Table] = []
        self._priorities: list[codes.Codes] = []

    def add(self, rows: pa.Table) -> None:
        self._held.append(rows)
        self._priorities.append(codes.places(self.seen, rows.num_rows, self._seed))
        self.seen += rows.num_rows
        if sum(map(len, self._priorities)) > 2 * self._size:
            self._thin()

    @property
    def rows(self) -> pa.Table:
        """The sample. Raises pa.ArrowInvalid where nothing, not even an empty table, was added."""
        self._thin()
        return pa.concat_tables(self._held)

    @property
    def share(self) -> float:
        """What part of the rows is in the sample; 1.0 of none."""
        return min(1.0, self._size / self.seen) if self.seen else 1.0

    def _thin(self) -> None:
        priorities = np.concatenate(self._priorities or [np.empty(0, np.uint64)])
        if len(priorities) <= self._size:
            return
        # No two rows have one priority.
        keep = priorities <= np.partition(priorities, self._size - 1)[self._size - 1]
        rows = pa.concat_tables(self._held).filter(pa.array(keep)).combine_chunks()
        self._held, self._priorities = [rows], [priorities[keep]]
