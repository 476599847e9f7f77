"""The best schedule in hindsight: which models, released when, would have cost least.

Takes what each model costs in each window from the step at which it was trained. Gives the cheapest
way through all windows with a bounded number of retrains. A yardstick: it reads every window's
labels before it chooses, which no policy can.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Which model serves from which step on; the first one serves from step 0."""

    cost: float  # the sum over all windows
    releases: tuple[tuple[int, str], ...]  # step and name of each model, in order of time

    @property
    def retrains(self) -> int:
        return len(self.releases) - 1


def best_schedule(costs: Sequence[Mapping[str, Floats]], retrains: int) -> Schedule:
    """The cheapest schedule with at most so many retrains.

    `costs[t]` holds, by name, the models trained at step t, each with its cost in windows t to
    n − 1, shape (n − t,); a step at which none could be trained is empty, step 0 is not. A model
    serves from its own step until another is released, so an older one never comes back.

    With C_m(t, u) the cost of model m of step t in windows t to u − 1, G_r(t) is the least cost
    from step t on, when one is released there and r retrains remain (Bellman 1957):
    G_r(t) = min over m of min(C_m(t, n), min over u > t of C_m(t, u) + G_(r−1)(u)).
    Of equal schedules the one with fewer retrains is given. Raises ValueError without a model at
    step 0, and for a negative number.
    """
    if retrains < 0 or not costs or not costs[0]:
        raise ValueError("a schedule needs a model at step 0 and no negative number of retrains.")
    steps, room = len(costs), min(retrains, len(costs) - 1)
    sums = [{name: np.cumsum(cost) for name, cost in models.items()} for models in costs]
    least = np.full((room + 1, steps + 1), np.inf)
    chosen: dict[tuple[int, int], tuple[str, int]] = {}  # model, and the step that ends it
    for left in range(room + 1):
        for step in reversed(range(steps)):
            for name, total in sums[step].items():
                until, cost = steps, float(total[-1])
                if left and step + 1 < steps:
                    ways = total[:-1] + least[left - 1, step + 1 : steps]
                    place = int(np.argmin(ways))
                    if ways[place] < cost:
                        until, cost = step + 1 + place, float(ways[place])
                if cost < least[left, step]:
                    least[left, step], chosen[left, step] = cost, (name, until)
    needed = int(np.argmin(least[:, 0]))
    return Schedule(float(least[needed, 0]), _path(chosen, needed, steps))


def _path(
    chosen: Mapping[tuple[int, int], tuple[str, int]], left: int, steps: int
) -> tuple[tuple[int, str], ...]:
    releases, step = [], 0
    while step < steps:
        name, until = chosen[left, step]
        releases.append((step, name))
        left, step = left - 1, until
    return tuple(releases)
