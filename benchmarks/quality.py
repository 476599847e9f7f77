"""Faults injected into real streams: which check catches each, and whether any is called drift.

It takes a folder of streams (`--streams`), a seed, and how many windows to try. It gives a table of
faults by stream, with the windows as they were first, and with `--json FILE` the same as JSON. Of
each stream a window of a week follows a reference of at most 200 days. The exit code is 1 where a
fault was missed or called drift, or an unhurt window was called broken.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from faults import FAULTS, Fault, Hit, Served
from streams import Source, features, real

from homeostat.infer import infer
from homeostat.monitor import Subject, examine
from homeostat.profile import Profile
from homeostat.records import Evidence, State, Window
from homeostat.schema import TIMESTAMP, Schema
from homeostat.settings import Monitor
from homeostat.traits import Traits

DAY = timedelta(days=1)
LENGTH, REFERENCE = 7, 200  # days


class Silent:
    """A reporter that draws nothing."""

    def evidently(self, reference, current, schema):
        return {}


@dataclass(frozen=True)
class Stream:
    name: str
    rows: pa.Table  # in order of time
    schema: Schema  # nothing learned yet
    days: np.ndarray  # of each row, since 1970

    def between(self, first: int, last: int) -> pa.Table:
        """Rows from the day `first` up to and without `last`."""
        low, high = np.searchsorted(self.days, [first, last])
        return self.rows.slice(low, high - low)


def served(source: Source, frame: pd.DataFrame) -> Stream:
    schema = infer(frame, target=source.target, learned=False)
    times = pa.Array.from_pandas(pd.to_datetime(frame["occurred_at"], utc=True)).cast(TIMESTAMP)
    columns = {
        "prediction_id": pa.array([f"{source.name}-{i:08}" for i in range(len(frame))]),
        "occurred_at": times,
        "recorded_at": times,
        "model_version": pa.array(["m"] * len(frame)),
        **features(frame, schema),
    }
    days = times.cast(pa.int64()).to_numpy() // (DAY // DAY.resolution)
    return Stream(source.name, pa.table(columns), schema, days)


@dataclass(frozen=True)
class Scene:
    """One window of a stream, and the champion that it is held against."""

    subject: Subject
    rows: pa.Table
    window: Window
    last: Evidence
    hit: Hit

    def look(self, served: Served) -> Evidence:
        return examine(
            self.subject,
            served.rows,
            self.window,
            refused=served.refused,
            last=self.last,
            settings=Monitor(),
            mature_until=self.window.start,
            now=self.window.end + served.late,
            reporter=Silent(),
        )


def scene(source: Stream, end: int, seed: int) -> Scene:
    """The week before the day `end`; the reference is what came before it."""
    start = end - LENGTH
    reference = source.between(start - REFERENCE, start)
    schema = source.schema.learned_from(reference)
    subject = Subject(
        "m",
        schema,
        Profile.of(reference, schema, block=DAY),
        reference.slice(0, 100),
        None,
        traits=Traits.of(reference, schema, block=DAY),
    )
    window = Window(*(datetime.fromtimestamp(d * 86_400, UTC) for d in (start, end)))
    before = Window(window.start - DAY * LENGTH, window.start)
    bare = Scene(subject, source.between(start - LENGTH, start), before, None, None)
    last = bare.look(Served(bare.rows))
    return Scene(subject, source.between(start, end), window, last, target(reference, schema, seed))


def target(reference: pa.Table, schema: Schema, seed: int) -> Hit:
    """Of the numbers with thirty edges or more, and of the categories with three levels or more,
    the one with fewest nulls.
    """
    numbers = [f for f in schema.features if f.kind == "number"]
    texts = [f for f in schema.features if f.kind == "category" and len(f.levels) > 2]
    full = {f.name: reference.column(f.name).null_count for f in (*numbers, *texts)}
    number = max(numbers, key=lambda f: (len(f.edges) >= 30, -full[f.name], len(f.edges)))
    text = min(texts, key=lambda f: full[f.name], default=None)
    return Hit(
        number.name,
        reference.column(number.name).drop_null().to_numpy(),
        text.name if text else None,
        text.levels[-1] if text else None,
        np.random.default_rng(seed),
    )


@dataclass
class Cell:
    """What came of one fault on one stream."""

    windows: int = 0
    caught: int = 0
    drift: int = 0
    verdicts: Counter = None
    checks: Counter = None

    def add(self, found: Evidence, checks: tuple[str, ...]) -> None:
        self.verdicts, self.checks = self.verdicts or Counter(), self.checks or Counter()
        tripped = {f.check for f in found.findings if f.severity == "block"}
        named = tripped & set(checks)
        self.windows += 1
        self.caught += bool(named)
        self.drift += found.state is State.DRIFT
        self.verdicts[found.state.value] += 1
        self.checks.update(named or tripped)

    def __str__(self) -> str:
        if not self.windows:
            return "–"
        return f"{self.caught}/{self.windows} {'/'.join(sorted(self.checks))}".strip()


UNHURT = Fault("as it was", (), lambda served, hit: served)


def run(sources: Iterator[Stream], windows: int, seed: int) -> dict[str, dict[str, Cell]]:
    """Cells by stream and fault."""
    table: dict[str, dict[str, Cell]] = {}
    for source in sources:
        cells = {fault.name: Cell() for fault in (UNHURT, *FAULTS)}
        # By rows, not by days: some streams begin with a trickle.
        ends = np.linspace(0.35, 1, windows, endpoint=False) * len(source.days)
        for place, end in enumerate(source.days[ends.astype(int)].tolist()):
            here = scene(source, end, seed + place)
            for fault in (UNHURT, *FAULTS):
                if not fault.category or here.hit.category:
                    found = here.look(fault.inject(Served(here.rows), here.hit))
                    cells[fault.name].add(found, fault.checks)
        table[source.name] = cells
    return table


def shown(table: dict[str, dict[str, Cell]]) -> str:
    head = ["fault", *table]
    names = [fault.name for fault in (UNHURT, *FAULTS)]
    body = [[name, *(str(cells[name]) for cells in table.values())] for name in names]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *body])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=Path, help="folder of the real streams")
    parser.add_argument("--windows", type=int, default=10, help="of each stream")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the figures")
    given = parser.parse_args()
    table = run((served(*one) for one in real(given.streams)), given.windows, given.seed)
    print(shown(table))
    hurt = [cells[fault.name] for cells in table.values() for fault in FAULTS]
    unhurt = [cells[UNHURT.name] for cells in table.values()]
    missed = sum(cell.windows - cell.caught for cell in hurt)
    drift = sum(cell.drift for cell in hurt)
    broken = sum(cell.verdicts["broken_data"] for cell in unhurt)
    print(f"\n{missed} faults missed, {drift} called drift; {broken} unhurt windows called broken")
    if given.json:
        told = {
            name: {fault: vars(cell) for fault, cell in cells.items()}
            for name, cells in table.items()
        }
        given.json.write_text(json.dumps(told, indent=1) + "\n")
    return int(bool(missed or drift or broken))


if __name__ == "__main__":
    sys.exit(main())
