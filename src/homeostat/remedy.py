"""The cheap remedy as a candidate: a new map over the champion's own model, judged and made.

Takes a challenge's stores and the champion. Gives a candidate that shares all of the champion's
objects but the calibrator, with the gate's verdict, or the reason why there is none; the map is
always over the model's raw output, never over another map.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from homeostat import gate, lineage, maps, quarantine
from homeostat.audit import fitted, jsonable
from homeostat.binning import moments
from homeostat.challenge import Challenge, Challenged
from homeostat.errors import ReleaseError
from homeostat.holdout import before
from homeostat.records import Candidate, Release, TrainingRows, Trial, Verdict, Window
from homeostat.schema import Schema
from homeostat.scoring import Calibrator, losses
from homeostat.settings import Settings
from homeostat.unseen import JUDGED, Model, Unseen, unseen

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]

LEVEL = 0.05
"""The chance that a map which is no better is released, at a look."""


_EXCHANGED = {
    "bare": "The same model goes on without its map.",
    "earlier": "The same model goes on by the map of the release that it replaced.",
}


def stretch(
    champion: Release, looked_until: datetime | None, mature: datetime, settings: Settings
) -> Window | None:
    """The rows that can judge a recalibration now; None while they span too little time.

    They are newer than those of the last such look and than what the model or its map was fitted
    on or judged by. Where there is a map, by a window and the labels' delay: before, the rule comes
    to the one that serves, or to an older one; so, too, where nothing is known of rows from before
    the cut-off, of which the rule could make one. They end at `mature` and span `monitor.window`
    and `gate.min_blocks` at least.
    """
    length, block = settings.monitor.window, settings.monitor.block
    start = max(champion.seen_until, lineage.judged_until(champion))
    if champion.calibration is not None or JUDGED not in champion.manifest["objects"]:
        start += length + settings.labels.delay
    start = start if looked_until is None else max(start, looked_until)
    least = max(length, settings.gate.min_blocks * block)
    return Window(start, mature) if mature - start >= least else None


def counted(by: Challenge, champion: Release, schema: Schema, now: datetime) -> tuple[int, int]:
    """How many mature labelled rows there are, and how many of them could judge a map now; none
    where these are fewer than `gate.min_rows`.
    """
    mature = now - by.settings.labels.delay
    judging = stretch(champion, by.audit.past().mapped_until, mature, by.settings)
    # Only the number is wanted, so no feature is read, and no more than a piece is held.
    bare, history, fresh = replace(schema, features=()), 0, 0
    for part in by.journal.scan(as_of=now, labelled=True, schema=bare):
        old = quarantine.sound(before(part, mature), by.audit, schema)
        history += old.num_rows
        fresh += old.num_rows - before(old, judging.start).num_rows if judging else 0
    return history, fresh if fresh >= by.settings.gate.min_rows else 0


def recalibrate(
    by: Challenge, champion: Release, now: datetime, *, harm: bool = False
) -> Challenged:
    """A map by the candidate of the best record, judged; it may be the one that changes nothing.

    Judged is the rule, prequentially: each window of rows that no earlier look has used, by the
    map that could have served in it, of rows and labels known when it began. Where `harm` is shown,
    by that of all rows before it, since what could have served knew nothing yet of the harm. The
    map that is released knows all mature rows, so the verdict is that of its siblings.
    """
    settings = by.settings
    mature = now - settings.labels.delay
    maps.record(by, now)
    past = by.audit.past()
    rule = maps.chosen(past, settings)
    judging = stretch(champion, past.mapped_until, mature, settings)
    if judging is None:
        return Challenged(problem="Too little time has passed since the last look at a map.")
    verdict = _judge(by, champion, rule, judging, now, harm=harm)
    if verdict is None:
        least = settings.gate.min_rows
        return Challenged(problem=f"Fewer than {least} labelled rows could judge a map.")
    by.audit.write("calibration_gate", now, jsonable(verdict))
    if not verdict.promote:
        return Challenged(verdict=verdict)
    began = time.monotonic()
    model = Model.of(by.releases, champion)
    rows = unseen(by, model, Window(mature - maps.reach(settings), mature), now)
    calibrator = rule.fit(rows, mature, settings)
    if calibrator is None:
        return Challenged(problem="Too few labelled rows are known that the model has not seen.")
    seconds = time.monotonic() - began
    last = rule.rows(rows, mature, settings)
    candidate = _made(by, champion, calibrator, last, maps.trained(by, last, now))
    candidate = replace(candidate, seconds=seconds)
    by.audit.write("calibrated", now, fitted(candidate))
    return Challenged(candidate, replace(verdict, sibling=True))


def exchanged(
    by: Challenge, champion: Release, trial: Trial | None, now: datetime
) -> tuple[Candidate, Verdict]:
    """The champion's model by the map that probation found it to be no worse by: none, or that of
    the release which it replaced. Raises HomeostatError.
    """
    if trial is None or not trial.instead:
        raise ReleaseError("probation names no other map.")
    model = Model.of(by.releases, champion)
    rows = unseen(by, model, trial.window, now)
    earlier = by.releases.get(trial.replaced)
    if trial.instead == "earlier":
        held, taught = by.releases.object(earlier, "calibrator"), earlier.calibration
        candidate = _made(by, champion, Calibrator.from_json(held), rows, taught)
    else:
        candidate = _made(by, champion, maps.identity(rows.schema.target), rows, None)
    reason = f"{_EXCHANGED[trial.instead]} {trial.reason}"
    return candidate, replace(gate.unjudged(reason, trial.window), promote=True)


@dataclass(frozen=True)
class _Judged:
    """The labelled rows of one window, and what they come to by the map that serves and by what
    the rule would have made; the same where it had too few rows for one.
    """

    times: NDArray[Any]
    labels: NDArray[Any]
    served: Floats  # losses, shape (rows,)
    tried: Floats

    @classmethod
    def of(
        cls,
        by: Challenge,
        champion: Release,
        rule: maps.Rule,
        window: Window,
        now: datetime,
        *,
        harm: bool,
    ) -> _Judged:
        model = Model.of(by.releases, champion)
        rows, (mapped,) = maps.foretold(by, model, [rule], window, now, ahead=harm)
        target, output = rows.schema.target, rows.raw
        if "calibrator" in champion.manifest["objects"]:
            own = Calibrator.from_json(by.releases.object(champion, "calibrator"))
            output = own.apply(output, target)
        served = losses(output, rows.labels, target)
        tried = served if mapped is None else losses(mapped, rows.labels, target)
        return cls(moments(rows.rows), rows.labels, served, tried)


def _judge(
    by: Challenge,
    champion: Release,
    rule: maps.Rule,
    judging: Window,
    now: datetime,
    *,
    harm: bool = False,
) -> Verdict | None:
    """The rule against the champion as it serves, on the rows of `judging`; None where these are
    fewer than `gate.min_rows`.
    """
    settings, windows = by.settings, _windows(judging, by.settings.monitor.window)
    parts = [_Judged.of(by, champion, rule, window, now, harm=harm) for window in windows]
    labels = np.concatenate([part.labels for part in parts])
    if len(labels) < settings.gate.min_rows:
        return None
    schema = Schema.from_json(by.releases.object(champion, "schema"))
    numbers = schema.target.task == "regression"
    verdict = gate.judge(
        occurred_at=np.concatenate([part.times for part in parts]),
        champion=np.concatenate([part.served for part in parts]),
        challenger=np.concatenate([part.tried for part in parts]),
        metric="rmse" if numbers else "log_loss",
        gate=settings.gate.model_copy(update={"delta": 0.0}),
        block=settings.monitor.block,
        window=judging,
        classes=None if numbers else len(np.unique(labels)),
        level=LEVEL,
    )
    return replace(verdict, reason=f"Tried was {rule}. {verdict.reason}")


def _windows(judging: Window, length: timedelta) -> list[Window]:
    """Whole windows from its start on; the last one takes in what is left."""
    count = max(judging.length // length, 1)
    starts = [judging.start + place * length for place in range(count)]
    return [Window(a, b) for a, b in zip(starts, [*starts[1:], judging.end], strict=True)]


def _made(
    by: Challenge,
    champion: Release,
    calibrator: Calibrator,
    last: Unseen,
    taught: TrainingRows | None,
) -> Candidate:
    """The candidate: the champion's objects with the new map over its model; the twin is proved on
    the rows `last`.
    """
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
    candidate = maps.mapped(by, bare, calibrator, last.schema, taught)
    by.query(candidate)
    return by.trainer.with_twin(candidate, last.rows)
