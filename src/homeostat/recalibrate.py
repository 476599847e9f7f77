"""The cheap remedy: a small map over a model's output, fitted on labelled rows.

It takes outputs and labels of the same rows, as `homeostat.scoring` gives them, and a ridge.
It gives the `Calibrator` of least penalised loss, outputs by maps that were cross-fitted, or shares
of classes as a richer map has them that is never served; with ever more ridge each becomes the
identity.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from homeostat.errors import TrainingError
from homeostat.schema import Target
from homeostat.scoring import CLIP, Calibrator
from homeostat.stats import BlockMean

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]
    Objective: TypeAlias = Callable[[Floats], tuple[float, Floats]]

RIDGE = 20.0
"""Towards the identity, for independent rows: as much as some twenty of them say."""

LEAST = 0.01
"""The least scale of a map: it never turns a model's answers round, and can always be undone."""

FOLDS = 4
"""Parts of the rows of a gate, each mapped by what the others teach."""


def fitted(
    output: Floats,
    labels: NDArray[Any],
    keys: NDArray[np.int64],
    target: Target,
    *,
    ridge: float = RIDGE,
) -> Calibrator:
    """As `fit_calibrator`, where the ridge counts blocks and not rows; `keys` number each row's.

    Rows of a block are alike, so they say less than as many independent ones: by the design effect,
    the variance of the mean residual by blocks over that of independent rows (Kish 1965, Survey
    Sampling, §5.4), 1 at least. The ridge is `ridge` times that.
    """
    off = _residual(output, labels, target)
    spread = float(off.var()) if len(off) else 0.0
    effect = 1.0
    if spread:
        mean = BlockMean.of(off, keys)
        effect = min(max(1.0, mean.error**2 * mean.rows / spread), mean.rows)
    return fit_calibrator(output, labels, target, ridge=ridge * effect)


def crossed(
    output: Floats, labels: NDArray[Any], keys: NDArray[np.int64], target: Target
) -> Floats:
    """`output`, each row by a map that was fitted without its own part of time.

    The blocks are split into `FOLDS` stretches; the rows of each are mapped by the map of all the
    others' rows, so that two models can be compared on the same rows as a map of their own would
    make them (cross-fitting). With one block the outputs are as they were.
    """
    blocks, places = np.unique(keys, return_inverse=True)
    parts = places * FOLDS // max(len(blocks), 1)
    found = np.array(output, dtype=float)
    for part in np.unique(parts):
        inside = parts == part
        if not inside.all():
            teach = ~inside
            own = fitted(output[teach], labels[teach], keys[teach], target)
            found[inside] = own.apply(output[inside], target)
    return found


def fit_calibrator(
    output: Floats, labels: NDArray[Any], target: Target, *, ridge: float
) -> Calibrator:
    """The calibrator that minimises Σ loss + ridge/2 · ((scale − 1)² + Σ shift²), scale ≥ `LEAST`.

    Numbers are standardised for that by the labels' mean and standard deviation.

    `output` is shape (rows,), or (rows, classes) of a multiclass model; `labels` as
    `Schema.labels`. The loss is log loss for classes (Platt 1999; temperature and bias scaling of
    Guo et al. 2017) and half the squared error in units of the labels' variance for numbers.
    Deterministic. Raises TrainingError for no rows, and for a ridge that is not positive: without
    one the classes of separable rows have no minimum.
    """
    if ridge <= 0:
        raise TrainingError(f"the ridge must be positive, not {ridge}.")
    if not len(output):
        raise TrainingError("a calibrator cannot be fitted on no rows.")
    if target.task == "regression":
        return _line(output, labels.astype(float), ridge)
    places = {target.value(text): place for place, text in enumerate(target.classes)}
    index = np.asarray([places[label] for label in labels.tolist()], dtype=int)
    clipped = np.clip(output, CLIP, 1 - CLIP)
    if target.task == "binary":
        logit = np.log(clipped) - np.log1p(-clipped)
        found = _minimum(_binary(logit, index.astype(float)), [1.0, 0.0], ridge, LEAST)
    else:
        onehot = np.eye(len(target.classes))[index]
        identity = [1.0, *[0.0] * len(target.classes)]
        found = _minimum(_multiclass(np.log(clipped), onehot, scales=1), identity, ridge, LEAST)
    return Calibrator(float(found[0]), tuple(found[1:].tolist()))


def rescaled(shares: Floats, truth: Floats, asked: Floats, *, ridge: float) -> Floats:
    """`asked`, shares of shape (rows, classes), as softmax(a_k · ln p_k + b_k) over classes k.

    The map minimises log loss + ridge/2 · (Σ (a_k − 1)² + Σ b_k²) over `shares` with `truth`, both
    of shape (rows, classes). It is vector scaling of log p (Guo et al. 2017, ICML), which for two
    classes is beta calibration (Kull, Silva Filho and Flach 2017, AISTATS). Deterministic.
    """
    from scipy.special import softmax

    rows, classes = np.asarray(shares, dtype=float), shares.shape[1]
    taught = np.asarray(truth, dtype=float)
    found = np.asarray(_scaling(rows.tobytes(), taught.tobytes(), classes, ridge))
    scores = found[:classes] * np.log(np.clip(asked, CLIP, 1)) + found[classes:]
    return np.asarray(softmax(scores, axis=1))


def _residual(output: Floats, labels: NDArray[Any], target: Target) -> Floats:
    """By how much each row's output is off, shape (rows,)."""
    if target.task == "regression":
        return np.asarray(labels.astype(float) - output)
    names = np.asarray([target.value(text) for text in target.classes])
    hit = labels[:, None] == names
    if target.task == "binary":
        return np.asarray(hit[:, 1] - output)
    return np.asarray(1 - output[hit])


@lru_cache(maxsize=32)  # one look learns from much of what the look before learned from
def _scaling(shares: bytes, truth: bytes, classes: int, ridge: float) -> tuple[float, ...]:
    """The scales and then the shifts of `rescaled`."""
    rows = np.frombuffer(shares).reshape(-1, classes)
    logs = np.log(np.clip(rows, CLIP, 1))
    identity = [1.0] * classes + [0.0] * classes
    objective = _multiclass(logs, np.frombuffer(truth).reshape(-1, classes), scales=classes)
    return tuple(_minimum(objective, identity, ridge).tolist())


def _binary(logit: Floats, hit: Floats) -> Objective:
    def objective(theta: Floats) -> tuple[float, Floats]:
        score = theta[0] * logit + theta[1]
        error = 1 / (1 + np.exp(-score)) - hit
        loss = np.logaddexp(0, score) - hit * score
        return float(loss.sum()), np.asarray([error @ logit, error.sum()])

    return objective


def _multiclass(logs: Floats, onehot: Floats, *, scales: int) -> Objective:
    """`theta` is one scale for all classes or one for each, then the shift of each."""

    def objective(theta: Floats) -> tuple[float, Floats]:
        scores = theta[:scales] * logs + theta[scales:]
        scores = scores - scores.max(axis=1, keepdims=True)
        total = np.log(np.exp(scores).sum(axis=1, keepdims=True))
        error = np.exp(scores - total) - onehot
        loss = float((total - (scores * onehot).sum(axis=1, keepdims=True)).sum())
        slope = (error * logs).sum(axis=0)
        slope = slope if scales > 1 else slope.sum(keepdims=True)
        return loss, np.concatenate([slope, error.sum(axis=0)])

    return objective


def _minimum(
    objective: Objective, identity: list[float], ridge: float, least: float | None = None
) -> Floats:
    """`least` bounds the first parameter from below."""
    from scipy.optimize import minimize

    def penalised(theta: Floats) -> tuple[float, Floats]:
        loss, slope = objective(theta)
        away = theta - identity
        return loss + ridge / 2 * float(away @ away), slope + ridge * away

    with _threads().limit(limits=1):  # more threads stall whatever runs beside them
        found = minimize(
            penalised,
            identity,
            jac=True,
            method="L-BFGS-B",
            bounds=[(least, None)] + [(None, None)] * (len(identity) - 1),
            options={"ftol": 1e-14, "gtol": 1e-9},
        )
    if not np.isfinite(found.x).all():
        raise TrainingError("the calibrator did not converge to finite numbers.")
    return np.asarray(found.x)


@cache
def _threads() -> Any:
    """The libraries that were loaded at the first fit; to look for them takes as long as a fit."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _line(output: Floats, labels: Floats, ridge: float) -> Calibrator:
    """The normal equations of the penalised least squares, around the identity's residuals, with
    the mean label as 0 and the labels' standard deviation as 1: so no unit changes the map.
    """
    centre, spread = float(labels.mean()), float(labels.std()) or 1.0
    design = np.column_stack([(output - centre) / spread, np.ones(len(output))])
    normal = design.T @ design + ridge * np.eye(2)
    away = np.linalg.solve(normal, design.T @ (labels - output) / spread)
    scale = float(1 + away[0])
    if scale < LEAST:
        scale = LEAST
        rest = (labels - centre) / spread - scale * design[:, 0]
        away[1] = rest.sum() / (len(rest) + ridge)
    return Calibrator(scale, (float((1 - scale) * centre + spread * away[1]),))
