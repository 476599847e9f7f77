"""Notes to the loop: what others did or want done between two turns.

It takes a folder. A server writes a `Note` before it moves the pointer back; the page an `Order`.
The loop reads them, writes into the audit chain what the signed pointer bears out or what it
carried out, and clears them away. A note alone moves nothing and is believed in nothing.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Generic, TypeVar

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


@dataclass(frozen=True, slots=True)
class Order:
    """What someone asks of the loop on the page."""

    action: str  # approve, roll_back, pin or unpin
    release: str  # that is meant
    champion: str  # release that served when it was asked; another one voids the order
    by: str  # name of the key that asked
    at: str  # when, ISO 8601 in UTC


T = TypeVar("T", Note, Order)


class Notes(Generic[T]):
    """The notes of one kind of one project, in a folder of their own."""

    def __init__(self, folder: Path, kind: type[T]) -> None:
        self._folder = folder
        self._kind: type[T] = kind

    def leave(self, note: T) -> Path:
        """Write a note, durably; raises OSError."""
        self._folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._folder / f"{secrets.token_hex(8)}.json"
        files.write(path, json.dumps({"format": FORMAT, **asdict(note)}).encode())
        return path

    def found(self) -> dict[Path, T | None]:
        """All notes; None for a file that is none."""
        return {path: _read(path, self._kind) for path in sorted(self._folder.glob("*.json"))}

    def clear(self, paths: Sequence[Path]) -> None:
        """Take these notes away; others may have come since."""
        for path in paths:
            with suppress(OSError):  # it is looked at again, and bears nothing out any more
                path.unlink(missing_ok=True)


def requests(home: Path) -> Notes[Note]:
    """What servers were asked, in the project's folder `home` for what is its own."""
    return Notes(home / "requests", Note)


def orders(home: Path) -> Notes[Order]:
    """What the page was asked, in the same."""
    return Notes(home / "orders", Order)


def _read(path: Path, kind: type[T]) -> T | None:
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        if path.stat().st_size <= LARGEST:
            raw = json.loads(path.read_bytes())
            if raw.pop("format") == FORMAT and all(isinstance(text, str) for text in raw.values()):
                return kind(**raw)
    return None
