"""The journal by itself: durable appends, a long window joined with its labels, many seals.

It takes sizes from the command line and makes journals of invented rows in temporary folders. It
gives a table of figures and aims, and with `--json FILE` the same as JSON; each figure is measured
in a process of its own. Polars, which reads the same files for comparison, is a package of the
group `dev`.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from table import Row, main

from homeostat.entries import Entry
from homeostat.journal import FileJournal
from homeostat.records import Window
from homeostat.schema import SYSTEM, TIMESTAMP

START = datetime(2025, 1, 1, tzinfo=UTC)
DAYS = 30  # of the window
SEALED = 3  # days over which the rows of each seal are spread
DAY = timedelta(days=1)
NUMBERS, TEXTS = 9, 2  # with one boolean and the system's eight columns: 20
BATCH = 1_000  # rows appended at a time
MIB = 1 << 20

COLUMNS = pa.schema(
    [
        *SYSTEM.items(),
        *((f"number_{i}", pa.float64()) for i in range(NUMBERS)),
        *((f"text_{i}", pa.string()) for i in range(TEXTS)),
        ("flag", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class Sizes:
    append: int  # rows appended
    window: int  # rows of the window
    seals: int  # of the journal with many; the other one has 10
    sealed: int  # rows of either
    tail: int  # rows that are not sealed


FULL = Sizes(append=500_000, window=10_000_000, seals=1_000, sealed=100_000, tail=2_000_000)
QUICK = Sizes(append=50_000, window=300_000, seals=50, sealed=5_000, tail=100_000)


def invented(first: int, count: int, total: int, days: int = DAYS) -> pa.Table:
    """Rows `first` and on of `total`, spread evenly over the days."""
    random = np.random.default_rng(first)
    length = days * DAY // timedelta(microseconds=1)
    places = np.arange(first, first + count)
    times = np.datetime64(START.replace(tzinfo=None), "us") + (places * (length // total))
    moments = pa.array(times.astype("datetime64[us]")).cast(TIMESTAMP)
    cities = np.array(["Oslo", "Rome", "Wien, AT", "Lagos", "Quito", "Hanoi"])
    columns: list[Any] = [
        [
            f"0198{place:08x}-7d1c-7000-8000-{place * 2654435761 % (1 << 48):012x}"
            for place in places
        ],
        moments,
        moments,
        pa.repeat("0123456789abcdef" * 4, count),
        pa.repeat("serve", count),
        pa.array(random.integers(0, 2, count)).cast(pa.string()),
        random.random(count),
        pa.nulls(count, pa.string()),
        *(random.normal(size=count) for _ in range(NUMBERS)),
        *(cities[random.integers(0, len(cities), count)] for _ in range(TEXTS)),
        random.random(count) < 0.5,
    ]
    return pa.table(columns, schema=COLUMNS)


def labelled(rows: pa.Table) -> pa.Table:
    """Rows with labels, four of five, as `FileJournal.load` takes them."""
    some = np.arange(rows.num_rows) % 5 == 0
    labels = pa.array(np.where(some, "0", "1"), mask=some)
    return rows.append_column("label", labels).append_column("labelled_at", rows["occurred_at"])


# --- what runs in a process of its own ---


def build_window(folder: Path, rows: int) -> dict[str, float]:
    journal, part = FileJournal(folder), rows // DAYS
    for day in range(DAYS):
        journal.load(labelled(invented(day * part, part, rows)))
    return {"rows": part * DAYS}


def scan_window(folder: Path, rows: int) -> dict[str, float]:
    del rows
    window = Window(START, START + DAYS * DAY)
    FileJournal(folder).read(Window(START - DAY, START))  # imports
    began, count, known = time.perf_counter(), 0, 0
    for table in FileJournal(folder).scan(window):
        count += table.num_rows
        known += table.num_rows - table.column("label").null_count
    return {"seconds": time.perf_counter() - began, "rows": count, "labelled": known}


def scan_polars(folder: Path, rows: int) -> dict[str, float]:
    del rows
    import polars as pl

    began, count = time.perf_counter(), 0

    def take(frame: pl.DataFrame) -> None:
        nonlocal count
        count += frame.height

    files = [
        str(path) for path in sorted((folder / "history" / "predictions").glob("day=*/*.parquet"))
    ]
    pl.scan_parquet(files).sink_batches(take)
    return {"seconds": time.perf_counter() - began, "rows": count}


def append_tables(folder: Path, rows: int) -> dict[str, float]:
    batches = [invented(first, BATCH, rows) for first in range(0, rows, BATCH)]
    journal = FileJournal(folder)
    began = time.perf_counter()
    written = sum(journal.append(batch).written for batch in batches)
    return {"seconds": time.perf_counter() - began, "rows": written}


def append_entries(folder: Path, rows: int) -> dict[str, float]:
    """As the server does it: requests of one row, 32 of which are journalled together."""
    groups = []
    for first in range(0, rows, BATCH):
        values = [list(row.values()) for row in _written(invented(first, BATCH, rows)).to_pylist()]
        entries = [Entry([row[0]], [row]) for row in values]
        groups += [entries[at : at + 32] for at in range(0, len(entries), 32)]
    journal = FileJournal(folder)
    began = time.perf_counter()
    results = [result for group in groups for result in journal.commit(COLUMNS, group)]
    return {"seconds": time.perf_counter() - began, "rows": len(results)}


def _written(rows: pa.Table) -> pa.Table:
    """Rows with their times as text, as `Entry` has them."""
    for place, field in enumerate(rows.schema):
        if pa.types.is_timestamp(field.type):
            texts = [f"{at:%Y-%m-%d %H:%M:%S.%f}Z" for at in rows.column(place).to_pylist()]
            rows = rows.set_column(place, field.name, pa.array(texts))
    return rows


def build_seals(folder: Path, rows: int, seals: int) -> dict[str, float]:
    """A journal of so many seals, each of rows from all of the days; labels come as well."""
    journal, part = FileJournal(folder, tail=timedelta(0)), rows // seals
    order = np.random.default_rng(0).permutation(part * seals)
    everything = labelled(invented(0, part * seals, part * seals, SEALED))
    for number in range(seals):
        chosen = everything.take(pa.array(np.sort(order[number * part : (number + 1) * part])))
        journal.append(chosen.select(COLUMNS.names))
        known = chosen.filter(chosen["label"].is_valid())
        journal.label(known.select(["prediction_id", "label", "labelled_at"]))
        journal.seal(datetime.now(UTC) + DAY)
    return {"rows": part * seals}


def open_seals(folder: Path, rows: int) -> dict[str, float]:
    """Open the journal and read a day; of several times the median."""
    del rows
    window, took, count = Window(START + DAY, START + 2 * DAY), [], 0
    FileJournal(folder).read(window)  # imports
    for _ in range(7):
        began = time.perf_counter()
        count = FileJournal(folder).read(window).num_rows
        took.append(time.perf_counter() - began)
    return {"seconds": sorted(took)[3], "rows": count}


def build_tail(folder: Path, rows: int) -> dict[str, float]:
    """Rows and labels of which nothing is sealed."""
    journal = FileJournal(folder, ack="write")
    for first in range(0, rows, 20_000):
        part = labelled(invented(first, 20_000, rows))
        journal.append(part.select(COLUMNS.names))
        known = part.filter(part["label"].is_valid())
        journal.label(known.select(["prediction_id", "label", "labelled_at"]))
    return {"rows": rows}


def append_alone(folder: Path, rows: int) -> dict[str, float]:
    """Median and longest time of an append while the process `scan_window` reads the same tail."""
    journal = FileJournal(folder, ack="write")
    values = [list(row.values()) for row in _written(invented(0, BATCH, rows)).to_pylist()]
    journal.catch_up()
    took: list[float] = []
    reader = subprocess.Popen(
        [sys.executable, __file__, "--child", "scan_window", str(folder), str(rows)],
        stdout=subprocess.DEVNULL,
    )
    while reader.poll() is None:
        name = f"meanwhile-{len(took)}"
        entry = Entry([name], [[name, *values[len(took) % BATCH][1:]]], made=True)
        began = time.perf_counter()
        journal.commit(COLUMNS, [entry])
        took.append(time.perf_counter() - began)
        time.sleep(0.001)
    return {"rows": len(took), "median": sorted(took)[len(took) // 2], "longest": max(took)}


PARTS: dict[str, Callable[..., dict[str, float]]] = {
    part.__name__: part
    for part in (
        build_window,
        scan_window,
        scan_polars,
        append_tables,
        append_entries,
        build_seals,
        open_seals,
        build_tail,
        append_alone,
    )
}


def child(name: str, folder: Path, numbers: list[int]) -> None:
    """Run one part and print what it found, with the peak of its memory."""
    found = PARTS[name](folder, *numbers)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found["peak_mib"] = peak / (MIB if sys.platform == "darwin" else 1024)
    print(json.dumps(found))


def measured(name: str, folder: Path, *numbers: int) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--child", name, str(folder), *map(str, numbers)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return dict(json.loads(done.stdout))


# --- the whole ---


def run(sizes: Sizes, folder: Path) -> Iterator[Row]:
    for name, what in (("append_tables", "tables of 1,000"), ("append_entries", "32 requests")):
        found = measured(name, folder / name, sizes.append)
        rate = found["rows"] / found["seconds"]
        aim, met = ("≥ 50,000", rate >= 50_000) if name == "append_tables" else ("", None)
        yield Row(f"durable append, {what} at a time", rate, "rows/s", aim, met)
    place = folder / "window"
    rows = int(measured("build_window", place, sizes.window)["rows"])
    polars, scan = (measured(name, place, rows) for name in ("scan_polars", "scan_window"))
    if polars["rows"] != rows or scan["rows"] != rows:
        raise SystemExit(f"read {scan['rows']} and {polars['rows']} rows of {rows}")
    ratio = scan["seconds"] / polars["seconds"]
    yield Row(f"window of {rows:,} rows joined with labels", scan["seconds"], "s")
    yield Row("Polars' plain scan of the same files", polars["seconds"], "s")
    yield Row("one over the other", ratio, "×", "< 10", ratio < 10)
    yield Row(
        "peak memory of the journal", scan["peak_mib"], "MiB", "< 2,048", scan["peak_mib"] < 2048
    )
    yield from of_tail(sizes.tail, folder / "tail")
    took = {}
    for seals in (10, sizes.seals):
        place = folder / f"seals-{seals}"
        measured("build_seals", place, sizes.sealed, seals)
        took[seals] = measured("open_seals", place, sizes.sealed)["seconds"]
        yield Row(f"open after {seals:,} seals and read a day", took[seals] * 1000, "ms")
    ratio = took[sizes.seals] / took[10]
    yield Row("one over the other", ratio, "×", "≤ 3", ratio <= 3)


def of_tail(rows: int, place: Path) -> Iterator[Row]:
    """What is not sealed is read in bounded memory, and holds up nobody who appends."""
    measured("build_tail", place, rows)
    scan = measured("scan_window", place, rows)
    if scan["rows"] != rows:
        raise SystemExit(f"read {scan['rows']} rows of {rows}")
    size = (place / "predictions.csv").stat().st_size / MIB
    yield Row(f"window of {rows:,} rows in the tail, with labels", scan["seconds"], "s")
    yield Row("the file of these rows", size, "MiB")
    yield Row("peak memory of the journal", scan["peak_mib"], "MiB")
    wait = measured("append_alone", place, rows)
    yield Row("append while another process reads that tail, median", wait["median"] * 1000, "ms")
    yield Row("the same, the longest", wait["longest"] * 1000, "ms")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]), [int(number) for number in sys.argv[4:]])
    else:
        main(__doc__.partition("\n")[0], run, FULL, QUICK, decimals=1)
