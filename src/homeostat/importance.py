"""Permutation importance: how much a model's loss rises when one of its columns is shuffled.

It takes a scorer and labelled rows, in the training's child. It gives a JSON object of the release,
by which the report ranks what drifted; a release without it is ranked by distance alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from homeostat.schema import Schema
from homeostat.scoring import Scorer, losses

FORMAT = 1
ROWS = 1_000  # that are shuffled
REPEATS = 3  # shuffles of each column


def measure(scorer: Scorer, rows: pa.Table, seed: int) -> bytes | None:
    """The importance of each feature; None where no row has a label, or the model fails.

    I_j = mean over the repeats of L(rows with column j permuted) − L(rows), L being the mean log
    loss, or the mean squared error of a regression (Breiman 2001, Machine Learning 45:5; Fisher,
    Rudin and Dominici 2019, JMLR 20:177). `rows` are training rows with `label`, so a model that
    has learned them by heart makes a column look more important than it is. Columns that tell the
    same share their importance: each alone can be shuffled at little cost.
    """
    schema = scorer.schema
    rows = rows.filter(rows.column("label").is_valid())
    if not rows.num_rows:
        return None
    draw = np.random.default_rng(seed)
    chosen = np.sort(draw.choice(rows.num_rows, min(ROWS, rows.num_rows), replace=False))
    rows = rows.take(chosen).combine_chunks()
    try:
        found = _measured(scorer, rows, draw)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - importance is for people; a model without it is sound
        return None
    told = {
        "format": FORMAT,
        "metric": "squared_error" if schema.target.task == "regression" else "log_loss",
        "rows": rows.num_rows,
        "repeats": REPEATS,
        "seed": seed,
        "features": found,
    }
    return json.dumps(told, sort_keys=True, allow_nan=False).encode()


def read(content: bytes | None) -> Mapping[str, float]:
    """The features' importance from `measure`; empty where a release has none that can be read."""
    try:
        told = json.loads(content or b"{}")
    except ValueError:
        return {}
    return dict(told["features"]) if told.get("format") == FORMAT else {}


def _measured(scorer: Scorer, rows: pa.Table, draw: np.random.Generator) -> dict[str, float]:
    schema = scorer.schema
    features = rows.select(list(schema.names))
    before = _mean_loss(scorer, features, rows, schema)
    many = pa.concat_tables([rows] * REPEATS)
    repeated = many.select(list(schema.names))
    found = {}
    for place, name in enumerate(schema.names):
        order = np.concatenate([draw.permutation(rows.num_rows) for _ in range(REPEATS)])
        shuffled = repeated.set_column(place, name, features.column(name).take(pa.array(order)))
        found[name] = _mean_loss(scorer, shuffled, many, schema) - before
    return found


def _mean_loss(scorer: Scorer, features: pa.Table, rows: pa.Table, schema: Schema) -> float:
    return float(losses(scorer.output(features), schema.labels(rows), schema.target).mean())
