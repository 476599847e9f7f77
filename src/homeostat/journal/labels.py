"""The tail of labels: one CSV file with every version of every label, in order of arrival.

It takes labels by prediction id, known or not, and appends those that say something new. It
gives counts, and all versions as one table.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from homeostat.contracts import Clock
from homeostat.entries import Labelled
from homeostat.errors import JournalError
from homeostat.journal import join, lines, shape
from homeostat.journal.disk import Disk, Lock, failed
from homeostat.journal.lines import Places
from homeostat.journal.mark import NEVER, Mark
from homeostat.journal.portion import LIMIT, Cut, Stretch, moved
from homeostat.journal.shelf import Shelf, Shelved
from homeostat.journal.tail import Consumer, Nothing, Portion, Tail, at_end
from homeostat.records import utc
from homeostat.schema import TIMESTAMP

_NAME = "labels"  # in the place of a fingerprint


class Last:
    """The last version of each label, with the offset of the record that brought it, and when the
    last of all was recorded.
    """

    def __init__(self) -> None:
        self.texts: dict[bytes, tuple[int, bytes]] = {}
        self.latest = NEVER

    def clear(self) -> None:
        self.texts = {}

    def add(self, data: bytes, ends: Places, offset: int) -> None:
        starts = (offset + end for end in [0, *ends[:-1].tolist()])
        rows = lines.decode(data, shape.SENT)
        self.latest = max(self.latest, _latest(rows))
        pairs = _pairs(rows)
        self.texts.update(
            (key, (start, text)) for start, (key, text) in zip(starts, pairs, strict=True)
        )

    def drop(self, bound: int) -> bool:
        self.texts = {key: last for key, last in self.texts.items() if last[0] >= bound}
        return True


def _latest(rows: pa.Table) -> datetime:
    """When the last of one or more labels arrived."""
    return utc(pc.max(rows.column("arrived_at")).as_py())


def _stamped(labels: pa.Table, moment: datetime) -> pa.Table:
    now = pa.scalar(moment, TIMESTAMP)
    if "recorded_at" in labels.column_names:
        labels = labels.drop_columns("recorded_at")
    table = shape.labels(labels.append_column("recorded_at", pa.repeat(now, labels.num_rows)))
    for name in ("prediction_id", "label"):
        if table.column(name).null_count:
            raise JournalError(f"{name!r} must be given for every label.")
    place = shape.LABELS.get_field_index("labelled_at")
    times = pc.fill_null(table.column(place), now)
    return table.set_column(place, shape.LABELS.field(place), times)


def _end(moment: datetime) -> bytes:
    """What makes a record of `LABELS`, without its newline, one of `SENT`."""
    times = pa.table([[moment]], schema=pa.schema([shape.SENT.field("arrived_at")]))
    return b"," + lines.encode(times)


def _ordered(labels: pa.Table) -> pa.Table:
    """Labels of an earlier version, in the order in which they came, as `SENT`."""
    table = join.arrivals(labels, np.arange(labels.num_rows))
    return table.select(shape.SENT.names)


def _pairs(table: pa.Table) -> Iterator[tuple[bytes, bytes]]:
    return zip(
        table.column("prediction_id").cast(pa.binary()).to_pylist(),
        table.column("label").cast(pa.binary()).to_pylist(),
        strict=True,
    )


class Labels:
    """The tail of labels in `folder`."""

    def __init__(
        self, folder: Path, disk: Disk, clock: Clock, torn: Callable[[Path, int], None]
    ) -> None:
        self._path = folder / "labels.csv"
        self._lock = Lock(folder / "labels.lock")
        self._cutting = Lock(folder / "labels.cut.lock")
        self._mark = Mark(folder / "labels_latest.json")
        self._disk = disk
        self._clock = clock
        self._torn = torn
        self._generation = self._lock.generation
        self._begin()

    def append(self, labels: pa.Table) -> Labelled:
        """See `contracts.Journal.label`."""
        now = utc(self._clock.now())
        given = _stamped(labels, now)
        # All but the time of arrival is ready before the lock is held, for which others wait.
        records, pairs = list(lines.Encoder(shape.LABELS).of(given)), list(_pairs(given))
        self._disk.trusted()
        with self._caught_up():
            moment = max(now, self._last.latest, self._mark.read())
            rows, news, changed = self._news(pairs)
            tail = self._written
            if rows:
                arrived = _end(moment)
                written = [records[row][:-1] + arrived for row in rows]
                data = b"".join(written)
                self._disk.write(tail.file.file, data, tail.place(tail.end), self._path)
                starts = accumulate(map(len, written), initial=tail.end)
                offsets = dict(zip(rows, starts, strict=False))
                self._last.texts.update(
                    (key, (offsets[row], text)) for key, (row, text) in news.items()
                )
                tail.appended(len(data))
                self._last.latest = moment
            opened, end = tail.file, tail.end
        # What is repeated may be another worker's, who has not flushed it yet.
        if pairs:
            self._disk.sync(opened, end, self._path)
        return Labelled(len(rows), len(pairs) - len(rows), changed)

    def catch_up(self) -> None:
        """Read what others appended, so that the next append has less to do."""
        if self._path.exists():
            self.append(shape.LABELS.empty_table())

    def shelved(self) -> Shelved:
        """All versions, in order of arrival. For one thread at a time."""
        if not self._there():
            return self._shelf().shelved()
        step = self._step(lambda: self._read)
        with at_end(self._lock, step, shared=True, between=self._settle):
            pass
        self._settle()
        return self._rows.shelved()

    def follow(self, moment: datetime) -> None:
        """Let no label count as arrived before `moment` from now on, whatever the clock says: what
        goes into history came before what follows.
        """
        with self._lock.held():
            if moment > self._mark.read():
                self._mark.write(moment, self._disk)

    def portions(self, before: datetime, now: datetime, limit: int = LIMIT) -> list[Portion]:
        """The first labels, `limit` at most, as far as all were recorded `before`; or nothing."""
        front = self._stretch()
        portion = front.portion(_NAME, before, now, limit) if front is not None else None
        return [portion] if portion is not None else []

    def cut(self, portion: Portion, keep: pa.Table | None = None) -> bool:
        """See `Predictions.cut`."""
        if keep is not None and "arrived_at" not in keep.column_names:
            keep = _ordered(keep)
        kept = lines.encode(shape.cast(keep, shape.SENT)) if keep is not None else b""
        with self._cutting.held():
            front = self._stretch()
            if front is None or portion.fingerprint != _NAME or not front.begins_with(portion):
                return False
            return self._replaced(Cut(front, portion.length, [kept], self._disk))

    def erase(self, ids: pa.Array) -> None:
        """See `Predictions.erase`."""
        with self._cutting.held():
            front = self._stretch()
            if front is not None and front.has(ids):
                cut = Cut(front, front.size, front.without(ids), self._disk)
                if not self._replaced(cut):
                    raise moved(self._path)

    def _replaced(self, cut: Cut) -> bool:
        with at_end(self._lock, self._step(lambda: self._front)):
            if not cut.replace(self._front):
                return False
            if self._front.torn:  # it stayed behind
                self._torn(self._path, self._front.torn)
        return True

    def _settle(self) -> None:
        try:
            self._rows.settle()
        except pa.ArrowInvalid:
            raise self._read.misfit() from None  # Arrow's text holds the value

    def _begin(self) -> None:
        self._last, self._rows = Last(), self._shelf()
        self._written = self._tail(self._last, os.O_RDWR | os.O_APPEND)
        self._read = self._tail(self._rows, os.O_RDONLY)
        self._front = self._tail(Nothing(shape.SENT), os.O_RDONLY)

    def _shelf(self) -> Shelf:
        return Shelf(shape.SENT, self._path.parent, ordered=False)

    def _tail(self, consumer: Consumer, flags: int) -> Tail:
        cuts = self._path.with_suffix(".cuts.json")
        return Tail(self._path, shape.SENT, consumer, flags=flags, cuts=cuts)

    def _step(self, tail: Callable[[], Tail]) -> Callable[[], bool]:
        """Reads a piece of one of our tails, for who holds the lock."""

        def step() -> bool:
            # In a forked child what is in memory may be half done.
            if self._generation != self._lock.generation:
                self._generation = self._lock.generation
                self._begin()
            return tail().step()

        return step

    def _stretch(self) -> Stretch | None:
        if not self._there():
            return None
        with at_end(self._lock, self._step(lambda: self._front), shared=True):
            return Stretch.of(self._front)

    @contextmanager
    def _caught_up(self) -> Iterator[None]:
        """Hold the lock with the file made if there is none, read to its end and mended."""
        with at_end(self._lock, self._made):
            tail = self._written
            if tail.torn:
                self._disk.cut(tail.file.file, tail.place(tail.end), self._path)
                self._torn(self._path, tail.torn)
                tail.torn = 0
            yield

    def _made(self) -> bool:
        if self._written.state() is None:
            self._upgrade()
            if not self._path.exists():
                self._disk.replace(self._path, lines.header(shape.SENT))
        return self._step(lambda: self._written)()

    def _there(self) -> bool:
        """Whether there is a file, which is then one of this version."""
        if not self._path.exists():
            return False
        if self._read.state() is None and self._old() is not None:
            with self._lock.held():
                self._upgrade()
        return True

    def _old(self) -> bytes | None:
        """What the file holds if an earlier version wrote it, without its header."""
        header = lines.header(shape.LABELS)
        try:
            with self._path.open("rb") as file:
                return file.read() if file.read(len(header)) == header else None
        except FileNotFoundError:
            return None
        except OSError as error:
            raise failed("read", self._path, error) from error

    def _upgrade(self) -> None:
        """Write the file of an earlier version anew, under the lock, with the order of arrival."""
        data = self._old()
        if data is None:
            return
        ends = lines.ends(data)
        whole = int(ends[-1]) if len(ends) else 0
        try:
            rows = _ordered(lines.decode(data[:whole], shape.LABELS))
        except pa.ArrowInvalid:
            raise self._written.misfit() from None
        self._disk.replace(self._path, lines.header(shape.SENT) + lines.encode(rows))
        if whole < len(data):
            self._torn(self._path, len(data) - whole)

    def _news(
        self, pairs: Sequence[tuple[bytes, bytes]]
    ) -> tuple[list[int], dict[bytes, tuple[int, bytes]], int]:
        """Positions of what is new, the last of them by id, and how many replace another."""
        rows: list[int] = []
        news: dict[bytes, tuple[int, bytes]] = {}
        changed = 0
        for row, (key, label) in enumerate(pairs):
            before = news.get(key) or self._last.texts.get(key)
            if before is None or before[1] != label:
                rows.append(row)
                news[key] = row, label
                changed += before is not None
        return rows, news, changed
