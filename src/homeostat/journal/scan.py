"""Rows of a window with their labels, piece by piece, however long the window is.

It takes what the tail held at one moment, and snapshots of history that are not older. It gives
tables in the order of event time and id, each of bounded size; an id shows once, as it is recorded
in history where both know it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from homeostat.journal import join, shape
from homeostat.journal.join import ARRIVALS, Key
from homeostat.journal.shape import LABELS
from homeostat.journal.shelf import Shelved
from homeostat.journal.snapshot import Snapshot, cuts
from homeostat.order import ordered
from homeostat.records import MICROSECOND, Window, utc
from homeostat.schema import TIMESTAMP, Schema

FILED = pa.schema(
    [
        *ARRIVALS,
        ("occurred_at", ARRIVALS.field("labelled_at").type),  # of the prediction
        ("source", pa.string()),  # load: an import said so; sent: a client or a person
    ]
)
"""Labels as they lie in history, beside the rows that they belong to."""
_IDS = pa.schema([("prediction_id", pa.string())])
_MARKED = pa.schema(
    [("prediction_id", pa.string()), ("occurred_at", TIMESTAMP), ("recorded_at", TIMESTAMP)]
)


@dataclass(frozen=True)
class View:
    """What tail and history hold; the tail was read first, so that nothing sealed is missed."""

    tail: tuple[Shelved, ...]
    sent: Shelved  # labels of the tail
    rows: Snapshot
    labels: Snapshot

    def scan(
        self,
        window: Window | None,
        *,
        as_of: datetime | None,
        labelled: bool | None,
        schema: Schema | None,
    ) -> Iterator[pa.Table]:
        """See `contracts.Journal.scan`."""
        low, high = join.keys(window)
        columns = schema.journal if schema else self.columns()
        numbers = schema is not None and schema.target.task == "regression"
        grains = chain(self.rows.grains(low, high), *(shelf.grains() for shelf in self.tail))
        for start, end in cuts(grains, low, high):
            # By calls alone, so that no piece is held while the next is read.
            yield join.joined(
                *self._piece(columns, start, end), as_of, labelled=labelled, numbers=numbers
            )

    def marks(self, days: Sequence[date]) -> dict[date, str]:
        """See `FileJournal.marks`. A file of history never changes, and a row of the tail is what
        its id and its time of recording say.
        """
        if not self.rows.partitioned:
            return {}
        paths: dict[date | None, list[str]] = {}
        for file in self.rows.files:
            paths.setdefault(file.day, []).append(file.path)
        found = {}
        for day in days:
            start = datetime.combine(day, time(), UTC)
            rows = self._unsealed(_MARKED, *join.keys(Window(start, start + timedelta(days=1))))
            held = sorted(paths.get(day, ()))
            if held or rows.num_rows:
                digest = hashlib.sha256("\n".join(held).encode())
                for batch in rows.combine_chunks().to_batches():
                    digest.update(batch.serialize())
                found[day] = digest.hexdigest()
        return found

    def columns(self) -> pa.Schema:
        """All columns of all rows, the system's first; of two kinds, the later."""
        return shape.union([self.rows.columns, *(shelf.columns for shelf in self.tail)])

    def newest(self, source: str | None) -> datetime | None:
        """The newest event time, of one source or of all; None without such rows."""
        tail = (rows for shelf in self.tail for rows in shelf.pieces())
        moments = [self.rows.newest(source), *(join.newest(rows, source) for rows in tail)]
        return max((moment for moment in moments if moment is not None), default=None)

    def times(self, ids: pa.Array | pa.ChunkedArray) -> pa.Table:
        """`prediction_id` and `occurred_at` of those ids that are known, each once."""
        columns = pa.schema([_IDS.field(0), FILED.field("occurred_at")])
        found = [self.rows.located(ids, columns)]
        found += [shelf.having(ids, columns.names) for shelf in self.tail]
        some = [table for table in found if table.num_rows]
        return join.first_rows(pa.concat_tables(some)) if len(some) > 1 else (some or found)[0]

    def versions(self, labels: pa.Table) -> tuple[pa.Table, pa.Table]:
        """All versions of the labels of these ids, as `ARRIVALS`: what imports said, and what was
        sent. `labels` has the columns `prediction_id` and `occurred_at`.
        """
        ids, bounds = labels.column("prediction_id"), pc.min_max(labels.column("occurred_at"))
        parts = [FILED.empty_table()]
        if bounds["min"].is_valid:
            low = utc(bounds["min"].as_py()), ""
            high = utc(bounds["max"].as_py()) + MICROSECOND, ""
            for start, end in cuts(self.labels.grains(low, high), low, high):
                parts.append(join.having(self.labels.between(FILED, start, end), ids))
        filed = pa.concat_tables(parts)
        imported = pc.equal(filed.column("source"), "load")
        sent = self._sent(ids)
        return (
            filed.filter(imported).select(ARRIVALS.names),
            pa.concat_tables([filed.filter(pc.invert(imported)).select(ARRIVALS.names), sent]),
        )

    def _piece(
        self, columns: pa.Schema, low: Key | None, high: Key | None
    ) -> tuple[pa.Table, pa.Table]:
        """Rows between two places in their order, and their labels as `ARRIVALS`."""
        held = self.rows.between(columns, low, high)
        rows = ordered(pa.concat_tables([held, self._unsealed(columns, low, high)]))
        labels = [filed(self, low, high), self._sent(rows.column("prediction_id"))]
        return rows, pa.concat_tables(labels)

    def _unsealed(self, columns: pa.Schema, low: Key | None, high: Key | None) -> pa.Table:
        """The rows of the tail that history does not know; all lie within the bounds."""
        tables = [
            shape.aligned(rows, columns) for shelf in self.tail for rows in shelf.pieces(low, high)
        ]
        rows = ordered(pa.concat_tables([columns.empty_table(), *tables]))
        return join.without(rows, self.rows.located(rows.column("prediction_id"), _IDS)[0])

    def _sent(self, ids: pa.Array | pa.ChunkedArray) -> pa.Table:
        """The labels of the tail of these ids, as `ARRIVALS`."""
        sent = self.sent.having(ids, self.sent.schema.names)
        offsets = np.asarray(sent.columns[-1].to_numpy(), dtype=np.int64)
        return join.arrivals(sent, join.NEWEST + offsets)


def numbered(number: int) -> int:
    """The number of the first label of a commit; there is room for all of them behind it."""
    return number << 32


def filed(view: View, low: Key | None, high: Key | None) -> pa.Table:
    """The labels in history of the rows between two places, as `ARRIVALS`."""
    if view.labels.partitioned:
        return view.labels.between(ARRIVALS, low, high)
    whole = view.labels.everything()
    rows = join.between(upgraded(whole, view.times(whole.column("prediction_id"))), low, high)
    return rows.select(ARRIVALS.names)


def upgraded(labels: pa.Table, times: pa.Table) -> pa.Table:
    """Labels of a history that an earlier version wrote, as `FILED`; all came by import.

    `times` tells the event times of their rows.
    """
    ids = labels.column("prediction_id")
    count = labels.num_rows
    rows = pa.table(
        [
            *labels.select(LABELS.names).columns,
            labels.column("recorded_at"),
            labels.column("commit"),
            join.looked_up(ids, times, "occurred_at"),
            pa.repeat(pa.scalar("load"), count),
        ],
        schema=FILED,
    )
    return rows.filter(rows.column("occurred_at").is_valid())
