"""NannyML's estimates, in its own environment: `python cbpe.py IN.parquet OUT.json`.

It takes predictions with a column `window`: −1 for the labelled reference, else the number of a
window. It gives the estimate of each metric by window, by CBPE of classes and DLE of numbers.
"""

import json
import sys
import warnings
from pathlib import Path

import nannyml as nml
import pandas as pd
from nannyml.chunk import CountBasedChunker

METRICS = {"roc_auc": "auc", "accuracy": "accuracy", "f1": "f1"}


def estimator(frame):
    if "probability" in frame:
        return nml.CBPE(
            problem_type="classification_binary",
            y_pred_proba="probability",
            y_pred="said",
            y_true="truth",
            metrics=list(METRICS),
            chunk_number=10,
        ), METRICS
    features = [name for name in frame if name.startswith("feature")]
    return nml.DLE(
        feature_column_names=features,
        y_pred="said",
        y_true="truth",
        metrics=["rmse", "mae"],
        chunk_number=10,
    ), {"rmse": "rmse", "mae": "mae"}


def main(source, target):
    warnings.simplefilter("ignore")
    frame = pd.read_parquet(source)
    chosen, names = estimator(frame)
    chosen.fit(frame[frame["window"] < 0].drop(columns="window").reset_index(drop=True))
    chosen.chunker = CountBasedChunker(chunk_number=1)
    told = {}
    for number, held in frame[frame["window"] >= 0].groupby("window"):
        rows = held.drop(columns=["window", "truth"]).reset_index(drop=True)
        found = chosen.estimate(rows).filter(period="analysis").to_df()
        told[str(number)] = {
            ours: float(found[name, "value"].iloc[0]) for name, ours in names.items()
        }
    Path(target).write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
