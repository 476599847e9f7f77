"""The loop itself through the stream, with stores in memory and a simulated clock.

Takes the scene that all policies share, the fits that they share, and the rule to decide by. Gives
a `Track`: the loss of every row that was served, and what the loop did. In each window the champion
answers first; the loop steps when the window is over, on the labels that had arrived by then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from homeostat import decide
from homeostat.alerts import NoAlerts
from homeostat.loop import Loop
from homeostat.memory import (
    CountingReporter,
    MemoryAudit,
    MemoryJournal,
    MemoryReleases,
    SimulatedClock,
)
from homeostat.records import Action, Outcome, Release
from homeostat.replay.learner import PolicyTrainer, Served, Shared
from homeostat.replay.policies import Ours
from homeostat.replay.track import Change, Kind, Mark, Scene, Track, judged
from homeostat.tracking import NoTracker

if TYPE_CHECKING:
    from homeostat.replay.track import Floats

KINDS: dict[Action, Kind] = {
    Action.RETRAIN: "retrain",
    Action.RECALIBRATE: "recalibrate",
    Action.ROLL_BACK: "roll_back",
}


def run(scene: Scene, shared: Shared, strategy: Ours, tick: Callable[[], object]) -> Track:
    """The rule from the first training to the last window; `tick` is called after each window.

    Raises TrainingError or EngineError when the first model cannot be trained. The step after the
    last window is left out: nothing would be served by what it released.
    """
    settings = scene.settings.model_copy(update={"decide": strategy.rule})
    trainer = PolicyTrainer(shared, scene.history)
    clock, reporter = SimulatedClock(scene.windows[0].start), CountingReporter()
    journal, releases, audit = MemoryJournal(), MemoryReleases(), MemoryAudit()
    loop = Loop(
        settings=settings,
        clock=clock,
        journal=journal,
        releases=releases,
        audit=audit,
        trainer=trainer,
        reporter=reporter,
        tracker=NoTracker(),
        alerts=NoAlerts(),
        policy=decide.policy(strategy.rule),
        copy=_no_copy,
        watch=_no_watch,
    )
    loop.train()
    served: list[Served] = []
    changes: list[Change] = []
    refused: list[Mark] = []
    for number, window in enumerate(scene.windows):
        if number:
            old = _champion(releases)
            outcome = loop.step()
            new, kind = _champion(releases), KINDS.get(outcome.decision.action)
            if outcome.refused is not None:
                refused.append(Mark(window.start, "retrain", promoted=False, needless=True))
            if kind is not None and new.id != old.id:
                after = _after(scene, shared, releases, new, old)
                changes.append(Change(number, kind, new.id, after))
            elif kind is not None:
                refused.append(Mark(window.start, kind, promoted=False, needless=kind == "retrain"))
        served.append(_serve(scene, shared, releases, journal, number))
        clock.time = window.end
        tick()
    kinds = [line["kind"] for line in audit.lines()]
    marks, regret = judged(scene, changes)
    return Track(
        policy=strategy.name,
        loss=np.concatenate([each.loss for each in served]),
        retrains=kinds.count("trained"),
        recalibrations=sum(change.kind == "recalibrate" for change in changes),
        failed=kinds.count("training_failed"),
        blind=reporter.verdicts["failed"],
        refused=sum(len(each.refusals) for each in served),
        cpu_seconds=trainer.cpu_seconds,
        marks=tuple(sorted((*marks, *refused), key=lambda mark: mark.at)),
        regret=regret,
    )


def _no_copy() -> None:
    """No files for people are wanted."""


def _no_watch(outcome: Outcome) -> None:
    """The outcome is looked at where it falls."""


def _champion(releases: MemoryReleases) -> Release:
    return releases.line()[0]


def _serve(
    scene: Scene, shared: Shared, releases: MemoryReleases, journal: MemoryJournal, number: int
) -> Served:
    """Let the champion answer a window, and journal it as a server would have."""
    champion = _champion(releases)
    served = _answers(shared, releases, champion, number)
    _journal(journal, scene.part(number), served, champion.id)
    journal.reject(served.refusals, scene.windows[number].start)
    return served


def _answers(shared: Shared, releases: MemoryReleases, release: Release, number: int) -> Served:
    held = {name: releases.object(release, name) for name in release.manifest["objects"]}
    return shared.serve(held, number)


def _after(
    scene: Scene, shared: Shared, releases: MemoryReleases, new: Release, old: Release
) -> Callable[[slice], tuple[Floats, Floats]]:
    """Losses of both on rows that are whole windows."""

    def after(place: slice) -> tuple[Floats, Floats]:
        first, last = (scene.edges.index(edge) for edge in (place.start, place.stop))
        found = [
            [_answers(shared, releases, release, i).loss for i in range(first, last)]
            for release in (new, old)
        ]
        promoted, replaced = (np.concatenate([[], *losses]) for losses in found)
        return promoted, replaced

    return after


def _journal(journal: MemoryJournal, rows: pa.Table, served: Served, release: str) -> None:
    """Add the rows that were answered, and their labels, which are hidden until they arrived."""
    rows = rows.filter(pa.array(served.answered))
    columns = {
        **{name: served.scores.column(name) for name in served.scores.column_names},
        "recorded_at": rows.column("occurred_at"),
        "source": pa.repeat(pa.scalar("serve"), rows.num_rows),
        "model_version": pa.repeat(pa.scalar(release), rows.num_rows),
    }
    for name, column in columns.items():
        rows = rows.set_column(rows.schema.get_field_index(name), name, column)
    journal.append(rows.drop_columns(["label", "labelled_at"]))
    known = pc.and_(pc.is_valid(rows.column("label")), pc.is_valid(rows.column("labelled_at")))
    journal.label(rows.filter(known).select(["prediction_id", "label", "labelled_at"]))
