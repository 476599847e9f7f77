"""The front of a file of the tail: read to be moved elsewhere, and then cut off.

It takes a file that is followed, its lock, and a time before which rows are wanted. It gives
portions that name the bytes they were read from, so that the same bytes are cut off once, however
often it is tried, and no row that arrives meanwhile is lost.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from homeostat.errors import JournalError
from homeostat.journal import lines
from homeostat.journal.disk import Disk, Opened, failed, put
from homeostat.journal.lines import Places
from homeostat.journal.tail import Portion, Tail
from homeostat.records import utc
from homeostat.schema import TIMESTAMP

_PIECE = 1 << 22  # bytes read or copied at a time
LIMIT = 200_000  # rows


@dataclass(frozen=True, slots=True)
class Stretch:
    """The whole records of an open file at one time: what was there stays, so no lock is needed."""

    opened: Opened
    path: Path
    start: int  # place of the first record
    end: int
    schema: pa.Schema

    @classmethod
    def of(cls, tail: Tail) -> Stretch:
        """To be called under the lock, when the tail was followed."""
        return cls(tail.file, tail.path, tail.place(tail.start), tail.place(tail.end), tail.schema)

    def portion(
        self, fingerprint: str, before: datetime, now: datetime, limit: int
    ) -> Portion | None:
        """The longest start of whole records, `limit` at most, that were recorded `before`.

        Records from beyond `now`, of a clock that was wrong, go with those behind them.
        """
        pieces, seen, rows = [], 0, 0
        for data, ends, table in self._pieces():
            aged, over = _aged(table, before, now)
            rows = min(seen + aged, limit) if aged else rows
            if seen < limit:
                pieces.append((data, ends, table))
            seen += table.num_rows
            if over or rows == limit:
                break
        return self._taken(fingerprint, pieces, rows) if rows else None

    def _taken(
        self, fingerprint: str, pieces: Sequence[tuple[bytes, Places, pa.Table]], rows: int
    ) -> Portion:
        """The first `rows` rows of these pieces."""
        digest, length, tables = blake2b(digest_size=32), 0, []
        for data, ends, table in pieces:
            count = min(table.num_rows, rows)
            if count:
                size = int(ends[count - 1])
                digest.update(data[:size])
                tables.append(table.slice(0, count))
                length, rows = length + size, rows - count
        return Portion(fingerprint, length, digest.hexdigest(), pa.concat_tables(tables))

    @property
    def size(self) -> int:
        """Bytes of its records."""
        return self.end - self.start

    def has(self, ids: pa.Array) -> bool:
        """Whether a record has one of these ids."""
        return any(pc.any(found).as_py() for _, _, found in self._looked(ids))

    def without(self, ids: pa.Array) -> Iterator[bytes]:
        """The records that have none of these ids, as they stand."""
        for data, ends, found in self._looked(ids):
            starts = [0, *ends[:-1].tolist()]
            rows = zip(starts, ends.tolist(), found.to_pylist(), strict=True)
            yield b"".join(data[start:end] for start, end, gone in rows if not gone)

    def _looked(self, ids: pa.Array) -> Iterator[tuple[bytes, Places, pa.ChunkedArray]]:
        """Records, where each one ends, and whether it has one of these ids."""
        for data, ends, table in self._pieces():
            yield data, ends, pc.is_in(table.column("prediction_id"), value_set=ids)

    def _pieces(self) -> Iterator[tuple[bytes, Places, pa.Table]]:
        """All records piece by piece, where each one ends, and their rows."""
        place = self.start
        while place < self.end:
            data = self._records(place)
            ends = lines.ends(data)
            try:
                table = lines.decode(data, self.schema)
            except pa.ArrowInvalid:
                raise self._misfit() from None
            if table.num_rows != len(ends):
                raise self._misfit()
            yield data, ends, table
            place += len(data)

    def begins_with(self, portion: Portion) -> bool:
        if self.end - self.start < portion.length:
            return False
        digest, place = blake2b(digest_size=32), self.start
        while place < self.start + portion.length:
            data = self._read(place, min(_PIECE, self.start + portion.length - place))
            digest.update(data)
            place += len(data)
        return digest.hexdigest() == portion.digest

    def copy(self, start: int, file: int) -> None:
        """Write what stands from `start` on to another open file. Raises OSError."""
        while start < self.end:
            data = self._read(start, min(_PIECE, self.end - start))
            put(file, data)
            start += len(data)

    def _records(self, place: int) -> bytes:
        """Whole records from `place` on, one at least."""
        size = _PIECE
        while True:
            data = self._read(place, min(size, self.end - place))
            ends = lines.ends(data)
            if len(ends):
                return data[: int(ends[-1])]
            if place + len(data) >= self.end:
                raise self._misfit()
            size *= 2

    def _read(self, place: int, size: int) -> bytes:
        try:
            data = os.pread(self.opened.file, size, place)
        except OSError as error:
            raise failed("read", self.path, error) from error
        if not data:
            raise self._misfit()
        return data

    def _misfit(self) -> JournalError:
        return JournalError(
            f"{self.path} holds a line that does not fit its columns.",
            hint="Was it edited? Restore it from a copy, or move it aside.",
        )


def moved(path: Path) -> JournalError:
    return JournalError(f"{path} was replaced meanwhile.", hint="Nothing of it was erased: again.")


def _aged(table: pa.Table, before: datetime, now: datetime) -> tuple[int, bool]:
    """How many rows end with the last that was recorded `before`, as far as none was recorded
    since and until `now`; and whether one was.
    """
    times = np.asarray(table.column("recorded_at").cast(pa.int64()).to_numpy())
    low, high = (pa.scalar(utc(at), TIMESTAMP).cast(pa.int64()).as_py() for at in (before, now))
    late = np.flatnonzero((times >= low) & (times <= high))
    end = int(late[0]) if len(late) else len(times)
    aged = np.flatnonzero(times[:end] < low)
    return (int(aged[-1]) + 1 if len(aged) else 0), len(late) > 0


class Cut:
    """A file that is to take the place of another one, less what stands at its front.

    The first `length` bytes of records go, and `kept` comes in their place. All of this is copied
    without the lock, and under it only what has arrived meanwhile. A crash leaves the old file or
    the new one, and perhaps a `.cut` beside it.
    """

    def __init__(self, was: Stretch, length: int, kept: Iterable[bytes], disk: Disk) -> None:
        self._was = was
        self._length = length
        self._kept = False
        self._disk = disk
        self._path = was.path.with_name(f"{was.path.name}.cut")
        disk.trusted()
        self._fresh = Opened(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            put(self._fresh.file, os.pread(was.opened.file, was.start, 0))
            for records in kept:
                put(self._fresh.file, records)
                self._kept |= bool(records)
            was.copy(was.start + length, self._fresh.file)
        except OSError as error:
            self.give_up()
            raise failed("write", self._path, error) from error
        disk.flush(self._fresh.file, self._path)

    def replace(self, tail: Tail) -> bool:
        """Put it in place, under the lock; False where the file is not the same any more."""
        now = Stretch.of(tail)
        if now.opened.inode != self._was.opened.inode:
            self.give_up()
            return False
        try:
            now.copy(self._was.end, self._fresh.file)
        except OSError as error:
            self.give_up()
            raise failed("write", self._path, error) from error
        if now.end > self._was.end:
            self._disk.flush(self._fresh.file, self._path)
        self._disk.move(self._path, tail.path)
        if not self._kept:
            with suppress(OSError):  # the note only saves time
                tail.note_cut(now.opened.inode, self._length)
        return True

    def give_up(self) -> None:
        self._path.unlink(missing_ok=True)
