"""One CSV file that only grows: follow what others appended, cut off what a dead writer left.

It takes a path, the columns and a consumer, which is handed each stretch of whole records once.
It gives the end of what is good, where the next append goes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from homeostat.errors import JournalError
from homeostat.journal import lines
from homeostat.journal.disk import failed

_CHUNK = 1 << 25  # bytes read at a time, so that a long file does not fill the memory


class Consumer(Protocol):
    """What a process keeps in memory of one file."""

    def clear(self) -> None:
        """Forget all: the file is another one."""
        ...

    def add(self, data: bytes, offset: int) -> None:
        """Whole records that begin at `offset` of the file."""
        ...


class Rows:
    """A consumer that keeps the rows as tables."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._tables: list[pa.Table] = []

    def clear(self) -> None:
        self._tables = []

    def add(self, data: bytes, offset: int) -> None:  # noqa: ARG002 - the order is enough here
        self._tables.append(lines.decode(data, self._schema))
        if len(self._tables) > 64:
            self._tables = [pa.concat_tables(self._tables).combine_chunks()]

    @property
    def table(self) -> pa.Table:
        return pa.concat_tables([self._schema.empty_table(), *self._tables])


class Tail:
    """How far one process has got in one file."""

    def __init__(self, path: Path, schema: pa.Schema, consumer: Consumer) -> None:
        self.path = path
        self.schema = schema
        self.consumer = consumer
        self.end = 0
        self._inode = 0

    @contextmanager
    def open(self, flags: int) -> Iterator[int]:
        try:
            file = os.open(self.path, flags | os.O_CLOEXEC)
        except OSError as error:
            raise failed("open", self.path, error) from error
        try:
            yield file
        finally:
            os.close(file)

    def follow(self, file: int) -> int:
        """Hand the consumer what it has not seen; return the bytes of a torn record at the end.

        The caller holds the lock. Raises JournalError where the file is not what was written.
        """
        try:
            state = os.fstat(file)
            if state.st_ino != self._inode or state.st_size < self.end:
                self._begin(file, state)
            while self.end < state.st_size:
                if not self._advance(file, state.st_size):
                    break
        except OSError as error:
            raise failed("read", self.path, error) from error
        except pa.ArrowInvalid:
            self._inode = 0
            raise JournalError(
                f"{self.path} holds a line that does not fit its columns.",
                hint="Was it edited? Restore it from a copy, or move it aside.",
            ) from None  # Arrow's text holds the value
        return state.st_size - self.end

    def appended(self, size: int) -> None:
        """Go on behind `size` bytes that the caller wrote, and told the consumer of."""
        self.end += size

    def _begin(self, file: int, state: os.stat_result) -> None:
        self.consumer.clear()
        header = lines.header(self.schema)
        if os.pread(file, len(header), 0) != header:
            raise JournalError(
                f"the header of {self.path} does not name the columns of its schema file.",
                hint="Was it edited? Restore it from a copy, or move it aside.",
            )
        self._inode, self.end = state.st_ino, len(header)

    def _advance(self, file: int, size: int) -> bool:
        chunk = _CHUNK
        while True:
            data = os.pread(file, min(chunk, size - self.end), self.end)
            whole = lines.complete(data)
            if whole or self.end + len(data) >= size or not data:
                break
            chunk *= 2
        if whole:
            self.consumer.add(data[:whole], self.end)
            self.end += whole
        return bool(whole)
