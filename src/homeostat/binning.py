"""Counts one batch of rows: which cell each value falls into, and how many fell into each.

Takes the columns that a schema, or features without a target, say how to count, and record batches.
Gives, for each batch, one line of integers for each block of event time in it; all else about
profiles is a sum of such lines.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from homeostat.bins import Bins
from homeostat.errors import SchemaError
from homeostat.records import EPOCH, MICROSECOND
from homeostat.schema import TIMESTAMP, Feature, Schema

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Counts: TypeAlias = NDArray[np.int64]
    Floats: TypeAlias = NDArray[np.floating[Any]]

PREDICTION = "prediction"
"""The model's output as one more column; the name is reserved, so no feature can have it."""

PAIRED = 40
"""Features, the first ones, of which every pair is summed: pairs grow with their square."""

STEPS = 16  # scores lie between minus this and this
EXACT = 1 << 24
"""Up to which floats of 32 bits hold every whole number, so that sums of products stay exact; of 64
bits they hold any that rows can come to. The matrix product of floats is the fast one."""
PROBABILITY_EDGES = tuple(step / 20 for step in range(1, 20))
TIME = "occurred_at"


@dataclass(frozen=True, slots=True)
class Column:
    """How one column is counted.

    Cells of a number are its bins (edge before, edge], the outer ones open, and null; of a
    category its levels, all others together, and null; of a boolean false, true and null. The
    prediction has no null: rows that this model did not score are not counted in it.
    """

    name: str
    kind: Literal["number", "category", "boolean", "prediction"]
    cells: int
    ordered: bool  # the cells before null have a meaningful order
    bins: str  # twelve hex digits of the edges or levels: equal only if the cells mean the same

    @property
    def scores(self) -> Counts:
        """A whole number from −16 to 16 for each cell, shape (cells,): what pairs are summed by.

        Numbers and booleans: evenly spaced in the order of the cells. Categories: −16 and 16 in
        turn, since levels have no order. Null is 0.
        """
        held = self.cells - 1
        places = np.arange(held)
        if self.kind == "category":
            values = np.where(places % 2 == 0, -STEPS, STEPS)
        else:
            values = np.rint(STEPS * (2 * places - (held - 1)) / max(held - 1, 1))
        return np.append(values, 0).astype(np.int64)


@dataclass(frozen=True)
class Plan:
    """How rows are counted: the columns in their order, the time, and the length of a block."""

    features: tuple[tuple[Feature, Column], ...]
    time: str | None  # the column of event time; None: all rows lie in block 0
    step: int  # microseconds of a block

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        return tuple(column for _, column in self.features)

    @cached_property
    def sources(self) -> dict[str, pa.DataType]:
        """The columns that are read, where there are any of the name, and the type they need."""
        wanted = {} if self.time is None else {self.time: TIMESTAMP}
        for feature, column in self.features:
            source = _source(feature, column)
            if source is not None:
                wanted[source] = feature.arrow
        return wanted

    @cached_property
    def places(self) -> tuple[slice, ...]:
        """Where the cells of each column stand in a line of counts; before them the rows."""
        ends = np.cumsum([1, *(column.cells for column in self.columns)]).tolist()
        return tuple(slice(*bounds) for bounds in pairwise(ends))

    @cached_property
    def paired(self) -> dict[str, Counts]:
        """The scores of the cells of each feature of which pairs are summed, by its name."""
        features = [column for column in self.columns if column.kind != "prediction"]
        return {column.name: column.scores for column in features[:PAIRED]}

    @cached_property
    def products(self) -> slice:
        """Where the sums of pairs stand in a line, behind all counts: i < j, row by row."""
        start, number = 1 + sum(column.cells for column in self.columns), len(self.paired)
        return slice(start, start + number * (number - 1) // 2)

    @property
    def width(self) -> int:
        return int(self.products.stop)

    def count(self, rows: pa.RecordBatch) -> tuple[Counts, Counts]:
        """The numbers of the blocks, ascending, and their lines, shape (blocks, width).

        Raises SchemaError, naming the column, for one that has not the schema's type.
        """
        blocks, place = self._blocks(rows)
        lines = np.empty((len(blocks), self.width), dtype=np.int64)
        if place is None:
            lines[:, 0] = rows.num_rows
        else:
            lines[:, 0] = np.bincount(place, minlength=len(blocks))
        kind = np.float32 if rows.num_rows * STEPS**2 <= EXACT else np.float64
        scores = np.empty((len(self.paired), rows.num_rows), dtype=kind)
        pairs = 0
        for (feature, column), at in zip(self.features, self.places, strict=True):
            cells = _cells(rows, feature, column)
            lines[:, at] = _tally(cells, place, len(blocks), column.cells)
            if column.kind == "prediction":
                lines[:, at.stop - 1] = 0
            elif column.name in self.paired:
                self.paired[column.name].astype(kind).take(cells, out=scores[pairs])
                pairs += 1
        lines[:, self.products] = _products(scores, place, len(blocks))
        return blocks, lines

    def _blocks(self, rows: pa.RecordBatch) -> tuple[Counts, Counts | None]:
        """The numbers of the blocks, and for each row which one it is in; None: there is one."""
        if self.time is None:
            return np.zeros(min(rows.num_rows, 1), dtype=np.int64), None
        numbers = moments(rows, self.time) // self.step
        if len(numbers) and numbers.min() == numbers.max():
            return numbers[:1].astype(np.int64), None
        blocks, place = np.unique(numbers, return_inverse=True)
        return blocks.astype(np.int64), place.astype(np.int64)


def plan(
    edges: Schema | Sequence[Feature],
    block: timedelta,
    time: str | None = TIME,
    output_edges: Sequence[float] = (),
) -> Plan:
    """How rows are counted; without a target no prediction is. Raises SchemaError."""
    step = block // MICROSECOND
    if step <= 0:
        raise SchemaError(f"a block must have a length above zero, not {block}.")
    whole = edges if isinstance(edges, Schema) else tuple(edges)
    return Plan(_counted(whole, tuple(map(float, output_edges))), time, step)


@lru_cache(maxsize=16)
def _counted(
    edges: Schema | tuple[Feature, ...], output_edges: tuple[float, ...]
) -> tuple[tuple[Feature, Column], ...]:
    """Each feature with the way it is counted, and at the end the prediction likewise."""
    features = edges.features if isinstance(edges, Schema) else edges
    pairs = tuple((feature, _column(feature, feature.kind)) for feature in features)
    if not isinstance(edges, Schema):
        return pairs
    output = {
        "binary": Feature(PREDICTION, "number", edges=PROBABILITY_EDGES),
        "multiclass": Feature(PREDICTION, "category", levels=edges.target.classes),
        "regression": Feature(PREDICTION, "number", edges=output_edges),
    }[edges.target.task]
    return (*pairs, (output, _column(output, "prediction")))


def _column(
    feature: Feature, kind: Literal["number", "category", "boolean", "prediction"]
) -> Column:
    cells = {
        "number": len(feature.edges) + 2,
        "category": len(feature.levels) + 2,
        "boolean": 3,
    }[feature.kind]
    bins = json.dumps([feature.kind, feature.edges, feature.levels])
    digest = hashlib.sha256(bins.encode()).hexdigest()[:12]
    return Column(feature.name, kind, cells, feature.kind == "number", digest)


def _source(feature: Feature, column: Column) -> str | None:
    """The column that holds the values; None for an output without bins."""
    if column.kind != "prediction" or feature.kind == "category":
        return feature.name
    if feature.edges == PROBABILITY_EDGES:
        return "probability"
    return PREDICTION if feature.edges else None


def micro(moment: datetime) -> int:
    """Microseconds since 1970, as `moments` counts."""
    return (moment - EPOCH) // MICROSECOND


def moments(rows: pa.Table | pa.RecordBatch, time: str = TIME) -> Counts:
    """The event time of each row, microseconds since 1970, shape (rows,).

    Text is read as RFC 3339, each value in its own zone. Raises SchemaError where the column is
    missing, holds null, or times without a zone.
    """
    times = _named(rows, time)
    if times is None or times.null_count:
        raise SchemaError(f"rows without a time ({time}) cannot be profiled.")
    text = pa.types.is_string(times.type) or pa.types.is_large_string(times.type)
    if not text and (not pa.types.is_timestamp(times.type) or times.type.tz is None):
        raise SchemaError(
            f"{time} holds {times.type}, not times with a zone.",
            hint="Give them one, UTC for example.",
        )
    try:
        # What is finer than a microsecond is cut off.
        times = times.cast(TIMESTAMP, safe=False)
    except pa.ArrowException:  # whose text may hold a value
        raise SchemaError(
            f"{time} holds text that is no time with a zone.",
            hint="Write times as 2024-05-01T12:00:00Z.",
        ) from None
    if isinstance(times, pa.ChunkedArray):
        times = times.combine_chunks()
    return _plain(times.cast(pa.int64()))


def _named(rows: pa.Table | pa.RecordBatch, name: str) -> Any:
    found = rows.schema.get_all_field_indices(name)
    if len(found) > 1:
        raise SchemaError(f"the rows have {len(found)} columns of the name {name!r}.")
    return rows.column(found[0]) if found else None


def cells(rows: pa.RecordBatch, feature: Feature) -> Counts:
    """The cell of each row in one feature, as `Column` orders them, shape (rows,).

    Raises SchemaError where the column has not the feature's type.
    """
    return _cells(rows, feature, _column(feature, feature.kind))


def _cells(rows: pa.RecordBatch, feature: Feature, column: Column) -> Counts:
    """The cell of each row, shape (rows,); the last one where there is no value."""
    null, source = column.cells - 1, _source(feature, column)
    values = None if source is None else _named(rows, source)
    if source is None or values is None or pa.types.is_null(values.type):
        return np.full(rows.num_rows, null, dtype=np.int64)
    if feature.kind == "category":
        return _levels(values, feature.levels, null, source)
    if feature.kind == "boolean":
        flags = _cast(_without_nan(values), source, pa.bool_())
        return _plain(flags.cast(pa.int64()), null)
    numbers = _plain(_cast(values, source, pa.float64()), np.nan)
    found = _bins(feature.edges).find(numbers)
    missing = np.isnan(numbers)
    if missing.any():
        found[missing] = null
    return found


@lru_cache(maxsize=1024)
def _bins(edges: tuple[float, ...]) -> Bins:
    return Bins(edges)


def _levels(values: pa.Array, levels: tuple[str, ...], null: int, name: str) -> Counts:
    """Levels of text; of a dictionary only its entries are compared with them."""
    if not pa.types.is_dictionary(values.type):
        return _level(_cast(_without_nan(values), name, pa.string()), levels, null)
    entries = _cast(_without_nan(values.dictionary), name, pa.string())
    cells = np.append(_level(entries, levels, null), null)
    found: Counts = cells.take(_plain(values.indices.cast(pa.int64()), len(entries)))
    return found


def _level(values: pa.Array, levels: tuple[str, ...], null: int) -> Counts:
    found = pc.index_in(values, value_set=_text(levels), skip_nulls=True).cast(pa.int64())
    codes = _plain(found, len(levels))
    if values.null_count:
        codes = np.where(_nulls(values), null, codes)
    return codes


@lru_cache(maxsize=1024)
def _text(values: tuple[str, ...]) -> pa.Array:
    # `pa.array` would import pandas, which takes as long as a hundred thousand rows.
    parts = [value.encode() for value in values]
    ends = np.cumsum([0, *map(len, parts)]).astype(np.int32)
    buffers = pa.py_buffer(ends), pa.py_buffer(b"".join(parts))
    return pa.StringArray.from_buffers(len(parts), *buffers)


def _plain(values: pa.Array, null: float = 0) -> NDArray[Any]:
    """The values of int64 or float64 where they lie, or with `null` for each null.

    Neither `to_numpy` nor `fill_null` would do without pandas.
    """
    kind = np.int64 if values.type == pa.int64() else np.float64
    if not len(values):
        return np.empty(0, dtype=kind)
    start = values.offset
    plain = np.frombuffer(values.buffers()[1], dtype=kind)[start : start + len(values)]
    return np.where(_nulls(values), kind(null), plain) if values.null_count else plain


def _nulls(values: pa.Array) -> NDArray[np.bool_]:
    found = values.is_null()
    bits = np.frombuffer(found.buffers()[1], dtype=np.uint8)
    end = found.offset + len(found)
    return np.unpackbits(bits, count=end, bitorder="little")[found.offset :].view(np.bool_)


def _without_nan(values: pa.Array) -> pa.Array:
    """NaN is how a frame says null."""
    if not pa.types.is_floating(values.type):
        return values
    return pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)


def _cast(values: pa.Array, name: str, kind: pa.DataType) -> pa.Array:
    if values.type == kind:
        return values
    try:
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        # A whole number beyond 2^53 is rounded; text that is no number is an error all the same.
        return values.cast(kind, safe=False)
    except pa.ArrowException:  # whose text may hold a value
        raise SchemaError(f"the column {name!r} holds {values.type}, not {kind}.") from None


def _tally(cells: Counts, place: Counts | None, blocks: int, width: int) -> Counts:
    if place is not None:
        cells = place * width + cells
    return np.bincount(cells, minlength=blocks * width).reshape(blocks, width)


def _products(scores: Floats, place: Counts | None, blocks: int) -> Counts:
    """Σ s_i·s_j over the rows of each block, for each pair i < j, shape (blocks, pairs); scores of
    each feature and row, shape (features, rows).
    """
    above = np.triu_indices(len(scores), 1)
    sums = np.zeros((blocks, len(above[0])), dtype=np.int64)
    if not len(above[0]) or not blocks:
        return sums
    if place is None:
        sums[0] = (scores @ scores.T)[above]
        return sums
    if (place[1:] < place[:-1]).any():
        order = np.argsort(place, kind="stable")
        scores, place = scores[:, order], place[order]
    ends = np.searchsorted(place, np.arange(blocks + 1))
    for number in range(blocks):
        rows = scores[:, ends[number] : ends[number + 1]]
        sums[number] = (rows @ rows.T)[above]
    return sums
