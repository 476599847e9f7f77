"""Rebuilding: the training frames that each release names, from the journal, and their hashes.

Takes the stores. Gives for each frame whether the journal still yields the very rows that a model
or map learned from; nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
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
    """What became of one of the training frames of a release."""

    release: str
    result: Literal["same", "fewer", "other"]  # fewer: rows that it names are gone
    named: int  # rows, in the manifest
    found: int  # in the journal


def frames(
    trainings: Iterable[tuple[str, TrainingRows]],
    journal: Journal,
    releases: Releases,
    audit: Audit,
) -> list[Frame]:
    """One frame for each of `trainings`, a release and rows that it names, in that order.

    Rows that several releases name are read once. Raises HomeostatError.
    """
    found: dict[tuple[TrainingRows, str], Frame] = {}
    told = []
    for release, rows in trainings:
        schema = Schema.from_json(releases.object(releases.get(release), "schema"))
        key = rows, schema.fingerprint
        if key not in found:
            found[key] = _frame(release, rows, schema, journal, audit)
        told.append(replace(found[key], release=release))
    return told


def _frame(
    release: str, training: TrainingRows, schema: Schema, journal: Journal, audit: Audit
) -> Frame:
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
