"""The cheap remedy as a candidate: a new map over the champion's own model, judged and made.

Takes a challenge's stores and the champion. Gives a candidate that shares all of the champion's
objects but the calibrator, with the gate's verdict, or the reason why there is none; the map is
always over the model's raw output, never over another map.
"""

from __future__ import annotations

import io
import time
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from homeostat import gate, lineage, quarantine
from homeostat.audit import fitted, jsonable
from homeostat.binning import micro, moments
from homeostat.challenge import Challenge, Challenged
from homeostat.recalibrate import fit_calibrator
from homeostat.records import MICROSECOND, Candidate, Release, TrainingRows, Verdict, Window
from homeostat.rowhash import frame_hash
from homeostat.schema import Schema
from homeostat.scoring import Calibrator, losses, outputs
from homeostat.settings import Settings
from homeostat.stats import BlockMean, block_keys

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]

RIDGE = 20.0
"""Towards the identity, for independent rows: as much as some twenty of them say."""


def stretch(
    champion: Release, looked_until: datetime | None, mature: datetime, settings: Settings
) -> Window | None:
    """The rows that can judge a recalibration now; None while they span too little time.

    They are newer than those of the last such look, and by a window newer than what the model or
    its map was fitted on: before, the rule has no map, or has the one that serves. They end at
    `mature` and span `monitor.window` and `gate.min_blocks` at least.
    """
    length, block = settings.monitor.window, settings.monitor.block
    start = champion.seen_until + length
    start = start if looked_until is None else max(start, looked_until)
    least = max(length, settings.gate.min_blocks * block)
    return Window(start, mature) if mature - start >= least else None


def recalibrate(by: Challenge, champion: Release, now: datetime) -> Challenged:
    """A map fitted on the last `decide.calibration_windows` windows of mature rows, judged.

    Judged is the rule, prequentially: each window of rows that no earlier look has used, by a map
    that was fitted on the windows before it. The map that is released knows all mature rows, so
    the verdict is that of its siblings.
    """
    settings = by.settings
    mature = now - settings.labels.delay
    known = max(champion.cutoff, mature - _reach(settings))
    looked = by.audit.past().mapped_until
    judging = stretch(champion, looked, mature, settings) if by.gated else None
    if by.gated and judging is None:
        return Challenged(problem="Too little time has passed since the last look at a map.")
    if judging is not None:
        known = max(champion.cutoff, min(known, judging.start - _reach(settings)))
    scored = _scored(by, champion, Window(known, mature), now)
    if judging is None:
        verdict = replace(gate.unjudged("No gate, as asked.", None), promote=True)
    else:
        judged = scored.within(judging)
        if judged.rows.num_rows < settings.gate.min_rows:
            count = f"Only {judged.rows.num_rows} labelled rows could judge a map"
            return Challenged(problem=f"{count}; the gate wants {settings.gate.min_rows}.")
        verdict = _judge(by, champion, scored, judging)
        by.audit.write("calibration_gate", now, jsonable(verdict))
    if not verdict.promote:
        return Challenged(verdict=verdict)
    last = scored.within(Window(max(champion.cutoff, mature - _reach(settings)), mature))
    if not last.rows.num_rows:
        return Challenged(problem="No labelled row is newer than the champion's training rows.")
    candidate = _made(by, champion, last, now)
    by.audit.write("calibrated", now, fitted(candidate))
    return Challenged(candidate, replace(verdict, sibling=by.gated))


def _reach(settings: Settings) -> timedelta:
    return settings.decide.calibration_windows * settings.monitor.window


@dataclass(frozen=True)
class _Scored:
    """Labelled rows of classes that the model knows, in order of time, and its bare outputs."""

    rows: pa.Table
    raw: Floats
    labels: NDArray[Any]
    schema: Schema

    def within(self, window: Window) -> _Scored:
        times = moments(self.rows)
        first, last = np.searchsorted(times, [micro(window.start), micro(window.end)])
        rows = self.rows.slice(int(first), int(last - first))
        return _Scored(rows, self.raw[first:last], self.labels[first:last], self.schema)

    def fit(self, block: timedelta) -> Calibrator:
        """The map of least penalised loss; the ridge is `RIDGE` blocks' worth of rows.

        Rows of a block are alike, so they say less than as many independent ones: by the design
        effect, the variance of the mean residual by blocks over that of independent rows (Kish
        1965, Survey Sampling, §5.4), 1 at least.
        """
        residual = self._residual()
        spread = float(residual.var())
        paired = BlockMean.of(residual, block_keys(moments(self.rows), block))
        effect = paired.error**2 * paired.rows / spread if spread else 1.0
        effect = min(max(1.0, effect), paired.rows)
        return fit_calibrator(self.raw, self.labels, self.schema.target, ridge=RIDGE * effect)

    def _residual(self) -> Floats:
        """By how much each row's output is off, shape (rows,)."""
        target = self.schema.target
        if target.task == "regression":
            return np.asarray(self.labels.astype(float) - self.raw)
        names = np.asarray([target.value(text) for text in target.classes])
        hit = self.labels[:, None] == names
        if target.task == "binary":
            return np.asarray(hit[:, 1] - self.raw)
        return np.asarray(1 - self.raw[hit])


def _read(by: Challenge, schema: Schema, window: Window, now: datetime) -> pa.Table:
    rows = by.journal.read(window, as_of=now, labelled=True, schema=schema)
    return quarantine.sound(rows, by.audit, schema)


def _scored(by: Challenge, champion: Release, window: Window, now: datetime) -> _Scored:
    schema = Schema.from_json(by.releases.object(champion, "schema"))
    rows = _read(by, schema, window, now)
    if schema.target.task != "regression":
        rows = rows.filter(pc.is_in(rows.column("label"), pa.array(schema.target.classes)))
    model = by.releases.object(champion, "model")
    raw = outputs(by.trainer.score(model, rows, schema, None), schema.target)
    return _Scored(rows, raw, schema.labels(rows), schema)


def _judge(by: Challenge, champion: Release, scored: _Scored, judging: Window) -> Verdict:
    """The rule against the champion as it serves, on the rows of `judging`."""
    settings, target = by.settings, scored.schema.target
    judged, parts = scored.within(judging), []
    for window in _windows(judging, settings.monitor.window):
        since = max(champion.cutoff, window.start - _reach(settings))
        past = scored.within(Window(since, window.start))
        raw = scored.within(window).raw
        enough = past.rows.num_rows >= settings.gate.min_rows
        parts.append(past.fit(settings.monitor.block).apply(raw, target) if enough else raw)
    served = lineage.mapped(judged.raw, judged.rows, target, lineage.maps(by.releases, champion))
    return gate.judge(
        occurred_at=judged.rows.column("occurred_at").to_numpy(),
        champion=losses(served, judged.labels, target),
        challenger=losses(np.concatenate(parts), judged.labels, target),
        metric="rmse" if target.task == "regression" else "log_loss",
        gate=settings.gate,
        block=settings.monitor.block,
        window=judging,
        classes=None if target.task == "regression" else len(np.unique(judged.labels)),
    )


def _windows(judging: Window, length: timedelta) -> list[Window]:
    """Whole windows from its start on; the last one takes in what is left."""
    count = max(judging.length // length, 1)
    starts = [judging.start + place * length for place in range(count)]
    return [Window(a, b) for a, b in zip(starts, [*starts[1:], judging.end], strict=True)]


def _made(by: Challenge, champion: Release, last: _Scored, now: datetime) -> Candidate:
    """The candidate: the champion's objects, the new map, and golden rows as they come to by it."""
    held = {name: by.releases.object(champion, name) for name in champion.manifest["objects"]}
    held.pop("twin", None)  # made again below: it must be equal after the new map, too
    began, manifest = time.monotonic(), champion.manifest
    calibrator = last.fit(by.settings.monitor.block).to_json()
    seconds = time.monotonic() - began
    golden = pq.read_table(io.BytesIO(held["golden"]))
    scores = by.trainer.score(held["model"], golden, last.schema, calibrator)
    for name in scores.column_names:
        place = golden.schema.get_field_index(name)
        golden = golden.set_column(place, name, scores.column(name))
    buffer = io.BytesIO()
    pq.write_table(golden, buffer)
    times = last.rows.column("occurred_at")
    window = Window(times[0].as_py(), times[-1].as_py() + MICROSECOND)
    seen = _read(by, last.schema, window, now)  # with rows of classes that no map can learn
    candidate = Candidate(
        kind="recalibrate",
        parent=champion.id,
        objects={**held, "calibrator": calibrator, "golden": buffer.getvalue()},
        training=champion.training,
        members=champion.members,
        seconds=seconds,
        params=manifest["params"],
        versions=manifest["versions"],
        seed=manifest["seed"],
        calibration=TrainingRows(
            rows=seen.num_rows,
            start=window.start,
            cutoff=window.end,
            as_of=now,
            sha256=frame_hash(seen, last.schema),
        ),
    )
    by.query(candidate)
    return by.trainer.with_twin(candidate, last.rows)
