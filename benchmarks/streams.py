"""Streams of rows, for the benchmarks of the monitor: real ones, and synthetic ones.

It takes a folder of Parquet files, or a seed. It gives labelled frames in the order of time; from
them, or made up, rows with the place of each day in them and their profile by day; and draws:
which days are the reference and which the window.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy import stats

from homeostat import flights
from homeostat.infer import infer
from homeostat.profile import Profile
from homeostat.schema import TIMESTAMP, Feature, Schema, Target

DAY = timedelta(days=1)
START = np.datetime64("2024-01-01", "us")
MOST = 365  # days of a reference


@dataclass(frozen=True)
class Source:
    """One real data set: its target, and what of it is no feature besides times."""

    name: str
    target: str
    exclude: tuple[str, ...] = ()
    above: float | None = None  # the target may be asked as whether it lies above this, too

    def frame(self, folder: Path | None) -> pd.DataFrame:
        """Rows with a known target, in the order of `occurred_at`; `labelled_at` where it is
        known. Raises FileNotFoundError where the folder has no such stream.
        """
        if self.name == "flights":
            frame = flights.read()
        elif folder is None:
            raise FileNotFoundError(f"{self.name}: no --streams")
        else:
            frame = pd.read_parquet(folder / f"{self.name}.parquet")
        frame = frame[frame[self.target].notna()].drop(columns=list(self.exclude))
        return frame.sort_values("occurred_at", kind="stable", ignore_index=True)


SOURCES = (
    Source("flights", flights.TARGET),
    Source("beijing_air", "PM2.5", exclude=("PM10",), above=75),  # PM10 nearly gives it away
    Source("bike_sharing", "cnt"),
    Source("electricity", "price_up"),
    Source("hotel_bookings", "is_canceled"),
    Source("rain_australia", "RainTomorrow"),
)


def real(
    folder: Path | None, only: Sequence[str] | None = None
) -> Iterator[tuple[Source, pd.DataFrame]]:
    """The flights, and every stream of `folder` that there is; with `only`, those of them."""
    for source in SOURCES:
        if not only or source.name in only:
            try:
                yield source, source.frame(folder)
            except FileNotFoundError as error:
                print(f"left out: {error}", file=sys.stderr)


def features(frame: pd.DataFrame, schema: Schema) -> dict[str, pa.Array]:
    """The features of a frame as Arrow has them; a number that is not there is null."""
    return {
        f.name: pa.Array.from_pandas(
            frame[f.name].astype(float) if f.kind == "number" else frame[f.name]
        ).cast(f.arrow)
        for f in schema.features
    }


@dataclass(frozen=True)
class Draw:
    """Days of the reference and of the window, each in the order in which they are to be."""

    reference: np.ndarray
    current: np.ndarray


@dataclass(frozen=True)
class Stream:
    """Rows in the order of their days; `columns` as Arrow has them, `starts` of each day's rows."""

    name: str
    schema: Schema
    columns: pa.Table  # features only
    starts: np.ndarray  # shape (days + 1,)

    @property
    def days(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def profile(self) -> Profile:
        return self.profiled(self.columns, self.day)

    @cached_property
    def day(self) -> np.ndarray:
        """The day of each row."""
        return np.repeat(np.arange(self.days), np.diff(self.starts))

    def profiled(self, rows: pa.Table, day: np.ndarray) -> Profile:
        times = pa.array(START + day.astype("timedelta64[D]"), pa.timestamp("us")).cast(TIMESTAMP)
        return Profile.of(rows.append_column("occurred_at", times), self.schema, block=DAY)

    def rows(self, days: np.ndarray) -> np.ndarray:
        """Places of the rows of these days, day after day."""
        return np.concatenate([np.arange(self.starts[d], self.starts[d + 1]) for d in days])

    def taken(self, days: np.ndarray) -> Profile:
        """The profile of these days as if they had followed one another."""
        whole = self.profile
        picked = whole.take(days)
        return replace(picked, blocks=np.arange(len(days), dtype=np.int64))


def by_day(source: Source, frame: pd.DataFrame) -> Stream:
    """Bins come from all of its rows."""
    schema = infer(frame, target=source.target)
    day = pd.to_datetime(frame["occurred_at"], utc=True).dt.tz_localize(None)
    _, first = np.unique(day.to_numpy().astype("datetime64[D]"), return_index=True)
    table = pa.table(features(frame, schema))
    return Stream(source.name, schema, table, np.append(first, len(frame)))


# --- synthetic rows ---


def ar(length: int, persistence: float, random: np.random.Generator) -> np.ndarray:
    """A stationary AR(1) process with unit variance, shape (length,)."""
    level = random.normal(size=length)
    fresh = np.sqrt(1 - persistence**2)
    for day in range(1, length):
        level[day] = persistence * level[day - 1] + fresh * level[day]
    return level


def synthetic(
    random: np.random.Generator, sizes: np.ndarray, *, persistence: float = 0.0, effect: float = 0.0
) -> Stream:
    """Six columns of rows: four numbers, two categories; days differ by `effect` σ.

    Each column's days follow an AR process of its own with that persistence. One number is
    log-normal, one is rounded to a few values, one has nulls; the categories have 2 and 30 levels.
    """
    day = np.repeat(np.arange(len(sizes)), sizes)
    shift = [effect * ar(len(sizes), persistence, random)[day] for _ in range(6)]
    score = random.normal(size=(6, len(day))) + np.array(shift)
    codes = np.floor(30 * np.exp(-np.abs(score[5]))).clip(0, 29).astype(np.int32)
    columns = {
        "plain": pa.array(score[0]),
        "skewed": pa.array(np.exp(score[1])),
        "rounded": pa.array(np.round(score[2])),
        "holes": pa.array(score[3], mask=random.random(len(day)) < 0.1),
        "pair": _levels((score[4] > 0.8).astype(np.int32), 2),
        "levels": _levels(codes, 30),
    }
    return Stream("synthetic", SYNTHETIC, pa.table(columns), np.append(0, np.cumsum(sizes)))


def independent(random: np.random.Generator, size: int, blocks: int) -> Stream:
    """So many blocks of `size` rows each, all of one distribution."""
    return synthetic(random, np.full(blocks, size))


def _levels(codes: np.ndarray, count: int) -> pa.Array:
    names = pa.array([f"level {number}" for number in range(count)])
    return pa.DictionaryArray.from_arrays(pa.array(codes), names).cast(pa.string())


_NORMAL = tuple(stats.norm.ppf(np.arange(1, 128) / 128))
SYNTHETIC = Schema(
    (
        Feature("plain", "number", edges=_NORMAL),
        Feature("skewed", "number", edges=tuple(np.exp(_NORMAL))),
        Feature("rounded", "number", edges=tuple(map(float, range(-4, 4)))),
        Feature("holes", "number", edges=_NORMAL),
        Feature("pair", "category", levels=("level 0", "level 1")),
        Feature("levels", "category", levels=tuple(f"level {i}" for i in range(30))),
    ),
    Target("none", "regression", "float"),
)
"""Bins are those of the distribution, so that they are no one's choice after seeing rows."""


# --- draws ---


def shuffled(days: int, window: int, random: np.random.Generator, most: int = MOST) -> Draw:
    """A window after a reference of `most` days, a year's at most, in random order."""
    order = random.permutation(days)[: most + window]
    return Draw(order[:-window], order[-window:])


def reordered(scores: np.ndarray, window: int, random: np.random.Generator) -> Draw:
    """As `shuffled`, but the days stand in the order of an AR process with persistence .7.

    The days drawn are laid out so that the ranks of their scores are those of the process.
    """
    chosen = random.permutation(len(scores))[: MOST + window]
    latent = ar(len(chosen), 0.7, random)
    order = np.empty(len(chosen), dtype=int)
    order[np.argsort(latent)] = chosen[np.argsort(scores[chosen], kind="stable")]
    return Draw(order[:-window], order[-window:])


def stretch(days: int, window: int, random: np.random.Generator) -> Draw:
    """A real window after the year before it, or after as much of it as there is."""
    reference = min(MOST, days - window)
    first = int(random.integers(0, days - window - reference + 1))
    if days < MOST + 2 * window:  # no room to choose: a shorter reference
        reference = int(0.8 * days) - window
        first = int(random.integers(0, days - window - reference + 1))
    return Draw(
        np.arange(first, first + reference),
        np.arange(first + reference, first + reference + window),
    )


def scores(stream: Stream) -> np.ndarray:
    """One number for each day, by which neighbours are alike: the first principal component of
    the standardised daily means of all columns' cells, shape (days,).
    """
    parts = []
    for column, counts in zip(stream.profile.columns, stream.profile.counts, strict=True):
        if column.kind == "prediction":
            continue
        place = np.arange(column.cells) if column.ordered else np.arange(column.cells) == 0
        parts.append(counts @ place / counts.sum(axis=1))
    means = np.array(parts).T
    spread = means.std(axis=0)
    centred = (means - means.mean(axis=0)) / np.where(spread > 0, spread, 1)
    return np.asarray(np.linalg.svd(centred, full_matrices=False)[0][:, 0])


def subset(chosen: Mapping[str, np.ndarray], table: pa.Table) -> pa.Table:
    """`table` with some columns replaced, by name."""
    for name, values in chosen.items():
        place = table.column_names.index(name)
        kind = table.schema.field(name).type
        table = table.set_column(place, name, pa.array(values, kind, from_pandas=True))
    return table
