"""Scene: what a look at one window starts from, and what its stages find.

Takes the objects of a release, the served rows of a window and the rules by which it is looked at.
Gives the champion as the monitor knows it, the profiles of the window, and a place for what the
stages find, in which a stage that fails leaves its name.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from homeostat import importance
from homeostat.blocks import Kept
from homeostat.contracts import Engine, Journal
from homeostat.errors import cause
from homeostat.levels import SEGMENTS, Levels
from homeostat.monitor.drift import NOTHING, Drift
from homeostat.monitor.reading import Reading, Wanted
from homeostat.monitor.small import Past
from homeostat.profile import Profile
from homeostat.records import (
    ColumnDrift,
    Evidence,
    Finding,
    Interval,
    Json,
    Performance,
    Release,
    Segment,
    Shape,
    Staleness,
    Window,
)
from homeostat.schema import Schema
from homeostat.scoring import Calibrator
from homeostat.settings import Monitor, Settings
from homeostat.traits import Traits

T = TypeVar("T")


@dataclass(frozen=True)
class Subject:
    """What the monitor knows of the champion; all of it belongs to the release."""

    release: str
    schema: Schema
    reference: Profile  # of the rows that the champion was fitted on
    sample: pa.Table  # some of these rows, for Evidently
    baseline: Interval | None  # its loss when it was judged
    importance: Mapping[str, float] = field(default_factory=dict)  # empty: not known
    cutoff: datetime | None = None  # it was fitted on rows before
    traits: Traits | None = None  # of the same rows as `reference`; None in older releases
    levels: Levels | None = None  # of the same rows; None where no segment was named
    calibrator: Calibrator | None = None  # undone where predictions are compared with the reference

    @classmethod
    def of(
        cls, champion: Release, held: Mapping[str, bytes], base: Release | None = None
    ) -> Subject:
        """From the objects `schema`, `reference` and `reference_sample` of a release, and
        `importance`, `traits`, `segments` and `calibrator` where it has them.

        `base` is the release with which the champion's model began to serve: what that was judged
        at stays the baseline, so that a map which mends little does not hide that it does.
        """
        return cls(
            release=champion.id,
            schema=Schema.from_json(held["schema"]),
            reference=Profile.from_bytes(held["reference"]),
            sample=pq.read_table(io.BytesIO(held["reference_sample"])),
            baseline=_baseline(base or champion),
            importance=importance.read(held.get("importance")),
            cutoff=champion.cutoff,
            traits=Traits.from_bytes(held["traits"]) if "traits" in held else None,
            levels=Levels.from_bytes(held[SEGMENTS]) if SEGMENTS in held else None,
            calibrator=Calibrator.from_json(held["calibrator"]) if "calibrator" in held else None,
        )

    def wanted(self, settings: Monitor, seed: int, *, counted: bool) -> Wanted:
        """What is to be made of the rows of a window; with `counted`, profiles too."""
        edges = self.reference.output_edges
        return Wanted(
            self.schema,
            self.release,
            settings,
            seed,
            self.traits,
            self.levels,
            edges if counted else None,
            self.calibrator,
        )


def _baseline(champion: Release) -> Interval | None:
    """The champion's loss on the rows that judged it."""
    verdict = champion.manifest["gate"]
    if verdict is None or verdict["challenger"] is None:
        return None
    return Interval(verdict["challenger"], None, None, verdict["rows"], verdict["blocks"])


@dataclass(frozen=True, slots=True)
class Journalled:
    """What may be asked beyond the window; without `past`, or an engine, less is told."""

    past: Past | None = None  # rows of another window, labelled or not
    engine: Engine | None = None  # in whose child the twins of `staleness` are fitted
    delay: timedelta = timedelta(0)  # after which nearly all labels of a row have come
    seed: int = 0

    @classmethod
    def of(
        cls, journal: Journal, as_of: datetime, chosen: Settings, engine: Engine | None
    ) -> Journalled:
        """What a journal knew at the time `as_of`."""

        def past(window: Window, schema: Schema) -> Iterator[pa.Table]:
            return journal.scan(window, as_of=as_of, schema=schema)

        return cls(past, engine, chosen.labels.delay, chosen.project.seed)


@dataclass(frozen=True)
class Scene:
    """One window, and the rules it is looked at by."""

    subject: Subject
    reading: Reading  # of the served rows
    window: Window
    refused: Mapping[str, int]
    settings: Monitor
    mature_until: datetime
    asked: Journalled
    now: datetime
    last: Evidence | None
    kept: Kept | None = None

    @cached_property
    def counted(self) -> tuple[Profile, Profile]:
        """The profiles of the served rows, and of those that the champion itself predicted."""
        if self.kept is None:
            return self.reading.profiles
        subject, block = self.subject, self.settings.block
        edges, model = subject.reference.output_edges, subject.release
        return self.kept.profiles(
            self.window,
            subject.schema,
            block=block,
            output_edges=edges,
            model=model,
            calibrator=subject.calibrator,
        )


@dataclass(slots=True)
class Found:
    """What the stages found; a failed stage leaves its field empty and its name in `failures`."""

    findings: tuple[Finding, ...] = ()
    evidently: Mapping[str, Json] = field(default_factory=dict)
    drift: Drift = NOTHING
    prediction: ColumnDrift | None = None
    performance: Performance | None = None
    shapes: tuple[Shape, ...] = ()
    staleness: Staleness | None = None
    segments: tuple[Segment, ...] = ()
    failures: list[str] = field(default_factory=list)

    def stage(self, name: str, run: Callable[[], T], otherwise: T) -> T:
        try:
            return run()
        except Exception as error:  # noqa: BLE001 - fails closed: the verdict is then `failed`
            self.failures.append(f"{name} failed: {cause(error)}")
            return otherwise

    @property
    def broken(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == "block")
