"""What is given to the journal, and what it says became of it.

Frozen values, as those of `records`: rows and refusals that are to be written, and counts of what
was written, labelled, sealed or erased; what became of a message, and of a question to a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Appended:
    """What an append came to: rows written, and rows known already with the same content."""

    written: int
    repeated: int

    def __add__(self, other: Appended) -> Appended:
        return Appended(self.written + other.written, self.repeated + other.repeated)


@dataclass(frozen=True, slots=True)
class Entry:
    """The served rows of one request, which are journalled all or none.

    Each row holds its values in the order of `Schema.journal`: times as text in UTC such as
    `2025-06-01 12:00:00.000000Z`, numbers as finite floats, None for null.
    """

    ids: Sequence[str]
    rows: Sequence[Sequence[Any]]
    untimed: frozenset[str] = frozenset()  # ids whose earlier event time, if any, stands
    made: bool = False  # all ids were made just now, so that no row can have come before


@dataclass(frozen=True, slots=True)
class Committed:
    """What became of an entry."""

    written: int
    repeated: int
    recorded: pa.Table | None = None  # repeated rows as they were recorded first


@dataclass(frozen=True, slots=True)
class Labelled:
    """What a batch of labels came to."""

    written: int  # new labels and new versions of known ones
    repeated: int  # the same label again: no new version
    changed: int  # of `written`: those that differ from an earlier version

    def __add__(self, other: Labelled) -> Labelled:
        return Labelled(
            self.written + other.written,
            self.repeated + other.repeated,
            self.changed + other.changed,
        )


@dataclass(frozen=True, slots=True)
class Sealed:
    """What moving the journal's tail into history came to."""

    rows: int = 0  # predictions moved
    labels: int = 0  # versions of labels moved
    repeated: int = 0  # predictions that history had already
    conflicts: int = 0  # predictions left out: history has their id with other content
    orphans: int = 0  # labels dropped, since no prediction of theirs ever came
    expired: int = 0  # predictions removed, older than is kept

    def __add__(self, other: Sealed) -> Sealed:
        return Sealed(
            self.rows + other.rows,
            self.labels + other.labels,
            self.repeated + other.repeated,
            self.conflicts + other.conflicts,
            self.orphans + other.orphans,
            self.expired + other.expired,
        )


@dataclass(frozen=True, slots=True)
class Erased:
    """What an erasure came to, or would."""

    rows: int
    labels: int  # all versions
    releases: Mapping[str, int] = field(default_factory=dict)  # id → its training rows among them


@dataclass(frozen=True, slots=True)
class Unfinished:
    """An erasure that was begun, and of which nobody has said since that it came to its end."""

    id: str  # its own; of what is erased nothing is kept
    at: datetime  # when it was begun first, UTC
    rows: int  # that there were to erase then
    labels: int

    def __str__(self) -> str:
        return (
            f"an erasure of {self.rows:,} rows and {self.labels:,} labels, begun at "
            f"{self.at:%Y-%m-%d %H:%M} UTC, was not finished: erase the same again, with "
            f"--finish {self.id[:8]}"
        )


@dataclass(frozen=True, slots=True)
class Refusal:
    """One refused row, without its values."""

    code: str
    field: str | None


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of a message to people."""

    taken: int  # addresses that took it
    problems: tuple[str, ...] = ()  # one for each other address, which is named by its number


@dataclass(frozen=True, slots=True)
class Queried:
    """How the stored bytes of a candidate answer its golden rows."""

    problem: str  # what is wrong, as the rest of a sentence; empty: nothing
    seconds: float  # median wall time of one row by itself
