"""The drift test by itself: how often it alarms where nothing changed, and what it notices.

It takes a folder of streams (`--streams`) and makes draws from them: which days are the reference,
which the window. It gives the tables *False alarms* and *Power*, in which others' rules are judged
on the very same draws, and with `--json FILE` the same as JSON. The same seed gives the same
figures.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from changes import CHANGES, Changed, held
from detectors import Peers, classifier
from scipy import stats
from streams import (
    Draw,
    Stream,
    by_day,
    independent,
    real,
    reordered,
    scores,
    shuffled,
    stretch,
    subset,
    synthetic,
)

from homeostat.monitor.drift import drift
from homeostat.profile import Profile

WINDOWS = (1, 7, 30)  # days
MONTH = 31  # days of a reference that is too short for windows of 7 and 30
LEVELS = (0.01, 0.05)
SIZES = (50, 100, 200, 500, 1_000, 10_000, 100_000)
BAND = 0.999
POWER_LEVEL = 0.05
KINDS = {
    "shuffled": 1,
    "reordered": 2,
    "stretch": 3,
    "rows": 4,
    "blocks": 5,
    "ar": 6,
    "days": 7,
    "month": 8,
}
OURS = "homeostat"


@dataclass(frozen=True)
class Alarms:
    """How often one rule alarmed where nothing changed."""

    stream: str
    days: str  # how they were drawn
    window: int  # days, or rows where rows are independent
    nominal: float
    rule: str
    draws: int
    alarms: int
    bounded: bool = True  # held to the nominal share

    @property
    def share(self) -> float:
        return self.alarms / self.draws

    @property
    def within(self) -> bool:
        """No more than the 99.9 % binomial band about the nominal share allows."""
        return bool(self.alarms <= stats.binom.ppf(BAND, self.draws, self.nominal))


@dataclass(frozen=True)
class Noticed:
    """Which share of changed windows each rule noticed, alarming on 5 % of unchanged ones."""

    stream: str
    window: int
    change: str
    draws: int
    shares: dict[str, float]

    @property
    def lead(self) -> float:
        """Ours less the better of the others."""
        return self.shares[OURS] - max(v for k, v in self.shares.items() if k != OURS)


def generator(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


def verdict(reference: Profile, current: Profile, names: tuple[str, ...]) -> float:
    """Our smallest adjusted p-value; minimum effect off."""
    found = drift(reference, current, alpha=POWER_LEVEL, min_effect=0.0, columns=names)
    tests = (*found.columns, *([found.joint] if found.joint else []))
    return min(test.adjusted_p_value for test in tests)


# --- false alarms ---

Judged = dict[tuple[str, float], int]


def judged(stream: Stream, draw: Draw, peers: Peers | None) -> Judged:
    """1 for each rule that alarms at each level."""
    p_value = verdict(stream.taken(draw.reference), stream.taken(draw.current), stream.schema.names)
    found: Judged = {(OURS, level): int(p_value <= level) for level in LEVELS}
    if peers is not None:
        for level, alarms in peers.alarms(draw, LEVELS).items():
            found |= {(rule, level): int(alarm) for rule, alarm in alarms.items()}
    return found


def counted(
    labels: tuple[str, str, int], draws: int, one: Callable[[int], Judged], *, bounded: bool = True
) -> Iterator[Alarms]:
    """The cells of one line of the table from so many draws."""
    total: Judged = {}
    began = time.perf_counter()
    for number in range(draws):
        for key, alarm in one(number).items():
            total[key] = total.get(key, 0) + alarm
    print(f"{labels}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    for (rule, level), alarms in sorted(total.items()):
        yield Alarms(*labels, level, rule, draws, alarms, bounded)


def on_real_days(stream: Stream, draws: int, peers: bool, kinds: Sequence[str]) -> Iterator[Alarms]:
    rules, order = Peers(stream) if peers else None, scores(stream)
    picks: dict[str, Callable[[int, np.random.Generator], Draw]] = {
        "shuffled": partial(shuffled, stream.days),
        "reordered": partial(reordered, order),
        "stretch": partial(stretch, stream.days),
        "month": partial(shuffled, stream.days, most=MONTH),
    }

    def one(kind: str, window: int, number: int) -> Judged:
        draw = picks[kind](window, generator(KINDS[kind], window, number))
        return judged(stream, draw, rules)

    for kind in (kind for kind in picks if kind in kinds):
        for window in WINDOWS:
            labels = stream.name, kind, window
            yield from counted(labels, draws, partial(one, kind, window), bounded=kind != "stretch")


def on_synthetic_days(draws: int, peers: bool) -> Iterator[Alarms]:
    """60 rows a day, days .4 σ apart: AR(.7) for 365 days, independent for 300."""

    def one(kind: str, window: int, number: int) -> Judged:
        days, persistence = (365, 0.7) if kind == "ar" else (300, 0.0)
        random = generator(KINDS[kind], window, number)
        sizes = np.full(days + window, 60)
        stream = synthetic(random, sizes, persistence=persistence, effect=0.4)
        first = days if kind == "ar" else int(random.integers(0, days + 1))
        every = np.arange(days + window)
        inside = (every >= first) & (every < first + window)
        draw = Draw(every[~inside], every[inside])
        return judged(stream, draw, Peers(stream) if peers else None)

    for kind in ("ar", "days"):
        for window in WINDOWS:
            yield from counted(("synthetic", kind, window), draws, partial(one, kind, window))


def on_independent_rows(draws: int, peers: bool) -> Iterator[Alarms]:
    """As many rows in the window as in the reference, one block; and in each of its ten blocks."""

    def one(kind: str, size: int, number: int) -> Judged:
        blocks = 1 if kind == "rows" else 10
        stream = independent(generator(KINDS[kind], size, number), size, blocks + 1)
        rules = Peers(stream) if peers and blocks == 1 else None
        return judged(stream, Draw(np.arange(blocks), np.array([blocks])), rules)

    for kind in ("rows", "blocks"):
        for size in SIZES:
            yield from counted(("independent rows", kind, size), draws, partial(one, kind, size))


# --- power ---


def on_changes(stream: Stream, windows: tuple[int, ...], draws: int) -> Iterator[Noticed]:
    """Days shuffled, the window changed; each rule's threshold is that of its unchanged draws."""
    peers, whole = Peers(stream), held(stream.columns)

    def measured(window: int, number: int, change: str | None) -> list[float] | None:
        """Scores, small where much drifted: ours, KS + Bonferroni, the classifier."""
        random = generator(KINDS["shuffled"], window, number)
        draw = shuffled(stream.days, window, random)
        rows = stream.columns.take(stream.rows(draw.current))
        changed: Changed = {}
        if change is not None:
            found = CHANGES[change](rows, whole, random)
            if found is None:
                return None
            changed = found
            rows = subset(changed, rows)
        day = np.repeat(np.arange(window), np.diff(stream.starts)[draw.current])
        names = stream.schema.names
        reference = stream.columns.take(stream.rows(draw.reference))
        return [
            verdict(stream.taken(draw.reference), stream.profiled(rows, day), names),
            min(pair.p_value() for pair in peers.pairs(draw, changed).values()),
            -classifier(reference, rows, number),
        ]

    for window in windows:
        calm = np.array([measured(window, number, None) for number in range(2 * draws)])
        for change in CHANGES:
            began = time.perf_counter()
            found = [measured(window, 10**6 + number, change) for number in range(draws)]
            if None in found:
                continue
            shares = noticed(calm, np.array(found))
            print(
                f"{stream.name} {window} {change}: {time.perf_counter() - began:.0f} s",
                file=sys.stderr,
            )
            named = dict(zip((OURS, "ks", "classifier"), shares, strict=True))
            yield Noticed(stream.name, window, change, draws, named)


def noticed(calm: np.ndarray, changed: np.ndarray) -> list[float]:
    """The share of `changed` beyond what 5 % of `calm` lie beyond, by column.

    Scores that equal the threshold count in the proportion that brings `calm` to exactly 5 %.
    """
    shares = []
    for null, found in zip(calm.T, changed.T, strict=True):
        wanted = POWER_LEVEL * len(null)
        threshold = np.sort(null)[int(wanted)]
        below, equal = (null < threshold).sum(), (null == threshold).sum()
        part = (wanted - below) / equal
        shares.append(float(np.mean(found < threshold) + part * np.mean(found == threshold)))
    return shares


# --- the whole ---


def shown_alarms(rows: list[Alarms]) -> Iterator[str]:
    """Markdown: one line a stream, draw, window and level; a share beyond the band has an !."""
    rules = sorted({row.rule for row in rows}, key=lambda rule: (rule != OURS, rule))
    yield "| stream | days | window | nominal | " + " | ".join(rules) + " |"
    yield "| --- | --- | --- | --- |" + " --- |" * len(rules)
    cells = {(r.stream, r.days, r.window, r.nominal, r.rule): r for r in rows}
    for line in dict.fromkeys((r.stream, r.days, r.window, r.nominal) for r in rows):
        found = [cells.get((*line, rule)) for rule in rules]
        texts = ["" if c is None else f"{c.share:.3f}{'' if c.within else ' !'}" for c in found]
        yield f"| {line[0]} | {line[1]} | {line[2]:,} | {line[3]} | " + " | ".join(texts) + " |"
    ours = [row for row in rows if row.rule == OURS and row.bounded]
    beyond = sum(not row.within for row in ours)
    yield f"\n{OURS}: {beyond} of {len(ours)} bounded cells lie above the {BAND:.1%} band."


def shown_power(rows: list[Noticed]) -> Iterator[str]:
    yield f"| stream | window | change | {OURS} | KS + Bonferroni | classifier | lead |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for row in rows:
        values = " | ".join(f"{share:.2f}" for share in row.shares.values())
        yield f"| {row.stream} | {row.window} | {row.change} | {values} | {row.lead:+.2f} |"
    mean = np.mean([row.lead for row in rows])
    behind = sum(row.lead < -0.05 for row in rows)
    yield f"\nMean lead {mean:+.3f}; more than 5 points behind in {behind} of {len(rows)} cells."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--streams", type=Path, help="folder of Parquet files; else flights only")
    parser.add_argument("--shuffles", type=int, default=200, help="draws of each cell")
    parser.add_argument("--changed", type=int, default=50, help="changed windows of each cell")
    parser.add_argument("--windows", default="7", help="days of the changed windows, e.g. 1,7,30")
    parser.add_argument("--only", action="append", metavar="STREAM", help="some streams only")
    kinds = "shuffled,reordered,stretch,month"
    parser.add_argument("--days", default=kinds, help=f"of real streams, of: {kinds}")
    parser.add_argument("--tables", default="alarms,power", help="of: alarms, power")
    parser.add_argument("--no-peers", action="store_true", help="false alarms of ours only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    asked = parser.parse_args()
    alarms: list[Alarms] = []
    power: list[Noticed] = []

    def kept() -> None:
        """After each stream, since all of them take long."""
        figures = {
            "alarms": [asdict(row) | {"share": row.share, "within": row.within} for row in alarms],
            "power": [asdict(row) | {"lead": row.lead} for row in power],
        }
        if asked.json:
            asked.json.write_text(json.dumps(figures, indent=1) + "\n")

    for source, frame in real(asked.streams, asked.only):
        stream = by_day(source, frame)
        if "alarms" in asked.tables:
            alarms += on_real_days(
                stream, asked.shuffles, not asked.no_peers, asked.days.split(",")
            )
        if "power" in asked.tables:
            windows = tuple(map(int, asked.windows.split(",")))
            power += on_changes(stream, windows, asked.changed)
        kept()
    if "alarms" in asked.tables and (not asked.only or "synthetic" in asked.only):
        alarms += on_synthetic_days(asked.shuffles, not asked.no_peers)
        alarms += on_independent_rows(asked.shuffles, not asked.no_peers)
        kept()
    if alarms:
        print("\n".join(shown_alarms(alarms)))
    if power:
        print("\n".join(shown_power(power)))
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
