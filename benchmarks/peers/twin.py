"""The ONNX model of the peers, run as Homeostat runs it, and bodies parsed with msgspec.

It takes the model's path from PEER_ONNX: the twin of Homeostat's release, one matrix of numbers in
which a level of a category stands as its place. It gives `scores` of columns, and `answered`, from
the bytes of a request to those of its answer.
"""

import json
import os
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
import onnxruntime
from model import LEVELS, NUMBERS

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
SESSION = onnxruntime.InferenceSession(
    os.environ["PEER_ONNX"], options, providers=["CPUExecutionProvider"]
)
INPUT, OUTPUT = SESSION.get_inputs()[0].name, [SESSION.get_outputs()[0].name]
CODES = [
    None if levels is None else {level: place for place, level in enumerate(levels)}
    for levels in json.loads(SESSION.get_modelmeta().custom_metadata_map["homeostat"])["levels"]
]
Row = msgspec.defstruct(
    "Row", [(name, float) for name in NUMBERS] + [(name, str) for name in LEVELS], gc=False
)
decode = msgspec.json.Decoder(Row | list[Row]).decode
encode = msgspec.json.Encoder().encode


def scores(rows: Iterable[Sequence[float | str]]) -> list[float]:
    """A probability for each row of values, in the order of the features."""
    columns = [
        column if codes is None else [codes.get(level, len(codes) + 1) for level in column]
        for codes, column in zip(CODES, zip(*rows, strict=True), strict=True)
    ]
    return SESSION.run(OUTPUT, {INPUT: np.array(columns, dtype=np.float64).T})[0].tolist()


def answered(body: bytes) -> bytes:
    """One answer, or an array of them, to one row or an array. Raises msgspec.ValidationError for
    another body.
    """
    given = decode(body)
    rows = given if isinstance(given, list) else [given]
    answers = [
        {"prediction": int(p > 0.5), "probability": p}
        for p in scores(map(msgspec.structs.astuple, rows))
    ]
    return encode(answers if isinstance(given, list) else answers[0])
