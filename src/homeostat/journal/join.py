"""Predictions and labels become one table of rows with the label that was last known.

It takes tables in order of arrival, the window and the time up to which labels count. It gives
new tables and works on whole columns, never row by row.
"""

from __future__ import annotations

from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from homeostat.journal.shape import LABELS
from homeostat.records import Window, utc
from homeostat.schema import TIMESTAMP


def first_rows(rows: pa.Table) -> pa.Table:
    """The row of each id that was recorded first; of rows recorded at once, the first here."""
    codes, distinct = _codes(rows)
    if distinct == rows.num_rows:
        return rows
    order = np.argsort(_micros(rows, "recorded_at"), kind="stable")[::-1]
    return rows.take(_chosen(codes, distinct, order))


def last_labels(history: pa.Table, tail: pa.Table, as_of: datetime | None) -> pa.Table:
    """The last version of each label, of those with `labelled_at` not after `as_of`.

    Versions follow one another by `recorded_at`; within the tail their order in the file counts,
    should the clock have been set back, and within history that of the commits.
    """
    if as_of is not None:
        bound = pa.scalar(utc(as_of), TIMESTAMP)
        history = history.filter(pc.less_equal(history.column("labelled_at"), bound))
        tail = tail.filter(pc.less_equal(tail.column("labelled_at"), bound))
    history = history.sort_by([("recorded_at", "ascending"), ("commit", "ascending")])
    rows = pa.concat_tables([history.select(LABELS.names), tail])
    arrived = np.concatenate(
        [
            _micros(history, "recorded_at"),
            np.maximum.accumulate(_micros(tail, "recorded_at")),
        ]
    )
    codes, distinct = _codes(rows)
    return rows.take(_chosen(codes, distinct, np.argsort(arrived, kind="stable")))


def looked_up(ids: pa.ChunkedArray, labels: pa.Table) -> pa.ChunkedArray:
    """The label of each id, null where there is none."""
    return labels.column("label").take(_places(ids, labels))


def joined(rows: pa.Table, labels: pa.Table, *, labelled: bool | None) -> pa.Table:
    """`rows` with `label` and `labelled_at`, by event time and then id."""
    place = _places(rows.column("prediction_id"), labels)
    for name in ("label", "labelled_at"):
        rows = rows.append_column(labels.schema.field(name), labels.column(name).take(place))
    if labelled is not None:
        keep = place.is_valid() if labelled else place.is_null()
        rows = rows.filter(keep)
    return rows.take(_ordered(rows))


def within(rows: pa.Table, window: Window | None) -> pa.Table:
    """The rows whose event time lies in the window."""
    if window is None:
        return rows
    times = rows.column("occurred_at")
    return rows.filter(
        pc.and_(
            pc.greater_equal(times, pa.scalar(window.start, TIMESTAMP)),
            pc.less(times, pa.scalar(window.end, TIMESTAMP)),
        )
    )


def _places(ids: pa.ChunkedArray, labels: pa.Table) -> pa.ChunkedArray:
    return pc.index_in(ids, value_set=labels.column("prediction_id").combine_chunks())


def _ordered(rows: pa.Table) -> pa.Array:
    return pc.sort_indices(
        rows.select(["occurred_at", "prediction_id"]).combine_chunks(),
        sort_keys=[("occurred_at", "ascending"), ("prediction_id", "ascending")],
    )


def _codes(rows: pa.Table) -> tuple[NDArray[np.int32], int]:
    """A number for each id, and how many ids there are."""
    coded = rows.column("prediction_id").combine_chunks().dictionary_encode()
    return coded.indices.to_numpy(), len(coded.dictionary)


def _micros(rows: pa.Table, name: str) -> NDArray[np.int64]:
    return np.asarray(rows.column(name).cast(pa.int64()).to_numpy())


def _chosen(codes: NDArray[np.int32], distinct: int, order: NDArray[np.int64]) -> pa.Array:
    """For each id the position that comes last in `order`; positions ascend."""
    chosen = np.empty(distinct, dtype=np.int64)
    chosen[codes[order]] = order
    return pa.array(np.sort(chosen))
