"""One policy through the stream: the loop itself, with stores in memory and a simulated clock.

Takes the scene that all policies share and one strategy. Gives a `Track`: the loss of every row
that was served, and what the loop did. In each window the champion answers first; the loop steps
when the window is over, on the labels that had arrived by then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from homeostat.alerts import NoAlerts
from homeostat.errors import TrainingError
from homeostat.hindsight import Aftermath, regrets
from homeostat.loop import Loop
from homeostat.memory import (
    CountingReporter,
    MemoryAudit,
    MemoryJournal,
    MemoryReleases,
    SimulatedClock,
)
from homeostat.records import Outcome, Release, Window
from homeostat.replay.learner import PolicyTrainer, Served, Shared
from homeostat.replay.policies import Strategy
from homeostat.settings import Settings
from homeostat.tracking import NoTracker

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

HORIZON = 4  # windows over which a promotion is judged in hindsight


@dataclass(frozen=True)
class Scene:
    """What all policies of one replay share."""

    rows: pa.Table  # as the journal takes them, with `label` and `labelled_at`, in order of time
    settings: Settings
    windows: tuple[Window, ...]
    shared: Shared

    @cached_property
    def times(self) -> NDArray[np.datetime64]:
        return np.asarray(self.rows.column("occurred_at").to_numpy(), dtype="datetime64[us]")

    @cached_property
    def edges(self) -> list[int]:
        """The number of the first row of each window, and that after the last one."""
        ends = [self.windows[0].start, *(window.end for window in self.windows)]
        naive = [np.datetime64(end.replace(tzinfo=None), "us") for end in ends]
        return [int(place) for place in np.searchsorted(self.times, naive)]

    @property
    def history(self) -> pa.Table:
        """The rows before the first window."""
        return self.rows.slice(0, self.edges[0])

    def window(self, number: int) -> slice:
        return slice(self.edges[number], self.edges[number + 1])

    def part(self, number: int) -> pa.Table:
        place = self.window(number)
        return self.rows.slice(place.start, place.stop - place.start)


@dataclass(frozen=True, slots=True)
class Promotion:
    at: datetime
    release: str
    previous: str
    harmful: bool  # worse over the horizon than what it replaced, see `hindsight.regrets`


@dataclass(frozen=True)
class Track:
    """What one policy came to."""

    policy: str
    loss: Floats  # of each row from the first window on; NaN without a label or where refused
    retrains: int  # challengers trained, promoted or not, the first model apart
    failed: int  # trainings that came to nothing
    blind: int  # windows in which the monitor failed
    refused: int  # rows
    cpu_seconds: float
    promotions: tuple[Promotion, ...]


def run(scene: Scene, strategy: Strategy, tick: Callable[[], object]) -> Track:
    """The policy from the first training to the last window; `tick` is called after each window.

    Raises TrainingError or EngineError when the first model cannot be trained. The step after the
    last window is left out: nothing would be served by what it released.
    """
    trainer = PolicyTrainer(scene.shared, scene.history)
    clock, reporter = SimulatedClock(scene.windows[0].start), CountingReporter()
    journal, releases, audit = MemoryJournal(), MemoryReleases(), MemoryAudit()
    loop = Loop(
        settings=scene.settings,
        clock=clock,
        journal=journal,
        releases=releases,
        audit=audit,
        trainer=trainer,
        reporter=reporter,
        tracker=NoTracker(),
        alerts=NoAlerts(),
        policy=strategy.policy,
        copy=_no_copy,
        watch=_no_watch,
        gated=strategy.gated,
    )
    _train_first(loop)
    served = []
    for number, window in enumerate(scene.windows):
        if number:
            loop.step()
        served.append(_serve(scene, releases, journal, number))
        clock.time = window.end
        tick()
    kinds = [line["kind"] for line in audit.lines()]
    return Track(
        policy=strategy.name,
        loss=np.concatenate([each.loss for each in served]),
        retrains=kinds.count("trained"),
        failed=kinds.count("training_failed"),
        blind=reporter.verdicts["failed"],
        refused=sum(len(each.refusals) for each in served),
        cpu_seconds=trainer.cpu_seconds,
        promotions=_promotions(scene, releases),
    )


def _train_first(loop: Loop) -> None:
    try:
        loop.train()
    except TrainingError as error:
        delay = loop.settings.labels.delay / timedelta(days=1)
        raise TrainingError(
            f"the first model cannot be trained on {loop.clock.now():%Y-%m-%d}: {error.message}",
            hint=f"Start later. Rows are learned from when they are {delay:g} days old "
            "(labels.delay).",
        ) from error


def _no_copy() -> None:
    """No files for people are wanted."""


def _no_watch(outcome: Outcome) -> None:
    """The audit trail tells afterwards what happened."""


def _serve(scene: Scene, releases: MemoryReleases, journal: MemoryJournal, number: int) -> Served:
    """Let the champion answer a window, and journal it as a server would have."""
    champion = releases.line()[0]
    served = _answers(scene, releases, champion, number)
    _journal(journal, scene.part(number), served, champion.id)
    journal.reject(served.refusals, scene.windows[number].start)
    return served


def _answers(scene: Scene, releases: MemoryReleases, release: Release, number: int) -> Served:
    held = {name: releases.object(release, name) for name in release.manifest["objects"]}
    return scene.shared.serve(held, number, scene.part(number))


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


def _promotions(scene: Scene, releases: MemoryReleases) -> tuple[Promotion, ...]:
    """Every promotion but the first release, judged over the windows that followed it."""
    line = list(reversed(releases.line()))
    made = [(new, old) for old, new in pairwise(line)]
    after = [_aftermath(scene, releases, new, old) for new, old in made]
    judged = regrets(after, block=scene.settings.monitor.block)
    return tuple(
        Promotion(_at(new), new.id, old.id, regret.harmful)
        for (new, old), regret in zip(made, judged, strict=True)
    )


def _at(release: Release) -> datetime:
    return datetime.fromisoformat(release.manifest["created_at"])


def _aftermath(scene: Scene, releases: MemoryReleases, new: Release, old: Release) -> Aftermath:
    """Losses of both on the rows of the horizon that both answer."""
    at = _at(new)
    numbers = [i for i, window in enumerate(scene.windows) if window.start >= at][:HORIZON]
    losses = [
        np.concatenate([_answers(scene, releases, release, i).loss for i in numbers])
        for release in (new, old)
    ]
    times = np.concatenate([scene.times[scene.window(i)] for i in numbers])
    both = np.isfinite(losses[0]) & np.isfinite(losses[1])
    return Aftermath(new.id, at, times[both], losses[0][both], losses[1][both])
