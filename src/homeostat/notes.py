"""Notes that a server leaves for the loop: what it was asked to do, and did, between two turns.

It takes a folder. A server writes one note into it before it moves the pointer back; the loop's
next turn reads them, writes into the audit chain what the signed pointer bears out, and clears
them away. A note alone moves nothing and is believed in nothing.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from homeostat import files

FORMAT = 1
LARGEST = 10_000  # bytes of a note; whatever is larger is none


@dataclass(frozen=True, slots=True)
class Note:
    """A rollback that a server was asked for."""

    old: str  # release that served until then
    release: str  # the one that was to serve again
    by: str  # name of the key that asked, empty without keys
    at: str  # when, ISO 8601 in UTC

    @property
    def told(self) -> dict[str, str]:
        """As the audit chain tells it."""
        return {"from": self.old, "release": self.release, "by": self.by, "asked": self.at}


class Notes:
    """The notes of one project, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def leave(self, note: Note) -> Path:
        """Write a note, durably; raises OSError."""
        self._folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._folder / f"{secrets.token_hex(8)}.json"
        files.write(path, json.dumps({"format": FORMAT, **asdict(note)}).encode())
        return path

    def found(self) -> dict[Path, Note | None]:
        """All notes; None for a file that is none."""
        return {path: _read(path) for path in sorted(self._folder.glob("*.json"))}

    def clear(self, paths: Sequence[Path]) -> None:
        """Take these notes away; others may have come since."""
        for path in paths:
            with suppress(OSError):  # it is looked at again, and bears nothing out any more
                path.unlink(missing_ok=True)


def _read(path: Path) -> Note | None:
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        if path.stat().st_size <= LARGEST:
            raw = json.loads(path.read_bytes())
            if raw.pop("format") == FORMAT and all(isinstance(text, str) for text in raw.values()):
                return Note(**raw)
    return None
