"""What the champion's metric will come to, told before the labels are there.

Takes rows that the champion predicted: mature ones with labels, to learn from, and new ones. Gives
the new rows with the truth that is to be expected, for `metrics` to measure, and a record of how
far earlier estimates were from what came true. All of it is computed from the journal's rows
alone, so that a replay and a second look come to the same.

An estimate supposes that outcomes still follow from features and scores as they did on the rows it
learned from. It sees harder rows; a changed concept it cannot see.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from homeostat.monitor.metrics import Metric, Scores
from homeostat.monitor.small import trees
from homeostat.recalibrate import fit_calibrator
from homeostat.records import Interval
from homeostat.schema import Target
from homeostat.stats import CONFIDENCE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]

LEARNED = 4
"""Windows of mature labelled rows that an estimate learns from."""

RECORD = 8
"""Windows in which earlier estimates are compared with what came true, at most."""

PROVEN = 5
"""Windows of such a record under which an estimate calls no harm."""

ENOUGH = 300
"""Labelled rows under which probabilities are taken as they are, and no loss model is fitted."""

RIDGE = 1.0  # of the map that calibrates, towards the identity
MOST = 10_000  # rows that a loss model is fitted on


@dataclass(frozen=True, slots=True)
class Known:
    """Rows that the champion predicted, in order of time."""

    times: NDArray[np.int64]  # (rows,), microseconds since 1970
    scores: Scores  # with the labels as truth
    features: Floats  # (rows, columns), as `small.encoded`; no columns but of a regression

    def between(self, start: int, end: int) -> Known:
        """The rows with start ≤ time < end."""
        return self.take((self.times >= start) & (self.times < end))

    def take(self, rows: NDArray[Any]) -> Known:
        return Known(self.times[rows], self.scores.take(rows), self.features[rows])


def expected(
    learned: Known, new: Known, metric: Metric, target: Target, seed: int
) -> Scores | None:
    """The scores of `new` with the truth that is to be expected; None where none can be told.

    Classes: the probabilities, mapped by `recalibrate.fit_calibrator` as fitted on `learned`, or
    as they are under 300 rows. Each row's expected loss is then its mean over those shares:
    confidence-based estimation (Guillory et al. 2021, ICCV; NannyML's CBPE). Numbers: a value as
    far from the prediction as a small model of the absolute (metric `mae`) or squared residuals
    of `learned` on features and prediction says; None under 300 rows.
    """
    if target.task == "regression":
        return _distant(learned, new, metric, seed)
    told = replace(new.scores, labels=None)
    output = new.scores.output
    if len(learned.times) >= ENOUGH and learned.scores.labels is not None:
        known = learned.scores
        chart = fit_calibrator(known.output, learned.scores.labels, target, ridge=RIDGE)
        output = chart.apply(output, target)
    return replace(told, truth=replace(told, output=output).shares)


def _distant(learned: Known, new: Known, metric: Metric, seed: int) -> Scores | None:
    if len(learned.times) < ENOUGH:
        return None
    step = -(-len(learned.times) // MOST)
    learned = learned.take(np.arange(0, len(learned.times), step))
    away = np.abs(learned.scores.output - learned.scores.truth)
    power = 1 if metric.name == "mae" else 2
    told = trees(_beside(learned), away**power, _beside(new), task="regression", seed=seed)
    told = np.maximum(told, 0.0)
    distance = told if power == 1 else np.sqrt(told)
    return replace(new.scores, truth=new.scores.output - distance, labels=None)


def _beside(rows: Known) -> Floats:
    return np.column_stack([rows.scores.output, rows.features])


@dataclass(frozen=True, slots=True)
class Course:
    """Where the windows of a record lie; all in microseconds."""

    end: int  # of the newest cohort whose labels have come
    window: int
    delay: int  # after which nearly all labels of a row have come

    @property
    def start(self) -> int:
        """The oldest row that any estimate of the record learns from."""
        return self.end - max(self.delay, self.window) - (RECORD + LEARNED) * self.window

    def learned(self, known: Known, end: int) -> Known:
        """What an estimate of the window that ends at `end` learns from: rows that were mature
        then, and none of that window.
        """
        mature = end - max(self.delay, self.window)
        return known.between(mature - LEARNED * self.window, mature)


def record(
    known: Known, course: Course, metric: Metric, target: Target, *, least: int, seed: int
) -> Mapping[str, float]:
    """How estimates of the metric, each of a disjoint window and from rows that were mature at its
    end, compare with what came true on the same rows.

    `windows` compared (of the newest eight, those with at least `least` labelled rows), and over
    them `error`, the mean absolute error, `bias`, the mean of estimate − truth, and `rms`, the
    root of the mean squared error, all in units of the metric.
    """
    errors = []
    for number in range(RECORD):
        end = course.end - number * course.window
        cohort = known.between(end - course.window, end)
        if len(cohort.times) < least:
            continue
        scores = expected(course.learned(known, end), cohort, metric, target, seed)
        told = None if scores is None else metric.value(scores)
        came = metric.value(cohort.scores)
        if told is not None and came is not None:
            errors.append(told - came)
    if not errors:
        return {"windows": 0.0}
    count = len(errors)
    return {
        "windows": float(count),
        "error": math.fsum(map(abs, errors)) / count,
        "bias": math.fsum(errors) / count,
        "rms": math.sqrt(math.fsum(e * e for e in errors) / count),
    }


def widened(found: Interval, past: Mapping[str, float]) -> Interval:
    """The interval with what the record says of an estimate's own error: √(reach² + (t · rms)²),
    t of Student's t with blocks − 1 degrees of freedom; unchanged without bounds or a record.
    """
    if found.low is None or found.high is None or not past.get("windows"):
        return found
    from scipy import special

    error = past["rms"] * float(special.stdtrit(found.blocks - 1, (1 + CONFIDENCE) / 2))
    low = found.value - math.hypot(found.value - found.low, error)
    return replace(found, low=low, high=found.value + math.hypot(found.high - found.value, error))
