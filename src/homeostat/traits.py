"""Traits: what the quality checks know of rows beyond the profile's counts.

Takes rows and their schema. Gives, per block of event time, how many rows repeat an earlier one,
and per number how many values repeat the one before and how many are infinite, with the range of
the finite ones. The traits of a champion's training rows are an object of its release.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from homeostat.errors import SchemaError, other_format
from homeostat.profile import moments
from homeostat.records import MICROSECOND
from homeostat.schema import Schema

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Counts: TypeAlias = NDArray[np.int64]

FORMAT = 1
REACH = 7  # classes of distance to an equal row: 0, 1, 2-3, 4-7, 8-15, 16-31, 32 blocks and more


@dataclass(frozen=True, slots=True, eq=False)
class Number:
    """One number's values; `low` and `high` are None where none is finite."""

    low: float | None  # of the finite values
    high: float | None
    stuck: Counts  # values equal to the one before in event time, shape (blocks,)
    infinite: Counts  # shape (blocks,)


@dataclass(frozen=True, slots=True, eq=False)
class Traits:
    """`blocks` are block numbers since 1970, ascending, `sizes` the rows of each, shape (blocks,).

    `repeats` counts rows that have an equal one before them, by how many blocks that lies back,
    shape (blocks, `REACH`); two rows are equal when all features are.
    """

    block: timedelta
    blocks: Counts
    sizes: Counts
    repeats: Counts
    numbers: Mapping[str, Number]

    @classmethod
    def of(cls, rows: pa.Table, schema: Schema, *, block: timedelta) -> Traits:
        """Of rows with `occurred_at` and features of the schema's types; an absent one is null.

        Raises SchemaError for rows whose time cannot be used.
        """
        by = [("occurred_at", "ascending")]
        if "prediction_id" in rows.column_names:
            by.append(("prediction_id", "ascending"))
        blocks, place = np.unique(moments(rows) // (block // MICROSECOND), return_inverse=True)
        order = pc.sort_indices(rows.select([name for name, _ in by]), sort_keys=by).to_numpy()
        place = place[order]
        columns = {
            f.name: rows.column(f.name).cast(f.arrow).take(pa.array(order))
            for f in schema.features
            if f.name in rows.column_names
        }
        count = len(blocks)
        kinds = {f.name for f in schema.features if f.kind == "number"}
        return cls(
            block,
            blocks.astype(np.int64),
            np.bincount(place, minlength=count).astype(np.int64),
            _repeats(_codes(columns, len(place)), place, blocks),
            {
                name: _number(values.to_numpy(), place, count)
                for name, values in columns.items()
                if name in kinds
            },
        )

    def to_bytes(self) -> bytes:
        """JSON, the same bytes for the same traits."""
        numbers = {
            name: {
                "low": number.low,
                "high": number.high,
                "stuck": number.stuck.tolist(),
                "infinite": number.infinite.tolist(),
            }
            for name, number in self.numbers.items()
        }
        content = {
            "format": FORMAT,
            "block": self.block // MICROSECOND,
            "blocks": self.blocks.tolist(),
            "sizes": self.sizes.tolist(),
            "repeats": self.repeats.tolist(),
            "numbers": numbers,
        }
        return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Traits:
        """The inverse of `to_bytes`; raises SchemaError for anything else."""
        try:
            raw = json.loads(content)
            if raw["format"] != FORMAT:
                raise other_format(SchemaError, "the record of traits", raw["format"], FORMAT)
            return cls(
                raw["block"] * MICROSECOND,
                _whole(raw["blocks"]),
                _whole(raw["sizes"]),
                _whole(raw["repeats"]).reshape(-1, REACH),
                {
                    name: Number(
                        body["low"],
                        body["high"],
                        _whole(body["stuck"]),
                        _whole(body["infinite"]),
                    )
                    for name, body in raw["numbers"].items()
                },
            )
        except (ValueError, KeyError, TypeError) as error:
            raise SchemaError("these bytes are no traits.") from error


def _whole(values: list[int] | list[list[int]]) -> Counts:
    return np.array(values, dtype=np.int64)


def _codes(columns: Mapping[str, pa.ChunkedArray], rows: int) -> NDArray[np.uint64]:
    """One number for each row that is the same for equal rows, shape (rows,)."""
    codes = np.zeros(rows, dtype=np.uint64)
    for values in columns.values():
        coded = values.combine_chunks().dictionary_encode(null_encoding="encode").indices
        mixed = codes * np.uint64(0x9E3779B97F4A7C15) + coded.to_numpy().astype(np.uint64)
        # The finaliser of splitmix64 (Steele, Lea and Flood 2014, OOPSLA): every bit stirs all.
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        codes = mixed ^ (mixed >> np.uint64(31))
    return codes


def _repeats(codes: NDArray[np.uint64], place: Counts, blocks: Counts) -> Counts:
    """Rows by how far back the newest equal row lies, shape (blocks, REACH)."""
    order = np.lexsort([np.arange(len(codes)), codes])
    same = np.flatnonzero(codes[order][1:] == codes[order][:-1]) + 1
    here, before = place[order[same]], place[order[same - 1]]
    distance = blocks[here] - blocks[before]
    reach = np.array([reach_of(int(d)) for d in np.unique(distance)], dtype=np.int64)
    group = reach[np.searchsorted(np.unique(distance), distance)] if len(distance) else distance
    flat = np.bincount(here * REACH + group, minlength=len(blocks) * REACH)
    return flat.astype(np.int64).reshape(len(blocks), REACH)


def reach_of(distance: int) -> int:
    """The class of a distance in blocks."""
    return min(distance.bit_length(), REACH - 1)


def _number(values: NDArray[np.float64], place: Counts, blocks: int) -> Number:
    finite, infinite = np.isfinite(values), np.isinf(values)
    known = values[finite]
    stuck = np.zeros(len(values), dtype=bool)
    stuck[1:] = values[1:] == values[:-1]
    stuck &= finite

    def counted(chosen: NDArray[np.bool_]) -> Counts:
        return np.bincount(place[chosen], minlength=blocks).astype(np.int64)

    return Number(
        float(known.min()) if len(known) else None,
        float(known.max()) if len(known) else None,
        counted(stuck),
        counted(infinite),
    )
