"""The schema: inferred from rows, checked against rows, and the same in every form."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeostat.errors import RowError, SchemaError
from homeostat.infer import infer
from homeostat.schema import MAX_BINS, MAX_LEVELS, RESERVED, Feature, Schema, Target

FRAME = pd.DataFrame(
    {
        "price": [1.0, 2.0, 2.0, None, 5.0, 8.0],
        "shop": ["b", "a", "b", None, "c", "b"],
        "member": [True, False, True, True, False, None],
        "sold": [1, 0, 1, 0, 1, 0],
    }
)
SCHEMA = infer(FRAME, target="sold")
ROW = {"price": 2.5, "shop": "a", "member": True}


def refused(change: dict, schema: Schema = SCHEMA) -> RowError:
    with pytest.raises(RowError) as raised:
        schema.check([ROW, {**ROW, **change}])
    return raised.value


# --- infer ---


def test_kinds_follow_the_columns():
    assert {f.name: f.kind for f in SCHEMA.features} == {
        "price": "number",
        "shop": "category",
        "member": "boolean",
    }
    assert SCHEMA.target == Target("sold", "binary", "int", ("0", "1"))


def test_levels_are_ordered_by_frequency_and_then_by_name():
    assert SCHEMA.by_name["shop"].levels == ("b", "a", "c")


def test_levels_beyond_the_most_frequent_are_other():
    names = [f"level {i:04d}" for i in range(MAX_LEVELS + 5)]
    frame = pd.DataFrame({"c": names + names[:MAX_LEVELS], "y": 0})
    frame.loc[0, "y"] = 1
    feature = infer(frame, target="y").features[0]
    assert feature.levels == tuple(names[:MAX_LEVELS])
    assert feature.other


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=400), st.randoms())
@settings(deadline=None)
def test_edges_are_ascending_quantiles_and_ends_that_no_order_of_rows_changes(values, random):
    target = [0, 1] * len(values)
    edges = infer(pd.DataFrame({"x": values * 2, "y": target}), target="y").features[0].edges
    assert len(edges) <= MAX_BINS + 1
    assert list(edges) == sorted(set(edges))
    assert edges[0] == np.nextafter(min(values), -np.inf)
    assert edges[-1] == max(values)
    assert set(edges[1:]) <= set(values)
    random.shuffle(values)
    again = infer(pd.DataFrame({"x": values * 2, "y": target}), target="y").features[0].edges
    assert again == edges


def test_edges_cut_many_rows_into_equal_shares():
    values = np.random.default_rng(0).permutation(128_000).astype(float)
    frame = pd.DataFrame({"x": values, "y": np.arange(128_000) % 2})
    feature = infer(frame, target="y").features[0]
    beyond = np.array([-0.5, 127_999.5])
    places = np.searchsorted(feature.edges, np.append(values, beyond))
    counts = np.bincount(places)
    assert len(counts) == MAX_BINS + 2
    assert places[-2:].tolist() == [0, MAX_BINS + 1]
    assert counts[0] == counts[-1] == 1
    assert set(counts[1:-1]) <= {999, 1000, 1001}


def test_the_least_finite_number_has_no_bin_below_it():
    values = [-1.7976931348623157e308, 1.0]
    edges = infer(pd.DataFrame({"x": values, "y": [0, 1]}), target="y").features[0].edges
    assert edges == (-1.7976931348623157e308, 1.0)


def test_reserved_and_excluded_columns_are_no_features():
    extra = dict.fromkeys([*RESERVED, "secret"], "x")
    schema = infer(FRAME.assign(**extra), target="sold", exclude=["secret"])
    assert schema == SCHEMA


@pytest.mark.parametrize(
    ("values", "task", "expected"),
    [
        ([0, 1, 1], None, Target("y", "binary", "int", ("0", "1"))),
        ([0.0, 1.0, None], None, Target("y", "binary", "int", ("0", "1"))),
        ([True, False, True], None, Target("y", "binary", "bool", ("false", "true"))),
        (["no", "yes", "no"], None, Target("y", "binary", "str", ("no", "yes"))),
        ([10, 9, 2], None, Target("y", "multiclass", "int", ("2", "9", "10"))),
        (["c", "a", "b"], None, Target("y", "multiclass", "str", ("a", "b", "c"))),
        ([1.5, 2.0, 3.0], None, Target("y", "regression", "float")),
        (list(range(30)), None, Target("y", "regression", "float")),
        (
            list(range(30)),
            "multiclass",
            Target("y", "multiclass", "int", tuple(map(str, range(30)))),
        ),
        ([0, 1, 1], "regression", Target("y", "regression", "float")),
    ],
)
def test_the_target_says_which_task_it_is(values, task, expected):
    frame = pd.DataFrame({"x": range(len(values)), "y": values})
    assert infer(frame, target="y", task=task).target == expected


@pytest.mark.parametrize(
    ("frame", "task", "message"),
    [
        (pd.DataFrame({"x": [1], "y": [1]}), None, "'z' is not a column.*x, y"),
        (pd.DataFrame({"x": [1, 2], "z": [1, 1]}), None, "one class only"),
        (pd.DataFrame({"x": [1, 2], "z": [None, None]}), None, "has no value"),
        (pd.DataFrame({"x": [1, 2], "z": ["a", "b"]}), "regression", "not a number"),
        (pd.DataFrame({"x": [1, 2], "z": [0.5, 1.5]}), "binary", "not whole numbers"),
        (pd.DataFrame({"x": [1, 2, 3], "z": [1, 2, 3]}), "binary", "3 classes"),
        (pd.DataFrame({"z": [0, 1]}), None, "no feature is left"),
        (pd.DataFrame({"x": [1, "a"], "z": [0, 1]}), None, "'x' mixes types.*astype"),
        (pd.DataFrame([[1, 2, 0], [3, 4, 1]], columns=["x", "x", "z"]), None, "same name"),
        (
            pd.DataFrame({"x": pd.to_datetime(["2024-01-01", "2024-01-02"]), "z": [0, 1]}),
            None,
            "'x' is a point or length of time.*exclude",
        ),
    ],
)
def test_what_no_model_can_be_served_with_is_refused_by_name(frame, task, message):
    with pytest.raises(SchemaError, match=message):
        infer(frame, target="z", task=task)


# --- stored form ---


def test_a_schema_survives_being_stored():
    assert Schema.from_json(SCHEMA.to_json()) == SCHEMA
    assert Schema.from_json(SCHEMA.to_json().encode()) == SCHEMA


def test_a_schema_of_another_format_is_refused_with_the_remedy():
    raw = {**json.loads(SCHEMA.to_json()), "format": 99}
    with pytest.raises(SchemaError, match=r"format 99.*version of homeostat"):
        Schema.from_json(json.dumps(raw))


def test_the_fingerprint_changes_with_name_order_and_kind_only():
    names = ["price", "shop", "member", "sold"]
    assert infer(FRAME.head(5), target="sold").fingerprint == SCHEMA.fingerprint
    others = [
        FRAME.rename(columns={"price": "cost"}),
        FRAME[["shop", "price", "member", "sold"]],
        FRAME.assign(member=["x"] * 6)[names],
    ]
    prints = {infer(frame, target="sold").fingerprint for frame in others}
    assert len(prints | {SCHEMA.fingerprint}) == 4


# --- check ---


def test_a_good_row_passes_in_any_order_of_its_keys():
    reversed_row = dict(reversed(ROW.items()))
    columns = SCHEMA.check([ROW, reversed_row])
    assert columns == {"price": [2.5, 2.5], "shop": ["a", "a"], "member": [True, True]}
    assert list(columns) == list(SCHEMA.names)


def test_whole_numbers_are_numbers_and_null_is_unknown():
    row = {"price": 2, "shop": None, "member": None}
    assert SCHEMA.check([row]) == {"price": [2.0], "shop": [None], "member": [None]}


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"price": "2.5"}, "wrong_type", "price"),
        ({"price": True}, "wrong_type", "price"),
        ({"price": [1]}, "wrong_type", "price"),
        ({"price": math.nan}, "not_finite", "price"),
        ({"price": -math.inf}, "not_finite", "price"),
        ({"price": 10**400}, "not_finite", "price"),
        ({"shop": 3}, "wrong_type", "shop"),
        ({"shop": {}}, "wrong_type", "shop"),
        ({"member": 1}, "wrong_type", "member"),
        ({"member": "true"}, "wrong_type", "member"),
        ({"colour": "red"}, "unknown_field", "colour"),
    ],
)
def test_a_bad_value_is_refused_naming_row_and_column_but_not_the_value(change, code, field):
    error = refused(change)
    assert (error.code, error.field, error.row) == (code, field, 1)
    if field in ROW:
        assert str(change[field])[:40] not in error.message.replace("true or false", "")


def test_a_missing_feature_is_named():
    with pytest.raises(RowError) as raised:
        SCHEMA.check([{"price": 1.0, "shop": "a"}])
    assert (raised.value.code, raised.value.field) == ("missing_field", "member")
    assert "null" in raised.value.hint


def test_null_is_refused_where_the_model_cannot_take_it():
    strict = SCHEMA.without_nulls_in(["price"])
    assert refused({"price": None}, strict).code == "null_not_allowed"
    assert strict.check([{**ROW, "shop": None}])["shop"] == [None]
    assert strict.fingerprint == SCHEMA.fingerprint


def test_a_very_long_name_does_not_fill_the_answer():
    error = refused({"x" * 100_000: 1})
    assert len(str(error)) < 300


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from(["price", "shop", "member", "x", ""]), JSON))
def test_any_row_is_taken_as_it_is_or_refused_with_a_code(row):
    try:
        columns = SCHEMA.check([row])
    except RowError as error:
        known = {"missing_field", "wrong_type", "not_finite", "unknown_field"}
        assert (error.row, error.code in known) == (0, True)  # noqa: PT017 - most rows pass neither
    else:
        assert {name: values[0] for name, values in columns.items()} == row
        assert SCHEMA.table(columns).schema == SCHEMA.arrow


# --- unseen, table, frame ---


def test_levels_that_training_never_saw_are_counted():
    columns = {"price": [1.0] * 3, "shop": ["a", "z", None], "member": [True] * 3}
    assert SCHEMA.unseen(columns) == {"shop": 1}
    assert SCHEMA.unseen({**columns, "shop": ["a", "b", None]}) == {}


VALUES = st.fixed_dictionaries(
    {
        "price": st.none() | st.floats(allow_nan=False, allow_infinity=False),
        "shop": st.none() | st.text(),
        "member": st.none() | st.booleans(),
    }
)


@given(st.lists(VALUES, max_size=8))
@settings(deadline=None)
def test_the_frame_holds_the_same_values_in_the_form_that_models_take(rows):
    columns = {name: [row[name] for row in rows] for name in SCHEMA.names}
    try:
        table = SCHEMA.table(columns)
    except UnicodeEncodeError:
        return  # a lone surrogate, which no journal can hold
    frame = SCHEMA.frame(table)
    assert list(frame) == list(SCHEMA.names)
    assert (frame.dtypes[["price", "member"]] == "float64").all()
    for name in SCHEMA.names:
        for value, seen in zip(columns[name], frame[name], strict=True):
            assert (pd.isna(seen) and value is None) or seen == value


def test_a_table_with_more_columns_in_another_order_gives_the_same_frame():
    table = SCHEMA.table({name: [value] for name, value in ROW.items()})
    shuffled = table.select(["member", "price", "shop"]).append_column("more", pa.array([1]))
    pd.testing.assert_frame_equal(SCHEMA.frame(shuffled), SCHEMA.frame(table))


def test_a_table_that_lacks_features_is_refused_naming_them():
    with pytest.raises(SchemaError, match="'price', 'member'"):
        SCHEMA.frame(pa.table({"shop": ["a"]}))


# --- labels ---


@pytest.mark.parametrize(
    ("target", "value", "text", "back"),
    [
        (Target("y", "binary", "int", ("0", "1")), 1, "1", 1),
        (Target("y", "binary", "int", ("0", "1")), 1.0, "1", 1),
        (Target("y", "binary", "int", ("0", "1")), True, "1", 1),
        (Target("y", "binary", "int", ("0", "1")), "1", "1", 1),
        (Target("y", "binary", "bool", ("false", "true")), True, "true", True),
        (Target("y", "binary", "bool", ("false", "true")), 0, "false", False),
        (Target("y", "binary", "bool", ("false", "true")), "True", "true", True),
        (Target("y", "multiclass", "str", ("a", "b", "c")), "b", "b", "b"),
        (Target("y", "regression", "float"), 2, "2.0", 2.0),
        (Target("y", "regression", "float"), 0.1, "0.1", 0.1),
    ],
)
def test_a_label_has_one_text_and_comes_back_as_it_was(target, value, text, back):
    assert target.text(value) == text
    assert target.value(text) == back
    assert type(target.value(text)) is type(back)


@pytest.mark.parametrize(
    ("target", "value"),
    [
        (Target("y", "binary", "int", ("0", "1")), 2),
        (Target("y", "binary", "int", ("0", "1")), 0.5),
        (Target("y", "binary", "int", ("0", "1")), None),
        (Target("y", "binary", "int", ("0", "1")), math.nan),
        (Target("y", "binary", "int", ("0", "1")), math.inf),
        (Target("y", "multiclass", "str", ("a", "b", "c")), "d"),
        (Target("y", "multiclass", "str", ("a", "b", "c")), ["a"]),
        (Target("y", "regression", "float"), "2"),
        (Target("y", "regression", "float"), True),
        (Target("y", "regression", "float"), math.nan),
        (Target("y", "regression", "float"), 10**400),
    ],
)
def test_a_label_that_is_none_of_the_target_is_refused_without_its_value(target, value):
    with pytest.raises(SchemaError) as raised:
        target.text(value)
    assert "the label" in str(raised.value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_survives_its_text(value):
    target = Target("y", "regression", "float")
    assert target.value(target.text(value)) == value


@pytest.mark.parametrize(
    ("values", "kind"),
    [([0, 1], "i"), ([True, False], "b"), (["a", "b"], "O"), ([0.5, 2.0], "f")],
)
def test_labels_come_back_in_the_targets_own_type(values, kind):
    schema = infer(pd.DataFrame({"x": [1, 2], "y": values}), target="y")
    texts = [schema.target.text(value) for value in values]
    column = pa.array([float(t) for t in texts] if kind == "f" else texts)
    labels = schema.labels(pa.table({"label": column}))
    assert labels.dtype.kind == kind
    assert labels.tolist() == values


def test_an_example_is_a_row_that_the_schema_takes():
    example = {feature.name: feature.example for feature in SCHEMA.features}
    assert SCHEMA.check([example])
    assert Feature("x", "number").example is None
