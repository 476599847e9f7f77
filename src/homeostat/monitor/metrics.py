"""Metrics of predictions against what came true, each with an interval over blocks of time.

Takes the outputs of a model, the truth as shares of the classes or as numbers, and the block of
each row. Gives an Interval by metric. Truth may be labels (one class has the share 1) or expected
shares, so that what labels say and what is estimated without them come from the same formulas.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from homeostat.errors import SchemaError, SettingsError
from homeostat.monitor.jackknife import Groups, auc, jackknife, leaving
from homeostat.records import Interval, Task
from homeostat.schema import Target
from homeostat.scoring import CLIP
from homeostat.stats import BlockMean

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]

GROUP = "homeostat.metrics"
"""Entry points under which a package offers metrics of its own."""

BINS = 10
"""Bins of equal width of the calibration error."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Predictions and truth of the same rows."""

    task: Task
    output: Floats  # (rows,) of binary and regression, (rows, classes) of multiclass; `Scorer`
    truth: Floats  # (rows, classes), shares that sum to 1; (rows,) of a regression
    blocks: NDArray[np.int64]  # (rows,); rows of one number are alike
    threshold: float = 0.5  # a binary model says yes above it
    labels: NDArray[Any] | None = None  # as `Schema.labels`, for the user's own metric

    @classmethod
    def of(
        cls,
        output: Floats,
        labels: NDArray[Any],
        blocks: NDArray[np.int64],
        target: Target,
        threshold: float = 0.5,
    ) -> Scores:
        """With labels as truth; each must be a class of `target`."""
        if target.task == "regression":
            return cls(target.task, output, labels.astype(float), blocks, threshold, labels)
        places = {target.value(text): place for place, text in enumerate(target.classes)}
        index = [places[label] for label in labels.tolist()]
        truth = np.eye(len(target.classes))[index]
        return cls(target.task, output, truth, blocks, threshold, labels)

    def take(self, rows: NDArray[Any]) -> Scores:
        labels = None if self.labels is None else self.labels[rows]
        parts = {"truth": self.truth[rows], "blocks": self.blocks[rows], "labels": labels}
        return replace(self, output=self.output[rows], **parts)

    @property
    def shares(self) -> Floats:
        """The probability of each class, shape (rows, classes)."""
        if self.task == "multiclass":
            return self.output
        return np.column_stack([1 - self.output, self.output])

    @property
    def said(self) -> NDArray[np.int64]:
        """The place of the predicted class, shape (rows,)."""
        if self.task == "multiclass":
            return np.asarray(self.output.argmax(axis=1))
        return np.asarray(self.output > self.threshold).astype(np.int64)


Rows: TypeAlias = Callable[[Scores], "Floats"]
Terms: TypeAlias = Callable[[Scores], "list[Floats]"]
Figure: TypeAlias = Callable[["Floats"], "float | None"]
Whole: TypeAlias = Callable[[Scores], "float | None"]


@dataclass(frozen=True, slots=True)
class Summed:
    """A figure of sums over rows: of each of `terms`, shape (rows,), which `figure` takes in one
    array of shape (terms,).
    """

    terms: Terms
    figure: Figure

    def value(self, scores: Scores) -> float | None:
        return self.figure(np.array([_total(term) for term in self.terms(scores)]))

    def without(self, scores: Scores, groups: Groups) -> list[float | None]:
        return groups.without(self.terms(scores), self.figure)


class Ranked:
    """P(a positive scores above a negative) + ½·P(equal); multiclass: the mean of each class
    against the rest (Fawcett 2006, Pattern Recognition Letters 27). None without both.
    """

    def value(self, scores: Scores) -> float | None:
        return _mean([auc(*side) for side in self._sides(scores)])

    def without(self, scores: Scores, groups: Groups) -> list[float | None]:
        each = [groups.auc_without(*side) for side in self._sides(scores)]
        return [_mean(left) for left in zip(*each, strict=True)]

    def _sides(self, scores: Scores) -> list[tuple[Floats, Floats]]:
        if scores.task == "binary":
            return [(scores.output, scores.truth[:, 1])]
        return list(zip(scores.output.T, scores.truth.T, strict=True))


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure over rows: the mean of `rows`, or what `parts` or `whole` make of them."""

    name: str
    rows: Rows | None = None
    parts: Summed | Ranked | None = None
    whole: Whole | None = None  # of which nothing is known
    root: bool = False  # of the mean
    greater: bool = False  # greater is better
    bounds: tuple[float, float] = (-math.inf, math.inf)

    def value(self, scores: Scores) -> float | None:
        """None where the rows do not define it, as an AUC of one class."""
        if not len(scores.blocks):
            return None
        if self.rows is not None:
            mean = _total(self.rows(scores)) / len(scores.blocks)
            return math.sqrt(mean) if self.root else mean
        if self.parts is not None:
            return self.parts.value(scores)
        if self.whole is None:
            raise SchemaError(f"the metric {self.name!r} has no formula.")
        return self.whole(scores)

    def interval(self, scores: Scores) -> Interval | None:
        """The value with its 95 % interval; None where the rows do not define it.

        A mean has that of `stats.BlockMean`, a root mean square the roots of its bounds, any
        other figure that of `jackknife.jackknife`. There are no bounds under five blocks.
        """
        if not len(scores.blocks):
            return None
        if self.rows is not None:
            mean = BlockMean.of(self.rows(scores), scores.blocks).interval()
            return clipped(_root(mean) if self.root else mean, self.bounds)
        groups, parts = Groups(scores.blocks), self.parts
        if parts is None:
            found = leaving(lambda rows: self.value(scores.take(rows)), groups)
        else:
            found = jackknife(self.value(scores), lambda: parts.without(scores, groups), groups)
        return None if found is None else clipped(found, self.bounds)


def metrics_of(task: Task) -> Mapping[str, Metric]:
    """The metrics of a task by name; the first one is its loss."""
    return {metric.name: metric for metric in (NUMBERS if task == "regression" else CLASSES)}


def chosen(name: str, task: Task) -> Metric:
    """The metric of that name; "loss" is log loss or RMSE, any other name an entry point's.

    Raises SettingsError for a name that neither this task nor an installed package knows.
    """
    own = metrics_of(task)
    if name == "loss":
        return next(iter(own.values()))
    if name in own:
        return own[name]
    for entry in entry_points(group=GROUP, name=name):
        return brought(name, entry.load())
    raise SettingsError(
        f"monitor.metric {name!r} is no metric of a {task} model.",
        hint=f"Name loss, {', '.join(own)}, or an entry point of the group {GROUP}.",
    )


def brought(name: str, function: Callable[..., float]) -> Metric:
    """The user's metric: `function(labels, scores)`, both of shape (rows, …), gives one number.

    `labels` are in the type of the target, `scores` as `Scorer.output` gives them. A parameter
    `threshold` gets `monitor.decision_threshold`. It is a cost, of which less is better, unless
    the function has an attribute `greater_is_better` that is true. Raises SchemaError for
    anything but a finite number.
    """
    wants = "threshold" in inspect.signature(function).parameters

    def whole(scores: Scores) -> float | None:
        if scores.labels is None:
            return None
        more = {"threshold": scores.threshold} if wants else {}
        value = float(function(scores.labels, scores.output, **more))
        if not math.isfinite(value):
            raise SchemaError(f"the metric {name!r} gave {value}, not a finite number.")
        return value

    return Metric(name, whole=whole, greater=bool(getattr(function, "greater_is_better", False)))


def _log_loss(scores: Scores) -> Floats:
    """−Σ_k y_k · ln p_k, p clipped to [1e-15, 1 − 1e-15]; y are shares of the classes."""
    logs = -np.log(np.clip(scores.shares, CLIP, 1 - CLIP))
    return np.asarray((scores.truth * logs).sum(axis=1))


def _brier(scores: Scores) -> Floats:
    """Binary: E(p − y)². Multiclass: Σ_k E(p_k − y_k)². Brier (1950), Monthly Weather Review 78.

    For an expected share q of class k: E(p_k − y_k)² = q·(1 − p_k)² + (1 − q)·p_k².
    """
    p, q = scores.shares, scores.truth
    each = q * (1 - p) ** 2 + (1 - q) * p**2
    return np.asarray(each[:, 1] if scores.task == "binary" else each.sum(axis=1))


def _accuracy(scores: Scores) -> Floats:
    return np.asarray(scores.truth[np.arange(len(scores.said)), scores.said])


def _mean(each: Sequence[float | None]) -> float | None:
    """None where one of them is."""
    known = [one for one in each if one is not None]
    return math.fsum(known) / len(known) if len(known) == len(each) else None


def _hits(scores: Scores) -> list[Floats]:
    """For each class TP, and behind all of them for each class 2·TP + FP + FN; of a binary model
    for the positive one alone.
    """
    said, true = np.eye(scores.truth.shape[1])[scores.said], scores.truth
    if scores.task == "binary":
        said, true = said[:, 1:], true[:, 1:]
    return [*(said * true).T, *(said + true).T]


def _f1(sums: Floats) -> float | None:
    """The mean of 2·TP / (2·TP + FP + FN) over classes that are said or true (macro)."""
    hits, totals = np.split(sums, 2)
    each = [2 * hit / total for hit, total in zip(hits, totals, strict=True) if total > 0]
    return math.fsum(each) / len(each) if each else None


def _gaps(scores: Scores) -> list[Floats]:
    """For each of ten equal bins of p: p − y, 0 outside of it; and 1 for each row. p is that of the
    positive class, or of the predicted one of a multiclass model.
    """
    said = np.ones(len(scores.said), int) if scores.task == "binary" else scores.said
    rows = np.arange(len(said))
    p, y = scores.shares[rows, said], scores.truth[rows, said]
    bins = np.clip(np.ceil(p * BINS).astype(int) - 1, 0, BINS - 1)
    return [*(np.where(bins == one, p - y, 0.0) for one in range(BINS)), np.ones(len(p))]


def _calibration_error(sums: Floats) -> float | None:
    """Σ over bins |Σ p − Σ y| / n: the expected calibration error (Naeini et al. 2015, AAAI). It is
    biased upwards by Σ √n_bin, the more so the fewer rows there are.
    """
    rows = float(sums[-1])
    return math.fsum(np.abs(sums[:-1]).tolist()) / rows if rows else None


def _squares(scores: Scores) -> list[Floats]:
    """(y − ŷ)², y − m and its square, 1; m is the mean of all y, since a difference of large sums
    would lose what is small.
    """
    apart = scores.truth - _total(scores.truth) / max(len(scores.truth), 1)
    return [_squared(scores), apart, apart**2, np.ones(len(apart))]


def _r2(sums: Floats) -> float | None:
    """1 − Σ (y − ŷ)² / Σ (y − ȳ)²; None where all labels are equal."""
    left, apart, squares, rows = sums.tolist()
    spread = squares - apart**2 / rows if rows else 0.0
    return 1 - left / spread if spread > 0 else None


def _squared(scores: Scores) -> Floats:
    return np.asarray((scores.output - scores.truth) ** 2)


def _absolute(scores: Scores) -> Floats:
    return np.asarray(np.abs(scores.output - scores.truth))


UNIT = (0.0, 1.0)
CLASSES = (
    Metric("log_loss", rows=_log_loss, bounds=(0.0, math.inf)),
    Metric("brier", rows=_brier, bounds=(0.0, 2.0)),
    Metric("accuracy", rows=_accuracy, greater=True, bounds=UNIT),
    Metric("auc", parts=Ranked(), greater=True, bounds=UNIT),
    Metric("f1", parts=Summed(_hits, _f1), greater=True, bounds=UNIT),
    Metric("calibration_error", parts=Summed(_gaps, _calibration_error), bounds=UNIT),
)
NUMBERS = (
    Metric("rmse", rows=_squared, root=True),
    Metric("mae", rows=_absolute, bounds=(0.0, math.inf)),
    Metric("r2", parts=Summed(_squares, _r2), greater=True, bounds=(-math.inf, 1.0)),
)
ESTIMATED = ("log_loss", "brier", "accuracy", "auc", "f1")
"""What shares of classes tell of labels that are not there; a calibration error they cannot."""


def _total(values: Floats) -> float:
    """Exactly rounded, so that the order of the rows does not matter."""
    return math.fsum(values.tolist())


def _root(mean: Interval) -> Interval:
    """The interval of a root mean square from that of a mean square."""
    low = None if mean.low is None else math.sqrt(max(mean.low, 0.0))
    high = None if mean.high is None else math.sqrt(max(mean.high, 0.0))
    return replace(mean, value=math.sqrt(mean.value), low=low, high=high)


def clipped(found: Interval, bounds: tuple[float, float]) -> Interval:
    """The interval as far as a metric can go."""
    if found.low is None or found.high is None:
        return found
    return replace(found, low=max(found.low, bounds[0]), high=min(found.high, bounds[1]))
