"""The cheap remedy: a small map over a model's output, fitted on labelled rows.

It takes outputs and labels of the same rows, as `homeostat.scoring` gives them, and a ridge.
It gives the `Calibrator` of least penalised loss; with ever more ridge it becomes the identity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from homeostat.errors import TrainingError
from homeostat.schema import Target
from homeostat.scoring import CLIP, Calibrator

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]
    Objective: TypeAlias = Callable[[Floats], tuple[float, Floats]]


def fit_calibrator(
    output: Floats, labels: NDArray[Any], target: Target, *, ridge: float
) -> Calibrator:
    """The calibrator that minimises Σ loss + ridge/2 · ((scale − 1)² + Σ shift²).

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
        return _minimum(_binary(logit, index.astype(float)), shifts=1, ridge=ridge)
    onehot = np.eye(len(target.classes))[index]
    return _minimum(_multiclass(np.log(clipped), onehot), shifts=onehot.shape[1], ridge=ridge)


def _binary(logit: Floats, hit: Floats) -> Objective:
    def objective(theta: Floats) -> tuple[float, Floats]:
        score = theta[0] * logit + theta[1]
        error = 1 / (1 + np.exp(-score)) - hit
        loss = np.logaddexp(0, score) - hit * score
        return float(loss.sum()), np.asarray([error @ logit, error.sum()])

    return objective


def _multiclass(logs: Floats, onehot: Floats) -> Objective:
    def objective(theta: Floats) -> tuple[float, Floats]:
        scores = theta[0] * logs + theta[1:]
        scores = scores - scores.max(axis=1, keepdims=True)
        total = np.log(np.exp(scores).sum(axis=1, keepdims=True))
        error = np.exp(scores - total) - onehot
        loss = float((total - (scores * onehot).sum(axis=1, keepdims=True)).sum())
        return loss, np.concatenate([[(error * logs).sum()], error.sum(axis=0)])

    return objective


def _minimum(objective: Objective, *, shifts: int, ridge: float) -> Calibrator:
    from scipy.optimize import minimize

    identity = np.asarray([1.0, *[0.0] * shifts])

    def penalised(theta: Floats) -> tuple[float, Floats]:
        loss, slope = objective(theta)
        away = theta - identity
        return loss + ridge / 2 * float(away @ away), slope + ridge * away

    found = minimize(
        penalised, identity, jac=True, method="L-BFGS-B", options={"ftol": 1e-14, "gtol": 1e-9}
    )
    if not np.isfinite(found.x).all():
        raise TrainingError("the calibrator did not converge to finite numbers.")
    return Calibrator(float(found.x[0]), tuple(float(shift) for shift in found.x[1:]))


def _line(output: Floats, labels: Floats, ridge: float) -> Calibrator:
    """The normal equations of the penalised least squares, around the identity's residuals."""
    variance = float(labels.var()) or 1.0
    design = np.column_stack([output, np.ones(len(output))])
    normal = design.T @ design / variance + ridge * np.eye(2)
    away = np.linalg.solve(normal, design.T @ (labels - output) / variance)
    return Calibrator(float(1 + away[0]), (float(away[1]),))
