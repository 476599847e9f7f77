"""What a candidate carries beside its model: all of it the model's own answers, or of its rows.

It takes a scorer, the rows that its model was fitted on, and how the reference is counted, in the
training's child. It gives the objects of a candidate as bytes; a model that cannot answer what a
server promises to answer is refused.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from homeostat import importance, levels
from homeostat.errors import TrainingError
from homeostat.profile import Profile
from homeostat.schema import UNSEEN, Schema
from homeostat.scoring import Scorer, outputs, tabulate
from homeostat.traits import Traits

GOLDEN = 20  # rows that a loaded model must answer as it did here
SAMPLE = 5_000  # training rows that are kept for people and for Evidently


@dataclass(frozen=True, slots=True)
class Job:
    """How to fit; the same job on the same rows gives the same model."""

    script: Path
    root: Path
    seed: int
    block: timedelta  # length of the reference's blocks
    trial: bool = False  # the model is only judged, so it needs no reference
    segments: tuple[str, ...] = ()  # columns by whose levels the reference is counted, too


def made(scorer: Scorer, rows: pa.Table, job: Job) -> dict[str, bytes]:
    """The objects of a candidate but for its model; of a trial only its schema, in which features
    that the model takes no null in refuse it, and its golden rows.

    Raises TrainingError where the model cannot score its own rows, or a level that it never saw.
    """
    schema = scorer.schema
    features = rows.select(list(schema.names))
    draw = np.random.default_rng(job.seed)
    golden = features.take(_sampled(draw, rows.num_rows, GOLDEN))
    try:
        scored = tabulate(_output(scorer, golden if job.trial else features), schema.target)
    except MemoryError:
        raise
    except Exception as error:
        raise TrainingError(
            f"the estimator cannot score its own training rows: {type(error).__name__}: {error}",
            hint="Is it fitted, and does predict take the frame that fit() got, less the target?",
        ) from error
    _refuse_unseen(scorer, golden)
    final = schema.without_nulls_in(_null_averse(scorer, golden))
    objects = {
        "schema": final.to_json().encode(),
        "golden": _parquet(_beside(golden, scorer.score(golden))),
    }
    if job.trial:
        return objects
    sample = _sampled(draw, rows.num_rows, SAMPLE)
    kept = _beside(_beside(features, scored), rows.select(["label"])).take(sample)
    objects |= {
        "reference": _reference(rows, scored, final, job.block).to_bytes(),
        "reference_sample": _parquet(kept),
        "traits": Traits.of(rows, final, block=job.block).to_bytes(),
    }
    wrong = levels.unknown(final.features, job.segments)
    parted = [name for name in job.segments if name not in wrong]
    if parted:
        counted = levels.Levels.of(rows, final.features, parted, block=job.block)
        objects[levels.SEGMENTS] = counted.to_bytes()
    measured = importance.measure(scorer, kept, job.seed)
    return objects if measured is None else {**objects, "importance": measured}


def _output(scorer: Scorer, features: pa.Table) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return scorer.output(features)


def _null_averse(scorer: Scorer, golden: pa.Table) -> list[str]:
    """The features in which the model does not take null."""
    averse = []
    for feature in scorer.schema.features:
        nulls = pa.nulls(golden.num_rows, feature.arrow)
        if not _survives(scorer, _with(golden, feature.name, nulls)):
            averse.append(feature.name)
    return averse


def _refuse_unseen(scorer: Scorer, golden: pa.Table) -> None:
    for feature in scorer.schema.features:
        if feature.kind == "category":
            unseen = pa.array([UNSEEN] * golden.num_rows)
            if not _survives(scorer, _with(golden, feature.name, unseen)):
                raise TrainingError(
                    f"the estimator fails on a level of {feature.name!r} that training never saw.",
                    hint="Use OneHotEncoder(handle_unknown='ignore'), or OrdinalEncoder("
                    "handle_unknown='use_encoded_value', unknown_value=-1).",
                )


def _survives(scorer: Scorer, features: pa.Table) -> bool:
    try:
        _output(scorer, features)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - any failure means that the model does not take such rows
        return False
    return True


def _with(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, values)


def _beside(left: pa.Table, right: pa.Table) -> pa.Table:
    for name in right.column_names:
        left = left.append_column(name, right.column(name))
    return left


def _sampled(draw: np.random.Generator, rows: int, size: int) -> Any:
    """Row numbers, ascending: at most `size`, drawn without replacement."""
    return np.sort(draw.choice(rows, min(size, rows), replace=False))


def _reference(rows: pa.Table, scored: pa.Table, schema: Schema, block: timedelta) -> Profile:
    edges: tuple[float, ...] = ()
    if schema.target.task == "regression":
        shares = np.linspace(0, 1, 21)[1:-1]
        values = outputs(scored, schema.target)
        edges = tuple(np.unique(np.quantile(values, shares, method="inverted_cdf")).tolist())
    columns = rows.select(["occurred_at", *schema.names])
    return Profile.of(_beside(columns, scored), schema, block=block, output_edges=edges)


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table.combine_chunks(), buffer)
    return buffer.getvalue()
