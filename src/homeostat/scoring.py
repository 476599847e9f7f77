"""Scores of a model: from features to predictions and probabilities, the same way everywhere.

A `Scorer` joins an estimator with its schema and, where there is one, a calibrator. The server,
the gate and the replay all score through it, so that what was judged is what is served.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from homeostat.errors import SchemaError
from homeostat.schema import Schema, Target

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]

CLIP = 1e-15  # probabilities are kept this far from 0 and 1 before a logarithm


@dataclass(frozen=True, slots=True)
class Calibrator:
    """A map over a model's output, one scale for all and one shift per output.

    Binary: sigmoid(scale · logit(p) + shift[0]). Multiclass: softmax(scale · log p + shift).
    Regression: scale · y + shift[0]. The identity has scale 1 and shifts 0.
    """

    scale: float
    shift: tuple[float, ...]

    def to_json(self) -> bytes:
        return json.dumps({"format": 1, **asdict(self)}, sort_keys=True).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Calibrator:
        raw = json.loads(text)
        if raw.get("format") != 1:
            raise SchemaError(f"the calibrator has format {raw.get('format')!r}, not 1.")
        return cls(raw["scale"], tuple(raw["shift"]))

    def apply(self, output: Floats, target: Target) -> Floats:
        """`output` is shape (rows,) for binary and regression, (rows, classes) for multiclass."""
        if target.task == "regression":
            return self.scale * output + self.shift[0]
        clipped = np.clip(output, CLIP, 1 - CLIP)
        if target.task == "binary":
            logit = np.log(clipped) - np.log1p(-clipped)
            return 1 / (1 + np.exp(-(self.scale * logit + self.shift[0])))
        return _softmax(self.scale * np.log(clipped) + np.asarray(self.shift))

    def undo(self, output: Floats, target: Target) -> Floats:
        """What `apply` was given, from what it gave; NaN where the scale is 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = self.scale or np.nan
            if target.task == "regression":
                return (output - self.shift[0]) / scale
            clipped = np.clip(output, CLIP, 1 - CLIP)
            if target.task == "binary":
                logit = np.log(clipped) - np.log1p(-clipped)
                return 1 / (1 + np.exp(-(logit - self.shift[0]) / scale))
            return _softmax((np.log(clipped) - np.asarray(self.shift)) / scale)


def _softmax(scores: Floats) -> Floats:
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(scores / scores.sum(axis=1, keepdims=True))


@dataclass(frozen=True, slots=True)
class Scorer:
    """An estimator with the scikit-learn protocol, its schema, and an optional calibrator."""

    estimator: Any
    schema: Schema
    calibrator: Calibrator | None = None

    def output(self, features: pa.Table) -> Floats:
        """The calibrated output for each row: P(positive class), shape (rows,), of a binary
        model; the probabilities, shape (rows, classes), of a multiclass one; the value, shape
        (rows,), of a regression. Raises SchemaError when the model yields anything not finite.
        """
        return self.answers(self.schema.frame(features))

    def answers(self, frame: pd.DataFrame) -> Floats:
        """As `output`, of the features as `Schema.frame` gives them."""
        target = self.schema.target
        if not len(frame):  # estimators refuse an empty frame
            return np.empty((0, len(target.classes)) if target.task == "multiclass" else 0)
        if target.task == "regression":
            raw = np.asarray(self.estimator.predict(frame), dtype=float).reshape(len(frame))
        else:
            raw = self._probabilities(frame, target)
        return calibrated(raw, target, self.calibrator)

    def _probabilities(self, frame: Any, target: Target) -> Floats:
        """Columns in the order of the schema's classes, 0 for classes the model never saw."""
        raw = np.asarray(self.estimator.predict_proba(frame), dtype=float)
        places = {target.text(plain(c)): i for i, c in enumerate(self.estimator.classes_)}
        ordered = np.zeros((len(frame), len(target.classes)))
        for column, name in enumerate(target.classes):
            if name in places:
                ordered[:, column] = raw[:, places[name]]
        return np.ascontiguousarray(ordered[:, 1]) if target.task == "binary" else ordered

    def score(self, features: pa.Table) -> pa.Table:
        """`prediction` (text), `probability` and `probabilities` (JSON), one row per row."""
        return tabulate(self.output(features), self.schema.target)


def calibrated(raw: Floats, target: Target, calibrator: Calibrator | None) -> Floats:
    """What is answered, from what a model or its twin yields; the shapes are those of `raw`.

    Raises SchemaError when any of it is not finite.
    """
    if not np.isfinite(raw).all():
        raise SchemaError("the model yields values that are not finite.")
    return raw if calibrator is None else calibrator.apply(raw, target)


def uncalibrated(rows: pa.Table, target: Target, calibrator: Calibrator | None) -> pa.Table:
    """The rows, with the journal's columns of a prediction as the bare model would have given."""
    if calibrator is None or not rows.num_rows:
        return rows
    bare = tabulate(calibrator.undo(outputs(rows, target), target), target)
    for name in bare.column_names:
        if name in rows.column_names:
            rows = rows.set_column(rows.schema.get_field_index(name), name, bare.column(name))
    return rows


def plain(value: Any) -> object:
    """A scalar of NumPy as Python's own."""
    return value.item() if isinstance(value, np.generic) else value


def told(output: Floats, target: Target) -> tuple[list[str], list[float | None], list[str | None]]:
    """Prediction, probability and probabilities of each row, as the journal writes them."""
    nothing: list[Any] = [None] * len(output)
    if target.task == "regression":
        return [repr(value) for value in output.tolist()], nothing, nothing
    if target.task == "binary":
        no, yes = target.classes
        shares = output.tolist()
        return [yes if share > 0.5 else no for share in shares], shares, nothing
    predictions = [target.classes[place] for place in output.argmax(axis=1).tolist()]
    return predictions, nothing, [json.dumps(row) for row in output.tolist()]


def tabulate(output: Floats, target: Target) -> pa.Table:
    """The journal's three columns of a prediction from a scorer's output."""
    predictions, probability, probabilities = told(output, target)
    return pa.table(
        {
            "prediction": pa.array(predictions, pa.string()),
            "probability": pa.array(probability, pa.float64()),
            "probabilities": pa.array(probabilities, pa.string()),
        }
    )


def outputs(rows: pa.Table, target: Target) -> Floats:
    """The inverse of `tabulate`: a scorer's output from the journal's columns."""
    if target.task == "regression":
        return _numbers(rows.column("prediction").cast(pa.float64()))
    if target.task == "binary":
        return _numbers(rows.column("probability"))
    return np.asarray([json.loads(text) for text in rows.column("probabilities").to_pylist()])


def _numbers(column: pa.ChunkedArray) -> Floats:
    """Arrow's own `to_numpy` would import pandas, which a server does without."""
    if column.null_count:
        column = pc.fill_null(column, np.nan)
    return np.asarray(np.from_dlpack(column.combine_chunks()), dtype=float)


def row_losses(scores: pa.Table, rows: pa.Table, schema: Schema) -> Floats:
    """The loss of each labelled row, shape (rows,), from the journal's columns in `scores`.

    A model gives a class that it does not know the probability 0, so that is what such a row
    costs; `losses` would not take its label.
    """
    output, target = outputs(scores, schema.target), schema.target
    if target.task == "regression":
        return losses(output, schema.labels(rows), target)
    known = np.asarray(pc.is_in(rows.column("label"), pa.array(target.classes, pa.string())))
    found = np.full(len(known), -np.log(CLIP))
    found[known] = losses(output[known], schema.labels(rows.filter(known)), target)
    return found


def losses(output: Floats, labels: NDArray[Any], target: Target) -> Floats:
    """The loss of each row, shape (rows,).

    Log loss −log p(label), natural logarithm, p clipped to [1e-15, 1 − 1e-15], for classes;
    squared error for numbers (the RMSE is the root of its mean). `labels` as `Schema.labels`.
    """
    if target.task == "regression":
        return np.asarray((output - labels) ** 2)
    places: dict[Any, int] = {target.value(text): i for i, text in enumerate(target.classes)}
    index = np.asarray([places[label] for label in labels.tolist()], dtype=int)
    if target.task == "binary":
        p = np.where(index == 1, output, 1 - output)
    else:
        p = output[np.arange(len(index)), index]
    return np.asarray(-np.log(np.clip(p, CLIP, 1 - CLIP)))
