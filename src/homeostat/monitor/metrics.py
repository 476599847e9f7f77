"""Metrics of predictions against what came true, each with an interval over blocks of time.

Takes the outputs of a model, the truth as shares of the classes or as numbers, and the block of
each row. Gives an Interval by metric. Truth may be labels (one class has the share 1) or expected
shares, so that what labels say and what is estimated without them come from the same formulas.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from homeostat.errors import SchemaError, SettingsError
from homeostat.records import Interval, Task
from homeostat.schema import Target
from homeostat.scoring import CLIP
from homeostat.stats import CONFIDENCE, FEWEST, BlockMean

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]

GROUP = "homeostat.metrics"
"""Entry points under which a package offers metrics of its own."""

GROUPS = 60
"""Most groups of neighbouring blocks that a jackknife leaves out in turn."""

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
Whole: TypeAlias = Callable[[Scores], "float | None"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure over rows: the mean of `rows`, or `whole` where it is no mean."""

    name: str
    rows: Rows | None = None
    whole: Whole | None = None
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
        if self.whole is None:
            raise SchemaError(f"the metric {self.name!r} has no formula.")
        return self.whole(scores)

    def interval(self, scores: Scores) -> Interval | None:
        """The value with its 95 % interval; None where the rows do not define it.

        A mean has that of `stats.BlockMean`, a root mean square the roots of its bounds, any
        other figure that of `jackknife`. There are no bounds under five blocks.
        """
        if not len(scores.blocks):
            return None
        if self.rows is not None:
            mean = BlockMean.of(self.rows(scores), scores.blocks).interval()
            return clipped(_root(mean) if self.root else mean, self.bounds)
        found = jackknife(lambda rows: self.value(scores.take(rows)), scores.blocks)
        return None if found is None else clipped(found, self.bounds)


def jackknife(
    figure: Callable[[NDArray[np.bool_]], float | None], numbers: NDArray[np.int64]
) -> Interval | None:
    """A figure that is no mean, with an interval from leaving out each block in turn.

    `figure` tells it of the rows that a mask of shape (rows,) chooses, None where they do not
    define it; `numbers` is the block of each row. With θ the figure of all rows, θ_b that without
    block b, θ. the mean of all θ_b, B blocks: SE² = (B−1)/B · Σ (θ_b − θ.)², and θ ± t · SE with
    B − 1 degrees of freedom. The delete-a-group jackknife, with blocks of time for groups: Shao
    and Tu (1995), The Jackknife and Bootstrap, §2.3; Künsch (1989), Annals of Statistics 17.
    More than 60 blocks are first joined with their neighbours. No bounds under five blocks, or
    where the rows without some block do not define the figure.
    """
    names, places = np.unique(numbers, return_inverse=True)
    rows, blocks = len(numbers), len(names)
    value = figure(np.ones(rows, bool))
    if value is None:
        return None
    if blocks < FEWEST:
        return Interval(value, None, None, rows, blocks)
    from scipy import special

    groups = min(blocks, GROUPS)
    group = places * groups // blocks
    without = [figure(group != number) for number in range(groups)]
    left = [one for one in without if one is not None]
    if len(left) < groups:
        return Interval(value, None, None, rows, blocks)
    mean = math.fsum(left) / groups
    error = math.sqrt((groups - 1) / groups * math.fsum((one - mean) ** 2 for one in left))
    reach = float(special.stdtrit(groups - 1, (1 + CONFIDENCE) / 2)) * error
    return Interval(value, value - reach, value + reach, rows, blocks)


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


def _auc(scores: Scores) -> float | None:
    """P(a positive scores above a negative) + ½·P(equal); multiclass: the mean of each class
    against the rest (Fawcett 2006, Pattern Recognition Letters 27). None without both.
    """
    if scores.task == "binary":
        return _ranked(scores.output, scores.truth[:, 1])
    each = [_ranked(p, y) for p, y in zip(scores.output.T, scores.truth.T, strict=True)]
    known = [one for one in each if one is not None]
    return math.fsum(known) / len(known) if len(known) == len(each) else None


def _ranked(output: Floats, positive: Floats) -> float | None:
    """Σ over scores of positives · (negatives below + ½ · negatives equal) / (all pairs)."""
    _, place = np.unique(output, return_inverse=True)
    hits = np.bincount(place, positive)
    misses = np.bincount(place, 1 - positive)
    below = np.cumsum(misses) - misses / 2
    pairs = float(hits.sum() * misses.sum())
    return float(hits @ below) / pairs if pairs > 0 else None


def _f1(scores: Scores) -> float | None:
    """2·TP / (2·TP + FP + FN) of the positive class; multiclass: the mean over classes that are
    said or true (macro). None where there is none.
    """
    said = np.eye(scores.truth.shape[1])[scores.said]
    hits = [_total(column) for column in (said * scores.truth).T]
    sums = [_total(a) + _total(b) for a, b in zip(said.T, scores.truth.T, strict=True)]
    each = [2 * hit / total for hit, total in zip(hits, sums, strict=True) if total > 0]
    if scores.task == "binary":
        return 2 * hits[1] / sums[1] if sums[1] > 0 else None
    return math.fsum(each) / len(each)


def _calibration_error(scores: Scores) -> float | None:
    """Σ over ten equal bins of p: |Σ p − Σ y| / n, where p is P(positive), or of the predicted
    class of a multiclass model (expected calibration error; Naeini et al. 2015, AAAI). It is
    biased upwards by Σ √n_bin, the more so the fewer rows there are.
    """
    said = np.ones(len(scores.said), int) if scores.task == "binary" else scores.said
    rows = np.arange(len(said))
    p, y = scores.shares[rows, said], scores.truth[rows, said]
    bins = np.clip(np.ceil(p * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = [abs(_total((p - y)[bins == one])) for one in np.unique(bins)]
    return math.fsum(gaps) / len(p)


def _r2(scores: Scores) -> float | None:
    """1 − Σ (y − ŷ)² / Σ (y − ȳ)²; None where all labels are equal."""
    mean = _total(scores.truth) / len(scores.truth)
    spread = _total((scores.truth - mean) ** 2)
    return 1 - _total(_squared(scores)) / spread if spread > 0 else None


def _squared(scores: Scores) -> Floats:
    return np.asarray((scores.output - scores.truth) ** 2)


def _absolute(scores: Scores) -> Floats:
    return np.asarray(np.abs(scores.output - scores.truth))


UNIT = (0.0, 1.0)
CLASSES = (
    Metric("log_loss", rows=_log_loss, bounds=(0.0, math.inf)),
    Metric("brier", rows=_brier, bounds=(0.0, 2.0)),
    Metric("accuracy", rows=_accuracy, greater=True, bounds=UNIT),
    Metric("auc", whole=_auc, greater=True, bounds=UNIT),
    Metric("f1", whole=_f1, greater=True, bounds=UNIT),
    Metric("calibration_error", whole=_calibration_error, bounds=UNIT),
)
NUMBERS = (
    Metric("rmse", rows=_squared, root=True),
    Metric("mae", rows=_absolute, bounds=(0.0, math.inf)),
    Metric("r2", whole=_r2, greater=True, bounds=(-math.inf, 1.0)),
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
