"""The append-only log of predictions and labels of one project, in files of one folder.

It takes served rows, labels and refusals from any worker of the host, and imported rows from the
loop. It gives the rows of a window joined with the labels known at a time; `docs/journal.md` tells
the files, the guarantees and their bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from homeostat.contracts import Clock
from homeostat.entries import (
    Appended,
    Committed,
    Entry,
    Erased,
    Labelled,
    Refusal,
    Sealed,
    Unfinished,
)
from homeostat.errors import ConflictError
from homeostat.journal import join, jsonl, shape
from homeostat.journal.disk import Ack, Disk, Lock, Mutex
from homeostat.journal.erase import Eraser
from homeostat.journal.history import DeltaLog
from homeostat.journal.jsonl import JsonLines
from homeostat.journal.labels import Labels
from homeostat.journal.predictions import Predictions
from homeostat.journal.scan import FILED, View, numbered, upgraded
from homeostat.journal.seal import Sealer
from homeostat.records import TrainingRows, Window, utc
from homeostat.schema import SYSTEM, Schema

__all__ = ["FileJournal"]


class _WallClock:
    def now(self) -> datetime:
        return datetime.now(UTC)


class FileJournal:
    """The `contracts.Journal` in `folder`, which is made with the first write.

    Any number of processes and threads of one host may append, label, reject and read; `load` and
    `seal` wait for one another. `clock` stamps the arrival of labels. With `ack="write"` rows and
    labels are not flushed to the disk before they are acknowledged. Rows stay in the tail for
    `tail`, labels without a prediction for `orphans`; history keeps `keep` of event time, or all.
    """

    def __init__(
        self,
        folder: Path,
        *,
        clock: Clock | None = None,
        ack: Ack = "fsync",
        tail: timedelta = timedelta(days=7),
        orphans: timedelta = timedelta(days=90),
        keep: timedelta | None = None,
    ) -> None:
        disk = Disk(ack)
        clock = clock or _WallClock()
        self._clock = clock
        self._repairs = JsonLines(folder / "repairs.jsonl", disk)
        self._rejected = JsonLines(folder / "rejected.jsonl", disk)
        self._predictions = Predictions(folder, disk, self._mended)
        self._labels = Labels(folder, disk, clock, self._mended)
        self._history = DeltaLog(folder / "history" / "predictions", pa.schema(SYSTEM.items()))
        self._filed = DeltaLog(folder / "history" / "labels", FILED)
        self._history_lock = Lock(folder / "history.lock")
        self._sealer = Sealer(
            folder=folder,
            predictions=self._predictions,
            labels=self._labels,
            rows=self._history,
            filed=self._filed,
            log=JsonLines(folder / "sealed.jsonl", disk),
            view=self._view,
        )
        self._eraser = Eraser(
            folder=folder,
            predictions=self._predictions,
            labels=self._labels,
            rows=self._history,
            filed=self._filed,
            log=JsonLines(folder / "erasures.jsonl", disk),
        )
        self._tail, self._orphans, self._keep = tail, orphans, keep
        self._reading = Mutex()
        self._torn = 0

    @property
    def torn(self) -> int:
        """How many records, left unfinished by a writer that died, this instance cut off."""
        return self._torn

    @property
    def sealed(self) -> Sealed:
        """What all seals of this folder came to, conflicts and orphans among it."""
        return self._sealer.total()

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

    def load(self, rows: pa.Table, *, exported: bool = False) -> tuple[Appended, Labelled]:
        """Import rows into history; `label` is text or null, `labelled_at` null means the row's
        `recorded_at`. Runs again after a crash with the same end.

        Rows that were `exported` from a journal keep `source=serve` where they have it, and the
        monitor looks at them; all others have `load`.
        """
        served = shape.imported(rows, exported=exported)
        with self._writing():
            view = self._view()
            ids = served.column("prediction_id")
            times = join.looked_up(ids, view.times(ids), "occurred_at")
            fresh = join.first_rows(served.filter(times.is_null()))
            self._history.append(fresh, self._history.number + 1)
            times = pc.coalesce(times, join.looked_up(ids, fresh, "occurred_at"))
            filed, labelled = self._new_labels(rows, served, view, times)
            if filed.num_rows:
                self._labels.follow(utc(pc.max(filed.column("arrived_at")).as_py()))
            self._filed.append(filed, self._filed.number + 1)
        return Appended(fresh.num_rows, served.num_rows - fresh.num_rows), labelled

    def seal(self, now: datetime) -> Sealed:
        """Move into history what was recorded longer ago than the tail keeps, and tidy history up.

        A row whose id history has is not moved: with the same content it counts as repeated, else
        as a conflict. Killed at any point, the next call goes on. Raises JournalError.
        """
        with self._writing() as left:
            done = left + self._sealer.seal(now - self._tail, now - self._orphans, now)
            expired = 0
            if self._keep is not None:
                day = utc(now - self._keep).date()
                expired, _ = self._history.drop(day), self._filed.drop(day)
            for table in (self._history, self._filed):
                if table.compact() or expired:
                    table.clean()
            self._sealer.fold()
            self._rejected.fold(lambda facts: jsonl.summed(facts, now))
        return replace(done, expired=expired)

    def erase(
        self,
        now: datetime,
        *,
        ids: Sequence[str] = (),
        where: str | None = None,
        trainings: Mapping[str, TrainingRows] | None = None,
        sure: Callable[[Erased], bool] | None = None,
        finish: str | None = None,
    ) -> Erased:
        """Remove the rows of these ids, and those for which the SQL condition `where` is true,
        with their labels, and every file that held them; nothing if `sure` says no to the counts.

        `trainings` are the rows of each release, so that it is known of which some are gone.
        Killed at any point, the same call finishes it; that it is the same only the caller can
        know, and says so by `finish`, the id in `unfinished` or its beginning. Raises JournalError.
        """
        with self._writing():
            begun = None if finish is None else self._eraser.named(finish)
            view = self._view()
            found = self._eraser.find(view, ids, where)
            erased = self._eraser.weigh(view, found, trainings or {})
            if sure is None or sure(erased):
                self._eraser.erase(found, erased, now, begun)
        return erased

    def unfinished(self) -> Sequence[Unfinished]:
        """Erasures that were begun and not ended: what they were to erase may be there in part."""
        return self._eraser.unfinished()

    def erased(self) -> Mapping[str, datetime]:
        """Releases of whose training rows some were erased, and when that was first."""
        return self._eraser.releases()

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
        """All that `scan` gives with the same arguments, in one table."""
        view = self._view()
        return pa.concat_tables(
            view.scan(window, as_of=as_of, labelled=labelled, schema=schema)
        ).combine_chunks()

    def scan(
        self,
        window: Window | None = None,
        *,
        as_of: datetime | None = None,
        labelled: bool | None = None,
        schema: Schema | None = None,
    ) -> Iterator[pa.Table]:
        """Rows of tail and history, see `contracts.Journal.scan`; `labelled=False` keeps only
        those without a label. A column that an older file holds as another kind reads as null.
        """
        return self._view().scan(window, as_of=as_of, labelled=labelled, schema=schema)

    def marks(self, days: Sequence[date]) -> Mapping[date, str]:
        """A mark for each of these days of UTC that has rows, but none for a history that an
        earlier version wrote. It changes when a row of the day is added, changed or removed, and
        when its files are written anew; a label changes nothing.
        """
        return self._view().marks(days)

    def newest(self, *, source: str | None = None) -> datetime | None:
        """The newest event time, of one source or of all; None in an empty journal."""
        return self._view().newest(source)

    def refused(self, window: Window) -> Mapping[str, int]:
        """Refused rows in the window of arrival time, counted by `code` or `code:column`."""
        return jsonl.counts(self._rejected, window)

    def _mended(self, path: Path, size: int) -> None:
        self._torn += 1
        at = self._clock.now().isoformat()
        self._repairs.add([{"at": at, "file": path.name, "bytes": size}])

    def _view(self) -> View:
        """What can be read now. The tail first: what is sealed meanwhile then shows in both."""
        with self._reading.held():
            tail, sent = tuple(self._predictions.shelved()), self._labels.shelved()
            return View(tail, sent, self._history.snapshot(), self._filed.snapshot())

    @contextmanager
    def _writing(self) -> Iterator[Sealed]:
        """Hold the history alone, in the layout of this version; gives what a sealer that was
        killed had left to do.
        """
        with self._history_lock.held():
            # Nothing is taken as known, or cut from the tail, that a power cut could undo.
            self._history.flush()
            self._filed.flush()
            old, view = self._filed.snapshot(), self._view()
            if not old.partitioned:
                self._filed.upgrade(
                    lambda labels: upgraded(labels, view.times(labels.column("prediction_id")))
                )
            self._history.upgrade(lambda rows: rows)
            yield self._sealer.recover()

    def _new_labels(
        self, rows: pa.Table, served: pa.Table, view: View, times: pa.ChunkedArray
    ) -> tuple[pa.Table, Labelled]:
        """What the labels of `rows` add to those that are known, as `FILED`; `times` are the
        event times under which the rows are known.
        """
        given = shape.brought(rows, served)
        said = pc.is_valid(given.column("label"))
        given, times = given.filter(said), times.filter(said)
        count = given.num_rows
        number = pa.repeat(pa.scalar(numbered(self._filed.number + 1), pa.int64()), count)
        filed = pa.table(
            [
                *given.columns,
                given.column("recorded_at"),
                number,
                times,
                pa.repeat(pa.scalar("load"), count),
            ],
            schema=FILED,
        )
        filed = join.last_labels(filed)
        # What load() said before counts first: that it says so again is no news, even if a
        # correction has come by another way since.
        ids = filed.column("prediction_id")
        imported, sent = (join.last_labels(known) for known in view.versions(filed))
        before = pc.coalesce(
            join.looked_up(ids, imported, "label"), join.looked_up(ids, sent, "label")
        )
        same = pc.fill_null(pc.equal(before, filed.column("label")), fill_value=False)
        later = [join.looked_up(ids, known, "arrived_at") for known in (imported, sent)]
        news = join.after(filed, later).filter(pc.invert(same))
        changed = pc.sum(pc.is_valid(before.filter(pc.invert(same)))).as_py() or 0
        return news, Labelled(news.num_rows, count - news.num_rows, changed)
