import time
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from homeostat.infer import infer
from homeostat.monitor.drift import drift
from homeostat.profile import Column, Profile
from homeostat.records import EPOCH, Window
from homeostat.schema import TIMESTAMP, Target

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


def whole(reference, current, alpha=0.01, min_effect=0.0):
    return drift(reference, current, alpha=alpha, min_effect=min_effect, columns=reference.names)


def compare(reference, current, **options):
    return whole(reference, current, **options).columns


def rejections(draw, alpha, runs):
    return sum(whole(*draw(), alpha=alpha).drifted for _ in range(runs))


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
        stream = profile(n=numbers, c=np.column_stack([hits, rows - hits]))
        cut = EPOCH + DAY * (days - window)
        return stream.select(Window(EPOCH, cut)), stream.select(Window(cut, EPOCH + DAY * days))

    first = whole(*draw())
    assert first.calibrated
    assert [(c.test.split(", ")[1], c.windows) for c in first.columns] == [("blocks", 20)] * 2
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
    # P(X > Y) − P(X < Y) is .276 where Y lies half a standard deviation higher, and Φ moves by
    # .197 at most; the share of a level moved by .2. One day of the seven is left out.
    assert moved.distance == pytest.approx(
        {"location": 0.276, "ks": 0.197}[moved.test[:-8]], abs=0.05
    )
    assert levels.distance == pytest.approx(0.2, abs=0.05)
    assert moved.threshold == moved.minimum_detectable_shift == 0.1
    assert calm.minimum_detectable_shift == calm.threshold >= 0.1


def test_one_strange_day_in_a_week_is_not_drift_and_three_are():
    rng = np.random.default_rng(11)

    def days(count, shift=0.0):
        return [binned(rng.normal(shift, size=200)) for _ in range(count)]

    reference = profile(n=days(140))
    assert not whole(reference, profile(n=[*days(6), *days(1, shift=3.0)])).drifted
    assert whole(reference, profile(n=[*days(4), *days(3, shift=3.0)])).drifted


@pytest.mark.parametrize(("blocks", "window"), [(1, 1), (9, 1), (9, 7)])
def test_below_ten_blocks_rows_are_taken_as_independent_and_the_verdict_says_so(blocks, window):
    rng = np.random.default_rng(4)

    def draw(shift=0.0):
        days = [binned(rng.normal(size=200)) for _ in range(blocks)]
        late = [binned(rng.normal(shift, size=200)) for _ in range(window)]
        return profile(n=days), profile(n=late)

    found = whole(*draw())
    assert not found.calibrated
    assert found.joint is None
    assert found.columns[0].test.endswith(", rows")
    assert found.columns[0].windows == 0
    assert rejections(draw, 0.05, 300) <= bound(0.05, 300)
    assert whole(*draw(shift=0.7)).drifted


@pytest.mark.parametrize(("blocks", "window"), [(12, 7), (31, 7), (69, 7)])
def test_a_reference_of_less_than_ten_windows_is_judged_by_shorter_stretches(blocks, window):
    rng = np.random.default_rng(7)

    def draw(shift=0.0):
        levels = 0.4 * rng.normal(size=blocks + window)
        levels[blocks:] += shift
        days = [binned(rng.normal(level, size=60)) for level in levels]
        return profile(n=days[:blocks]), profile(n=days[blocks:])

    found = whole(*draw())
    assert not found.calibrated
    assert found.joint is None
    assert found.columns[0].test.endswith(", shorter stretches")
    assert found.columns[0].windows == blocks // window
    assert rejections(draw, 0.05, 200) <= bound(0.05, 200)
    assert whole(*draw(shift=4.0)).drifted


def test_a_reference_of_ten_windows_is_calibrated_on_them():
    rng = np.random.default_rng(8)
    days = [binned(rng.normal(0.3 * rng.normal(), size=100)) for _ in range(77)]
    found = whole(profile(n=days[:70]), profile(n=days[70:]))
    assert found.calibrated
    assert found.columns[0].windows == 10


def test_a_column_that_leaves_its_range_drifts_though_days_vary_widely():
    """Ridits end at 1 and so does Kolmogorov's distance; tails that were empty do not."""
    rng = np.random.default_rng(11)
    days = [binned(rng.normal(1.5 * rng.normal(), 0.3, size=200)) for _ in range(70)]
    away = [binned(np.full(200, 99.0)) for _ in range(7)]
    (found,) = whole(profile(n=days), profile(n=away)).columns
    assert (found.test, found.drifted) == ("high tail, blocks", True)


def test_a_column_of_mostly_one_value_drifts_when_that_value_moves_out_of_its_range():
    frame = pd.DataFrame({"x": [0.0] * 95 + [float(v) for v in range(1, 6)], "y": [0, 1] * 50})
    schema = replace(infer(frame, target="y"), target=Target("", "regression", "float"))

    def counted(zero, days):
        values = np.tile(np.where(frame["x"] == 0, zero, frame["x"]), days)
        times = np.repeat(np.arange(days), len(frame)).astype("datetime64[D]")
        moments = pa.array(times.astype("datetime64[us]"), TIMESTAMP)
        return Profile.of(pa.table({"x": values, "occurred_at": moments}), schema, block=DAY)

    (same,) = compare(counted(0.0, 100), counted(0.0, 7))
    (moved,) = compare(counted(0.0, 100), counted(-0.1, 7))
    assert not same.drifted
    assert moved.drifted
    assert moved.distance > 0.9


def test_nulls_and_new_levels_are_drift_too():
    rng = np.random.default_rng(1)
    before = profile(n=[binned(rng.normal(size=900), nulls=100)], c=[[500, 500, 0, 0]])
    after = profile(n=[binned(rng.normal(size=600), nulls=400)], c=[[350, 350, 300, 0]])
    number, level = compare(before, after)
    assert number.drifted
    assert number.test == "nulls, rows"
    assert number.distance == pytest.approx(0.3, abs=0.01)
    assert level.drifted
    assert level.distance == pytest.approx(0.3)


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
            assert 0 <= found.distance <= 1
            assert min_effect <= found.threshold <= 1


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


def test_a_column_that_is_the_same_every_day_lets_nothing_look_unusual_by_rounding():
    # The half-hour of the day, say: no day differs, but sums over a year and a day round apart.
    rng, drifted = np.random.default_rng(3), 0
    clock = np.append(np.full(49, 1), 0)
    clock[[7, 20, 33]] = 7
    rows = int(clock.sum())
    for _ in range(20):
        days = [binned(rng.normal(0.8 * rng.normal(), 1, rows)) for _ in range(366)]
        other = [binned(rng.normal(0.8 * rng.normal(), 1, rows)) for _ in range(366)]
        parts = [
            profile(n0=days[part], n1=other[part], n2=[clock] * len(days[part]))
            for part in (slice(1, None), slice(1))
        ]
        drifted += whole(*parts, alpha=0.05).drifted
    assert drifted <= bound(0.05, 20)


def test_twenty_columns_and_four_hundred_blocks_take_a_moment():
    rng = np.random.default_rng(0)
    days = rng.multinomial(100, np.full(130, 1 / 130), size=407)
    reference = profile(**{f"{'nc'[i % 2]}{i}": days[:400] for i in range(20)})
    current = profile(**{f"{'nc'[i % 2]}{i}": days[400:] for i in range(20)})
    began = time.process_time()
    compare(reference, current)
    # A fifth of a second on its own; the rest is room for a busy machine.
    assert time.process_time() - began < 2.0
