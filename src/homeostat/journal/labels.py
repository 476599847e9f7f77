"""The tail of labels: one CSV file with every version of every label, in order of arrival.

It takes labels by prediction id, known or not, and appends those that say something new. It
gives counts, and all versions as one table.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import accumulate
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from homeostat.contracts import Clock
from homeostat.errors import JournalError
from homeostat.journal import lines, shape
from homeostat.journal.disk import Disk, Lock
from homeostat.journal.lines import Places
from homeostat.journal.portion import LIMIT, Cut, Stretch
from homeostat.journal.tail import Consumer, Nothing, Portion, Rows, Tail
from homeostat.records import Labelled
from homeostat.schema import TIMESTAMP

_NAME = "labels"  # in the place of a fingerprint


class Last:
    """The last version of each label, with the offset of the record that brought it."""

    def __init__(self) -> None:
        self.texts: dict[bytes, tuple[int, bytes]] = {}

    def clear(self) -> None:
        self.texts = {}

    def add(self, data: bytes, ends: Places, offset: int) -> None:
        starts = (offset + end for end in [0, *ends[:-1].tolist()])
        pairs = _pairs(lines.decode(data, shape.LABELS))
        self.texts.update(
            (key, (start, text)) for start, (key, text) in zip(starts, pairs, strict=True)
        )

    def drop(self, bound: int) -> bool:
        self.texts = {key: last for key, last in self.texts.items() if last[0] >= bound}
        return True


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
        self._disk = disk
        self._clock = clock
        self._torn = torn
        self._generation = self._lock.generation
        self._begin()

    def append(self, labels: pa.Table) -> Labelled:
        """See `contracts.Journal.label`."""
        table = self._stamped(labels)
        records = list(lines.Encoder(shape.LABELS).of(table))
        self._disk.trusted()
        with self._caught_up():
            rows, news, changed = self._news(table)
            tail, sizes = self._written, [len(records[row]) for row in rows]
            if rows:
                data = b"".join(records[row] for row in rows)
                self._disk.write(tail.file.file, data, tail.place(tail.end), self._path)
                offsets = dict(zip(rows, accumulate(sizes, initial=tail.end), strict=False))
                self._last.texts.update(
                    (key, (offsets[row], text)) for key, (row, text) in news.items()
                )
                tail.appended(len(data))
            opened, end = tail.file, tail.end
        # What is repeated may be another worker's, who has not flushed it yet.
        if table.num_rows:
            self._disk.sync(opened, end, self._path)
        return Labelled(len(rows), table.num_rows - len(rows), changed)

    def catch_up(self) -> None:
        """Read what others appended, so that the next append has less to do."""
        if self._path.exists():
            self.append(shape.LABELS.empty_table())

    def table(self) -> pa.Table:
        """All versions, in order of arrival."""
        with self._lock.held(shared=True):
            self._fork()
            if not self._path.exists():
                return shape.LABELS.empty_table()
            self._read.follow()
            return self._rows.table

    def portions(self, before: datetime, limit: int = LIMIT) -> list[Portion]:
        """The first labels, `limit` at most, as far as all were recorded `before`; or nothing."""
        front = self._stretch()
        portion = front.portion(_NAME, before, limit) if front is not None else None
        return [portion] if portion is not None else []

    def cut(self, portion: Portion, keep: pa.Table | None = None) -> bool:
        """See `Predictions.cut`."""
        kept = lines.encode(shape.cast(keep, shape.LABELS)) if keep is not None else b""
        with self._cutting.held():
            front = self._stretch()
            if front is None or portion.fingerprint != _NAME or not front.begins_with(portion):
                return False
            cut = Cut(front, portion, kept, self._disk)
            with self._lock.held():
                torn = self._front.follow()
                if not cut.replace(self._front):
                    return False
                if torn:  # it stayed behind
                    self._torn(self._path, torn)
        return True

    def _begin(self) -> None:
        self._last, self._rows = Last(), Rows(shape.LABELS)
        self._written = self._tail(self._last, os.O_RDWR | os.O_APPEND)
        self._read = self._tail(self._rows, os.O_RDONLY)
        self._front = self._tail(Nothing(shape.LABELS), os.O_RDONLY)

    def _tail(self, consumer: Consumer, flags: int) -> Tail:
        cuts = self._path.with_suffix(".cuts.json")
        return Tail(self._path, shape.LABELS, consumer, flags=flags, cuts=cuts)

    def _fork(self) -> None:
        """In a forked child what is in memory may be half done: begin anew."""
        if self._generation != self._lock.generation:
            self._generation = self._lock.generation
            self._begin()

    def _stretch(self) -> Stretch | None:
        with self._lock.held(shared=True):
            self._fork()
            if not self._path.exists():
                return None
            self._front.follow()
            return Stretch.of(self._front)

    @contextmanager
    def _caught_up(self) -> Iterator[None]:
        """Hold the lock with the file made if there is none, read to its end and mended."""
        with self._lock.held():
            self._fork()
            state = self._written.state()
            if state is None and not self._path.exists():
                self._disk.replace(self._path, lines.header(shape.LABELS))
            torn = self._written.follow(state)
            if torn:
                end = self._written.place(self._written.end)
                self._disk.cut(self._written.file.file, end, self._path)
                self._torn(self._path, torn)
            yield

    def _stamped(self, labels: pa.Table) -> pa.Table:
        now = pa.scalar(self._clock.now(), TIMESTAMP)
        if "recorded_at" in labels.column_names:
            labels = labels.drop_columns("recorded_at")
        table = shape.labels(labels.append_column("recorded_at", pa.repeat(now, labels.num_rows)))
        for name in ("prediction_id", "label"):
            if table.column(name).null_count:
                raise JournalError(f"{name!r} must be given for every label.")
        place = shape.LABELS.get_field_index("labelled_at")
        times = pc.fill_null(table.column(place), now)
        return table.set_column(place, shape.LABELS.field(place), times)

    def _news(self, table: pa.Table) -> tuple[list[int], dict[bytes, tuple[int, bytes]], int]:
        """Positions of what is new, the last of them by id, and how many replace another."""
        rows: list[int] = []
        news: dict[bytes, tuple[int, bytes]] = {}
        changed = 0
        for row, (key, label) in enumerate(_pairs(table)):
            before = news.get(key) or self._last.texts.get(key)
            if before is None or before[1] != label:
                rows.append(row)
                news[key] = row, label
                changed += before is not None
        return rows, news, changed
