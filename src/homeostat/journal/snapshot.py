"""One version of a Delta table of the journal, to be read in pieces of bounded size.

It takes the list of files that the table's log names. It gives the rows between two places in the
order of event time and id, the rows of given ids, and where the pieces of a scan should end; what
a later commit adds or removes changes nothing here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from homeostat.errors import JournalError
from homeostat.journal import join
from homeostat.journal.join import Key
from homeostat.order import ordered
from homeostat.schema import TIMESTAMP

APP = "homeostat"  # whose number a commit carries
SLICE = 1 << 19  # rows that a scan holds at a time, and the most in one file
HELD = 256 << 20  # bytes that one table may keep in memory between reads, as estimated
_CELL = 12  # bytes of a value in memory, on average
_KINDS = {"double": "number", "string": "category", "bool": "boolean"}

Delta: TypeAlias = Any  # deltalake.DeltaTable, which ships no types


@dataclass(frozen=True, slots=True)
class File:
    """One Parquet file; its rows are in order of event time and then id."""

    path: str  # relative to the table
    size: int  # bytes
    rows: int
    day: date | None  # None in a table that an earlier version wrote, without partitions
    first: datetime  # event time
    last: datetime
    lowest: str  # id
    highest: str


def home(field: pa.Field, present: pa.Schema) -> str:
    """The column of a table in which this one lies: its own name, unless one of another kind or
    another spelling has that already; then `name@kind`.

    Raises JournalError where that is taken, too.
    """
    for name in (field.name, f"{field.name}@{_KINDS.get(str(field.type), field.type)}"):
        taken = [known for known in present.names if known.lower() == name.lower()]
        if not taken or (taken == [name] and present.field(name).type == field.type):
            return name
    raise JournalError(
        f"the column {field.name!r} is in the history with other spellings and types.",
        hint="Give it another name in load().",
    )


def homes(columns: pa.Schema, present: pa.Schema) -> list[str]:
    """Where each of these columns lies, or will when those that are new were added."""
    names = []
    for field in columns:
        name = home(field, present)
        if name not in present.names:
            present = present.append(pa.field(name, field.type))
        names.append(name)
    return names


def cuts(
    grains: Iterable[tuple[Key, int]], low: Key | None = None, high: Key | None = None
) -> list[tuple[Key | None, Key | None]]:
    """Pieces from `low` to `high` of some `SLICE` rows each, one behind the other."""
    places, held = [low], 0
    for key, rows in sorted(grains):
        if (low is not None and key <= low) or (high is not None and key >= high):
            continue
        last = places[-1]
        if held and held + rows > SLICE and (last is None or key > last):
            places.append(key)
            held = 0
        held += rows
    return list(pairwise([*places, high]))


def named(present: pa.Schema) -> pa.Schema:
    """The columns of a table under the names that rows know them by; of two kinds, the later."""
    fields: dict[str, pa.DataType] = {}
    taken = {name.lower() for name in present.names}
    for field in present:
        base, _, kind = field.name.rpartition("@")
        beside = base.lower() in taken and kind == _KINDS.get(str(field.type))
        if not pa.types.is_date(field.type):  # the partition
            fields[base if beside else field.name] = field.type
    return pa.schema(list(fields.items()))


class Snapshot:
    """The rows of one version. Raises JournalError where a file cannot be read."""

    def __init__(
        self, path: Path, empty: pa.Schema, delta: Delta | None, before: Snapshot | None = None
    ) -> None:
        self.path = path
        self.version: int = -1 if delta is None else delta.version()
        # What the version before had in memory, which spares reading its files again.
        self._known = before.kept() if before is not None else None
        self.number = 0  # of the last commit that had one
        self._dataset = None
        self._fragments: dict[str, Any] = {}
        self.files: tuple[File, ...] = ()
        self.partitioned = True
        self.schema = self._present = empty
        if delta is None:
            return
        from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

        self._dataset = delta.to_pyarrow_dataset(
            filesystem=SubTreeFileSystem(str(path), LocalFileSystem())
        )
        self._fragments = {fragment.path: fragment for fragment in self._dataset.get_fragments()}
        self.number = delta.transaction_version(APP) or 0
        self.partitioned = delta.metadata().partition_columns == ["day"]
        self._present = self._dataset.schema
        # The partition is no column of the rows; a feature of that name lies as day@number.
        partition = ("day",) if self.partitioned else ()
        self.schema = pa.schema([f for f in self._present if f.name not in partition])
        listed = pa.table(delta.get_add_actions(flatten=True)).to_pylist()
        find = _file if "occurred_at" in self.schema.names else _timeless
        self.files = tuple(sorted((find(path, one) for one in listed), key=_placed))

    @property
    def columns(self) -> pa.Schema:
        """Its columns under the names that rows know them by."""
        return named(self._present)

    @cached_property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    def between(self, columns: pa.Schema, low: Key | None, high: Key | None) -> pa.Table:
        """The rows from `low` up to and without `high`, in their order, with these columns; null
        where the table has no column of that name and kind. None bounds nothing.
        """
        near = [file for file in self.files if _touches(file, low, high)]
        held = self._held if 2 * sum(file.rows for file in near) >= self.rows else self._ready
        if held is not None:
            return self._aligned(join.between(held, low, high), columns)
        whole = all(_inside(file, low, high) for file in near)
        rows = self._read(near, self._homes(columns), None if whole else join.inside(low, high))
        return self._aligned(ordered(rows), columns)

    def everything(self) -> pa.Table:
        """All rows with all columns, in no order."""
        return self._read(self.files, self.schema.names, None)

    def located(self, ids: pa.Array | pa.ChunkedArray, columns: pa.Schema) -> pa.Table:
        """The rows that have one of these ids, looked for in the newest files first."""
        left = pc.unique(ids)
        if not len(left) or not self.files:
            return columns.empty_table()
        if self._ready is not None:
            return self._aligned(join.having(self._ready, left), columns)
        found, identity = [columns.empty_table()], pc.field("prediction_id")
        for files in self._batches():
            lowest, highest = (bound.as_py() for bound in pc.min_max(left).values())
            some = [f for f in files if f.lowest <= highest and f.highest >= lowest]
            near = (identity >= lowest) & (identity <= highest)
            hit = join.having(self._read(some, ["prediction_id"], near), left)
            if not hit.num_rows:
                continue
            gone = pc.unique(hit.column("prediction_id"))
            rows = self._read(some, self._homes(columns), identity.isin(gone))
            found.append(self._aligned(rows, columns))
            left = left.filter(pc.invert(pc.is_in(left, gone)))
            if not len(left):
                break
        return pa.concat_tables(found)

    def grains(self, low: Key | None = None, high: Key | None = None) -> Iterator[tuple[Key, int]]:
        """Places in the order of rows, and how many rows follow each up to about the next one.

        What lies outside of `low` and `high` may be left out.
        """
        days: dict[date | None, list[File]] = {}
        for file in self.files:
            if _touches(file, low, high):
                days.setdefault(file.day, []).append(file)
        for files in days.values():
            if sum(file.rows for file in files) <= SLICE:
                yield from (((file.first, ""), file.rows) for file in files)
            else:
                yield from (grain for file in files for grain in self._groups(file))

    def newest(self, source: str | None) -> datetime | None:
        """The newest event time, of one source or of all; None where there is no such row."""
        if source is None:
            return max((file.last for file in self.files), default=None)
        newest: datetime | None = None
        columns = pa.schema([("occurred_at", TIMESTAMP), ("source", pa.string())])
        for files in self._batches():
            if newest is not None and newest >= max(file.last for file in files):
                break
            rows = self._ready
            if rows is None:
                rows = self._read(files, columns.names, pc.field("source") == source)
            moments = (newest, join.newest(rows, source))
            newest = max((moment for moment in moments if moment), default=None)
        return newest

    def only(self, files: Sequence[File]) -> Snapshot:
        """These files of it."""
        part = copy.copy(self)
        part.__dict__.pop("rows", None)
        part.__dict__["_held"] = None
        part.files = tuple(files)
        return part

    def kept(self) -> tuple[frozenset[str], pa.Table] | None:
        """What is in memory: the files and all their rows."""
        held = self._ready
        return None if held is None else (frozenset(file.path for file in self.files), held)

    # --- inside ---

    @cached_property
    def _held(self) -> pa.Table | None:
        """All rows in their order, where they are few enough to be kept.

        Files never change, so of a table that grew only the new ones are read.
        """
        known, self._known = self._known, None
        if self.rows * max(len(self.schema), 1) * _CELL > HELD:
            return None
        if known is None or not known[0] <= {file.path for file in self.files}:
            known = frozenset(), self.schema.empty_table()
        seen, rows = known
        new = [file for file in self.files if file.path not in seen]
        if new or not rows.schema.equals(self.schema):
            fresh = self._read(new, self.schema.names, None)
            rows = pa.concat_tables([rows, fresh], promote_options="default")
            rows = ordered(rows.select(self.schema.names)).combine_chunks()
        return rows

    @property
    def _ready(self) -> pa.Table | None:
        """All rows, if they are in memory, or were but for a few."""
        return self._held if "_held" in self.__dict__ or self._known is not None else None

    def _batches(self) -> Iterator[list[File]]:
        """The files, newest first, some `SLICE` rows at a time."""
        batch: list[File] = []
        for file in sorted(self.files, key=lambda file: file.last, reverse=True):
            if batch and sum(one.rows for one in batch) + file.rows > SLICE:
                yield batch
                batch = []
            batch.append(file)
        if batch:
            yield batch

    def _homes(self, columns: pa.Schema) -> list[str]:
        return [home(field, self._present) for field in columns]

    def _read(
        self, files: Sequence[File], names: Sequence[str], condition: pc.Expression | None
    ) -> pa.Table:
        """Rows of these files; of the named columns those that the table has, and the order's."""
        from pyarrow.dataset import FileSystemDataset

        needed = dict.fromkeys((*names, "prediction_id", "occurred_at"))
        wanted = [name for name in needed if name in self.schema.names]
        if self._dataset is None or not files:
            return pa.schema([self.schema.field(name) for name in wanted]).empty_table()
        try:
            part = FileSystemDataset(
                [self._fragments[file.path] for file in files],
                self._dataset.schema,
                self._dataset.format,
                self._dataset.filesystem,
            )
            return part.to_table(columns=wanted, filter=condition)
        except (OSError, pa.ArrowException) as error:
            raise unreadable("read", self.path, error) from error

    def _aligned(self, rows: pa.Table, columns: pa.Schema) -> pa.Table:
        held = [
            rows.column(name) if name in rows.column_names else pa.nulls(rows.num_rows, field.type)
            for name, field in zip(self._homes(columns), columns, strict=True)
        ]
        return pa.table(held, schema=columns)

    def _groups(self, file: File) -> Iterator[tuple[Key, int]]:
        """The row groups of a file: where each begins, and its rows."""
        from pyarrow import parquet as pq

        try:
            about = pq.read_metadata(self.path / file.path)
        except (OSError, pa.ArrowException) as error:
            raise unreadable("read", self.path, error) from error
        places = {about.row_group(0).column(i).path_in_schema: i for i in range(about.num_columns)}
        for group in map(about.row_group, range(about.num_row_groups)):
            times = group.column(places["occurred_at"]).statistics
            names = group.column(places["prediction_id"]).statistics
            if times is None or names is None or not times.has_min_max:
                yield (file.first, ""), group.num_rows
                continue
            # Of rows at one time the ids tell where the group begins.
            first = names.min if times.min == times.max and names.has_min_max else ""
            yield (_aware(times.min), first), group.num_rows


def unreadable(doing: str, path: Path, error: Exception) -> JournalError:
    """Only the error's kind is told: its text may hold a value."""
    return JournalError(
        f"could not {doing} the history {path} ({type(error).__name__}).",
        hint="If another process was cleaning up, do it again; else restore it from a copy.",
    )


def _touches(file: File, low: Key | None, high: Key | None) -> bool:
    return (low is None or file.last >= low[0]) and (high is None or file.first <= high[0])


def _inside(file: File, low: Key | None, high: Key | None) -> bool:
    return (low is None or (file.first, file.lowest) >= low) and (
        high is None or (file.last, file.highest) < high
    )


def _placed(file: File) -> tuple[datetime, str]:
    return file.first, file.path


def _file(path: Path, listed: dict[str, Any]) -> File:
    """A file as the log tells it; what the log leaves out is asked of the file."""
    rows, day = listed["num_records"], listed.get("partition.day")
    first, last = listed.get("min.occurred_at"), listed.get("max.occurred_at")
    lowest, highest = listed.get("min.prediction_id"), listed.get("max.prediction_id")
    if rows is None or first is None or last is None or lowest is None or highest is None:
        from pyarrow import parquet as pq

        held = pq.read_table(path / listed["path"], columns=["prediction_id", "occurred_at"])
        rows, times = held.num_rows, pc.min_max(held.column("occurred_at"))
        names = pc.min_max(held.column("prediction_id"))
        first, last = times["min"].as_py(), times["max"].as_py()
        lowest, highest = names["min"].as_py(), names["max"].as_py()
    return File(
        path=listed["path"],
        size=listed["size_bytes"],
        rows=rows,
        day=day,
        first=_aware(first),
        last=_aware(last),
        lowest=lowest,
        highest=highest,
    )


def _timeless(path: Path, listed: dict[str, Any]) -> File:
    """A file of labels that an earlier version wrote, without the times of their rows."""
    del path
    return File(
        path=listed["path"],
        size=listed["size_bytes"],
        rows=listed["num_records"],
        day=None,
        first=datetime.min.replace(tzinfo=UTC),
        last=datetime.max.replace(tzinfo=UTC),
        lowest="",
        highest="",
    )


def _aware(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
