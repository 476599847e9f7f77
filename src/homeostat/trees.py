"""Fitted trees of scikit-learn, LightGBM and XGBoost, in one form.

It takes a fitted model. It gives a `Forest`: arrays of splits and leaves with the semantics that
the library itself compares with (width of the number, side of a null, sets of categories), so
that a converter has nothing to know of libraries.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from homeostat.errors import TwinError

if TYPE_CHECKING:
    from homeostat.scoring import Floats

Link: TypeAlias = Literal["identity", "sigmoid", "softmax", "exp"]


@dataclass(frozen=True, slots=True)
class Split:
    """Goes left where the feature is at most (in a strict forest: below) the threshold, or one of
    `members`; a null goes left where `null_left` says so, a category that no split knows where
    `other_left` does.
    """

    feature: int
    threshold: float
    null_left: bool
    left: int  # place in the tree's nodes
    right: int
    members: tuple[int, ...] | None = None  # of a categorical feature, instead of a threshold
    other_left: bool = False


@dataclass(frozen=True, slots=True)
class Tree:
    """Nodes from the root, which is the first; a leaf is its values, one for each output."""

    nodes: list[Split | tuple[float, ...]]
    output: int = 0  # which output a leaf of one value adds to


@dataclass(frozen=True, slots=True)
class Forest:
    """What a model of trees computes: link((base + sum of its leaves) / divisor)."""

    trees: list[Tree]
    base: tuple[float, ...]  # one for each output
    link: Link = "identity"
    divisor: float = 1.0
    single: bool = False  # the numbers are compared and summed in 32 bits
    rounded: bool = False  # the numbers are rounded to 32 bits before, which must not overflow
    strict: bool = False  # left is below the threshold, not at it
    columns: tuple[int, ...] | None = None  # features, in the order in which splits number them
    categories: dict[int, tuple[float, ...]] = field(default_factory=dict)
    # of a numbered feature: its known values, whose places `members` hold
    whole: Literal["given", "floor", "truncated"] = "given"  # how a number becomes a category
    tiny: tuple[float, ...] = ()  # for each feature: numbers so near to 0 are null; below 0: none


def forest(model: Any) -> Forest:
    """The trees of a fitted model. Raises TwinError for what is not understood."""
    for kind in type(model).__mro__:
        read = _READERS.get((kind.__module__.split(".")[0], kind.__name__))
        if read is not None:
            return read(model)
    raise TwinError(f"{type(model).__name__} is no model of trees that is understood.")


def thresholds(model: Any) -> Iterator[tuple[int, float]]:
    """Feature and threshold of every split by a number, features as the model counts them, and
    every category that is a number.
    """
    read = forest(model)
    numbers = [
        (node.feature, node.threshold)
        for tree in read.trees
        for node in tree.nodes
        if isinstance(node, Split) and node.members is None
    ]
    numbers += [(place, value) for place, known in read.categories.items() for value in known]
    for feature, value in numbers:
        yield feature if read.columns is None else read.columns[feature], value


def _placed(
    trees: list[Tree],
) -> tuple[list[Tree], dict[int, tuple[float, ...]]]:
    """The trees with members as places among the known values of each feature, and these."""
    known: dict[int, set[int]] = {}
    for tree in trees:
        for node in tree.nodes:
            if isinstance(node, Split) and node.members is not None:
                known.setdefault(node.feature, set()).update(node.members)
    places = {
        feature: {value: place for place, value in enumerate(sorted(values))}
        for feature, values in known.items()
    }
    placed = [
        replace(
            tree,
            nodes=[
                replace(node, members=tuple(places[node.feature][v] for v in node.members))
                if isinstance(node, Split) and node.members is not None
                else node
                for node in tree.nodes
            ],
        )
        for tree in trees
    ]
    return placed, {feature: tuple(map(float, held)) for feature, held in places.items()}


# --- scikit-learn ---


def _histogram(model: Any) -> Forest:
    """HistGradientBoosting*: compares float64, base and leaves in the scale of the link."""
    columns, categories = None, {}
    if model.is_categorical_ is not None:
        # The model puts its categorical columns first and numbers their values.
        chosen = np.asarray(model.is_categorical_, dtype=bool)
        columns = (*np.flatnonzero(chosen).tolist(), *np.flatnonzero(~chosen).tolist())
        encoder = model._preprocessor.named_transformers_["encoder"]
        for place, known in enumerate(encoder.categories_):
            categories[place] = tuple(known[~np.isnan(known)].tolist())
    trees = []
    for stage in model._predictors:
        for output, predictor in enumerate(stage):
            nodes = [_histogram_node(node, predictor, categories) for node in predictor.nodes]
            trees.append(Tree(nodes, output))
    links: dict[str, Link] = {
        "IdentityLink": "identity",
        "LogitLink": "sigmoid",
        "LogLink": "exp",
        "MultinomialLogit": "softmax",
    }
    link = type(model._loss.link).__name__
    if link not in links:
        raise TwinError(f"the link {link} is not understood.")
    base = tuple(np.ravel(model._baseline_prediction).tolist())
    return Forest(trees, base, links[link], columns=columns, categories=categories)


def _histogram_node(
    node: Any, predictor: Any, categories: dict[int, tuple[float, ...]]
) -> Split | tuple[float, ...]:
    if node["is_leaf"]:
        return (float(node["value"]),)
    feature, null_left = int(node["feature_idx"]), bool(node["missing_go_to_left"])
    members = None
    if node["is_categorical"]:
        bits = predictor.raw_left_cat_bitsets[node["bitset_idx"]]
        known = range(len(categories[feature]))
        members = tuple(c for c in known if bits[c // 32] >> (c % 32) & 1)
    split = float(node["num_threshold"]), null_left, int(node["left"]), int(node["right"])
    return Split(feature, *split, members, other_left=null_left)


def _grown(tree: Any, values: Floats, output: int = 0) -> Tree:
    """A tree of scikit-learn's own; `values` holds a row of outputs for each node."""
    nodes: list[Split | tuple[float, ...]] = []
    for place in range(tree.node_count):
        left, right = int(tree.children_left[place]), int(tree.children_right[place])
        if left == right:
            nodes.append(tuple(values[place].tolist()))
            continue
        split = float(tree.threshold[place]), bool(tree.missing_go_to_left[place])
        nodes.append(Split(int(tree.feature[place]), *split, left, right))
    return Tree(nodes, output)


def _averaged(model: Any) -> Forest:
    """Decision trees and forests: the mean of the leaves, after X was rounded to float32."""
    members = getattr(model, "estimators_", [model])
    if model.n_outputs_ != 1:
        raise TwinError("a model of several targets is not understood.")
    trees = [_grown(member.tree_, member.tree_.value[:, 0, :]) for member in members]
    width = int(members[0].tree_.value.shape[2])
    return Forest(trees, (0.0,) * width, divisor=float(len(members)), rounded=True)


def _boosted(model: Any) -> Forest:
    """GradientBoosting*: the first guess and the shrunken leaves, after rounding to float32."""
    if not (isinstance(model.init_, str) or type(model.init_).__name__.startswith("Dummy")):
        raise TwinError("boosting from an estimator of one's own is not understood.")
    trees = [
        _grown(tree.tree_, model.learning_rate * tree.tree_.value[:, 0, :], output)
        for stage in model.estimators_
        for output, tree in enumerate(stage)
    ]
    base = np.ravel(model._raw_predict_init(np.zeros((1, model.n_features_in_)))).tolist()
    links: dict[str, Link] = {
        "HalfBinomialLoss": "sigmoid",
        "HalfMultinomialLoss": "softmax",
        "HalfSquaredError": "identity",
        "AbsoluteError": "identity",
        "HuberLoss": "identity",
        "PinballLoss": "identity",
    }
    loss = type(model._loss).__name__
    if loss not in links:
        raise TwinError(f"the loss {loss} is not understood.")
    return Forest(trees, tuple(base), links[loss], rounded=True)


# --- LightGBM ---

_LIGHT: dict[str, Link] = {
    "binary": "sigmoid",
    "multiclass": "softmax",
    "regression": "identity",
    "regression_l1": "identity",
    "huber": "identity",
    "fair": "identity",
    "quantile": "identity",
    "mape": "identity",
    "poisson": "exp",
    "gamma": "exp",
    "tweedie": "exp",
}
_LIGHT_ZERO = float(np.float32(1e-35))  # LightGBM's kZeroThreshold


def _lightgbm(model: Any) -> Forest:
    """Compares float64. A null without a side of its own is taken for zero, and where zero is
    null it has the side of null; a category that is null or unknown is in no set.
    """
    best = getattr(model, "best_iteration_", None)
    told = model.booster_.dump_model(num_iteration=best if best and best > 0 else None)
    objective, *options = told["objective"].split()
    if objective not in _LIGHT or "sqrt" in options:
        raise TwinError(f"LightGBM's objective {told['objective']!r} is not understood.")
    if any(option.startswith("sigmoid:") and option != "sigmoid:1" for option in options):
        raise TwinError(f"LightGBM's objective {told['objective']!r} is not understood.")
    outputs = told["num_tree_per_iteration"]
    kinds: dict[int, set[str]] = {}
    trees = []
    for place, tree in enumerate(told["tree_info"]):
        nodes: list[Split | tuple[float, ...]] = []
        _grow_light(tree["tree_structure"], nodes, kinds)
        trees.append(Tree(nodes, place % outputs))
    mixed = [found for found in kinds.values() if "Zero" in found and len(found) > 1]
    if mixed:
        raise TwinError("LightGBM's zeros that are null in some trees only are not understood.")
    count = told["max_feature_idx"] + 1
    zeros = [_LIGHT_ZERO if kinds.get(f) == {"Zero"} else -1.0 for f in range(count)]
    placed, categories = _placed(trees)
    return Forest(
        placed,
        (0.0,) * outputs,
        _LIGHT[objective],
        float(len(trees) // outputs) if told["average_output"] else 1.0,
        columns=tuple(range(count)) if categories else None,
        categories=categories,
        whole="truncated",
        tiny=tuple(zeros) if max(zeros) > 0 else (),
    )


def _grow_light(
    node: dict[str, Any], nodes: list[Split | tuple[float, ...]], kinds: dict[int, set[str]]
) -> int:
    """Add the node and what is below it; `kinds` gathers how each feature tells of null."""
    place = len(nodes)
    if "leaf_value" in node:
        if "leaf_const" in node:
            raise TwinError("LightGBM's linear trees are not understood.")
        nodes.append((float(node["leaf_value"]),))
        return place
    nodes.append(())
    left = _grow_light(node["left_child"], nodes, kinds)
    right = _grow_light(node["right_child"], nodes, kinds)
    feature, missing = int(node["split_feature"]), node["missing_type"]
    if node["decision_type"] == "==":
        members = tuple(int(value) for value in str(node["threshold"]).split("||"))
        nodes[place] = Split(feature, 0.0, False, left, right, members)
        return place
    kinds.setdefault(feature, set()).add(missing)
    threshold = float(node["threshold"])
    null_left = threshold >= 0.0 if missing == "None" else node["default_left"]
    nodes[place] = Split(feature, threshold, bool(null_left), left, right)
    return place


# --- XGBoost ---

_EXTREME: dict[str, Link] = {
    "binary:logistic": "sigmoid",
    "reg:logistic": "sigmoid",
    "multi:softprob": "softmax",
    "reg:squarederror": "identity",
    "reg:absoluteerror": "identity",
    "reg:pseudohubererror": "identity",
    "reg:quantileerror": "identity",
    "count:poisson": "exp",
    "reg:gamma": "exp",
    "reg:tweedie": "exp",
}


def extreme_booster(model: Any) -> tuple[dict[str, Any], dict[str, Any], list[float] | None]:
    """The learner, its trees, and how much each of them counts where that differs."""
    learner = json.loads(bytes(model.get_booster().save_raw("json")))["learner"]
    booster = learner["gradient_booster"]
    if booster["name"] not in {"gbtree", "dart"}:
        raise TwinError(f"XGBoost's booster {booster['name']!r} is not understood.")
    weights = booster.get("weight_drop")
    return learner, booster.get("gbtree", booster)["model"], weights


def _xgboost(model: Any) -> Forest:
    """Rounds to float32, compares with `<` and sums in float32, from the base on."""
    learner, held, weights = extreme_booster(model)
    objective = learner["objective"]["name"]
    if objective not in _EXTREME:
        raise TwinError(f"XGBoost's objective {objective!r} is not understood.")
    missing = getattr(model, "missing", np.nan)
    if missing is not None and not np.isnan(missing):
        raise TwinError("XGBoost's numbers that are taken for null are not understood.")
    link = _EXTREME[objective]
    outputs = max(held["tree_info"], default=0) + 1
    best = getattr(model, "best_iteration", None) if model.early_stopping_rounds else None
    rounds = None if best is None else held["iteration_indptr"][best + 1]
    trees = []
    for place, output in list(enumerate(held["tree_info"]))[:rounds]:
        tree = held["trees"][place]
        if tree["tree_param"]["size_leaf_vector"] not in {"0", "1"}:
            raise TwinError("XGBoost's vector leaves are not understood.")
        weight = np.float32(1.0 if weights is None else weights[place])
        trees.append(Tree(_extreme_nodes(tree, weight), output))
    scores = np.array(json.loads(learner["learner_model_param"]["base_score"]), dtype=float)
    base = np.broadcast_to(np.ravel(scores), outputs).astype(np.float32).astype(float)
    if link == "sigmoid":
        base = np.log(base) - np.log1p(-base)
    elif link == "exp":
        base = np.log(base)
    trees, categories = _placed(trees)
    count = int(learner["learner_model_param"]["num_feature"])
    return Forest(
        trees,
        tuple(base.tolist()),
        link,
        single=True,
        strict=True,
        columns=tuple(range(count)) if categories else None,
        categories=categories,
        whole="floor",  # what is below 0 is no category
    )


def _extreme_nodes(tree: dict[str, Any], weight: Any) -> list[Split | tuple[float, ...]]:
    starts = zip(tree["categories_segments"], tree["categories_sizes"], strict=True)
    spans = [tuple(tree["categories"][at : at + size]) for at, size in starts]
    sets = dict(zip(tree["categories_nodes"], spans, strict=True))
    nodes: list[Split | tuple[float, ...]] = []
    for place, left in enumerate(tree["left_children"]):
        number = np.float32(tree["split_conditions"][place])
        if left == -1:
            nodes.append((float(number * weight),))
            continue
        feature, null_left = tree["split_indices"][place], bool(tree["default_left"][place])
        right = tree["right_children"][place]
        if place in sets:  # the members of a set go right, and all others left
            nodes.append(Split(feature, 0.0, not null_left, right, left, sets[place]))
        else:
            nodes.append(Split(feature, float(number), null_left, left, right))
    return nodes


_READERS: dict[tuple[str, str], Callable[[Any], Forest]] = {
    ("sklearn", "BaseHistGradientBoosting"): _histogram,
    ("sklearn", "BaseDecisionTree"): _averaged,
    ("sklearn", "BaseForest"): _averaged,
    ("sklearn", "BaseGradientBoosting"): _boosted,
    ("lightgbm", "LGBMModel"): _lightgbm,
    ("xgboost", "XGBModel"): _xgboost,
}
