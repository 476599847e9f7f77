"""Writes that are durable when they return, under a lock that processes and threads share.

It takes paths, open files and bytes. It gives nothing back but the promise that the bytes are on
the disk, and raises `JournalError` where that promise cannot be made.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from homeostat.errors import JournalError

_FULL = {errno.ENOSPC, errno.EDQUOT}


def failed(doing: str, path: Path, error: OSError) -> JournalError:
    """The error for a system call that did not work; it names the file and the system's reason."""
    hint = "Free some space; the journal goes on by itself." if error.errno in _FULL else ""
    return JournalError(
        f"could not {doing} {path}: {error.strerror or error}.",
        hint=hint or "Check that the disk is healthy and the folder is writable.",
    )


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold `flock` on the lock file `path`.

    Every call opens the file anew, so that the lock also holds between threads. A reader that
    finds no lock file goes on without: nobody has written here. Raises JournalError.
    """
    lock = _open_lock(path, shared=shared)
    if lock is None:
        yield
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        # A fork may hold a copy of the descriptor, which closing alone would leave locked.
        fcntl.flock(lock, fcntl.LOCK_UN)
        os.close(lock)


def _open_lock(path: Path, *, shared: bool) -> int | None:
    try:
        if shared:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC) if path.exists() else None
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise failed("lock", path, error) from error


class Disk:
    """Appends and replaces files durably.

    A failed fsync is never tried again: the kernel may have dropped the pages, and a second one
    would report success. From then on every write raises JournalError.
    """

    def __init__(self) -> None:
        self._distrusted: Path | None = None

    def append(self, file: int, data: bytes, end: int, path: Path) -> None:
        """Write `data` at `end`, the end of the open `file`; on failure cut the file back."""
        self._trusted()
        try:
            rest = memoryview(data)
            while rest:
                count = os.write(file, rest)
                if count == 0:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))  # noqa: TRY301 - same remedy
                rest = rest[count:]
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(file, end)
            raise failed("append to", path, error) from error
        try:
            self._sync(file, path)
        except JournalError:
            with suppress(OSError):
                os.ftruncate(file, end)
            raise

    def cut(self, file: int, end: int, path: Path) -> None:
        """Cut the open `file` at `end`."""
        self._trusted()
        try:
            os.ftruncate(file, end)
        except OSError as error:
            raise failed("repair", path, error) from error
        self._sync(file, path)

    def add_line(self, path: Path, line: bytes) -> None:
        """Append one or more whole lines to a file without quoting; the caller holds the lock."""
        self._trusted()
        try:
            file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise failed("open", path, error) from error
        try:
            end = os.fstat(file).st_size
            # A writer that died left a line without its end; what follows must not be glued to it.
            torn = end > 0 and os.pread(file, 1, end - 1) != b"\n"
            self.append(file, b"\n" * torn + line, end, path)
        except OSError as error:
            raise failed("append to", path, error) from error
        finally:
            os.close(file)
        if end == 0:
            self.sync_folder(path.parent)

    def replace(self, path: Path, data: bytes) -> None:
        """Put `data` in place of the file, whole or not at all."""
        self._trusted()
        fresh = path.with_name(f"{path.name}.new")
        try:
            file = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            try:
                self.append(file, data, 0, path)
            finally:
                os.close(file)
            fresh.replace(path)
        except OSError as error:
            raise failed("write", path, error) from error
        self.sync_folder(path.parent)

    def move(self, source: Path, target: Path) -> None:
        self._trusted()
        try:
            source.rename(target)
        except OSError as error:
            raise failed("set aside", source, error) from error
        self.sync_folder(source.parent)

    def sync_folder(self, folder: Path) -> None:
        try:
            file = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise failed("open", folder, error) from error
        try:
            self._sync(file, folder)
        finally:
            os.close(file)

    def _sync(self, file: int, path: Path) -> None:
        try:
            os.fsync(file)
        except OSError as error:
            self._distrusted = path
            raise failed("flush", path, error) from error

    def _trusted(self) -> None:
        if self._distrusted is not None:
            raise JournalError(
                f"{self._distrusted} could not be flushed to the disk, so nothing more is written.",
                hint="Check the disk, then restart this process.",
            )
