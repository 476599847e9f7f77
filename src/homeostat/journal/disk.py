"""Writes under a lock that processes and threads share, and the promise that they are durable.

It takes paths, open files and bytes. It gives nothing back but the promise that the bytes are in
the file or on the disk, and raises `JournalError` where that promise cannot be made.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from homeostat.errors import JournalError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_UNKNOWN = {errno.ENOTSUP, errno.EINVAL, errno.ENOTTY}
_PIECE = 1 << 16  # bytes

Ack = Literal["fsync", "write"]


def failed(doing: str, path: Path, error: OSError) -> JournalError:
    """The error for a system call that did not work; it names the file and the system's reason."""
    hint = "Free some space; the journal goes on by itself." if error.errno in _FULL else ""
    return JournalError(
        f"could not {doing} {path}: {error.strerror or error}.",
        hint=hint or "Check that the disk is healthy and the folder is writable.",
    )


def flush(file: int) -> None:
    """Hand the open file to the disk, on macOS through the drive's own cache, too."""
    if hasattr(fcntl, "F_FULLFSYNC"):
        try:
            fcntl.fcntl(file, fcntl.F_FULLFSYNC)
        except OSError as error:
            if error.errno not in _UNKNOWN:  # some file systems do not have it
                raise
        else:
            return
    os.fsync(file)


_RENEWED: weakref.WeakSet[Mutex | Lock] = weakref.WeakSet()


class Opened:
    """An open file, closed with the last reference, so that a thread may flush what another one
    has replaced. `written` is where it is known to end, `synced` how much of that is on the disk.
    """

    __slots__ = ("file", "flushing", "inode", "synced", "written")

    def __init__(self, path: Path, flags: int) -> None:
        try:
            self.file = os.open(path, flags | os.O_CLOEXEC, 0o644)
        except OSError as error:
            self.file = -1
            raise failed("open", path, error) from error
        state = os.fstat(self.file)
        self.inode = (state.st_dev, state.st_ino)
        self.written = self.synced = 0
        self.flushing = threading.Lock()

    def __del__(self) -> None:
        if self.file >= 0:
            os.close(self.file)


class Mutex:
    """A lock between threads, which a child that was forked begins with open: the thread that held
    it in the parent is not there to let go.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        _RENEWED.add(self)

    @contextmanager
    def held(self) -> Iterator[None]:
        with self._lock:
            yield

    def renew(self) -> None:
        """To be called in the child."""
        self._lock = threading.Lock()


class Lock:
    """`flock` on the file `path`, which stays open; it holds between threads, too.

    A child that was forked begins anew, with `generation` one higher: what its parent's other
    threads were about to do is not known to it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1
        self._mutex = Mutex()
        self.generation = 0
        _RENEWED.add(self)

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)

    @contextmanager
    def held(self, *, shared: bool = False) -> Iterator[None]:
        """Hold the lock. A reader that finds no lock file goes on without: nobody has written
        here. Raises JournalError.
        """
        with self._mutex.held():
            try:
                file = self._taken(fcntl.LOCK_SH if shared else fcntl.LOCK_EX, make=not shared)
            except OSError as error:
                raise failed("lock", self._path, error) from error
            try:
                yield
            finally:
                # A fork may hold a copy of the descriptor, so that closing would not unlock.
                if file is not None:
                    fcntl.flock(file, fcntl.LOCK_UN)

    def renew(self) -> None:
        """Let go, in a forked child, of what belongs to the parent."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1
        self.generation += 1

    def _taken(self, how: int, *, make: bool) -> int | None:
        while True:
            if self._file < 0:
                if not make and not self._path.exists():
                    return None
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self._path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(self._file, how)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.stat(self._path), os.fstat(self._file)):  # noqa: PTH116 - hot
                    return self._file
            # The file was taken away or replaced: others lock the one that is there now.
            os.close(self._file)
            self._file = -1


def _renew() -> None:
    for lock in list(_RENEWED):
        lock.renew()


os.register_at_fork(after_in_child=_renew)


class Disk:
    """Appends and replaces files.

    A failed flush is never tried again: the kernel may have dropped the pages, and a second one
    would report success. From then on every write raises JournalError, and so does every flush
    that somebody waits for. With `ack="write"`, appended rows are not flushed.
    """

    def __init__(self, ack: Ack = "fsync") -> None:
        self._ack = ack
        self._distrusted: Path | None = None

    def trusted(self) -> None:
        """Raises JournalError once a flush has failed."""
        if self._distrusted is not None:
            raise JournalError(
                f"{self._distrusted} could not be flushed to the disk, so nothing more is written.",
                hint="Check the disk, then restart this process.",
            )

    def write(self, file: int, data: bytes, end: int, path: Path) -> None:
        """Write `data` at `end`, the end of the open `file`; on failure cut the file back."""
        self.trusted()
        try:
            put(file, data)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(file, end)
            raise failed("append to", path, error) from error

    def sync(self, opened: Opened, upto: int, path: Path) -> None:
        """Return once the first `upto` bytes of what was written are on the disk.

        Waiting threads share a flush: one that began after their rows were in the file.
        """
        if self._ack == "fsync":
            with opened.flushing:
                self.trusted()
                if opened.synced < upto:
                    end = opened.written
                    self.flush(opened.file, path)
                    opened.synced = end
        self.trusted()  # the flush of another file may have failed meanwhile

    def flush(self, file: int, path: Path) -> None:
        """Flush the open `file`, once and for all if it fails."""
        try:
            flush(file)
        except OSError as error:
            self._distrusted = path
            raise failed("flush", path, error) from error

    def cut(self, file: int, end: int, path: Path) -> None:
        """Cut the open `file` at `end`."""
        self.trusted()
        try:
            os.ftruncate(file, end)
        except OSError as error:
            raise failed("repair", path, error) from error
        self.flush(file, path)

    def add_line(self, path: Path, line: bytes) -> None:
        """Append one or more whole lines to a file without quoting; the caller holds the lock.

        What a writer that died left of a line is cut off.
        """
        self.trusted()
        opened = Opened(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        try:
            size, end = os.fstat(opened.file).st_size, lines_end(opened.file)
        except OSError as error:
            raise failed("append to", path, error) from error
        if end < size:
            self.cut(opened.file, end, path)
        self.write(opened.file, line, end, path)
        self.flush(opened.file, path)
        if end == 0:
            self.sync_folder(path.parent)

    def replace(self, path: Path, data: bytes) -> None:
        """Put `data` in place of the file, whole or not at all."""
        self.trusted()
        fresh = path.with_name(f"{path.name}.new")
        opened = Opened(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        self.write(opened.file, data, 0, path)
        self.flush(opened.file, path)
        self.move(fresh, path)

    def move(self, source: Path, target: Path) -> None:
        """Rename a file, which takes the place of the other, durably."""
        self.trusted()
        try:
            source.replace(target)
        except OSError as error:
            raise failed("move", source, error) from error
        self.sync_folder(target.parent)

    def sync_folder(self, folder: Path) -> None:
        opened = Opened(folder, os.O_RDONLY)
        self.flush(opened.file, folder)


def lines_end(file: int) -> int:
    """Where the last whole line of the open `file` ends. Raises OSError."""
    end = os.fstat(file).st_size
    while end:
        start = max(0, end - _PIECE)
        place = os.pread(file, end - start, start).rfind(b"\n")
        if place >= 0:
            return start + place + 1
        end = start
    return 0


def put(file: int, data: bytes | memoryview) -> None:
    """Write all of `data`. Raises OSError."""
    rest = memoryview(data)
    while rest:
        count = os.write(file, rest)
        if count == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rest = rest[count:]
