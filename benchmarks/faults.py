"""Faults as they happen to data, injected into a window of served rows.

It takes the rows of a window in the journal's columns, and which of its features to hit. It gives
the rows as they would have come, with what the server refused and how late it is, and names the
checks of which one has to say so. The same seed gives the same fault.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

DAY = timedelta(days=1)


@dataclass(frozen=True)
class Served:
    """What reached the journal, or did not."""

    rows: pa.Table
    refused: Mapping[str, int] = field(default_factory=dict)
    late: timedelta = timedelta(0)  # how long after the window it is looked at


@dataclass(frozen=True)
class Hit:
    """Which features are hit, and what those look like in the reference."""

    number: str
    values: np.ndarray  # of `number` in the reference, without null
    category: str | None
    rare: str | None  # a level of `category` with less than half of the rows
    random: np.random.Generator


@dataclass(frozen=True)
class Fault:
    name: str
    checks: tuple[str, ...]  # one of these has to trip
    inject: Callable[[Served, Hit], Served]
    category: bool = False  # needs a category


def put(served: Served, name: str, values: object, kind: pa.DataType | None = None) -> Served:
    """The same with other values in one column."""
    place = served.rows.schema.get_field_index(name)
    column = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, kind)
    return replace(served, rows=served.rows.set_column(place, name, column))


def numbers(served: Served, name: str) -> np.ndarray:
    return served.rows.column(name).cast(pa.float64()).to_numpy().copy()


def some(served: Served, hit: Hit, share: float) -> np.ndarray:
    """Which rows are hit: about `share` of them, at random."""
    return hit.random.random(served.rows.num_rows) < share


def changed(
    served: Served, hit: Hit, change: Callable[[np.ndarray], np.ndarray], share: float = 1.0
) -> Served:
    values = numbers(served, hit.number)
    new = np.where(some(served, hit, share), change(values), values)
    return put(served, hit.number, pa.array(new, from_pandas=True))


def without(served: Served, name: str | None) -> Served:
    return replace(served, rows=served.rows.drop_columns([str(name)]))


def as_text(served: Served, hit: Hit) -> Served:
    told = [None if v is None else f"{v} km" for v in served.rows.column(hit.number).to_pylist()]
    return put(served, hit.number, told, pa.string())


def as_dates(served: Served, hit: Hit) -> Served:
    return put(served, hit.number, pc.strftime(served.rows.column("occurred_at"), "%d.%m.%Y"))


def nulls(served: Served, hit: Hit, share: float) -> Served:
    return changed(served, hit, lambda v: np.full(len(v), np.nan), share)


def sentinel(served: Served, hit: Hit) -> Served:
    low, high = hit.values.min(), hit.values.max()
    return changed(served, hit, lambda v: np.full(len(v), low - 5 * (high - low)), 0.4)


def shifted(served: Served, hit: Hit) -> Served:
    low, high = np.quantile(hit.values, [0.05, 0.95])
    return changed(served, hit, lambda v: v + 5 * (high - low))


def stuck(served: Served, hit: Hit, share: float) -> Served:
    """From a time on the sensor repeats what it said last."""
    values = numbers(served, hit.number)
    known = np.flatnonzero(~np.isnan(values))
    if not len(known):
        return served
    since = known[min(int((1 - share) * len(known)), len(known) - 1)]
    values[since:] = values[since]
    return put(served, hit.number, pa.array(values, from_pandas=True))


def infinite(served: Served, hit: Hit) -> Served:
    return changed(served, hit, lambda v: np.full(len(v), np.inf), 0.15)


def one_level(served: Served, hit: Hit) -> Served:
    return put(served, str(hit.category), [hit.rare] * served.rows.num_rows, pa.string())


def renamed(served: Served, hit: Hit, share: float) -> Served:
    values = served.rows.column(str(hit.category)).to_pylist()
    struck = some(served, hit, share)
    told = [f"{v} (new)" if s else v for v, s in zip(values, struck, strict=True)]
    return put(served, str(hit.category), told, pa.string())


def refused(served: Served, hit: Hit) -> Served:
    kept = served.rows.filter(pa.array(~some(served, hit, 0.7)))
    lost = served.rows.num_rows - kept.num_rows
    return replace(served, rows=kept, refused={f"wrong_type:{hit.number}": lost})


def collapsed(served: Served, hit: Hit) -> Served:
    return replace(served, rows=served.rows.filter(pa.array(some(served, hit, 0.04))))


def silent_day(served: Served, hit: Hit) -> Served:
    """Nothing came on a day in the middle."""
    times = served.rows.column("occurred_at").cast(pa.int64()).to_numpy() // (DAY // DAY.resolution)
    middle = (times.min() + times.max()) // 2
    return replace(served, rows=served.rows.filter(pa.array(times != middle)))


def doubled(served: Served, hit: Hit) -> Served:
    again = served.rows.filter(pa.array(some(served, hit, 0.2)))
    return replace(served, rows=pa.concat_tables([served.rows, again]))


def repeated(rows: pa.Table, place: np.ndarray) -> pa.Table:
    """The features of other rows under the ids and times of these."""
    again = rows.take(pa.array(place))
    for name in ("prediction_id", "occurred_at", "recorded_at"):
        if name in rows.column_names:
            again = again.set_column(again.schema.get_field_index(name), name, rows.column(name))
    return again


def sent_again(served: Served, hit: Hit) -> Served:
    """The second half of the window brings the rows of the first, as new ones."""
    count = served.rows.num_rows
    place = np.arange(count)
    place[count // 2 :] = place[: count - count // 2]
    return replace(served, rows=repeated(served.rows, place))


def frozen(served: Served, hit: Hit) -> Served:
    """The last two thirds of the window repeat one row."""
    count = served.rows.num_rows
    place = np.minimum(np.arange(count), count // 3)
    return replace(served, rows=repeated(served.rows, place))


def without_zone(served: Served, hit: Hit) -> Served:
    times = served.rows.column("occurred_at").cast(pa.int64()).cast(pa.timestamp("us"))
    return put(served, "occurred_at", times)


UNIT = ("unit_change", "out_of_range")
FAULTS = (
    Fault("number missing", ("missing_column",), lambda s, h: without(s, h.number)),
    Fault("category missing", ("missing_column",), lambda s, h: without(s, h.category), True),
    Fault("number as text", ("retyped_column",), as_text),
    Fault("number became a date", ("retyped_column",), as_dates),
    Fault("null throughout", ("empty_column",), lambda s, h: nulls(s, h, 1.0)),
    Fault("null in 70 %", ("null_spike",), lambda s, h: nulls(s, h, 0.7)),
    Fault("sentinel in 40 %", ("out_of_range",), sentinel),
    Fault("infinite in 15 %", ("not_finite",), infinite),
    Fault("times 1,000", UNIT, lambda s, h: changed(s, h, lambda v: v * 1000)),
    Fault("inches to cm", UNIT, lambda s, h: changed(s, h, lambda v: v * 2.54)),
    Fault("share to percent, inverse", UNIT, lambda s, h: changed(s, h, lambda v: v / 100)),
    Fault("shifted by a constant", UNIT, shifted),
    Fault("stuck throughout", ("constant_column",), lambda s, h: stuck(s, h, 1.0)),
    Fault("stuck for 80 %", ("stuck_values",), lambda s, h: stuck(s, h, 0.8)),
    Fault("one rare level only", ("constant_column",), one_level, True),
    Fault("all levels renamed", ("unseen_levels",), lambda s, h: renamed(s, h, 1.0), True),
    Fault("levels renamed in 70 %", ("unseen_levels",), lambda s, h: renamed(s, h, 0.7), True),
    Fault("70 % refused", ("refused_rows",), refused),
    Fault("traffic fell to 4 %", ("row_volume",), collapsed),
    Fault("a day without rows", ("row_gap",), silent_day),
    Fault("nothing came for 30 days", ("stale_feed",), lambda s, h: replace(s, late=30 * DAY)),
    Fault("20 % with the same ids", ("duplicated_ids",), doubled),
    Fault("old rows sent again", ("repeated_rows",), sent_again),
    Fault("one row repeated", ("repeated_rows", "stuck_values"), frozen),
    Fault("times without a zone", ("unusable_times",), without_zone),
)
