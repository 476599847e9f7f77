"""Wealth: the gate's looks over years promote little harm, and never cease to promote."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from homeostat.past import Look
from homeostat.settings import Gate
from homeostat.wealth import YEAR, level

START = datetime(2020, 1, 1, tzinfo=UTC)
WEEK, MONTH = timedelta(days=7), timedelta(days=30)
GATE = Gate(false_promotions=0.2, confidence=0.95)
ALPHA = 1 - GATE.confidence
FREE = Gate(false_promotions=None, confidence=0.95)


def years(rng, *, count, every, better=0.0, effect=0.0, gate=GATE, blocks=14):
    """What `count` looks came to: harmful promotions, promotions, truly better ones promoted and
    all of those; a challenger is worse by just as much as counts as harm, or better.
    """
    looks, found = [], np.zeros(4)
    for number in range(count):
        now = START + number * every
        bar = level(looks, now, gate)
        good = rng.random() < better
        draw = (rng.normal() - effect * good) / np.sqrt(rng.chisquare(blocks - 1) / (blocks - 1))
        promoted = bool(stats.t.cdf(draw, blocks - 1) <= bar) if draw < 0 else False
        found += (promoted and not good, promoted, promoted and good, good)
        looks.append(Look(now, bar, promoted))
    return found


def test_ten_years_of_weekly_looks_at_challengers_that_are_no_better_promote_few():
    rng, runs = np.random.default_rng(3), 12
    found = np.mean([years(rng, count=520, every=WEEK)[1] for _ in range(runs)])
    bound = 4 * ALPHA + ALPHA * found + GATE.false_promotions * 10
    assert found <= bound + 3 * np.sqrt(bound / runs)
    assert found < 0.15 * 520 * ALPHA  # what the same looks promote at the full level


def test_where_a_third_is_truly_better_little_power_is_lost():
    rng, runs = np.random.default_rng(5), 25
    told = np.zeros(4)
    for _ in range(runs):
        told += years(rng, count=60, every=MONTH, better=0.3, effect=3.5)
    free = 1 - stats.nct.cdf(-stats.t.ppf(ALPHA, 13), 13, 3.5)
    promoted = told[2] / told[3]
    assert free == pytest.approx(0.95, abs=0.02)
    assert promoted > free - 0.06
    assert told[0] / told[1] < 0.16


def test_after_years_of_refusals_a_better_challenger_is_promoted_again_at_a_level_that_holds():
    refused = []
    for number in range(520):
        now = START + number * WEEK
        refused.append(Look(now, level(refused, now, GATE), promoted=False))
    last = level(refused, START + 520 * WEEK, GATE)
    steady = GATE.false_promotions * (WEEK / YEAR)
    assert last == pytest.approx(steady, rel=0.4)
    assert level(refused, START + 520 * WEEK + 5 * YEAR, GATE) == ALPHA


def test_by_default_looks_every_three_weeks_have_most_of_the_full_level_for_years():
    looks = []
    for number in range(100):
        now = START + number * 3 * WEEK
        looks.append(Look(now, level(looks, now, Gate()), promoted=number % 2 == 0))
    assert min(look.level for look in looks) > 0.5 * (1 - Gate().confidence)


def test_promotions_restore_the_full_level():
    looks = []
    for number in range(20):
        now = START + number * WEEK
        looks.append(Look(now, level(looks, now, GATE), promoted=True))
    assert level(looks, START + 20 * WEEK, GATE) == ALPHA


def test_the_first_look_has_the_full_level_and_without_the_setting_all_have_it():
    assert level([], START, GATE) == pytest.approx(ALPHA)
    refused = [Look(START, ALPHA, promoted=False)] * 50
    assert level(refused, START, FREE) == pytest.approx(ALPHA)
    assert level(refused, START, GATE) == 0


@given(
    st.lists(st.tuples(st.floats(0, 900), st.booleans()), max_size=40),
    st.floats(0, 3),
    st.floats(0.6, 0.99),
)
def test_no_more_is_ever_spent_than_came_in(steps, yearly, confidence):
    gate = Gate(false_promotions=yearly, confidence=confidence)
    looks, now, spent = [], START, 0.0
    for days, promoted in steps:
        now += timedelta(days=days)
        bar = level(looks, now, gate)
        assert 0 <= bar <= 1 - confidence
        spent += bar
        earned = (1 - confidence) * (4 + sum(look.promoted for look in looks))
        first = looks[0].at if looks else now
        assert spent <= earned + yearly * ((now - first) / YEAR) + 1e-9
        looks.append(Look(now, bar, promoted))
