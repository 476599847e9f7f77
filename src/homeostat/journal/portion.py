"""The front of a file of the tail: read to be moved elsewhere, and then cut off.

It takes a file that is followed, its lock, and a time before which rows are wanted. It gives
portions that name the bytes they were read from, so that the same bytes are cut off once, however
often it is tried, and no row that arrives meanwhile is lost.
"""

from __future__ import annotations

import os
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

    def portion(self, fingerprint: str, before: datetime, limit: int) -> Portion | None:
        """The longest start of whole records, `limit` at most, that were recorded `before`."""
        pieces: list[pa.Table] = []
        digest, place, rows, more = blake2b(digest_size=32), self.start, 0, True
        while more and place < self.end:
            data = self._records(place)
            ends = lines.ends(data)
            try:
                table = lines.decode(data, self.schema)
            except pa.ArrowInvalid:
                raise self._misfit() from None
            if table.num_rows != len(ends):
                raise self._misfit()
            count = min(_old(table, before), limit - rows)
            more = count == table.num_rows
            if count:
                size = int(ends[count - 1])
                digest.update(data[:size])
                place, rows = place + size, rows + count
                pieces.append(table.slice(0, count))
        if not rows:
            return None
        return Portion(
            fingerprint, place - self.start, digest.hexdigest(), pa.concat_tables(pieces)
        )

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


def _old(table: pa.Table, before: datetime) -> int:
    """How many rows come before the first one that was recorded too late."""
    late = pc.greater_equal(table.column("recorded_at"), pa.scalar(utc(before), TIMESTAMP))
    places = np.flatnonzero(late.to_numpy())
    return int(places[0]) if len(places) else table.num_rows


class Cut:
    """A file that is to take the place of another one, less a portion of it.

    What stands behind the portion is copied without the lock, and under it only what has arrived
    meanwhile. A crash leaves the old file or the new one, and perhaps a `.cut` beside it.
    """

    def __init__(self, was: Stretch, portion: Portion, keep: bytes, disk: Disk) -> None:
        self._was = was
        self._portion = portion
        self._kept = bool(keep)
        self._disk = disk
        self._path = was.path.with_name(f"{was.path.name}.cut")
        disk.trusted()
        self._fresh = Opened(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            header = os.pread(was.opened.file, was.start, 0)
            put(self._fresh.file, header + keep)
            was.copy(was.start + portion.length, self._fresh.file)
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
                tail.note_cut(now.opened.inode, self._portion.length)
        return True

    def give_up(self) -> None:
        self._path.unlink(missing_ok=True)
