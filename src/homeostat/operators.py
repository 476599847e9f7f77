"""Parts of models as ONNX operators in float64, for skl2onnx to put together.

It takes skl2onnx's operators, whose inputs and outputs are float64 matrices. It adds nodes that
compare and compute as the libraries do, where skl2onnx's own would round to 32 bits, and whose
result for a row does not depend on the other rows.
"""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

from homeostat.errors import TwinError
from homeostat.trees import Forest, Link, Split, Tree, forest

if TYPE_CHECKING:
    from homeostat.scoring import Floats

ML = "ai.onnx.ml"
PACKET = 8  # float64 values in the widest register
NEVER = 61  # what no column of categories holds; onnxruntime's masks reach a little further
BITS = 5  # sets of categories that one column tells of
MANY = 40_000  # the widest range of numbers that are categories
WIDEST = 4_000_000  # entries of the tables of one step
LEQ, LT, MEMBER = 0, 1, 6  # how a node of TreeEnsemble compares


class Tables(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Stands for a step over categories: each code of each column has a row of what it adds to
    the output; `tables` are of shape (codes, outputs), one for each column.
    """

    def __init__(self, tables: list[Floats]) -> None:
        self.tables = tables

    def fit(self, X: Any, y: Any = None) -> Tables:  # noqa: ARG002, N803 - scikit-learn's protocol
        return self


@dataclass(frozen=True, slots=True)
class Drawing:
    """Adds nodes to the graph that skl2onnx is making."""

    scope: Any
    container: Any

    def add(self, kind: str, *inputs: Any, domain: str = "", **attributes: Any) -> str:
        """The name of the node's output; arrays among the inputs become constants."""
        names = [name if isinstance(name, str) else self._constant(name) for name in inputs]
        output = self.scope.get_unique_variable_name(kind.lower())
        version = {"op_version": 1} if domain else {}  # `convert` sets the domain's own
        self.container.add_node(
            kind,
            names,
            [output],
            op_domain=domain,
            name=self.scope.get_unique_operator_name(kind),
            **version,
            **attributes,
        )
        return str(output)

    def _constant(self, values: Any) -> str:
        from onnx import helper

        array = np.asarray(values)
        name = self.scope.get_unique_variable_name("constant")
        if array.dtype.kind in "OU":
            kind, content = 8, [str(value).encode() for value in array]  # 8 is TensorProto.STRING
        else:
            kind, content = helper.np_dtype_to_tensor_dtype(array.dtype), array.ravel().tolist()
        self.container.add_initializer(name, kind, list(array.shape), content)
        return str(name)

    def matrix(self, operator: Any) -> str:
        """The operator's inputs side by side."""
        names = [variable.full_name for variable in operator.inputs]
        return names[0] if len(names) == 1 else self.add("Concat", *names, axis=1)

    def yields(self, operator: Any, *results: str) -> None:
        for result, variable in zip(results, operator.outputs, strict=False):
            self.container.add_node("Identity", [result], [variable.full_name])


# --- steps before the model ---


def tables(scope: Any, operator: Any, container: Any) -> None:
    """One lookup for all columns; their rows, each zero outside its own outputs, are added up."""
    draw = Drawing(scope, container)
    draw.yields(operator, _looked_up(draw, draw.matrix(operator), operator.raw_operator.tables))


def _looked_up(draw: Drawing, codes: str, held: list[Floats]) -> str:
    counts = [len(table) for table in held]
    if sum(table.size for table in held) > WIDEST:
        raise TwinError(f"categories with {sum(counts)} levels need tables that are too large.")
    starts = np.cumsum([0, *counts[:-1]])
    places = draw.add("Add", draw.add("Cast", codes, to=7), starts)  # 7 is TensorProto.INT64
    found = draw.add("Gather", np.concatenate(held), places, axis=0)
    return draw.add("ReduceSum", found, np.array([1]), keepdims=0)


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
        flags = draw.add("Cast", draw.add("Gather", empty, chosen, axis=1), to=11)  # 11 is DOUBLE
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
        given = draw.add("Cast", draw.add("Cast", given, to=1), to=11)  # FLOAT and back
        refused = _infinite(draw, given)
    raw = _ensemble(draw, given, trees, read, width)
    if any(base):
        raw = draw.add("Add", raw, np.array(base))
    if read.divisor != 1:
        raw = draw.add("Div", raw, np.array(read.divisor))
    if refused is not None:
        raw = draw.add("Add", raw, refused)
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


# --- trees ---


def _ensemble(draw: Drawing, given: str, trees: list[Tree], read: Forest, width: int) -> str:
    """TreeEnsemble over the features, and over more columns for categories."""
    from onnx import numpy_helper

    if read.single:
        given = draw.add("Cast", given, to=1)
    columns = _columns(trees, read)
    if columns:
        given = _with_categories(draw, given, columns, read)
    nodes = _Nodes(LT if read.strict else LEQ, columns, read.categories)
    for tree in trees:
        for output in range(width) if _wide(tree) else [tree.output]:
            nodes.plant(tree, output)
    kind = np.float32 if read.single else np.float64
    attributes = nodes.attributes()
    for name, values in nodes.tensors(kind).items():
        attributes[name] = numpy_helper.from_array(values, name)
    raw = draw.add("TreeEnsemble", given, domain=ML, n_targets=width, **attributes)
    return draw.add("Cast", raw, to=11) if read.single else raw


def _wide(tree: Tree) -> bool:
    return any(not isinstance(node, Split) and len(node) > 1 for node in tree.nodes)


@dataclass(frozen=True, slots=True)
class _Column:
    """Where a test of categories looks: the columns that stand for one feature.

    Few categories lie in one column, each with a number of its own. Of many, each column holds
    whether the category is in each of five sets, as the bits of a number, since onnxruntime tests
    at most some sixty numbers with one mask.
    """

    first: int  # column of the matrix
    sets: dict[frozenset[int], int] | None  # distinct sets of many categories, in order

    def test(self, members: frozenset[int]) -> tuple[int, list[int]]:
        """The column, and the numbers in it that pass."""
        if self.sets is None:
            return self.first, [place + 1 for place in sorted(members)] or [NEVER]
        column, bit = divmod(self.sets[members], BITS)
        return self.first + column, [n + 1 for n in range(1 << BITS) if n >> bit & 1]

    def table(self, count: int) -> Floats:
        """What the columns hold for each of `count` categories, the unknown one last."""
        if self.sets is None:
            return np.arange(1.0, count + 1)[:, None]
        held = np.ones((count, -(-len(self.sets) // BITS)))
        for members, number in self.sets.items():
            held[sorted(members), number // BITS] += 1 << number % BITS
        return held


def _members(node: Split, known: int) -> frozenset[int]:
    """The categories that go left; a null and an unknown one are the last, numbered `known`."""
    return frozenset(node.members or ()) | (frozenset([known]) if node.null_left else frozenset())


def _columns(trees: list[Tree], read: Forest) -> dict[int, _Column]:
    """The columns for each feature that is split by categories; they follow the features."""
    sets: dict[int, dict[frozenset[int], int]] = {}
    for tree in trees:
        for node in tree.nodes:
            if isinstance(node, Split) and node.members is not None:
                held = sets.setdefault(node.feature, {})
                held.setdefault(_members(node, len(read.categories[node.feature])), len(held))
    found, first = {}, len(read.columns or ())
    for feature, held in sorted(sets.items()):
        few = len(read.categories[feature]) < NEVER - 1
        found[feature] = _Column(first, None if few else held)
        first += 1 if few else -(-len(held) // BITS)
    return found


def _with_categories(draw: Drawing, given: str, columns: dict[int, _Column], read: Forest) -> str:
    """The matrix with the columns that tests of categories look at."""
    parts, bounds = [], []
    for feature, column in columns.items():
        known = read.categories[feature]
        if not known or any(value % 1 for value in known) or known[-1] - known[0] > MANY:
            raise TwinError("categories that are no small whole numbers are not understood.")
        held = column.table(len(known) + 1)
        places = {value: place for place, value in enumerate(known)}
        every = [*np.arange(known[0], known[-1] + 1).tolist(), None]
        parts.append(held[[places.get(value, len(known)) for value in every]])
        bounds.append((known[0], known[-1]))
    low, high = np.array(bounds).T
    values = draw.add("Gather", given, np.array(list(columns)), axis=1)
    inside = draw.add("Equal", values, draw.add("Floor", values))
    for test, bound in (("GreaterOrEqual", low), ("LessOrEqual", high)):
        inside = draw.add("And", inside, draw.add(test, values, bound))
    place = draw.add("Where", inside, draw.add("Sub", values, low), high - low + 1)
    ends = np.cumsum([part.shape[1] for part in parts])
    wide = []
    for part, end in zip(parts, ends, strict=True):
        table = np.zeros((len(part), ends[-1]))
        table[:, end - part.shape[1] : end] = part
        wide.append(table)
    return draw.add("Concat", given, _looked_up(draw, place, wide), axis=1)


class _Nodes:
    """The attributes of TreeEnsemble, filled tree by tree."""

    def __init__(
        self, mode: int, columns: dict[int, _Column], categories: dict[int, tuple[float, ...]]
    ) -> None:
        self._mode, self._columns, self._categories = mode, columns, categories
        self._roots: list[int] = []
        self._features: list[int] = []
        self._splits: list[float] = []
        self._modes: list[int] = []
        self._nulls: list[int] = []
        self._true: list[tuple[int, bool]] = []
        self._false: list[tuple[int, bool]] = []
        self._members: list[float] = []
        self._targets: list[int] = []
        self._weights: list[float] = []

    def plant(self, tree: Tree, output: int) -> None:
        """Add one tree for one output; a tree that is a leaf gets a split into twice that leaf."""
        self._roots.append(len(self._features))
        places: dict[int, tuple[int, bool]] = {}
        nodes = tree.nodes
        if not isinstance(nodes[0], Split):
            nodes = [Split(0, 0.0, False, 1, 1), nodes[0]]
        count = len(self._features)
        for place, node in enumerate(nodes):
            if isinstance(node, Split):
                places[place] = count, False
                count += 1
            else:
                places[place] = len(self._weights), True
                self._targets.append(output)
                self._weights.append(node[output] if len(node) > 1 else node[0])
        for node in nodes:
            if isinstance(node, Split):
                self._split(node, places)

    def _split(self, node: Split, places: dict[int, tuple[int, bool]]) -> None:
        number = node.members is None
        if number:
            self._features.append(node.feature)
        else:
            members = _members(node, len(self._categories[node.feature]))
            column, passing = self._columns[node.feature].test(members)
            self._features.append(column)
            self._members += [*map(float, passing), np.nan]
        self._splits.append(node.threshold if number else 0.0)
        self._modes.append(self._mode if number else MEMBER)
        self._nulls.append(int(node.null_left and number))
        self._true.append(places[node.left])
        self._false.append(places[node.right])

    def attributes(self) -> dict[str, Any]:
        return {
            "aggregate_function": 1,  # the sum
            "post_transform": 0,
            "tree_roots": self._roots,
            "nodes_featureids": self._features,
            "nodes_missing_value_tracks_true": self._nulls,
            "nodes_truenodeids": [place for place, _ in self._true],
            "nodes_trueleafs": [int(leaf) for _, leaf in self._true],
            "nodes_falsenodeids": [place for place, _ in self._false],
            "nodes_falseleafs": [int(leaf) for _, leaf in self._false],
            "leaf_targetids": self._targets,
        }

    def tensors(self, kind: Any) -> dict[str, Any]:
        held = {
            "nodes_splits": np.array(self._splits, kind),
            "nodes_modes": np.array(self._modes, np.uint8),
            "leaf_weights": np.array(self._weights, kind),
        }
        if self._members:
            held["membership_values"] = np.array(self._members, kind)
        return held
