"""One CSV file that grows, and is cut at its front: follow it, and cut off what a dead writer left.

It takes a path, the columns and a consumer, which is handed each stretch of whole records once.
It gives the end of what is good, where the next append goes. Offsets count from where this process
began to follow the file, so that they stay what they are when the front is cut away.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from homeostat.errors import JournalError
from homeostat.journal import lines
from homeostat.journal.disk import Lock, Opened, failed
from homeostat.journal.lines import Places

_CHUNK = 1 << 22  # bytes read at a time, so that a long file does not fill the memory
_SEEN = 1 << 12  # bytes that must be the same before two files are taken for one that was cut
_PAUSE = 0.001  # seconds in which another may take the lock that was let go
_CUTS = 64  # cuts that are remembered; who missed more of them reads the file again


@dataclass(frozen=True, slots=True)
class Portion:
    """The first rows of one file."""

    fingerprint: str  # of the file's columns; "labels" for labels
    length: int  # bytes behind the header
    digest: str  # blake2b of these bytes, 32 bytes in hex
    table: pa.Table = field(compare=False)


class Consumer(Protocol):
    """What a process keeps in memory of one file."""

    def clear(self) -> None:
        """Forget all: the file is another one."""
        ...

    def add(self, data: bytes, ends: Places, offset: int) -> None:
        """Whole records that begin at `offset`; `ends` tells where in `data` each one ends."""
        ...

    def drop(self, bound: int) -> bool:
        """Forget what begins before `bound`; False to be handed all that is left instead."""
        ...


class Nothing:
    """A consumer for who only asks where records end."""

    def __init__(self, schema: pa.Schema) -> None:
        pass

    def clear(self) -> None:
        pass

    def add(self, data: bytes, ends: Places, offset: int) -> None:
        pass

    def drop(self, bound: int) -> bool:  # noqa: ARG002 - there is nothing to forget
        return True


@contextmanager
def at_end(
    lock: Lock,
    step: Callable[[], bool],
    *,
    shared: bool = False,
    between: Callable[[], None] | None = None,
) -> Iterator[None]:
    """Hold the lock when `step` has nothing left to read.

    Until then it is let go after each step, `between` is done, and others have their turn: who
    appends waits for one piece, however long the file is that somebody begins to read.
    """
    while True:
        with lock.held(shared=shared):
            if not step():
                yield
                return
        if between is not None:
            between()
        time.sleep(_PAUSE)


class Tail:
    """How far one process has got in one file, which it keeps open.

    All methods are for who holds the lock. They raise JournalError where the file is not what was
    written. `cuts` names the file in which cuts are noted.
    """

    def __init__(
        self, path: Path, schema: pa.Schema, consumer: Consumer, *, flags: int, cuts: Path
    ) -> None:
        self.path = path
        self.schema = schema
        self.consumer = consumer
        self.header = lines.header(schema)
        self.opened: Opened | None = None
        self.end = 0
        self.torn = 0  # bytes behind the end that are no whole record, once no step is left
        self._shift = 0  # offset less place in the file
        self._flags = flags
        self._cuts = cuts

    @property
    def file(self) -> Opened:
        """The open file, once it was followed."""
        if self.opened is None:
            raise JournalError(f"{self.path} was not opened.")
        return self.opened

    @property
    def start(self) -> int:
        """The offset of the first record."""
        return self._shift + len(self.header)

    def place(self, offset: int) -> int:
        """Where in the file an offset is."""
        return offset - self._shift

    def state(self) -> os.stat_result | None:
        """The file as the folder has it; None where it is another than the open one, or none."""
        try:
            state = os.stat(self.path)  # noqa: PTH116 - with each append
        except FileNotFoundError:
            return None
        except OSError as error:
            raise failed("read", self.path, error) from error
        if self.opened is None or (state.st_dev, state.st_ino) != self.opened.inode:
            return None
        return state

    def step(self, state: os.stat_result | None = None) -> bool:
        """Hand the consumer the next piece that it has not seen; whether there may be more.

        `state` saves a system call if it was asked for under the same lock.
        """
        try:
            if state is None:
                state = self.state()
            if state is None or self.place(self.end) > state.st_size:
                self._open(self.opened if state is None else None)
                state = os.fstat(self.file.file)
            self.torn = state.st_size - self.place(self.end)
            taken = self.torn > 0 and self._advance(state.st_size)
            self.torn = state.st_size - self.place(self.end)
        except OSError as error:
            raise failed("read", self.path, error) from error
        except (pa.ArrowInvalid, ValueError):
            raise self.misfit() from None  # Arrow's text holds the value
        return taken and self.torn > 0

    def misfit(self) -> JournalError:
        """The error for records that cannot be read; all is read again if it is asked for again."""
        self.opened = None
        return JournalError(
            f"{self.path} holds a line that does not fit its columns.",
            hint="Was it edited? Restore it from a copy, or move it aside.",
        )

    def read(self, offset: int, length: int) -> bytes:
        """So many bytes from `offset` on."""
        return os.pread(self.file.file, length, self.place(offset))

    def appended(self, size: int) -> None:
        """Go on behind `size` bytes that the caller wrote, and told the consumer of."""
        self.end += size
        self.file.written = self.end

    def note_cut(self, was: tuple[int, int], cut: int) -> None:
        """Note that the file took the place of `was`, less `cut` bytes behind the header.

        Who follows the file then goes on where it was; without the note it reads the file again.
        """
        cuts = self._noted()
        if not cuts or cuts[-1][0] != was[1]:
            cuts = [[was[1], 0]]
        inode = os.stat(self.path).st_ino  # noqa: PTH116 - as in state()
        cuts = [*cuts, [inode, cuts[-1][1] + cut]][-_CUTS:]
        fresh = self._cuts.with_name(f"{self._cuts.name}.new")
        fresh.write_text(json.dumps(cuts))
        fresh.replace(self._cuts)

    def _noted(self) -> list[list[int]]:
        """Inodes that the file had, the last one last, and how much was cut off before each."""
        try:
            return [[int(inode), int(cut)] for inode, cut in json.loads(self._cuts.read_bytes())]
        except (OSError, ValueError, TypeError):
            return []  # it saves time where it is right, and is no source of truth

    def _open(self, old: Opened | None) -> None:
        """Open the file, and go on in it if it is what was left of the `old` one."""
        self.opened = None  # should anything fail, all is read again
        fresh = Opened(self.path, self._flags)
        if os.pread(fresh.file, len(self.header), 0) != self.header:
            raise JournalError(
                f"the header of {self.path} does not name the columns of its schema file.",
                hint="Was it edited? Restore it from a copy, or move it aside.",
            )
        cut = self._cut_since(old, fresh) if old is not None else None
        if cut is not None and self.consumer.drop(self.start + cut):
            self._shift += cut
        else:
            self.consumer.clear()
            self._shift, self.end = 0, len(self.header)
        fresh.written = self.end
        self.opened = fresh

    def _cut_since(self, old: Opened, fresh: Opened) -> int | None:
        """By how much the open file was cut to become this one; None where it did not.

        An inode that is open here is given to no other file, so the last one in the notes is it.
        """
        cuts = self._noted()
        before = [cut for inode, cut in cuts[:-1] if inode == old.inode[1]]
        if not before or cuts[-1][0] != fresh.inode[1] or old.inode[0] != fresh.inode[0]:
            return None
        cut = cuts[-1][1] - before[-1]
        size = min(self.end - self.start - cut, _SEEN)
        if cut < 0 or size < 0:
            return None
        place = self.place(self.end) - size
        if os.pread(old.file, size, place) != os.pread(fresh.file, size, place - cut):
            return None
        return cut

    def _advance(self, size: int) -> bool:
        """Take the next whole records, as far as the file has any."""
        chunk = _CHUNK
        while True:
            data = self.read(self.end, min(chunk, size - self.place(self.end)))
            ends = lines.ends(data)
            if len(ends) or self.place(self.end) + len(data) >= size or not data:
                break
            chunk *= 2
        if not len(ends):
            return False
        whole = int(ends[-1])
        self.consumer.add(data[:whole], ends, self.end)
        self.end += whole
        self.file.written = self.end
        return True
