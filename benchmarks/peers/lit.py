"""The model behind LitServe: one call a request, batches of requests, or the ONNX model in batches.

It takes the port and the mode, and the pickled model's path from PEER_MODEL. It gives a server that
runs until it is told to stop.
"""

import os
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import litserve
import pandas as pd

Rows = list[dict[str, Any]]


class Plain(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = cloudpickle.loads(Path(os.environ["PEER_MODEL"]).read_bytes())

    def scored(self, rows: Rows) -> list[float]:
        return self.model.predict_proba(pd.DataFrame(rows))[:, 1].tolist()

    def predict(self, rows: Rows) -> list[float]:
        return self.scored(rows)


class Batched(Plain):
    def batch(self, requests: list[Rows]) -> list[Rows]:
        return requests

    def predict(self, requests: list[Rows]) -> list[list[float]]:
        scores = iter(self.scored([row for rows in requests for row in rows]))
        return [[next(scores) for _ in rows] for rows in requests]

    def unbatch(self, answers: list[list[float]]) -> list[list[float]]:
        return answers


class Onnx(Batched):
    def setup(self, device: str) -> None:
        from twin import scores

        self.scores = scores

    def scored(self, rows: Rows) -> list[float]:
        return self.scores(row.values() for row in rows)


BATCHES = {"max_batch_size": 32, "batch_timeout": 0.005}  # requests, seconds

if __name__ == "__main__":
    port, mode = int(sys.argv[1]), sys.argv[2]
    apis = {"plain": Plain, "batched": Batched, "onnx": Onnx}
    api = apis[mode](**({} if mode == "plain" else BATCHES))
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=port,
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )
