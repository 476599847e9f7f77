"""The monitor: one kind of evidence per file, run in order and weighed into one verdict.

Takes the champion as a `Subject`, the rows that were served in a window, and what the server
refused. Gives `Evidence`; a stage that fails makes the verdict `failed`, never "stable", and the
other stages still say what they found.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from homeostat.contracts import Reporter
from homeostat.errors import cause
from homeostat.monitor import drift, performance, quality
from homeostat.monitor.form import formed
from homeostat.profile import EPOCH, MICROSECOND, PREDICTION, Profile
from homeostat.records import (
    ColumnDrift,
    Evidence,
    Finding,
    Hurts,
    Interval,
    Json,
    Performance,
    Release,
    State,
    Window,
)
from homeostat.schema import Schema
from homeostat.settings import Monitor
from homeostat.traits import Traits

T = TypeVar("T")

__all__ = ["Subject", "examine", "failed", "newest_window"]

LACKING = frozenset({"row_volume", "row_gap", "stale_feed"})
"""Checks that find too few rows, and so count in a window that has too few to compare."""


@dataclass(frozen=True)
class Subject:
    """What the monitor knows of the champion; all of it belongs to the release."""

    release: str
    schema: Schema
    reference: Profile  # of the rows that the champion was fitted on
    sample: pa.Table  # some of these rows, for Evidently
    baseline: Interval | None  # its loss when it was judged
    traits: Traits | None = None  # of the same rows as `reference`; None in older releases

    @classmethod
    def of(cls, champion: Release, held: Mapping[str, bytes]) -> Subject:
        """From the objects `schema`, `reference` and `reference_sample` of a release, and `traits`
        where it has them.
        """
        return cls(
            release=champion.id,
            schema=Schema.from_json(held["schema"]),
            reference=Profile.from_bytes(held["reference"]),
            sample=pq.read_table(io.BytesIO(held["reference_sample"])),
            baseline=_baseline(champion),
            traits=Traits.from_bytes(held["traits"]) if "traits" in held else None,
        )


def _baseline(champion: Release) -> Interval | None:
    """The champion's loss on the rows that judged it."""
    verdict = champion.manifest["gate"]
    if verdict is None or verdict["challenger"] is None:
        return None
    return Interval(verdict["challenger"], None, None, verdict["rows"], verdict["blocks"])


@dataclass(frozen=True)
class _Scene:
    """One window, and the rules it is looked at by."""

    subject: Subject
    rows: pa.Table
    window: Window
    refused: Mapping[str, int]
    settings: Monitor
    mature_until: datetime
    now: datetime
    last: Evidence | None

    @property
    def own(self) -> pa.Table:
        """The rows that the champion itself predicted; after a swap there are others."""
        mine = pc.equal(self.rows.column("model_version"), self.subject.release)
        return self.rows.filter(mine)

    def profile(self, rows: pa.Table) -> Profile:
        edges = self.subject.reference.output_edges
        schema, block = self.subject.schema, self.settings.block
        return Profile.of(rows, schema, block=block, output_edges=edges)


@dataclass(slots=True)
class _Found:
    """What the stages found; a failed stage leaves its field empty and its name in `failures`."""

    findings: tuple[Finding, ...] = ()
    evidently: Mapping[str, Json] = field(default_factory=dict)
    columns: tuple[ColumnDrift, ...] = ()
    prediction: ColumnDrift | None = None
    performance: Performance | None = None
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


def examine(
    subject: Subject,
    rows: pa.Table,
    window: Window,
    *,
    refused: Mapping[str, int],
    last: Evidence | None,
    settings: Monitor,
    mature_until: datetime,
    now: datetime,
    reporter: Reporter,
) -> Evidence:
    """All that can be told about the served `rows` of `window`; never raises.

    `rows` have the columns of `Journal.read` with the subject's schema, `refused` counts refused
    rows by reason, and labels of rows younger than `mature_until` are not looked at. Where
    nothing can be tested, `data_drift` keeps what `last` said and `carried_over` is true.
    """
    scene = _Scene(subject, rows, window, refused, settings, mature_until, now, last)
    evidence, found = _untested(scene), _Found()
    unread: tuple[pa.Table, tuple[Finding, ...]] = (rows, ())
    read, found.findings = found.stage("form", lambda: formed(rows, subject.schema), unread)
    scene = replace(scene, rows=read)
    if read.num_rows < settings.min_rows:
        return _too_few(scene, evidence, found)
    _look(scene, found, reporter)
    evidence = replace(
        evidence,
        columns=found.columns,
        findings=found.findings,
        prediction_drift=found.prediction,
        performance=found.performance,
        evidently=found.evidently,
        hurts=performance.hurts(found.performance) if found.performance else Hurts.UNKNOWN,
    )
    return _weighed(evidence, found, settings)


def newest_window(newest: datetime | None, now: datetime, settings: Monitor) -> Window:
    """The window of event time to look at: whole blocks, up to the `newest` served row."""
    end = now if newest is None else min(now, newest + MICROSECOND)
    end = EPOCH + -((EPOCH - end) // settings.block) * settings.block
    return Window(end - settings.window, end)


def _untested(scene: _Scene) -> Evidence:
    """What is known before anything is compared."""
    last, now = scene.last, scene.now
    reference, least = scene.subject.reference, scene.settings.min_rows
    rows = scene.rows.num_rows
    return Evidence(
        window=scene.window,
        release=scene.subject.release,
        state=State.INSUFFICIENT_DATA,
        data_drift=last.data_drift if last else False,
        carried_over=True,
        hurts=Hurts.UNKNOWN,
        reason=f"The window holds {rows} rows; {least} are needed to compare.",
        rows=rows,
        labelled=_labelled(scene.rows),
        refused=sum(scene.refused.values()),
        reference_rows=reference.rows,
        reference_blocks=len(reference.blocks),
        created_at=now,
    )


def failed(
    release: str, window: Window, last: Evidence | None, error: Exception, now: datetime
) -> Evidence:
    """The evidence of a window that could not even be read; the drift flag stays as it was."""
    return Evidence(
        window=window,
        release=release,
        state=State.FAILED,
        data_drift=last.data_drift if last else False,
        carried_over=True,
        hurts=Hurts.UNKNOWN,
        reason=f"The window could not be examined: {cause(error)}.",
        rows=0,
        labelled=0,
        refused=0,
        reference_rows=0,
        reference_blocks=0,
        created_at=now,
    )


def _too_few(scene: _Scene, evidence: Evidence, found: _Found) -> Evidence:
    """A window may be nearly empty because nearly all of its rows were refused, or never came."""
    _assess(scene, found)
    whole = tuple(finding for finding in found.findings if finding.column is None)
    enough = evidence.rows + evidence.refused >= scene.settings.min_rows
    blocking = [f for f in whole if f.severity == "block" and (enough or f.check in LACKING)]
    evidence = replace(evidence, findings=whole)
    if found.failures:
        return replace(evidence, state=State.FAILED, reason=_sentence(found.failures))
    if blocking:
        reason = f"Broken data: {blocking[0].message}"
        return replace(evidence, state=State.BROKEN_DATA, reason=reason)
    return evidence


def _look(scene: _Scene, found: _Found, reporter: Reporter) -> None:
    """Every stage in its order, each in its own guard."""
    settings, subject = scene.settings, scene.subject
    profile = _assess(scene, found)
    found.evidently = found.stage(
        "evidently", lambda: reporter.evidently(subject.sample, scene.rows, subject.schema), {}
    )
    bad = {finding.column for finding in found.broken}
    sound = [name for name in subject.schema.names if name not in bad]
    if profile is not None:
        found.columns = found.stage("drift", lambda: _drift(scene, profile, sound), ())
    found.prediction = found.stage("prediction drift", lambda: _prediction_drift(scene), None)
    scope = performance.Scope(subject.release, scene.mature_until, settings.block, subject.baseline)
    found.performance = found.stage(
        "performance", lambda: performance.performance(scene.rows, subject.schema, scope), None
    )


def _assess(scene: _Scene, found: _Found) -> Profile | None:
    """The window's profile, and what its quality adds to the findings about its form."""
    profile = found.stage("profile", lambda: scene.profile(scene.rows), None)
    if profile is not None:
        none: tuple[Finding, ...] = ()
        found.findings += found.stage("quality", lambda: _quality(scene, profile, found), none)
    return profile


def _quality(scene: _Scene, profile: Profile, found: _Found) -> tuple[Finding, ...]:
    subject = scene.subject
    case = quality.Case(
        schema=subject.schema,
        reference=subject.reference,
        traits=subject.traits,
        rows=scene.rows,
        current=profile,
        window=scene.window,
        refused=scene.refused,
        now=scene.now,
        last=scene.last,
        known=frozenset(finding.column for finding in found.broken),
    )
    return quality.quality(case)


def _drift(scene: _Scene, profile: Profile, columns: list[str]) -> tuple[ColumnDrift, ...]:
    alpha, least = scene.settings.alpha, scene.settings.min_effect
    return drift.drift(
        scene.subject.reference, profile, alpha=alpha, min_effect=least, columns=columns
    )


def _prediction_drift(scene: _Scene) -> ColumnDrift | None:
    """Of the champion's own predictions only; None where there are too few of them."""
    own = scene.own
    if own.num_rows < scene.settings.min_rows:
        return None
    return next(iter(_drift(scene, scene.profile(own), [PREDICTION])), None)


def _weighed(evidence: Evidence, found: _Found, settings: Monitor) -> Evidence:
    """The verdict: failed before broken, broken before drift."""
    if settings.detector == "evidently" and "dataset_drift" not in found.evidently:
        error = found.evidently.get("error", "it gave no verdict")
        found.failures.append(f"Evidently, which is to decide, failed: {error}")
    if found.failures:
        return replace(evidence, state=State.FAILED, reason=_sentence(found.failures))
    if settings.detector == "evidently":
        drifted = bool(found.evidently["dataset_drift"])
    else:
        drifted = any(column.drifted for column in found.columns)
    if found.broken:
        message = found.broken[0].message
        broken = replace(evidence, state=State.BROKEN_DATA, reason=f"Broken data: {message}")
        if any(finding.column is None for finding in found.broken) or not found.columns:
            return broken
        # The sound columns were tested, so their drift stands.
        return replace(broken, data_drift=drifted, carried_over=False)
    if not found.columns:
        reason = "No column has rows in both the window and the reference."
        return replace(evidence, state=State.INSUFFICIENT_DATA, reason=reason)
    return replace(
        evidence,
        state=State.DRIFT if drifted else State.STABLE,
        data_drift=drifted,
        carried_over=False,
        reason=_reason(evidence, found, settings),
    )


def _reason(evidence: Evidence, found: _Found, settings: Monitor) -> str:
    if settings.detector == "evidently":
        share = found.evidently.get("drifted_share", 0.0)
        return f"Evidently calls {share:.0%} of the columns drifted, on {evidence.rows} rows."
    drifted = [column for column in found.columns if column.drifted]
    total = len(found.columns)
    furthest = max(drifted or found.columns, key=lambda c: c.distance / c.threshold)
    where = f"{furthest.column!r} (distance {furthest.distance:.3f}"
    if drifted:
        return (
            f"{len(drifted)} of {total} columns drifted, most of all {where} over a threshold of "
            f"{furthest.threshold:.3f}), on {evidence.rows} rows."
        )
    return (
        f"None of {total} columns drifted on {evidence.rows} rows; nearest to it came {where} "
        f"under a threshold of {furthest.threshold:.3f})."
    )


def _labelled(rows: pa.Table) -> int:
    if "label" not in rows.column_names:
        return 0
    return int(pc.count(rows.column("label")).as_py())


def _sentence(failures: list[str]) -> str:
    text = "; ".join(failures)
    return text[:1].upper() + text[1:].rstrip(".") + "."
