"""Staleness: what the champion's age costs, as two small models tell it. Information only.

A metric that drops may be weather. So one small, cheap model is fitted on rows from before the
champion's cut-off and a twin of it on the newest rows, and both are asked about rows newer than
both. Takes labelled rows of the journal and an engine in whose child the models are fitted; gives
the gap between the two with an interval, or the reason why there is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from homeostat.contracts import Engine
from homeostat.errors import cause
from homeostat.monitor.jackknife import Groups, leaving
from homeostat.monitor.metrics import Metric, Scores, chosen
from homeostat.monitor.small import Past, encoded, trees
from homeostat.profile import moments
from homeostat.records import MICROSECOND, Interval, Staleness, Task, Window
from homeostat.reservoir import Reservoir
from homeostat.schema import Schema
from homeostat.stats import BlockMean

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]

LEARNED = 4
"""Windows of rows that a twin learns from."""

MOST = 10_000
"""Rows of them, drawn where there are more, and rows that the twins are asked about."""

FEWEST = 300
"""Rows under which no twin is fitted."""


@dataclass(frozen=True, slots=True)
class Twins:
    """When the two learn and are asked, and how the gap is measured."""

    cutoff: datetime  # the champion was fitted on rows before
    mature_until: datetime  # younger rows lack labels
    window: Window
    delay: timedelta  # after which nearly all labels of a row have come
    block: timedelta
    metric: str = "loss"
    threshold: float = 0.5
    seed: int = 0
    least: int = 30  # rows to ask about


@dataclass(frozen=True, slots=True)
class _Part:
    features: Floats
    labels: NDArray[Any]
    blocks: NDArray[np.int64]


def staleness(past: Past, schema: Schema, twins: Twins, engine: Engine) -> Staleness:
    """The twins' gap on the newest mature rows as long as the window; never raises.

    `gain` is the metric of the twin of the champion's age less that of the new one, turned so that
    above 0 the newer one is better. Both are 30 trees of depth 3, fitted on at most 10,000 labelled
    rows of four windows: those that end at the cut-off, and those whose labels had come when the
    asked rows began. A mean metric has the interval of `stats.BlockMean` over paired differences,
    any other one that of `jackknife.jackknife`.
    """
    try:
        return _told(past, schema, twins, engine)
    except Exception as error:  # noqa: BLE001 - fails closed: no gain, and why
        return Staleness(None, None, None, reason=f"The twins failed: {cause(error)}")


def _told(past: Past, schema: Schema, twins: Twins, engine: Engine) -> Staleness:
    metric = chosen(twins.metric, schema.target.task)
    end = min(twins.window.end, twins.mature_until)
    asked = Window(end - twins.window.length, end)
    newest = asked.start - twins.delay
    if newest <= twins.cutoff:
        return _none(metric, "The asked rows leave no mature row newer than the champion.")
    reach = LEARNED * twins.window.length
    judged = _part(past, asked, schema, twins)
    if len(judged.blocks) < twins.least:
        return _none(metric, f"{len(judged.blocks)} labelled rows are too few to ask about.")
    parts = []
    for name, moment in (("older", twins.cutoff), ("newer", newest)):
        part = _part(past, Window(moment - reach, moment), schema, twins)
        if len(part.blocks) < FEWEST or _one_class(part, schema):
            return _none(metric, f"{len(part.blocks)} labelled rows do not make the {name} twin.")
        parts.append((part.features, _targets(part, schema)))
    task, classes = schema.target.task, len(schema.target.classes)
    outputs = engine.run(
        answers, parts, judged.features, task=task, classes=classes, seed=twins.seed
    )
    found = [
        Scores.of(output, judged.labels, judged.blocks, schema.target, twins.threshold)
        for output in outputs
    ]
    gap = gain(found[0], found[1], metric)
    if gap is None:
        return _none(metric, f"The rows do not define {metric.name}.")
    return Staleness(gap.value, gap.low, gap.high, gap.rows, gap.blocks, metric.name)


def answers(
    parts: list[tuple[Floats, Floats]], asked: Floats, *, task: Task, classes: int, seed: int
) -> list[Floats]:
    """What a small model of each part says of `asked`, as `Scorer.output` gives it."""
    return [trees(*part, asked, task=task, classes=classes, seed=seed) for part in parts]


def gain(old: Scores, new: Scores, metric: Metric) -> Interval | None:
    """How much worse `old` is than `new` on the same rows, in the metric, with its interval."""
    sign = -1.0 if metric.greater else 1.0
    if metric.rows is not None and not metric.root:
        differences = sign * (metric.rows(old) - metric.rows(new))
        return BlockMean.of(differences, old.blocks).interval()

    def figure(rows: NDArray[np.bool_]) -> float | None:
        pair = metric.value(old.take(rows)), metric.value(new.take(rows))
        return None if pair[0] is None or pair[1] is None else sign * (pair[0] - pair[1])

    return leaving(figure, Groups(old.blocks))


def _none(metric: Metric, reason: str) -> Staleness:
    return Staleness(None, None, None, metric=metric.name, reason=reason)


def _part(past: Past, window: Window, schema: Schema, twins: Twins) -> _Part:
    """The labelled rows of a window, at most `MOST` of them; memory stays bounded."""
    held = Reservoir(MOST, twins.seed)
    for piece in past(window, schema):
        rows = piece.filter(pc.is_valid(piece.column("label")))
        if schema.target.task != "regression":
            known = pa.array(schema.target.classes, pa.string())
            rows = rows.filter(pc.is_in(rows.column("label"), known))
        held.add(rows)
    kept = held.rows
    blocks = np.asarray(moments(kept) // (twins.block // MICROSECOND))
    return _Part(encoded(kept, schema), schema.labels(kept), blocks)


def _targets(part: _Part, schema: Schema) -> Floats:
    """Labels as places of the schema's classes, or as numbers."""
    if schema.target.task == "regression":
        return part.labels.astype(float)
    places = {schema.target.value(text): i for i, text in enumerate(schema.target.classes)}
    return np.asarray([places[label] for label in part.labels.tolist()], dtype=float)


def _one_class(part: _Part, schema: Schema) -> bool:
    return schema.target.task != "regression" and len(set(part.labels.tolist())) < 2
