"""Performance: what the champion's predictions came to on rows whose label has come.

Takes the rows of a window, their journalled predictions and labels, and the loss that the release
had when it was judged. Gives the realised loss with an interval that knows rows of the same block
to be alike, and whether the model got worse: yes, no, or not to be told yet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from homeostat.errors import SchemaError
from homeostat.profile import moments
from homeostat.records import Hurts, Interval, Performance
from homeostat.schema import TIMESTAMP, Schema
from homeostat.scoring import losses, outputs
from homeostat.stats import BlockMean

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]

MARGIN = 0.02  # a loss this much above the baseline, as a share of it, is not called harm


@dataclass(frozen=True, slots=True)
class Scope:
    """Which rows are judged, and how."""

    release: str  # only rows that this one predicted
    mature_until: datetime  # only rows that occurred before: younger ones are a biased sample
    block: timedelta
    baseline: Interval | None


def performance(rows: pa.Table, schema: Schema, scope: Scope) -> Performance:
    """The champion's mean log loss or RMSE on the labelled mature rows that it predicted, with the
    interval of `stats.BlockMean`.

    `extra` holds `auc` (both classes present), `accuracy` and `brier` of a binary model,
    `accuracy` of a multiclass one, `mae` of a regression, and `unknown_labels`, rows left out
    because their label is no class of the model. Raises SchemaError where a loss is not finite.
    """
    metric = "rmse" if schema.target.task == "regression" else "log_loss"
    judged, unknown = _judged(rows, schema, scope)
    extra = {"unknown_labels": float(unknown)} if unknown else {}
    if not judged.num_rows:
        return Performance(metric, None, scope.baseline, extra)
    output = outputs(judged, schema.target)
    labels = schema.labels(judged)
    loss = losses(output, labels, schema.target)
    if not np.isfinite(loss).all():
        raise SchemaError("the loss of the journalled predictions is not finite.")
    blocks = moments(judged) // (scope.block // timedelta(microseconds=1))
    realised = BlockMean.of(loss, blocks).interval()
    if metric == "rmse":
        realised = _root(realised)
    extra |= _extra(output, labels, schema)
    return Performance(metric, realised, scope.baseline, extra)


def hurts(performance: Performance) -> Hurts:
    """Whether the realised loss lies above the baseline, both with their intervals.

    Yes: even its lower bound is above the baseline by more than `MARGIN` and above the
    baseline's own upper bound. No: even its upper bound is not above the baseline by more than
    `MARGIN`. Unknown: everything else, and wherever one of the two is missing.
    """
    realised, baseline = performance.realised, performance.baseline
    if realised is None or baseline is None or realised.low is None or realised.high is None:
        return Hurts.UNKNOWN
    bound = baseline.value * (1 + MARGIN)
    if realised.low > bound and (baseline.high is None or realised.low > baseline.high):
        return Hurts.YES
    return Hurts.NO if realised.high <= bound else Hurts.UNKNOWN


def _judged(rows: pa.Table, schema: Schema, scope: Scope) -> tuple[pa.Table, int]:
    """The rows to judge, and how many carry a label that is no class of the model."""
    if "label" not in rows.column_names:
        return rows.slice(0, 0), 0
    mature = pc.less(rows.column("occurred_at"), pa.scalar(scope.mature_until, TIMESTAMP))
    own = pc.equal(rows.column("model_version"), scope.release)
    labelled = pc.is_valid(rows.column("label"))
    ours = rows.filter(pc.and_(pc.and_(mature, own), labelled))
    if schema.target.task == "regression":
        return ours, 0
    known = ours.filter(pc.is_in(ours.column("label"), pa.array(schema.target.classes)))
    return known, ours.num_rows - known.num_rows


def _root(mean: Interval) -> Interval:
    """The interval of a root mean square from that of a mean square."""
    low = None if mean.low is None else float(np.sqrt(max(mean.low, 0.0)))
    high = None if mean.high is None else float(np.sqrt(mean.high))
    return Interval(float(np.sqrt(mean.value)), low, high, mean.rows, mean.blocks)


def _extra(output: Floats, labels: NDArray[Any], schema: Schema) -> dict[str, float]:
    target = schema.target
    if target.task == "regression":
        return {"mae": _mean(np.abs(output - labels))}
    classes = [target.value(text) for text in target.classes]
    best = output > 0.5 if target.task == "binary" else output.argmax(axis=1)
    said = [classes[place] for place in best.astype(int)]
    right = [a == b for a, b in zip(said, labels.tolist(), strict=True)]
    extra = {"accuracy": float(np.mean(right))}
    if target.task == "binary":
        positive = np.array([label == classes[1] for label in labels.tolist()])
        extra["brier"] = _mean((output - positive) ** 2)
        if positive.any() and not positive.all():
            extra["auc"] = _auc(output, positive)
    return extra


def _mean(values: Floats) -> float:
    """Exactly rounded, so that the order of the rows does not matter."""
    return math.fsum(values.tolist()) / len(values)


def _auc(output: Floats, positive: NDArray[np.bool_]) -> float:
    """P(a positive scores above a negative) + ½·P(equal), the Mann-Whitney U over its maximum."""
    _, place, counts = np.unique(output, return_inverse=True, return_counts=True)
    # The mean rank of the rows with equal scores.
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    hits = int(positive.sum())
    u = ranks[positive].sum() - hits * (hits + 1) / 2
    return float(u / (hits * (len(output) - hits)))
