"""Profiles beside Evidently's drift report and Polars' plain statistics, and the monitor's day.

It takes sizes from the command line and makes files of invented rows in a temporary folder. It
gives a table of figures and aims, and with `--json FILE` the same as JSON; each figure is that of a
whole process, its imports included. Polars is a package of the group `dev`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from table import Row, main

START = datetime(2025, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
DAYS = 100  # over which the rows of a file are spread
KEPT = 30  # days of the journal's window
GROUP = 1 << 18  # rows of a row group
NUMBERS = 14
LEVELS = (2, 5, 12, 60, 250, 2_000)
MIB = 1 << 20


@dataclass(frozen=True)
class Sizes:
    report: int  # rows beside Evidently
    scan: int  # rows beside Polars
    large: int  # rows of the file that must need no more memory
    day: int  # rows of a day of the journal
    looks: tuple[int, ...]  # rows of a day of windows that are looked at as a whole
    again: int  # times that a short process is measured, of which the median counts


FULL = Sizes(
    report=1_000_000,
    scan=10_000_000,
    large=30_000_000,
    day=50_000,
    looks=(8_000, 40_000, 100_000),
    again=3,
)
QUICK = Sizes(report=20_000, scan=200_000, large=400_000, day=2_000, looks=(200, 2_000), again=1)


# --- what runs in a process of its own ---


def invented(first: int, count: int, total: int, days: int) -> dict[str, Any]:
    """Columns of rows `first` and on of `total`, those before the start below 0: normal, skewed
    and whole numbers, and levels.
    """
    import numpy as np
    import pyarrow as pa

    random = np.random.default_rng(abs(first))
    step = days * DAY // timedelta(microseconds=1) // total
    begin = START.replace(tzinfo=None)
    times = np.datetime64(begin, "us") + (np.arange(first, first + count) * step)
    columns: dict[str, Any] = {"occurred_at": pa.array(times).cast(pa.timestamp("us", "UTC"))}
    draws = (
        lambda: random.normal(size=count),
        lambda: random.lognormal(size=count),
        lambda: random.integers(0, 500, count).astype(float),
    )
    for i in range(NUMBERS):
        columns[f"number_{i}"] = draws[i % 3]()
    for i, levels in enumerate(LEVELS):
        names = pa.array([f"level {level}" for level in range(levels)])
        columns[f"category_{i}"] = names.take(pa.array(random.integers(0, levels, count)))
    return columns


def learned(columns: dict[str, Any]) -> str:
    import pyarrow as pa

    from homeostat.schema import Feature, Schema, Target

    kinds = [(n, "number" if n[0] == "n" else "category") for n in columns if n != "occurred_at"]
    features = tuple(Feature(name, kind) for name, kind in kinds)
    target = Target("y", "binary", "bool", ("false", "true"))
    return Schema(features, target).learned_from(pa.table(columns)).to_json()


def build_file(folder: Path, rows: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "schema.json").write_text(learned(invented(0, min(rows, 100_000), rows, DAYS)))
    writer = None
    for first in range(0, rows, GROUP):
        table = pa.table(invented(first, min(GROUP, rows - first), rows, DAYS))
        writer = writer or pq.ParquetWriter(folder / "rows.parquet", table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def profile(folder: Path, rows: int) -> None:
    from homeostat.profile import Profile
    from homeostat.schema import Schema

    schema = Schema.from_json((folder / "schema.json").read_text())
    found = Profile.of(folder / "rows.parquet", schema)
    if found.rows != rows:
        raise SystemExit(f"counted {found.rows} rows of {rows}")
    (folder / "rows.profile").write_bytes(found.to_bytes())


def evidently(folder: Path, rows: int) -> None:
    """The preset as its documentation has it: the first half of the rows is the reference."""
    os.environ["DO_NOT_TRACK"] = "1"
    import pandas as pd
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    frame = pd.read_parquet(folder / "rows.parquet").drop(columns="occurred_at")
    names = [[n for n in frame.columns if n[0] == kind] for kind in "nc"]
    about = DataDefinition(numerical_columns=names[0], categorical_columns=names[1])
    half = rows // 2
    parts = (frame.iloc[half:], frame.iloc[:half])
    current, reference = (Dataset.from_pandas(part, data_definition=about) for part in parts)
    result = Report([DataDriftPreset()]).run(current, reference)
    result.save_html(str(folder / "report.html"))


def polars(folder: Path, rows: int) -> None:
    import polars as pl

    scan = pl.scan_parquet(folder / "rows.parquet").drop("occurred_at")
    numbers = pl.col([f"number_{i}" for i in range(NUMBERS)])
    told = [pl.all().min().name.suffix(" min"), pl.all().max().name.suffix(" max")]
    told += [pl.all().count().name.suffix(" count"), numbers.mean().name.suffix(" mean")]
    found = scan.select(told).collect(engine="streaming")
    if found["number_0 count"][0] != rows:
        raise SystemExit("Polars counted other rows")


def build_journal(folder: Path, rows: int, labelled: int = 0) -> None:
    """One day more than the window has, all sealed; `rows` are those of a day."""
    import numpy as np
    import pyarrow as pa

    from homeostat.journal import FileJournal
    from homeostat.schema import Schema

    total, days = rows * (KEPT + 1), KEPT + 1
    text = learned(invented(0, rows, total, days))
    (folder / "schema.json").write_text(text)
    names, journal = Schema.from_json(text).journal, FileJournal(folder / "logs")
    for day in range(days):
        columns = invented(day * rows, rows, total, days)
        columns["prediction_id"] = [f"{day * rows + i:012}" for i in range(rows)]
        columns["recorded_at"] = columns["occurred_at"]
        columns |= {"source": ["serve"] * rows, "model_version": ["m"] * rows}
        share = columns["number_2"] / 500
        columns |= {"prediction": ["true"] * rows, "probability": share}
        columns["probabilities"] = pa.nulls(rows, pa.string())
        table = pa.table([columns[name] for name in names.names], schema=names)
        labels = np.where(np.random.default_rng(day).random(rows) < share, "true", "false")
        labels = pa.array(labels, pa.string()) if labelled else pa.nulls(rows, pa.string())
        table = table.append_column("label", labels)
        table = table.append_column("labelled_at", table["occurred_at"])
        journal.load(table, exported=True)


def look(folder: Path, rows: int, first: int, last: int, place: str) -> None:
    """The profile of a window from day `first` up to `last`, days kept in `place`."""
    from homeostat.blocks import Kept
    from homeostat.journal import FileJournal
    from homeostat.records import Window
    from homeostat.schema import Schema

    schema = Schema.from_json((folder / "schema.json").read_text())
    kept = Kept(FileJournal(folder / "logs"), folder / place)
    window = Window(START + first * DAY, START + last * DAY)
    served, _ = kept.profiles(window, schema, block=DAY, model="m")
    if served.rows != rows * (last - first):
        raise SystemExit(f"counted {served.rows} rows of {rows * (last - first)}")


def whole(folder: Path, rows: int) -> None:
    """A turn's look at the window of `KEPT` days, Evidently and twins apart."""
    import pyarrow as pa

    from homeostat.blocks import Kept, served
    from homeostat.journal import FileJournal
    from homeostat.memory import CountingReporter
    from homeostat.monitor import Journalled, Subject, examine
    from homeostat.profile import Profile
    from homeostat.records import State, Window
    from homeostat.schema import Schema
    from homeostat.settings import Monitor, Settings
    from homeostat.traits import Traits

    schema = Schema.from_json((folder / "schema.json").read_text())
    window = Window(START, START + KEPT * DAY)
    old = pa.table(invented(-100_000, 100_000, 100_000, DAYS))
    known = Profile.of(old, schema, block=DAY), Traits.of(old, schema, block=DAY)
    journal, end = FileJournal(folder / "logs"), window.end
    found = examine(
        Subject("m", schema, known[0], old.slice(0, 5_000), None, traits=known[1]),
        map(served, journal.scan(window, as_of=end, schema=schema)),
        window,
        refused={},
        last=None,
        settings=Monitor(),
        mature_until=end,
        now=end,
        reporter=CountingReporter(),
        kept=Kept(journal, folder / "kept"),
        asked=Journalled.of(journal, end, Settings(), None),
    )
    if found.rows != rows * KEPT or found.state is State.FAILED:
        raise SystemExit(f"looked at {found.rows} rows of {rows * KEPT}: {found.reason}")


def nothing(folder: Path, rows: int) -> None:
    """What a look imports, and no look."""
    import homeostat.blocks
    import homeostat.journal  # noqa: F401


PARTS: dict[str, Callable[..., None]] = {
    part.__name__: part
    for part in (build_file, profile, evidently, polars, build_journal, look, whole, nothing)
}


@dataclass(frozen=True)
class Cost:
    """What a process cost from its start to its end."""

    seconds: float
    cpu: float  # seconds of all cores
    peak: float  # MiB


def measured(name: str, folder: Path, *more: int | str, again: int = 1) -> Cost:
    """The median of `again` processes."""
    return sorted((_once(name, folder, *more) for _ in range(again)), key=lambda c: c.seconds)[
        again // 2
    ]


def _once(name: str, folder: Path, *more: int | str) -> Cost:
    command = [sys.executable, __file__, "--child", name, str(folder), *map(str, more)]
    began = time.perf_counter()
    child = subprocess.Popen(command)
    _, status, used = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - began
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{name} failed")
    peak = used.ru_maxrss / (MIB if sys.platform == "darwin" else 1024)
    return Cost(seconds, used.ru_utime + used.ru_stime, peak)


# --- the whole ---


def run(sizes: Sizes, folder: Path) -> Iterator[Row]:
    yield from beside_evidently(sizes, folder)
    yield from of_days(sizes, folder)
    yield from as_a_whole(sizes, folder)
    yield from beside_polars(sizes, folder)


def made(folder: Path, name: str, rows: int, build: str = "build_file", *more: int) -> Path:
    place = folder / name
    place.mkdir()
    measured(build, place, rows, *more)
    return place


def beside_evidently(sizes: Sizes, folder: Path) -> Iterator[Row]:
    rows = sizes.report
    place = made(folder, "report", rows)
    ours = measured("profile", place, rows, again=sizes.again)
    theirs = measured("evidently", place, rows)
    ratio = theirs.seconds / ours.seconds
    yield Row(f"profile of {rows:,} rows", ours.seconds, "s")
    yield Row("the same, all cores together", ours.cpu, "cpu s")
    yield Row("Evidently's drift preset with HTML, same file", theirs.seconds, "s")
    yield Row("the same, all cores together", theirs.cpu, "cpu s")
    yield Row("theirs over ours", ratio, "×", "≥ 50", ratio >= 50)
    yield Row("the same in cpu seconds", theirs.cpu / ours.cpu, "×")


def beside_polars(sizes: Sizes, folder: Path) -> Iterator[Row]:
    peaks = {}
    for rows in (sizes.scan, sizes.large):
        place = made(folder, f"rows-{rows}", rows)
        ours = measured("profile", place, rows)
        peaks[rows] = ours.peak
        yield Row(f"profile of {rows:,} rows", ours.seconds, "s")
        yield Row("the same, all cores together", ours.cpu, "cpu s")
        if rows == sizes.scan:
            theirs = measured("polars", place, rows)
            ratio = ours.seconds / theirs.seconds
            yield Row("Polars' min, max, mean, count, same columns", theirs.seconds, "s")
            yield Row("the same, all cores together", theirs.cpu, "cpu s")
            yield Row("ours over theirs", ratio, "×", "≤ 4", ratio <= 4)
            yield Row("the same in cpu seconds", ours.cpu / theirs.cpu, "×")
        yield Row("peak memory of the profile", ours.peak, "MiB", "< 1,024", ours.peak < 1024)
        (place / "rows.parquet").unlink()
    ratio = peaks[sizes.large] / peaks[sizes.scan]
    yield Row(f"peak at {sizes.large:,} rows over that before", ratio, "×", "≤ 1.1", ratio <= 1.1)


def of_days(sizes: Sizes, folder: Path) -> Iterator[Row]:
    rows = sizes.day
    place = made(folder, "journal", rows, "build_journal")
    start = measured("nothing", place, rows)
    first = measured("look", place, rows, 0, KEPT, "kept")
    yield Row(f"first look at {KEPT} days of {rows:,} rows", first.seconds, "s")
    daily = measured("look", place, rows, 1, KEPT + 1, "kept")
    yield Row("look on the next day, the older days kept", daily.seconds, "s")
    alone = measured("look", place, rows, KEPT, KEPT + 1, "alone")
    yield Row("look at the new day alone", alone.seconds, "s")
    ratio = daily.seconds / alone.seconds
    yield Row("the daily look over the new day alone", ratio, "×", "≤ 1.5", ratio <= 1.5)
    ratio = (first.cpu - start.cpu) / (daily.cpu - start.cpu)
    yield Row("first over daily look, imports apart, in cpu seconds", ratio, "×")


def as_a_whole(sizes: Sizes, folder: Path) -> Iterator[Row]:
    peaks = []
    for rows in sizes.looks:
        place = made(folder, f"window-{rows}", rows, "build_journal", 1)
        first, again = (measured("whole", place, rows) for _ in range(2))
        peaks.append(again.peak)
        yield Row(f"whole first look at {rows * KEPT:,} rows", first.seconds, "s")
        yield Row("the same, all cores together", first.cpu, "cpu s")
        yield Row("whole look, the days kept", again.seconds, "s")
        yield Row("the same, all cores together", again.cpu, "cpu s")
        yield Row("peak memory of the whole look", again.peak, "MiB")
    ratio = peaks[-1] / peaks[-2]
    yield Row("peak at the last over that before", ratio, "×", "≤ 1.1", ratio <= 1.1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        name, place, *more = sys.argv[2:]
        numbers = [int(word) if word.isdigit() else word for word in more]
        PARTS[name](Path(place), *numbers)
    else:
        main(__doc__.partition("\n")[0], run, FULL, QUICK, decimals=2)
