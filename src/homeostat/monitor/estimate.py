"""What the champion's metric will come to, told before the labels are there.

Takes rows that the champion predicted: mature ones with labels, to learn from, and new ones. Gives
the new rows with the truth that is to be expected, for `metrics` to measure, and a record of how
far earlier estimates were from what came true. All of it is computed from the journal's rows
alone, so that a replay and a second look come to the same.

What was learned from the newest few windows follows a stream that moves, what was learned from a
long time is steadier on one that does not; the record says how much each of the two weighs.

An estimate supposes that outcomes still follow from features and scores as they did on the rows it
learned from. It sees harder rows; a changed concept it cannot see.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from homeostat.monitor.metrics import Metric, Scores
from homeostat.monitor.small import trees
from homeostat.recalibrate import rescaled
from homeostat.records import Interval
from homeostat.schema import Target
from homeostat.stats import CONFIDENCE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]

MEMORIES = (4, 52)
"""Windows of mature labelled rows that each part of an estimate learns from."""

RECORD = 8
"""Windows in which earlier estimates are compared with what came true, at most."""

PROVEN = 5
"""Windows of such a record under which an estimate has no bounds, and so calls no harm."""

ENOUGH = 300
"""Labelled rows under which nothing is learned."""

RIDGE = 1.0  # of the map that calibrates, towards the identity
MOST = 10_000  # rows of a memory, taken evenly, that a map or a loss model is fitted on


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


Part: TypeAlias = "Floats | None"
"""What one memory expects of each row: shares of the classes, shape (rows, classes), or the loss of
a number, shape (rows,); None where it has under 300 rows."""


def parts(
    memories: Sequence[Known], new: Known, metric: Metric, target: Target, seed: int
) -> list[Part]:
    """What each of the `memories` expects of the rows `new`."""
    found: list[Part] = []
    for place, memory in enumerate(memories):
        # The memories of a young champion hold the same rows.
        same = place and len(memory.times) == len(memories[0].times)
        found.append(found[0] if same else _part(memory, new, metric, target, seed))
    return found


def _part(memory: Known, new: Known, metric: Metric, target: Target, seed: int) -> Part:
    """Classes: the probabilities, mapped by `recalibrate.rescaled` as fitted on `memory`. Numbers:
    what a small model of the absolute (metric `mae`) or squared residuals of `memory`, on features
    and prediction, says.
    """
    if len(memory.times) < ENOUGH:
        return None
    memory = memory.take(np.arange(0, len(memory.times), -(-len(memory.times) // MOST)))
    known, asked = memory.scores, new.scores
    if target.task != "regression":
        return rescaled(known.shares, known.truth, asked.shares, ridge=RIDGE)
    away = np.abs(known.output - known.truth) ** _power(metric)
    told = trees(_beside(memory), away, _beside(new), task="regression", seed=seed)
    return np.maximum(told, 0.0)


def _power(metric: Metric) -> int:
    return 1 if metric.name == "mae" else 2


def _beside(rows: Known) -> Floats:
    return np.column_stack([rows.scores.output, rows.features])


def expected(
    told: Sequence[Part], weights: Sequence[float], new: Known, metric: Metric
) -> Scores | None:
    """The scores of `new` with the truth that is to be expected; None where none can be told.

    `told` are its `parts`, of which the weighted mean is taken. Classes: each row's expected loss
    is its mean over those shares, or over the probabilities as they are where no part tells:
    confidence-based estimation (Guillory et al. 2021, ICCV; NannyML's CBPE). Numbers: a value as
    far from the prediction as the expected loss says.
    """
    known = [(one, weight) for one, weight in zip(told, weights, strict=True) if one is not None]
    scores = replace(new.scores, labels=None)
    if not known:
        return None if scores.task == "regression" else replace(scores, truth=scores.shares)
    total = sum(weight for _, weight in known)
    mean = np.sum([one * (weight / total) for one, weight in known], axis=0)
    if scores.task != "regression":
        return replace(scores, truth=mean)
    return replace(scores, truth=scores.output - mean ** (1 / _power(metric)))


@dataclass(frozen=True, slots=True)
class Course:
    """Where the windows of a record lie; all in microseconds."""

    end: int  # of the newest cohort whose labels have come
    window: int
    delay: int  # after which nearly all labels of a row have come

    @property
    def reach(self) -> int:
        """How long before its window's end what an estimate knows ends: at rows that were mature
        then, and none of that window.
        """
        return max(self.delay, self.window)

    @property
    def start(self) -> int:
        """The oldest row that any estimate of the record learns from."""
        return self.end - self.reach - (RECORD + max(MEMORIES)) * self.window

    def memories(self, known: Known, end: int) -> list[Known]:
        """What each part of an estimate of the window that ends at `end` learns from."""
        mature = end - self.reach
        return [known.between(mature - length * self.window, mature) for length in MEMORIES]


@dataclass(frozen=True, slots=True)
class Trial:
    """A past estimate, held against what came true; errors are estimate − truth."""

    end: int  # of its window
    errors: Mapping[str, float]  # by metric
    alone: tuple[float | None, ...]  # of the first metric, by each memory; None: it cannot tell


def trials(
    known: Known,
    course: Course,
    metrics: Sequence[Metric],
    target: Target,
    *,
    least: int,
    seed: int,
) -> list[Trial]:
    """Estimates of the newest eight disjoint mature windows with at least `least` labelled rows,
    oldest first, each from rows, and weighed by trials, that were mature at its end.
    """
    found: list[Trial] = []
    first = metrics[0]
    for number in reversed(range(RECORD)):
        end = course.end - number * course.window
        cohort = known.between(end - course.window, end)
        if len(cohort.times) < least:
            continue
        told = parts(course.memories(known, end), cohort, first, target, seed)
        both = expected(told, weights(found, end - course.reach), cohort, first)
        if both is None:
            continue
        errors = {metric.name: _error(metric, both, cohort) for metric in metrics}
        each = [expected([one], [1.0], cohort, first) if one is not None else None for one in told]
        alone = tuple(None if one is None else _error(first, one, cohort) for one in each)
        known_errors = {name: error for name, error in errors.items() if error is not None}
        found.append(Trial(end, known_errors, alone))
    return found


def _error(metric: Metric, told: Scores, cohort: Known) -> float | None:
    value, came = metric.value(told), metric.value(cohort.scores)
    return None if value is None or came is None else value - came


def weights(past: Sequence[Trial], until: int) -> list[float]:
    """How much each memory weighs: 1 / its mean squared error over the trials that ended by
    `until` and in which all could tell, and all the same where there is none (Bates and Granger
    1969, The combination of forecasts, Operational Research Quarterly 20).
    """
    errors = [one.alone for one in past if one.end <= until and None not in one.alone]
    if not errors:
        return [1.0] * len(MEMORIES)
    squares = np.mean(np.square(np.asarray(errors, dtype=float)), axis=0)
    return [1 / max(square, sys.float_info.min) for square in squares.tolist()]


def record(errors: Sequence[float]) -> Mapping[str, float]:
    """How the trials of a metric went: `windows` compared, and over them `error`, the mean absolute
    error, `bias`, the mean of estimate − truth, and `rms`, the root of the mean squared error, all
    in units of the metric.
    """
    count = len(errors)
    if not count:
        return {"windows": 0.0}
    return {
        "windows": float(count),
        "error": math.fsum(map(abs, errors)) / count,
        "bias": math.fsum(errors) / count,
        "rms": math.sqrt(math.fsum(error**2 for error in errors) / count),
    }


def widened(found: Interval, errors: Sequence[float]) -> Interval:
    """The interval with what the trials say of an estimate's own error: √(reach² + (t · rms)²),
    t of Student's t with as many degrees of freedom as trials. No bounds under five of them: the
    blocks of a window know nothing of that error.
    """
    if found.low is None or found.high is None or len(errors) < PROVEN:
        return replace(found, low=None, high=None)
    from scipy import special

    error = record(errors)["rms"] * float(special.stdtrit(len(errors), (1 + CONFIDENCE) / 2))
    low = found.value - math.hypot(found.value - found.low, error)
    return replace(found, low=low, high=found.value + math.hypot(found.high - found.value, error))
