"""The first release, as if it had stayed: its metric on the rows that the champion is judged by.

Takes the stores, the trainer that scores, and what a look told of the champion's performance. Gives
the same metric of the model that began the champion's line; the server takes no part in it.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from homeostat.challenge import Challenge
from homeostat.monitor.metrics import Scores, chosen
from homeostat.monitor.performance import cohort
from homeostat.records import Interval, Performance, Release, Window
from homeostat.reservoir import Reservoir
from homeostat.schema import Schema
from homeostat.scoring import outputs
from homeostat.stats import block_keys

MOST = 20_000  # rows that are scored; of more, so many are drawn


def beside(
    by: Challenge, champion: Release, told: Performance, window: Window, now: datetime
) -> Performance:
    """`told` with the metric of the first release, on the rows of its realised figure; of more than
    `MOST` rows so many are drawn. As it is where that release serves, or nothing is realised.
    """
    first = _first(by, champion)
    if told.realised is None or first.id == champion.id:
        return told
    schema = Schema.from_json(by.releases.object(first, "schema"))
    mature = now - by.settings.labels.delay
    window = cohort(window, mature, late=bool(told.lag_days))
    rows = _rows(by, champion, schema, window, now)
    if rows is None:
        return told
    return replace(told, first_release=_metric(by, first, told.metric, schema, rows))


def _first(by: Challenge, release: Release) -> Release:
    while release.manifest["parent"] is not None:
        release = by.releases.get(release.manifest["parent"])
    return release


def _rows(
    by: Challenge, champion: Release, schema: Schema, cohort: Window, now: datetime
) -> pa.Table | None:
    """The champion's labelled rows of the cohort, with the features of the first release."""
    held = Reservoir(MOST, by.settings.project.seed)
    for part in by.journal.scan(cohort, as_of=now, labelled=True, schema=schema):
        mine = part.filter(pc.equal(part.column("model_version"), champion.id))
        if schema.target.task != "regression":
            known = pa.array(schema.target.classes)
            mine = mine.filter(pc.is_in(mine.column("label"), known))
        held.add(mine)
    return held.rows if held.seen else None


def _metric(
    by: Challenge, first: Release, metric: str, schema: Schema, rows: pa.Table
) -> Interval | None:
    held = first.manifest["objects"]
    calibrator = by.releases.object(first, "calibrator") if "calibrator" in held else None
    scores = by.trainer.score(by.releases.object(first, "model"), rows, schema, calibrator)
    blocks = block_keys(rows.column("occurred_at").to_numpy(), by.settings.monitor.block)
    output, threshold = outputs(scores, schema.target), by.settings.monitor.decision_threshold
    made = Scores.of(
        output, schema.labels(rows), np.asarray(blocks, dtype=np.int64), schema.target, threshold
    )
    return chosen(metric, schema.target.task).interval(made)
