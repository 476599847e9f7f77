"""Levels: profiles of the rows that have one level of a category or boolean each.

Takes rows, the features that hold their bins, and the names of the columns to part them by. Gives
for the largest levels of each of these how many rows have it and the profile of those rows, packed,
so that no more than one is ever laid out. Those of a champion's training rows are an object of its
release.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow as pa

from homeostat.binning import TIME, cells
from homeostat.errors import SchemaError
from homeostat.profile import Profile
from homeostat.schema import Feature

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Counts: TypeAlias = NDArray[np.int64]

FORMAT = 1
LARGEST = 20  # levels of a column that are counted apart
SEGMENTS = "segments"
"""The name in a release of the levels of its training rows."""

_HEADER = b"homeostat.segments"


@dataclass(frozen=True, slots=True)
class Level:
    """The rows that have one level."""

    column: str
    name: str  # "false" or "true" of a boolean
    rows: int
    packed: bytes  # their profile, of the features alone

    @property
    def profile(self) -> Profile:
        return Profile.from_bytes(self.packed)


@dataclass(frozen=True, slots=True)
class Levels:
    """The largest levels of some columns, at most `LARGEST` of each."""

    columns: tuple[str, ...]  # by which the rows were parted
    rows: int  # all, whatever level they have
    levels: tuple[Level, ...]  # in the order of `columns`, of each the largest first

    @classmethod
    def of(
        cls, rows: pa.Table, features: Sequence[Feature], names: Sequence[str], *, block: timedelta
    ) -> Levels:
        """Of rows with `occurred_at`, parted by each of `names`.

        An absent feature is null throughout; null, and levels that the feature does not know, are
        none. The same rows in any order and partition give the same levels. Raises SchemaError as
        `Profile.of` does, and for a name that is no category or boolean.
        """
        check(features, names)
        by_name = {feature.name: feature for feature in features}
        columns = tuple(dict.fromkeys(names))
        found = [
            Level(
                name, parts.names[place], int(parts.sizes[place]), parts.profile(place).to_bytes()
            )
            for name in columns
            for parts in [Parts.of(rows, features, by_name[name], block)]
            for place in parts.largest
        ]
        return cls(columns, rows.num_rows, tuple(found))

    def to_bytes(self) -> bytes:
        """An Arrow IPC stream: column, level, rows and the packed profile of each."""
        header = {"format": FORMAT, "columns": self.columns, "rows": self.rows}
        table = pa.Table.from_arrays(
            [
                pa.array([level.column for level in self.levels], pa.string()),
                pa.array([level.name for level in self.levels], pa.string()),
                pa.array([level.rows for level in self.levels], pa.int64()),
                pa.array([level.packed for level in self.levels], pa.large_binary()),
            ],
            names=["column", "level", "rows", "profile"],
        ).replace_schema_metadata({_HEADER: json.dumps(header)})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return bytes(sink.getvalue().to_pybytes())

    @classmethod
    def from_bytes(cls, content: bytes) -> Levels:
        """The inverse of `to_bytes`; raises SchemaError for anything else."""
        try:
            with pa.ipc.open_stream(content) as reader:
                table = reader.read_all()
            header = json.loads((table.schema.metadata or {})[_HEADER])
            if header["format"] == FORMAT:
                lists = [table.column(place).to_pylist() for place in range(4)]
                held = tuple(Level(*fields) for fields in zip(*lists, strict=True))
                return cls(tuple(header["columns"]), header["rows"], held)
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, IndexError) as error:
            raise SchemaError("these bytes are no segments.") from error
        raise SchemaError(
            f"the segments have format {header['format']!r}, this version reads {FORMAT}.",
            hint="Install the version of homeostat that wrote them, or a newer one.",
        )

    def within(self, column: str) -> tuple[Level, ...]:
        return tuple(level for level in self.levels if level.column == column)


class Parting:
    """Other rows by the levels that `chosen` counts apart, added piece by piece.

    Only columns among `names` and in `chosen` are parted by, so without `chosen` none. Of each
    level a packed profile is held, and no row.
    """

    def __init__(
        self,
        chosen: Levels | None,
        features: Sequence[Feature],
        names: Sequence[str],
        block: timedelta,
    ) -> None:
        self.rows = 0  # all, whatever level they have
        self._features, self._block = features, block
        columns = [name for name in dict.fromkeys(names) if chosen and name in chosen.columns]
        self._by = [feature for feature in features if feature.name in columns]
        levels = [level for level in chosen.levels if level.column in columns] if chosen else []
        self._levels = {(level.column, level.name): (0, b"") for level in levels}

    def add(self, rows: pa.Table) -> None:
        """Raises SchemaError as `Levels.of` does."""
        self.rows += rows.num_rows
        for feature in self._by:
            parts = Parts.of(rows, self._features, feature, self._block)
            for place, name in enumerate(parts.names):
                held = self._levels.get((feature.name, name))
                if held is None or not parts.sizes[place]:
                    continue
                profile = parts.profile(place)
                if held[0]:
                    profile += Profile.from_bytes(held[1])
                told = held[0] + int(parts.sizes[place]), profile.to_bytes()
                self._levels[feature.name, name] = told

    def level(self, column: str, name: str) -> Level:
        """One of those that are counted apart; where it has no rows it has no profile either."""
        return Level(column, name, *self._levels[column, name])


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """Rows by the level that they have in one column."""

    names: tuple[str, ...]  # of all levels that the feature knows
    sizes: Counts  # rows of each, shape (levels,)
    _rows: pa.Table
    _codes: Counts  # the level's place of each row, shape (rows,); beyond `names` there is none
    _features: tuple[Feature, ...]
    _block: timedelta

    @classmethod
    def of(
        cls, rows: pa.Table, features: Sequence[Feature], by: Feature, block: timedelta
    ) -> Parts:
        """Raises SchemaError where the column is of another type."""
        names = ("false", "true") if by.kind == "boolean" else by.levels
        found = [cells(batch, by) for batch in rows.to_batches()]
        codes = np.concatenate([*found, np.zeros(0, dtype=np.int64)])
        sizes = np.bincount(codes, minlength=len(names))[: len(names)]
        wanted = [TIME, *(f.name for f in features if f.name in rows.column_names)]
        return cls(names, sizes, rows.select(wanted), codes, tuple(features), block)

    @property
    def largest(self) -> Iterator[int]:
        """The places of the levels that are counted apart, in their order."""
        order = np.argsort(-self.sizes, kind="stable")[:LARGEST]
        yield from (int(place) for place in order if self.sizes[place])

    def profile(self, place: int) -> Profile:
        """Of the rows of one level."""
        held = self._rows.filter(pa.array(self._codes == place))
        return Profile.of(held, self._features, block=self._block)


def unknown(features: Sequence[Feature], names: Sequence[str]) -> tuple[str, ...]:
    """Those of `names` that are no category or boolean, each once."""
    known = {feature.name for feature in features if feature.kind != "number"}
    return tuple(name for name in dict.fromkeys(names) if name not in known)


def check(features: Sequence[Feature], names: Sequence[str]) -> None:
    """Raises SchemaError where one of `names` is no category or boolean."""
    wrong = unknown(features, names)
    if wrong:
        raise SchemaError(
            f"rows cannot be parted into segments by {', '.join(map(repr, wrong))}: "
            "that is no categorical or boolean feature.",
            hint="Name columns of text, or of true and false, that the model takes.",
        )
