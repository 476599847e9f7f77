import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeostat.errors import SchemaError
from homeostat.profile import PREDICTION, Profile
from homeostat.records import EPOCH, Window
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


def test_each_pair_of_features_has_the_sum_of_the_products_of_its_scores():
    rng = np.random.default_rng(0)
    rows = [
        {
            "at": START + timedelta(hours=int(hour)),
            "height": float(rng.choice([0.5, 1.5, 2.5])),
            "site": str(rng.choice(["a", "b", "new"])),
            "open": bool(rng.integers(2)),
            "rows": None,
        }
        for hour in range(60)
    ]
    found = profile(rows)
    height = {0.5: -16, 1.5: 0, 2.5: 16}
    site = {"a": -16, "b": 16, "new": -16}
    flag = {False: -16, True: 16}
    for place, block in enumerate(found.blocks):
        inside = [r for r in rows if (r["at"] - EPOCH) // DAY == block]
        expected = [
            sum(height[r["height"]] * site[r["site"]] for r in inside),
            sum(height[r["height"]] * flag[r["open"]] for r in inside),
            0,
            sum(site[r["site"]] * flag[r["open"]] for r in inside),
            0,
            0,
        ]
        assert found.products[place].tolist() == expected
    assert found.only(["height", "open"]).products[:, 0].tolist() == found.products[:, 1].tolist()
    assert found.only(["open", "height"]).names == ("height", "open")


def test_a_file_of_the_first_format_is_read_and_has_no_products():
    rows = [{"at": START, "height": 1.5}, {"at": START + DAY, "site": "b"}]
    now = profile(rows)
    with pa.ipc.open_stream(now.to_bytes()) as reader:
        table = reader.read_all()
    header = json.loads(table.schema.metadata[b"homeostat.profile"])
    old = table.drop_columns(["products of scores"]).replace_schema_metadata(
        {"homeostat.profile": json.dumps(header | {"format": 1})}
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, old.schema) as writer:
        writer.write_table(old)
    found = Profile.from_bytes(sink.getvalue().to_pybytes())
    assert found.products.shape == (2, 0)
    assert found == replace(now, products=found.products)
    assert Profile.from_bytes(found.to_bytes()) == found


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
