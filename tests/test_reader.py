import json
import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from homeostat import decode
from homeostat.errors import ConflictError, RowError
from homeostat.listening import Serving
from homeostat.reader import Reader, new_id
from homeostat.schema import Feature, Schema, Target

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)
SERVING = Serving(max_rows=3, max_skew=timedelta(hours=1))
SCHEMA = Schema(
    (
        Feature("amount", "number"),
        Feature("city:of", "category"),
        Feature("member", "boolean"),
        Feature("size", "number", nullable=False),
        Feature("größe", "category", nullable=False),
    ),
    Target("late", "binary", "int", ("0", "1")),
)
ROW = {"amount": 1.5, "city:of": "Oslo", "member": False, "size": 2, "größe": "a:b"}
MADE = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7")
READER = Reader(SCHEMA, SERVING)


def quick(body):
    return READER.read(body, NOW)


def careful(body):
    rows, _ = decode.parse(body, max_rows=SERVING.max_rows)
    return decode.rows(rows, SCHEMA, now=NOW, max_skew=SERVING.max_skew, make_id=new_id)


def outcome(read, body):
    """What a reader gives, with made ids alike, or what it refuses."""
    try:
        batch = read(body)
    except (RowError, ConflictError) as error:
        return type(error), getattr(error, "code", ""), getattr(error, "field", ""), error.row
    if batch is None:
        return None
    asked = ["made" if MADE.match(name) else name for name in batch.asked]
    columns = [[(type(value), value) for value in column] for column in batch.columns]
    return asked, len(batch.ids), list(batch.times), columns, batch.untimed


texts = st.text(max_size=6) | st.sampled_from(["a:b", '"', ":", "2025-06-01T12:00:00Z", "\ud800"])
values = (
    st.none()
    | st.booleans()
    | st.integers(min_value=-(10**20), max_value=10**20)
    | st.floats()
    | texts
    | st.sampled_from([10**400, [], {}, -0.0, 5e-324, 1.7976931348623157e308])
)
rows = st.fixed_dictionaries(
    {
        "amount": st.floats(allow_nan=False, allow_infinity=False) | st.none() | values,
        "city:of": texts | values,
        "member": st.booleans() | values,
        "size": st.integers() | values,
        "größe": texts,
    },
    optional={
        "prediction_id": st.sampled_from(["a", "b", "", None, "x" * 129, "\x7f", 3]),
        "occurred_at": st.sampled_from(
            ["2025-06-01T12:30:00Z", "2025-06-01T14:30:00.5+02:00", "2025-06-01", None, 3]
        ),
        "other": values,
    },
)
bodies = st.builds(
    lambda many, plain, space: json.dumps(
        many if len(many) != 1 or space else many[0],
        ensure_ascii=plain,
        separators=(", ", " : ") if space else (",", ":"),
    ).encode("utf-8", "surrogatepass"),
    st.lists(rows, max_size=4),
    st.booleans(),
    st.booleans(),
)


@given(bodies)
@example(json.dumps([ROW, ROW], ensure_ascii=False).encode())
def test_what_is_read_quickly_is_what_is_read_with_care(body):
    found = outcome(quick, body)
    if found is not None:
        assert found == outcome(careful, body)


@given(st.data())
def test_a_changed_byte_makes_no_difference_between_quick_and_careful(data):
    body = json.dumps(ROW, ensure_ascii=False).encode()
    place = data.draw(st.integers(0, len(body) - 1))
    piece = data.draw(st.binary(max_size=3))
    cut = data.draw(st.integers(0, 3))
    changed = body[:place] + piece + body[place + cut :]
    found = outcome(quick, changed)
    if found is not None:
        assert found == outcome(careful, changed)


@pytest.mark.parametrize("row", [ROW, {**ROW, "amount": None, "city:of": None, "member": None}])
@pytest.mark.parametrize("given", [{}, {"prediction_id": "a:1"}, {"occurred_at": NOW.isoformat()}])
@pytest.mark.parametrize("separators", [(",", ":"), (", ", " : ")])
def test_usual_bodies_are_read_quickly(row, given, separators):
    row = {**row, **given}
    assert quick(json.dumps(row, ensure_ascii=False, separators=separators).encode())
    twice = [row, {**row, "prediction_id": "other"}]
    assert len(quick(json.dumps(twice, ensure_ascii=False).encode()).ids) == 2


@pytest.mark.parametrize("key", ["size", "prediction_id", "occurred_at", "city:of"])
def test_a_key_that_stands_twice_is_never_read_quickly(key):
    row = {**ROW, "prediction_id": "a", "occurred_at": NOW.isoformat()}
    body = json.dumps(row, ensure_ascii=False)
    twice = f"{body[:-1]}, {json.dumps({key: row[key]})[1:-1]}}}".encode()
    assert quick(twice) is None
    with pytest.raises(RowError, match="twice"):
        careful(twice)


def test_made_ids_are_all_different_and_of_version_7():
    ids = [new_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(MADE.match(name) for name in ids)


@pytest.mark.parametrize("name", ['height "in"', "back\\slash", "a\tb"])
def test_a_name_that_json_escapes_is_left_to_the_careful_reader(name):
    schema = Schema((Feature(name, "number"),), SCHEMA.target)
    reader = Reader(schema, SERVING)
    assert reader.read(json.dumps({name: 1.5}).encode(), NOW) is None
    assert reader.read(b'{"f0": 1.5}', NOW) is None
