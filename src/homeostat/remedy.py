"""The cheap remedy as a candidate: a new map over the champion's own model, judged and made.

Takes a challenge's stores and the champion. Gives a candidate that shares all of the champion's
objects but the calibrator, with the gate's verdict, or the reason why there is none; the map is
always over the model's raw output, never over another map.
"""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from homeostat import gate, maps
from homeostat.audit import fitted, jsonable
from homeostat.challenge import Challenge, Challenged
from homeostat.records import Candidate, Release, Verdict, Window
from homeostat.scoring import Calibrator, losses
from homeostat.settings import Settings
from homeostat.unseen import JUDGED, Model, Unseen, unseen

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]

LEVEL = 0.05
"""The chance that a map which is no better is released, at a look."""


def stretch(
    champion: Release, looked_until: datetime | None, mature: datetime, settings: Settings
) -> Window | None:
    """The rows that can judge a recalibration now; None while they span too little time.

    They are newer than those of the last such look and than what the model or its map was fitted
    on. Where there is a map, by a window: before, the rule comes to the one that serves; so, too,
    where nothing is known of rows from before the cut-off, of which the rule could make one. They
    end at `mature` and span `monitor.window` and `gate.min_blocks` at least.
    """
    length, block = settings.monitor.window, settings.monitor.block
    start = champion.seen_until
    if champion.calibration is not None or JUDGED not in champion.manifest["objects"]:
        start += length
    start = start if looked_until is None else max(start, looked_until)
    least = max(length, settings.gate.min_blocks * block)
    return Window(start, mature) if mature - start >= least else None


def recalibrate(by: Challenge, champion: Release, now: datetime) -> Challenged:
    """A map by the candidate of the best record, judged; it may be the one that changes nothing.

    Judged is the rule, prequentially: each window of rows that no earlier look has used, by a map
    that was fitted on the windows before it. The map that is released knows all mature rows, so
    the verdict is that of its siblings.
    """
    settings = by.settings
    mature = now - settings.labels.delay
    maps.record(by, now)
    past = by.audit.past()
    rule = maps.chosen(past, settings)
    judging = stretch(champion, past.mapped_until, mature, settings) if by.gated else None
    if by.gated and judging is None:
        return Challenged(problem="Too little time has passed since the last look at a map.")
    known = (judging.start if judging else mature) - maps.reach(settings)
    rows = unseen(by, Model.of(by.releases, champion), Window(known, mature), now)
    if judging is None:
        verdict = replace(gate.unjudged("No gate, as asked.", None), promote=True)
    else:
        count = rows.within(judging).rows.num_rows
        if count < settings.gate.min_rows:
            told = f"Only {count} labelled rows could judge a map"
            return Challenged(problem=f"{told}; the gate wants {settings.gate.min_rows}.")
        verdict = _judge(by, champion, rule, rows, judging)
        by.audit.write("calibration_gate", now, jsonable(verdict))
    if not verdict.promote:
        return Challenged(verdict=verdict)
    began = time.monotonic()
    calibrator = rule.fit(rows, mature, settings)
    if calibrator is None:
        return Challenged(problem="Too few labelled rows are known that the model has not seen.")
    seconds = time.monotonic() - began
    candidate = _made(by, champion, calibrator, rule.rows(rows, mature, settings), now)
    candidate = replace(candidate, seconds=seconds)
    by.audit.write("calibrated", now, fitted(candidate))
    return Challenged(candidate, replace(verdict, sibling=by.gated))


def _judge(
    by: Challenge, champion: Release, rule: maps.Rule, rows: Unseen, judging: Window
) -> Verdict:
    """The rule against the champion as it serves, on the rows of `judging`."""
    settings, target = by.settings, rows.schema.target
    judged, parts = rows.within(judging), []
    for window in _windows(judging, settings.monitor.window):
        own, raw = rule.fit(rows, window.start, settings), rows.within(window).raw
        parts.append(raw if own is None else own.apply(raw, target))
    verdict = gate.judge(
        occurred_at=judged.rows.column("occurred_at").to_numpy(),
        champion=losses(_served(by, champion, judged), judged.labels, target),
        challenger=losses(np.concatenate(parts), judged.labels, target),
        metric="rmse" if target.task == "regression" else "log_loss",
        gate=settings.gate.model_copy(update={"delta": 0.0}),
        block=settings.monitor.block,
        window=judging,
        classes=None if target.task == "regression" else len(np.unique(judged.labels)),
        level=LEVEL,
    )
    return replace(verdict, reason=f"Tried was {rule}. {verdict.reason}")


def _served(by: Challenge, champion: Release, rows: Unseen) -> Floats:
    if "calibrator" not in champion.manifest["objects"]:
        return rows.raw
    own = Calibrator.from_json(by.releases.object(champion, "calibrator"))
    return own.apply(rows.raw, rows.schema.target)


def _windows(judging: Window, length: timedelta) -> list[Window]:
    """Whole windows from its start on; the last one takes in what is left."""
    count = max(judging.length // length, 1)
    starts = [judging.start + place * length for place in range(count)]
    return [Window(a, b) for a, b in zip(starts, [*starts[1:], judging.end], strict=True)]


def _made(
    by: Challenge, champion: Release, calibrator: Calibrator, last: Unseen, now: datetime
) -> Candidate:
    """The candidate: the champion's objects with the new map over its model."""
    held = {name: by.releases.object(champion, name) for name in champion.manifest["objects"]}
    held.pop("twin", None)  # made again below: it must be equal after the new map, too
    manifest = champion.manifest
    bare = Candidate(
        kind="recalibrate",
        parent=champion.id,
        objects=held,
        training=champion.training,
        members=champion.members,
        seconds=0.0,
        params=manifest["params"],
        versions=manifest["versions"],
        seed=manifest["seed"],
    )
    candidate = maps.mapped(by, bare, calibrator, last, now)
    by.query(candidate)
    return by.trainer.with_twin(candidate, last.rows)
