"""Sums of a window's rows are what plain Python counts, in however many pieces the rows come."""

import math
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from homeostat.monitor.sums import Summing, Sums, Values
from homeostat.schema import TIMESTAMP, Feature, Schema, Target
from homeostat.traits import Traits

START = datetime(2024, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
SCHEMA = Schema(
    (Feature("temp", "number"), Feature("city", "category")),
    Target("y", "binary", "bool", ("false", "true")),
)
CELLS = st.sampled_from([None, 0.0, 1.0, 2.0, 3.5, 9.0, -8.0, math.inf, -math.inf])
ROWS = st.lists(st.tuples(st.integers(0, 5), CELLS, st.sampled_from(["Oslo", "Rome"])), max_size=25)


def table(rows, ids=None):
    """Rows of the hours, temperatures and cities given, in the order of the journal."""
    ids = ids or [f"{place:03}" for place in range(len(rows))]
    return pa.table(
        {
            "prediction_id": pa.array(ids, pa.string()),
            "occurred_at": pa.array([START + row[0] * HOUR for row in rows], TIMESTAMP),
            "temp": pa.array([row[1] for row in rows], pa.float64()),
            "city": pa.array([row[2] for row in rows], pa.string()),
        }
    ).sort_by([("occurred_at", "ascending"), ("prediction_id", "ascending")])


USUAL = Traits.of(table([(0, 0.0, "Oslo"), (1, 3.0, "Rome")]), SCHEMA, block=HOUR)


def pieces(rows, cuts):
    bounds = [0, *sorted(cut for cut in cuts if cut < rows.num_rows), rows.num_rows]
    return [rows.slice(a, b - a) for a, b in pairwise(bounds)]


@given(ROWS, st.sets(st.integers(1, 24)))
def test_sums_are_what_plain_python_counts_in_any_number_of_pieces(rows, cuts):
    rows = table(rows)
    found = Sums.of(pieces(rows, cuts), SCHEMA, USUAL)
    temps, cities = rows["temp"].to_pylist(), rows["city"].to_pylist()
    known = [value for value in temps if value is not None]
    finite = [math.isfinite(v) if v is not None else False for v in temps]
    pairs = list(zip(temps, cities, strict=True))
    assert found.rows == len(temps)
    assert found.newest == max(rows["occurred_at"].to_pylist(), default=None)
    assert found.repeated == len(pairs) - len(set(pairs))
    assert found.doubled == 0
    assert found.sample.equals(rows.select(["temp", "city"]))
    told = found.numbers["temp"]
    expected = Values(
        low=min(known, default=math.nan),
        high=max(known, default=math.nan),
        stuck=sum(ok and a == b for a, b, ok in zip(temps, temps[1:], finite[1:], strict=False)),
        infinite=sum(map(math.isinf, known)),
        outside=sum(math.isfinite(value) and not 0 <= value <= 3 for value in known),
        far=sum(math.isfinite(value) and not -3 <= value <= 6 for value in known),
    )
    assert repr(told) == repr(expected)


def test_an_id_counts_as_doubled_across_pieces_and_rows_in_disorder_are_put_in_order():
    rows = table([(i, float(i // 2), "Oslo") for i in range(6)], ["a", "b", "a", "c", "b", "a"])
    assert Sums.of(pieces(rows, {2, 4}), SCHEMA, None).doubled == 3
    assert Sums.of([rows.take([5, 2, 0, 4, 1, 3])], SCHEMA, None).numbers["temp"].stuck == 3


def test_a_window_of_any_length_is_summed_in_the_same_room():
    count, before = 20_000, pa.total_allocated_bytes()
    summing = Summing(SCHEMA, USUAL, sample=500, seed=0)
    for number in range(12):
        rows = pa.table(
            {
                "prediction_id": [f"{number}-{i}" for i in range(count)],
                "occurred_at": pa.array([START + number * HOUR] * count, TIMESTAMP),
                "temp": np.random.default_rng(number).normal(size=count),
                "city": ["Oslo"] * count,
            }
        )
        size = rows.nbytes
        summing.add(rows)
        del rows
        assert pa.total_allocated_bytes() - before < size
    assert (summing.sums().rows, summing.sums().sample.num_rows) == (12 * count, 500)
