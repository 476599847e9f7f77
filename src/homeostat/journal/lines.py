"""Rows as lines of CSV and back, null and the empty string kept apart.

Text stands in quotes, so that a quote's parity tells where a record ends: at the first newline
outside quotes. It takes rows of values, tables or bytes and gives bytes, tables, and the places
of records.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv

from homeostat.errors import JournalError
from homeostat.schema import TIMESTAMP

Places: TypeAlias = NDArray[np.int64]

_BLOCK = 1 << 22  # bytes that the parser takes at a time
_SLICE = 10_000  # rows of a table that become Python's objects at a time
_KNOWN = 10_000  # combinations of types that an encoder remembers
_PARSE = csv.ParseOptions(newlines_in_values=True)
_TIME = len("2025-01-01 00:00:00.000000Z")
_NOTHING = msgspec.Raw(b"")
_NULL = type(None)
_HELD: dict[pa.DataType, tuple[type, ...]] = {
    pa.string(): (str, _NULL),
    pa.float64(): (float, _NULL),
    pa.bool_(): (bool, _NULL),
    TIMESTAMP: (str,),  # as text, which Arrow reads back
}
_TEXT = rb'"[^"]*(?:""[^"]*)*"'
_FIRST = re.compile(_TEXT)
_json = msgspec.json.Encoder().encode


class Encoder:
    """Rows with the columns of one schema as records, whose first column is text and never null.

    JSON writes what CSV needs: text in quotes, numbers so that they read back to the last bit.
    What JSON escapes, and numbers that it does not have, are written with care instead.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self._held = [_HELD[field.type] for field in schema]
        self._held[0] = (str,)
        self._times = [i for i, field in enumerate(schema) if field.type == TIMESTAMP]
        self._nulls: dict[tuple[type, ...], tuple[int, ...]] = {}

    def record(self, row: Sequence[Any]) -> bytes:
        """One record with its newline. Raises JournalError for a value that its column cannot
        hold, since nobody could read the file any more.
        """
        kinds = tuple(map(type, row))
        nulls = self._nulls.get(kinds)
        if nulls is None:
            nulls = self._checked(kinds)
        for place in self._times:
            if len(row[place]) != _TIME:
                raise _unfit()
        if nulls:
            row = list(row)
            for place in nulls:
                row[place] = _NOTHING
        try:
            text = _json(row)
        except UnicodeEncodeError:
            raise _unfit() from None
        if b"\\" in text or b"null" in text:
            return _careful(row)
        return text[1:-1] + b"\n"

    def records(self, table: pa.Table) -> Iterator[bytes]:
        """The records of a table with the columns of the schema."""
        record = self.record
        for start in range(0, table.num_rows, _SLICE):
            part = table.slice(start, _SLICE)
            columns = [
                (column.cast(pa.string()) if column.type == TIMESTAMP else column).to_pylist()
                for column in part.columns
            ]
            yield from map(record, zip(*columns, strict=True))

    def _checked(self, kinds: tuple[type, ...]) -> tuple[int, ...]:
        """The places of nulls in rows of these types."""
        if len(kinds) != len(self._held) or not all(map(_within, kinds, self._held)):
            raise _unfit()
        if len(self._nulls) >= _KNOWN:
            self._nulls.clear()
        nulls = self._nulls[kinds] = tuple(i for i, kind in enumerate(kinds) if kind is _NULL)
        return nulls


def _within(kind: type, held: tuple[type, ...]) -> bool:
    return kind in held


def _unfit() -> JournalError:
    return JournalError(
        "a row does not have the values that its columns hold.", hint="See Schema.journal for them."
    )


def _careful(row: Sequence[Any]) -> bytes:
    return ",".join(map(_field, row)).encode() + b"\n"


def _field(value: Any) -> str:
    if value is _NOTHING:
        return ""
    if isinstance(value, str):
        return '"' + value.replace('"', '""') + '"'
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value)


def encode(table: pa.Table) -> bytes:
    """The rows of `table`, one record each: null is nothing, an empty string is `""`."""
    return b"".join(Encoder(table.schema).records(table))


def header(schema: pa.Schema) -> bytes:
    """The line that names the columns."""
    return _careful(schema.names)


def decode(data: bytes, schema: pa.Schema) -> pa.Table:
    """The rows in `data`, whole records without a header; raises pa.ArrowInvalid for others."""
    if not data:
        return schema.empty_table()
    try:
        return _decode(data, schema, min(len(data), _BLOCK))
    except pa.ArrowInvalid:
        # A record longer than a block cannot be parsed; one block for all of it can.
        return _decode(data, schema, len(data))


def _decode(data: bytes, schema: pa.Schema, block: int) -> pa.Table:
    return csv.read_csv(
        pa.BufferReader(data),
        csv.ReadOptions(column_names=schema.names, block_size=block),
        _PARSE,
        csv.ConvertOptions(
            column_types=schema,
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )


def ends(data: bytes) -> Places:
    """The offset just after each whole record at the start of `data`."""
    text = np.frombuffer(data, dtype=np.uint8)
    newlines = np.flatnonzero(text == ord("\n"))
    quotes = np.flatnonzero(text == ord('"'))
    places: Places = newlines[np.searchsorted(quotes, newlines) % 2 == 0] + 1
    return places


def keys(data: bytes, stops: Places) -> list[bytes]:
    """The first field of each record that ends at one of `stops`, as it stands between its quotes.

    So written, ids differ if and only if their texts do. Raises pa.ArrowInvalid where a record
    does not begin with a quote.
    """
    starts = np.concatenate([np.zeros(1, np.int64), stops[:-1]])
    text = np.frombuffer(data, dtype=np.uint8)
    if not (text[starts] == ord('"')).all():
        raise pa.ArrowInvalid("a record begins with no quote")
    find = data.index
    found = [data[start : find(b'"', start)] for start in (starts + 1).tolist()]
    if (text[starts + 1 + np.fromiter(map(len, found), np.int64, len(found)) + 1] == 34).any():
        return [key(data[a:b]) for a, b in zip(starts.tolist(), stops.tolist(), strict=True)]
    return found


def key(record: bytes) -> bytes:
    """The first field of one record, as `keys` gives it."""
    end = record.index(b'"', 1)
    if record[end + 1 : end + 2] != b'"':
        return record[1:end]
    match = _FIRST.match(record)
    if match is None:
        raise pa.ArrowInvalid("a record begins with no text")
    return match[0][1:-1]


def key_of(name: str) -> bytes:
    """The key under which a record with this id is found."""
    # A lone surrogate is no error here: no record has such an id.
    return name.replace('"', '""').encode("utf-8", "surrogatepass")
