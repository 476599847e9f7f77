"""The monitor: one kind of evidence per file, run in order and weighed into one verdict.

Takes the champion as a `Subject`, the rows that were served in a window, and what the server
refused. Gives `Evidence`; a stage that fails makes the verdict `failed`, never "stable", and the
other stages still say what they found.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import pyarrow as pa

from homeostat.blocks import Kept
from homeostat.contracts import Reporter
from homeostat.errors import cause
from homeostat.monitor import performance, quality, staleness
from homeostat.monitor.drift import LEAST, Drift, drift, nearest
from homeostat.monitor.reading import Reading
from homeostat.monitor.scene import Found, Journalled, Scene, Subject
from homeostat.monitor.segments import Rule, segments, unknown_segments
from homeostat.monitor.shapes import shapes
from homeostat.profile import PREDICTION, Profile
from homeostat.records import (
    ColumnDrift,
    Evidence,
    Finding,
    Hurts,
    Performance,
    Segment,
    Shape,
    Staleness,
    State,
    Window,
)
from homeostat.settings import Monitor

YEAR = timedelta(days=365.25)
UNCALIBRATED = (
    "This is not calibrated: a reference of less than ten such windows cannot tell how they vary, "
    "and {instead}."
)
SHORTER = "shorter stretches stand for them"
ROWS = "rows are taken as independent"

__all__ = ["Journalled", "Subject", "examine", "failed"]

LACKING = frozenset({"row_volume", "row_gap", "stale_feed"})
"""Checks that find too few rows, and so count in a window that has too few to compare."""


def examine(
    subject: Subject,
    rows: pa.Table | Iterable[pa.Table],
    window: Window,
    *,
    refused: Mapping[str, int],
    last: Evidence | None,
    settings: Monitor,
    mature_until: datetime,
    now: datetime,
    reporter: Reporter,
    kept: Kept | None = None,
    asked: Journalled | None = None,
) -> Evidence:
    """All that can be told about the served `rows` of `window`; raises only what reading them does.

    `rows` have the columns of `Journal.scan` with the subject's schema, in one table or piece by
    piece, one behind the other; they are gone through once and not held. `refused` counts refused
    rows by reason, and labels of rows younger than `mature_until` are not looked at; `asked`
    answers for rows before the window. Where nothing can be tested, `data_drift` keeps what
    `last` said and `carried_over` is true. With `kept` the profiles of the window come from there
    instead of from `rows`.
    """
    asked = asked or Journalled()
    pieces = [rows] if isinstance(rows, pa.Table) else rows
    read = Reading.of(pieces, subject.wanted(settings, asked.seed, counted=kept is None))
    scene = Scene(subject, read, window, refused, settings, mature_until, asked, now, last, kept)
    evidence, found = _untested(scene), Found()
    none: tuple[Finding, ...] = ()
    found.findings = found.stage("form", lambda: read.findings, none)
    if read.rows < max(LEAST, settings.min_rows):
        return _too_few(scene, evidence, found)
    _look(scene, found, reporter)
    if settings.detector == "evidently":
        found.drift = replace(found.drift, columns=_by_evidently(found))
    evidence = replace(
        evidence,
        columns=found.drift.columns,
        joint_drift=found.drift.joint,
        false_alarms_per_year=_false_alarms(scene, found.drift),
        findings=found.findings,
        prediction_drift=found.prediction,
        performance=found.performance,
        staleness=found.staleness,
        segments=found.segments,
        evidently=found.evidently,
        hurts=performance.hurts(found.performance) if found.performance else Hurts.UNKNOWN,
        shapes=found.shapes,
        importance=subject.importance,
    )
    return _weighed(evidence, found, settings)


def _untested(scene: Scene) -> Evidence:
    """What is known before anything is compared."""
    last, now = scene.last, scene.now
    reference, least = scene.subject.reference, max(LEAST, scene.settings.min_rows)
    rows = scene.reading.served
    return Evidence(
        window=scene.window,
        release=scene.subject.release,
        state=State.INSUFFICIENT_DATA,
        data_drift=last.data_drift if last else False,
        carried_over=True,
        hurts=Hurts.UNKNOWN,
        reason=f"The window holds {rows} rows; {least} are needed to compare.",
        rows=rows,
        labelled=scene.reading.labelled,
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


def _too_few(scene: Scene, evidence: Evidence, found: Found) -> Evidence:
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


def _look(scene: Scene, found: Found, reporter: Reporter) -> None:
    """Every stage in its order, each in its own guard."""
    subject = scene.subject
    profile = _assess(scene, found)
    found.evidently = found.stage(
        "evidently",
        lambda: reporter.evidently(subject.sample, scene.reading.sums.sample, subject.schema),
        {},
    )
    found.findings += unknown_segments(subject.schema.features, scene.settings.segments)
    bad = {finding.column for finding in found.broken}
    sound = [name for name in subject.schema.names if name not in bad]
    if profile is not None:
        found.drift = found.stage("drift", lambda: _drift(scene, profile, sound), found.drift)
        found.shapes = _shapes(subject, profile)
    found.segments = found.stage("segments", lambda: _segments(scene, sound), found.segments)
    found.prediction = found.stage("prediction drift", lambda: _prediction_drift(scene), None)
    found.performance = found.stage("performance", lambda: _performance(scene), None)
    found.staleness = found.stage("staleness", lambda: _staleness(scene), None)


def _shapes(subject: Subject, profile: Profile) -> tuple[Shape, ...]:
    """For people's eyes; that they cannot be drawn changes no verdict."""
    try:
        return shapes(subject.reference, profile, subject.schema)
    except Exception:  # noqa: BLE001 - the report then says that there is nothing to draw
        return ()


def _by_evidently(found: Found) -> tuple[ColumnDrift, ...]:
    """Our columns with Evidently's word for whether they drifted; what it left out did not."""
    told = found.evidently.get("columns")
    if told is None:
        return found.drift.columns
    return tuple(
        replace(column, drifted=bool(told.get(column.column, {}).get("drifted", False)))
        for column in found.drift.columns
    )


def _assess(scene: Scene, found: Found) -> Profile | None:
    """The window's profile, and what its quality adds to the findings about its form."""
    profile = found.stage("profile", lambda: scene.counted[0], None)
    if profile is not None:
        none: tuple[Finding, ...] = ()
        found.findings += found.stage("quality", lambda: _quality(scene, profile, found), none)
    return profile


def _quality(scene: Scene, profile: Profile, found: Found) -> tuple[Finding, ...]:
    subject = scene.subject
    case = quality.Case(
        schema=subject.schema,
        reference=subject.reference,
        traits=subject.traits,
        sums=scene.reading.sums,
        current=profile,
        window=scene.window,
        refused=scene.refused,
        now=scene.now,
        last=scene.last,
        known=frozenset(finding.column for finding in found.broken),
    )
    return quality.quality(case)


def _drift(scene: Scene, profile: Profile, columns: list[str]) -> Drift:
    alpha, least = scene.settings.alpha, scene.settings.min_effect
    return drift(scene.subject.reference, profile, alpha=alpha, min_effect=least, columns=columns)


def _segments(scene: Scene, columns: list[str]) -> tuple[Segment, ...]:
    subject, settings = scene.subject, scene.settings
    rule = Rule(settings.block, settings.alpha, settings.min_effect, settings.min_rows)
    features, names = subject.schema.features, settings.segments
    parted = scene.reading.parted
    return segments(subject.levels, parted, features, names, rule, columns=columns)


def _false_alarms(scene: Scene, found: Drift) -> float | None:
    """To be expected in a year of disjoint windows in which nothing changes."""
    if not found.calibrated:
        return None
    return scene.settings.alpha * (YEAR / scene.window.length)


def _prediction_drift(scene: Scene) -> ColumnDrift | None:
    """Of the champion's own predictions only; None where there are too few of them."""
    if scene.reading.scored.seen < scene.settings.min_rows:
        return None
    return next(iter(_drift(scene, scene.counted[1], [PREDICTION]).columns), None)


def _performance(scene: Scene) -> Performance:
    subject, settings, asked = scene.subject, scene.settings, scene.asked
    own = scene.reading.scored
    scope = performance.Scope(
        release=subject.release,
        mature_until=scene.mature_until,
        block=settings.block,
        baseline=subject.baseline,
        metric=settings.metric,
        threshold=settings.decision_threshold,
        seed=asked.seed,
        least=settings.min_rows,
        window=scene.window,
        past=asked.past,
        since=subject.cutoff,
        share=own.share,
    )
    return performance.performance(own.rows, subject.schema, scope)


def _staleness(scene: Scene) -> Staleness | None:
    """None where it is switched off, or nothing may be asked."""
    subject, settings, asked = scene.subject, scene.settings, scene.asked
    if not settings.staleness or asked.past is None or asked.engine is None:
        return None
    if subject.cutoff is None:
        return None
    twins = staleness.Twins(
        cutoff=subject.cutoff,
        mature_until=scene.mature_until,
        window=scene.window,
        delay=asked.delay,
        block=settings.block,
        metric=settings.metric,
        threshold=settings.decision_threshold,
        seed=asked.seed,
        least=settings.min_rows,
    )
    return staleness.staleness(asked.past, subject.schema, twins, asked.engine)


def _weighed(evidence: Evidence, found: Found, settings: Monitor) -> Evidence:
    """The verdict: failed before broken, broken before drift."""
    if settings.detector == "evidently" and "dataset_drift" not in found.evidently:
        error = found.evidently.get("error", "it gave no verdict")
        found.failures.append(f"Evidently, which is to decide, failed: {error}")
    if found.failures:
        return replace(evidence, state=State.FAILED, reason=_sentence(found.failures))
    if settings.detector == "evidently":
        drifted = bool(found.evidently["dataset_drift"])
    else:
        drifted = found.drift.drifted
    if found.broken:
        message = found.broken[0].message
        broken = replace(evidence, state=State.BROKEN_DATA, reason=f"Broken data: {message}")
        if any(finding.column is None for finding in found.broken) or not found.drift.columns:
            return broken
        # The sound columns were tested, so their drift stands.
        return replace(broken, data_drift=drifted, carried_over=False)
    if not found.drift.columns:
        reason = "No column has rows in both the window and the reference."
        return replace(evidence, state=State.INSUFFICIENT_DATA, reason=reason)
    return replace(
        evidence,
        state=State.DRIFT if drifted else State.STABLE,
        data_drift=drifted,
        carried_over=False,
        reason=_reason(evidence, found, settings) + _of_segments(found.segments),
    )


def _reason(evidence: Evidence, found: Found, settings: Monitor) -> str:
    if settings.detector == "evidently":
        share = found.evidently.get("drifted_share", 0.0)
        return f"Evidently calls {share:.0%} of the columns drifted, on {evidence.rows} rows."
    columns, together = found.drift.columns, found.drift.joint
    drifted = [column for column in columns if column.drifted]
    total = len(columns)
    furthest = nearest(columns)
    where = f"{furthest.column!r} (distance {furthest.distance:.3f}"
    if drifted:
        text = (
            f"{len(drifted)} of {total} columns drifted, most of all {where} over a threshold of "
            f"{furthest.threshold:.3f}), on {evidence.rows} rows."
        )
    elif together is not None and together.drifted:
        text = (
            f"None of {total} columns drifted by itself on {evidence.rows} rows, but together they "
            f"did ({together.test}: distance {together.distance:.3f} over a threshold of "
            f"{together.threshold:.3f})."
        )
    else:
        text = (
            f"None of {total} columns drifted on {evidence.rows} rows; nearest to it came {where} "
            f"under a threshold of {furthest.threshold:.3f})."
        )
    if found.drift.calibrated:
        return text
    instead = SHORTER if any(column.windows for column in columns) else ROWS
    return f"{text} {UNCALIBRATED.format(instead=instead)}"


def _of_segments(found: Sequence[Segment]) -> str:
    """How many drifted, without their levels: those are values of rows."""
    judged = [segment.verdict for segment in found if segment.furthest is not None]
    if not judged:
        return ""
    return f" {judged.count(State.DRIFT)} of {len(judged)} segments drifted."


def _sentence(failures: list[str]) -> str:
    text = "; ".join(failures)
    return text[:1].upper() + text[1:].rstrip(".") + "."
