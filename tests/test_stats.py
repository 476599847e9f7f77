"""Block statistics agree with formulas and libraries that were written elsewhere."""

from __future__ import annotations

import math
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from homeostat.stats import FEWEST, BlockMean, block_keys, holm

HOUR = timedelta(hours=1)
sized = st.lists(st.integers(1, 9), min_size=2, max_size=12)


def drawn(sizes, seed=0):
    random = np.random.default_rng(seed)
    keys = np.repeat(np.arange(len(sizes)), sizes)
    return random.normal(0.2, 1, len(keys)) + random.normal(size=len(sizes))[keys], keys


def cluster_robust(values, keys):
    """Intercept and its CR1 standard error by the sandwich (X'X)⁻¹ (Σ X_b'u_b u_b'X_b) (X'X)⁻¹."""
    design = np.ones((len(values), 1))
    bread = np.linalg.inv(design.T @ design)
    fitted = bread @ design.T @ values
    residual = values - design @ fitted
    meat = np.zeros((1, 1))
    for key in np.unique(keys):
        score = design[keys == key].T @ residual[keys == key]
        meat += np.outer(score, score)
    blocks = len(np.unique(keys))
    variance = blocks / (blocks - 1) * bread @ meat @ bread
    return float(fitted[0]), math.sqrt(float(variance[0, 0]))


@settings(max_examples=60, deadline=None)
@given(sized, st.integers(0, 99))
def test_mean_and_error_are_those_of_a_cluster_robust_intercept(sizes, seed):
    values, keys = drawn(sizes, seed)
    found = BlockMean.of(values, keys)
    mean, error = cluster_robust(values, keys)
    assert found.mean == pytest.approx(mean, rel=1e-9, abs=1e-12)
    assert found.error == pytest.approx(error, rel=1e-9, abs=1e-12)
    assert (found.rows, found.blocks) == (len(values), len(sizes))


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 15), st.integers(1, 6), st.integers(0, 99))
def test_with_blocks_of_one_size_it_is_the_t_test_of_their_means(blocks, size, seed):
    values, keys = drawn([size] * blocks, seed)
    found, means = BlockMean.of(values, keys), values.reshape(blocks, size).mean(axis=1)
    theirs = scipy_stats.ttest_1samp(means, 0, alternative="greater")
    assert found.p_greater() == pytest.approx(theirs.pvalue, rel=1e-7)
    both = scipy_stats.ttest_1samp(means, 0).confidence_interval(0.95)
    interval = found.interval()
    if blocks < FEWEST:
        assert (interval.low, interval.high) == (None, None)
    else:
        assert interval.low == pytest.approx(both.low, rel=1e-7, abs=1e-9)
        assert interval.high == pytest.approx(both.high, rel=1e-7, abs=1e-9)
    one_sided = scipy_stats.ttest_1samp(means, 0, alternative="less").confidence_interval(0.9)
    assert found.bound(0.9) == pytest.approx(one_sided.high, rel=1e-7, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(sized, st.randoms())
def test_the_order_of_rows_does_not_change_a_bit(sizes, random):
    values, keys = drawn(sizes)
    order = list(range(len(values)))
    random.shuffle(order)
    assert BlockMean.of(values, keys) == BlockMean.of(values[order], keys[order])


def test_one_block_tells_nothing():
    found = BlockMean.of(np.array([1.0, 2.0]), np.array([7, 7]))
    assert (found.mean, found.error, found.p_greater()) == (1.5, math.inf, 1.0)
    assert (found.bound(0.95), found.bound(0.05)) == (math.inf, -math.inf)
    assert found.interval().low is None


@pytest.mark.parametrize(("value", "p"), [(0.5, 0.0), (0.0, 1.0), (-0.5, 1.0)])
def test_values_without_spread_decide_by_their_sign(value, p):
    assert BlockMean.of(np.full(4, value), np.arange(4)).p_greater() == p


def test_blocks_are_counted_in_whole_lengths_since_1970_and_before():
    times = np.array(
        ["1969-12-31T23:30", "1970-01-01T00:00", "1970-01-01T00:59:59.999999", "1970-01-02T00:00"],
        dtype="datetime64[us]",
    )
    assert block_keys(times, HOUR).tolist() == [-1, 0, 0, 24]
    assert block_keys(times.astype("datetime64[ns]"), HOUR).tolist() == [-1, 0, 0, 24]


def by_hand(p_values):
    """Holm's step-down rule, straight from the paper: reject while p < α / (m − k + 1)."""
    count, adjusted = len(p_values), {}
    ranked = sorted(range(count), key=lambda place: p_values[place])
    for rank, place in enumerate(ranked):
        steps = [(count - k) * p_values[ranked[k]] for k in range(rank + 1)]
        adjusted[place] = min(1.0, max(steps))
    return [adjusted[place] for place in range(count)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_adjusts_as_the_step_down_rule_does(p_values):
    assert holm(p_values) == pytest.approx(by_hand(p_values), rel=1e-12, abs=1e-300)


def test_holm_gives_the_values_of_the_textbook():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
