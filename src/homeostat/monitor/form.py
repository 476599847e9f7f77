"""Form: whether the rows of a window have the champion's columns, in its types.

Takes rows as they came. Gives the same rows with each feature in the schema's type, null where a
column is missing or cannot be read, and a finding for each column that was not as it should be.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from homeostat.records import Finding
from homeostat.schema import RESERVED, TIMESTAMP, Feature, Schema

EXTRA_NAMED = 20  # further columns that are named one by one


def formed(rows: pa.Table, schema: Schema) -> tuple[pa.Table, tuple[Finding, ...]]:
    """`rows` as the other stages take them, and what was found on the way.

    A column of another type whose values can all be read in the schema's type is read so, with a
    warning; one that cannot is null from here on, and blocks. Event times that cannot be read
    block the window: the rows are then returned without any of them.
    """
    findings: list[Finding] = []
    rows, found = _times(rows)
    findings += found
    for feature in schema.features:
        column, finding = _column(rows, feature)
        findings += [finding] if finding else []
        if feature.name in rows.column_names:
            place = rows.schema.get_field_index(feature.name)
            rows = rows.set_column(place, feature.name, column)
        else:
            rows = rows.append_column(feature.name, column)
    known = RESERVED | set(schema.names)
    extra = sorted(name for name in rows.column_names if name not in known)
    for name in extra[:EXTRA_NAMED]:
        message = f"{name!r} is no feature of this model."
        findings.append(Finding("extra_column", "warn", name, 1.0, 0.0, message))
    return rows, tuple(findings)


def _times(rows: pa.Table) -> tuple[pa.Table, list[Finding]]:
    """The rows with event times in UTC; none of the rows where these cannot be read."""
    if "occurred_at" not in rows.column_names:
        return rows, []  # no table of the journal: the profile says what it lacks
    times = rows.column("occurred_at")
    place = rows.schema.get_field_index("occurred_at")
    read: pa.ChunkedArray | None = None
    problem = ""
    if times.null_count:
        problem = f"{times.null_count} of {len(times)} rows have no event time"
    elif pa.types.is_timestamp(times.type):
        if times.type.tz is not None:
            return rows, []
        problem = "the event times have no zone"
    elif _is_text(times.type):
        try:
            read = times.cast(pa.string()).cast(TIMESTAMP)
        except pa.ArrowException:
            problem = "the event times are text that is no time with a zone"
    else:
        problem = f"the event times are {times.type}"
    if read is None:
        share = times.null_count / max(len(times), 1) or 1.0
        message = f"The rows cannot be put in order: {problem}."
        empty = rows.slice(0, 0).set_column(place, "occurred_at", pa.array([], TIMESTAMP))
        return empty, [Finding("unusable_times", "block", None, share, 0.0, message)]
    message = "The event times came as text; they were read as times of the zones they name."
    finding = Finding("retyped_column", "warn", "occurred_at", 1.0, 0.0, message)
    return rows.set_column(place, "occurred_at", read), [finding]


def _column(rows: pa.Table, feature: Feature) -> tuple[pa.ChunkedArray, Finding | None]:
    """One feature's values in the schema's type, null where they cannot be had."""
    nulls = pa.chunked_array([pa.nulls(rows.num_rows, feature.arrow)])
    name = feature.name
    if name not in rows.column_names:
        message = f"{name!r} is missing from the rows."
        return nulls, Finding("missing_column", "block", name, 1.0, 0.0, message)
    values = rows.column(name)
    if values.type == feature.arrow:
        return values, None
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    try:
        read = values.cast(feature.arrow)
    except pa.ArrowException:
        read = None
    if read is not None and (_same_kind(values.type, feature) or pc.all(values.is_null()).as_py()):
        return read, None
    what = {"number": "a number", "category": "text", "boolean": "true or false"}[feature.kind]
    if read is None:
        message = f"{name!r} holds {_told(values.type)} that cannot all be read as {what}."
        return nulls, Finding("retyped_column", "block", name, 1.0, 0.0, message)
    message = f"{name!r} holds {_told(values.type)} where {what} was meant; it was read as that."
    return read, Finding("retyped_column", "warn", name, 1.0, 0.0, message)


def _same_kind(kind: pa.DataType, feature: Feature) -> bool:
    if pa.types.is_null(kind):
        return True
    if feature.kind == "number":
        return bool(
            pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
        )
    return _is_text(kind) if feature.kind == "category" else False


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _told(kind: pa.DataType) -> str:
    return "text" if _is_text(kind) else str(kind)
