"""Slices: parts of the judging rows in each of which a challenger may not be worse.

Takes the rows and the features that part them, then the losses of champion and challenger on them.
Gives the slices that can be judged, each with the p-value of the challenger's being worse there;
it touches nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from homeostat.page import shown
from homeostat.records import Slice
from homeostat.schema import Feature
from homeostat.settings import Gate
from homeostat.stats import CONFIDENCE, BlockMean, holm

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]
    Flags: TypeAlias = NDArray[np.bool_]

LEVELS = 8  # largest levels of a category that are slices
BINS = 4  # of a number, between its quartiles


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one slice."""

    column: str
    level: str
    rows: Flags  # shape (rows,)


def parts(rows: pa.Table, features: Sequence[Feature], gate: Gate) -> tuple[Part, ...]:
    """The slices of labelled rows, at most `gate.slices` of at least `gate.min_rows` rows each.

    Every level of a boolean, the eight largest of a category, and the four ranges between the
    quartiles of a number; nulls are in none, and a slice that holds all rows is none. Where there
    are too many, each feature gives its largest slice before any gives its second.
    """
    found = []
    for place, feature in enumerate(features):
        column = rows.column(feature.name)
        ranges = _ranges if feature.kind == "number" else _levels
        made = sorted(ranges(column, feature), key=lambda part: -int(part.rows.sum()))
        kept = [p for p in made if gate.min_rows <= p.rows.sum() < rows.num_rows]
        found += [(rank, place, part) for rank, part in enumerate(kept)]
    found.sort(key=lambda each: each[:2])
    return tuple(part for _, _, part in found[: gate.slices])


def compared(
    split: Sequence[Part], champion: Floats, challenger: Floats, keys: NDArray[np.int64], gate: Gate
) -> tuple[Slice, ...]:
    """The slices with `gate.min_blocks` blocks, in the order of their p-values.

    `champion` and `challenger` are losses, shape (rows,), and `keys` the blocks of the rows. The
    p-value is that of the mean of challenger − champion in the slice being no greater than
    `gate.slice_delta` times the champion's mean loss over all rows, one-sided, t on block means:
    harm counts by what it adds, so that a slice in which the champion hardly ever errs is not a
    veto. Worse is a slice in which it is at most .05 after Holm's correction over all slices.
    """
    if not len(champion):
        return ()
    allowed = gate.slice_delta * math.fsum(champion.tolist()) / len(champion)
    made = [_compare(part, champion, challenger, keys, allowed) for part in split]
    made = [one for one in made if one.blocks >= max(2, gate.min_blocks)]
    fair = holm([one.p_value for one in made])
    judged = [
        replace(one, adjusted_p_value=p, worse=p <= 1 - CONFIDENCE)
        for one, p in zip(made, fair, strict=True)
    ]
    return tuple(sorted(judged, key=lambda one: one.p_value))


def _compare(
    part: Part, champion: Floats, challenger: Floats, keys: NDArray[np.int64], allowed: float
) -> Slice:
    old, new, own = champion[part.rows], challenger[part.rows], keys[part.rows]
    tested = BlockMean.of(new - old - allowed, own)
    means = [math.fsum(values.tolist()) / len(values) for values in (old, new)]
    return Slice(
        column=shown(part.column),
        level=shown(part.level),
        rows=tested.rows,
        blocks=tested.blocks,
        champion=means[0],
        challenger=means[1],
        p_value=tested.p_greater(),
        adjusted_p_value=1.0,
        worse=False,
    )


def _levels(column: pa.ChunkedArray, feature: Feature) -> Iterator[Part]:
    counts = pc.value_counts(column.drop_null()).to_pylist()
    ranked = sorted(counts, key=lambda each: (-each["counts"], str(each["values"])))
    for level in [each["values"] for each in ranked[:LEVELS]]:
        flags = pc.fill_null(pc.equal(column, level), False)
        name = str(level).lower() if feature.kind == "boolean" else str(level)
        yield Part(feature.name, name, flags.to_numpy())


def _ranges(column: pa.ChunkedArray, feature: Feature) -> Iterator[Part]:
    values = column.cast(pa.float64()).fill_null(math.nan).to_numpy()
    known = values[np.isfinite(values)]
    if not len(known):
        return
    shares = np.linspace(0, 1, BINS + 1)[1:-1]
    inner = np.unique(np.quantile(known, shares, method="inverted_cdf"))
    for low, high in pairwise([-math.inf, *inner.tolist(), math.inf]):
        name = f"{low:.4g} to {high:.4g}"
        if low == -math.inf or high == math.inf:
            name = f"up to {high:.4g}" if low == -math.inf else f"over {low:.4g}"
        yield Part(feature.name, name, (values > low) & (values <= high))
