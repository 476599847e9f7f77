"""Which labelled rows may train a challenger, and which are kept back to judge it.

Takes the labelled rows of the journal and the times that bound them, and gives two tables that
share no row: everything before the cut-off, and everything after it. No row after the cut-off was
seen by the champion, by the challenger, or by an earlier look of the gate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from homeostat.records import EPOCH, MICROSECOND, Window
from homeostat.schema import TIMESTAMP
from homeostat.settings import Gate, Training
from homeostat.stats import block_keys


@dataclass(frozen=True, slots=True)
class Holdout:
    training: pa.Table  # labelled rows before `window`
    fresh: pa.Table  # labelled rows within it, seen by no model
    window: Window
    problem: str  # one sentence when the rows do not suffice, else empty

    @property
    def judging(self) -> pa.Table:
        """The fresh rows; where there are none, those of training."""
        return self.fresh if self.fresh.num_rows else self.training


def before(rows: pa.Table, moment: datetime) -> pa.Table:
    """The rows whose event time is earlier than `moment`."""
    return rows.filter(pc.less(rows.column("occurred_at"), pa.scalar(moment, TIMESTAMP)))


def newest(rows: pa.Table, share: float) -> pa.Table:
    """The `share` of the rows that is newest, with all that are as old as the oldest of it."""
    wanted = math.ceil(share * rows.num_rows)
    if not 0 < wanted < rows.num_rows:
        return rows.slice(0, 0) if wanted <= 0 else rows
    times = pc.sort_indices(rows.column("occurred_at"), sort_keys=[("", "descending")])
    oldest = rows.column("occurred_at")[times[wanted - 1].as_py()]
    return rows.filter(pc.greater_equal(rows.column("occurred_at"), oldest))


def hold_out(
    rows: pa.Table,
    *,
    known_until: datetime | None,
    looked_until: datetime | None,
    gate: Gate,
    training: Training,
    block: timedelta,
) -> Holdout:
    """Keep back the newest rows: `gate.window` of event time, of which no row was used before.

    `rows` are labelled and mature, with at least the column `occurred_at`. The champion was
    trained on rows before `known_until`, an earlier look of the gate used rows before
    `looked_until`; None where there was neither. `problem` says in one sentence why the rows do
    not suffice; the caller must not train then. Beside a champion that is also where they lie in
    fewer than `gate.min_blocks` of the `block`s of time.
    """
    used = [moment for moment in (known_until, looked_until) if moment is not None]
    fresh_after = max(used, default=None)
    if not rows.num_rows:
        return _nothing(rows, fresh_after or EPOCH)
    end = pc.max(rows.column("occurred_at")).as_py() + MICROSECOND
    start = end - gate.window
    if fresh_after is not None:
        start = min(max(start, fresh_after), end)
    old = before(rows, start)
    fresh = rows.filter(pc.greater_equal(rows.column("occurred_at"), pa.scalar(start, TIMESTAMP)))
    learned = before(old, known_until).num_rows if known_until else 0
    parts = Holdout(old, fresh, Window(start, end), "")
    problem = _problem(parts, learned, gate, training)
    if known_until is not None and not problem:
        problem = _few(parts, gate, block)
    return replace(parts, problem=problem)


def _nothing(rows: pa.Table, at: datetime) -> Holdout:
    return Holdout(rows, rows, Window(at, at), "No row has a label yet.")


def _few(parts: Holdout, gate: Gate, block: timedelta) -> str:
    blocks = len(np.unique(block_keys(parts.fresh.column("occurred_at").to_numpy(), block)))
    if blocks >= gate.min_blocks:
        return ""
    return (
        f"The {parts.fresh.num_rows:,} labelled rows newer than "
        f"{parts.window.start:%Y-%m-%d %H:%M} UTC lie in {blocks} of the {gate.min_blocks} blocks "
        "of time that the gate wants (gate.min_blocks)."
    )


def _problem(parts: Holdout, learned: int, gate: Gate, training: Training) -> str:
    """Why the rows do not suffice, of which the champion learned from `learned`; empty when they
    do.
    """
    old, fresh, start = parts.training, parts.fresh, parts.window.start
    if not fresh.num_rows:
        return (
            f"No labelled row is newer than {start:%Y-%m-%d %H:%M} UTC, up to which rows were "
            "used already, so nothing could judge a challenger."
        )
    if learned and learned == old.num_rows:
        return (
            f"The {fresh.num_rows:,} labelled rows that the champion has not seen are all needed "
            "to judge a challenger, so it would learn nothing more."
        )
    if fresh.num_rows < gate.min_rows:
        return (
            f"Only {fresh.num_rows} labelled rows are newer than {start:%Y-%m-%d %H:%M} UTC; "
            f"the gate wants {gate.min_rows} (gate.min_rows)."
        )
    if old.num_rows < training.min_rows:
        return (
            f"Only {old.num_rows} labelled rows are older than {start:%Y-%m-%d %H:%M} UTC; "
            f"training wants {training.min_rows} (training.min_rows)."
        )
    return ""
