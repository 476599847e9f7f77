"""Canonical bytes of rows, for ids that a second look gives again and for the hash of a frame.

It takes Arrow tables, however they are chunked and whatever the order of their columns.
It gives a stable id for each row, or one SHA-256 over all of them.

Every cell becomes 16 bytes: a number or boolean its float64, little-endian, with 8 zero bytes
behind it; a time its microseconds since 1970 as int64, likewise; a text the first 16 bytes of the
SHA-256 of its UTF-8; null and NaN sixteen 0xFF. Columns stand in the order of their names.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from homeostat.schema import TIMESTAMP, Schema

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT = 1
CELL = 16  # bytes


def row_ids(content: pa.Table, label: pa.ChunkedArray) -> list[str]:
    """`load-` and 32 hex digits for each row, from the content without the label.

    Rows of the same content are told apart by `-2`, `-3`, … in the order of their labels, nulls
    last, so that the ids depend neither on the order of the rows nor on when a label came.
    """
    begun = _begun(content)
    cells = _cells(content)
    ids = []
    for row in cells:
        digest = begun.copy()
        digest.update(row)
        ids.append(f"load-{digest.hexdigest()[:32]}")
    counts = Counter(ids)
    if len(counts) == len(ids):
        return ids
    labels = label.cast(pa.string()).to_pylist()
    again = [place for place, name in enumerate(ids) if counts[name] > 1]
    again.sort(key=lambda place: (labels[place] is None, labels[place] or ""))
    seen: Counter[str] = Counter()
    for place in again:
        name = ids[place]
        seen[name] += 1
        if seen[name] > 1:
            ids[place] = f"{name}-{seen[name]}"
    return ids


def frame_hash(rows: pa.Table, schema: Schema) -> str:
    """SHA-256, in hex, of a training frame: ids, event times, features and labels.

    Rows are taken in the order of (occurred_at, prediction_id), so that the same rows give the
    same hash however they came.
    """
    label = rows.column("label")
    numeric = schema.target.task == "regression"
    frame = pa.table(
        {
            "prediction_id": rows.column("prediction_id"),
            "occurred_at": rows.column("occurred_at").cast(TIMESTAMP),
            "label": label.cast(pa.float64() if numeric else pa.string()),
            **{f"feature:{f.name}": rows.column(f.name).cast(f.arrow) for f in schema.features},
        }
    ).sort_by([("occurred_at", "ascending"), ("prediction_id", "ascending")])
    digest = _begun(frame)
    digest.update(_cells(frame))
    return str(digest.hexdigest())


def _begun(table: pa.Table) -> Any:
    header = {"format": FORMAT, "columns": sorted(table.column_names)}
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode())


def _cells(table: pa.Table) -> NDArray[np.uint8]:
    """Shape (rows, 16 · columns)."""
    cells = np.zeros((table.num_rows, len(table.column_names), CELL), np.uint8)
    for place, name in enumerate(sorted(table.column_names)):
        _encode(table.column(name), cells[:, place])
    return cells.reshape(table.num_rows, -1)


def _encode(column: pa.ChunkedArray, cells: NDArray[np.uint8]) -> None:
    null = column.is_null(nan_is_null=True).to_numpy()
    if pa.types.is_timestamp(column.type):
        ticks = column.cast(TIMESTAMP).cast(pa.int64()).fill_null(0)
        cells[:, :8] = _bytes(ticks.to_numpy().astype("<i8"))
    elif _is_number(column.type):
        # Adding 0.0 makes one zero of the two.
        values = column.cast(pa.float64(), safe=False).fill_null(0.0).to_numpy() + 0.0
        cells[:, :8] = _bytes(values.astype("<f8"))
    else:
        coded = pc.dictionary_encode(column.cast(pa.string()).combine_chunks())
        texts = coded.dictionary.to_pylist()
        digests = b"".join(hashlib.sha256(text.encode()).digest()[:CELL] for text in texts)
        table = np.frombuffer(digests + bytes(CELL), np.uint8).reshape(-1, CELL)
        cells[:] = table[coded.indices.fill_null(len(texts)).to_numpy(zero_copy_only=False)]
    cells[null] = 0xFF


def _is_number(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)
    )


def _bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(values).view(np.uint8).reshape(-1, 8)
