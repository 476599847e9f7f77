"""Rebuilding: the training frame that each release names, from the journal, and its hash.

Takes the stores. Gives for each release whether the journal still yields the very rows that its
model learned from; nothing is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from homeostat import quarantine
from homeostat.contracts import Audit, Journal, Releases
from homeostat.records import TrainingRows, Window
from homeostat.rowhash import frame_hash
from homeostat.schema import TIMESTAMP, Schema


@dataclass(frozen=True, slots=True)
class Frame:
    """What became of the training frame of one release."""

    release: str
    result: Literal["same", "fewer", "other"]  # fewer: rows that it names are gone
    named: int  # rows, in the manifest
    found: int  # in the journal


def frames(
    trainings: Mapping[str, TrainingRows], journal: Journal, releases: Releases, audit: Audit
) -> list[Frame]:
    """One frame for each release in `trainings`, in that order. Raises HomeostatError."""
    return [_frame(name, rows, journal, releases, audit) for name, rows in trainings.items()]


def _frame(
    release: str, training: TrainingRows, journal: Journal, releases: Releases, audit: Audit
) -> Frame:
    schema = Schema.from_json(releases.object(releases.get(release), "schema"))
    window = Window(training.start, training.cutoff)
    rows = journal.read(window, as_of=training.as_of, labelled=True, schema=schema)
    rows = quarantine.sound(rows, audit, schema, until=training.as_of)
    # What came later may be dated back, and its label with it. Where the loop's clock is not that
    # which stamps rows, as in the demo, the time of recording says nothing.
    known = pc.less_equal(rows.column("recorded_at"), pa.scalar(training.as_of, TIMESTAMP))
    for frame in (rows, rows.filter(known)):
        if frame_hash(frame, schema) == training.sha256:
            return Frame(release, "same", training.rows, frame.num_rows)
    fewer = rows.num_rows < training.rows
    return Frame(release, "fewer" if fewer else "other", training.rows, rows.num_rows)
