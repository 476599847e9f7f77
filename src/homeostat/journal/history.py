"""The long memory of the journal: Delta tables of predictions and of labels, by day of event time.

It takes tables from the one process that may write here and adds each as one atomic commit with a
number, by which a writer that was killed finds out what it had done. It gives snapshots to read,
and keeps files few, old ones removed and the log short.
"""

from __future__ import annotations

import io
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from homeostat import files
from homeostat.errors import JournalError
from homeostat.journal import join
from homeostat.journal.snapshot import APP, SLICE, Delta, File, Snapshot, cuts, homes, unreadable
from homeostat.order import ordered
from homeostat.schema import TIMESTAMP

GROUP = 1 << 16  # rows that a reader skips or takes together
FEW = 4  # files of one day that may be small
_THREADS = 8
_ENTRY = re.compile(r"\d{20}\.json")
_SMALL = SLICE // 4  # rows; a file with fewer is small
_KEPT = 24  # hours that replaced files and old log entries stay for those who read them
_INDEXED = ("prediction_id", "occurred_at", "source")  # what the log tells of each file
_CONFIGURATION = {
    "delta.checkpointInterval": "10",
    "delta.logRetentionDuration": f"interval {_KEPT} hours",
    "delta.dataSkippingStatsColumns": ",".join(_INDEXED),
}


class DeltaLog:
    """One Delta table; new columns are merged into its schema.

    Columns of which the name is taken by another kind lie beside it as `name@kind`. One process
    at a time may write. Raises JournalError.
    """

    def __init__(self, path: Path, empty: pa.Schema) -> None:
        self.path = path
        self._empty = empty
        self._snapshot = Snapshot(path, empty, None)
        self._distrusted = False

    def snapshot(self) -> Snapshot:
        """The newest version."""
        if self._newest() != self._snapshot.version:
            self._snapshot = Snapshot(self.path, self._empty, self._open(), self._snapshot)
        return self._snapshot

    @property
    def number(self) -> int:
        """Of the last commit that had one; 0 before the first."""
        return self.snapshot().number

    def append(self, rows: pa.Table, number: int) -> None:
        """Add rows in one commit that carries `number`, one above the last."""
        if not rows.num_rows:
            return
        delta = self._ready(rows.schema)
        rows = rows.rename_columns(homes(rows.schema, pa.schema(delta.schema().to_arrow())))
        self._commit(delta, self._written(ordered(rows)), (), number)

    def rewrite(self, days: Sequence[date], without: pa.Array | None = None) -> None:
        """Replace the files of these days by full ones in one commit, without the rows of these
        ids.
        """
        snapshot, changed = self.snapshot(), without is not None
        old = [file for file in snapshot.files if file.day in set(days)]
        adds: list[Any] = []
        for day in days:
            part = snapshot.only([file for file in old if file.day == day])
            for low, high in cuts(part.grains()):
                rows = part.between(snapshot.schema, low, high)
                if without is not None:
                    rows = join.without(rows, without)
                adds += self._written(rows, changed=changed)
        if old:
            self._commit(self._ready(snapshot.schema), adds, old, None, changed=changed)

    def compact(self) -> bool:
        """Rewrite days of many small files; whether there were such."""
        small: dict[date | None, int] = {}
        for file in self.snapshot().files:
            small[file.day] = small.get(file.day, 0) + (file.rows < _SMALL)
        days = [day for day, count in small.items() if count > FEW and day is not None]
        self.rewrite(days)
        return bool(days)

    def drop(self, before: date) -> int:
        """Remove the days earlier than `before`; how many rows they had."""
        old = [file for file in self.snapshot().files if file.day and file.day < before]
        if old:
            self._commit(self._ready(self._empty), [], old, None)
        return sum(file.rows for file in old)

    def clean(self, *, at_once: bool = False) -> None:
        """Remove files that no version in use names. `at_once`: also what others may be reading,
        and from the log what it tells of them.
        """
        delta = self._open()
        if delta is None:
            return
        for left in self.path.rglob(".*.tmp"):
            left.unlink(missing_ok=True)
        try:
            delta.vacuum(
                retention_hours=0 if at_once else _KEPT,
                dry_run=False,
                enforce_retention_duration=False,
                full=True,
            )
            if at_once:
                self._forget(self._open())
        except Exception as error:  # deltalake raises bare Exceptions
            raise unreadable("clean up", self.path, error) from error

    def upgrade(self, change: Callable[[pa.Table], pa.Table]) -> None:
        """Partition a table that an earlier version wrote, in one commit."""
        from deltalake import DeltaTable, write_deltalake

        snapshot = self.snapshot()
        if snapshot.partitioned:
            return
        rows = ordered(change(snapshot.everything()))
        days = rows.column("occurred_at").cast(pa.date32())
        rows = rows.rename_columns(homes(rows.schema, pa.schema([("day", pa.date32())])))
        try:
            write_deltalake(
                self.path,
                rows.append_column("day", days),
                mode="overwrite",
                schema_mode="overwrite",
                partition_by=["day"],
            )
            DeltaTable(self.path).alter.set_table_properties(_CONFIGURATION)
        except Exception as error:  # deltalake raises bare Exceptions
            raise unreadable("partition", self.path, error) from error

    # --- inside ---

    def _open(self) -> Delta | None:
        from deltalake import DeltaTable

        # A writer that is killed before its first commit leaves a log without one.
        if not any((self.path / "_delta_log").glob("*.json")):
            return None
        try:
            return DeltaTable(self.path)
        except Exception as error:  # deltalake raises bare Exceptions
            raise unreadable("read", self.path, error) from error

    def _ready(self, columns: pa.Schema) -> Delta:
        """The table, made if it is not there, with all these columns."""
        from deltalake import DeltaTable, Schema

        try:
            delta = self._open()
            if delta is None:
                self.path.mkdir(parents=True, exist_ok=True)
                delta = DeltaTable.create(
                    self.path,
                    pa.schema([*self._empty, ("day", pa.date32())]),
                    partition_by=["day"],
                    configuration=_CONFIGURATION,
                )
            present = pa.schema(delta.schema().to_arrow())
            new = [
                pa.field(name, field.type)
                for name, field in zip(homes(columns, present), columns, strict=True)
                if name not in present.names
            ]
            if new:
                delta.alter.add_columns(list(Schema.from_arrow(pa.schema(new)).fields))
                delta = self._open()
        except JournalError:
            raise
        except Exception as error:  # deltalake raises bare Exceptions
            raise unreadable("prepare", self.path, error) from error
        return delta

    def _newest(self) -> int:
        """The number of the newest version, as the log's files tell it; -1 without any."""
        try:
            names = [entry.name for entry in os.scandir(self.path / "_delta_log")]
        except (FileNotFoundError, NotADirectoryError):
            return -1
        return max((int(name[:-5]) for name in names if _ENTRY.fullmatch(name)), default=-1)

    def _written(self, rows: pa.Table, *, changed: bool = True) -> list[Any]:
        """Rows in their order as files on the disk, not yet in the table."""
        parts = list(_by_day(rows))
        if not parts:
            return []
        # Small files wait for the disk most of the time, and for large ones there is no room.
        count = min(_THREADS, max(1, SLICE // max(part.num_rows for _, part in parts)))
        with ThreadPoolExecutor(count) as threads:
            return list(threads.map(lambda part: self._file(part[0], part[1], changed), parts))

    def _file(self, day: date, rows: pa.Table, changed: bool) -> Any:
        """One file of one day, as an action that adds it."""
        from deltalake.transaction import AddAction
        from pyarrow import parquet as pq

        path = f"day={day}/{uuid.uuid4()}.parquet"
        sink = io.BytesIO()
        pq.write_table(rows, sink, compression="zstd", row_group_size=GROUP)
        try:
            files.write(self.path / path, sink.getvalue())
        except OSError as error:
            raise unreadable("write to", self.path, error) from error
        at = time.time_ns() // 1_000_000
        told = json.dumps(_about(rows))
        return AddAction(path, sink.tell(), {"day": str(day)}, at, changed, told)

    def _commit(
        self,
        delta: Delta,
        adds: list[Any],
        old: Sequence[File],
        number: int | None,
        *,
        changed: bool = True,
    ) -> None:
        """One version more; it is on the disk when this returns."""
        from deltalake import CommitProperties, Transaction
        from deltalake.transaction import RemoveAction

        at = time.time_ns() // 1_000_000
        removes = [
            RemoveAction(file.path, changed, at, file.size, {"day": str(file.day)}) for file in old
        ]
        carried = [Transaction(APP, number)] if number is not None else None
        self._trusted()
        try:
            files.sync(self.path)
            delta.create_write_transaction(
                [*adds, *removes],
                "append",
                delta.schema(),
                ["day"],
                commit_properties=CommitProperties(app_transactions=carried),
            )
            self._sync_log()
        except Exception as error:  # deltalake raises bare Exceptions
            raise unreadable("commit to", self.path, error) from error

    def flush(self) -> None:
        """Make the newest version durable, which a writer that was killed may not have done.

        Raises JournalError; after a failed flush always, since a second one would report success.
        """
        self._trusted()
        if self._newest() >= 0:
            try:
                self._sync_log()
            except OSError as error:
                raise unreadable("commit to", self.path, error) from error

    def _trusted(self) -> None:
        if self._distrusted:
            raise JournalError(
                f"{self.path} could not be flushed to the disk, so nothing more is written.",
                hint="Check the disk, then restart this process.",
            )

    def _sync_log(self) -> None:
        log = self.path / "_delta_log"
        newest = max((entry for entry in log.iterdir() if entry.suffix == ".json"), default=None)
        try:
            for path in (newest, log, self.path, self.path.parent):
                if path is not None:
                    files.sync(path)
        except OSError:
            self._distrusted = True
            raise

    def _forget(self, delta: Delta) -> None:
        """Leave only the newest version in the log: older entries tell the bounds of ids."""
        delta.create_checkpoint()
        for entry in (self.path / "_delta_log").iterdir():
            version = entry.name.partition(".")[0]
            if version.isdigit() and int(version) < delta.version():
                entry.unlink()
        files.sync(self.path / "_delta_log")


def _by_day(rows: pa.Table) -> Iterator[tuple[date, pa.Table]]:
    """Ordered rows in pieces of one day and at most `SLICE` rows."""
    if not rows.num_rows:
        return
    days = rows.column("occurred_at").cast(pa.date32()).cast(pa.int32()).to_numpy()
    starts = np.flatnonzero(np.diff(days, prepend=days[0] - 1))
    for start, end in zip(starts, [*starts[1:], rows.num_rows], strict=True):
        day = pa.scalar(int(days[start]), pa.int32()).cast(pa.date32()).as_py()
        for place in range(int(start), int(end), SLICE):
            yield day, rows.slice(place, min(SLICE, int(end) - place))


def _about(rows: pa.Table) -> dict[str, Any]:
    """What the log tells of a file: Delta's statistics."""
    told: dict[str, Any] = {"numRecords": rows.num_rows}
    told |= {"minValues": {}, "maxValues": {}, "nullCount": {}}
    for name in _INDEXED:
        if name not in rows.column_names:
            continue
        column = rows.column(name)
        bounds = pc.min_max(column)
        told["nullCount"][name] = column.null_count
        if bounds["min"].is_valid:
            told["minValues"][name] = _text(bounds["min"])
            told["maxValues"][name] = _text(bounds["max"])
    return told


def _text(value: pa.Scalar) -> str:
    if value.type != TIMESTAMP:
        return str(value.as_py())
    moment: datetime = value.as_py()
    return moment.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
