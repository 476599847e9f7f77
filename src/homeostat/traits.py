"""Traits: what the quality checks know of rows beyond the profile's counts.

Takes rows and their schema. Gives, per block of event time, how many rows repeat an earlier one,
and per number how many values repeat the one before and how many are infinite, with the range of
the finite ones. The traits of a champion's training rows are an object of its release.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow as pa

from homeostat.codes import codes
from homeostat.errors import SchemaError, other_format
from homeostat.order import ordered
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
        moments(rows)  # says what is wrong with times that have no order
        rows = ordered(rows)
        blocks, place = np.unique(moments(rows) // (block // MICROSECOND), return_inverse=True)
        columns = {
            f.name: rows.column(f.name).cast(f.arrow)
            for f in schema.features
            if f.name in rows.column_names
        }
        count = len(blocks)
        kinds = {f.name for f in schema.features if f.kind == "number"}
        return cls(
            block,
            blocks.astype(np.int64),
            np.bincount(place, minlength=count).astype(np.int64),
            _repeats(codes(columns.values(), len(place)), place, blocks),
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


def _repeats(found: NDArray[np.uint64], place: Counts, blocks: Counts) -> Counts:
    """Rows by how far back the newest equal row lies, shape (blocks, REACH)."""
    order = np.lexsort([np.arange(len(found)), found])
    same = np.flatnonzero(found[order][1:] == found[order][:-1]) + 1
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
    stuck = stuck_after(math.nan, values)

    def counted(chosen: NDArray[np.bool_]) -> Counts:
        return np.bincount(place[chosen], minlength=blocks).astype(np.int64)

    return Number(
        float(known.min()) if len(known) else None,
        float(known.max()) if len(known) else None,
        counted(stuck),
        counted(infinite),
    )


def stuck_after(before: float, values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which finite values equal the one before them, shape (rows,); `before` precedes the first."""
    return np.asarray((values == np.concatenate([[before], values[:-1]])) & np.isfinite(values))
