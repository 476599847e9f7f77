"""Which map a champion is to have: by a record of how each candidate would have done so far.

Takes the stores. Keeps in the audit chain, for each window whose labels have come, what bare
answers and each candidate's maps cost there, every map fitted on what was known when the window
began; gives the candidate that did best, and a release with its map.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from homeostat import recalibrate
from homeostat.binning import moments
from homeostat.past import MOVES, RECORD, UNMAPPED, Past
from homeostat.recalibrate import RIDGE
from homeostat.records import MICROSECOND, Candidate, Json, TrainingRows, Window
from homeostat.rowhash import frame_hash
from homeostat.schema import Schema, Target
from homeostat.scoring import Calibrator, losses, outputs, tabulate
from homeostat.settings import Settings
from homeostat.stats import block_keys
from homeostat.stores import Stores
from homeostat.unseen import Model, Unseen, labelled, unseen

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rule:
    """How a map is fitted: on how many windows, and with how many blocks' worth of ridge; on no
    window it is the identity.
    """

    windows: int
    ridge: float

    @property
    def name(self) -> str:
        """In the record."""
        return UNMAPPED if not self.windows else f"{self.windows}x{self.ridge:g}"

    def __str__(self) -> str:
        if not self.windows:
            return "no map"
        return f"a map of {self.windows} windows with the ridge {self.ridge:g}"

    def fit(self, rows: Unseen, until: datetime, settings: Settings) -> Calibrator | None:
        """The map of the rows before `until`; None where they are too few."""
        if not self.windows:
            return identity(rows.schema.target)
        past = self.rows(rows, until, settings)
        if past.rows.num_rows < settings.gate.min_rows:
            return None
        return past.fit(settings.monitor.block, self.ridge)

    def rows(self, rows: Unseen, until: datetime, settings: Settings) -> Unseen:
        """Those of the windows before `until`; of the identity, all before it."""
        windows = self.windows or settings.decide.calibration_windows
        return rows.within(Window(until - windows * settings.monitor.window, until))


BARE = Rule(0, 0.0)


def rules(settings: Settings) -> tuple[Rule, ...]:
    """The candidates beside `BARE`; the first is that of a project without a record."""
    windows = settings.decide.calibration_windows
    return (Rule(windows, RIDGE), Rule(max(windows // 2, 1), RIDGE), Rule(windows, 5 * RIDGE))


def reach(settings: Settings) -> timedelta:
    """How far back the rows of a map lie, at most."""
    return settings.decide.calibration_windows * settings.monitor.window


def identity(target: Target) -> Calibrator:
    """The map that changes nothing."""
    return Calibrator(1.0, (0.0,) * (len(target.classes) if target.task == "multiclass" else 1))


def chosen(past: Past, settings: Settings) -> Rule:
    """The candidate of least mean loss over all windows of the record; `BARE` where none is better
    than bare answers, and the first of `rules` where there is no record.
    """
    candidates = rules(settings)
    gains = {each: past.maps[each.name] for each in candidates if each.name in past.maps}
    if not gains:
        return candidates[0]
    best = min(gains, key=lambda each: gains[each])
    return best if gains[best] < 0 else BARE


def crossed(scores: pa.Table, rows: pa.Table, schema: Schema, block: timedelta) -> pa.Table:
    """Bare `scores` of labelled rows, as maps make them that are cross-fitted on these very rows;
    see `recalibrate.crossed`. Rows of classes that the schema does not know teach no map.
    """
    target, taught = schema.target, np.ones(rows.num_rows, dtype=bool)
    if target.task != "regression":
        taught = np.asarray(pc.is_in(rows.column("label"), pa.array(target.classes, pa.string())))
    if not taught.any():
        return scores
    known, output = rows.filter(pa.array(taught)), np.array(outputs(scores, target))
    keys = block_keys(moments(known), block)
    output[taught] = recalibrate.crossed(output[taught], schema.labels(known), keys, target)
    return tabulate(output, target)


def record(by: Stores, now: datetime) -> None:
    """Add to the record each whole window of rows that became mature since, as far back as a map
    reaches. Raises HomeostatError.
    """
    settings, lines = by.settings, by.audit.lines()
    moves = [line for line in lines if line["kind"] in MOVES]
    if not moves:
        return
    mature, length = now - settings.labels.delay, settings.monitor.window
    start = by.audit.past().recorded_until or datetime.fromisoformat(moves[0]["at"])
    start = max(start, mature - reach(settings))
    while start + length <= mature:
        window = Window(start, start + length)
        served = [m for m in moves if datetime.fromisoformat(m["at"]) <= window.start] or moves[:1]
        told = _cost(by, served[-1]["body"]["release"], window, now)
        if told:
            by.audit.write(RECORD, now, told)
        start = window.end


def given(by: Stores, candidate: Candidate, until: datetime, now: datetime) -> Candidate | None:
    """The candidate with the map that it is to serve with from the start, by the record, of the
    last rows before `until`, the end of those that judged it; None where too few rows are known
    that its model has not seen.
    """
    settings, rule = by.settings, chosen(by.audit.past(), by.settings)
    rows = unseen(by, Model.made(candidate), Window(until - reach(settings), until), now)
    calibrator = rule.fit(rows, until, settings)
    if calibrator is None:
        return None
    taught = trained(by, rule.rows(rows, until, settings), now)
    return mapped(by, candidate, calibrator, rows.schema, taught)


def mapped(
    by: Stores,
    candidate: Candidate,
    calibrator: Calibrator,
    schema: Schema,
    taught: TrainingRows | None,
) -> Candidate:
    """The candidate with the map over its model, golden rows as they come to by it, and the name
    of the rows that fitted it, as `trained` has it.
    """
    held, text = dict(candidate.objects), calibrator.to_json()
    golden = pq.read_table(io.BytesIO(held["golden"]))
    scores = by.trainer.score(held["model"], golden, schema, text)
    for name in scores.column_names:
        place = golden.schema.get_field_index(name)
        golden = golden.set_column(place, name, scores.column(name))
    buffer = io.BytesIO()
    pq.write_table(golden, buffer)
    objects = {**held, "calibrator": text, "golden": buffer.getvalue()}
    return replace(candidate, objects=objects, calibration=taught)


def trained(by: Stores, rows: Unseen, now: datetime) -> TrainingRows:
    """The name of the rows that fit a map: all that are labelled in the time of `rows`."""
    times = rows.rows.column("occurred_at")
    window = Window(times[0].as_py(), times[-1].as_py() + MICROSECOND)
    seen = labelled(by, rows.schema, window, now)  # with rows of classes that no map can learn
    return TrainingRows(
        rows=seen.num_rows,
        start=window.start,
        cutoff=window.end,
        as_of=now,
        sha256=frame_hash(seen, rows.schema),
    )


def foretold(
    by: Stores,
    model: Model,
    candidates: Sequence[Rule],
    window: Window,
    now: datetime,
    *,
    ahead: bool = False,
) -> tuple[Unseen, list[Floats | None]]:
    """The labelled rows of `window`, and what each candidate's map would have made of their bare
    outputs, had it served: fitted on the rows that were old enough when the window began, by the
    labels that had come by then, or `ahead` of them, on all rows before the window. None where
    these were too few.
    """
    settings = by.settings
    rows = unseen(by, model, window, now)
    known = window.start if ahead else window.start - settings.labels.delay
    if not rows.rows.num_rows:
        return rows, [None for _ in candidates]
    told = now if ahead else window.start
    past = unseen(by, model, Window(known - reach(settings), known), now, as_of=told)
    fits = [rule.fit(past, known, settings) for rule in candidates]
    target = rows.schema.target
    return rows, [None if own is None else own.apply(rows.raw, target) for own in fits]


def _cost(by: Stores, release: str, window: Window, now: datetime) -> Mapping[str, Json] | None:
    """The mean loss of bare answers, and by each candidate's map, of the release that served when
    the window began; None without rows.
    """
    model, candidates = Model.of(by.releases, by.releases.get(release)), rules(by.settings)
    rows, mapped = foretold(by, model, candidates, window, now)
    if not rows.rows.num_rows:
        return None
    names = (UNMAPPED, *(rule.name for rule in candidates))
    cost = {}
    for name, output in zip(names, (rows.raw, *mapped), strict=True):
        answers = rows.raw if output is None else output
        cost[name] = float(losses(answers, rows.labels, rows.schema.target).mean())
    least = min(cost, key=lambda name: cost[name])
    told = f"loss {cost[least]:.4g} by {least}, the least, and {cost[UNMAPPED]:.4g} bare"
    return {
        "window": window,
        "release": release,
        "rows": rows.rows.num_rows,
        "loss": cost,
        "reason": f"Maps on {rows.rows.num_rows:,} rows from {window}: {told}.",
    }
