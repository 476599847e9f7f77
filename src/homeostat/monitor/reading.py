"""Reading: one pass over a window's rows that leaves what the stages need, in bounded memory.

Takes the rows piece by piece, one behind the other in order of event time, and what is to be made
of them. Gives counts, findings about their form, sums, profiles, and samples where a stage wants
rows. Where something cannot be made of them, that is an error of whoever asks for it, and of no
other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from homeostat.levels import Levels, Parting
from homeostat.monitor import performance
from homeostat.monitor.form import formed
from homeostat.monitor.sums import SAMPLE, Summing, Sums
from homeostat.profile import Profile
from homeostat.records import Finding
from homeostat.reservoir import Reservoir
from homeostat.schema import Schema
from homeostat.scoring import Calibrator, uncalibrated
from homeostat.settings import Monitor
from homeostat.traits import Traits

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be made of the rows."""

    schema: Schema
    release: str  # of the champion, whose own rows are looked at apart
    settings: Monitor
    seed: int = 0  # by which samples are drawn
    traits: Traits | None = None  # of the reference
    levels: Levels | None = None  # of the reference
    edges: tuple[float, ...] | None = None  # bins of outputs; None: no profiles are wanted
    calibrator: Calibrator | None = None  # the champion's, which its reference does not know


class Reading:
    """What was read; of the pieces nothing but the samples is held."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self.served = 0  # rows as they came
        self.rows = 0  # those of them with usable times
        self.labelled = 0
        self._found: dict[str | None, Finding] = {}
        self._profiles: tuple[Profile, Profile] | None = None
        schema, settings, seed = wanted.schema, wanted.settings, wanted.seed
        most = max(SAMPLE, settings.sample)
        self._summing = Summing(schema, wanted.traits, sample=most, seed=seed)
        names, block = settings.segments, settings.block
        self._parted = Parting(wanted.levels, schema.features, names, block)
        self._scored = Reservoir(performance.MOST, seed)
        self._failed: dict[str, Exception] = {}

    @classmethod
    def of(cls, pieces: Iterable[pa.Table], wanted: Wanted) -> Reading:
        """Of one piece at least, all with the same columns. Raises what `pieces` raises."""
        reading = cls(wanted)
        for piece in pieces:
            reading._add(piece)
            del piece  # or two would be held while the next is read
        return reading

    @property
    def findings(self) -> tuple[Finding, ...]:
        """About the form of the rows, one of a column: the first of the gravest of all pieces."""
        self._check("form")
        known = (None, "occurred_at", *self._wanted.schema.names)
        places = {name: place for place, name in enumerate(known)}
        names = sorted(self._found, key=lambda name: (places.get(name, len(known)), name or ""))
        return tuple(self._found[name] for name in names)

    @property
    def profiles(self) -> tuple[Profile, Profile]:
        """Of the rows, and of those that the champion itself predicted."""
        self._check("profiles")
        if self._profiles is None:
            raise ValueError("no profiles were wanted, or there was no piece.")
        return self._profiles

    @property
    def sums(self) -> Sums:
        self._check("sums")
        return self._summing.sums()

    @property
    def parted(self) -> Parting:
        """The rows by the levels of the columns in `monitor.segments`."""
        self._check("segments")
        return self._parted

    @property
    def scored(self) -> Reservoir:
        """What `performance` is told from: rows that the champion itself predicted."""
        self._check("scored")
        return self._scored

    def _add(self, piece: pa.Table) -> None:
        self.served += piece.num_rows
        if "label" in piece.column_names:
            self.labelled += piece.num_rows - piece.column("label").null_count
        read = self._guarded("form", self._form, piece)
        rows = piece if read is None else read  # as they came, where they cannot be formed
        self.rows += rows.num_rows
        self._guarded("profiles", self._count, rows)
        self._guarded("sums", self._summing.add, rows)
        self._guarded("segments", self._parted.add, rows)
        self._guarded("scored", self._score, rows)

    def _guarded(self, part: str, add: Callable[[pa.Table], T], piece: pa.Table) -> T | None:
        if part in self._failed:
            return None
        try:
            return add(piece)
        except Exception as error:  # noqa: BLE001 - fails closed: whoever asks for the part is told
            self._failed[part] = error
            return None

    def _check(self, part: str) -> None:
        if part in self._failed:
            raise self._failed[part]

    def _form(self, piece: pa.Table) -> pa.Table:
        piece, findings = formed(piece, self._wanted.schema)
        for finding in findings:
            before = self._found.setdefault(finding.column, finding)
            if (before.severity, finding.severity) == ("warn", "block"):
                self._found[finding.column] = finding
        return piece

    def _count(self, piece: pa.Table) -> None:
        wanted, block = self._wanted, self._wanted.settings.block
        if wanted.edges is None:
            return
        own = self._own(piece)
        served, mine = (
            Profile.of(rows, wanted.schema, block=block, output_edges=wanted.edges)
            for rows in (piece, uncalibrated(own, wanted.schema.target, wanted.calibrator))
        )
        if self._profiles is not None:
            served, mine = self._profiles[0] + served, self._profiles[1] + mine
        self._profiles = served, mine

    def _score(self, piece: pa.Table) -> None:
        needed = performance.needed(self._wanted.schema)
        known = [name for name in needed if name in piece.column_names]
        self._scored.add(self._own(piece.select(known)))

    def _own(self, piece: pa.Table) -> pa.Table:
        return piece.filter(pc.equal(piece.column("model_version"), self._wanted.release))
