"""Which columns a journal file has: recorded beside it, so that it can be read without being told.

It takes tables in the columns of `Schema.journal` and brings them to the journal's own types. It
gives the fingerprint that files are named by, and the text of the schema file beside each.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from homeostat.errors import JournalError, other_format
from homeostat.schema import RESERVED, SYSTEM, TIMESTAMP

FORMAT = 1
LABELS = pa.schema(
    [
        ("prediction_id", pa.string()),
        ("label", pa.string()),
        ("labelled_at", TIMESTAMP),
        ("recorded_at", TIMESTAMP),
    ]
)
SENT = LABELS.append(pa.field("arrived_at", TIMESTAMP))
"""Labels as they lie in the tail. `arrived_at` is `recorded_at`, but never earlier than that of a
label before, sent or imported: it tells the order should the clock have been set back."""
_KINDS = {"double": "number", "string": "category", "bool": "boolean"}
_TYPES = {str(kind): kind for kind in (pa.string(), pa.float64(), pa.bool_(), TIMESTAMP)}
_NEEDED = ("prediction_id", "occurred_at", "recorded_at")


@dataclass(frozen=True, slots=True)
class Shape:
    """The columns of one file of predictions."""

    columns: pa.Schema

    @property
    def features(self) -> list[str]:
        return [name for name in self.columns.names if name not in SYSTEM]

    @property
    def fingerprint(self) -> str:
        """The same twelve digits as `Schema.fingerprint` gives for these features."""
        shape = [[name, _KINDS[str(self.columns.field(name).type)]] for name in self.features]
        return hashlib.sha256(json.dumps(shape).encode()).hexdigest()[:12]

    def to_json(self) -> bytes:
        columns = [[field.name, str(field.type)] for field in self.columns]
        text = json.dumps(
            {"format": FORMAT, "fingerprint": self.fingerprint, "columns": columns}, indent=1
        )
        return text.encode() + b"\n"

    @classmethod
    def from_json(cls, text: bytes, name: str) -> Shape:
        """Raises JournalError for what is no schema file of a format that this version reads."""
        try:
            raw = json.loads(text)
            if raw["format"] != FORMAT:
                raise other_format(JournalError, name, raw["format"], FORMAT)
            return cls(pa.schema([(column, _TYPES[kind]) for column, kind in raw["columns"]]))
        except (ValueError, KeyError, TypeError) as error:
            raise JournalError(
                f"{name} is no schema of a journal file.", hint="Restore it from a copy."
            ) from error


def conformed(rows: pa.Table) -> pa.Table:
    """`rows` as system columns and then features, in the journal's types.

    Raises JournalError for a missing system column, a column of no kind, no features, or a null
    that the journal cannot do without.
    """
    missing = [name for name in SYSTEM if name not in rows.column_names]
    if missing:
        raise JournalError(f"the rows lack the columns {', '.join(map(repr, missing))}.")
    fields = [pa.field(name, kind) for name, kind in SYSTEM.items()]
    fields += [
        pa.field(field.name, _kind(field)) for field in rows.schema if field.name not in RESERVED
    ]
    if len(fields) == len(SYSTEM):
        raise JournalError("the rows have no features.")
    table = cast(rows, pa.schema(fields))
    for name in _NEEDED:
        if table.column(name).null_count:
            raise JournalError(f"{name!r} must be given for every row.")
    return table


def imported(rows: pa.Table, *, exported: bool) -> pa.Table:
    """`rows` as `conformed`, from `load`; those that were `exported` as served stay `serve`."""
    table = conformed(rows)
    place = table.schema.get_field_index("source")
    source = pa.repeat(pa.scalar("load"), table.num_rows)
    if exported:
        was = table.column(place)
        source = pc.if_else(pc.fill_null(pc.equal(was, "serve"), fill_value=False), was, source)
    return table.set_column(place, table.schema.field(place), source)


def brought(rows: pa.Table, served: pa.Table) -> pa.Table:
    """`LABELS` that `rows` bring, which are imported as `served`: one for each row, null where it
    has none. Where nothing says since when, a label is known since its row was recorded.
    """
    recorded = served.column("recorded_at")
    return labels(
        pa.table(
            {
                "prediction_id": served.column("prediction_id"),
                "label": rows.column("label"),
                "labelled_at": pc.coalesce(rows.column("labelled_at"), recorded),
                "recorded_at": recorded,
            }
        )
    )


def checked(columns: pa.Schema) -> None:
    """Raises JournalError for what are not the system's columns, and then features, in the
    journal's types.
    """
    fields = [(field.name, field.type) for field in columns]
    kinds = {field.name: field.type for field in columns}
    if (
        fields[: len(SYSTEM)] != list(SYSTEM.items())
        or len(fields) == len(SYSTEM)
        or len(kinds) < len(fields)
        or not all(str(kind) in _KINDS for _, kind in fields[len(SYSTEM) :])
    ):
        raise JournalError(
            "these are not the columns of a journal.", hint="See Schema.journal for them."
        )


def labels(rows: pa.Table) -> pa.Table:
    """The columns of `LABELS`. Raises JournalError, also where a label is no text: how a number
    is written is for `Target.text` to say.
    """
    if "label" in rows.column_names:
        kind = rows.schema.field("label").type
        if not (types.is_null(kind) or _is_text(kind)):
            raise JournalError("labels must be text.", hint="Target.text makes it of a value.")
    return cast(rows, LABELS)


def _is_text(kind: pa.DataType) -> bool:
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _kind(field: pa.Field) -> pa.DataType:
    kind = field.type
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_boolean(kind):
        return pa.bool_()
    if types.is_floating(kind) or types.is_integer(kind):
        return pa.float64()
    if _is_text(kind):
        return pa.string()
    raise JournalError(f"the column {field.name!r} is neither number, category nor boolean.")


def cast(rows: pa.Table, columns: pa.Schema) -> pa.Table:
    """The named columns of `rows` in their types; raises JournalError where one does not fit."""
    if rows.schema.equals(columns):
        return rows
    try:
        return rows.select(columns.names).cast(columns)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, KeyError, ValueError):
        # Arrow's text would hold a value.
        raise JournalError(
            "the rows do not have the columns and types of the journal.",
            hint="See Schema.journal for them.",
        ) from None


def aligned(table: pa.Table, columns: pa.Schema) -> pa.Table:
    """`table` with exactly these columns: null where it has none of that name and type."""
    return pa.table(
        [
            table.column(field.name)
            if field.name in table.column_names
            and table.schema.field(field.name).type == field.type
            else pa.nulls(table.num_rows, field.type)
            for field in columns
        ],
        schema=columns,
    )


def union(shapes: Sequence[pa.Schema]) -> pa.Schema:
    """All columns of all files, the system's first; where kinds differ, the last one holds."""
    fields = dict(SYSTEM)
    for shape in shapes:
        fields.update((field.name, field.type) for field in shape)
    return pa.schema(list(fields.items()))
