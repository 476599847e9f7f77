"""The tail of labels: one CSV file with every version of every label, in order of arrival.

It takes labels by prediction id, known or not, and appends those that say something new. It
gives counts, and all versions as one table.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from homeostat.contracts import Clock
from homeostat.errors import JournalError
from homeostat.journal import lines, shape
from homeostat.journal.disk import Disk, locked
from homeostat.journal.tail import Rows, Tail
from homeostat.records import Labelled
from homeostat.schema import TIMESTAMP


class Last:
    """The last version of each label."""

    def __init__(self) -> None:
        self.texts: dict[bytes, bytes] = {}

    def clear(self) -> None:
        self.texts = {}

    def add(self, data: bytes, offset: int) -> None:  # noqa: ARG002 - the order is enough here
        self.texts.update(_pairs(lines.decode(data, shape.LABELS)))


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
        self._lock = folder / "labels.lock"
        self._disk = disk
        self._clock = clock
        self._torn = torn
        self._last = Last()
        self._written = Tail(self._path, shape.LABELS, self._last)
        self._rows = Rows(shape.LABELS)
        self._read = Tail(self._path, shape.LABELS, self._rows)

    def append(self, labels: pa.Table) -> Labelled:
        """See `contracts.Journal.label`."""
        table = self._stamped(labels)
        data = lines.encode(table)
        with locked(self._lock):
            if not self._path.exists():
                self._disk.replace(self._path, lines.header(shape.LABELS))
            with self._written.open(os.O_RDWR | os.O_APPEND) as file:
                torn = self._written.follow(file)
                if torn:
                    self._disk.cut(file, self._written.end, self._path)
                    self._torn(self._path, torn)
                rows, news, changed = self._news(table)
                if len(rows) < table.num_rows:
                    data = lines.encode(table.take(pa.array(rows, pa.int64())))
                if rows:
                    self._disk.append(file, data, self._written.end, self._path)
                    self._written.appended(len(data))
                    self._last.texts.update(news)
        return Labelled(len(rows), table.num_rows - len(rows), changed)

    def catch_up(self) -> None:
        """Read what others appended, so that the next append has less to do."""
        if self._path.exists():
            self.append(shape.LABELS.empty_table())

    def table(self) -> pa.Table:
        """All versions, in order of arrival."""
        with locked(self._lock, shared=True):
            if not self._path.exists():
                return shape.LABELS.empty_table()
            with self._read.open(os.O_RDONLY) as file:
                self._read.follow(file)
        return self._rows.table

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

    def _news(self, table: pa.Table) -> tuple[list[int], dict[bytes, bytes], int]:
        """Positions of what is new, the last version by id, and how many replace another."""
        rows: list[int] = []
        news: dict[bytes, bytes] = {}
        changed = 0
        for row, (key, label) in enumerate(_pairs(table)):
            before = news.get(key, self._last.texts.get(key))
            if before != label:
                rows.append(row)
                news[key] = label
                changed += before is not None
        return rows, news, changed
