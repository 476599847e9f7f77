"""Arrow tables as lines of CSV and back, null and the empty string kept apart.

Every value that is there stands in quotes, so that a quote's parity tells where a record ends:
at the first newline outside quotes. It takes tables or bytes and gives bytes, tables, and the
offsets at which records end.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv

from homeostat.errors import JournalError

_BLOCK = 1 << 22  # bytes that the parser takes at a time
_WRITE = csv.WriteOptions(include_header=False, quoting_style="all_valid")
_PARSE = csv.ParseOptions(newlines_in_values=True)


def encode(table: pa.Table) -> bytes:
    """The rows of `table`, one record each: null is nothing, an empty string is `""`."""
    if not table.num_rows:
        return b""
    sink = pa.BufferOutputStream()
    # Of an empty chunk, Arrow's writer writes what its buffer last held.
    csv.write_csv(table.combine_chunks(), sink, _WRITE)
    return bytes(sink.getvalue())


def header(schema: pa.Schema) -> bytes:
    """The line that names the columns."""
    return encode(pa.table({str(i): [name] for i, name in enumerate(schema.names)}))


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


def complete(data: bytes) -> int:
    """How many bytes at the start of `data` are whole records."""
    end = len(data)
    inside = data.count(b'"') % 2
    while True:
        line = data.rfind(b"\n", 0, end) + 1
        inside ^= data.count(b'"', line, end) % 2
        if line == 0 or not inside:
            return line
        end = line - 1


def ends(data: bytes, rows: int) -> NDArray[np.int64]:
    """The offset just after each of the `rows` records that `data` consists of.

    Raises JournalError where they are not as many, so that no misprint reaches a file.
    """
    text = np.frombuffer(data, dtype=np.uint8)
    newlines = np.flatnonzero(text == ord("\n"))
    if len(newlines) != rows:  # some stand within quotes
        inside = np.logical_xor.accumulate(text == ord('"'))
        newlines = newlines[~inside[newlines]]
    if len(newlines) != rows:
        raise JournalError("the rows could not be written as CSV.")
    return newlines + 1


def split(data: bytes, rows: int) -> list[bytes]:
    """The `rows` records of `data`, each with its newline."""
    return [data[start:end] for start, end in pairwise([0, *ends(data, rows).tolist()])]
