from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeostat.errors import SchemaError
from homeostat.profile import EPOCH, PREDICTION, Profile
from homeostat.records import Window
from homeostat.schema import TIMESTAMP, Feature, Schema, Target

DAY = timedelta(days=1)
START = datetime(2024, 1, 1, tzinfo=UTC)
SCHEMA = Schema(
    (
        Feature("height", "number", edges=(1.0, 2.0)),
        Feature("site", "category", levels=("a", "b")),
        Feature("open", "boolean"),
        Feature("rows", "number"),  # a name that the file uses for itself
    ),
    Target("y", "binary", "bool", ("false", "true")),
)


def table(rows, schema=SCHEMA, **more):
    columns = {"occurred_at": pa.array([r["at"] for r in rows], TIMESTAMP)}
    for feature in schema.features:
        columns[feature.name] = pa.array([r.get(feature.name) for r in rows], feature.arrow)
    columns["probability"] = pa.array([r.get("probability") for r in rows], pa.float64())
    return pa.table({**columns, **more})


def profile(rows, schema=SCHEMA, **options):
    return Profile.of(table(rows, schema), schema, block=DAY, **options)


def total(of, name):
    return of.column(name)[1].sum(axis=0).tolist()


ROW = st.fixed_dictionaries(
    {
        "at": st.integers(-40, 80).map(lambda hours: EPOCH + timedelta(hours=7.3 * hours)),
        "height": st.none() | st.floats(allow_nan=True, allow_infinity=True),
        "site": st.none() | st.sampled_from(["a", "b", "new", ""]),
        "open": st.none() | st.booleans(),
        "rows": st.none() | st.integers(-3, 3).map(float),
        "probability": st.none() | st.floats(0, 1),
    }
)


@given(st.lists(ROW, min_size=1, max_size=40), st.randoms(use_true_random=False), st.data())
@settings(max_examples=40, deadline=None)
def test_any_order_and_partition_of_the_rows_gives_the_same_bits(rows, random, data):
    whole = profile(rows)
    shuffled = random.sample(rows, len(rows))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=3)))
    bounds = [0, *cuts, len(rows)]
    parts = [profile(shuffled[a:b]) for a, b in pairwise(bounds)]
    merged = parts[-1]
    for part in parts[:-1]:
        merged = part + merged
    assert merged == whole
    assert merged.to_bytes() == whole.to_bytes()
    assert Profile.from_bytes(whole.to_bytes()) == whole
    assert whole.rows == len(rows)
    for name in SCHEMA.names:
        assert sum(total(whole, name)) == len(rows)


def test_each_value_falls_into_its_cell():
    heights = [0.5, 1.0, 1.5, 2.0, 2.5, None, float("nan"), float("inf"), float("-inf")]
    sites = ["a", "a", "b", "new", "", None, "b", "a", "a"]
    flags = [True, False, None, True, True, True, True, True, True]
    rows = [
        {"at": START, "height": h, "site": s, "open": o}
        for h, s, o in zip(heights, sites, flags, strict=True)
    ]
    found = profile(rows)
    assert total(found, "height") == [3, 2, 2, 2]  # ≤ 1, ≤ 2, above, null
    assert total(found, "site") == [4, 2, 2, 1]  # a, b, any other, null
    assert total(found, "open") == [1, 7, 1]
    assert total(found, "rows") == [0, 9]


def test_an_absent_column_counts_as_null():
    rows = table([{"at": START, "site": "a"}] * 3).drop_columns(["site"])
    assert total(Profile.of(rows, SCHEMA, block=DAY), "site") == [0, 0, 0, 3]


def test_probabilities_are_counted_in_twenty_bins_and_unscored_rows_not_at_all():
    values = [0.0, 0.04, 0.05, 0.051, 0.5, 1.0, None]
    counts = total(profile([{"at": START, "probability": p} for p in values]), PREDICTION)
    expected, _ = np.histogram([-0.0, 0.04, 0.0499, 0.051, 0.4999, 0.9999], np.linspace(0, 1, 21))
    assert counts == [*expected.tolist(), 0]


def test_classes_and_values_are_counted_as_predictions_too():
    rows = [{"at": START, "rows": 1.0}] * 4
    features = (Feature("rows", "number"),)
    classes = Schema(features, Target("y", "multiclass", "str", ("a", "b", "c")))
    said = table(rows, classes, prediction=pa.array(["a", "c", "c", None], pa.string()))
    assert total(Profile.of(said, classes, block=DAY), PREDICTION) == [1, 0, 2, 0, 0]
    numbers = Schema(features, Target("y", "regression", "float"))
    said = table(rows, numbers, prediction=pa.array(["0.5", "1.0", "7", None], pa.string()))
    assert sum(total(Profile.of(said, numbers, block=DAY), PREDICTION)) == 0
    edged = Profile.of(said, numbers, block=DAY, output_edges=[1, 2])
    assert total(edged, PREDICTION) == [2, 0, 1, 0]
    assert Profile.from_bytes(edged.to_bytes()).output_edges == (1.0, 2.0)


def test_adjacent_windows_share_no_block():
    found = profile([{"at": START + timedelta(hours=6 * i)} for i in range(40)])
    middle = START + timedelta(days=3, hours=5)
    left = found.select(Window(START, middle))
    right = found.select(Window(middle, START + 10 * DAY))
    assert left + right == found
    assert left.rows == 16
    assert not found.select(Window(START - DAY, START)).rows


def test_no_rows_are_a_profile_too():
    nothing = profile([])
    assert nothing.rows == 0
    assert Profile.from_bytes(nothing.to_bytes()) == nothing
    some = profile([{"at": START}])
    assert nothing + some == some


def test_profiles_with_other_bins_are_not_added():
    other = Schema(
        (Feature("height", "number", edges=(1.0, 2.5)), *SCHEMA.features[1:]), SCHEMA.target
    )
    rows = [{"at": START}]
    with pytest.raises(SchemaError, match="cannot be added"):
        profile(rows) + profile(rows, other)
    with pytest.raises(SchemaError, match="cannot be added"):
        profile(rows) + Profile.of(table(rows), SCHEMA, block=timedelta(hours=1))


def test_wrong_types_and_missing_times_are_named():
    rows = table([{"at": START, "site": "a"}])
    text = rows.set_column(1, "height", pa.array(["tall"]))
    with pytest.raises(SchemaError, match="'height' holds string"):
        Profile.of(text, SCHEMA, block=DAY)
    naive = rows.set_column(0, "occurred_at", pa.array([0], pa.timestamp("us")))
    with pytest.raises(SchemaError, match="not times with a zone"):
        Profile.of(naive, SCHEMA, block=DAY)
    with pytest.raises(SchemaError, match="without a time"):
        Profile.of(rows.drop_columns(["occurred_at"]), SCHEMA, block=DAY)


@pytest.mark.parametrize("content", [b"", b"no profile", pa.py_buffer(b"ARROW1").to_pybytes()])
def test_foreign_bytes_are_refused(content):
    with pytest.raises(SchemaError, match="no profile"):
        Profile.from_bytes(content)


def test_the_zone_of_a_time_does_not_matter():
    rows = table([{"at": START + timedelta(hours=23)}])
    there = rows.column("occurred_at").cast(pa.timestamp("ns", "Asia/Tokyo"))
    assert Profile.of(rows.set_column(0, "occurred_at", there), SCHEMA, block=DAY) == Profile.of(
        rows, SCHEMA, block=DAY
    )
