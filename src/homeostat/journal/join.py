"""Predictions and labels become one table of rows with the label that was last known.

It takes tables in order of arrival, places in the order of rows, and the time up to which labels
count. It gives new tables and works on whole columns, never row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from homeostat.journal.shape import LABELS
from homeostat.records import Window, utc
from homeostat.schema import TIMESTAMP

Key: TypeAlias = tuple[datetime, str]
"""A place in the order of rows: event time, and within one time the id."""

NEWEST = 1 << 62  # numbers in the tail are above all in history

ARRIVALS = pa.schema(
    [
        *LABELS,
        ("arrived_at", TIMESTAMP),  # recorded_at, but never earlier than that of a label before
        ("number", pa.int64()),  # tells labels that arrived at one time apart
    ]
)
"""Versions of labels as they follow one another: by `arrived_at`, then by `number`."""


def arrivals(labels: pa.Table, numbers: NDArray[np.int64]) -> pa.Table:
    """`SENT`, or `LABELS` in the order in which they came, as `ARRIVALS`.

    `numbers`, shape (rows,), rise from label to label.
    """
    if "arrived_at" in labels.column_names:
        arrived = labels.column("arrived_at")
    else:
        arrived = pa.array(np.maximum.accumulate(_micros(labels, "recorded_at"))).cast(TIMESTAMP)
    columns = [*labels.select(LABELS.names).columns, arrived, pa.array(numbers)]
    return pa.table(columns, schema=ARRIVALS)


def keys(window: Window | None) -> tuple[Key | None, Key | None]:
    """The places at which a window starts and ends; None for no bound."""
    return (None, None) if window is None else ((window.start, ""), (window.end, ""))


def inside(low: Key | None, high: Key | None) -> pc.Expression | None:
    """The condition that a row lies at or behind `low` and before `high`."""
    time, identity = pc.field("occurred_at"), pc.field("prediction_id")
    found: pc.Expression | None = None
    if low is not None:
        start = pa.scalar(utc(low[0]), TIMESTAMP)
        found = time >= start
        if low[1]:
            found = found & ((time > start) | (identity >= low[1]))
    if high is not None:
        end = pa.scalar(utc(high[0]), TIMESTAMP)
        before = time < end
        if high[1]:
            before = (time <= end) & (before | (identity < high[1]))
        found = before if found is None else found & before
    return found


def between(rows: pa.Table, low: Key | None, high: Key | None) -> pa.Table:
    """The rows from `low` up to and without `high`, in the order in which they are."""
    condition = inside(low, high)
    return rows if condition is None else rows.filter(condition)


def key_at(rows: pa.Table, place: int) -> Key:
    """Where the row at `place` stands in the order."""
    moment = rows.column("occurred_at")[place].as_py()
    return utc(moment), rows.column("prediction_id")[place].as_py()


def first_rows(rows: pa.Table) -> pa.Table:
    """The first row of each id."""
    coded = rows.column("prediction_id").combine_chunks().dictionary_encode()
    if len(coded.dictionary) == rows.num_rows:
        return rows
    _, places = np.unique(coded.indices.to_numpy(), return_index=True)
    return rows.take(pa.array(np.sort(places)))


def without(rows: pa.Table, ids: pa.Array | pa.ChunkedArray) -> pa.Table:
    """The rows that have none of these ids."""
    if not len(ids) or not rows.num_rows:
        return rows
    known = pc.is_in(rows.column("prediction_id"), value_set=_whole(ids))
    return rows.filter(pc.invert(known))


def having(rows: pa.Table, ids: pa.Array | pa.ChunkedArray) -> pa.Table:
    """The rows that have one of these ids."""
    if not rows.num_rows or not len(ids):
        return rows.slice(0, 0)
    return rows.filter(pc.is_in(rows.column("prediction_id"), value_set=_whole(ids)))


def newest(rows: pa.Table, source: str | None) -> datetime | None:
    """The newest event time, of one source or of all; None without such rows."""
    times = rows.column("occurred_at")
    if source is not None:
        times = times.filter(pc.equal(rows.column("source"), source))
    moment = pc.max(times).as_py()
    return None if moment is None else utc(moment)


def joined(
    rows: pa.Table,
    labels: pa.Table,
    as_of: datetime | None,
    *,
    labelled: bool | None,
    numbers: bool,
) -> pa.Table:
    """`rows`, each id once, with `label` and `labelled_at`: the last version of its label.

    `labels` are `ARRIVALS`; of versions that stand there twice either will do. Those that had not
    arrived by `as_of` do not count, see `_arrived`. With `numbers` the labels are float64.
    """
    labels, row = placed(labels, rows.column("prediction_id"))
    return at_places(rows, labels, row, as_of, labelled=labelled, numbers=numbers)


def placed(labels: pa.Table, ids: pa.ChunkedArray) -> tuple[pa.Table, NDArray[np.int64]]:
    """The labels of these ids, each of which stands there once, and the place of each one's id."""
    place = pc.index_in(labels.column("prediction_id"), value_set=ids.combine_chunks())
    known = place.is_valid()
    row = np.asarray(place.filter(known).to_numpy(), dtype=np.int64)
    return labels.filter(known), row


def at_places(
    rows: pa.Table,
    labels: pa.Table,
    row: NDArray[np.int64],
    as_of: datetime | None,
    *,
    labelled: bool | None,
    numbers: bool,
) -> pa.Table:
    """As `joined`, of labels whose rows are those at the places `row`, shape (labels,)."""
    if as_of is not None:
        counts = _arrived(labels, _micros(rows, "recorded_at")[row], as_of)
        labels, row = labels.filter(pa.array(counts)), row[counts]
    order = np.lexsort([_micros(labels, "number"), _micros(labels, "arrived_at")])
    last = np.full(rows.num_rows, -1, dtype=np.int64)
    last[row[order]] = order
    chosen = pa.array(last, mask=last < 0)
    kinds = {"label": pa.float64() if numbers else pa.string(), "labelled_at": TIMESTAMP}
    for name, kind in kinds.items():
        column = labels.column(name).take(chosen).cast(kind)
        rows = rows.append_column(pa.field(name, kind), column)
    if labelled is not None:
        rows = rows.filter(chosen.is_valid() if labelled else chosen.is_null())
    return rows


def last_labels(labels: pa.Table) -> pa.Table:
    """The last version of each label; `labels` are `ARRIVALS`."""
    coded = labels.column("prediction_id").combine_chunks().dictionary_encode()
    if len(coded.dictionary) == labels.num_rows:
        return labels
    order = np.lexsort([_micros(labels, "number"), _micros(labels, "arrived_at")])
    last = np.empty(len(coded.dictionary), dtype=np.int64)
    last[coded.indices.to_numpy()[order]] = order
    return labels.take(pa.array(np.sort(last)))


def after(labels: pa.Table, before: Sequence[pa.ChunkedArray]) -> pa.Table:
    """`labels` with `arrived_at` behind each of the times `before`, shape (rows,) or null."""
    latest = _micros(labels, "arrived_at")
    for times in before:
        known = times.cast(pa.int64()).fill_null(np.iinfo(np.int64).min).to_numpy()
        latest = np.maximum(latest, known + 1)
    place = labels.schema.get_field_index("arrived_at")
    return labels.set_column(place, labels.schema.field(place), pa.array(latest).cast(TIMESTAMP))


def looked_up(ids: pa.ChunkedArray, table: pa.Table, name: str) -> pa.ChunkedArray:
    """The value of each id in the column `name` of a table of ids, null where it has none."""
    if not table.num_rows:
        return pa.chunked_array([pa.nulls(len(ids), table.schema.field(name).type)])
    place = pc.index_in(ids, value_set=table.column("prediction_id").combine_chunks())
    return table.column(name).take(place)


def _arrived(labels: pa.Table, recorded: NDArray[np.int64], as_of: datetime) -> NDArray[np.bool_]:
    """Which labels had arrived by `as_of`; `recorded` are the times at which their rows came.

    A label counts from `labelled_at`. Where its row was journalled by `as_of`, the clock that
    stamped the row is that of `as_of`, and the label must have been journalled by then, too:
    dated back, it would else show in a past that did not know it. Where the row itself came
    later, imported or streamed in event time, what was known when only `labelled_at` tells.
    """
    bound = pa.scalar(utc(as_of), TIMESTAMP).cast(pa.int64()).as_py()
    came = (recorded > bound) | (_micros(labels, "recorded_at") <= bound)
    return np.asarray((_micros(labels, "labelled_at") <= bound) & came)


def _whole(ids: pa.Array | pa.ChunkedArray) -> pa.Array:
    return ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids


def _micros(rows: pa.Table, name: str) -> NDArray[np.int64]:
    return np.asarray(rows.column(name).cast(pa.int64()).to_numpy())
