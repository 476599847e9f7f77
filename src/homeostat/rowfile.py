"""A CSV or Parquet file, batch by batch, so that memory does not grow with it.

It takes the file, and for scoring the schema of the model that is to answer. It gives Arrow batches
and tables; or, as a client would send them, objects of the features with id and time where the file
has them, in which a cell that is not of its feature's kind is left as it stands, so that the same
check as everywhere refuses it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from homeostat.errors import HomeostatError, SchemaError
from homeostat.records import Json
from homeostat.schema import Feature, Schema

ROWS = 2_000  # of a batch
BLOCK = 1 << 20  # bytes of CSV that are read at once
BUFFER = 1 << 20  # bytes of one column of Parquet that are read at once
PIECE = 1 << 14  # rows of Parquet that become part of a table
LARGE = 128 << 20  # bytes; a table that has them gets no further rows
GIVEN = ("prediction_id", "occurred_at")


class TableFile:
    """A file of columns. Raises HomeostatError, here and later, for one that cannot be read."""

    def __init__(self, file: Path) -> None:
        if not file.is_file():
            raise HomeostatError(f"{file} does not exist.", hint="Give a CSV or Parquet file.")
        if file.suffix not in (".csv", ".parquet"):
            raise HomeostatError(f"{file.name} is neither .csv nor .parquet.")
        self._file = file
        self._bytes = file.stat().st_size
        self._read = 0.0
        with self.told():
            self.names = self._names()

    @property
    def name(self) -> str:
        return self._file.name

    @property
    def text(self) -> bool:
        """Whether its cells are text, of which the kind is not told."""
        return self._file.suffix == ".csv"

    @property
    def share(self) -> float:
        """How much of the file was read, from 0 to 1."""
        return self._read

    def batches(
        self, types: Mapping[str, pa.DataType], rows: int = ROWS, *, fast: bool = False
    ) -> Iterator[pa.RecordBatch]:
        """The columns that `types` names, in order. Of CSV the cells are read as these types, in
        blocks of BLOCK bytes; of Parquet as they are, at most `rows` at a time. `fast` reads
        Parquet with all cores, and text of it as a dictionary.
        """
        with self.told():
            if self.text:
                with self._file.open("rb") as handle, _csv(handle, types) as reader:
                    for batch in reader:
                        self._read = handle.tell() / self._bytes
                        yield batch
                return
            texts = [name for name, kind in types.items() if fast and kind == pa.string()]
            # With pre_buffer, or without a bound to what is read at once, the file would be held
            # in memory as a whole.
            with pq.ParquetFile(
                self._file, pre_buffer=False, buffer_size=BUFFER, read_dictionary=texts
            ) as parquet:
                done, wanted = 0, list(types)
                for batch in parquet.iter_batches(rows, columns=wanted, use_threads=fast):
                    done += batch.num_rows
                    self._read = done / parquet.metadata.num_rows
                    yield batch

    def tables(self, types: Mapping[str, pa.DataType], rows: int) -> Iterator[pa.Table]:
        """The same in tables of `rows` rows or a little more, or of LARGE bytes."""
        held: list[pa.RecordBatch] = []
        count = size = 0
        for batch in self.batches(types, rows=min(rows, PIECE)):
            held.append(batch)
            count, size = count + batch.num_rows, size + batch.nbytes
            if count >= rows or size >= LARGE:
                yield pa.Table.from_batches(held)
                held, count, size = [], 0, 0
        if held:
            yield pa.Table.from_batches(held)

    @contextmanager
    def told(self) -> Iterator[None]:
        """What Arrow says of a cell is an error of the file, told without the cell."""
        try:
            yield
        except pa.ArrowInvalid as error:
            raise _unreadable(self._file, error) from error

    def _names(self) -> list[str]:
        if not self.text:
            return list(pq.read_schema(self._file).names)
        with self._file.open("rb") as handle, _csv(handle, {}) as reader:
            return list(reader.schema.names)


class RowFile:
    """A file of rows; naive times in it are read in `timezone`.

    `columns` is `prediction_id` or `occurred_at` → the name that it has in the file. `ignored` are
    columns that are no features. Raises HomeostatError for a file that cannot be read, SchemaError
    for one that lacks a column.
    """

    def __init__(
        self, file: Path, schema: Schema, columns: Mapping[str, str], timezone: str | None
    ) -> None:
        self._source = TableFile(file)
        self._schema = schema
        self._timezone = timezone
        names = self._source.names
        self._given = {
            name: columns.get(name, name) for name in GIVEN if name in columns or name in names
        }
        wanted = [*schema.names, *self._given.values()]
        missing = [name for name in wanted if name not in names]
        if missing:
            raise SchemaError(
                f"{file.name} lacks {', '.join(map(repr, missing[:20]))}.",
                hint="It must have every feature of the champion; see GET /model.",
            )
        # What a cell holds is for its feature to say, not for a guess.
        self._wanted = dict.fromkeys(wanted, pa.string())
        self.ignored: Sequence[str] = [name for name in names if name not in self._wanted]

    @property
    def share(self) -> float:
        """How much of the file was read, from 0 to 1."""
        return self._source.share

    def rows(self) -> Iterator[list[dict[str, Json]]]:
        """The rows in order, at most ROWS at a time."""
        with self._source.told():
            for batch in self._source.batches(self._wanted):
                for start in range(0, batch.num_rows, ROWS):
                    yield self._objects(batch.slice(start, ROWS))

    def _objects(self, batch: pa.RecordBatch) -> list[dict[str, Json]]:
        columns = {f.name: _values(batch.column(f.name), f) for f in self._schema.features}
        if "prediction_id" in self._given:
            columns["prediction_id"] = _ids(batch.column(self._given["prediction_id"]))
        if "occurred_at" in self._given:
            column = batch.column(self._given["occurred_at"])
            columns["occurred_at"] = _times(column, self._timezone)
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _csv(handle: Any, types: Mapping[str, pa.DataType]) -> pcsv.CSVStreamingReader:
    """The columns that `types` names, of these types; without any, all of them."""
    return pcsv.open_csv(
        handle,
        read_options=pcsv.ReadOptions(block_size=BLOCK, use_threads=False),
        parse_options=pcsv.ParseOptions(newlines_in_values=True),
        convert_options=pcsv.ConvertOptions(
            column_types=dict(types),
            include_columns=list(types),
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            null_values=[""],
        ),
    )


def _values(column: pa.Array, feature: Feature) -> list[Any]:
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), kind.value_type
    if feature.kind == "category" or pa.types.is_null(kind):
        return list(column.to_pylist())
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if feature.kind == "boolean":
        return _cast(column, pa.bool_()) if text else list(column.to_pylist())
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if not number and not text:
        return list(column.to_pylist())
    return [_known(value) for value in _cast(column, pa.float64())]


def _known(value: Any) -> Any:
    # NaN is how a frame of numbers says null.
    return None if isinstance(value, float) and math.isnan(value) else value


def _cast(column: pa.Array, kind: pa.DataType) -> list[Any]:
    """The values as `kind`; what is none stays as it is."""
    try:
        return list(column.cast(kind, safe=False).to_pylist())
    except pa.ArrowInvalid:
        return [_cast_one(cell, kind) for cell in column]


def _cast_one(cell: pa.Scalar, kind: pa.DataType) -> Any:
    try:
        return cell.cast(kind, safe=False).as_py()
    except pa.ArrowInvalid:
        return cell.as_py()


def _ids(column: pa.Array) -> list[Any]:
    whole = pa.types.is_integer(column.type)
    return list((column.cast(pa.string()) if whole else column).to_pylist())


def _times(column: pa.Array, timezone: str | None) -> list[Any]:
    """Times as RFC 3339 writes them; naive ones get the zone, if there is one."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        try:  # text with an offset is no naive time, and stays as it is
            naive = column.cast(pa.timestamp("us")) if timezone else None
        except pa.ArrowInvalid:
            naive = None
        if naive is None:
            return list(column.to_pylist())
        column = naive
    if not pa.types.is_timestamp(column.type):
        return list(column.to_pylist())
    if column.type.tz is None and timezone:
        column = pc.assume_timezone(column, timezone, ambiguous="earliest", nonexistent="latest")
    zone = None if column.type.tz is None else "UTC"
    moments = column.cast(pa.timestamp("us", zone), safe=False).to_pylist()
    return [None if moment is None else moment.isoformat() for moment in moments]


def _unreadable(file: Path, error: Exception) -> HomeostatError:
    why = str(error).partition("invalid value")[0].partition(", got ")[0].strip(" :")
    return HomeostatError(f"{file.name} cannot be read: {why}.")
