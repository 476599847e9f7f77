"""A fitted pipeline becomes one ONNX graph in float64, with skl2onnx.

It takes an estimator and its schema. It gives the bytes of a graph that a `session.Session` runs:
`categories` makes steps over texts numeric, models of trees and linear models are drawn by
`operators`, and whatever else skl2onnx knows is drawn by itself.
"""

from __future__ import annotations

import copy
import re
import sys
import warnings
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from homeostat.categories import known_levels, numeric
from homeostat.errors import TwinError
from homeostat.schema import Schema
from homeostat.scoring import plain
from homeostat.session import METADATA, inputs

OPSET = 21
ML, ML_OPSET = "ai.onnx.ml", 5  # the first with trees of float64 thresholds; skl2onnx stops at 3


def convert(estimator: Any, schema: Schema) -> bytes:
    """The graph of a fitted estimator. Raises TwinError, or whatever skl2onnx raises, for a model
    that cannot become one.
    """
    import skl2onnx
    from skl2onnx.common.data_types import DoubleTensorType
    from skl2onnx.common.exceptions import MissingConverter, MissingShapeCalculator

    levels = known_levels(estimator, schema)
    bare = numeric(copy.deepcopy(estimator), schema.features, levels)
    _register(frozenset(sys.modules) & {"lightgbm", "xgboost"})
    options = {} if schema.target.task == "regression" else {id(bare): {"zipmap": False}}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = skl2onnx.convert_sklearn(
                bare,
                name="homeostat",  # else it is drawn at random
                initial_types=[("rows", DoubleTensorType([None, len(schema.features)]))],
                options=options,
                target_opset={"": OPSET, ML: 3},
            )
    except (MissingShapeCalculator, MissingConverter) as error:
        kind = re.search(r"<class '([\w.]+)'>", str(error))
        name = kind.group(1).rpartition(".")[2] if kind else "a step"
        raise TwinError(f"skl2onnx knows no ONNX graph for {name}.") from error
    for domain in graph.opset_import:
        if domain.domain == ML and any(node.op_type == "TreeEnsemble" for node in graph.graph.node):
            domain.version = ML_OPSET
    return _finished(graph, estimator, schema, levels)


@lru_cache(maxsize=4)
def _register(libraries: frozenset[str]) -> None:
    """Tell skl2onnx of the operators that are drawn here, once."""
    import importlib

    import skl2onnx
    from skl2onnx.common import shape_calculator as shapes
    from skl2onnx.common.data_types import DoubleTensorType

    def widened(operator: Any) -> None:
        operator.outputs[0].type = DoubleTensorType([None, None])

    measured = {
        "Classifier": shapes.calculate_linear_classifier_output_shapes,
        "Regressor": shapes.calculate_linear_regressor_output_shapes,
        "": widened,
    }
    zipped = {"zipmap": [True, False], "nocl": [True, False], "output_class_labels": [True, False]}
    for module, name, task, draw in _drawn():
        if module in {"lightgbm", "xgboost"} - libraries:
            continue
        kind = getattr(importlib.import_module(module), name)
        skl2onnx.update_registered_converter(
            kind,
            f"Homeostat{name}",
            measured[task],
            draw,
            options=zipped if task == "Classifier" else None,
        )


def _drawn() -> Iterator[tuple[str, str, str, Any]]:
    """Module, class and task of what is drawn here, and what draws it."""
    from homeostat import operators

    grown = {
        "sklearn.ensemble": (
            *("HistGradientBoosting", "GradientBoosting", "RandomForest", "ExtraTrees"),
        ),
        "sklearn.tree": ("DecisionTree", "ExtraTree"),
        "lightgbm": ("LGBM",),
        "xgboost": ("XGB",),
    }
    for module, names in grown.items():
        for name in names:
            for task in ("Classifier", "Regressor"):
                yield module, name + task, task, operators.grown
    linear = {
        "Regressor": ("LinearRegression", "Ridge", "RidgeCV", "Lasso", "LassoCV", "ElasticNet"),
        "Classifier": ("LogisticRegression", "LogisticRegressionCV"),
    }
    for task, names in linear.items():
        for name in names:
            yield "sklearn.linear_model", name, task, operators.linear
    yield "sklearn.impute", "SimpleImputer", "", operators.impute
    yield "sklearn.preprocessing", "StandardScaler", "", operators.scale
    yield "homeostat.operators", "Tables", "", operators.tables
    yield "homeostat.operators", "Columns", "", operators.passed_on


def _finished(graph: Any, estimator: Any, schema: Schema, levels: dict[str, list[str]]) -> bytes:
    """The graph with one output, in the order of the schema's classes, and what feeds it."""
    from onnx import helper

    body, target = graph.graph, schema.target
    raw = body.output[-1].name
    if target.task == "regression":
        raw = _step(body, "Reshape", raw, np.array([-1]))
        shape: list[Any] = [None]
    else:
        places = {target.text(plain(c)): i for i, c in enumerate(estimator.classes_)}
        lost = [name for name in target.classes if name not in places]
        if lost:
            raise TwinError(f"the model never saw the class {lost[0]!r}.")
        order = [places[name] for name in target.classes]
        if target.task == "binary":
            raw = _step(body, "Gather", raw, np.array(order[1]), axis=1)
            shape = [None]
        else:
            if order != sorted(order):
                raw = _step(body, "Gather", raw, np.array(order), axis=1)
            shape = [None, len(order)]
    if body.output[-1].type.tensor_type.elem_type != 11:  # TensorProto.DOUBLE
        raw = _step(body, "Cast", raw, to=11)
    del body.output[:]
    body.output.append(helper.make_tensor_value_info(raw, 11, shape))
    del body.value_info[:]
    _prune(body)
    coded = [levels.get(f.name) if f.kind == "category" else None for f in schema.features]
    helper.set_model_props(graph, {METADATA: inputs(coded)})
    return bytes(graph.SerializeToString(deterministic=True))


def _step(body: Any, kind: str, given: str, *constants: Any, **attributes: Any) -> str:
    from onnx import helper, numpy_helper

    output = f"homeostat_{len(body.node)}"
    names = []
    for place, array in enumerate(constants):
        names.append(f"{output}_{place}")
        body.initializer.append(numpy_helper.from_array(array, names[-1]))
    body.node.append(helper.make_node(kind, [given, *names], [output], output, **attributes))
    return output


def _prune(body: Any) -> None:
    """Take out what the one output does not need, and steps that change nothing."""
    same = {node.output[0]: node.input[0] for node in body.node if node.op_type == "Identity"}

    def source(name: str) -> str:
        while name in same:
            name = same[name]
        return name

    makers = {output: node for node in body.node for output in node.output}
    output = body.output[0].name
    for node in body.node:
        node.input[:] = [source(name) for name in node.input]
    needed, queue = set(), [source(output)]
    while queue:
        name = queue.pop()
        if name not in needed:
            needed.add(name)
            queue += makers[name].input if name in makers else []
    kept = [node for node in body.node if needed & set(node.output)]
    constants = [array for array in body.initializer if array.name in needed]
    del body.node[:], body.initializer[:]
    body.node.extend(kept)
    body.initializer.extend(constants)
    body.output[0].name = source(output)
