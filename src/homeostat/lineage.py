"""The line of a champion: which map over its model answers for which row.

Takes the store of releases and one of them, and outputs of its model without any map. Gives these
as the release and its predecessors with the same model would have answered, each row by the newest
map that was not fitted on it, so that rows which a map has seen can still judge its model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow as pa

from homeostat.binning import micro, moments
from homeostat.contracts import Releases, Trainer
from homeostat.records import Release
from homeostat.schema import Schema, Target
from homeostat.scoring import Calibrator, outputs, row_losses, tabulate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Map:
    """A calibrator, and from when on no row was used to fit it."""

    since: datetime
    calibrator: Calibrator


def judged_until(release: Release) -> datetime:
    """The end of the rows that the gate, or probation, judged it by, which are no new evidence."""
    verdict = release.manifest["gate"]
    window = verdict and verdict["window"]
    return datetime.fromisoformat(window["end"]) if window else release.seen_until


def kin(releases: Releases, release: Release) -> Iterator[Release]:
    """The release and its predecessors as long as they have the same model, newest first."""
    model = release.manifest["objects"]["model"]
    while release.manifest["objects"]["model"] == model:
        yield release
        if release.manifest["parent"] is None:
            return
        release = releases.get(release.manifest["parent"])


def maps(releases: Releases, release: Release) -> tuple[Map, ...]:
    """The maps of the release's kin, oldest first, but for those that a later one takes the place
    of on every row.
    """
    found: list[Map] = []
    for each in kin(releases, release):
        if "calibrator" not in each.manifest["objects"]:
            continue
        if not found or each.seen_until < found[-1].since:
            own = Calibrator.from_json(releases.object(each, "calibrator"))
            found.append(Map(each.seen_until, own))
    return tuple(reversed(found))


def mapped(raw: Floats, rows: pa.Table, target: Target, of: Sequence[Map]) -> Floats:
    """`raw`, the model's outputs for the rows, each by the newest map that was not fitted on it;
    rows from before all of them as they are.
    """
    times, found = moments(rows), raw.copy()
    for each in of:
        later = times >= micro(each.since)
        found[later] = each.calibrator.apply(raw[later], target)
    return found


def losses(trainer: Trainer, releases: Releases, release: Release, rows: pa.Table) -> Floats:
    """The loss of each labelled row, shape (rows,), by the release and its kin as `mapped` has it.

    `rows` have the features of its own schema.
    """
    return Bare.of(trainer, releases, release, rows).under(maps(releases, release))


@dataclass(frozen=True)
class Bare:
    """Labelled rows, and what a release's model answers to them without any map."""

    rows: pa.Table
    scores: pa.Table
    schema: Schema

    @classmethod
    def of(cls, trainer: Trainer, releases: Releases, release: Release, rows: pa.Table) -> Bare:
        schema = Schema.from_json(releases.object(release, "schema"))
        scores = trainer.score(releases.object(release, "model"), rows, schema, None)
        return cls(rows, scores, schema)

    def under(self, of: Sequence[Map]) -> Floats:
        """The loss of each row, shape (rows,), by these maps."""
        scores, target = self.scores, self.schema.target
        if of:
            raw = outputs(scores, target)
            scores = tabulate(mapped(raw, self.rows, target, of), target)
        return row_losses(scores, self.rows, self.schema)
