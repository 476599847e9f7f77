import time
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from homeostat.monitor.drift import BlocksNull, RowsNull, drift, holm_level
from homeostat.profile import EPOCH, Column, Profile
from homeostat.records import Window
from homeostat.stats import holm

DAY = timedelta(days=1)
EDGES = stats.norm.ppf(np.arange(1, 128) / 128)


def profile(**columns):
    """From arrays of counts, shape (blocks, cells); ordered where the name starts with n."""
    arrays = [np.asarray(counts, dtype=np.int64) for counts in columns.values()]
    kinds = [
        Column(name, "number" if name[0] == "n" else "category", a.shape[1], name[0] == "n", "")
        for name, a in zip(columns, arrays, strict=True)
    ]
    blocks = np.arange(len(arrays[0]))
    return Profile(DAY, tuple(kinds), blocks, arrays[0].sum(axis=1), tuple(arrays))


def binned(values, nulls=0):
    counts = np.bincount(np.searchsorted(EDGES, values), minlength=129)
    counts[-1] = nulls
    return counts


def compare(reference, current, alpha=0.01, min_effect=0.0):
    return drift(reference, current, alpha=alpha, min_effect=min_effect, columns=reference.names)


def rejections(draw, alpha, runs):
    return sum(any(c.drifted for c in compare(*draw(), alpha=alpha)) for _ in range(runs))


def bound(alpha, runs):
    return stats.binom.ppf(0.999, runs, alpha)


@pytest.mark.parametrize(("n", "m"), [(50, 50), (3000, 50), (5000, 1000)])
def test_identical_independent_rows_alarm_no_more_often_than_promised(n, m):
    rng = np.random.default_rng([n, m])
    zipf = 1 / np.arange(1, 41)

    def draw():
        def sample(rows):
            return profile(
                n=[binned(rng.normal(size=rows))],
                c_even=[rng.multinomial(rows, [0.5, 0.5])],
                c_rare=[rng.multinomial(rows, [0.97, 0.03])],
                c_long=[rng.multinomial(rows, zipf / zipf.sum())],
            )

        return sample(n), sample(m)

    assert rejections(draw, 0.01, 400) <= bound(0.01, 400)
    assert rejections(draw, 0.05, 400) <= bound(0.05, 400)


@pytest.mark.parametrize("persistence", [0.0, 0.7])
def test_days_that_differ_by_nature_are_no_drift(persistence):
    rng = np.random.default_rng(int(10 * persistence))

    def draw(days=147, window=7, rows=60):
        level = rng.normal(size=days)
        for day in range(1, days):
            fresh = np.sqrt(1 - persistence**2) * level[day]
            level[day] = persistence * level[day - 1] + fresh
        numbers = [binned(rng.normal(0.4 * shift, size=rows)) for shift in level]
        hits = rng.binomial(rows, 1 / (1 + np.exp(-level)))
        whole = profile(n=numbers, c=np.column_stack([hits, rows - hits]))
        cut = EPOCH + DAY * (days - window)
        return whole.select(Window(EPOCH, cut)), whole.select(Window(cut, EPOCH + DAY * days))

    first = compare(*draw())
    assert [(c.test, c.windows) for c in first] == [("ks, blocks", 20), ("tv, blocks", 20)]
    assert rejections(draw, 0.05, 200) <= bound(0.05, 200)


def test_a_real_shift_is_found_and_named():
    rng = np.random.default_rng(3)
    reference = profile(
        n=[binned(rng.normal(size=200)) for _ in range(140)],
        n_calm=[binned(rng.normal(size=200)) for _ in range(140)],
        c=[rng.multinomial(200, [0.6, 0.3, 0.1]) for _ in range(140)],
    )
    current = profile(
        n=[binned(rng.normal(0.5, size=200)) for _ in range(7)],
        n_calm=[binned(rng.normal(size=200)) for _ in range(7)],
        c=[rng.multinomial(200, [0.4, 0.3, 0.3]) for _ in range(7)],
    )
    moved, calm, levels = compare(reference, current, min_effect=0.1)
    assert moved.drifted
    assert not calm.drifted
    assert levels.drifted
    # Half a standard deviation moves Φ by .197 at most; the share of a level moved by .2.
    assert moved.distance == pytest.approx(0.197, abs=0.04)
    assert levels.distance == pytest.approx(0.2, abs=0.04)
    assert moved.threshold == moved.minimum_detectable_shift == 0.1
    assert calm.minimum_detectable_shift == calm.threshold >= 0.1


def test_the_distance_of_numbers_is_that_of_scipy_on_the_raw_values():
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=900), rng.normal(0.2, size=300)
    (found,) = compare(profile(n=[binned(left)]), profile(n=[binned(right)]))
    raw = stats.ks_2samp(left, right, method="asymp")
    assert found.test == "ks, rows"
    assert found.windows == 0
    assert found.distance == pytest.approx(raw.statistic, abs=1 / 64)
    own = stats.kstwo.sf(found.distance, round(900 * 300 / 1200))
    assert found.p_value == pytest.approx(own, rel=0.05)


def test_nulls_and_new_levels_are_drift_too():
    rng = np.random.default_rng(1)
    before = profile(n=[binned(rng.normal(size=900), nulls=100)], c=[[500, 500, 0, 0]])
    after = profile(n=[binned(rng.normal(size=600), nulls=400)], c=[[350, 350, 300, 0]])
    number, level = compare(before, after)
    assert number.drifted
    assert number.distance == pytest.approx(0.3, abs=0.01)
    assert level.drifted
    assert level.distance == pytest.approx(0.3)


def test_the_null_of_levels_has_the_moments_and_the_tail_of_a_simulation():
    rng = np.random.default_rng(5)
    shares = np.array([0.5, 0.2, 0.15, 0.1, 0.05])
    n, m = 20_000, 8_000
    left = rng.multinomial(n, shares, size=40_000) / n
    right = rng.multinomial(m, shares, size=40_000) / m
    distances = np.abs(left - right).sum(axis=1) / 2
    null = RowsNull.unordered(shares, n, m)
    assert null.square == pytest.approx(np.mean(distances**2), rel=0.03)
    for level in (0.05, 0.01, 0.001):
        assert np.mean(distances > null.distance(level)) <= 1.3 * level
        assert null.p_value(null.distance(level)) == pytest.approx(level, rel=1e-6)


def test_two_levels_are_tested_as_a_difference_of_two_shares():
    null = RowsNull.unordered(np.array([0.3, 0.7]), 4e6, 1e6)
    sigma = np.sqrt(0.21 * (1 / 4e6 + 1 / 1e6))
    gauss = 2 * stats.norm.isf(0.01 / 2) * sigma / 2
    assert gauss < null.distance(0.01) < 1.05 * gauss


@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=30).map(np.array),
    st.floats(1e-6, 0.1),
    st.floats(1e-5, 0.4),
)
def test_threshold_and_p_value_of_the_blocks_agree(distances, noise, level):
    null = BlocksNull.of(distances, np.full(len(distances), noise), noise)
    critical = null.distance(level)
    assert null.p_value(critical * 1.001 + 1e-9) <= level * 1.001
    if null.spread:
        assert null.p_value(
            critical * 0.999 - 1e-9 if critical > 1e-6 else 0.0
        ) >= level * 0.99 or (critical**2 <= noise * 1.01)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.2))
def test_the_level_of_each_column_is_where_holm_would_reject_it(p_values, alpha):
    adjusted = holm(p_values)
    ranked = sorted(p_values)
    by_hand = {
        p: min(1.0, max(q * (len(ranked) - i) for i, q in enumerate(ranked[: ranked.index(p) + 1])))
        for p in p_values
    }
    for place, p in enumerate(p_values):
        if p_values.count(p) == 1:
            assert adjusted[place] == pytest.approx(by_hand[p])
        level = holm_level(p_values, place, alpha)
        if abs(p - level) > 1e-12:
            assert (adjusted[place] <= alpha) == (p <= level)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 3, 9, 25]))
def test_drifted_distance_and_adjusted_p_value_tell_the_same_story(seed, blocks):
    rng = np.random.default_rng(seed)
    columns = {
        name: [rng.multinomial(40, rng.dirichlet(np.full(6, 3.0))) for _ in range(blocks)]
        for name in ("n0", "n1", "c0", "c1")
    }
    now = {name: [rng.multinomial(60, rng.dirichlet(np.full(6, 3.0)))] for name in columns}
    for min_effect in (0.0, 0.2):
        for found in compare(profile(**columns), profile(**now), min_effect=min_effect):
            assert found.drifted == (found.distance > found.threshold)
            assert found.drifted == (found.adjusted_p_value <= 0.01 and found.distance > min_effect)


def test_a_flip_of_levels_is_seen_however_rare_they_were():
    before = profile(c=[[2000, 0, 0]], c_many=[[10] * 200])
    after = profile(c=[[0, 60, 0]], c_many=[[1] * 60 + [0] * 140])
    flipped, fewer = compare(before, after, min_effect=0.1)
    assert flipped.drifted
    assert flipped.distance == 1.0
    assert fewer.drifted


def test_columns_without_rows_on_one_side_are_left_out():
    assert (
        compare(profile(n=[[0, 0, 0]], c=[[5, 5]]), profile(n=[[1, 1, 1]], c=[[5, 5]]))[0].column
        == "c"
    )
    assert not compare(profile(n=[[5, 5]]), profile(n=np.zeros((0, 2))))


def test_a_constant_column_is_stable_and_a_changed_one_is_not():
    still = profile(n=[[0, 100, 0]] * 20, c=[[100, 0]] * 20)
    assert not any(c.drifted for c in compare(still, profile(n=[[0, 60, 0]], c=[[60, 0]])))
    assert all(c.drifted for c in compare(still, profile(n=[[60, 0, 0]], c=[[0, 60]])))


def test_twenty_columns_and_four_hundred_blocks_take_a_moment():
    rng = np.random.default_rng(0)
    days = rng.multinomial(100, np.full(130, 1 / 130), size=407)
    reference = profile(**{f"{'nc'[i % 2]}{i}": days[:400] for i in range(20)})
    current = profile(**{f"{'nc'[i % 2]}{i}": days[400:] for i in range(20)})
    began = time.perf_counter()
    compare(reference, current)
    # A tenth of a second on its own; the rest is room for a busy machine.
    assert time.perf_counter() - began < 1.0
