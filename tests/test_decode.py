import json
from datetime import UTC, datetime, timedelta

import jiter
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from homeostat import decode
from homeostat.errors import ConflictError, RowError, SchemaError
from homeostat.schema import Feature, Schema, Target

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)
SCHEMA = Schema(
    (Feature("amount", "number"), Feature("city", "category"), Feature("member", "boolean")),
    Target("late", "binary", "int", ("0", "1")),
)
ROW = {"amount": 1.5, "city": "Oslo", "member": False}


def rows(*requested, max_skew=None):
    counter = iter(range(1000))
    return decode.rows(
        requested,
        SCHEMA,
        now=NOW,
        max_skew=max_skew,
        make_id=lambda: f"made-{next(counter)}",
    )


def tried(act):
    """What `act` gives, and the refusal that it raises instead."""
    try:
        return act(), None
    except RowError as error:
        return None, error


def moment(text):
    return datetime.fromisoformat(rows({**ROW, "occurred_at": text}).times[0])


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(min_value=-(10**400), max_value=10**400)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda t: t.encode("utf-8", "replace")))
@example(b"\xef\xbb\xbf{}")
@example(b'{"a":1e999}')
@example(b"9" * 5000)
def test_any_bytes_give_objects_or_a_refusal(body):
    given, refusal = tried(lambda: decode.parse(body, max_rows=10))
    if refusal is None:
        found, single = given
        assert found
        assert all(isinstance(row, dict) for row in found)
        assert single == (not isinstance(json.loads(body), list))


@given(
    st.dictionaries(
        st.sampled_from([*ROW, "prediction_id", "occurred_at", "other"]), json_values, max_size=6
    )
)
def test_any_object_gives_a_row_or_a_refusal_that_names_one_of_its_fields(row):
    body = json.dumps(row).encode()
    (parsed,), _ = decode.parse(body, max_rows=1)
    batch, refusal = tried(lambda: rows({**ROW, **parsed}, max_skew=timedelta(hours=1)))
    if refusal is not None:
        assert refusal.row == 0
        assert refusal.field in {*ROW, *row}
    else:
        assert len(batch.columns) == len(ROW)
        assert 1 <= len(batch.ids[0]) <= 128


@given(st.text(st.characters(codec="utf-8")))
def test_a_refused_body_never_repeats_what_it_held(secret):
    marked = f"5150777{secret}"
    body = json.dumps({marked: marked})[:-1] + "," + json.dumps({marked: 1})[1:]
    with pytest.raises(RowError) as caught:
        decode.parse(body.encode(), max_rows=1)
    assert caught.value.code == "duplicate_key"
    assert "5150777" not in str(caught.value)


def test_a_single_object_and_an_array_are_told_apart():
    assert decode.parse(b'{"a": 1}', max_rows=1) == ([{"a": 1}], True)
    assert decode.parse(b'[{"a": 1}]', max_rows=1) == ([{"a": 1}], False)


def test_the_place_of_the_mistake_is_told():
    with pytest.raises(RowError, match="line 2 column 8"):
        decode.parse(b'{"a": 1,\n "b": nan}', max_rows=1)


@given(st.datetimes(timezones=st.timezones()))
def test_a_time_with_an_offset_comes_back_as_the_same_moment_in_utc(when):
    offset = when.utcoffset()
    if offset is None or offset.seconds % 60 or offset.microseconds:
        return  # RFC 3339 has no such offset
    try:
        expected = when.astimezone(UTC)
    except OverflowError:
        return
    assert moment(when.isoformat()) == expected
    assert moment(when.isoformat()).tzinfo is UTC


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2025-06-01t12:00:00z", NOW),
        ("2025-06-01 12:00:00Z", NOW),
        ("2025-06-01T14:00:00.123456789+02:00", NOW.replace(microsecond=123456)),
        ("2025-06-01T12:00:00-00:00", NOW),
    ],
)
def test_the_forms_of_rfc_3339_are_taken(text, expected):
    assert moment(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "2025-06-01",
        "20250601T120000Z",
        "2025-W22-7T12:00:00Z",
        "2025-06-01T12:00Z",
        "2025-13-01T12:00:00Z",
        "2025-06-01T24:00:01Z",
        "0000-06-01T12:00:00Z",
        "0001-01-01T00:00:00+23:59",
        "2025-06-01T12:00:00+25:00",
        "٢٠٢٥-06-01T12:00:00Z",
        "2025-06-01T12:00:00Z\n",
        1748779200,
        True,
        {},
    ],
)
def test_what_is_no_time_is_refused(text):
    with pytest.raises(RowError) as caught:
        moment(text)
    assert (caught.value.code, caught.value.field) == ("bad_time", "occurred_at")


def test_a_time_without_a_zone_is_refused_with_the_remedy():
    with pytest.raises(RowError, match=r"no time zone.*Append Z"):
        moment("2025-06-01T12:00:00")


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_event_may_lie_as_far_from_the_clock_as_the_setting_says(sign):
    def at(hours):
        return {**ROW, "occurred_at": (NOW + sign * timedelta(hours=hours)).isoformat()}

    rows(at(1), max_skew=timedelta(hours=1))
    rows(at(10_000), max_skew=None)
    with pytest.raises(RowError) as caught:
        rows(at(1.01), max_skew=timedelta(hours=1))
    assert caught.value.code == "time_skew"


def test_without_id_and_time_an_id_is_made_and_the_clock_counts():
    batch = rows(ROW, {**ROW, "prediction_id": None, "occurred_at": None})
    assert batch.asked == ["made-0", "made-1"]
    assert batch.times == ["2025-06-01 12:00:00.000000Z"] * 2
    assert batch.untimed == frozenset()


def test_the_same_row_twice_in_a_request_is_one_row_asked_twice():
    named = {**ROW, "prediction_id": "a"}
    batch = rows(named, ROW, named)
    assert batch.asked == ["a", "made-0", "a"]
    assert batch.ids == ["a", "made-0"]
    assert batch.columns == [[1.5, 1.5], ["Oslo"] * 2, [False] * 2]


@pytest.mark.parametrize(
    "change", [{"amount": 2}, {"city": None}, {"occurred_at": "2025-06-01T12:00:01Z"}]
)
def test_one_id_with_two_contents_in_a_request_is_a_conflict(change):
    named = {**ROW, "prediction_id": "a"}
    with pytest.raises(ConflictError) as caught:
        rows(ROW, named, {**named, **change})
    assert caught.value.row == 2


@given(st.text(max_size=140))
def test_an_id_is_up_to_128_characters_without_control_characters(text):
    fits = 1 <= len(text) <= 128 and not any(
        c < " " or "\x7f" <= c <= "\x9f" or c in "\u2028\u2029" for c in text
    )
    batch, refusal = tried(lambda: rows({**ROW, "prediction_id": text}))
    assert (refusal is None) == fits
    if refusal is None:
        assert batch.ids == [text]
    else:
        assert refusal.code == "bad_id"


@given(json_values)
def test_a_label_is_what_the_target_says_or_refused(value):
    item = {"prediction_id": "a", "label": value}
    try:
        expected = SCHEMA.target.text(value)
    except SchemaError:
        expected = None
    table, refusal = tried(lambda: decode.labels([item], SCHEMA.target, now=NOW, max_skew=None))
    if refusal is not None:
        assert (refusal.code, refusal.field, expected) == ("bad_label", "label", None)
    else:
        assert table.to_pylist() == [{"prediction_id": "a", "label": expected, "labelled_at": NOW}]


def test_a_label_may_be_as_old_as_it_likes_but_not_from_the_future():
    def at(when):
        item = {"prediction_id": "a", "label": 1, "labelled_at": when}
        return decode.labels([item], SCHEMA.target, now=NOW, max_skew=timedelta(hours=1))

    assert at("1999-01-01T00:00:00Z").num_rows == 1
    with pytest.raises(RowError, match="server's clock"):
        at("2025-06-01T13:00:01Z")


def test_the_parser_still_says_what_the_refusals_are_told_apart_by():
    for text, start in (
        (b'{"a":1,"a":1}', "Detected duplicate key"),
        (b"9" * 5000, "number out of range"),
        (b"[" * 999, "recursion limit exceeded"),
    ):
        with pytest.raises(ValueError, match=start):
            jiter.from_json(text, catch_duplicate_keys=True)
