"""The distributions behind the drift test, beside SciPy's and simulations."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from homeostat.monitor.columns import column_tests, number_scores
from homeostat.monitor.nulls import BlocksNull, RowsNull, kolmogorov_smirnov, total_variation
from homeostat.monitor.stretches import (
    Family,
    Gaps,
    Layout,
    Parts,
    least,
    means,
    normal_score,
    two_sided,
)
from homeostat.profile import Column

COUNTS = st.lists(st.integers(0, 40), min_size=5, max_size=5).map(np.array)
NUMBER = Column("n", "number", 6, True, "")
LEVELS = Column("c", "category", 6, False, "")


def spread_out(counts):
    return np.repeat(np.arange(len(counts)), counts)


def aspects(column, before, after):
    found = column_tests(column, np.array([before]), np.array([after]), Layout.of(1, 1))
    return {aspect.name: aspect for aspect in found.aspects}


@given(COUNTS, COUNTS)
def test_location_and_its_p_value_are_those_of_mann_whitney(left, right):
    left, right = left + 1, right + 1
    found = aspects(NUMBER, np.append(left, 0), np.append(right, 0))["location"]
    sample, other = spread_out(left), spread_out(right)
    raw = stats.mannwhitneyu(sample, other, use_continuity=False, method="asymptotic")
    delta = 2 * raw.statistic / (len(sample) * len(other)) - 1
    assert found.distance == pytest.approx(abs(delta), abs=1e-12)
    # SciPy's variance has n + m + 1 where ours has n + m, and n + m − 1 for ties.
    assert found.rows(found.distance) == pytest.approx(raw.pvalue, rel=0.25, abs=1e-3)


def test_spread_has_the_scores_of_ansari_and_bradley():
    rng = np.random.default_rng(0)
    narrow, wide = rng.normal(size=400), rng.normal(0, 1.3, size=300)
    edges = np.sort(np.concatenate([narrow, wide]))
    cells = [
        np.append(np.bincount(np.searchsorted(edges, x), minlength=700), 0) for x in (narrow, wide)
    ]
    scores = number_scores(cells[0] + cells[1])[:, 1]
    ours = cells[0] @ scores / 400 - cells[1] @ scores / 300
    raw = stats.ansari(narrow, wide)
    # Its statistic sums min(rank, N + 1 − rank) = (N + 1)/2 · (1 − |2u − 1|) over one sample.
    expected = 400 * (700 + 1) / 4 * 1.0 - raw.statistic
    assert ours * (700 / 2) * (400 * 300 / 700) == pytest.approx(expected, rel=0.02)
    found = aspects(Column("n", "number", 701, True, ""), *cells)["spread"]
    assert found.rows(found.distance) == pytest.approx(raw.pvalue, rel=0.05)


def test_distances_are_those_of_scipy():
    rng = np.random.default_rng(1)
    left, right = rng.integers(0, 30, size=(2, 12))
    raw = stats.ks_2samp(spread_out(left), spread_out(right), method="asymp")
    assert kolmogorov_smirnov(left, right) == pytest.approx(raw.statistic)
    p, q = left / left.sum(), right / right.sum()
    assert total_variation(left, right) == pytest.approx(np.abs(p - q).sum() / 2)


@pytest.mark.parametrize(("n", "m"), [(900, 300), (60, 50), (4000, 4000)])
def test_the_tail_of_kolmogorovs_distance_is_that_of_scipy(n, m):
    each = 1 / n + 1 / m
    for level in (0.2, 0.05, 0.01, 0.001):
        distance = stats.kstwo.isf(level, round(1 / each))
        assert RowsNull().p_value(distance, each) == pytest.approx(level, rel=0.12)


# Of fewer rows than twelve not even the larger level is expected five times, and counts alone.
@given(st.integers(0, 40), st.integers(12, 60), st.integers(0, 300))
def test_the_p_value_of_a_share_is_that_of_a_binomial_test_given_the_total(count, m, held):
    n = 400
    before, after = [n - held, held, 0, 0, 0, 0], [max(m - count, 0), min(count, m), 0, 0, 0, 0]
    found = column_tests(LEVELS, np.array([before]), np.array([after]), Layout.of(1, 1))
    second = [a for a in found.aspects if a.name == "share of a level"][-1]
    hits = min(count, m)
    if 0 < hits <= m / 2 and held <= n / 2:
        total = hits + held
        tail = min(
            stats.binom.cdf(hits, total, m / (n + m)), stats.binom.sf(hits - 1, total, m / (n + m))
        )
        assert second.rows(second.distance) == pytest.approx(min(1.0, 2 * tail), rel=1e-6)


def test_the_null_of_levels_has_the_moments_and_the_tail_of_a_simulation():
    rng = np.random.default_rng(5)
    shares = np.array([0.5, 0.2, 0.15, 0.1, 0.05])
    n, m = 20_000, 8_000
    left = rng.multinomial(n, shares, size=40_000) / n
    right = rng.multinomial(m, shares, size=40_000) / m
    distances = np.abs(left - right).sum(axis=1) / 2
    null, each = RowsNull.unordered(shares, n, m), 1 / n + 1 / m
    assert null.noise(each) == pytest.approx(np.mean(distances**2), rel=0.03)
    p_values = null.p_value(distances, each)
    for level in (0.05, 0.01, 0.001):
        assert np.mean(p_values <= level) <= 1.3 * level


def test_two_levels_are_tested_as_a_difference_of_two_shares():
    n, m = 4e6, 1e6
    each = 1 / n + 1 / m
    null = RowsNull.unordered(np.array([0.3, 0.7]), n, m)
    gauss = stats.norm.isf(0.01 / 2) * np.sqrt(0.21 * each)
    assert null.p_value(gauss, each) > 0.01 > null.p_value(1.05 * gauss, each)


@given(st.integers(2, 200), st.integers(1, 20))
def test_stretches_are_as_long_as_the_window_or_as_ten_of_them_fit(blocks, window):
    layout = Layout.of(blocks, window)
    assert layout.known == (blocks >= 10)
    assert layout.calibrated == (blocks >= 10 * window)
    if not layout.known:
        assert not len(layout.starts)
        return
    assert layout.starts[0] >= 0
    assert layout.starts[-1] + layout.length == blocks
    assert layout.length == (window if layout.calibrated else blocks // 10)
    assert layout.windows >= 10
    values = np.arange(float(blocks)) ** 2
    assert np.allclose(layout.sums(values), [values[p].sum() for p in layout.places])
    by_hand = [
        np.mean(
            [
                v
                for s, v in zip(layout.starts, layout.sums(values), strict=True)
                if abs(s - t) >= layout.length
            ]
            or [0]
        )
        for t in layout.starts
    ]
    assert np.allclose(layout.others(layout.sums(values)), by_hand)


def test_what_is_left_of_a_gap_without_any_one_block_is_the_smallest():
    gaps = np.array([[1.0, -3.0, 1.0], [2.0, -2.0, -1.0]])
    assert least(gaps, axis=0).tolist() == [1.0, -2.0, 0.0]
    rows = np.full(10, 4.0)
    sums = np.arange(10.0)[:, None]
    layout = Layout.of(10, 1)
    found = Parts.of((rows, sums), (rows[:6], 10 + sums[:6] ** 2), layout, means)
    by_hand = [np.delete(10 + sums[:6] ** 2, i).sum() / 20 - 45 / 40 for i in range(6)]
    assert found.gaps().window[0] == pytest.approx(min(by_hand))


def test_a_gap_among_blocks_of_one_size_is_the_t_test_of_a_new_observation():
    rng = np.random.default_rng(2)
    means_ = rng.normal(size=(30, 1))
    layout = Layout.of(30, 1)
    parts = Parts.of((np.ones(30), means_), (np.ones(1), means_[:1] + 2), layout, means)
    gaps = Gaps(parts.whole, parts.whole, parts.now, parts.each, parts.now_each)
    _, scale = gaps.p_values(layout, np.zeros(1))
    # Gaps to the rest are n/(n − 1) times those to the mean.
    expected = means_.std() * 30 / 29
    assert scale[0] == pytest.approx(expected)
    p = two_sided(gaps.window, scale, layout.windows)[0]
    assert p == pytest.approx(2 * stats.t.sf(abs(gaps.window[0]) / expected, 29))


@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=30).map(np.array),
    st.floats(1e-6, 0.1),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_a_larger_distance_never_has_a_larger_p_value_among_blocks(distances, noise, one, other):
    null = BlocksNull.of(distances, np.full(len(distances), noise), len(distances))
    near, far = sorted((one, other))
    assert null.p_value(near, noise) >= null.p_value(far, noise)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.floats(0.001, 0.2))
def test_the_level_of_a_family_is_where_its_adjusted_p_value_reaches_alpha(seed, alpha):
    rng = np.random.default_rng(seed)
    family = Family.of(20, {"a": (8, rng.random(60) ** 2), "b": (3, rng.random(60))})
    for group in family.groups:
        level = family.level(group, alpha)
        assert family.p_value(group, level) <= alpha
        assert family.p_value(group, level * 1.01) > alpha or level > 0.99


def test_the_smallest_of_independent_p_values_has_a_gaussian_score():
    rng = np.random.default_rng(3)
    scores = normal_score(rng.random((20_000, 12)).min(axis=1), 12)
    assert stats.kstest(scores, "norm").pvalue > 0.01
    assert normal_score(0.03, 1) == pytest.approx(-special.ndtri(0.03))


def test_an_adjusted_p_value_is_at_least_the_share_of_stretches_that_came_as_far():
    p = np.full(100, 0.5)
    p[:7] = 1e-9
    family = Family.of(100, {"a": (5, p)})
    assert family.p_value("a", 1e-9) >= 0.07
    assert family.p_value("a", 1e-30) < 0.01
