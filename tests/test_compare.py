"""`homeostat.compare`: two frames in, one report out."""

import json

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeostat import compare
from homeostat.errors import SchemaError


def frame(days, per_day=60, seed=0, shift=0.0, weather=0.5):
    """Days that differ by nature in `temp`; `sales` follows it, `shop` does not."""
    rng = np.random.default_rng(seed)
    day = np.repeat(np.arange(days), per_day)
    temp = rng.normal(weather * rng.normal(size=days)[day])
    return pd.DataFrame(
        {
            "at": pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(day, unit="D"),
            "temp": temp,
            "sales": temp + 0.3 * rng.normal(size=len(day)) + shift,
            "shop": rng.choice(["a", "b", "c"], len(day)),
            "open": rng.random(len(day)) < 0.7,
        }
    )


def untimed(rows):
    return rows.drop(columns="at")


OLD = frame(140)


def test_pandas_polars_and_arrow_give_the_same_report():
    now = frame(7, seed=1, shift=1.0)
    expected = compare(OLD, now, time="at")
    assert compare(pl.from_pandas(OLD), pl.from_pandas(now), time="at") == expected
    arrow = [pa.Table.from_pandas(f, preserve_index=False) for f in (OLD, now)]
    assert compare(*arrow, time="at") == expected


def test_rows_in_another_order_give_the_same_bits():
    now = frame(7, seed=1)
    mixed = [f.sample(frac=1, random_state=3, ignore_index=True) for f in (OLD, now)]
    assert compare(*mixed, time="at").to_json() == compare(OLD, now, time="at").to_json()


@pytest.mark.parametrize("sides", [(OLD, OLD.head(1)), (OLD.head(1), OLD)])
@pytest.mark.parametrize("time", ["at", None])
def test_a_single_row_on_either_side_is_too_little_whatever_is_asked_for(sides, time):
    frames = sides if time else map(untimed, sides)
    found = compare(*frames, time=time, min_rows=1)
    assert (found.verdict, found.drifted) == ("insufficient_data", ())


def test_days_that_differ_by_nature_drift_only_where_rows_are_taken_as_independent():
    now = frame(7, seed=2)
    found = compare(OLD, now, time="at")
    assert (found.verdict, found.calibrated, found.drifted) == ("stable", True, ())
    assert (found.reference_rows, found.current_rows) == (8400, 420)
    assert (found.reference_blocks, found.current_blocks) == (140, 7)
    alone = compare(untimed(OLD), untimed(frame(1, seed=5)), min_effect=0.0)
    assert "temp" in alone.drifted
    assert not alone.calibrated
    assert alone.joint is None


def test_a_shift_against_another_column_is_found_together_before_it_is_found_alone():
    found = compare(OLD, frame(7, seed=2, shift=0.3), time="at")
    assert found.drifted == ()
    assert found.verdict == "drift"
    assert found.joint.drifted
    assert found.joint.test in {"sales given the others, blocks", "temp given the others, blocks"}


def test_columns_that_come_apart_are_found_though_each_is_as_it_was():
    now = frame(7, seed=2)
    now["sales"] = now["sales"].sample(frac=1, random_state=0).to_numpy()
    found = compare(OLD, now, time="at")
    assert (found.verdict, found.drifted) == ("drift", ())
    assert found.joint.test == "temp with sales, blocks"


def test_a_missing_column_is_null_and_a_new_one_is_not_looked_at():
    now = frame(7, seed=2).drop(columns="shop").assign(new=1.0)
    found = compare(OLD, now, time="at")
    assert found.drifted == ("shop",)
    assert [c.column for c in found.columns] == ["temp", "sales", "shop", "open"]


def test_too_few_rows_are_no_verdict():
    found = compare(OLD, OLD.head(20), time="at")
    assert (found.verdict, found.columns) == ("insufficient_data", ())
    assert compare(untimed(OLD).head(0), untimed(OLD)).verdict == "insufficient_data"


def test_the_report_is_json_without_a_number_that_is_not_one():
    still = pd.DataFrame({"x": np.full(100, 3.0), "y": [None] * 100, "z": ["a"] * 100})
    found = compare(still, still)
    assert found.verdict == "stable"
    assert json.loads(found.to_json())["columns"][0]["distance"] == 0.0


def test_what_cannot_be_compared_is_named():
    with pytest.raises(SchemaError, match="'when' is not a column"):
        compare(OLD, OLD, time="when")
    naive = OLD.assign(at=OLD["at"].dt.tz_localize(None))
    with pytest.raises(SchemaError, match="zone"):
        compare(naive, naive, time="at")
    with pytest.raises(SchemaError, match="'at' is a point or length of time"):
        compare(OLD, OLD)
    with pytest.raises(SchemaError, match="list cannot be compared"):
        compare([1], OLD)
    with pytest.raises(SchemaError, match="'temp' holds"):
        compare(OLD, OLD.assign(temp="warm"), time="at")
    twice = pa.table([[1.0], [2.0]], names=["x", "x"])
    with pytest.raises(SchemaError, match="two columns have the same name"):
        compare(twice, twice)
    mixed = pd.DataFrame({"x": pd.Series(["a", 1.0] * 40, dtype=object)})
    with pytest.raises(SchemaError, match="mixes types"):
        compare(mixed, mixed)


COLUMNS = st.sampled_from(["normal", "constant", "null", "infinite", "few", "text", "new", "flag"])


def odd(kinds, days, per_day, seed, current):
    """Rows of columns that are odd in all ways that a type allows."""
    rng = np.random.default_rng(seed)
    rows = days * per_day
    make = {
        "normal": lambda: rng.normal(size=rows),
        "constant": lambda: np.full(rows, 7.0),
        "null": lambda: np.full(rows, np.nan),
        "infinite": lambda: rng.choice([np.inf, -np.inf, 0.0, 1e308], rows),
        "few": lambda: rng.integers(0, 2, rows).astype(float),
        "text": lambda: rng.choice(["a", "</script>", ""], rows),
        "new": lambda: np.char.add(
            "now" if current else "old", rng.integers(0, 400, rows).astype(str)
        ),
        "flag": lambda: rng.random(rows) < 0.5,
    }
    start = pd.Timestamp("2024-06-01" if current else "2024-01-01", tz="UTC")
    day = pd.to_timedelta(np.repeat(np.arange(days), per_day), unit="D")
    return pd.DataFrame({"at": start + day, **{f"c{i}": make[k]() for i, k in enumerate(kinds)}})


@settings(max_examples=60, deadline=None)
@given(
    st.lists(COLUMNS, min_size=1, max_size=5),
    st.integers(1, 45),
    st.integers(1, 9),
    st.integers(1, 6),
    st.integers(0, 10**6),
)
def test_whatever_the_columns_hold_there_is_a_verdict_with_finite_numbers(
    kinds, before, after, per_day, seed
):
    reference = odd(kinds, before, per_day, seed, current=False)
    current = odd(kinds, after, per_day, seed + 1, current=True)
    found = compare(reference, current, time="at", min_rows=1)
    single = min(before, after) * per_day == 1
    assert found.verdict in ({"insufficient_data"} if single else {"drift", "stable"})
    for column in (*found.columns, *([found.joint] if found.joint else [])):
        assert 0 <= column.distance <= 1
        assert 0 <= column.adjusted_p_value <= 1
        assert column.drifted == (column.distance > column.threshold)
    assert "NaN" not in found.to_json()
    same = compare(reference, reference, time="at", min_rows=1)
    assert same.verdict == ("insufficient_data" if before * per_day == 1 else "stable")
