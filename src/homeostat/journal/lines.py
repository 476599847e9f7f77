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
_SINGLE = 1 << 16  # bytes up to which one thread parses
_SLICE = 10_000  # rows of a table that become Python's objects at a time
_KNOWN = 10_000  # combinations of types that an encoder remembers
_PARSE = csv.ParseOptions(newlines_in_values=True)
_TIME = len("2025-01-01 00:00:00.000000Z")
_NOTHING = msgspec.Raw(b"")
_NULL = type(None)
_HELD: dict[pa.DataType, frozenset[type]] = {
    pa.string(): frozenset({str, _NULL}),
    pa.float64(): frozenset({float, _NULL}),
    pa.bool_(): frozenset({bool, _NULL}),
    TIMESTAMP: frozenset({str}),  # as text, which Arrow reads back
}
_TEXT = rb'"[^"]*(?:""[^"]*)*"'
_FIRST = re.compile(_TEXT)
_json_lines = msgspec.json.Encoder().encode_lines


class Encoder:
    """Rows with the columns of one schema as records, whose first column is text and never null.

    JSON writes what CSV needs: text in quotes, numbers so that they read back to the last bit.
    What JSON escapes, and numbers that it does not have, are written with care instead.
    """

    def __init__(self, schema: pa.Schema) -> None:
        held = [_HELD[field.type] for field in schema]
        self._held = [frozenset({str}), *held[1:]]
        self._times = [i for i, field in enumerate(schema) if field.type == TIMESTAMP]
        self._nulls: dict[tuple[type, ...], frozenset[int]] = {}

    def records(self, rows: Sequence[Sequence[Any]]) -> list[bytes]:
        """A record with its newline for each row. Raises JournalError for a value that its column
        cannot hold, since nobody could read the file any more.
        """
        if not rows:
            return []
        nulls = self._checked(rows)
        if nulls:
            columns = list(zip(*rows, strict=True))
            for place in nulls:
                columns[place] = tuple(_NOTHING if v is None else v for v in columns[place])
            rows = list(zip(*columns, strict=True))
        try:
            text = _json_lines(rows)
        except UnicodeEncodeError:
            raise _unfit() from None
        written = text.splitlines(keepends=True)  # JSON escapes a newline within a text
        if b"\\" in text or b"null" in text:
            return [_record(row, line) for row, line in zip(rows, written, strict=True)]
        return [line[1:-2] + b"\n" for line in written]

    def of(self, table: pa.Table) -> Iterator[bytes]:
        """The records of a table with the columns of the schema."""
        for start in range(0, table.num_rows, _SLICE):
            part = table.slice(start, _SLICE)
            columns = [
                (column.cast(pa.string()) if column.type == TIMESTAMP else column).to_pylist()
                for column in part.columns
            ]
            yield from self.records(list(zip(*columns, strict=True)))

    def _checked(self, rows: Sequence[Sequence[Any]]) -> frozenset[int]:
        """The places of columns with nulls. Raises JournalError, see `records`."""
        nulls: frozenset[int] = frozenset()
        for kinds in {tuple(map(type, row)) for row in rows}:
            known = self._nulls.get(kinds)
            nulls |= self._fitting(kinds) if known is None else known
        for place in self._times:
            if any(len(row[place]) != _TIME for row in rows):
                raise _unfit()
        return nulls

    def _fitting(self, kinds: tuple[type, ...]) -> frozenset[int]:
        """The places of nulls in rows of these types, which the columns can hold."""
        if len(kinds) != len(self._held):
            raise _unfit()
        if not all(kind in held for kind, held in zip(kinds, self._held, strict=True)):
            raise _unfit()
        if len(self._nulls) >= _KNOWN:
            self._nulls.clear()
        nulls = frozenset(place for place, kind in enumerate(kinds) if kind is _NULL)
        self._nulls[kinds] = nulls
        return nulls


def _record(row: Sequence[Any], line: bytes) -> bytes:
    """The record of a row that JSON writes as `line`, which CSV may not read as it is."""
    return _careful(row) if b"\\" in line or b"null" in line else line[1:-2] + b"\n"


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
    return b"".join(Encoder(table.schema).of(table))


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
        # A pool's thread that lets go of a few bytes when the process ends would end it badly.
        csv.ReadOptions(
            column_names=schema.names, block_size=block, use_threads=len(data) > _SINGLE
        ),
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
