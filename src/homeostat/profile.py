"""Profiles: what the drift tests and the quality checks know of rows, as integer counts.

Takes rows and the schema that holds their bins. Gives, per block of event time and per column, how
many rows fell into each cell, and per pair of features a sum that tells how they go together;
profiles of the same bins add up to the same bits in whatever order and partition their rows came,
so a window or a reference is a sum of blocks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from homeostat.errors import SchemaError
from homeostat.records import Window
from homeostat.schema import TIMESTAMP, Feature, Schema

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Counts: TypeAlias = NDArray[np.int64]

FORMAT = 2
READ = (1, FORMAT)  # format 1 has no products
PRODUCTS = "products of scores"
PAIRED = 40
"""Features, the first ones, of which every pair is summed: pairs grow with their square."""

STEPS = 16  # scores lie between minus this and this
PREDICTION = "prediction"
"""The model's output as one more column; the name is reserved, so no feature can have it."""

PROBABILITY_EDGES = tuple(step / 20 for step in range(1, 20))
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


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


_NO_PAIRS = np.zeros((0, 0), dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Profile:
    """Counts of rows by block and cell; immutable, and summed with `+`.

    `blocks` are block numbers since 1970, ascending, shape (blocks,); `sizes` the rows of each,
    shape (blocks,); `counts` one array of shape (blocks, cells) for each of `columns`; `products`
    the sums over rows of s_i·s_j for each pair i < j of the first forty features, where s is the
    `Column.scores` of the row's cell, shape (blocks, pairs). A profile of format 1 has no pairs.
    """

    block: timedelta
    columns: tuple[Column, ...]
    blocks: Counts
    sizes: Counts
    counts: tuple[Counts, ...]
    output_edges: tuple[float, ...] = ()  # bins of a regression's prediction; empty: not counted
    products: Counts = field(default_factory=lambda: _NO_PAIRS)

    def __post_init__(self) -> None:
        if not self.products.shape[1]:
            object.__setattr__(self, "products", np.zeros((len(self.blocks), 0), dtype=np.int64))
        for array in self._arrays:
            array.setflags(write=False)

    @classmethod
    def of(
        cls,
        rows: pa.Table,
        schema: Schema,
        *,
        block: timedelta,
        output_edges: Sequence[float] = (),
    ) -> Profile:
        """Count `rows`, a table with `occurred_at` and the schema's features.

        An absent feature counts as null throughout. Where the rows hold predictions, these are
        counted too: a binary one in twenty bins of probability, a multiclass one by class, a
        regression's between `output_edges`, or not at all without them. `block` is the length of
        a block. Raises SchemaError, naming the column, when one has not the schema's type.
        """
        step = block // MICROSECOND
        if step <= 0:
            raise SchemaError(f"a block must have a length above zero, not {block}.")
        blocks, place = np.unique(moments(rows) // step, return_inverse=True)
        edges = tuple(map(float, output_edges))
        features = _counted(schema, edges)
        cells = [_cells(rows, feature, column) for feature, column in features]
        paired = zip(features[:-1][:PAIRED], cells, strict=False)
        scores = [column.scores[cell] for (_, column), cell in paired]
        return cls(
            block,
            tuple(column for _, column in features),
            blocks.astype(np.int64),
            np.bincount(place, minlength=len(blocks)).astype(np.int64),
            tuple(
                _tally(place, cell, len(blocks), column.cells)
                for (_, column), cell in zip(features, cells, strict=True)
            ),
            edges,
            _products(scores, place, len(blocks)),
        )

    @property
    def rows(self) -> int:
        return int(self.sizes.sum())

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    def column(self, name: str) -> tuple[Column, Counts]:
        """A column and its counts, shape (blocks, cells); KeyError where there is none."""
        for column, counts in zip(self.columns, self.counts, strict=True):
            if column.name == name:
                return column, counts
        raise KeyError(name)

    def only(self, names: Sequence[str]) -> Profile:
        """The columns of these names, in their order here; KeyError where there is none."""
        places = {name: place for place, name in enumerate(self.names)}
        kept = sorted(places[name] for name in names)
        paired = min(PAIRED, sum(column.kind != "prediction" for column in self.columns))
        products = self.products
        if products.shape[1]:
            left, right = np.triu_indices(paired, 1)
            products = products[:, np.isin(left, kept) & np.isin(right, kept)]
        return replace(
            self,
            columns=tuple(self.columns[place] for place in kept),
            counts=tuple(self.counts[place] for place in kept),
            products=products,
        )

    def select(self, window: Window) -> Profile:
        """The blocks that begin within `window`, so that adjacent windows share none."""
        starts = self.blocks * (self.block // MICROSECOND)
        first, last = ((t - EPOCH) // MICROSECOND for t in (window.start, window.end))
        return self.take((starts >= first) & (starts < last))

    def __add__(self, other: Profile) -> Profile:
        """All rows of both. Raises SchemaError when their bins or blocks differ."""
        if not isinstance(other, Profile):
            return NotImplemented
        if self._layout != other._layout:
            raise SchemaError(
                "profiles with different columns, bins or blocks cannot be added.",
                hint="Profile both with the same schema and monitor.block.",
            )
        blocks = np.union1d(self.blocks, other.blocks)
        mine, theirs = (np.searchsorted(blocks, profile.blocks) for profile in (self, other))

        def merged(left: Counts, right: Counts) -> Counts:
            total = np.zeros((len(blocks), *left.shape[1:]), dtype=np.int64)
            total[mine] += left
            total[theirs] += right
            return total

        pairs = zip(self.counts, other.counts, strict=True)
        return replace(
            self,
            blocks=blocks,
            sizes=merged(self.sizes, other.sizes),
            counts=tuple(merged(left, right) for left, right in pairs),
            products=merged(self.products, other.products),
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Profile):
            return NotImplemented
        return self._layout == other._layout and all(
            np.array_equal(left, right)
            for left, right in zip(self._arrays, other._arrays, strict=True)
        )

    __hash__ = None  # type: ignore[assignment]  # as any value that holds arrays

    def to_bytes(self) -> bytes:
        """A compressed Arrow IPC stream: `block`, `rows`, a list of counts per column, products."""
        lists = [
            pa.FixedSizeListArray.from_arrays(pa.array(counts.ravel()), counts.shape[1])
            for counts in (*self.counts, *([self.products] if self.products.shape[1] else []))
        ]
        header = {
            "format": FORMAT,
            "block": self.block // MICROSECOND,
            "columns": [astuple(column) for column in self.columns],
            "output_edges": self.output_edges,
        }
        arrays = [pa.array(self.blocks), pa.array(self.sizes), *lists]
        products = [PRODUCTS] if self.products.shape[1] else []
        names = ["block", "rows", *self.names, *products]
        table = pa.Table.from_arrays(arrays, names=names).replace_schema_metadata(
            {"homeostat.profile": json.dumps(header)}
        )
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
            writer.write_table(table)
        return bytes(sink.getvalue().to_pybytes())

    @classmethod
    def from_bytes(cls, content: bytes) -> Profile:
        """The inverse of `to_bytes`; raises SchemaError for anything else."""
        try:
            with pa.ipc.open_stream(content) as reader:
                table = reader.read_all().combine_chunks()
            header = json.loads((table.schema.metadata or {})[b"homeostat.profile"])
        except (pa.ArrowInvalid, KeyError, ValueError) as error:
            raise SchemaError("these bytes are no profile.") from error
        if header.get("format") not in READ:
            raise SchemaError(
                f"the profile has format {header.get('format')!r}; this version reads {READ}.",
                hint="Install the version of homeostat that wrote it, or a newer one.",
            )
        columns = tuple(Column(*fields) for fields in header["columns"])
        blocks, sizes, *lists = (_array(column) for column in table.columns)
        products = _NO_PAIRS
        if len(lists) > len(columns):
            pairs = table.schema.field(-1).type.list_size
            products = lists.pop().reshape(len(blocks), pairs)
        counts = (c.reshape(-1, column.cells) for c, column in zip(lists, columns, strict=True))
        length, edges = header["block"] * MICROSECOND, tuple(header["output_edges"])
        return cls(length, columns, blocks, sizes, tuple(counts), edges, products)

    @property
    def _layout(self) -> tuple[Any, ...]:
        return self.block, self.columns, self.output_edges, self.products.shape[1]

    @property
    def _arrays(self) -> tuple[Counts, ...]:
        return self.blocks, self.sizes, *self.counts, self.products

    def take(self, chosen: NDArray[np.bool_] | Counts) -> Profile:
        """Some of the blocks, by a mask or by their places."""
        return replace(
            self,
            blocks=self.blocks[chosen],
            sizes=self.sizes[chosen],
            counts=tuple(counts[chosen] for counts in self.counts),
            products=self.products[chosen],
        )


def _array(column: pa.ChunkedArray) -> Counts:
    flat = column.combine_chunks()
    if pa.types.is_fixed_size_list(flat.type):
        flat = flat.flatten()
    return np.array(flat.to_numpy(zero_copy_only=False), dtype=np.int64)


@lru_cache(maxsize=16)
def _counted(schema: Schema, output_edges: tuple[float, ...]) -> tuple[tuple[Feature, Column], ...]:
    """Each feature with the way it is counted, and at the end the prediction likewise."""
    pairs = [(feature, _column(feature, feature.kind)) for feature in schema.features]
    task, classes = schema.target.task, schema.target.classes
    output = {
        "binary": Feature(PREDICTION, "number", edges=PROBABILITY_EDGES),
        "multiclass": Feature(PREDICTION, "category", levels=classes),
        "regression": Feature(PREDICTION, "number", edges=output_edges),
    }[task]
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


def moments(rows: pa.Table) -> Counts:
    """The event time of each row, microseconds since 1970, shape (rows,).

    Raises SchemaError where `occurred_at` is missing, null, or without a zone.
    """
    times = rows.column("occurred_at") if "occurred_at" in rows.column_names else None
    if times is None or times.null_count:
        raise SchemaError("rows without a time (occurred_at) cannot be profiled.")
    if not pa.types.is_timestamp(times.type) or times.type.tz is None:
        raise SchemaError(
            f"occurred_at holds {times.type}, not times with a zone.",
            hint="Give them one, UTC for example.",
        )
    # What is finer than a microsecond is cut off.
    return np.asarray(times.cast(TIMESTAMP, safe=False).cast(pa.int64()).to_numpy())


def _cells(rows: pa.Table, feature: Feature, column: Column) -> Counts:
    """The cell of each row, shape (rows,); −1 where the row is not counted in this column."""
    null = column.cells - 1
    if column.kind == "prediction":
        null = -1
        values = _outputs(rows, feature)
    else:
        values = _cast(rows, feature.name, feature.arrow)
    if values is None:
        return np.full(len(rows), null, dtype=np.int64)
    if feature.kind == "category":
        return _levels(values, feature.levels, null)
    numbers = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    edges = np.array([0.5] if feature.kind == "boolean" else feature.edges)
    found = np.searchsorted(edges, numbers, side="left").astype(np.int64)
    return np.where(np.isnan(numbers), null, found)


def _outputs(rows: pa.Table, feature: Feature) -> pa.ChunkedArray | None:
    """The model's output: None where the rows hold none, or where it has no bins."""
    if feature.kind == "category":
        return _cast(rows, "prediction", pa.string())
    if feature.edges == PROBABILITY_EDGES:
        return _cast(rows, "probability", pa.float64())
    return _cast(rows, "prediction", pa.float64()) if feature.edges else None


def _levels(values: pa.ChunkedArray, levels: tuple[str, ...], null: int) -> Counts:
    found = pc.index_in(values, value_set=pa.array(levels, pa.string()), skip_nulls=True)
    codes = pc.fill_null(found, len(levels)).cast(pa.int64()).to_numpy()
    return np.where(values.is_null().to_numpy(), null, codes)


def _cast(rows: pa.Table, name: str, kind: pa.DataType) -> pa.ChunkedArray | None:
    if name not in rows.column_names:
        return None
    column = rows.column(name)
    try:
        return column if column.type == kind else column.cast(kind)
    except pa.ArrowException as error:
        raise SchemaError(f"the column {name!r} holds {column.type}, not {kind}.") from error


def _tally(place: Counts, cell: Counts, blocks: int, cells: int) -> Counts:
    counted = cell >= 0
    flat = np.bincount(place[counted] * cells + cell[counted], minlength=blocks * cells)
    return flat.astype(np.int64).reshape(blocks, cells)


def _products(scores: Sequence[Counts], place: Counts, blocks: int) -> Counts:
    """Σ s_i·s_j over the rows of each block, for each pair i < j, shape (blocks, pairs)."""
    if not scores:
        return np.zeros((blocks, 0), dtype=np.int64)
    order = np.argsort(place, kind="stable")
    # Doubles hold these whole numbers exactly, and their matrix product is the fast one.
    table = np.stack(scores, axis=1).astype(np.float64)[order]
    ends = np.searchsorted(place[order], np.arange(blocks + 1))
    above = np.triu_indices(len(scores), 1)
    sums = np.zeros((blocks, len(above[0])), dtype=np.int64)
    for number in range(blocks):
        rows = table[ends[number] : ends[number + 1]]
        sums[number] = (rows.T @ rows)[above]
    return sums
