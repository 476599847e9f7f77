"""Profiles: what the drift tests and the quality checks know of rows, as integer counts.

Takes rows and the schema that holds their bins. Gives, per block of event time and per column, how
many rows fell into each cell, and per pair of features a sum that tells how they go together;
profiles of the same bins add up to the same bits in whatever order and partition their rows came,
so a window or a reference is a sum of blocks.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass, field, replace
from datetime import timedelta
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa

from homeostat.binning import (
    PAIRED,
    PREDICTION,
    TIME,
    Column,
    Plan,
    micro,
    moments,
    plan,
)
from homeostat.errors import SchemaError, other_format
from homeostat.records import MICROSECOND, Window
from homeostat.rowstream import batches
from homeostat.schema import Feature, Schema

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Counts: TypeAlias = NDArray[np.int64]

__all__ = [
    "PAIRED",
    "PREDICTION",
    "PRODUCTS",
    "Column",
    "Profile",
    "moments",
]

FORMAT = 2
READ = (1, FORMAT)  # format 1 has no products
PRODUCTS = "products of scores"
DAY = timedelta(days=1)

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
        data: Any,
        edges: Schema | Sequence[Feature],
        *,
        block: timedelta = DAY,
        time: str | None = TIME,
        output_edges: Sequence[float] = (),
        workers: int | None = None,
    ) -> Profile:
        """Count the rows of `data`, which has the features and the event time in the column `time`.

        `data` is an Arrow table, batch or reader, a pandas or Polars frame, the path of a Parquet
        or CSV file, or any number of these one behind the other; it is read once, in memory that
        does not grow with it. `edges` holds the bins: a schema, or features without a target.
        `block` is the length of a block; without `time` all rows lie in block 0. An absent feature
        counts as null throughout, NaN is null, infinities fall into the outer bins, whole numbers
        beyond 2^53 are rounded, and text is read as a number where the feature is one.

        With a schema, predictions in the rows are counted too: a binary one in twenty bins of
        probability, a multiclass one by class, a regression's between `output_edges`, or not at
        all without them. `workers` threads count, by default one for each core; neither their
        number nor the order or partition of the rows changes a bit of the answer.

        Raises SchemaError, naming the column, for one that has not the schema's type, and for
        times that are missing or have no zone; HomeostatError for a file that cannot be read.
        """
        how = plan(edges, block, time, output_edges)
        sums = _Sums(how)
        for blocks, lines in _counted(batches(data, how.sources), how, workers or _cores()):
            sums.add(blocks, lines)
        return sums.profile(block, tuple(map(float, output_edges)))

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
        first, last = micro(window.start), micro(window.end)
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
            pa.FixedSizeListArray.from_arrays(_arrow(counts), counts.shape[1])
            for counts in (*self.counts, *([self.products] if self.products.shape[1] else []))
        ]
        header = {
            "format": FORMAT,
            "block": self.block // MICROSECOND,
            "columns": [astuple(column) for column in self.columns],
            "output_edges": self.output_edges,
        }
        arrays = [_arrow(self.blocks), _arrow(self.sizes), *lists]
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
            if header["format"] in READ:
                return cls._read(header, table)
        except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise SchemaError("these bytes are no profile.") from error
        raise other_format(SchemaError, "the profile", header["format"], *READ)

    @classmethod
    def _read(cls, header: dict[str, Any], table: pa.Table) -> Profile:
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


def _arrow(counts: Counts) -> pa.Array:
    # `pa.array` would import pandas, which takes as long as two hundred thousand rows.
    flat = np.ascontiguousarray(counts).ravel()
    return pa.Array.from_buffers(pa.int64(), len(flat), [None, pa.py_buffer(flat)])


class _Sums:
    """Lines of counts by block, as they come."""

    def __init__(self, how: Plan) -> None:
        self._plan = how
        self._lines: dict[int, Counts] = {}

    def add(self, blocks: Counts, lines: Counts) -> None:
        for block, line in zip(blocks.tolist(), lines, strict=True):
            known = self._lines.get(block)
            if known is None:
                self._lines[block] = line.copy()
            else:
                known += line

    def profile(self, block: timedelta, output_edges: tuple[float, ...]) -> Profile:
        blocks = sorted(self._lines)
        whole = np.zeros((len(blocks), self._plan.width), dtype=np.int64)
        for place, number in enumerate(blocks):
            whole[place] = self._lines[number]
        counts = tuple(np.ascontiguousarray(whole[:, at]) for at in self._plan.places)
        numbers = np.array(blocks, dtype=np.int64)
        return Profile(
            block,
            self._plan.columns,
            numbers,
            whole[:, 0].copy(),
            counts,
            output_edges,
            np.ascontiguousarray(whole[:, self._plan.products]),
        )


def _counted(
    rows: Iterable[pa.RecordBatch], how: Plan, workers: int
) -> Iterator[tuple[Counts, Counts]]:
    """The counts of each batch. NumPy and Arrow let other threads run while they count, so that
    one batch is read while others are counted; there are never more than a few of them.
    """
    source = iter(rows)
    first = list(islice(source, 2))
    if workers == 1 or len(first) < 2:
        for batch in chain(first, source):
            yield how.count(batch)
        return
    waiting: deque[Future[tuple[Counts, Counts]]] = deque()
    with ThreadPoolExecutor(workers) as threads:
        try:
            for batch in chain(first, source):
                waiting.append(threads.submit(how.count, batch))
                if len(waiting) > workers + 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for left in waiting:
                left.cancel()


def _cores() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
