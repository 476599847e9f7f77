"""The model behind BentoML: `Plain`, one call a request, `Batched`, its adaptive batching, and
`Onnx`, batches for the ONNX model.

It takes the pickled model's path from PEER_MODEL. It gives three services, of which one is served.
"""

import os
from pathlib import Path
from typing import Any

import bentoml
import cloudpickle
import pandas as pd

QUIET: dict[str, Any] = {
    "workers": 1,
    "logging": {"access": {"enabled": False}},
    "metrics": {"enabled": False},
    "monitoring": {"enabled": False},
}
BATCHES: dict[str, Any] = {"batchable": True, "max_batch_size": 3_200, "max_latency_ms": 10_000}


class Model:
    def __init__(self) -> None:
        self.model = cloudpickle.loads(Path(os.environ["PEER_MODEL"]).read_bytes())

    def scored(self, rows: list[dict[str, Any]]) -> list[float]:
        return self.model.predict_proba(pd.DataFrame(rows))[:, 1].tolist()


@bentoml.service(**QUIET)
class Plain(Model):
    @bentoml.api
    def predict(self, rows: list[dict[str, Any]]) -> list[float]:
        return self.scored(rows)


@bentoml.service(**QUIET)
class Batched(Model):
    @bentoml.api(**BATCHES)
    def predict(self, rows: list[dict[str, Any]]) -> list[float]:
        return self.scored(rows)


@bentoml.service(**QUIET)
class Onnx:
    def __init__(self) -> None:
        from twin import scores

        self.scores = scores

    @bentoml.api(**BATCHES)
    def predict(self, rows: list[dict[str, Any]]) -> list[float]:
        return self.scores(row.values() for row in rows)
