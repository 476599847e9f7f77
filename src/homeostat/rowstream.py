"""Rows of any kind as record batches of bounded size, with no columns but those that are wanted.

Takes an Arrow table, batch or reader, a pandas or Polars frame, a Parquet or CSV file, or any
number of these one behind the other. Gives batches as they are read, so that memory does not grow
with the rows; a column whose values have no common type is an error that names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from homeostat.errors import SchemaError
from homeostat.rowfile import TableFile
from homeostat.schema import TIMESTAMP

ROWS = 1 << 15  # of a batch, at most; what is made of a column then stays in a core's cache


def batches(data: Any, types: Mapping[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
    """The columns that `types` names, as far as there are any, `ROWS` rows at most at a time.

    Values keep the type that they have; text in a file of CSV stays text. Raises SchemaError for
    data of another kind, HomeostatError for a file that cannot be read.
    """
    for batch in _batches(data, types):
        places = [i for i, name in enumerate(batch.schema.names) if name in types]
        wanted = batch.select(places) if len(places) < batch.num_columns else batch
        for start in range(0, batch.num_rows, ROWS):
            yield wanted.slice(start, ROWS)


def _batches(data: Any, types: Mapping[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
    if isinstance(data, str | Path):
        yield from _file(Path(data), types)
    elif isinstance(data, pa.RecordBatch):
        yield data
    elif isinstance(data, pa.Table):
        yield from data.to_batches(max_chunksize=ROWS)
    elif hasattr(data, "iloc"):
        yield from _frame(data, types)
    elif hasattr(data, "__arrow_c_stream__"):
        yield from pa.RecordBatchReader.from_stream(data)
    elif isinstance(data, Iterable) and not isinstance(data, Mapping | bytes):
        for part in data:
            yield from _batches(part, types)
    else:
        raise SchemaError(
            f"rows cannot be read from a {type(data).__name__}.",
            hint="Give Arrow data, a frame of pandas or Polars, or a Parquet or CSV file.",
        )


def _file(path: Path, types: Mapping[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
    file = TableFile(path)
    if file.text:
        # What a cell holds is for whoever knows the column to say, so that an error can name it.
        wanted = {name: pa.string() for name in types if name in file.names}
    else:
        wanted = {name: kind for name, kind in types.items() if name in file.names}
    return file.batches(wanted, ROWS, fast=True)


def _frame(frame: Any, types: Mapping[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
    """A pandas frame, its columns converted one by one."""
    names = [name for name in frame.columns if name in types]
    for name in names:
        if names.count(name) > 1:
            raise SchemaError(f"the rows have {names.count(name)} columns of the name {name!r}.")
    for start in range(0, len(frame), ROWS):
        part = frame.iloc[start : start + ROWS]
        columns = [_series(part[name], name, types[name]) for name in names]
        # A frame without any of the columns has rows all the same.
        columns = columns or [pa.nulls(len(part))]
        yield pa.RecordBatch.from_arrays(columns, names or [""])


def _series(series: Any, name: str, kind: pa.DataType) -> pa.Array:
    objects = series.dtype == object
    try:
        if objects and kind == TIMESTAMP:
            # Arrow would take a time without a zone for one in UTC.
            if any(isinstance(value, datetime) and value.tzinfo is None for value in series):
                raise SchemaError(f"{name} holds times without a zone.", hint="Give them one.")
            kind = None
        found = pa.array(series, kind if objects else None, from_pandas=True)
    except pa.ArrowException:
        raise SchemaError(
            f"the column {name!r} holds values of several kinds, or not {kind}.",
            hint="Give the column one type.",
        ) from None
    return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found
