"""Plain schedules, read off the matrix: what retraining at these steps would have come to.

Takes the matrix of models and windows, and a strategy that needs no loop. Gives its `Track`; no
gate judges here and no monitor looks, as in the yardsticks of the field.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from homeostat.replay.evidently import drifted
from homeostat.replay.matrix import ALL, LATE, Matrix
from homeostat.replay.oracle import best_schedule
from homeostat.replay.policies import Every, Evidently, Never
from homeostat.replay.track import Change, Scene, Track, judged

if TYPE_CHECKING:
    from homeostat.replay.track import Floats

Due = Callable[[int, int, int], bool]
"""Whether to retrain at a step; takes the steps of the last training and of what serves, too."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Which models serve from which step on, and what was tried besides."""

    releases: tuple[tuple[int, str], ...]
    failed: int = 0


def scheduled(scene: Scene, matrix: Matrix, strategy: Never | Every | Evidently) -> Track:
    """The way of a plain schedule. Raises HomeostatError where Evidently fails."""
    if isinstance(strategy, Never):
        return follow(scene, matrix, strategy.name, Plan(((0, ALL),)), mapped=False)
    if isinstance(strategy, Every):
        steps, mapped = strategy.steps, strategy.recalibrate
        plan = _plan(matrix, lambda step, tried, _: step - tried >= steps)
        return follow(scene, matrix, strategy.name, plan, mapped=mapped)
    monitor, seed = scene.settings.monitor, scene.settings.project.seed

    def due(step: int, tried: int, serving: int) -> bool:  # noqa: ARG001 - a Due
        call = partial(drifted, window=monitor.window, sample=monitor.sample, seed=seed)
        work = matrix.work
        return matrix.children.submit(lambda engine: engine.run(call, work, serving, step)).result()

    return follow(scene, matrix, strategy.name, _plan(matrix, due), mapped=False)


def in_hindsight(
    scene: Scene, matrix: Matrix, name: str, retrains: int, kept: Sequence[Track]
) -> Track:
    """The best way in hindsight, over the rows that all models and the tracks `kept` answered."""
    first = matrix.work.edges[0]
    common = np.all([np.isfinite(track.loss) for track in kept], axis=0)
    for step in range(matrix.steps):
        for model in (ALL, LATE):
            if matrix.get(step, model) is not None:
                loss = matrix.losses(step, model, mapped=False)
                common[matrix.work.edges[step] - first :] &= ~np.isinf(loss)
    found = best_schedule(matrix.costs((ALL, LATE), common), retrains)
    return follow(scene, matrix, name, Plan(found.releases), mapped=matrix.maps)


def _plan(matrix: Matrix, due: Due) -> Plan:
    """Retrain whenever it is due, on all mature rows; where that fails the champion stays."""
    releases, tried, failed = [(0, ALL)], 0, 0
    for step in range(1, matrix.steps):
        if not due(step, tried, releases[-1][0]):
            continue
        if matrix.get(step, ALL) is None:
            failed += 1
        else:
            releases.append((step, ALL))
        tried = step
    return Plan(tuple(releases), failed)


def follow(scene: Scene, matrix: Matrix, name: str, plan: Plan, *, mapped: bool) -> Track:
    """What the models of a plan come to, one after the other, bare or by prequential maps."""
    ends = [*(step for step, _ in plan.releases[1:]), matrix.steps]
    edges, parts, seconds = matrix.work.edges, [], 0.0
    for (step, model), end in zip(plan.releases, ends, strict=True):
        loss = matrix.losses(step, model, mapped=mapped)
        parts.append(loss[: edges[end] - edges[step]])
    for release in plan.releases[1:]:
        found = matrix.get(*release)
        seconds += found.trial.seconds if found else 0.0
    changes = [
        Change(new[0], "retrain", f"{new[1]}-{new[0]}", _after(matrix, new, old, mapped=mapped))
        for old, new in pairwise(plan.releases)
    ]
    marks, regret = judged(scene, changes)
    loss = np.concatenate(parts)
    return Track(
        policy=name,
        loss=np.where(np.isinf(loss), np.nan, loss),
        retrains=len(changes),
        recalibrations=matrix.steps - len(plan.releases) if mapped else 0,
        failed=plan.failed,
        blind=0,
        refused=int(np.isinf(loss).sum()),
        cpu_seconds=seconds,
        marks=marks,
        regret=regret,
    )


def _after(
    matrix: Matrix, new: tuple[int, str], old: tuple[int, str], *, mapped: bool
) -> Callable[[slice], tuple[Floats, Floats]]:
    def after(place: slice) -> tuple[Floats, Floats]:
        found = []
        for step, model in (new, old):
            first = matrix.work.edges[step]
            loss = matrix.losses(step, model, mapped=mapped)
            found.append(loss[place.start - first : place.stop - first])
        return found[0], found[1]

    return after
