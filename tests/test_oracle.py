"""The oracle: no schedule that its rules allow is cheaper, as trying all of them shows."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeostat.replay.oracle import best_schedule


@st.composite
def matrices(draw):
    """Costs of up to two models at each step; some steps have none."""
    steps = draw(st.integers(1, 6))
    numbers = st.integers(0, 9)
    found = []
    for step in range(steps):
        least = 0 if step else 1
        names = draw(st.sets(st.sampled_from(["all", "recent"]), min_size=least))
        costs = st.lists(numbers, min_size=steps - step, max_size=steps - step)
        found.append({name: np.asarray(draw(costs), dtype=float) for name in sorted(names)})
    return found


def all_schedules(costs, retrains):
    """Every schedule that the rules allow, with its cost."""
    steps = len(costs)
    for count in range(retrains + 1):
        for later in combinations(range(1, steps), count):
            at = (0, *later)
            ends = (*later, steps)
            for names in product(*(costs[step] for step in at)):
                cost = sum(
                    costs[step][name][: end - step].sum()
                    for step, name, end in zip(at, names, ends, strict=True)
                )
                yield float(cost), tuple(zip(at, names, strict=True))


@settings(max_examples=300, deadline=None)
@given(matrices(), st.integers(0, 6))
def test_no_allowed_schedule_is_cheaper(costs, retrains):
    found = best_schedule(costs, retrains)
    tried = dict.fromkeys(all_schedules(costs, retrains))
    least = min(cost for cost, _ in tried)
    assert found.cost == least
    assert (found.cost, found.releases) in tried
    fewest = min(len(releases) for cost, releases in tried if cost == least)
    assert found.retrains <= retrains
    assert found.retrains + 1 == fewest


def test_it_retrains_when_the_world_changes_and_forgets_what_was_before():
    stale = np.array([1.0, 1.0, 9.0, 9.0])
    costs = [
        {"all": stale},
        {"all": stale[1:]},
        {"all": np.array([5.0, 5.0]), "recent": np.array([2.0, 2.0])},
        {"all": np.array([4.0])},
    ]
    assert best_schedule(costs, 0).releases == ((0, "all"),)
    found = best_schedule(costs, 3)
    assert found.releases == ((0, "all"), (2, "recent"))
    assert (found.cost, found.retrains) == (6, 1)


def test_it_needs_a_first_model():
    with pytest.raises(ValueError, match="model at step 0"):
        best_schedule([{}, {"all": np.ones(1)}], 1)
    with pytest.raises(ValueError, match="negative"):
        best_schedule([{"all": np.ones(1)}], -1)
