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


def kin(releases: Releases, release: Release) -> Iterator[Release]:
    """The release and its predecessors as long as they have the same model, newest first."""
    model = release.manifest["objects"]["model"]
    while release.manifest["objects"]["model"] == model:
        yield release
        if release.manifest["parent"] is None:
            return
        release = releases.get(release.manifest["parent"])


def maps(releases: Releases, release: Release) -> tuple[Map, ...]:
    """The maps of the release's kin, oldest first."""
    found = [
        Map(each.seen_until, Calibrator.from_json(releases.object(each, "calibrator")))
        for each in kin(releases, release)
        if "calibrator" in each.manifest["objects"]
    ]
    return tuple(sorted(found, key=lambda each: each.since))


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
    schema = Schema.from_json(releases.object(release, "schema"))
    scores = trainer.score(releases.object(release, "model"), rows, schema, None)
    of = maps(releases, release)
    if of:
        raw = outputs(scores, schema.target)
        scores = tabulate(mapped(raw, rows, schema.target, of), schema.target)
    return row_losses(scores, rows, schema)
