"""A model's twin at run time: one ONNX graph, run by onnxruntime on one thread.

It takes the bytes that `twin` made, which the caller verified, and columns of Python values. It
gives the outputs that the model itself would give, before calibration, without pandas or
scikit-learn.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from homeostat.errors import ReleaseError, other_format

if TYPE_CHECKING:
    from homeostat.scoring import Floats

FORMAT = 1
"""Of the inputs below, in the graph's metadata under `METADATA`."""

METADATA = "homeostat"


def inputs(levels: Sequence[Sequence[str] | None]) -> str:
    """The metadata that tells a `Session` how to turn values into the graph's numbers.

    `levels` has one entry per feature: None for a number or a boolean, else the known levels of
    the category. A level is coded by its place, null by their count, any other text by one more.
    """
    return json.dumps({"format": FORMAT, "levels": levels})


class Session:
    """A twin that is ready to answer; safe to call from many threads.

    The graph takes one float64 matrix, shape (rows, features), and gives one output: shape (rows,)
    for binary and regression, (rows, classes) for multiclass. `levels` has the known levels of each
    feature, None for what is no category.
    """

    def __init__(self, content: bytes) -> None:
        """Raises ReleaseError for a format that this version does not read."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        # Values that are no number are part of the data here; a warning about them helps nobody.
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(content, options, providers=providers)
        told = json.loads(self._session.get_modelmeta().custom_metadata_map.get(METADATA, "{}"))
        if told.get("format") != FORMAT:
            raise other_format(ReleaseError, "the model's twin", told.get("format"), FORMAT)
        self.levels: list[list[str] | None] = told["levels"]
        self._codes = [None if known is None else _codes(known) for known in self.levels]
        self._input = self._session.get_inputs()[0].name
        self._output = [self._session.get_outputs()[0].name]

    def encode(self, columns: Sequence[Sequence[Any]]) -> Floats:
        """The graph's matrix of columns in the order of the schema; null is NaN or a code."""
        made = [
            column if codes is None else [codes.get(value, codes[_OTHER]) for value in column]
            for codes, column in zip(self._codes, columns, strict=True)
        ]
        return np.ascontiguousarray(np.array(made, dtype=np.float64).T)

    def run(self, matrix: Floats) -> Floats:
        found: Floats = self._session.run(self._output, {self._input: matrix})[0]
        return found

    def output(self, columns: Sequence[Sequence[Any]]) -> Floats:
        """The output of each row before calibration; see the class for its shape."""
        return self.run(self.encode(columns))


_OTHER = 0  # no text, so no level can be equal to it


def _codes(known: Sequence[str]) -> dict[str | int | None, int]:
    places: dict[str | int | None, int] = {level: place for place, level in enumerate(known)}
    return places | {None: len(known), _OTHER: len(known) + 1}
