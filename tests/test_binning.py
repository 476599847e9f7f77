from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeostat.bins import Bins
from homeostat.errors import SchemaError
from homeostat.profile import Profile
from homeostat.records import EPOCH
from homeostat.schema import TIMESTAMP, Feature

START = datetime(2024, 1, 1, tzinfo=UTC)
HEIGHT = Feature("height", "number", edges=(1.0, 2.0))
SITE = Feature("site", "category", levels=("a", "b"))
OPEN = Feature("open", "boolean")
FEATURES = (HEIGHT, SITE, OPEN)

FLOAT = st.floats(allow_nan=True, allow_infinity=True)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
NEAR = st.integers(-40, 40).map(lambda n: n / 4)


@given(
    st.lists(FINITE | NEAR, max_size=130, unique=True).map(sorted),
    st.lists(FLOAT | NEAR, min_size=1, max_size=60),
)
@settings(max_examples=200, deadline=None)
def test_numbers_fall_into_the_bins_that_a_search_finds(edges, numbers):
    with np.errstate(over="ignore"):
        beside = [*np.nextafter(edges, np.inf), *np.nextafter(edges, 0)]
    values = np.array([*numbers, *edges, *beside])
    values = values[~np.isnan(values)]
    expected = np.searchsorted(np.array(edges), values, side="left")
    assert Bins(edges).find(values).tolist() == expected.tolist()


@pytest.mark.parametrize(
    "drawn",
    [
        lambda rng: rng.normal(1e9, 1, 5_000),
        lambda rng: rng.integers(0, 24, 5_000).astype(float),
        lambda rng: rng.pareto(0.3, 5_000),
        lambda rng: np.concatenate([rng.normal(size=2_500), rng.normal(1e6, 1, 2_500)]),
    ],
)
def test_bins_of_any_shape_are_found_exactly(drawn):
    values = drawn(np.random.default_rng(0))
    edges = HEIGHT.learned_from(pd.Series(values)).edges
    expected = np.searchsorted(np.array(edges), values, side="left")
    assert Bins(edges).find(values).tolist() == expected.tolist()


def rows(**columns):
    (count,) = {len(values) for values in columns.values()}
    return {"occurred_at": pa.array([START] * count, TIMESTAMP), **columns}


def cells(name, *, of=FEATURES, **columns):
    profile = Profile.of(pa.table(rows(**columns)), of)
    return profile.column(name)[1].sum(axis=0).tolist()


def test_a_column_of_nulls_alone_is_counted_as_null_whatever_its_type():
    for kind in (pa.null(), pa.float64(), pa.string(), pa.bool_()):
        assert cells("height", height=pa.nulls(3, kind)) == [0, 0, 0, 3]
        assert cells("site", site=pa.nulls(3, kind)) == [0, 0, 0, 3]
        assert cells("open", open=pa.nulls(3, kind)) == [0, 0, 3]


def test_levels_that_training_never_saw_are_counted_together_however_many():
    assert cells("site", site=["x", "y", "z"]) == [0, 0, 3, 0]
    assert cells("site", site=[f"level {i}" for i in range(100_000)] + ["b"]) == [0, 1, 100_000, 0]


def test_a_hundred_thousand_levels_in_a_dictionary_are_counted_as_their_text_is():
    text = pa.array(["a", None, *(f"level {i % 99_991}" for i in range(120_000))])
    assert cells("site", site=text.dictionary_encode()) == cells("site", site=text)
    assert cells("site", site=text) == [1, 0, 120_000, 1]


def test_a_dictionary_may_hold_null_and_entries_that_no_row_has():
    values = pa.array(["a", None, "new", "never"])
    coded = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, None, 0], pa.int8()), values)
    assert cells("site", site=coded) == [2, 0, 1, 2]
    numbers = pa.DictionaryArray.from_arrays(pa.array([0, 1, None]), pa.array([0.5, 9.0]))
    assert cells("height", height=numbers) == [1, 0, 1, 1]


def test_a_single_row_and_infinities_have_their_cells():
    assert cells("height", height=[1.5]) == [0, 1, 0, 0]
    assert cells("height", height=[np.inf, -np.inf, np.nan]) == [1, 0, 1, 1]
    constant = Feature("height", "number", edges=(3.0,))
    assert cells("height", of=[constant], height=[3.0, 3.1]) == [1, 1, 0]
    bare = Feature("height", "number")
    assert cells("height", of=[bare], height=[3.0, np.nan]) == [1, 1]


def test_nan_is_null_in_every_kind_of_column():
    assert cells("open", open=[1.0, 0.0, np.nan]) == [1, 1, 1]
    assert cells("site", site=[1.0, np.nan]) == [0, 0, 1, 1]


def test_whole_numbers_too_long_for_a_float_are_rounded():
    big = Feature("height", "number", edges=(2.0**60,))
    assert cells("height", of=[big], height=[2**60 - 1, 2**60 + 2**10, 1]) == [2, 1, 0]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("height", ["tall"]),
        ("height", ["2024-01-01"]),  # dates as text
        ("height", [START]),
        ("height", [[1.0]]),
        ("open", ["perhaps"]),
        ("open", [START]),
        ("site", [["a"]]),
    ],
)
def test_a_column_of_another_kind_is_named_and_its_values_are_not(name, values):
    with pytest.raises(SchemaError, match=f"{name!r} holds") as error:
        cells(name, **{name: values})
    assert not any(str(value) in str(error.value) for value in ("tall", "perhaps", "2024"))


def test_dates_as_text_are_levels_of_a_category():
    assert cells("site", site=["2024-01-01", "2024-01-02"]) == [0, 0, 2, 0]


def test_numbers_as_text_are_numbers():
    assert cells("height", height=["0.5", "1.5", None, "-inf"]) == [2, 1, 0, 1]


def test_two_columns_of_one_name_are_refused():
    table = pa.Table.from_arrays(
        [pa.array([START], TIMESTAMP), pa.array([1.0]), pa.array([2.0])],
        names=["occurred_at", "height", "height"],
    )
    with pytest.raises(SchemaError, match="2 columns of the name 'height'"):
        Profile.of(table, FEATURES)


def test_times_in_many_zones_are_the_moments_they_name():
    text = ["2024-01-01T23:30:00-05:00", "2024-01-02T00:00:00Z", "2024-01-02 10:00:00+09:00"]
    profile = Profile.of(pa.table({"when": text}), FEATURES, time="when")
    assert [EPOCH + timedelta(days=n) for n in profile.blocks.tolist()] == [
        START + timedelta(days=1)
    ]
    assert profile.rows == 3
    zones = [timezone(timedelta(hours=h)) for h in (-5, 0, 9)]
    times = [datetime.fromisoformat(t).astimezone(z) for t, z in zip(text, zones, strict=True)]
    frame = pd.DataFrame({"when": pd.Series(times, dtype=object)})
    assert Profile.of(frame, FEATURES, time="when") == profile


@pytest.mark.parametrize(
    "times",
    [
        pa.array(["2024-01-01T00:00:00"]),
        pa.array(["yesterday"]),
        pa.array([datetime(2024, 1, 1)]),  # noqa: DTZ001 - the zone is missing on purpose
        pa.array([1.0]),
        pa.array([None], TIMESTAMP),
    ],
)
def test_times_that_name_no_moment_are_refused(times):
    with pytest.raises(SchemaError, match="when") as error:
        Profile.of(pa.table({"when": times}), FEATURES, time="when")
    assert "yesterday" not in str(error.value)


def test_without_a_time_all_rows_lie_in_one_block():
    profile = Profile.of(pa.table({"height": [0.5, 5.0]}), FEATURES, time=None)
    assert profile.blocks.tolist() == [0]
    assert profile.column("height")[1].tolist() == [[1, 0, 1, 0]]
    assert not Profile.of(
        pa.table({"height": pa.array([], pa.float64())}), FEATURES, time=None
    ).rows
