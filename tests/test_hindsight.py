"""A promotion is harmful when it was clearly worse than what it replaced, and else it is not."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest
from scipy import stats as scipy_stats

from homeostat.hindsight import Aftermath, needless, regrets
from homeostat.testing import START

DAY = timedelta(days=1)
DAYS, PER_DAY = 28, 10


def after(harm, *, spread=0.05, seed=0, days=DAYS):
    random = np.random.default_rng(seed)
    rows = days * PER_DAY
    replaced = np.full(rows, 0.5)
    hours = np.arange(rows) * np.timedelta64(24 // PER_DAY * 3600 + 1440, "s")
    times = np.datetime64(START.replace(tzinfo=None), "us") + hours
    return Aftermath("r", START, times, replaced + harm + random.normal(0, spread, rows), replaced)


def judged(*aftermaths):
    return regrets(aftermaths, block=DAY)


def test_a_promotion_that_was_clearly_worse_is_harmful():
    (found,) = judged(after(0.05))
    assert found.harmful
    assert found.relative == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("harm", [-0.05, 0.0, 0.004])
def test_a_promotion_that_was_better_or_hardly_worse_is_not(harm):
    (found,) = judged(after(harm, spread=0.001))
    assert not found.harmful


def test_worse_by_chance_is_not_harmful():
    (found,) = judged(after(0.02, spread=2.0, days=6))
    assert found.p_value > 0.05
    assert not found.harmful


def test_the_p_value_is_that_of_the_days_means():
    one = after(0.01, spread=0.2)
    (found,) = judged(one)
    days = (one.promoted - one.replaced).reshape(DAYS, PER_DAY).mean(axis=1)
    theirs = scipy_stats.ttest_1samp(days, 0, alternative="greater").pvalue
    assert found.p_value == pytest.approx(theirs, rel=1e-6)


def test_many_promotions_are_corrected_for_being_many():
    one = after(0.03, spread=0.22, seed=4)
    (alone,) = judged(one)
    many = judged(one, *(after(-0.01, seed=seed) for seed in range(9)))
    assert many[0].p_value == alone.p_value
    assert many[0].adjusted_p_value == pytest.approx(min(1, 10 * alone.p_value))
    assert [regret.harmful for regret in many[1:]] == [False] * 9


def test_without_rows_or_with_one_day_nothing_is_held_against_a_promotion():
    nothing = Aftermath("r", START, np.array([], "datetime64[us]"), np.array([]), np.array([]))
    found = judged(nothing, after(0.2, days=1))
    assert [regret.p_value for regret in found] == [1.0, 1.0]
    assert not any(regret.harmful for regret in found)
    assert judged() == ()


def test_the_total_is_what_was_lost_over_all_rows_and_nothing_where_it_was_better():
    worse, better = judged(after(0.05), after(-0.05))
    rows = after(0.05)
    assert worse.total == pytest.approx((rows.promoted - rows.replaced).sum())
    assert better.total == 0


@pytest.mark.parametrize(("harm", "vain"), [(-0.05, False), (-0.0005, True), (0.05, True)])
def test_a_retrain_is_needless_unless_it_was_clearly_better(harm, vain):
    found = after(harm)
    assert needless(found, block=DAY) is vain


def test_a_retrain_that_nothing_followed_was_needless():
    assert needless(after(-0.05, days=0), block=DAY)
