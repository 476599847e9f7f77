"""`homeostat.compare`: the drift test on any two frames, without a project.

Takes a reference and a current frame of pandas, Polars or Arrow. Gives a `DriftReport` with each
column's verdict and the joint one, made by the same code as the monitor's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from homeostat.errors import SchemaError
from homeostat.infer import features
from homeostat.levels import Levels, Parting
from homeostat.monitor.drift import LEAST, NOTHING, Drift, drift
from homeostat.monitor.segments import Rule
from homeostat.monitor.segments import segments as judged
from homeostat.profile import Profile
from homeostat.records import ColumnDrift, Segment
from homeostat.schema import TIMESTAMP, Schema, Target

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

TIME = "occurred_at"
UNSCORED = Target("", "regression", "float")  # nothing is predicted, so nothing of it is counted


@dataclass(frozen=True)
class DriftReport:
    """What `compare` found."""

    verdict: Literal["drift", "stable", "insufficient_data"]
    calibrated: bool  # on ten stretches of the reference as long as the window, or more
    columns: tuple[ColumnDrift, ...]  # in the order of the reference; those with rows on both sides
    joint: ColumnDrift | None  # what no column shows by itself; None where not calibrated
    reference_rows: int
    current_rows: int
    reference_blocks: int
    current_blocks: int
    alpha: float  # chance of any alarm while nothing changes
    min_effect: float  # distances up to this are never called drift
    segments: tuple[Segment, ...] = ()  # each level of the columns named; they inform

    @property
    def drifted(self) -> tuple[str, ...]:
        """The columns that drifted."""
        return tuple(column.column for column in self.columns if column.drifted)

    def to_json(self) -> str:
        """All fields as JSON, keys sorted; numbers are finite."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, allow_nan=False)


def compare(
    reference: pd.DataFrame | pl.DataFrame | pa.Table,
    current: pd.DataFrame | pl.DataFrame | pa.Table,
    *,
    time: str | None = None,
    schema: Schema | None = None,
    block: timedelta = timedelta(days=1),
    alpha: float = 0.01,
    min_effect: float = 0.1,
    min_rows: int = 30,
    segments: Sequence[str] = (),
) -> DriftReport:
    """Whether `current` lies further from `reference` than chance, or its own days, explain.

    `time` names the column of event times, with a zone: rows of one `block` of it are then taken
    as alike, and ten blocks of reference or more calibrate the test on how they differ. Without
    it all rows are taken as independent, which real rows seldom are. `schema` says which columns
    are compared and in which bins; unset, all columns of the reference but reserved names (see
    `homeostat.schema.RESERVED`) are, in bins of its rows. A column that `current` lacks counts as
    null there, one that only it has is left out.

    Per column the distance lies in [0, 1] and `drifted` is `distance > threshold`; p-values are
    adjusted over all tests after Westfall and Young (1993), so that the chance of any false alarm
    is at most `alpha`. Formulas and sources stand in docs/monitoring.md. Fewer than `min_rows` on
    either side, or than two, or no column to compare: the verdict is "insufficient_data". The same
    rows in any order give the same report.

    `segments` names columns of text or of true and false: the rows of each of their twenty largest
    levels are compared with the reference's rows of that level, in all other columns. The chance of
    any false alarm among them is at most `alpha` once more, and they do not change the verdict.

    Raises SchemaError for a column of no known kind, of another type than in the reference, or
    times without a zone, or a segment that is no such column, naming the column.
    """
    sides = [_timed(_arrow(frame), time) for frame in (reference, current)]
    if schema is None:
        schema = _schema(sides[0])
    before, after = (Profile.of(side, schema, block=block) for side in sides)
    levels = Levels.of(sides[0], schema.features, segments, block=block)
    parted = Parting(levels, schema.features, segments, block)
    parted.add(sides[1])
    enough = min(before.rows, after.rows) >= max(LEAST, min_rows)
    found = (
        drift(before, after, alpha=alpha, min_effect=min_effect, columns=schema.names)
        if enough
        else NOTHING
    )
    return DriftReport(
        verdict=_verdict(found),
        calibrated=found.calibrated,
        columns=found.columns,
        joint=found.joint,
        reference_rows=before.rows,
        current_rows=after.rows,
        reference_blocks=len(before.blocks),
        current_blocks=len(after.blocks),
        alpha=alpha,
        min_effect=min_effect,
        segments=judged(
            levels,
            parted,
            schema.features,
            segments,
            Rule(block, alpha, min_effect, min_rows),
            columns=schema.names,
        ),
    )


def _verdict(found: Drift) -> Literal["drift", "stable", "insufficient_data"]:
    if not found.columns:
        return "insufficient_data"
    return "drift" if found.drifted else "stable"


def _arrow(frame: Any) -> pa.Table:
    """Any frame that speaks Arrow's stream protocol, as those of pandas and Polars do."""
    if not hasattr(frame, "__arrow_c_stream__"):
        raise SchemaError(
            f"a {type(frame).__name__} cannot be compared.",
            hint="Pass a pandas or Polars DataFrame, or a pyarrow Table.",
        )
    try:
        table = pa.table(frame)
    except pa.ArrowException as error:
        raise SchemaError(
            "a column of the frame mixes types.", hint="Give each column one type."
        ) from error
    if len(set(table.column_names)) != len(table.column_names):
        raise SchemaError("two columns have the same name.", hint="Rename one.")
    return table


def _schema(reference: pa.Table) -> Schema:
    found = features(_without(reference, [TIME]).to_pandas())
    if not found:
        raise SchemaError("the reference has no column to compare.")
    return Schema(found, UNSCORED)


def _timed(rows: pa.Table, time: str | None) -> pa.Table:
    """The rows with their event time under its name; without one they share a single moment."""
    if time is None:
        moments = pa.array(np.zeros(len(rows), dtype=np.int64)).cast(TIMESTAMP)
        return _without(rows, [TIME]).append_column(TIME, moments)
    if time not in rows.column_names:
        raise SchemaError(f"the time {time!r} is not a column.")
    return _without(rows, [time, TIME]).append_column(TIME, rows.column(time))


def _without(rows: pa.Table, names: Sequence[str]) -> pa.Table:
    return rows.select([name for name in rows.column_names if name not in names])
