"""A service as tutorials write it: FastAPI, pydantic, a pandas frame, a CSV line per request.

It takes the pickled model's path from PEER_MODEL and the log's from PEER_LOG. It gives `app`.
"""

import csv
import os
from datetime import UTC, datetime
from pathlib import Path

import cloudpickle
import pandas as pd
from fastapi import FastAPI
from model import LEVELS, NUMBERS
from pydantic import create_model

MODEL = cloudpickle.loads(Path(os.environ["PEER_MODEL"]).read_bytes())
LOG = Path(os.environ["PEER_LOG"])
Row = create_model("Row", **dict.fromkeys(NUMBERS, float), **dict.fromkeys(LEVELS, str))

app = FastAPI()


@app.post("/predict")
def predict(rows: list[Row]) -> list[dict[str, float]]:
    frame = pd.DataFrame([row.model_dump() for row in rows])
    probabilities = MODEL.predict_proba(frame)[:, 1]
    with LOG.open("a", newline="") as file:
        writer = csv.writer(file)
        now = datetime.now(UTC).isoformat()
        for row, probability in zip(frame.itertuples(index=False), probabilities, strict=True):
            writer.writerow([now, *row, probability])
    return [{"prediction": float(p > 0.5), "probability": float(p)} for p in probabilities]
