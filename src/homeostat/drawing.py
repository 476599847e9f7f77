"""Nodes and constants for the ONNX graph that skl2onnx is making.

It takes skl2onnx's scope and container, which number and hold what is drawn. It gives the names of
nodes' outputs, to be put into other nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from homeostat.errors import TwinError

if TYPE_CHECKING:
    from homeostat.scoring import Floats

FLOAT, INT64, STRING, DOUBLE = 1, 7, 8, 11  # as onnx.TensorProto numbers them
WIDEST = 4_000_000  # entries of the tables of one step


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
            kind, content = STRING, [str(value).encode() for value in array]
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


def looked_up(draw: Drawing, codes: str, held: list[Floats]) -> str:
    """One lookup for all columns of `codes`: the sum of the rows that they have in their tables,
    each of which is zero outside its own outputs. Raises TwinError for tables too large.
    """
    counts = [len(table) for table in held]
    if sum(table.size for table in held) > WIDEST:
        raise TwinError(f"categories with {sum(counts)} levels need tables that are too large.")
    starts = np.cumsum([0, *counts[:-1]])
    places = draw.add("Add", draw.add("Cast", codes, to=INT64), starts)  # 7 is TensorProto.INT64
    found = draw.add("Gather", np.concatenate(held), places, axis=0)
    return draw.add("ReduceSum", found, np.array([1]), keepdims=0)
