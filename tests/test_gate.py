"""The gate: what it promotes, what it refuses, and that its interval is the textbook's."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.dummy import DummyClassifier
from sklearn.metrics import log_loss

from homeostat.gate import judge, judge_first, unjudged
from homeostat.records import Window
from homeostat.settings import Gate

START = datetime(2013, 2, 1, tzinfo=UTC)
DAY = timedelta(days=1)
WINDOW = Window(START, START + 7 * DAY)
RULE = Gate(min_rows=50, min_blocks=5, confidence=0.95)


def times(rows, days=7):
    """Evenly spread over the days, in order."""
    step = np.timedelta64(int(days * 86_400e6 // rows), "us")
    return np.datetime64("2013-02-01T00:00:00", "us") + np.arange(rows) * step


def rule_on(champion, challenger, *, at=None, metric="log_loss", gate=RULE, classes=2, **look):
    return judge(
        occurred_at=times(len(champion)) if at is None else at,
        champion=np.asarray(champion),
        challenger=np.asarray(challenger),
        metric=metric,
        gate=gate,
        block=DAY,
        window=WINDOW,
        classes=classes,
        **look,
    )


def stream(rows=700, gain=0.1, seed=0, noise=0.05):
    """Losses of a champion and of a challenger that is better by `gain` on average."""
    rng = np.random.default_rng(seed)
    champion = rng.gamma(2, 0.25, rows)
    return champion, np.abs(champion - gain + rng.normal(0, noise, rows))


# --- the rule ---


def test_a_clearly_better_challenger_is_promoted_and_the_reason_has_the_numbers():
    champion, challenger = stream()
    verdict = rule_on(champion, challenger)
    assert verdict.promote
    assert verdict.champion == pytest.approx(champion.mean())
    assert verdict.challenger == pytest.approx(challenger.mean())
    assert verdict.difference == pytest.approx((challenger - champion).mean())
    assert verdict.low < verdict.difference < verdict.high < 0
    assert (verdict.rows, verdict.blocks, verdict.window) == (700, 7, WINDOW)
    for part in ("better", "700 rows", "7 blocks", "95%", f"{champion.mean():.4g}"):
        assert part in verdict.reason


def test_a_worse_challenger_is_refused():
    champion, challenger = stream()
    verdict = rule_on(challenger, champion)
    assert not verdict.promote
    assert "worse" in verdict.reason
    assert verdict.difference > 0


def test_a_challenger_that_is_better_on_average_but_may_do_harm_is_refused():
    champion = np.full(700, 0.5)
    by_day = np.array([-0.3, 0.2, -0.3, 0.2, -0.3, 0.2, 0.2])
    verdict = rule_on(champion, champion + np.repeat(by_day, 100))
    assert verdict.difference < 0 < verdict.high
    assert not verdict.promote
    assert "Harm is not excluded" in verdict.reason


def test_rows_of_one_day_count_as_alike_and_not_as_independent_proof():
    """A difference that is the same for all rows of a day is seven facts, not seven thousand."""
    champion = np.full(7_000, 0.5)
    by_day = np.array([-0.02, 0.015, -0.02, 0.012, -0.02, 0.015, 0.012])
    difference = np.repeat(by_day, 1_000)
    upper = difference.mean() + 1.645 * difference.std() / np.sqrt(7_000)
    assert upper < 0.001  # as if independent: promoted
    assert not rule_on(champion, champion + difference).promote


def test_harm_below_delta_need_not_be_excluded():
    champion = np.full(700, 0.5)
    by_day = np.array([-0.0004, 0.0003] * 3 + [-0.0002])
    challenger = champion + np.repeat(by_day, 100)
    assert rule_on(champion, challenger, gate=replace_gate(delta=0.002)).promote
    assert not rule_on(champion, challenger, gate=replace_gate(delta=0.0)).promote


def replace_gate(**fields):
    return RULE.model_copy(update=fields)


def test_for_rmse_roots_are_reported_and_squares_are_tested():
    champion, challenger = stream()
    verdict = rule_on(champion, challenger, metric="rmse", classes=None)
    assert verdict.promote
    assert verdict.champion == pytest.approx(np.sqrt(champion.mean()))
    assert verdict.challenger == pytest.approx(np.sqrt(challenger.mean()))
    assert verdict.difference == pytest.approx((challenger - champion).mean())
    assert "RMSE" in verdict.reason


# --- the interval, against other computations ---


def test_with_equal_blocks_the_interval_is_the_t_interval_of_block_means():
    champion, challenger = stream(rows=1_400)
    means = (challenger - champion).reshape(7, 200).mean(axis=1)
    low, high = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    verdict = rule_on(champion, challenger)
    assert verdict.low == pytest.approx(low, rel=1e-10)
    assert verdict.high == pytest.approx(high, rel=1e-10)


def test_with_unequal_blocks_the_error_is_the_cluster_robust_one_of_an_intercept():
    rng = np.random.default_rng(3)
    block = np.sort(rng.integers(0, 9, 500) ** 2 // 9)
    block = np.unique(block, return_inverse=True)[1]
    at = np.datetime64("2013-02-01", "us") + block * np.timedelta64(86_400_000_000, "us")
    champion, challenger = stream(rows=500)
    d, blocks = challenger - champion, block.max() + 1
    design = np.ones((500, 1))  # the sandwich estimator, written with matrices
    bread = np.linalg.inv(design.T @ design)
    residual = d - d.mean()
    scores = [design[block == b].T @ residual[block == b] for b in range(blocks)]
    meat = sum(np.outer(score, score) for score in scores)
    error = np.sqrt((bread @ meat @ bread)[0, 0] * blocks / (blocks - 1))
    low, high = stats.t.interval(0.95, blocks - 1, loc=d.mean(), scale=error)
    verdict = rule_on(champion, challenger, at=at)
    assert verdict.blocks == blocks
    assert verdict.low == pytest.approx(low, rel=1e-9)
    assert verdict.high == pytest.approx(high, rel=1e-9)


def test_the_error_agrees_with_a_bootstrap_of_blocks():
    rng = np.random.default_rng(5)
    sizes = rng.integers(20, 60, 60)
    block = np.repeat(np.arange(60), sizes)
    at = np.datetime64("2013-02-01", "us") + block * np.timedelta64(86_400_000_000, "us")
    champion = rng.gamma(2, 0.25, len(block))
    d = rng.normal(0, 0.1, 60)[block] + rng.normal(0, 0.2, len(block))
    verdict = rule_on(champion, champion + d, at=at)
    sums = np.bincount(block, d)
    drawn = rng.integers(0, 60, (4_000, 60))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    error = (verdict.high - verdict.low) / 2 / stats.t.ppf(0.975, 59)
    assert error == pytest.approx(means.std(), rel=0.06)


def test_a_challenger_that_is_no_better_is_promoted_no_more_often_than_the_confidence_allows():
    rng = np.random.default_rng(11)
    gate, promoted, turns = replace_gate(delta=0.0), 0, 600
    for _ in range(turns):
        day = np.repeat(rng.normal(0, 0.05, 14), 20)
        champion = rng.gamma(2, 0.25, 280)
        challenger = champion + day + rng.normal(0, 0.1, 280)
        promoted += rule_on(champion, challenger, at=times(280, 14), gate=gate).promote
    allowed = 1 - gate.confidence
    assert promoted <= stats.binom.ppf(0.999, turns, allowed)
    assert promoted >= stats.binom.ppf(0.001, turns, allowed)


def test_the_p_value_is_that_of_a_t_test_of_harm_beyond_delta():
    champion, challenger = stream(rows=1_400, gain=0.002)
    verdict = rule_on(champion, challenger)
    means = (challenger - champion).reshape(7, 200).mean(axis=1)
    expected = stats.ttest_1samp(means, RULE.delta * champion.mean(), alternative="less").pvalue
    assert verdict.p_value == pytest.approx(expected, rel=1e-9)
    assert verdict.level == pytest.approx(0.05)


def test_a_look_at_a_stricter_level_asks_for_more_and_so_does_a_choice_among_challengers():
    champion = np.full(700, 0.5)
    challenger = champion + np.repeat([-0.05, 0.01, -0.03, 0.01, -0.06, 0.0, -0.03], 100)
    verdict = rule_on(champion, challenger)
    p = verdict.p_value
    assert verdict.promote
    assert 0.01 < p < 0.05
    assert rule_on(champion, challenger, level=p * 1.01).promote
    refused = rule_on(champion, challenger, level=p * 0.99)
    assert not refused.promote
    assert f"{100 - 99 * p:.4g}% bound" in refused.reason
    two = rule_on(champion, challenger, level=p * 1.99, share=0.5)
    assert (two.promote, two.p_value, two.level) == (False, 2 * p, p * 1.99)
    assert rule_on(champion, challenger, level=p * 2.01, share=0.5).promote
    assert not rule_on(champion, challenger, level=0.0).promote


# --- whatever cannot be judged keeps the champion ---


GOOD = stream()


@pytest.mark.parametrize(
    ("champion", "challenger", "at", "said"),
    [
        (GOOD[0], GOOD[1][:-1], None, "one value for each row"),
        (GOOD[0], GOOD[1], times(5), "one value for each row"),
        (GOOD[0].reshape(-1, 2), GOOD[1], times(700), "one value for each row"),
        ([], [], times(1)[:0], "no labelled row"),
        (GOOD[0], np.where(np.arange(700) == 3, np.nan, GOOD[1]), None, "challenger is not a"),
        (GOOD[0], np.where(np.arange(700) == 3, -np.inf, GOOD[1]), None, "challenger is not a"),
        (np.where(np.arange(700) == 3, np.inf, GOOD[0]), GOOD[1], None, "champion is not a"),
        (np.full(700, 1e300), GOOD[1], None, "champion is not a"),
        (GOOD[0], GOOD[1], np.full(700, np.datetime64("NaT")), "no event time"),
        (GOOD[0], np.array(["x"] * 700), None, "cannot be read"),
        (GOOD[0], GOOD[1], np.array(["x"] * 700), "cannot be read"),
    ],
)
def test_what_cannot_be_compared_keeps_the_champion(champion, challenger, at, said):
    at = times(700) if at is None else at
    verdict = rule_on(champion, challenger, at=at)
    assert not verdict.promote
    assert said in verdict.reason
    assert verdict.difference is None


@pytest.mark.parametrize(
    ("rows", "days", "classes", "said"),
    [
        (49, 7, 2, "gate.min_rows asks for 50"),
        (400, 4, 2, "gate.min_blocks asks for 5"),
        (400, 1, 2, "Only 1 blocks"),
        (700, 7, 1, "same label"),
        (700, 7, 0, "same label"),
    ],
)
def test_rows_that_do_not_suffice_keep_the_champion(rows, days, classes, said):
    champion, challenger = stream(rows, gain=0.3)
    verdict = rule_on(champion, challenger, at=times(rows, days), classes=classes)
    assert not verdict.promote
    assert said in verdict.reason
    assert verdict.difference < 0
    assert (verdict.low is None) == (days < 5)


def test_a_tie_keeps_the_champion_also_when_rounding_speaks_for_the_challenger():
    champion, _ = stream()
    for challenger in (champion, champion - 1e-15):
        verdict = rule_on(champion, challenger)
        assert not verdict.promote
        assert "tie" in verdict.reason


def test_unjudged_carries_its_reason_and_nothing_else():
    verdict = unjudged("No row has a label yet.", WINDOW)
    assert not verdict.promote
    assert verdict.reason == "No row has a label yet."
    assert (verdict.champion, verdict.rows, verdict.window) == (None, 0, WINDOW)


# --- properties ---

losses = st.lists(
    st.tuples(*[st.floats(0, 10).map(lambda x: round(x, 4))] * 2, st.integers(0, 9)),
    min_size=1,
    max_size=120,
)
LENIENT = Gate(min_rows=2, min_blocks=2, delta=0.01)


def unpacked(rows):
    old, new, day = (np.array(column) for column in zip(*rows, strict=True))
    return old, new, np.datetime64("2013-02-01", "us") + day * np.timedelta64(86_400_000_000, "us")


@given(losses)
@settings(max_examples=150, deadline=None)
def test_of_two_models_at_most_one_beats_the_other(rows):
    old, new, at = unpacked(rows)
    there = rule_on(old, new, at=at, gate=LENIENT)
    back = rule_on(new, old, at=at, gate=LENIENT)
    assert not (there.promote and back.promote)
    assert there.difference == -back.difference


@given(losses, st.floats(1e-3, 10).map(lambda x: round(x, 3)))
@settings(max_examples=150, deadline=None)
def test_added_harm_never_turns_a_refusal_into_a_promotion(rows, harm):
    old, new, at = unpacked(rows)
    if not rule_on(old, new, at=at, gate=LENIENT).promote:
        assert not rule_on(old, new + harm, at=at, gate=LENIENT).promote


@given(losses, st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_the_order_of_rows_does_not_change_a_bit(rows, random):
    shuffled = random.sample(rows, len(rows))
    one = rule_on(*unpacked(rows)[:2], at=unpacked(rows)[2], gate=LENIENT)
    other = rule_on(*unpacked(shuffled)[:2], at=unpacked(shuffled)[2], gate=LENIENT)
    assert one == other


@given(
    st.lists(st.floats() | st.none(), max_size=20),
    st.lists(st.floats() | st.none(), max_size=20),
    st.integers(0, 20),
)
@settings(max_examples=200, deadline=None)
def test_no_data_makes_the_gate_raise(champion, challenger, rows):
    verdict = rule_on(champion, challenger, at=times(20)[:rows], gate=LENIENT)
    assert verdict.reason


# --- the first release ---


def first(training, labels, own, task="binary"):
    return judge_first(
        training=np.asarray(training),
        labels=np.asarray(labels),
        losses=np.asarray(own),
        task=task,
        occurred_at=times(len(labels)),
        block=DAY,
        window=WINDOW,
    )


def test_the_first_model_is_compared_with_the_constant_that_scikit_learn_would_predict():
    rng = np.random.default_rng(2)
    training, labels = rng.integers(0, 3, 300) ** 2, rng.integers(0, 3, 700) ** 2
    dummy = DummyClassifier(strategy="prior").fit(np.zeros((300, 1)), training)
    expected = log_loss(labels, dummy.predict_proba(np.zeros((700, 1))), labels=dummy.classes_)
    verdict = first(training, labels, np.full(700, 0.3), "multiclass")
    assert verdict.promote
    assert verdict.champion == pytest.approx(expected)
    assert verdict.challenger == pytest.approx(0.3)
    assert verdict.difference == pytest.approx(0.3 - expected)
    assert verdict.low is not None
    assert "constant" in verdict.reason
    assert "no better" not in verdict.reason


def test_a_first_number_model_is_compared_with_the_mean():
    labels = np.tile([1.0, 3.0], 350)
    verdict = first([1.0, 3.0, 2.0], labels, np.full(700, 0.25), "regression")
    assert (verdict.champion, verdict.challenger) == (1.0, 0.5)
    assert verdict.metric == "rmse"


def test_a_first_model_worse_than_a_constant_is_released_and_the_reason_says_so():
    verdict = first([0, 1] * 50, np.tile([0, 1], 350), np.full(700, 2.0))
    assert verdict.promote
    assert "no better than a constant" in verdict.reason


@pytest.mark.parametrize(
    ("training", "own", "task"),
    [([], [0.3] * 700, "regression"), ([1.0], [np.nan] * 700, "regression"), ([], [], "binary")],
)
def test_a_first_model_that_cannot_be_judged_is_released_without_numbers(training, own, task):
    verdict = first(training, np.tile([0, 1], 350), own, task)
    assert verdict.promote
    assert verdict.challenger is None
    assert verdict.reason
    assert replace(verdict, promote=False) == unjudged(verdict.reason, WINDOW, verdict.metric)
