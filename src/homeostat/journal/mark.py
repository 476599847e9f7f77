"""One moment that is kept in a file, for processes that ask for it with each write.

It takes a moment and makes it durable; it gives the one that was kept last, and reads the file only
when that is another one.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

from homeostat.errors import JournalError, other_format
from homeostat.journal.disk import Disk, failed
from homeostat.records import utc

FORMAT = 1
NEVER = datetime.min.replace(tzinfo=UTC)


class Mark:
    """The moment in the file `path`; NEVER before the first. Who writes holds a lock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._state: tuple[int, int] | None = None
        self._moment = NEVER

    def read(self) -> datetime:
        """Raises JournalError for a file that cannot be read."""
        try:
            about = os.stat(self._path)  # noqa: PTH116 - with each write
        except FileNotFoundError:
            return NEVER
        except OSError as error:
            raise failed("read", self._path, error) from error
        state = about.st_ino, about.st_mtime_ns
        if state != self._state:
            self._moment, self._state = self._told(), state
        return self._moment

    def write(self, moment: datetime, disk: Disk) -> None:
        text = json.dumps({"format": FORMAT, "latest": utc(moment).isoformat()})
        disk.replace(self._path, text.encode() + b"\n")

    def _told(self) -> datetime:
        try:
            told = json.loads(self._path.read_bytes())
            if told["format"] == FORMAT:
                return utc(datetime.fromisoformat(told["latest"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise JournalError(
                f"{self._path} cannot be read ({type(error).__name__}).",
                hint="Remove it; it matters only while the clock is behind what it was.",
            ) from error
        raise other_format(JournalError, str(self._path), told["format"], FORMAT)
