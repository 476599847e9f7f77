"""What the loop's policy comes to on real streams, beside plain schedules and hindsight.

It takes a folder of streams (`--streams`) and replays each from several starts, with the defaults
that `homeostat init` writes for its rows; nothing is chosen by what comes out. It gives a table for
each stream, what was reached of the aims and what was not, and with `--json FILE` the same as JSON.
Labels come one window after their row, those of hotel bookings when they came in truth. The same
arguments give the same figures, but for seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from scipy import stats
from streams import Source, real

from homeostat import replay
from homeostat.replay import ReplayResult, Row

DAY = timedelta(days=1)
EVERY = {  # days of a window
    "flights": 7,
    "beijing_air": 30,
    "bike_sharing": 14,
    "electricity": 14,
    "hotel_bookings": 14,
    "rain_australia": 60,
}
DELAYED = ("hotel_bookings",)  # their own times of arrival count
FROM = {"hotel_bookings": 0.5}  # share before the first model; the rows of its first year are few
SHARE = 0.2
SCHEDULES = (2, 3, 4, 5, 6, 8, 10, 13, 16, 20)
RECALIBRATED = [f"every:{steps}+recalibrate" for steps in SCHEDULES]
POLICIES = ("never", "every:1", "every:4", *RECALIBRATED, "homeostat", "oracle")
SECONDS = 180


@dataclass(frozen=True)
class Run:
    """One replay: of `homeostat`, and what it is held against."""

    stream: str
    start: int  # windows after the first start
    kept: float | None
    oracle_share: float | None
    retrains: int
    most: int  # retrains of retraining every step
    against: float  # relative to never: the loss of every:K+recalibrate at as many retrains − ours
    gain: float  # relative to never
    plain: float  # that of retraining every step
    needless: int
    harmful: int
    recalibrations: int
    seconds: float
    idle: float  # share of CPU seconds that is neither fit nor calibrator

    @classmethod
    def of(cls, stream: str, start: int, found: ReplayResult, seconds: float) -> Run:
        rows = {row.policy: row for row in found.rows}
        ours, never, plain = (rows[name] for name in ("homeostat", "never", "every:1"))
        cost = found.cost
        return cls(
            stream=stream,
            start=start,
            kept=ours.gain_kept,
            oracle_share=ours.oracle_share,
            retrains=ours.retrains,
            most=plain.retrains,
            against=(at_equal_retrains(rows.values(), ours) - ours.value) / never.value,
            gain=ours.relative_gain,
            plain=plain.relative_gain,
            needless=ours.needless_retrains,
            harmful=ours.harmful_promotions,
            recalibrations=ours.recalibrations,
            seconds=seconds,
            idle=(cost.scores + cost.rest) / (cost.fits + cost.scores + cost.maps + cost.rest),
        )


def at_equal_retrains(rows: Iterator[Row], ours: Row) -> float:
    """The value of every:K+recalibrate at our number of retrains, between two K's if need be."""
    found = sorted((r.retrains, r.value) for r in rows if r.policy in RECALIBRATED)
    counts = sorted({count for count, _ in found})
    values = [np.mean([value for c, value in found if c == count]) for count in counts]
    return float(np.interp(ours.retrains, counts, values))


def moments(frame: pd.DataFrame, source: Source, offsets: int) -> list[pd.Timestamp]:
    """Starts one window apart, on midnights in UTC."""
    times = pd.to_datetime(frame["occurred_at"], utc=True)
    first, last = times.iloc[0], times.iloc[-1]
    begin = (first + FROM.get(source.name, SHARE) * (last - first)).floor("D")
    return [begin + i * EVERY[source.name] * DAY for i in range(offsets)]


def replays(source: Source, frame: pd.DataFrame, offsets: int) -> Iterator[Run]:
    if source.name not in DELAYED:
        frame = frame.drop(columns="labelled_at", errors="ignore")
    for number, start in enumerate(moments(frame, source, offsets)):
        began = time.perf_counter()
        found = replay(
            frame,
            time="occurred_at",
            target=source.target,
            every=EVERY[source.name] * DAY,
            start=start.to_pydatetime(),
            policies=POLICIES,
        )
        seconds = time.perf_counter() - began
        print(f"{source.name}, start {number}: {seconds:.0f} s", file=sys.stderr)
        yield Run.of(source.name, number, found, seconds)


def shuffled(source: Source, frame: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The same days in random order: nothing drifts."""
    random = np.random.default_rng(seed)
    times = pd.to_datetime(frame["occurred_at"], utc=True)
    days = times.dt.floor("D")
    known = np.sort(days.unique())
    moved = pd.Series(random.permutation(known), index=known)
    frame = frame.assign(occurred_at=days.map(moved) + (times - days))
    return frame.drop(columns="labelled_at", errors="ignore").sort_values(
        "occurred_at", kind="stable", ignore_index=True
    )


def needless(source: Source, frame: pd.DataFrame, shuffles: int) -> int:
    """Needless retrains in so many streams of shuffled days."""
    total = 0
    for seed in range(shuffles):
        found = replay(
            shuffled(source, frame, seed),
            time="occurred_at",
            target=source.target,
            every=EVERY[source.name] * DAY,
            start=FROM.get(source.name, SHARE),
            policies=("homeostat",),
        )
        total += found.rows[0].needless_retrains
    return total


# --- what was reached ---


@dataclass(frozen=True)
class Figure:
    """One aim on one stream; the interval is Student's over starts, which share rows."""

    stream: str
    what: str
    value: float | None
    low: float | None
    high: float | None
    aim: str
    met: bool | None  # None: not formed


def figure(
    runs: Sequence[Run], what: str, of: Callable[[Run], float | None], aim: str, least: float
) -> Figure:
    """The mean over the starts; it is met when the mean is at least that."""
    values = np.asarray([v for v in map(of, runs) if v is not None])
    if not len(values):
        return Figure(runs[0].stream, what, None, None, None, aim, None)
    mean, low, high = float(values.mean()), None, None
    if len(values) > 1:
        half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
        low, high = mean - float(half), mean + float(half)
    return Figure(runs[0].stream, what, mean, low, high, aim, bool(mean >= least))


def negated(found: Figure) -> Figure:
    """For an aim that bounds from above."""
    low, high = found.low, found.high
    return Figure(
        found.stream,
        found.what,
        None if found.value is None else -found.value,
        None if high is None else -high,
        None if low is None else -low,
        found.aim,
        found.met,
    )


def figures(runs: Sequence[Run]) -> Iterator[Figure]:
    yield figure(runs, "gain kept", lambda r: r.kept, "≥ .95", 0.95)
    share = figure(runs, "share of retrains", lambda r: -r.retrains / r.most, "≤ .20", -0.2)
    yield negated(share)
    yield figure(runs, "share of the oracle", lambda r: r.oracle_share, "≥ .90", 0.9)
    yield figure(runs, "lead at equal retrains", lambda r: r.against, "> 0", 1e-9)
    worst = min(runs, key=lambda r: r.gain)
    aim, met = "≥ -.01", worst.gain >= -0.01
    yield Figure(worst.stream, "worst gain over never", worst.gain, None, None, aim, met)
    yield negated(figure(runs, "harmful promotions", lambda r: -float(r.harmful), "0", 0.0))
    yield negated(figure(runs, "needless retrains", lambda r: -float(r.needless), "", -np.inf))
    yield figure(runs, "recalibrations", lambda r: float(r.recalibrations), "", -np.inf)
    yield figure(runs, "gain of every:1", lambda r: r.plain, "", -np.inf)
    yield negated(figure(runs, "neither fit nor map", lambda r: -r.idle, "≤ .20", -0.2))
    if runs[0].stream == "flights":
        longest = figure(runs, "seconds of a replay", lambda r: -r.seconds, "< 180", -SECONDS)
        yield negated(longest)


def told(found: Sequence[Figure], console: Console) -> None:
    table = Table("stream", "what", "mean", "95 % interval", "aim", "met")
    for each in found:
        spread = "" if each.low is None else f"{each.low:.3f} to {each.high:.3f}"
        met = "" if not each.aim else {True: "yes", False: "NO", None: "not formed"}[each.met]
        value = "–" if each.value is None else f"{each.value:.3f}"
        table.add_row(each.stream, each.what, value, spread, each.aim, met)
    console.print(table)
    for each in found:
        if each.aim and each.met is False:
            console.print(f"not reached on {each.stream}: {each.what} {each.aim}")


def main() -> None:
    parser = argparse.ArgumentParser(description="The policy on real streams.")
    parser.add_argument("--streams", type=Path, metavar="FOLDER", help="Parquet files of streams")
    parser.add_argument("--only", nargs="*", metavar="STREAM", help="these streams alone")
    parser.add_argument("--offsets", type=int, default=10, help="starts of each stream")
    parser.add_argument("--shuffles", type=int, default=0, help="streams of shuffled days, of each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    asked = parser.parse_args()
    runs: list[Run] = []
    found: list[Figure] = []
    for source, frame in real(asked.streams, asked.only):
        mine = list(replays(source, frame, asked.offsets))
        runs += mine
        found += figures(mine)
        if asked.shuffles:
            count = needless(source, frame, asked.shuffles)
            what = f"needless retrains, {asked.shuffles} streams of shuffled days"
            found.append(Figure(source.name, what, count, None, None, "≤ 1", count <= 1))
    console = Console()
    told(found, console)
    console.print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}. One configuration: the defaults, "
        "with lengths of time as `homeostat init` reads them off the rows."
    )
    if asked.json:
        document = {"runs": [asdict(r) for r in runs], "figures": [asdict(f) for f in found]}
        asked.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
