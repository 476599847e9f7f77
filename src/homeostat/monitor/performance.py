"""Performance: what the champion's predictions came to where labels have come, and are estimated
to come to where they have not.

Takes the rows of a window, their journalled predictions and labels, what the champion predicted
before, and the loss that the release had when it was judged. Gives the realised and the estimated
metric with intervals that know rows of the same block to be alike, and whether the model got
worse: yes, no, or not to be told yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from homeostat.binning import micro
from homeostat.errors import SchemaError, cause
from homeostat.monitor.estimate import (
    Course,
    Known,
    Trial,
    expected,
    parts,
    record,
    trials,
    weights,
    widened,
)
from homeostat.monitor.metrics import ESTIMATED, Metric, Scores, chosen, clipped, metrics_of
from homeostat.monitor.small import Past, encoded
from homeostat.profile import moments
from homeostat.records import EPOCH, MICROSECOND, Hurts, Interval, Performance, Window
from homeostat.reservoir import Reservoir
from homeostat.schema import TIMESTAMP, Schema
from homeostat.scoring import outputs

if TYPE_CHECKING:
    from numpy.typing import NDArray

MARGIN = 0.02  # a metric this much worse than the baseline, as a share of it, is not called harm
TENTHS = 10  # parts of the scores for which the share labelled is told
KEPT = 300_000  # rows of the past that estimates learn and are judged from; of more, so many drawn
MOST = 1 << 18  # rows of a window that metrics are told from; of more, so many are drawn
DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Scope:
    """Which rows are judged, and how."""

    release: str  # only rows that this one predicted
    mature_until: datetime  # only rows that occurred before: younger ones are a biased sample
    block: timedelta
    baseline: Interval | None  # loss at the release
    metric: str = "loss"  # as `metrics.chosen`
    threshold: float = 0.5  # a binary model says yes above it
    seed: int = 0
    least: int = 30  # labelled rows of a past window that an estimate is compared with
    window: Window | None = None  # that the rows are of; None: nothing but them is known
    past: Past | None = None
    since: datetime | None = None  # the champion predicted nothing before
    share: float = 1.0  # of the champion's rows of the window, those that were drawn and are given

    @property
    def lag(self) -> timedelta:
        """How much earlier than the window the newest cohort ends whose labels have come; 0 where
        it is the window itself, but for less than a block.
        """
        if self.window is None or self.past is None:
            return timedelta(0)
        behind = self.window.end - self.mature_until
        return behind if behind >= self.block else timedelta(0)


def performance(rows: pa.Table, schema: Schema, scope: Scope) -> Performance:
    """The champion's metric on the newest mature cohort as long as the window, and its estimate
    on all rows of the window that it predicted.

    `measures` holds every metric of the task on that cohort, `estimates` those that can be told
    without labels, `extra` the share of the cohort that is labelled (`labelled_share`) and
    `unknown_labels`, rows left out because their label is no class of the model. Of a cohort or a
    window of more than `MOST` rows so many are drawn; `extra` then says what share of them that is
    (`sampled_share`, `estimate_sampled_share`). Raises SchemaError where a loss is not finite,
    SettingsError for an unknown metric. An estimate that fails is left out, with the reason in
    `note`.
    """
    metric = chosen(scope.metric, schema.target.task)
    cohort, drawn = _cohort(rows, schema, scope)
    judged, unknown = _judged(cohort, schema)
    share = _labelled_share(cohort, schema)
    extra = {"unknown_labels": float(unknown)} if unknown else {}
    shares = {"sampled_share": drawn, "estimate_sampled_share": scope.share}
    extra |= {name: part for name, part in shares.items() if part < 1}
    measures: dict[str, Interval] = {}
    if judged.num_rows:
        scores = _scores(judged, schema, scope)
        measures = _measures(scores, metric, schema)
        extra["labelled_share"] = judged.num_rows / cohort.num_rows
    found = Performance(
        metric.name,
        measures.get(metric.name),
        _baseline(metric, schema, scope),
        extra,
        measures=measures,
        labelled_by_score=share,
        greater_is_better=metric.greater,
        lag_days=scope.lag / DAY,
    )
    try:
        found = _with_estimate(found, rows, metric, schema, scope)
    except Exception as error:  # noqa: BLE001 - fails closed: no estimate, and why
        found = replace(found, note=f"The estimate failed: {cause(error)}")
    return replace(found, harm_by=_harm_by(found))


def hurts(performance: Performance) -> Hurts:
    """Whether the metric is worse than the baseline, both with their intervals.

    Realised. Yes: even its better bound is worse than the baseline by more than `MARGIN` of it,
    and worse than the baseline's own worse bound. No: even its worse bound is not worse than the
    baseline by more than `MARGIN`. Unknown: everything else, and wherever one of the two is
    missing. An estimate may say yes by the same rule, where its record is long enough for bounds
    and the labels of this window have not said no; it never says no.
    """
    return Hurts.YES if _harm_by(performance) else _compared(performance, performance.realised)


def _harm_by(performance: Performance) -> Literal["labels", "estimate", ""]:
    known = _compared(performance, performance.realised)
    if known is Hurts.YES:
        return "labels"
    if known is Hurts.NO and not performance.lag_days:
        return ""
    return "estimate" if _compared(performance, performance.estimated) is Hurts.YES else ""


def _compared(performance: Performance, now: Interval | None) -> Hurts:
    baseline, greater = performance.baseline, performance.greater_is_better
    if now is None or baseline is None or now.low is None or now.high is None:
        return Hurts.UNKNOWN
    sign = -1 if greater else 1
    low, high = sorted((sign * now.low, sign * now.high))
    worst = baseline.low if greater else baseline.high
    bound = sign * baseline.value + MARGIN * abs(baseline.value)
    if low > bound and (worst is None or low > sign * worst):
        return Hurts.YES
    return Hurts.NO if high <= bound else Hurts.UNKNOWN


def cohort(window: Window, mature_until: datetime, *, late: bool) -> Window:
    """When the rows of the realised figure occurred. `late`: the labels of `window` are yet to
    come, so that it is of the newest stretch as long as that (`Scope.lag`).
    """
    if late:
        return Window(mature_until - window.length, mature_until)
    return Window(window.start, max(window.start, min(window.end, mature_until)))


def _cohort(rows: pa.Table, schema: Schema, scope: Scope) -> tuple[pa.Table, float]:
    """The champion's rows of the newest window whose labels have come, labelled or not, and what
    share of these they are.
    """
    share = scope.share
    if scope.lag and scope.window is not None and scope.past is not None:
        window = cohort(scope.window, scope.mature_until, late=True)
        held = Reservoir(MOST, scope.seed)
        for part in scope.past(window, _bare(schema)):
            held.add(_mine(part, schema, scope))
        rows, share = held.rows, held.share
    mature = pc.less(rows.column("occurred_at"), pa.scalar(scope.mature_until, TIMESTAMP))
    return _own(rows.filter(mature), scope), share


def _own(rows: pa.Table, scope: Scope) -> pa.Table:
    return rows.filter(pc.equal(rows.column("model_version"), scope.release))


def _bare(schema: Schema) -> Schema:
    """Features are read only where a loss model learns from them."""
    return schema if schema.target.task == "regression" else replace(schema, features=())


def needed(schema: Schema) -> list[str]:
    """The columns that performance is told from."""
    names = ["occurred_at", "prediction", "probability", "probabilities", "label"]
    return [*names, "model_version", *_bare(schema).names]


def _mine(part: pa.Table, schema: Schema, scope: Scope) -> pa.Table:
    return _own(part.select(needed(schema)), scope)


def _judged(cohort: pa.Table, schema: Schema) -> tuple[pa.Table, int]:
    """The rows to judge, and how many carry a label that is no class of the model."""
    if "label" not in cohort.column_names:
        return cohort.slice(0, 0), 0
    ours = cohort.filter(pc.is_valid(cohort.column("label")))
    if schema.target.task == "regression":
        return ours, 0
    known = ours.filter(pc.is_in(ours.column("label"), pa.array(schema.target.classes)))
    return known, ours.num_rows - known.num_rows


def _blocks(rows: pa.Table, scope: Scope) -> NDArray[np.int64]:
    return np.asarray(moments(rows) // (scope.block // MICROSECOND))


def _scores(judged: pa.Table, schema: Schema, scope: Scope) -> Scores:
    output, labels = outputs(judged, schema.target), schema.labels(judged)
    blocks = _blocks(judged, scope)
    return Scores.of(output, labels, blocks, schema.target, scope.threshold)


def _measures(scores: Scores, metric: Metric, schema: Schema) -> dict[str, Interval]:
    known = metrics_of(schema.target.task)
    loss = next(iter(known.values()))
    if loss.rows is not None and not np.isfinite(loss.rows(scores)).all():
        raise SchemaError("the loss of the journalled predictions is not finite.")
    found = {one.name: one.interval(scores) for one in (metric, *known.values())}
    return {name: interval for name, interval in found.items() if interval is not None}


def _labelled_share(cohort: pa.Table, schema: Schema) -> tuple[float, ...]:
    """The share labelled in each tenth of the scores, lowest scores first; fewer parts where
    scores are equal. The score is P(positive), the largest probability, or the value.
    """
    if not cohort.num_rows or "label" not in cohort.column_names:
        return ()
    output = outputs(cohort, schema.target)
    score = output.max(axis=1) if output.ndim > 1 else output
    labelled = np.asarray(pc.is_valid(cohort.column("label")))
    edges = np.quantile(score, np.arange(1, TENTHS) / TENTHS, method="inverted_cdf")
    part = np.searchsorted(edges, score)  # equal scores are in one part
    rows = np.bincount(part)
    return tuple((np.bincount(part, labelled)[rows > 0] / rows[rows > 0]).tolist())


def _baseline(metric: Metric, schema: Schema, scope: Scope) -> Interval | None:
    """The loss at the release; of any other metric, which no gate has measured, the champion's
    first window of rows whose labels have come.
    """
    if metric.name == next(iter(metrics_of(schema.target.task))):
        return scope.baseline
    if scope.past is None or scope.since is None or scope.window is None:
        return None
    if scope.since >= scope.mature_until:
        return None
    held = Reservoir(MOST, scope.seed)
    length, end = scope.window.length, scope.mature_until
    for part in scope.past(Window(scope.since, scope.mature_until), _bare(schema)):
        mine = _mine(part, schema, scope)
        if not mine.num_rows:
            continue
        if not held.seen:
            end = mine.column("occurred_at")[0].as_py() + length
        held.add(mine.filter(pc.less(mine.column("occurred_at"), pa.scalar(end, TIMESTAMP))))
        if mine.column("occurred_at")[-1].as_py() >= end:
            break
    if not held.seen or end > scope.mature_until:
        return None
    judged, _ = _judged(held.rows, schema)
    return metric.interval(_scores(judged, schema, scope)) if judged.num_rows else None


def _with_estimate(
    found: Performance, rows: pa.Table, metric: Metric, schema: Schema, scope: Scope
) -> Performance:
    """`found` with what the window is estimated to come to, and the record of such estimates."""
    target, own = schema.target, _own(rows, scope)
    if not own.num_rows:
        return replace(found, note="The champion predicted no row of the window.")
    known = metrics_of(target.task)
    loss = metric if metric.rows is not None else next(iter(known.values()))
    names = ESTIMATED if target.task != "regression" else (loss.name,)
    leading = metric if metric.name in names else loss  # weighs what was learned, and when
    asked = [leading, *(known[name] for name in names if name != leading.name)]
    scores, past = _expected(_unlabelled(own, schema, scope), asked, schema, scope)
    if scores is None:
        note = "Too few mature labelled rows to learn from what a prediction is off by."
        return replace(found, note=note)
    errors = {
        name: [one.errors[name] for one in past if name in one.errors]
        for name in (metric.name, *names)
    }
    told = {name: known[name].interval(scores) for name in names}
    estimates = {
        name: clipped(widened(interval, errors[name]), known[name].bounds)
        for name, interval in told.items()
        if interval is not None
    }
    return replace(
        found,
        estimated=estimates.get(metric.name),
        estimates=estimates,
        record=record(errors[metric.name]),
        note="" if metric.name in estimates else f"{metric.name} is not estimated.",
    )


def _expected(
    new: Known, asked: Sequence[Metric], schema: Schema, scope: Scope
) -> tuple[Scores | None, list[Trial]]:
    """The rows with the truth that is to be expected, and how such estimates went."""
    target, found = schema.target, _known(schema, scope)
    if found is None:
        return expected([], [], new, asked[0]), []
    course, known = found
    past = trials(known, course, asked, target, least=scope.least, seed=scope.seed)
    end = micro(_end(scope))
    told = parts(course.memories(known, end), new, asked[0], target, scope.seed)
    return expected(told, weights(past, end - course.reach), new, asked[0]), past


def _known(schema: Schema, scope: Scope) -> tuple[Course, Known] | None:
    """The champion's labelled rows that are old enough, some of them where there are many; None
    where there can be none.
    """
    if scope.past is None or scope.window is None:
        return None
    end = _end(scope) - scope.lag
    delay = _end(scope) - scope.mature_until
    length = scope.window.length
    course = Course(micro(end), length // MICROSECOND, max(delay, timedelta(0)) // MICROSECOND)
    start = EPOCH + course.start * MICROSECOND
    if scope.since is not None:
        start = max(start, scope.since)
    if start >= end:
        return None
    held = Reservoir(KEPT, scope.seed)
    for part in scope.past(Window(start, end), _bare(schema)):
        held.add(_mine(part.filter(pc.is_valid(part.column("label"))), schema, scope))
    return course, _labelled(held.rows, schema, scope)


def _end(scope: Scope) -> datetime:
    return scope.mature_until if scope.window is None else scope.window.end


def _labelled(rows: pa.Table, schema: Schema, scope: Scope) -> Known:
    judged, _ = _judged(rows, schema)
    return Known(moments(judged), _scores(judged, schema, scope), encoded(judged, _bare(schema)))


def _unlabelled(rows: pa.Table, schema: Schema, scope: Scope) -> Known:
    output = outputs(rows, schema.target)
    scores = Scores(
        schema.target.task, output, output, _blocks(rows, scope), scope.threshold, labels=None
    )
    return Known(moments(rows), scores, encoded(rows, _bare(schema)))
