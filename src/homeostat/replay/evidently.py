"""Evidently's rule as the trigger of a schedule: retrain when it calls the data set drifted.

Runs in a warm child. Takes the step at which the present model was trained and the present one;
gives whether Evidently's preset, at its own thresholds, calls at least half of the columns drifted
between a sample of the model's training rows and one of the newest window.
"""

from __future__ import annotations

from datetime import timedelta

import numpy as np

from homeostat.draw import draw
from homeostat.records import MICROSECOND
from homeostat.replay.model import Work, learned, stream


def drifted(
    work: Work, trained: int, step: int, *, window: timedelta, sample: int, seed: int
) -> bool:
    """At most `sample` rows of each side are compared. A window without rows did not drift.

    Raises EngineError where Evidently fails.
    """
    held = stream(work.rows, work.schema.to_json())
    now = work.starts[step]
    served = (held.times >= max(now - window // MICROSECOND, work.starts[0])) & (held.times < now)
    before = np.flatnonzero(learned(work, held, trained, recent=False))
    after = np.flatnonzero(served)
    if not len(after):
        return False
    random = np.random.default_rng(seed)
    reference, current = (
        held.table.take(np.sort(random.choice(rows, min(sample, len(rows)), replace=False)))
        for rows in (before, after)
    )
    return bool(draw(reference, current, work.schema)[1]["dataset_drift"])
