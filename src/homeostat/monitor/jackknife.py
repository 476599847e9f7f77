"""The jackknife over blocks of time: how sure a figure is that is no mean of rows.

Takes the block of each row, and what the figure comes to without each of them, or what it is made
of: sums over rows, or pairs of rows. Gives an Interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from homeostat.records import Interval
from homeostat.stats import CONFIDENCE, FEWEST

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]

GROUPS = 60
"""Most groups of neighbouring blocks that are left out in turn."""


@dataclass(frozen=True)
class Groups:
    """Rows by group of neighbouring blocks, each of which is left out in turn.

    `numbers` is the block of each row, shape (rows,). More than 60 blocks are joined.
    """

    numbers: NDArray[np.int64]

    @cached_property
    def _places(self) -> tuple[int, NDArray[np.int64]]:
        names, places = np.unique(self.numbers, return_inverse=True)
        return len(names), places

    @property
    def blocks(self) -> int:
        return self._places[0]

    @property
    def count(self) -> int:
        return min(self.blocks, GROUPS)

    @cached_property
    def of_row(self) -> NDArray[np.int64]:
        """The number of each row's group, shape (rows,)."""
        blocks, places = self._places
        return places * self.count // max(blocks, 1)

    @cached_property
    def _sorted(self) -> tuple[NDArray[np.int64], list[int]]:
        order = np.argsort(self.of_row, kind="stable")
        return order, np.searchsorted(self.of_row[order], np.arange(self.count + 1)).tolist()

    def parts(self, values: Floats) -> list[Floats]:
        """The values of each group's rows; `values` has shape (rows,)."""
        order, ends = self._sorted
        held = values[order]
        return [held[a:b] for a, b in pairwise(ends)]

    def sums(self, terms: Sequence[Floats]) -> Floats:
        """Of each term, shape (rows,), the sum over each group, exactly rounded, so that the order
        of the rows does not matter. Shape (groups, terms).
        """
        found = [[math.fsum(part.tolist()) for part in self.parts(term)] for term in terms]
        return np.array(found).T

    def without(
        self, terms: Sequence[Floats], figure: Callable[[Floats], float | None]
    ) -> list[float | None]:
        """The figure of sums without each group; `figure` takes them in shape (terms,)."""
        return [figure(left) for left in _left(self.sums(terms))]

    def auc_without(self, output: Floats, positive: Floats) -> list[float | None]:
        """`auc` without each group.

        With U the pairs that it counts: without group g it counts U − U(positives of g, all) −
        U(all, negatives of g) + U(positives of g, negatives of g), which costs one sort.
        """
        pairs = _Pairs.of(output, positive)
        losses = [positive * pairs.below, (1 - positive) * pairs.above]
        lost, own = self.sums(losses).sum(axis=1), []
        for said, truth in zip(self.parts(output), self.parts(positive), strict=True):
            inside = _Pairs.of(said, truth)
            own.append(math.fsum((truth * inside.below).tolist()))
        whole = math.fsum((positive * pairs.below).tolist())
        left = _left(self.sums([positive, 1 - positive]))
        return [
            (whole - out + back) / (yes * no) if yes * no > 0 else None
            for out, back, (yes, no) in zip(lost, own, left, strict=True)
        ]


def auc(output: Floats, positive: Floats) -> float | None:
    """Σ over scores of positives · (negatives below + ½ · negatives equal) / (all pairs).

    `positive` is 0 or 1, or the share that is expected to be positive. None without both.
    """
    yes, no = math.fsum(positive.tolist()), math.fsum((1 - positive).tolist())
    if not yes * no > 0:
        return None
    return math.fsum((positive * _Pairs.of(output, positive).below).tolist()) / (yes * no)


@dataclass(frozen=True, slots=True)
class _Pairs:
    """For each row, how much lies on the other side; what has an equal output counts by half."""

    below: Floats  # negatives
    above: Floats  # positives

    @classmethod
    def of(cls, output: Floats, positive: Floats) -> _Pairs:
        # By truth as well, so that sums of shares do not depend on the order of rows.
        order = np.lexsort((positive, output))
        said, truth = output[order], positive[order]
        new = np.append(True, said[1:] != said[:-1])[: len(said)]
        place = np.cumsum(new) - 1
        hits, misses = np.bincount(place, truth), np.bincount(place, 1 - truth)
        below = np.cumsum(misses) - misses / 2
        above = hits.sum() - np.cumsum(hits) + hits / 2
        found = np.empty((2, len(said)))
        found[:, order] = below[place], above[place]
        return cls(*found)


def jackknife(
    value: float | None, without: Callable[[], Sequence[float | None]], groups: Groups
) -> Interval | None:
    """A figure that is no mean, with an interval from leaving out each block in turn.

    `value` is that of all rows, None where they do not define it; `without` gives it without each
    group. With θ_b the figure without block b, θ. the mean of all θ_b, B blocks: SE² =
    (B−1)/B · Σ (θ_b − θ.)², and θ ± t · SE with B − 1 degrees of freedom. The delete-a-group
    jackknife, with blocks of time for groups: Shao and Tu (1995), The Jackknife and Bootstrap,
    §2.3; Künsch (1989), Annals of Statistics 17. No bounds under five blocks, or where the rows
    without some block do not define the figure.
    """
    if value is None:
        return None
    rows, blocks, count = len(groups.numbers), groups.blocks, groups.count
    left = [one for one in without() if one is not None] if blocks >= FEWEST else []
    if not left or len(left) < count:
        return Interval(value, None, None, rows, blocks)
    from scipy import special

    mean = math.fsum(left) / count
    error = math.sqrt((count - 1) / count * math.fsum((one - mean) ** 2 for one in left))
    reach = float(special.stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * error
    return Interval(value, value - reach, value + reach, rows, blocks)


def leaving(figure: Callable[[NDArray[np.bool_]], float | None], groups: Groups) -> Interval | None:
    """`jackknife` of any figure; it is told of the rows that a mask of shape (rows,) chooses."""
    return jackknife(
        figure(np.ones(len(groups.numbers), bool)),
        lambda: [figure(groups.of_row != number) for number in range(groups.count)],
        groups,
    )


def _left(sums: Floats) -> Floats:
    """For each group the sum of all others, exactly rounded; both of shape (groups, terms)."""
    rows = range(len(sums))
    return np.array(
        [[math.fsum(np.delete(column, row).tolist()) for column in sums.T] for row in rows]
    )
