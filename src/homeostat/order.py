"""Order: rows by event time and then id, the one in which the journal gives them.

Takes a table with `occurred_at`, and `prediction_id` where rows have one. Gives the same rows in
that order; rows that are in it already are not copied.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def ordered(rows: pa.Table) -> pa.Table:
    """The rows by event time and then id."""
    if _in_order(rows):
        return rows
    keys = [name for name in ("occurred_at", "prediction_id") if name in rows.column_names]
    order = pc.sort_indices(
        rows.select(keys).combine_chunks(), sort_keys=[(name, "ascending") for name in keys]
    )
    return rows.take(order)


def _in_order(rows: pa.Table) -> bool:
    steps = np.diff(np.asarray(rows.column("occurred_at").cast(pa.int64()).to_numpy()))
    if (steps < 0).any():
        return False
    same = np.flatnonzero(steps == 0)
    if not len(same) or "prediction_id" not in rows.column_names:
        return True
    ids = rows.column("prediction_id")
    rising = pc.less_equal(ids.take(pa.array(same)), ids.take(pa.array(same + 1)))
    return bool(pc.all(rising).as_py())
