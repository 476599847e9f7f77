"""A first draft of a project's settings and training script, inferred from a file of labelled rows.

It takes a CSV or Parquet file and the names of its target and time. It gives the settings that
differ from the defaults, a `train.py` that reads this file and fits a sound default learner, and
one plain line for each thing that was inferred, so that a person can disagree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args
from zoneinfo import available_timezones

from homeostat import starter
from homeostat.errors import ProjectError
from homeostat.infer import infer
from homeostat.records import Task
from homeostat.schema import RESERVED, Feature, Schema
from homeostat.settings import Training

if TYPE_CHECKING:
    import pandas as pd

HOUR, DAY, WEEK = timedelta(hours=1), timedelta(days=1), timedelta(days=7)
MOST_BLOCKS = {HOUR: 400, DAY: 4_000}  # of a reference: the longer it is, the longer a look takes
LEAST_ROWS = 20  # of a block, on average
LEAST_WINDOW = 200  # rows of a window, on average
BLOCKS = {HOUR: 24, DAY: 7, WEEK: 5}
"""Blocks of a window: a day and a week with their cycles, and the fewest weeks a gate accepts."""
LEAKS = 0.9  # explained share of the target from which a single column is named
MOST_BINS = 32  # that a number is cut into, to see how much of the target it explains
_ZONE = r"(?:Z|[+-]\d\d(?::?\d\d)?)$"


@dataclass(frozen=True, slots=True)
class Draft:
    """What was inferred from a data file."""

    settings: Mapping[str, Mapping[str, Any]]  # section → field → value that differs
    train: str  # text of src/training/train.py
    said: tuple[str, ...]  # what was inferred, one plain line each


@dataclass(frozen=True, slots=True)
class Times:
    """A column of times, read; see `read_times`."""

    utc: pd.Series[Any]  # naive times are taken as UTC here: only their order and span count
    naive: bool
    code: str  # the arguments after the column for `pd.to_datetime`; empty where it is not needed
    said: tuple[str, ...] = ()


def draft(
    data: Path,
    root: Path,
    target: str,
    time: str,
    *,
    task: str | None = None,
    exclude: Sequence[str] = (),
    timezone: str | None = None,
    least: timedelta = timedelta(0),
) -> Draft:
    """Read `data` and infer a project that will live in `root`, with windows of `least` or more.

    Raises ProjectError for a file, column, zone or time that cannot be used, and SchemaError for a
    target or feature that no model can be served with.
    """
    chosen = _checked(task, timezone)
    frame = read_file(data)
    _check_columns(frame, [target, time, *exclude])
    times = {
        name: read_times(frame[name]) for name in (time, "labelled_at") if name in frame.columns
    }
    usable = times[time].utc.notna() & frame[target].notna()
    rows = frame[usable]
    if rows.empty:
        raise ProjectError(f"no row of {data.name} has both a target and a time.")
    found = _left_out(rows, times[time].utc, {target, *times, *exclude, "prediction_id"})
    schema = infer(rows, target=target, task=chosen, exclude=[*times, *exclude, *found])
    said = [f"{len(rows):,} labelled rows in {data.name}{_without(len(frame) - len(rows))}."]
    said += [line for read in times.values() for line in read.said]
    said += _told(schema, found, rows)
    about: dict[str, Any] = {"target": target, "time": time, "task": schema.target.task}
    if left_out := [*exclude, *found]:
        about["exclude"] = left_out
    if any(read.naive for read in times.values()):
        about["timezone"] = timezone or "UTC"
        said.append(f"times carry no zone and are read as {about['timezone']} (project.timezone).")
    lengths, why = _lengths({name: read.utc[usable] for name, read in times.items()}, time, least)
    said += why
    said += _warnings(len(rows), data, root)
    code = {name: read.code for name, read in times.items()}
    script = starter.script(data, root, schema.target, time, code)
    return Draft({"project": about, **lengths}, script, tuple(said))


def _checked(task: str | None, timezone: str | None) -> Task | None:
    if timezone is not None and timezone not in available_timezones():
        raise ProjectError(f"{timezone!r} is no IANA time zone.", hint="Use 'UTC', for example.")
    if task is not None and task not in get_args(Task):
        raise ProjectError(f"{task!r} is no task.", hint=f"Tasks are {', '.join(get_args(Task))}.")
    return cast("Task | None", task)


def _warnings(rows: int, data: Path, root: Path) -> list[str]:
    said = []
    if rows < (least := Training().min_rows):
        said.append(f"a training wants {least} rows (training.min_rows): more have to come first.")
    if not data.resolve().is_relative_to(root):
        said.append(f"load() reads {data.resolve()}, outside the project: CI will not find it.")
    return said


def _without(rows: int) -> str:
    return f"; {rows:,} more have no target or no time and are left out" if rows else ""


def read_file(data: Path) -> pd.DataFrame:
    """A CSV or Parquet file by its name; raises ProjectError for what cannot be read."""
    import pandas as pd

    name = data.name.lower()
    if not data.is_file():
        raise ProjectError(f"there is no file {data}.", hint="Give the path of a CSV or Parquet.")
    if not name.endswith((".csv", ".csv.gz", ".parquet")):
        raise ProjectError(
            f"{data.name} is neither CSV nor Parquet by its name.",
            hint="It should end in .csv, .csv.gz or .parquet.",
        )
    try:
        if name.endswith(".parquet"):
            return pd.read_parquet(data)
        return pd.read_csv(data, low_memory=False)
    except (ValueError, OSError) as error:
        raise ProjectError(f"{data} cannot be read: {error}.") from error


def _check_columns(frame: pd.DataFrame, wanted: Sequence[str]) -> None:
    for name in wanted:
        if name not in frame.columns:
            raise ProjectError(
                f"{name!r} is not a column of the data.",
                hint=f"Columns are {', '.join(map(str, frame.columns[:60]))}.",
            )


def read_times(column: pd.Series[Any]) -> Times:
    """Read times, saying how; raises ProjectError for what cannot be read as times."""
    import pandas as pd
    from pandas.api import types

    if types.is_datetime64_any_dtype(column):
        naive = getattr(column.dt, "tz", None) is None
        return Times(pd.to_datetime(column, utc=True), naive, "")
    if types.is_numeric_dtype(column) or not len(column.dropna()):
        what = "numbers" if len(column.dropna()) else "nothing"
        raise ProjectError(
            f"the time column {column.name!r} holds {what}, not times.",
            hint="Convert it to ISO 8601 first, for example 2013-01-31T18:05:00Z.",
        )
    texts = column.dropna().astype(str)
    zoned = texts.str.contains(_ZONE, regex=True) & texts.str.contains(":", regex=False)
    if zoned.any() and not zoned.all():
        raise ProjectError(
            f"the time column {column.name!r} has times with a zone and times without.",
            hint="Give all of them one, UTC for example.",
        )
    aware = bool(zoned.all())
    for way, arguments, said in _ways(str(texts.iloc[0])):
        try:
            utc = pd.to_datetime(column, utc=True, **arguments)
        except (ValueError, OverflowError):
            continue
        code = f"{way}, utc=True" if aware else way
        lines = (f"{column.name} is read as {said}.",) if said else ()
        return Times(utc, not aware, code, lines)
    raise ProjectError(
        f"the time column {column.name!r} cannot be read as times.",
        hint="Write them as ISO 8601, for example 2013-01-31T18:05:00Z.",
    )


def _ways(first: str) -> list[tuple[str, dict[str, Any], str]]:
    """Ways to read a text as time: code, arguments, and what to say of it."""
    from pandas.tseries.api import guess_datetime_format

    ways: list[tuple[str, dict[str, Any], str]] = [('format="ISO8601"', {"format": "ISO8601"}, "")]
    for dayfirst, order in ((False, "month before day"), (True, "day before month")):
        guessed = guess_datetime_format(first, dayfirst=dayfirst)
        if guessed is not None:
            said = f"{guessed}, {order} where both are numbers; see load() if that is wrong"
            ways.append((f"format={starter.text(guessed)}", {"format": guessed}, said))
    return ways


def _left_out(rows: pd.DataFrame, utc: pd.Series[Any], known: set[str]) -> dict[str, str]:
    """Columns that cannot be features, and why."""
    ordered = rows.loc[utc[rows.index].sort_values(kind="stable").index]
    found = {}
    for name in rows.columns:
        if name not in known:
            why = "its name is reserved" if name in RESERVED else _why_no_feature(ordered[name])
            if why:
                found[str(name)] = why
    return found


def _why_no_feature(column: pd.Series[Any]) -> str:
    from pandas.api import types

    filled = column.dropna()
    distinct = filled.nunique()
    if not len(filled):
        return "it is empty"
    if distinct == 1 and len(filled) == len(column):
        return "it is constant"
    if types.is_datetime64_any_dtype(column) or types.is_timedelta64_dtype(column):
        return "it is a point or length of time; load() can turn it into numbers"
    many = len(column) >= 50 and distinct >= 0.95 * len(filled)
    if many and not types.is_numeric_dtype(column):
        return "nearly every value is another one, as of an id"
    if many and types.is_integer_dtype(column) and column.is_monotonic_increasing:
        return "it counts the rows"
    return ""


def _told(schema: Schema, left_out: Mapping[str, str], rows: pd.DataFrame) -> list[str]:
    target = schema.target
    classes = f" with the classes {_listed(target.classes)}" if target.classes else ""
    said = [f"{target.name} makes it a {target.task} task{classes}."]
    for kind, plural in (
        ("number", "numbers"),
        ("category", "categories"),
        ("boolean", "booleans"),
    ):
        names = [f.name for f in schema.features if f.kind == kind]
        if names:
            said.append(f"{len(names)} {plural if len(names) > 1 else kind}: {_listed(names)}.")
    said += [f"{name} is left out: {why} (project.exclude)." for name, why in left_out.items()]
    for feature in schema.features:
        share = _explained(rows, feature, schema)
        if share > LEAKS:
            said.append(
                f"{feature.name} alone explains {share:.0%} of {target.name}: is it known when "
                "the prediction is made? If not, add it to project.exclude."
            )
    return said


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _explained(rows: pd.DataFrame, feature: Feature, schema: Schema) -> float:
    """Share of the target's variance between the groups that one feature makes, 0 to 1.

    Formula: η² = Σ_g n_g (ȳ_g − ȳ)² / Σ (y − ȳ)² over the feature's bins or levels (Pearson's
    correlation ratio); for classes summed over their indicators, which is Goodman and Kruskal's τ.
    """
    import numpy as np
    import pandas as pd

    column, target = rows[feature.name], rows[schema.target.name]
    if feature.kind == "number":
        edges = feature.edges[:: max(1, len(feature.edges) // MOST_BINS)]
        bins = np.searchsorted(edges, column.to_numpy(dtype=float))
        groups = pd.Series(bins, index=rows.index).where(column.notna(), -1)
    else:
        groups = pd.Series(pd.factorize(column)[0], index=rows.index)
    if groups.nunique() > max(len(rows) / 20, 2):
        return 0.0  # so many groups explain a small sample by chance
    values = (
        target.astype(float).to_frame()
        if schema.target.task == "regression"
        else pd.get_dummies(target, dtype=float)
    )
    within = values - values.groupby(groups).transform("mean")
    total = float(((values - values.mean()) ** 2).to_numpy().sum())
    return 1 - float((within**2).to_numpy().sum()) / total if total > 0 else 0.0


def _lengths(
    utc: Mapping[str, pd.Series[Any]], time: str, least: timedelta
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """All lengths of time for these columns of times, and lines that say why."""
    lengths, why = _blocks(utc[time], least)
    if "labelled_at" not in utc:
        return lengths, [why]
    delay = _delay(utc["labelled_at"] - utc[time])
    said = f"95 % of the labels are there after {delay} (labels.delay)."
    return {**lengths, "labels": {"delay": delay}}, [why, said]


def _blocks(utc: pd.Series[Any], least: timedelta) -> tuple[dict[str, dict[str, Any]], str]:
    """Block and windows for these event times, and a line that says why.

    The block is an hour where the data has at most 400, a day where it has at most 4,000, if it
    holds 20 rows on average, and else a week. A window has 24 hours, 7 days or 5 weeks, as many
    whole blocks as `least` if that is longer, and is doubled while it would hold fewer than 200
    rows, as long as ten of them fit into the data. The other lengths count windows, see `_rhythm`.
    """
    span = (utc.max() - utc.min()).to_pytimedelta()
    if span < HOUR:
        raise ProjectError(
            f"all rows lie within {span}, so there is no past to compare with.",
            hint="Is it the right time column?",
        )
    block = next(
        (
            b
            for b, most in MOST_BLOCKS.items()
            if span <= most * b and len(utc) * (b / span) >= LEAST_ROWS
        ),
        WEEK,
    )
    window = max(BLOCKS[block] * block, least // block * block)
    while len(utc) * (window / span) < LEAST_WINDOW and 20 * window <= span:
        window *= 2
    why = (
        f"{len(utc) * (DAY / span):,.3g} rows a day over {_short(span, whole=False)}: blocks of "
        f"{_short(block)}, windows of {_short(window)} (monitor.block, monitor.window)."
    )
    if (block, window) == (DAY, WEEK):
        return {}, why
    lengths = {
        "monitor": {"window": _short(window), "block": _short(block)},
        **_rhythm(window),
    }
    if block < DAY:
        lengths["run"] = {"every": _short(block)}
    return lengths, why


def _rhythm(window: timedelta) -> dict[str, dict[str, Any]]:
    """The lengths of gate and decisions for windows of this length, as the defaults have them for
    a week: two windows judge, three are between trainings, and six make a model old.
    """
    return {
        "gate": {"window": _short(2 * window)},
        "decide": {
            "cooldown": _short(3 * window),
            "max_age": _short(6 * window),
            "budget_period": _short(100 * window),
        },
    }


def _delay(ages: pd.Series[Any]) -> str:
    """The age by which 95 % of the labels were there, rounded up to hours or, from 2 d on, days."""
    age = max(float(ages.dt.total_seconds().quantile(0.95)), 0.0)
    hours = math.ceil(age / 3600)
    return f"{hours}h" if hours <= 48 else f"{math.ceil(age / 86400)}d"


def _short(length: timedelta, *, whole: bool = True) -> str:
    """A length of time as the settings write it, or rounded for people."""
    hours = length / HOUR
    if hours % 24 == 0 or (not whole and hours > 48):
        return f"{hours / 24:.0f}d"
    return f"{hours:.0f}h"
