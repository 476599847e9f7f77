"""Sums: what the quality checks know of a window's rows beyond the profile's counts.

Takes formed rows piece by piece, in order of event time, and the traits of the reference, whose
ranges values are held against. Gives totals that no division of the rows into pieces changes, and
a sample of the rows for what no total tells.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from homeostat.codes import Repeats, codes
from homeostat.order import ordered
from homeostat.reservoir import Reservoir
from homeostat.schema import Schema
from homeostat.traits import Number, Traits, stuck_after

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]

SAMPLE = 1 << 17
"""Rows that are kept as they are, at least; all of a window that has no more."""


@dataclass(frozen=True, slots=True)
class Values:
    """One number in the window; counts are of rows."""

    low: float  # of all that is not null, infinities too; NaN where everything is null
    high: float
    stuck: int  # finite and equal to the row before
    infinite: int
    outside: int  # finite, beyond the range of the reference
    far: int  # beyond it by more than its whole width


NOTHING = Values(math.nan, math.nan, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Sums:
    """What all rows of a window came to."""

    rows: int
    newest: datetime | None  # when the last row occurred or was recorded
    doubled: int  # rows whose id another one before them has
    repeated: int  # rows that are equal in all features to one before them
    numbers: Mapping[str, Values]
    sample: pa.Table  # of the features

    @classmethod
    def of(
        cls, pieces: Iterable[pa.Table], schema: Schema, usual: Traits | None, *, seed: int = 0
    ) -> Sums:
        """Of rows with `occurred_at` and the features, one piece at least."""
        summing = Summing(schema, usual, sample=SAMPLE, seed=seed)
        for piece in pieces:
            summing.add(piece)
        return summing.sums()


class Summing:
    """Adds piece to piece. `sample` is how many rows are kept, drawn with `seed`."""

    def __init__(self, schema: Schema, usual: Traits | None, *, sample: int, seed: int) -> None:
        self._schema = schema
        self._usual: Mapping[str, Number] = usual.numbers if usual else {}
        self._rows = 0
        self._newest: list[datetime] = []
        self._ids, self._equal = Repeats(), Repeats()
        numbers = [feature.name for feature in schema.features if feature.kind == "number"]
        self._numbers = dict.fromkeys(numbers, NOTHING)
        self._last = dict.fromkeys(numbers, math.nan)
        self._sample = Reservoir(sample, seed)

    def add(self, piece: pa.Table) -> None:
        """The next piece, whose rows come behind those before it; it may be in any order itself."""
        names = [name for name in self._schema.names if name in piece.column_names]
        rows = ordered(piece)
        for name in {"occurred_at", "recorded_at"}.intersection(rows.column_names):
            newest = pc.max(rows.column(name)).as_py()
            self._newest += [newest] if newest else []
        if "prediction_id" in rows.column_names:
            self._ids.add(codes([rows.column("prediction_id")], rows.num_rows))
        self._equal.add(codes((rows.column(name) for name in names), rows.num_rows))
        self._sample.add(rows.select(names))
        for name in self._numbers.keys() & set(names):
            self._add(name, np.asarray(rows.column(name).cast(pa.float64()).to_numpy()))
        self._rows += rows.num_rows

    def sums(self) -> Sums:
        newest = max(self._newest, default=None)
        doubled, repeated = self._ids.count, self._equal.count
        numbers, sample = dict(self._numbers), self._sample.rows
        return Sums(self._rows, newest, doubled, repeated, numbers, sample)

    def _add(self, name: str, values: Floats) -> None:
        known, before = values[~np.isnan(values)], self._numbers[name]
        if not len(values):
            return
        stuck = int(stuck_after(self._last[name], values).sum())
        self._last[name] = float(values[-1])
        outside, far = _outside(known, self._usual.get(name))
        self._numbers[name] = Values(
            float(np.fmin.reduce(known, initial=before.low)),
            float(np.fmax.reduce(known, initial=before.high)),
            before.stuck + stuck,
            before.infinite + int(np.isinf(known).sum()),
            before.outside + outside,
            before.far + far,
        )


def _outside(known: Floats, usual: Number | None) -> tuple[int, int]:
    """Finite values beyond the range of the reference, and those beyond it by its width again."""
    if usual is None or usual.low is None or usual.high is None:
        return 0, 0
    low, high = usual.low, usual.high
    width = high - low
    # What is not finite is counted as such, and once is enough.
    outside = np.isfinite(known) & ((known < low) | (known > high))
    # What never varied has no width to measure by.
    far = outside & ((known < low - width) | (known > high + width)) & (width > 0)
    return int(outside.sum()), int(far.sum())
