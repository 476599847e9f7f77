"""Decode what a client sent: bytes to JSON, JSON to checked rows or labels.

It takes a request's body or objects, the model's schema, and the present time. It gives columns
that the journal and the model can take, or raises an error that names the row and the field but
never holds a value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import jiter
import pyarrow as pa

from homeostat.errors import ConflictError, RowError, SchemaError
from homeostat.records import Json, utc
from homeostat.schema import TIMESTAMP, Schema, Target

MAX_ID = 128  # characters of a prediction_id

LABELS = pa.schema(
    [("prediction_id", pa.string()), ("label", pa.string()), ("labelled_at", TIMESTAMP)]
)

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_RFC3339 = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?(?P<zone>[Zz]|[+-]\d\d:\d\d)?", re.ASCII
)
_PLACE = re.compile(r"at line \d+ column \d+$")
_PROBLEMS = {
    "Detected duplicate key": ("duplicate_key", "an object has the same key twice"),
    "number out of range": ("not_finite", "a number is beyond the range of a 64-bit number"),
    "recursion limit exceeded": ("not_json", "the body is nested too deeply"),
}


@dataclass(frozen=True, slots=True)
class Batch:
    """The checked rows of one request, each id once."""

    asked: Sequence[str]  # the id of each row of the request, in its order
    ids: Sequence[str]  # the distinct ones
    times: Sequence[str]  # event time of each distinct row, as `stamp` writes it
    columns: Sequence[Sequence[Any]]  # of the distinct rows, one per feature of the schema
    untimed: frozenset[str] = frozenset()  # ids that the client gave without a time
    made: bool = False  # the client gave no id at all


def stamp(when: datetime) -> str:
    """An aware time as the journal writes it: UTC, microseconds."""
    return utc(when).replace(tzinfo=None).isoformat(" ", "microseconds") + "Z"


def read(body: bytes, *, nan: bool = False) -> Json:
    """A body as JSON; `nan` takes the literals NaN and Infinity, which some clients write.

    Raises RowError `not_json`, `duplicate_key`, or `not_finite`.
    """
    try:
        return jiter.from_json(body, allow_inf_nan=nan, catch_duplicate_keys=True)
    except ValueError as error:
        raise _unreadable(str(error)) from None


def parse(body: bytes, *, max_rows: int) -> tuple[list[dict[str, Json]], bool]:
    """The objects in a JSON body, and whether it was a single one rather than an array.

    Raises RowError: `not_json`, `duplicate_key`, `not_an_object`, `no_rows`, `too_many_rows`, and
    `not_finite` for an integer too long to be read. NaN, Infinity, lone surrogates and bytes that
    are not UTF-8 are not JSON.
    """
    value = read(body)
    rows = value if isinstance(value, list) else [value]
    if not rows:
        raise RowError("no_rows", "the array is empty.", hint="Send one row at least.")
    if len(rows) > max_rows:
        raise RowError(
            "too_many_rows",
            f"one request may hold {max_rows} rows at most.",
            hint="Split it; see serving.max_rows.",
        )
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise RowError(
                "not_an_object",
                "a row must be a JSON object.",
                row=index,
                hint="Send one object, or an array of objects.",
            )
    return rows, rows is not value


def _unreadable(problem: str) -> RowError:
    """The parser's error without the key that it may quote."""
    place = _PLACE.search(problem)
    code, message = next(
        (known for start, known in _PROBLEMS.items() if problem.startswith(start)),
        ("not_json", "the body is not valid JSON in UTF-8"),
    )
    return RowError(code, f"{message}{f', {place[0]}' if place else ''}.")


def rows(
    requested: Sequence[Mapping[str, Json]],
    schema: Schema,
    *,
    now: datetime,
    max_skew: timedelta | None,
    make_id: Callable[[], str],
) -> Batch:
    """Check rows of features, with `prediction_id` and `occurred_at` if the client gave them.

    Raises RowError for the first row that does not fit, ConflictError for an id that stands twice
    in the request with different content.
    """
    features = [dict(row) for row in requested]
    present = stamp(now)
    asked, times, untimed = [], [], set()
    for index, row in enumerate(features):
        given = row.pop("prediction_id", None)
        asked.append(make_id() if given is None else identity(given, index))
        when = row.pop("occurred_at", None)
        if given is not None and when is None:
            untimed.add(given)
        times.append(present if when is None else stamp(event_time(when, index, now, max_skew)))
    columns = schema.check(features)
    # A schema of no features has no columns to turn.
    values = list(zip(*columns.values(), strict=True)) or [()] * len(asked)
    places = _places(asked, list(zip(times, values, strict=True)))
    kept = list(places.values())
    return Batch(
        asked,
        list(places),
        [times[i] for i in kept],
        [[column[i] for i in kept] for column in columns.values()],
        frozenset(untimed),
        made=not any("prediction_id" in row for row in requested),
    )


def _places(asked: Sequence[str], contents: Sequence[object]) -> dict[str, int]:
    """The first row of each id. Raises ConflictError where one comes again with other content."""
    places: dict[str, int] = {}
    for index, name in enumerate(asked):
        first = places.setdefault(name, index)
        if contents[first] != contents[index]:
            raise ConflictError(
                "a prediction_id stands twice in the request with different content.",
                row=index,
                hint="Give every prediction an id of its own.",
            )
    return places


def labels(
    items: Sequence[Mapping[str, Json]],
    target: Target,
    *,
    now: datetime,
    max_skew: timedelta | None,
) -> pa.Table:
    """Check labels and give them as the journal takes them; `labelled_at` is `now` if not given.

    Raises RowError for the first that does not fit.
    """
    checked = [_label(item, index, target, now, max_skew) for index, item in enumerate(items)]
    return pa.Table.from_pylist(checked, LABELS)


def _label(
    item: Mapping[str, Json],
    index: int,
    target: Target,
    now: datetime,
    max_skew: timedelta | None,
) -> dict[str, Any]:
    for name in item:
        if name not in LABELS.names:
            raise RowError(
                "unknown_field",
                f"{name[:80]!r} is no field of a label.",
                field=name[:80],
                row=index,
                hint="A label has prediction_id, label, and labelled_at if it is not now.",
            )
    for name in ("prediction_id", "label"):
        if name not in item:
            raise RowError("missing_field", f"{name!r} is missing.", field=name, row=index)
    known = identity(item["prediction_id"], index)
    try:
        label = target.text(item["label"])
    except SchemaError as error:
        raise RowError(
            "bad_label", error.message, field="label", row=index, hint=error.hint
        ) from None
    given = item.get("labelled_at")
    when = now if given is None else _moment(given, "labelled_at", index)
    if max_skew is not None and when - now > max_skew:
        raise _skewed("labelled_at", index, max_skew)
    return {"prediction_id": known, "label": label, "labelled_at": when}


def identity(value: Json, row: int) -> str:
    """A client's id of a prediction; raises RowError `bad_id`."""
    if isinstance(value, str) and 1 <= len(value) <= MAX_ID and not _CONTROL.search(value):
        return value
    raise RowError(
        "bad_id",
        f"prediction_id must be a string of 1 to {MAX_ID} characters, none a control character.",
        field="prediction_id",
        row=row,
    )


def event_time(value: Json, row: int, now: datetime, max_skew: timedelta | None) -> datetime:
    """A client's `occurred_at`, in UTC; raises RowError `bad_time` or `time_skew`."""
    when = _moment(value, "occurred_at", row)
    if max_skew is not None and abs(when - now) > max_skew:
        raise _skewed("occurred_at", row, max_skew)
    return when


def _moment(value: Json, name: str, row: int) -> datetime:
    """A time as RFC 3339 writes it, in UTC and whole microseconds."""
    match = _RFC3339.fullmatch(value) if isinstance(value, str) else None
    if match is not None and match["zone"] is None:
        raise RowError(
            "bad_time",
            f"{name} has no time zone.",
            field=name,
            row=row,
            hint="Append Z for UTC, or an offset such as +02:00.",
        )
    try:
        if match is not None:
            return utc(datetime.fromisoformat(match[0].upper()))
    except (ValueError, OverflowError):
        pass  # a month 13 or a year 0 looks like a time but is none
    raise RowError(
        "bad_time",
        f"{name} must be a time as RFC 3339 writes it, in a string.",
        field=name,
        row=row,
        hint="For example 2026-01-31T12:00:00Z.",
    )


def _skewed(name: str, row: int, max_skew: timedelta) -> RowError:
    return RowError(
        "time_skew",
        f"{name} lies further than {max_skew} from the server's clock.",
        field=name,
        row=row,
        hint="Check both clocks; serving.max_skew sets the bound, 'none' lifts it.",
    )
