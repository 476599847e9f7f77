"""A fitted pipeline becomes one ONNX graph in float64, with skl2onnx.

It takes an estimator and its schema. It gives the bytes of a graph that a `session.Session` runs:
steps over categories become tables of their answers, models of trees and linear models are drawn
by `operators`, and whatever else skl2onnx knows is drawn by itself.
"""

from __future__ import annotations

import copy
import re
import sys
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from homeostat.errors import TwinError
from homeostat.schema import UNSEEN, Feature, Schema
from homeostat.scoring import plain
from homeostat.session import METADATA, inputs

if TYPE_CHECKING:
    from homeostat.operators import Tables
    from homeostat.scoring import Floats

OPSET = 21
ML, ML_OPSET = "ai.onnx.ml", 5  # the first with trees of float64 thresholds; skl2onnx stops at 3
CODED = ("OneHotEncoder", "OrdinalEncoder", "TargetEncoder")
"""Steps whose outputs depend on one column each, so that tables can stand for them."""


def convert(estimator: Any, schema: Schema) -> bytes:
    """The graph of a fitted estimator. Raises TwinError, or whatever skl2onnx raises, for a model
    that cannot become one.
    """
    import skl2onnx
    from skl2onnx.common.data_types import DoubleTensorType
    from skl2onnx.common.exceptions import MissingConverter, MissingShapeCalculator

    levels = _levels(estimator, schema)
    bare = _bare(copy.deepcopy(estimator), schema.features, levels)
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


# --- categories ---


def _levels(estimator: Any, schema: Schema) -> dict[str, list[str]]:
    """All levels of each category that the estimator may tell apart."""
    known = {f.name: list(f.levels) for f in schema.features if f.kind == "category"}
    short = [f for f in schema.features if f.kind == "category" and (f.other or not f.levels)]
    if short:  # the schema does not list them all, but the encoders do
        found = {text for encoder in _encoders(estimator) for text in _texts(encoder)}
        for feature in short:
            known[feature.name] += sorted(found - set(feature.levels))
    return known


def _encoders(step: Any) -> list[Any]:
    """The encoders in a pipeline, at any depth."""
    if _kind(step) in CODED:
        return [step]
    held = getattr(step, "transformers_", getattr(step, "steps", ()))
    held = [*held, *getattr(step, "transformer_list", ())]
    return [found for entry in held for found in _encoders(entry[1])]


def _texts(encoder: Any) -> set[str]:
    return {v for values in encoder.categories_ for v in values.tolist() if isinstance(v, str)}


def _kind(step: Any) -> str:
    """The name of scikit-learn's class; nothing for one's own, which may do anything."""
    kind = type(step)
    return kind.__name__ if kind.__module__.startswith("sklearn.") else ""


def _bare(step: Any, features: tuple[Feature, ...], levels: dict[str, list[str]]) -> Any:
    """The step as one of numbers only: categories come as their codes."""
    kinds = {feature.kind for feature in features}
    name = _kind(step)
    if name == "Pipeline":
        place = _coded_until(step.steps)
        if "category" in kinds and kinds <= {"category", "boolean"} and place:
            step.steps = [("tables", _tables(step[:place], features, levels)), *step.steps[place:]]
        else:
            first = step.steps[0]
            step.steps[0] = first[0], _bare(first[1], features, levels)
        return step
    if name == "ColumnTransformer":
        kept = []
        for label, part, columns in step.transformers_:
            places = step._transformer_to_input_indices.get(label, ())
            seen = tuple(features[place] for place in places)
            if isinstance(part, str) or not seen:
                continue
            if isinstance(columns, str | int) and any(f.kind == "category" for f in seen):
                raise _unknown(part)
            kept.append((label, _bare(part, seen, levels), [int(place) for place in places]))
        step.transformers_ = kept
        return step
    if name == "FeatureUnion":
        step.transformer_list = [
            (label, _bare(part, features, levels)) for label, part in step.transformer_list
        ]
        return step
    coded = name in CODED
    if "category" not in kinds and not (coded and kinds == {"boolean"}):
        return step
    if coded and "number" not in kinds:
        return _tables(step, features, levels)
    raise _unknown(step)


def _coded_until(steps: list[tuple[str, Any]]) -> int:
    """How many of the first steps are encoders and imputers, up to the last encoder; 0 if others
    come before it.
    """
    names = [_kind(step) for _, step in steps]
    last = max((place for place, name in enumerate(names, start=1) if name in CODED), default=0)
    return last if all(name in (*CODED, "SimpleImputer") for name in names[:last]) else 0


def _unknown(step: Any) -> TwinError:
    name = type(step).__name__
    return TwinError(f"{name} takes categories in a way that is not understood.")


def _tables(step: Any, features: tuple[Feature, ...], levels: dict[str, list[str]]) -> Tables:
    """What the fitted step answers to each level of each column, to null and to the unseen."""
    from homeostat.operators import Tables

    values = [[*levels.get(f.name, (False, True)), None] for f in features]
    for column, feature in zip(values, features, strict=True):
        if feature.kind == "category":
            column.append(UNSEEN)
    base = _answers(step, features, [[column[0]] for column in values])[0]
    made, owned = [], np.zeros(len(base), dtype=bool)
    for place, column in enumerate(values):
        rows = [
            [given] if other == place else [values[other][0]]
            for given in column
            for other in range(len(values))
        ]
        table = _varied(step, features, rows, len(values))
        own = np.array([(table[:, i] != base[i]).any() for i in range(len(base))])
        if (own & owned).any():
            raise TwinError(f"{type(step).__name__} mixes its columns.")
        made.append(np.where(own, table, 0.0))
        owned |= own
    made[0] += np.where(owned, 0.0, base)  # outputs that depend on nothing
    return Tables(made)


def _varied(step: Any, features: tuple[Feature, ...], cells: list[list[Any]], width: int) -> Floats:
    """Answers to the rows whose cells are listed one row after the other. A null that the step
    refuses has no answer, NaN: the schema lets none through.
    """
    rows = [[cell[0] for cell in cells[at : at + width]] for at in range(0, len(cells), width)]
    columns = [list(column) for column in zip(*rows, strict=True)]
    try:
        return _answers(step, features, columns)
    except Exception:
        if all(feature.nullable for feature in features):
            raise
        filled = [[v if v is not None else column[0] for v in column] for column in columns]
        table = _answers(step, features, filled)
        table[[None in row for row in rows]] = np.nan
        return table


def _answers(step: Any, features: tuple[Feature, ...], columns: list[list[Any]]) -> Floats:
    import pandas as pd

    frame = pd.DataFrame(
        {
            f.name: pd.array(column, dtype="str" if f.kind == "category" else "Float64")
            for f, column in zip(features, columns, strict=True)
        }
    )
    plain = {f.name: "float64" for f in features if f.kind != "category"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = step.transform(frame.astype(plain))
    made = made.toarray() if hasattr(made, "toarray") else made
    return np.array(made, dtype=float)


# --- the graph ---


@lru_cache(maxsize=4)
def _register(libraries: frozenset[str]) -> None:
    """Tell skl2onnx of the operators that are drawn here, once."""
    import importlib

    import skl2onnx
    from skl2onnx.common import shape_calculator as shapes
    from skl2onnx.common.data_types import DoubleTensorType

    from homeostat import operators

    def widened(operator: Any) -> None:
        operator.outputs[0].type = DoubleTensorType([None, None])

    models = {
        "sklearn.ensemble": (
            *("HistGradientBoosting", "GradientBoosting", "RandomForest", "ExtraTrees"),
        ),
        "sklearn.tree": ("DecisionTree", "ExtraTree"),
        "lightgbm": ("LGBM", "LGBM"),
        "xgboost": ("XGB",),
    }
    tasks = ("Classifier", "Regressor")
    drawn = [
        (module, name + task, task, operators.grown)
        for module, names in models.items()
        for name in names
        for task in tasks
        if module.startswith("sklearn") or module in libraries
    ]
    lines = {
        "Regressor": ("LinearRegression", "Ridge", "RidgeCV", "Lasso", "LassoCV", "ElasticNet"),
        "Classifier": ("LogisticRegression", "LogisticRegressionCV"),
    }
    drawn += [
        ("sklearn.linear_model", name, task, operators.linear)
        for task, names in lines.items()
        for name in names
    ]
    drawn.append(("sklearn.impute", "SimpleImputer", "", operators.impute))
    drawn.append(("sklearn.preprocessing", "StandardScaler", "", operators.scale))
    drawn.append(("homeostat.operators", "Tables", "", operators.tables))
    measured = {
        "Classifier": shapes.calculate_linear_classifier_output_shapes,
        "Regressor": shapes.calculate_linear_regressor_output_shapes,
        "": widened,
    }
    zipped = {"zipmap": [True, False], "nocl": [True, False], "output_class_labels": [True, False]}
    for module, name, task, draw in drawn:
        kind = getattr(importlib.import_module(module), name)
        skl2onnx.update_registered_converter(
            kind,
            f"Homeostat{name}",
            measured[task],
            draw,
            options=zipped if task == "Classifier" else None,
        )


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
