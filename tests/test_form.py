"""Rows come in many types; what can be read as the champion's is, and the rest is named."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pyarrow as pa
import pytest

from homeostat.monitor.form import formed
from homeostat.schema import TIMESTAMP, Feature, Schema, Target

AT = datetime(2024, 1, 1, tzinfo=UTC)
SCHEMA = Schema(
    (Feature("temp", "number"), Feature("city", "category"), Feature("open", "boolean")),
    Target("y", "binary", "bool", ("false", "true")),
)
PLAIN = {
    "occurred_at": pa.array([AT, AT], TIMESTAMP),
    "temp": pa.array([1.5, None]),
    "city": pa.array(["Oslo", None]),
    "open": pa.array([True, None]),
}


def read(**changed):
    """Each feature as it was read, and what was found."""
    rows, found = formed(pa.table(PLAIN | changed), SCHEMA)
    assert [rows.schema.field(f.name).type for f in SCHEMA.features] == [
        f.arrow for f in SCHEMA.features
    ]
    values = {f.name: rows[f.name].to_pylist() for f in SCHEMA.features}
    return values, [(f.check, f.severity, f.column) for f in found]


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("temp", pa.array([1, None]), [1.0, None]),
        ("temp", pa.array([1.5, None], pa.float32()), [1.5, None]),
        ("temp", pa.array([Decimal("1.25"), None]), [1.25, None]),
        ("temp", pa.array([1.5, None]).dictionary_encode(), [1.5, None]),
        ("city", pa.array(["Oslo", None], pa.large_string()), ["Oslo", None]),
        ("city", pa.array(["Oslo", None], pa.string_view()), ["Oslo", None]),
        ("city", pa.array(["Oslo", None]).dictionary_encode(), ["Oslo", None]),
    ],
)
def test_another_type_of_the_same_kind_is_read_without_a_word(name, values, expected):
    found, said = read(**{name: values})
    assert (found[name], said) == (expected, [])


@pytest.mark.parametrize("name", ["temp", "city", "open"])
@pytest.mark.parametrize("kind", [pa.null(), pa.string(), pa.bool_()])
def test_a_column_of_nulls_is_of_any_kind(name, kind):
    found, said = read(**{name: pa.nulls(2, kind)})
    assert (found[name], said) == ([None, None], [])


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("temp", pa.array(["1.5", None]), [1.5, None]),
        ("temp", pa.array([True, None]), [1.0, None]),
        ("temp", pa.array(["1.5", None]).dictionary_encode(), [1.5, None]),
        ("city", pa.array([7, None]), ["7", None]),
        ("open", pa.array([1, None]), [True, None]),
        ("open", pa.array(["true", None]), [True, None]),
    ],
)
def test_another_kind_that_can_be_read_is_read_with_a_warning(name, values, expected):
    found, said = read(**{name: values})
    assert (found[name], said) == (expected, [("retyped_column", "warn", name)])


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temp", pa.array(["1.5", "two"])),
        ("temp", pa.array([[1.5], None])),
        ("open", pa.array(["perhaps", "true"])),
        ("open", pa.array([AT, AT], TIMESTAMP)),
    ],
)
def test_another_kind_that_cannot_all_be_read_is_null_and_blocks(name, values):
    found, said = read(**{name: values})
    assert (found[name], said) == ([None, None], [("retyped_column", "block", name)])


def test_of_very_many_further_columns_the_first_twenty_are_named():
    _, said = read(**{f"more_{i:03}": pa.array([1, 2]) for i in range(50)})
    assert said == [("extra_column", "warn", f"more_{i:03}") for i in range(20)]


@pytest.mark.parametrize(
    ("times", "share"),
    [
        (pa.array([AT, None], TIMESTAMP), 0.5),
        (pa.array([1, 2]), 1.0),
        (pa.array(["yesterday", "today"]), 1.0),
        (pa.array([AT.replace(tzinfo=None)] * 2, pa.timestamp("us")), 1.0),
    ],
)
def test_times_that_cannot_be_read_say_of_how_many_rows_and_leave_none(times, share):
    rows, (finding,) = formed(pa.table(PLAIN | {"occurred_at": times}), SCHEMA)
    assert rows.num_rows == 0
    assert (finding.check, finding.value) == ("unusable_times", share)


def test_what_the_journal_adds_to_rows_is_no_further_column():
    mine = {"prediction_id": pa.array(["a", "b"]), "label": pa.array(["true", None])}
    assert read(**mine)[1] == []
