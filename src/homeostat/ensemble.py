"""Trees of any library as one `TreeEnsemble` of an ONNX graph.

It takes a `trees.Forest` and the name of the matrix that its splits number. It draws the columns
that tests of categories look at and then the trees, in the width of number that the library
compares in, and gives the name of the summed leaves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from homeostat.drawing import DOUBLE, FLOAT, Drawing, looked_up
from homeostat.errors import TwinError
from homeostat.trees import Forest, Split, Tree

if TYPE_CHECKING:
    from homeostat.scoring import Floats

ML = "ai.onnx.ml"
NEVER = 61  # what no column of categories holds; onnxruntime's masks reach a little further
BITS = 5  # sets of categories that one column tells of
MANY = 40_000  # the widest range of numbers that are categories
LEQ, LT, MEMBER = 0, 1, 6  # how a node of TreeEnsemble compares


def ensemble(draw: Drawing, given: str, trees: list[Tree], read: Forest, width: int) -> str:
    """The sum of the leaves, shape (rows, width), as float64. Raises TwinError for categories
    that are no small whole numbers.
    """
    from onnx import numpy_helper

    columns = _columns(trees, read)
    if columns:
        given = _with_categories(draw, given, columns, read)
    if read.tiny:
        limits = np.array([*read.tiny, *[-1.0] * sum(c.width for c in columns.values())])
        near = draw.add("LessOrEqual", draw.add("Abs", given), limits)
        given = draw.add("Where", near, np.array(np.nan), given)
    if read.single:
        given = draw.add("Cast", given, to=FLOAT)
    nodes = _Nodes(LT if read.strict else LEQ, columns, read.categories)
    for tree in trees:
        for output in range(width) if _wide(tree) else [tree.output]:
            nodes.plant(tree, output)
    kind = np.float32 if read.single else np.float64
    attributes = nodes.attributes()
    for name, values in nodes.tensors(kind).items():
        attributes[name] = numpy_helper.from_array(values, name)
    raw = draw.add("TreeEnsemble", given, domain=ML, n_targets=width, **attributes)
    return draw.add("Cast", raw, to=DOUBLE) if read.single else raw


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

    @property
    def width(self) -> int:
        """How many columns there are."""
        return 1 if self.sets is None else -(-len(self.sets) // BITS)

    def table(self, count: int) -> Floats:
        """What the columns hold for each of `count` categories, null and unknown ones last."""
        if self.sets is None:
            return np.arange(1.0, count + 1)[:, None]
        held = np.ones((count, self.width))
        for members, number in self.sets.items():
            held[sorted(members), number // BITS] += 1 << number % BITS
        return held


def _members(node: Split, known: int) -> frozenset[int]:
    """The categories that go left; null is numbered `known`, and one that is unknown follows."""
    last = [known] * node.null_left + [known + 1] * node.other_left
    return frozenset((*(node.members or ()), *last))


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
        few = len(read.categories[feature]) + 2 < NEVER
        found[feature] = _Column(first, None if few else held)
        first += found[feature].width
    return found


def _with_categories(draw: Drawing, given: str, columns: dict[int, _Column], read: Forest) -> str:
    """The matrix with the columns that tests of categories look at."""
    parts, bounds = [], []
    for feature, column in columns.items():
        known = read.categories[feature]
        if not known or any(value % 1 for value in known) or known[-1] - known[0] > MANY:
            raise TwinError("categories that are no small whole numbers are not understood.")
        held = column.table(len(known) + 2)
        places = {value: place for place, value in enumerate(known)}
        every = np.arange(known[0], known[-1] + 1).tolist()
        rows = [places.get(value, len(known) + 1) for value in every]
        parts.append(held[[*rows, len(known), len(known) + 1]])
        bounds.append((known[0], known[-1]))
    low, high = np.array(bounds).T
    values = draw.add("Gather", given, np.array(list(columns)), axis=1)
    if read.single:
        values = draw.add("Cast", draw.add("Cast", values, to=FLOAT), to=DOUBLE)
    if read.whole == "floor":
        values = draw.add("Floor", values)
    if read.whole == "truncated":
        whole = draw.add("Floor", draw.add("Abs", values))
        values = draw.add("Mul", draw.add("Sign", values), whole)
    inside = draw.add("Equal", values, draw.add("Floor", values))
    for test, bound in (("GreaterOrEqual", low), ("LessOrEqual", high)):
        inside = draw.add("And", inside, draw.add(test, values, bound))
    outside = draw.add("Where", draw.add("IsNaN", values), high - low + 1, high - low + 2)
    place = draw.add("Where", inside, draw.add("Sub", values, low), outside)
    ends = np.cumsum([part.shape[1] for part in parts])
    wide = []
    for part, end in zip(parts, ends, strict=True):
        table = np.zeros((len(part), ends[-1]))
        table[:, end - part.shape[1] : end] = part
        wide.append(table)
    return draw.add("Concat", given, looked_up(draw, place, wide), axis=1)


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
