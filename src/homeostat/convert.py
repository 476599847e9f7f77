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

from homeostat.blend import Blend
from homeostat.categories import known_levels, numeric
from homeostat.drawing import DOUBLE, Drawing
from homeostat.errors import TwinError
from homeostat.schema import Schema
from homeostat.scoring import plain
from homeostat.session import METADATA, inputs

OPSET = 21
ROWS = "rows"  # the input
ML, ML_OPSET = "ai.onnx.ml", 5  # the first with trees of float64 thresholds; skl2onnx stops at 3


def convert(estimator: Any, schema: Schema) -> bytes:
    """The graph of a fitted estimator; of a blend's members, one beside the other, and of what
    joins them. Raises TwinError, or whatever skl2onnx raises, for a model that cannot become one.
    """
    from homeostat import operators

    levels = known_levels(estimator, schema)
    blended = isinstance(estimator, Blend)
    graph, *others = [
        _graph(part, schema, levels) for part in (estimator.estimators if blended else [estimator])
    ]
    body = graph.graph
    raw = [_raw(body)]
    for place, other in enumerate(others, start=1):
        raw.append(_taken_in(graph, other, f"member_{place}_"))
    draw = Drawing(_Body(body), _Body(body))
    if not blended:
        joined = raw[0]
    elif schema.target.task == "regression":
        joined = operators.averaged(
            draw, [draw.add("Reshape", each, np.array([-1, 1])) for each in raw]
        )
    else:
        joined = operators.pooled(draw, raw, len(estimator.classes_))
    return _finished(graph, joined, estimator, schema, levels)


def _graph(estimator: Any, schema: Schema, levels: dict[str, list[str]]) -> Any:
    """The graph of one fitted estimator, as skl2onnx and what is drawn here make it."""
    import skl2onnx
    from skl2onnx.common.data_types import DoubleTensorType
    from skl2onnx.common.exceptions import MissingConverter, MissingShapeCalculator

    bare = numeric(copy.deepcopy(estimator), schema.features, levels)
    _register(frozenset(sys.modules) & {"lightgbm", "xgboost"})
    options = {} if schema.target.task == "regression" else {id(bare): {"zipmap": False}}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = skl2onnx.convert_sklearn(
                bare,
                name="homeostat",  # else it is drawn at random
                initial_types=[(ROWS, DoubleTensorType([None, len(schema.features)]))],
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
    return graph


def _taken_in(graph: Any, other: Any, prefix: str) -> str:
    """Put what another graph computes of the same rows beside what `graph` does; its answer."""
    raw = prefix + _raw(other.graph)
    for node in other.graph.node:
        if any(attribute.HasField("g") for attribute in node.attribute):
            raise TwinError(f"{node.op_type} cannot stand in the graph of a blend.")
        node.name = prefix + node.name
        node.input[:] = [name and (name if name == ROWS else prefix + name) for name in node.input]
        node.output[:] = [name and prefix + name for name in node.output]
    for array in other.graph.initializer:
        array.name = prefix + array.name
    graph.graph.node.extend(other.graph.node)
    graph.graph.initializer.extend(other.graph.initializer)
    versions = {domain.domain: domain for domain in graph.opset_import}
    for domain in other.opset_import:
        if domain.domain in versions:
            known = versions[domain.domain]
            known.version = max(known.version, domain.version)
        else:
            graph.opset_import.append(domain)
    return raw


def _raw(body: Any) -> str:
    """What a graph gives, as float64: the probabilities of all classes, or values."""
    raw = body.output[-1]
    if raw.type.tensor_type.elem_type == DOUBLE:
        return str(raw.name)
    drawn = _Body(body)
    return Drawing(drawn, drawn).add("Cast", raw.name, to=DOUBLE)


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


def _finished(
    graph: Any, raw: str, estimator: Any, schema: Schema, levels: dict[str, list[str]]
) -> bytes:
    """The graph with one output, in the order of the schema's classes, and what feeds it."""
    from onnx import helper

    body, target = graph.graph, schema.target
    draw = Drawing(_Body(body), _Body(body))
    if target.task == "regression":
        raw = draw.add("Reshape", raw, np.array([-1]))
        shape: list[Any] = [None]
    else:
        places = {target.text(plain(c)): i for i, c in enumerate(estimator.classes_)}
        lost = [name for name in target.classes if name not in places]
        if lost:
            raise TwinError(f"the model never saw the class {lost[0]!r}.")
        order = [places[name] for name in target.classes]
        if target.task == "binary":
            raw = draw.add("Gather", raw, np.array(order[1]), axis=1)
            shape = [None]
        else:
            if order != sorted(order):
                raw = draw.add("Gather", raw, np.array(order), axis=1)
            shape = [None, len(order)]
    del body.output[:]
    body.output.append(helper.make_tensor_value_info(raw, DOUBLE, shape))
    del body.value_info[:]
    _prune(body)
    coded = [levels.get(f.name) if f.kind == "category" else None for f in schema.features]
    helper.set_model_props(graph, {METADATA: inputs(coded)})
    return bytes(graph.SerializeToString(deterministic=True))


class _Body:
    """A graph that is made already, to which a `Drawing` adds as to one of skl2onnx's."""

    def __init__(self, body: Any) -> None:
        self._body = body

    def get_unique_variable_name(self, seed: str) -> str:
        return f"homeostat_{len(self._body.node)}_{len(self._body.initializer)}_{seed}"

    get_unique_operator_name = get_unique_variable_name

    def add_node(
        self,
        kind: str,
        given: list[str],
        outputs: list[str],
        *,
        op_domain: str,
        name: str,
        **attributes: Any,
    ) -> None:
        from onnx import helper

        made = helper.make_node(kind, given, outputs, name, domain=op_domain, **attributes)
        self._body.node.append(made)

    def add_initializer(self, name: str, kind: int, shape: list[int], content: list[Any]) -> None:
        from onnx import helper

        self._body.initializer.append(helper.make_tensor(name, kind, shape, content))


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
