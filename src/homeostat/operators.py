"""Parts of models as ONNX operators in float64, for skl2onnx to put together.

It takes skl2onnx's operators, whose inputs and outputs are float64 matrices. It adds nodes that
compare and compute as the libraries do, where skl2onnx's own would round to 32 bits, and whose
result for a row does not depend on the other rows.
"""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

from homeostat.blend import CLIP
from homeostat.drawing import DOUBLE, FLOAT, Drawing, looked_up
from homeostat.ensemble import ensemble
from homeostat.errors import TwinError
from homeostat.trees import Link, Split, Tree, forest

if TYPE_CHECKING:
    from homeostat.scoring import Floats

PACKET = 8  # float64 values in the widest register


class Tables(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Stands for a step over categories: each code of each column has a row of what it adds to
    the output; `tables` are of shape (codes, outputs), one for each column.
    """

    def __init__(self, tables: list[Floats]) -> None:
        self.tables = tables

    def fit(self, X: Any, y: Any = None) -> Tables:  # noqa: ARG002, N803 - scikit-learn's protocol
        return self


class Columns(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # as above
    """Stands for steps that only pass columns on: `sources` has the place of each among those that
    are given, and `tables` the new code of each code of some, NaN for none.
    """

    def __init__(self, sources: list[int], tables: dict[int, Floats]) -> None:
        self.sources = sources
        self.tables = tables

    def fit(self, X: Any, y: Any = None) -> Columns:  # noqa: ARG002, N803 - scikit-learn's protocol
        return self


# --- steps before the model ---


def tables(scope: Any, operator: Any, container: Any) -> None:
    draw = Drawing(scope, container)
    draw.yields(operator, looked_up(draw, draw.matrix(operator), operator.raw_operator.tables))


def passed_on(scope: Any, operator: Any, container: Any) -> None:
    draw, step = Drawing(scope, container), operator.raw_operator
    result = draw.add("Gather", draw.matrix(operator), np.array(step.sources), axis=1)
    coded = sorted(step.tables)
    wide = []
    for number, place in enumerate(coded):
        wide.append(np.zeros((len(step.tables[place]), len(coded))))
        wide[-1][:, number] = step.tables[place]
    codes = looked_up(draw, draw.add("Gather", result, np.array(coded), axis=1), wide)
    order = np.arange(len(step.sources))
    order[coded] = len(order) + np.arange(len(coded))
    result = draw.add("Concat", result, codes, axis=1)
    draw.yields(operator, draw.add("Gather", result, order, axis=1))


def impute(scope: Any, operator: Any, container: Any) -> None:
    draw, step = Drawing(scope, container), operator.raw_operator
    filling = np.asarray(step.statistics_, dtype=float)
    if not (isinstance(step.missing_values, float) and np.isnan(step.missing_values)):
        raise TwinError("an imputer of values other than null is not understood.")
    if np.isnan(filling).any():
        raise TwinError("an imputer that drops empty columns is not understood.")
    given = draw.matrix(operator)
    empty = draw.add("IsNaN", given)
    result = draw.add("Where", empty, filling, given)
    if step.add_indicator:
        chosen = np.asarray(step.indicator_.features_, dtype=np.int64)
        flags = draw.add("Cast", draw.add("Gather", empty, chosen, axis=1), to=DOUBLE)
        result = draw.add("Concat", result, flags, axis=1)
    draw.yields(operator, result)


def scale(scope: Any, operator: Any, container: Any) -> None:
    draw, step = Drawing(scope, container), operator.raw_operator
    result = draw.matrix(operator)
    if step.with_mean:
        result = draw.add("Sub", result, np.asarray(step.mean_, dtype=float))
    if step.with_std:
        result = draw.add("Div", result, np.asarray(step.scale_, dtype=float))
    draw.yields(operator, result)


# --- blends ---


def pooled(draw: Drawing, shares: list[str], classes: int) -> str:
    """The models' probabilities, shape (rows, classes) each, as `blend.pooled` joins them."""
    count = len(shares)
    given = draw.add("Concat", *shares, axis=1)
    low = draw.add("Less", given, np.array(CLIP))  # not of NaN, which stays what it is
    logs = _steady(draw, "Log", draw.add("Where", low, np.array(CLIP), given), count * classes)
    summed = draw.add("MatMul", logs, np.tile(np.eye(classes), (count, 1)))
    mean = draw.add("Div", summed, np.array(float(count)))
    return _linked(draw, mean, "softmax", classes)


def averaged(draw: Drawing, values: list[str]) -> str:
    """The mean of the models' values, shape (rows, 1) each."""
    given = draw.add("Concat", *values, axis=1)
    summed = draw.add("MatMul", given, np.ones((len(values), 1)))
    return draw.add("Div", summed, np.array(float(len(values))))


# --- models ---


def linear(scope: Any, operator: Any, container: Any) -> None:
    """Linear and logistic models."""
    draw, model = Drawing(scope, container), operator.raw_operator
    weights = np.atleast_2d(np.asarray(model.coef_, dtype=float))
    given = draw.matrix(operator)
    summed = draw.add("MatMul", given, np.ascontiguousarray(weights.T))
    raw = draw.add("Add", summed, np.broadcast_to(model.intercept_, len(weights)).astype(float))
    raw = draw.add("Add", raw, _infinite(draw, given))
    if hasattr(model, "classes_"):
        link: Link = "sigmoid" if len(weights) == 1 else "softmax"
        _classified(draw, operator, _linked(draw, raw, link, len(weights)), len(weights))
    else:
        draw.yields(operator, raw)


def grown(scope: Any, operator: Any, container: Any) -> None:
    """Models of trees."""
    draw, model = Drawing(scope, container), operator.raw_operator
    read = forest(model)
    width = len(read.base)
    if width == 2 and read.link == "identity":  # shares of two classes: one is enough
        trees = [Tree([n if isinstance(n, Split) else n[1:] for n in t.nodes]) for t in read.trees]
        width, base = 1, read.base[1:]
    else:
        trees, base = read.trees, read.base
    given = draw.matrix(operator)
    if read.columns is not None:
        given = draw.add("Gather", given, np.array(read.columns), axis=1)
    refused = None
    if read.rounded:
        given = draw.add("Cast", draw.add("Cast", given, to=FLOAT), to=DOUBLE)
        refused = _infinite(draw, given)
    if read.single:  # the sum starts at the base, and is rounded at each tree
        trees = [*(Tree([(value,)], output) for output, value in enumerate(base)), *trees]
        base = (0.0,) * width
    raw = ensemble(draw, given, trees, read, width)
    if any(base):
        raw = draw.add("Add", raw, np.array(base))
    if read.divisor != 1:
        raw = draw.add("Div", raw, np.array(read.divisor))
    if refused is not None:
        raw = draw.add("Add", raw, refused)
    if read.single and read.link == "sigmoid":
        result = _single(draw, raw, width)
    else:
        result = _linked(draw, raw, read.link, width)
    if hasattr(model, "classes_"):
        _classified(draw, operator, result, width)
    else:
        draw.yields(operator, result)


def _infinite(draw: Drawing, given: str) -> str:
    """NaN for each row in which a number overflowed, which scikit-learn refuses, else 0."""
    flags = draw.add("Where", draw.add("IsInf", given), np.array(np.nan), np.array(0.0))
    return draw.add("ReduceSum", flags, np.array([1]), keepdims=1)


def _linked(draw: Drawing, raw: str, link: Link, width: int) -> str:
    if link == "identity":
        return raw
    if link == "softmax":
        top = draw.add("ReduceMax", raw, np.array([1]), keepdims=1)
        shares = _steady(draw, "Exp", draw.add("Sub", raw, top), width)
        # onnxruntime's ReduceSum sums in another order where a row lies elsewhere in memory.
        return draw.add("Div", shares, draw.add("MatMul", shares, np.ones((width, 1))))
    return _steady(draw, "Sigmoid" if link == "sigmoid" else "Exp", raw, width)


def _single(draw: Drawing, raw: str, width: int) -> str:
    """XGBoost's sigmoid, 1 / (exp(min(−x, 88.7)) + 1), rounded as it rounds: a blend takes the
    logarithm of the complement, in which the last bit of 32 counts.
    """
    power = draw.add("Min", draw.add("Neg", raw), np.array(88.7))
    single = draw.add("Cast", _steady(draw, "Exp", power, width), to=FLOAT)
    one = np.array(1.0, dtype=np.float32)
    return draw.add("Cast", draw.add("Div", one, draw.add("Add", single, one)), to=DOUBLE)


def _steady(draw: Drawing, kind: str, raw: str, width: int) -> str:
    """A function of each value that is computed in full registers only: the last values of a
    batch, which fill none, would differ in the last bit from the same values elsewhere.
    """
    more = -width % PACKET
    padded = draw.add("Pad", raw, np.array([0, 0, 0, more])) if more else raw
    done = draw.add(kind, padded)
    return draw.add("Gather", done, np.arange(width), axis=1) if more else done


def _classified(draw: Drawing, operator: Any, shares: str, width: int) -> None:
    if width == 1:
        rest = draw.add("Sub", np.array(1.0), shares)
        shares = draw.add("Concat", rest, shares, axis=1)
    place = draw.add("ArgMax", shares, axis=1, keepdims=0)
    classes = np.asarray(operator.raw_operator.classes_)
    if all(isinstance(value, numbers.Real | np.bool_) for value in classes.tolist()):
        classes = classes.astype(np.int64)
    draw.yields(operator, draw.add("Gather", classes, place, axis=0), shares)
