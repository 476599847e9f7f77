"""The append-only log of predictions and labels of one project, in files of one folder.

It takes served rows, labels and refusals from any worker of the host, and imported rows from the
loop. It gives the rows of a window joined with the labels known at a time; `docs/journal.md` tells
the files, the guarantees and their bounds.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from homeostat.contracts import Clock
from homeostat.errors import ConflictError
from homeostat.journal import join, jsonl, shape
from homeostat.journal.disk import Ack, Disk
from homeostat.journal.history import DeltaLog
from homeostat.journal.jsonl import JsonLines
from homeostat.journal.labels import Labels
from homeostat.journal.predictions import Predictions
from homeostat.records import Appended, Committed, Entry, Labelled, Refusal, Window
from homeostat.schema import SYSTEM, Schema

__all__ = ["FileJournal"]

_HISTORY = pa.schema([*shape.LABELS, ("commit", pa.int64())])


class _WallClock:
    def now(self) -> datetime:
        return datetime.now(UTC)


class FileJournal:
    """The `contracts.Journal` in `folder`, which is made with the first write.

    Any number of processes and threads of one host may append, label, reject and read; `load` is
    for one process at a time. `clock` stamps the arrival of labels. With `ack="write"` rows and
    labels are not flushed to the disk before they are acknowledged.
    """

    def __init__(
        self, folder: Path, *, clock: Clock | None = None, ack: Ack = "fsync"
    ) -> None:
        disk = Disk(ack)
        clock = clock or _WallClock()
        self._clock = clock
        self._repairs = JsonLines(folder / "repairs.jsonl", disk)
        self._rejected = JsonLines(folder / "rejected.jsonl", disk)
        self._predictions = Predictions(folder, disk, self._mended)
        self._labels = Labels(folder, disk, clock, self._mended)
        self._history = DeltaLog(folder / "history" / "predictions", pa.schema(SYSTEM.items()))
        self._labelled = DeltaLog(folder / "history" / "labels", _HISTORY)
        self._reading = threading.Lock()
        self._torn = 0

    @property
    def torn(self) -> int:
        """How many records, left unfinished by a writer that died, this instance cut off."""
        return self._torn

    def catch_up(self) -> None:
        """Read the tail's ids and mend it, which the first append would otherwise wait for."""
        self._predictions.catch_up()
        self._labels.catch_up()

    def append(self, rows: pa.Table) -> Appended:
        """Add served rows, durably. Content is the features and `occurred_at`.

        Raises ConflictError with the row's number, and JournalError when nothing was written.
        """
        return self._predictions.append(rows)

    def commit(
        self, columns: pa.Schema, entries: Sequence[Entry]
    ) -> list[Committed | ConflictError]:
        """Add the rows of several requests by one write and one flush; one result for each.

        `columns` are those of `Schema.journal`. A ConflictError, whose `row` counts within its
        entry, stands for an entry of which no row was written; it says nothing of the others.
        Raises JournalError when nothing may be acknowledged.
        """
        return self._predictions.commit(columns, entries)

    def known(self, ids: Sequence[str]) -> pa.Table:
        """The rows of the tail that have one of these ids, in the order of `ids`, without labels.

        With them a repeated request gets the answer that was recorded.
        """
        return self._predictions.known(ids)

    def label(self, labels: pa.Table) -> Labelled:
        """Add labels, durably; where `labelled_at` is null it is the time of arrival."""
        return self._labels.append(labels)

    def load(self, rows: pa.Table) -> tuple[Appended, Labelled]:
        """Import rows into history; `label` is text or null, `labelled_at` null means the row's
        `recorded_at`. Runs again after a crash with the same end.
        """
        served = shape.conformed(rows)
        source = pa.repeat(pa.scalar("load"), served.num_rows)
        place = served.schema.get_field_index("source")
        served = served.set_column(place, served.schema.field(place), source)
        with self._reading:
            fresh = self._unknown(served)
            if fresh.num_rows:
                self._history.append(fresh)
            news, labelled = self._new_labels(rows, served)
            if news.num_rows:
                self._labelled.append(news)
        return Appended(fresh.num_rows, served.num_rows - fresh.num_rows), labelled

    def reject(self, refusals: Sequence[Refusal], at: datetime) -> None:
        """Count refused rows by code and column, durably, without their values."""
        self._rejected.add(jsonl.refusals(refusals, at))

    def read(
        self,
        window: Window | None = None,
        *,
        as_of: datetime | None = None,
        labelled: bool | None = None,
        schema: Schema | None = None,
    ) -> pa.Table:
        """Rows of tail and history, see `contracts.Journal.read`; `labelled=False` keeps only
        those without a label. A column that an older file holds as another kind reads as null.
        """
        with self._reading:
            tables = [self._history.table(), *self._predictions.tables()]
            labels = join.last_labels(self._labelled.table(), self._labels.table(), as_of)
        columns = schema.journal if schema else shape.union([table.schema for table in tables])
        rows = pa.concat_tables([shape.aligned(table, columns) for table in tables])
        rows = join.within(join.first_rows(rows), window)
        rows = join.joined(rows, labels, labelled=labelled)
        if schema is not None and schema.target.task == "regression":
            place = rows.schema.get_field_index("label")
            rows = rows.set_column(place, "label", rows.column(place).cast(pa.float64()))
        return rows

    def newest(self, *, source: str | None = None) -> datetime | None:
        """The newest event time, of one source or of all; None in an empty journal."""
        with self._reading:
            tables = [self._history.table(), *self._predictions.tables()]
        moments = []
        for table in tables:
            times = table.column("occurred_at")
            if source is not None:
                times = times.filter(pc.equal(table.column("source"), source))
            moments.append(pc.max(times).as_py())
        return max((moment.astimezone(UTC) for moment in moments if moment), default=None)

    def refused(self, window: Window) -> Mapping[str, int]:
        """Refused rows in the window of arrival time, counted by `code` or `code:column`."""
        return jsonl.counts(self._rejected, window)

    def _mended(self, path: Path, size: int) -> None:
        self._torn += 1
        at = self._clock.now().isoformat()
        self._repairs.add([{"at": at, "file": path.name, "bytes": size}])

    def _unknown(self, rows: pa.Table) -> pa.Table:
        """The rows whose id is neither in tail nor history, each id once."""
        tables = [self._history.table(), *self._predictions.tables()]
        known = pa.chunked_array(
            [chunk for table in tables for chunk in table.column("prediction_id").chunks],
            pa.string(),
        )
        new = pc.invert(pc.is_in(rows.column("prediction_id"), value_set=known.combine_chunks()))
        return join.first_rows(rows.filter(new))

    def _new_labels(self, rows: pa.Table, served: pa.Table) -> tuple[pa.Table, Labelled]:
        """What the labels of `rows` add to those that are known."""
        given = pa.table(
            {
                "prediction_id": served.column("prediction_id"),
                "label": rows.column("label"),
                "labelled_at": pc.coalesce(
                    rows.column("labelled_at"), served.column("recorded_at")
                ),
                "recorded_at": served.column("recorded_at"),
            }
        )
        given = shape.labels(given).filter(pc.is_valid(given.column("label")))
        count, none = given.num_rows, _HISTORY.empty_table()
        given = join.last_labels(none, given, None)
        # What load() said before counts first: that it says so again is no news, even if a
        # correction has come by another way since.
        imported = join.last_labels(self._labelled.table(), shape.LABELS.empty_table(), None)
        sent = join.last_labels(none, self._labels.table(), None)
        ids = given.column("prediction_id")
        before = pc.coalesce(join.looked_up(ids, imported), join.looked_up(ids, sent))
        same = pc.fill_null(pc.equal(before, given.column("label")), fill_value=False)
        commit = pa.repeat(pa.scalar(self._labelled.commits), given.num_rows)
        given = given.append_column("commit", commit)
        news = given.filter(pc.invert(same))
        changed = pc.sum(pc.is_valid(before.filter(pc.invert(same)))).as_py() or 0
        return news, Labelled(news.num_rows, count - news.num_rows, changed)
