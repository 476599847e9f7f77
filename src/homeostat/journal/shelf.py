"""What one process has read of a file of the tail: few rows in memory, many on the disk.

It takes stretches of records, as a `tail.Consumer`, and parses them when `settle` is called, which
needs no lock. It gives the rows of one moment in pieces of bounded size; rows that would take too
much memory lie in a file without a name, which goes with the last that reads from it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from homeostat.journal import join, lines
from homeostat.journal.disk import failed
from homeostat.journal.join import Key
from homeostat.journal.lines import Places
from homeostat.journal.snapshot import SLICE
from homeostat.order import ordered

LOOSE = 64 << 20  # bytes of rows that are kept in memory


class _Spool:
    """A file without a name, to which pieces are written once and read any number of times."""

    def __init__(self, folder: Path) -> None:
        try:
            self._file, name = tempfile.mkstemp(prefix=".read-", dir=folder)
        except OSError:  # who may only read the journal
            self._file, name = tempfile.mkstemp(prefix="homeostat-")
        os.unlink(name)  # noqa: PTH108 - a descriptor's file, no path of ours
        self._end = 0

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def put(self, rows: pa.Table) -> Callable[[], pa.Table]:
        """Store rows; what is returned reads them."""
        data = rows.combine_chunks().to_batches()[0].serialize()
        place, size, schema = self._end, data.size, rows.schema
        rest, self._end = memoryview(data), place + size
        while rest:
            rest = rest[os.pwrite(self._file, rest, self._end - len(rest)) :]

        def read() -> pa.Table:
            held = pa.py_buffer(os.pread(self._file, size, place))
            return pa.Table.from_batches([pa.ipc.read_record_batch(held, schema)])

        return read


@dataclass(frozen=True, slots=True)
class Piece:
    """Some rows; of a shelf that is sorted they are in order of event time and then id."""

    read: Callable[[], pa.Table]
    rows: int
    top: int  # the largest offset of a record
    first: Key | None  # where its first row is in the order; None where there is no order
    last: Key | None


@dataclass(frozen=True, slots=True)
class Shelved:
    """What a shelf held at one moment."""

    schema: pa.Schema  # the last column is the offset of a row's record
    held: tuple[Piece, ...] = ()
    bound: int = 0  # records before it were cut off since

    def pieces(self, low: Key | None = None, high: Key | None = None) -> Iterator[pa.Table]:
        """The rows piece by piece, of a sorted shelf only those in bounds."""
        for piece in self.held:
            if piece.first is None or piece.last is None:
                yield self._left(piece)
            elif (low is None or piece.last >= low) and (high is None or piece.first < high):
                yield join.between(self._left(piece), low, high)

    def having(self, ids: pa.Array | pa.ChunkedArray, names: Sequence[str]) -> pa.Table:
        """Those columns of the rows that have one of these ids."""
        found = [join.having(rows.select(names), ids) for rows in self.pieces()]
        return pa.concat_tables([self.schema.empty_table().select(names), *found])

    @property
    def columns(self) -> pa.Schema:
        """The columns of the file."""
        return pa.schema(list(self.schema)[:-1])

    def grains(self) -> Iterator[tuple[Key, int]]:
        """See `Snapshot.grains`."""
        return ((piece.first, piece.rows) for piece in self.held if piece.first is not None)

    def _left(self, piece: Piece) -> pa.Table:
        rows = piece.read()
        if self.bound:
            rows = rows.filter(pc.greater_equal(rows.columns[-1], self.bound))
        return rows


class Shelf:
    """Keeps the rows of one file of the tail. `folder` is where much of it may be put.

    With `ordered` rows are kept by event time and id, else as they came.
    """

    def __init__(self, schema: pa.Schema, folder: Path, *, ordered: bool) -> None:
        self._schema = schema
        name = "offset"
        while name in schema.names:
            name += "_"
        self._columns = schema.append(pa.field(name, pa.int64()))
        self._folder = folder
        self._ordered = ordered
        self.clear()

    def clear(self) -> None:
        self._raw: list[tuple[bytes, Places, int]] = []
        self._loose: list[pa.Table] = []
        self._stored: list[Piece] = []
        self._spool: _Spool | None = None
        self._bound = 0

    def add(self, data: bytes, ends: Places, offset: int) -> None:
        self._raw.append((data, ends, offset))

    def drop(self, bound: int) -> bool:
        self._bound = bound
        self._stored = [piece for piece in self._stored if piece.top >= bound]
        self._loose = [
            part.filter(pc.greater_equal(part.columns[-1], bound)) for part in self._loose
        ]
        return True

    def settle(self) -> None:
        """Parse what was added. Raises pa.ArrowInvalid for what are no records."""
        raw, self._raw = self._raw, []
        self._loose += [self._parsed(*one) for one in raw]
        if sum(part.nbytes for part in self._loose) > LOOSE:
            self._store(self._merged())
            self._loose = []

    def shelved(self) -> Shelved:
        """The rows of this moment; what comes later changes nothing of it."""
        if self._loose:
            self._loose = [self._merged()]
        parts = [part for rows in self._loose for part in self._parts(rows)]
        loose = [self._piece(part, partial(_itself, part)) for part in parts]
        return Shelved(self._columns, (*self._stored, *loose), self._bound)

    def _merged(self) -> pa.Table:
        rows = pa.concat_tables(self._loose)
        return (ordered(rows) if self._ordered else rows).combine_chunks()

    def _parsed(self, data: bytes, ends: Places, offset: int) -> pa.Table:
        rows = lines.decode(data, self._schema)
        if rows.num_rows != len(ends):
            raise pa.ArrowInvalid("records and rows are not the same")
        starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]]) + offset
        return rows.append_column(self._columns.field(-1), pa.array(starts))

    def _store(self, rows: pa.Table) -> None:
        try:
            spool = self._spool = self._spool or _Spool(self._folder)
            self._stored += [self._piece(part, spool.put(part)) for part in self._parts(rows)]
        except OSError as error:
            raise failed("write what was read to", self._folder, error) from error

    def _piece(self, rows: pa.Table, read: Callable[[], pa.Table]) -> Piece:
        ends = (0, rows.num_rows - 1) if self._ordered else ()
        first, last = (join.key_at(rows, place) for place in ends) if ends else (None, None)
        return Piece(read, rows.num_rows, pc.max(rows.columns[-1]).as_py(), first, last)

    def _parts(self, rows: pa.Table) -> list[pa.Table]:
        # What is in no order is gone through as a whole, however it is divided.
        step = SLICE // 8 if self._ordered else SLICE
        return [rows.slice(start, step) for start in range(0, rows.num_rows, step)]


def _itself(rows: pa.Table) -> pa.Table:
    return rows
