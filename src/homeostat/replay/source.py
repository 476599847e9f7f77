"""From a frame of labelled rows to the project that a replay runs on.

Takes the user's frame, which of its columns mean what, and perhaps a project. Gives checked rows
with the time at which each label arrived, the settings, and the training script: the project's
own, or one with the default learner that `homeostat init` would draft for the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from homeostat import draft, settings
from homeostat.contracts import Journal, Releases
from homeostat.errors import HomeostatError, SchemaError
from homeostat.schema import TIMESTAMP, Schema
from homeostat.script import table_of
from homeostat.settings import Settings

if TYPE_CHECKING:
    import pandas as pd

ARRIVED = "labelled_at"


@dataclass(frozen=True, slots=True)
class Columns:
    """What the columns of the frame mean."""

    time: str
    target: str
    labelled_at: str | None  # None: a column of that name, if there is one
    exclude: tuple[str, ...]
    task: str | None
    timezone: str | None  # of times without a zone; None: the project's, or UTC


@dataclass(frozen=True, slots=True)
class Source:
    """What is to be replayed, and with what."""

    table: pa.Table  # as `Trainer.load` gives it, with a true `labelled_at` for each label
    settings: Settings
    script: Path
    said: tuple[str, ...]  # what was assumed, one plain line each


def source(
    frame: pd.DataFrame, columns: Columns, every: timedelta, *, project: Path | None, root: Path
) -> Source:
    """Check and arrange the frame; `root` is an empty folder for what has to be written.

    A label without a time of arrival came one `every` after its row. Raises SchemaError,
    ProjectError or SettingsError, naming the column or the field.
    """
    chosen = settings.read(project if project is not None else root)
    own = {**chosen.project.model_dump(exclude_none=True), **_named(columns, chosen)}
    chosen = settings.read(chosen.root, project=own)
    frame, said = _arranged(frame, columns, chosen.project.timezone)
    unknown = frame[ARRIVED].isna().to_numpy() if ARRIVED in frame else None
    table = _arrivals(table_of(frame, chosen.project), columns.target, every, unknown)
    if unknown is None or unknown.any():
        count = "all" if unknown is None else f"{int(unknown.sum()):,}"
        said.append(f"labels of {count} rows are taken to arrive {_length(every)} after the row.")
    if project is not None:
        script = chosen.script
        if not script.is_file():
            raise HomeostatError(
                f"the project has no training script at {script}.",
                hint="Leave --project out to replay with the default learner.",
            )
        said.append(f"models are fitted by {script}, with the settings of that project.")
    else:
        chosen, script, more = _drafted(table, columns, chosen, every, root)
        said += more
    if chosen.monitor.detector != "homeostat":
        raise HomeostatError(
            "a replay does not run Evidently, which monitor.detector names.",
            hint="Replay with monitor.detector = 'homeostat'.",
        )
    if chosen.decide.mode != "auto":
        decide = chosen.decide.model_copy(update={"mode": "auto"})
        chosen = chosen.model_copy(update={"decide": decide})
        said.append("decide.mode is taken as auto here, to show what it would do.")
    return Source(table, chosen, script, tuple(said))


def journalled(journal: Journal, releases: Releases) -> tuple[pd.DataFrame, str]:
    """The labelled rows of a project as a frame to replay, and the name of its target.

    Columns are `prediction_id`, `occurred_at`, `labelled_at`, the champion's features, and the
    target in its own type. Raises HomeostatError where there is no champion, or no label.
    """
    import pandas as pd

    champion = releases.champion()
    if champion is None:
        raise HomeostatError("there is no champion yet.", hint="Run `homeostat train` first.")
    schema = Schema.from_json(releases.object(champion, "schema"))
    rows = journal.read(labelled=True, schema=schema)
    if not rows.num_rows:
        raise HomeostatError(
            "the journal holds no labelled row.",
            hint="Labels come by /feedback, `homeostat labels add` or load().",
        )
    names = ["prediction_id", "occurred_at", "labelled_at", *schema.names]
    frame = rows.select(names).to_pandas(types_mapper={pa.bool_(): pd.BooleanDtype()}.get)
    frame[schema.target.name] = schema.labels(rows)
    return frame, schema.target.name


def _named(columns: Columns, chosen: Settings) -> dict[str, Any]:
    """Fields of the settings' section `project` that the caller's columns decide."""
    named: dict[str, Any] = {
        "target": columns.target,
        "time": columns.time,
        "timezone": columns.timezone or chosen.project.timezone or "UTC",
        "exclude": tuple(dict.fromkeys((*chosen.project.exclude, *columns.exclude))),
    }
    return {**named, "task": columns.task} if columns.task else named


def _arranged(
    frame: pd.DataFrame, columns: Columns, zone: str | None
) -> tuple[pd.DataFrame, list[str]]:
    """The frame with its times read, arrivals under their own name, and no row without a time."""
    wanted = [columns.time, columns.target, *columns.exclude]
    _check(frame, wanted + ([columns.labelled_at] if columns.labelled_at else []))
    frame = frame.copy(deep=False)
    if columns.labelled_at and columns.labelled_at != ARRIVED:
        frame[ARRIVED] = frame[columns.labelled_at]
        if columns.labelled_at != columns.time:
            frame = frame.drop(columns=columns.labelled_at)
    said: list[str] = []
    for name in dict.fromkeys((columns.time, ARRIVED)):
        if name in frame:
            read = draft.read_times(frame[name])
            frame[name] = read.utc.dt.tz_localize(None) if read.naive else read.utc
            said += read.said
            if read.naive:
                said.append(f"{name} carries no zone and is read in {zone}.")
    timeless = int(frame[columns.time].isna().sum())
    if timeless:
        said.append(f"{timeless:,} rows without a time are left out.")
        frame = frame[frame[columns.time].notna()]
    return frame, said


def _check(frame: pd.DataFrame, wanted: Sequence[str]) -> None:
    import pandas as pd

    if not isinstance(frame, pd.DataFrame):
        raise SchemaError(f"the rows are {type(frame).__name__}, not a pandas DataFrame.")
    for name in wanted:
        if name not in frame.columns:
            raise SchemaError(
                f"{name!r} is not a column of the data.",
                hint=f"Columns are {', '.join(map(str, frame.columns[:60]))}.",
            )


def _arrivals(table: pa.Table, target: str, every: timedelta, unknown: Any) -> pa.Table:
    """The table with a time of arrival for each label; `unknown` marks rows that give none."""
    later = pc.add(table.column("occurred_at"), pa.scalar(every)).cast(TIMESTAMP)
    given = table.column(ARRIVED)
    arrived = later if unknown is None else pc.if_else(pa.array(unknown), later, given)
    labelled = pc.is_valid(table.column(target))
    arrived = pc.if_else(labelled, arrived, pa.scalar(None, TIMESTAMP))
    return table.set_column(table.schema.get_field_index(ARRIVED), ARRIVED, arrived)


def _drafted(
    table: pa.Table, columns: Columns, chosen: Settings, every: timedelta, root: Path
) -> tuple[Settings, Path, list[str]]:
    """Settings and script as `homeostat init --data` makes them for the same rows, but that a
    window is as long as a step, since more is not looked at between two of them.
    """
    data = root / "rows.parquet"
    pq.write_table(table.filter(pc.is_valid(table.column(columns.target))), data)
    made = draft.draft(data, root, columns.target, "occurred_at", task=columns.task, least=every)
    overrides: dict[str, dict[str, Any]] = {
        section: dict(values) for section, values in made.settings.items()
    }
    found = overrides["project"].get("exclude", [])
    overrides["project"] = {
        **chosen.project.model_dump(exclude_none=True),
        "task": overrides["project"]["task"],
        "exclude": tuple(dict.fromkeys((*chosen.project.exclude, *found))),
    }
    chosen = settings.read(root, **overrides)
    script = chosen.script
    script.parent.mkdir(parents=True)
    script.write_text(made.train, encoding="utf-8")
    learner = "models are fitted by the default learner, boosted trees; --project DIR takes yours."
    return chosen, script, [*made.said, learner]


def _length(length: timedelta) -> str:
    return str(length).removesuffix(", 0:00:00")
