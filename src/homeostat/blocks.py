"""Profiles of days that are over, kept, so that a look at a window counts only what is new.

Takes a journal that marks its days, and a folder. Gives the profiles of a window's served rows: of
days whose mark is that of a kept file, from the file; of all others, from a scan in bounded memory.
A file that is missing, torn or of other rows is made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Protocol, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from homeostat import files
from homeostat.contracts import Journal
from homeostat.errors import SchemaError
from homeostat.profile import FORMAT, Profile
from homeostat.records import EPOCH, MICROSECOND, Window
from homeostat.schema import Schema
from homeostat.scoring import Calibrator, uncalibrated
from homeostat.settings import Monitor

_DAY = timedelta(days=1)
_DIGEST = 32  # bytes

Pair: TypeAlias = tuple[Profile, Profile]


class MarkedJournal(Journal, Protocol):
    def marks(self, days: Sequence[date]) -> Mapping[date, str]:
        """For days of UTC a mark that changes when a row of the day is added, changed or removed,
        whatever becomes of labels. Days that are not named have no rows, or must be read.
        """
        ...


def window(now: datetime, newest: datetime | None, chosen: Monitor) -> Window:
    """The newest window of event time: whole blocks, up to the `newest` served row."""
    end = now if newest is None else min(now, newest + MICROSECOND)
    end = EPOCH + -((EPOCH - end) // chosen.block) * chosen.block
    return Window(end - chosen.window, end)


def served(rows: pa.Table) -> pa.Table:
    """The rows that were served, not imported; all of a table that has no others, uncopied."""
    chosen = pc.not_equal(rows.column("source"), "load")
    return rows if pc.all(chosen, skip_nulls=False, min_count=0).as_py() else rows.filter(chosen)


@dataclass(frozen=True)
class Kept:
    """Profiles of a journal's days in `folder`, which may be removed at any time.

    To be used by one process at a time. It holds counts of the days of the last window alone, for
    one release; what else lies there is removed.
    """

    journal: MarkedJournal
    folder: Path

    def profiles(
        self,
        window: Window,
        schema: Schema,
        *,
        block: timedelta,
        output_edges: Sequence[float] = (),
        model: str,
        calibrator: Calibrator | None = None,
    ) -> Pair:
        """Profiles of the rows that were served in `window`, and of those that `model` predicted,
        as it would have without its `calibrator`.

        The window is of whole blocks. Raises JournalError and SchemaError.
        """
        days = [*_days(window)]
        nothing = Profile.of((), schema, block=block, output_edges=output_edges)
        place = self.folder / _layout(nothing, model)
        marks = self.journal.marks(days)
        total, fresh = (nothing, nothing), dict[date, Pair]()
        for day in days:
            found = _read(place, day, marks[day], nothing) if day in marks else None
            if found is None:
                found = fresh[day] = self._count(day, schema, nothing, model, calibrator)
            total = total[0] + found[0], total[1] + found[1]
        if fresh:
            # What came during the scan may have been counted or not, so that day is not kept.
            after = self.journal.marks([*fresh])
            same = {
                day: pair
                for day, pair in fresh.items()
                if day in marks and after.get(day) == marks[day]
            }
            # A look does not fail because its counts cannot be kept: the next one counts again.
            with suppress(OSError):
                _write(place, marks, same)
                self._tidy(place, marks)
        return total[0].select(window), total[1].select(window)

    def _count(
        self,
        day: date,
        schema: Schema,
        nothing: Profile,
        model: str,
        calibrator: Calibrator | None,
    ) -> Pair:
        """Of a whole day; a block that it shares with the next adds up with that day's part."""
        start = datetime.combine(day, time(), UTC)
        total = own = nothing
        edges = nothing.output_edges
        for part in map(served, self.journal.scan(Window(start, start + _DAY), schema=schema)):
            counted = Profile.of(part, schema, block=nothing.block, output_edges=edges)
            total += counted
            mine = part.filter(pc.equal(part.column("model_version"), model))
            if mine.num_rows < part.num_rows or calibrator is not None:
                mine = uncalibrated(mine, schema.target, calibrator)
                counted = Profile.of(mine, schema, block=nothing.block, output_edges=edges)
            own += counted
        return total, own

    def _tidy(self, place: Path, marks: Mapping[date, str]) -> None:
        """Remove profiles of other days, of days as they were before, and of other releases."""
        current = {place / _name(day, mark) for day, mark in marks.items()}
        for path in self.folder.rglob("*"):
            if path.is_file() and path not in current:
                path.unlink(missing_ok=True)
        for path in self.folder.iterdir():
            if path.is_dir() and path != place:
                path.rmdir()


def _days(window: Window) -> Iterator[date]:
    """The days of UTC that have a part in the window."""
    day, end = window.start.astimezone(UTC).date(), window.end.astimezone(UTC)
    while datetime.combine(day, time(), UTC) < end:
        yield day
        day += _DAY


def _layout(nothing: Profile, model: str) -> str:
    """The folder of what is counted in the same way for the same release."""
    columns = [astuple(column) for column in nothing.columns]
    told = [FORMAT, columns, nothing.block.total_seconds(), nothing.output_edges]
    return hashlib.sha256(json.dumps([*told, model]).encode()).hexdigest()[:32]


def _name(day: date, mark: str) -> str:
    return f"{day}.{mark[:32]}.profile"


def _read(place: Path, day: date, mark: str, nothing: Profile) -> Pair | None:
    """The profiles of a day as they were kept; None where they were not, or not whole."""
    path = place / _name(day, mark)
    try:
        content = path.read_bytes()
    except OSError:
        return None
    told, size = content[:_DIGEST], content[_DIGEST : _DIGEST + 8]
    if _digest(place, path.name, content[_DIGEST:]) != told:
        return None
    rest = content[_DIGEST + 8 :]
    first = int.from_bytes(size, "big")
    try:
        pair = Profile.from_bytes(rest[:first]), Profile.from_bytes(rest[first:])
        # Of another layout they could not be added.
        _ = pair[0] + nothing, pair[1] + nothing
    except SchemaError:
        return None
    return pair


def _write(place: Path, marks: Mapping[date, str], pairs: Mapping[date, Pair]) -> None:
    for day, pair in pairs.items():
        served, own = (profile.to_bytes() for profile in pair)
        name = _name(day, marks[day])
        content = len(served).to_bytes(8, "big") + served + own
        files.write(place / name, _digest(place, name, content) + content)


def _digest(place: Path, name: str, content: bytes) -> bytes:
    return hashlib.sha256(f"{place.name}/{name}\n".encode() + content).digest()
