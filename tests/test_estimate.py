"""What performance is told before labels come, and what that may and may not say."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression

from homeostat.monitor.performance import Scope, hurts, performance
from homeostat.records import Hurts, Interval, Window
from homeostat.schema import TIMESTAMP, Feature, Schema, Target
from homeostat.scoring import tabulate

DAY = timedelta(days=1)
WEEK = 7 * DAY
START = datetime(2024, 1, 1, tzinfo=UTC)
PER_DAY = 60
FEATURES = (Feature("x", "number"),)
YES = Schema(FEATURES, Target("y", "binary", "bool", ("false", "true")))
PRICE = Schema(FEATURES, Target("y", "regression", "float"))


def table(schema, x, output, labels, release="r1"):
    count = len(x)
    kind = pa.float64() if schema.target.task == "regression" else pa.string()
    scores = tabulate(output, schema.target)
    times = [START + DAY * (i / PER_DAY) for i in range(count)]
    columns = {
        "occurred_at": pa.array(times, TIMESTAMP),
        "model_version": pa.array([release] * count, pa.string()),
        "label": pa.array(labels, kind),
        "x": pa.array(x, pa.float64()),
    }
    return pa.table(columns | {name: scores.column(name) for name in scores.column_names})


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


def clicks(weeks, *, hard_from=None, slope=1.0, flipped_from=None, seed=0):
    """Served rows whose model says sigmoid(x), and whose labels follow sigmoid(slope · x)."""
    rng = np.random.default_rng(seed)
    week = np.arange(weeks * 7 * PER_DAY) // (7 * PER_DAY)
    x = rng.normal(size=len(week)) * 3
    if hard_from is not None:
        x = np.where(week >= hard_from, x / 6, x)
    true = rng.random(len(week)) < sigmoid(slope * x)
    if flipped_from is not None:
        true = np.where(week >= flipped_from, ~true, true)
    return table(YES, x, sigmoid(x), np.where(true, "true", "false"))


def between(rows, window):
    times = rows.column("occurred_at")
    low, high = (pa.scalar(moment, TIMESTAMP) for moment in (window.start, window.end))
    return rows.filter(pc.and_(pc.greater_equal(times, low), pc.less(times, high)))


def at_week(rows, schema, week, *, delay=WEEK, baseline=None, metric="loss", since=START):
    """The performance at the end of a week, of which no label has come yet."""
    end = START + (week + 1) * WEEK
    mature = pa.scalar(end - delay, TIMESTAMP)
    come = pc.less(rows.column("occurred_at"), mature)
    nothing = pa.nulls(rows.num_rows, rows.column("label").type)
    place = rows.column_names.index("label")
    rows = rows.set_column(place, "label", pc.if_else(come, rows.column("label"), nothing))
    scope = Scope(
        release="r1",
        mature_until=end - delay,
        block=DAY,
        baseline=baseline,
        metric=metric,
        window=Window(end - WEEK, end),
        past=lambda window, _: [between(rows, window)],
        since=since,
    )
    return performance(between(rows, scope.window), schema, scope)


EASY = Interval(0.37, 0.35, 0.39, 3000, 7)


def test_harder_rows_are_told_before_their_labels_come_and_may_call_harm():
    found = at_week(clicks(14, hard_from=13), YES, 13, baseline=EASY)
    truth = performance(
        between(clicks(14, hard_from=13), Window(START + 13 * WEEK, START + 14 * WEEK)),
        YES,
        Scope("r1", START + 14 * WEEK, DAY, None),
    )
    assert found.estimated.value == pytest.approx(truth.realised.value, abs=0.03)
    assert found.estimated.low <= truth.realised.value <= found.estimated.high
    assert (found.estimated.rows, found.estimated.blocks) == (420, 7)
    assert hurts(replace(found, realised=None)) is Hurts.YES
    assert found.harm_by == "estimate"
    assert found.record["windows"] == 8


def test_an_estimate_without_a_record_of_five_windows_calls_no_harm():
    found = at_week(clicks(6, hard_from=5), YES, 5, baseline=EASY)
    assert found.estimated.low > 0.5
    assert found.record["windows"] == 5
    assert hurts(found) is Hurts.YES
    young = at_week(clicks(5, hard_from=4), YES, 4, baseline=EASY)
    assert (young.estimated.low, young.estimated.high) == (None, None)
    assert young.record["windows"] == 4
    assert (hurts(replace(young, realised=None)), young.harm_by) == (Hurts.UNKNOWN, "")


def test_an_estimate_never_says_that_there_is_no_harm():
    found = at_week(clicks(14), YES, 13, baseline=Interval(5.0, 4.9, 5.1, 3000, 7))
    assert found.estimated.high < 1
    assert hurts(replace(found, realised=None)) is Hurts.UNKNOWN


def test_a_changed_concept_is_not_seen_by_an_estimate_but_by_the_labels():
    rows = clicks(14, flipped_from=13)
    early = at_week(rows, YES, 13, baseline=EASY)
    assert early.estimated.value == pytest.approx(0.37, abs=0.05)
    assert early.harm_by == ""
    late = at_week(rows, YES, 13, delay=timedelta(0), baseline=EASY)
    assert (hurts(late), late.harm_by) == (Hurts.YES, "labels")


def test_labels_of_the_window_itself_overrule_an_estimate():
    found = at_week(
        clicks(14), YES, 13, delay=timedelta(0), baseline=Interval(0.5, 0.48, 0.52, 3000, 7)
    )
    assert hurts(found) is Hurts.NO
    gloomy = replace(found, estimated=Interval(0.9, 0.8, 1.0, 420, 7))
    assert hurts(gloomy) is Hurts.NO
    assert hurts(replace(gloomy, lag_days=7.0)) is Hurts.YES


def by_hand(rows, week):
    """The log loss and accuracy of a week, in which P = sigmoid(x), as both memories tell them."""
    x = np.asarray(rows.column("x"))
    weeks = np.arange(len(x)) // (7 * PER_DAY)
    known = np.asarray(rows.column("label")) == "true"

    def features(some):
        return np.log(np.column_stack([sigmoid(x[some]), sigmoid(-x[some])]))

    def shares(first, before, of):
        learned = (weeks >= first) & (weeks < before)
        fitted = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1_000)
        return fitted.fit(features(learned), known[learned]).predict_proba(features(weeks == of))

    def losses(truth, of):
        return -(truth * features(weeks == of)[:, ::-1]).sum(axis=1)

    errors = []
    for past in range(week - 8, week):
        label = np.column_stack([~known, known])[weeks == past]
        both = [shares(first, past, past) for first in (max(past - 4, 0), 0)]
        errors.append([(losses(q, past) - losses(label, past)).mean() for q in both])
    weight = 1 / np.mean(np.square(errors), axis=0)
    both = [shares(first, week, week) for first in (week - 4, 0)]
    truth = (weight[0] * both[0] + weight[1] * both[1]) / weight.sum()
    said = (x[weeks == week] > 0).astype(int)
    return losses(truth, week).mean(), truth[np.arange(len(said)), said].mean(), weight


def test_an_estimate_is_the_mean_of_a_short_and_a_long_memory_weighed_by_their_record():
    rows = clicks(14, slope=0.4)
    found = at_week(rows, YES, 13)
    loss, accuracy, _ = by_hand(rows, 13)
    assert found.estimated.value == pytest.approx(loss, abs=2e-3)
    assert found.estimates["accuracy"].value == pytest.approx(accuracy, abs=2e-3)


def test_the_short_memory_weighs_more_on_a_stream_that_moves():
    steady, turned = clicks(20), clicks(20, flipped_from=7)
    moved = pa.concat_tables([steady.slice(0, 7 * 7 * PER_DAY), turned.slice(7 * 7 * PER_DAY)])
    new = at_week(moved, YES, 19).estimated.value
    alone = at_week(turned.slice(7 * 7 * PER_DAY), YES, 19).estimated.value
    assert new == pytest.approx(alone, rel=0.1)
    short, long = by_hand(moved, 19)[2]
    assert short > 5 * long


def test_rows_from_before_the_champion_are_not_asked_for():
    asked = []
    rows = clicks(14)

    def past(window, schema):
        asked.append(window)
        return [between(rows, window)]

    end = START + 14 * WEEK
    scope = Scope("r1", end - WEEK, DAY, EASY, window=Window(end - WEEK, end), past=past)
    performance(between(rows, scope.window), YES, scope)
    performance(between(rows, scope.window), YES, replace(scope, since=START + 3 * WEEK))
    assert asked[-1].start == START + 3 * WEEK
    assert min(window.start for window in asked) < START


def parted(rows, parts):
    """What the past is asked for, in so many parts."""

    def past(window, schema):
        whole = between(rows, window)
        size = -(-whole.num_rows // parts)
        return [whole.slice(i * size, size) for i in range(parts)]

    return past


def test_of_a_long_past_the_same_rows_are_drawn_however_it_is_parted(monkeypatch):
    monkeypatch.setattr("homeostat.monitor.performance.KEPT", 1_000)
    rows = clicks(14)
    end = START + 14 * WEEK

    def told(parts):
        scope = Scope(
            "r1", end - WEEK, DAY, EASY, window=Window(end - WEEK, end), past=parted(rows, parts)
        )
        return performance(between(rows, scope.window), YES, scope)

    whole = told(1)
    assert whole == told(5) == told(97)
    # 1,000 rows of 13 weeks of 420.
    assert whole.record["windows"] == 8
    assert whole.estimated.value == pytest.approx(at_week(rows, YES, 13).estimated.value, abs=0.02)


def test_the_record_compares_each_past_week_with_an_estimate_that_had_not_seen_it():
    rows = clicks(6)
    calm = at_week(rows, YES, 5).record
    flipped = at_week(clicks(6, flipped_from=4), YES, 5).record
    assert calm["error"] < 0.05
    # One of five weeks came true the other way round; its estimate could not know.
    assert flipped["windows"] == 5
    assert flipped["error"] > calm["error"] + 0.2
    assert flipped["bias"] < 0


def test_an_estimate_does_not_look_at_the_labels_of_the_rows_it_is_about():
    same, other = clicks(14), clicks(14, flipped_from=13)
    told = [at_week(rows, YES, 13, delay=timedelta(0)).estimates for rows in (same, other)]
    assert [one.value for one in told[0].values()] == [one.value for one in told[1].values()]


def test_every_estimate_is_widened_by_its_own_record_within_what_the_metric_can_be():
    found = at_week(clicks(14, flipped_from=10), YES, 13)
    narrow = at_week(clicks(14), YES, 13)
    for name, interval in found.estimates.items():
        before = narrow.estimates[name]
        assert interval.high - interval.low > before.high - before.low
        assert interval.low >= 0
    assert found.estimates["accuracy"].high <= 1


def test_the_interval_is_the_windows_own_and_the_records_together():
    found = at_week(clicks(14), YES, 13)
    few = at_week(clicks(14), YES, 13, metric="calibration_error").estimates["log_loss"]
    assert few == found.estimates["log_loss"]
    reach = (found.estimated.high - found.estimated.low) / 2
    error = stats.t.ppf(0.975, 8) * found.record["rms"]
    assert reach > error
    # What is left is t over seven blocks of a mean.
    assert np.sqrt(reach**2 - error**2) == pytest.approx(own_reach(clicks(14)), rel=0.1)


def test_a_metric_that_cannot_be_told_without_labels_says_so_beside_those_that_can():
    found = at_week(clicks(14), YES, 13, metric="calibration_error")
    assert (found.estimated, found.note) == (None, "calibration_error is not estimated.")
    assert "accuracy" in found.estimates
    assert at_week(clicks(14), YES, 13).note == ""


def own_reach(rows):
    """Half the interval of the mean entropy of the last week, over its days."""
    p = np.asarray(rows.column("probability"))[-7 * PER_DAY :]
    daily = -(p * np.log(p) + (1 - p) * np.log(1 - p)).reshape(7, PER_DAY).mean(axis=1)
    return stats.t.ppf(0.975, 6) * stats.sem(daily)


def test_a_record_of_bad_estimates_widens_the_interval():
    calm = at_week(clicks(14), YES, 13).estimated
    flipped = at_week(clicks(14, flipped_from=10), YES, 13)
    assert flipped.estimated.high - flipped.estimated.low > 2 * (calm.high - calm.low)


def test_a_regression_is_estimated_by_what_its_rows_used_to_be_off_by():
    rng = np.random.default_rng(0)
    week = np.arange(14 * 7 * PER_DAY) // (7 * PER_DAY)
    x = rng.random(len(week))
    x = np.where(week == 13, (x + 3) / 4, x)  # in the last week only rows of the noisy kind
    said = rng.normal(size=len(week))
    truth = said + rng.normal(size=len(week)) * np.where(x > 0.7, 3, 1)
    rows = table(PRICE, x, said, truth)
    last = week == 13
    rmse = np.sqrt(np.mean((said - truth)[last] ** 2))
    mae = np.mean(np.abs(said - truth)[last])
    found = at_week(rows, PRICE, 13, baseline=Interval(1.8, 1.7, 1.9, 3000, 7))
    assert found.estimated.value == pytest.approx(rmse, rel=0.1)
    assert found.harm_by == "estimate"
    assert at_week(rows, PRICE, 13, metric="mae").estimated.value == pytest.approx(mae, rel=0.1)
    few = at_week(rows, PRICE, 1, delay=11 * DAY)
    assert few.estimated is None
    assert "Too few mature labelled rows" in few.note


def test_where_labels_come_late_the_newest_mature_cohort_is_judged():
    rows = clicks(14, flipped_from=12)
    for delay, week in ((WEEK, 12), (14 * DAY, 11)):
        found = at_week(rows, YES, 13, delay=delay, baseline=EASY)
        window = Window(START + week * WEEK, START + (week + 1) * WEEK)
        truth = performance(between(rows, window), YES, Scope("r1", window.end, DAY, None))
        assert found.realised == truth.realised
        assert found.lag_days == delay / DAY
        assert found.extra["labelled_share"] == 1.0


def test_the_share_labelled_is_told_by_tenth_of_the_scores():
    rows = clicks(1)
    score = np.asarray(rows.column("probability"))
    order = score.argsort().argsort()
    known = np.asarray(rows.column("label"))
    labels = pa.array(np.where(order % 2 == 1, known, None), pa.string())  # every second score
    labels = pc.if_else(pa.array(order < 42), pa.nulls(420, pa.string()), labels)
    rows = rows.set_column(rows.column_names.index("label"), "label", labels)
    found = performance(rows, YES, Scope("r1", START + WEEK, DAY, None))
    assert found.labelled_by_score == (0.0, *[0.5] * 9)
    assert found.extra["labelled_share"] == 0.45


def test_another_metric_than_the_loss_is_held_against_the_champions_first_window():
    rows = clicks(14, hard_from=13)
    found = at_week(rows, YES, 13, delay=timedelta(0), metric="accuracy", since=START - DAY)
    first = Window(START, START + WEEK)
    said = performance(between(rows, first), YES, Scope("r1", first.end, DAY, None))
    assert found.metric == "accuracy"
    assert found.baseline == said.measures["accuracy"]
    assert found.realised.high < found.baseline.low
    assert (hurts(found), found.harm_by) == (Hurts.YES, "labels")
    better = replace(found, realised=found.baseline, baseline=found.realised)
    assert hurts(better) is Hurts.NO


def test_an_estimate_that_fails_is_left_out_with_the_reason_and_labels_still_tell():
    rows = clicks(2)

    def past(window, schema):
        raise OSError("the disk is gone")

    end = START + 2 * WEEK
    scope = Scope("r1", end, DAY, EASY, window=Window(end - WEEK, end), past=past)
    found = performance(between(rows, scope.window), YES, scope)
    assert found.realised is not None
    assert found.estimated is None
    assert found.note.startswith("The estimate failed: OSError at test_estimate.py")


def test_the_same_rows_in_any_number_of_parts_give_the_same_estimate():
    rows = clicks(14)
    end = START + 14 * WEEK

    def scope(parts):
        return Scope("r1", end, DAY, EASY, window=Window(end - WEEK, end), past=parted(rows, parts))

    told = [performance(between(rows, scope(n).window), YES, scope(n)) for n in (1, 7)]
    assert told[0] == told[1]
