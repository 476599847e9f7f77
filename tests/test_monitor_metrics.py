"""Metrics against scikit-learn, their intervals against SciPy, and metrics of the user's own."""

import math
from importlib.metadata import EntryPoint

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics
from sklearn.calibration import calibration_curve

from homeostat.errors import SchemaError, SettingsError
from homeostat.monitor import metrics as ours
from homeostat.monitor.jackknife import Groups, leaving
from homeostat.monitor.metrics import Scores, brought, chosen, metrics_of
from homeostat.schema import Target

YES = Target("y", "binary", "bool", ("false", "true"))
KINDS = Target("y", "multiclass", "str", ("a", "b", "c"))
PRICE = Target("y", "regression", "float")


def binary(count=600, blocks=10, seed=0, threshold=0.5):
    rng = np.random.default_rng(seed)
    output = rng.random(count).round(2)
    labels = rng.random(count) < output**2
    return Scores.of(output, labels, np.arange(count) * blocks // count, YES, threshold)


def numbers(count=600, blocks=10, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=count)
    said = truth + rng.normal(size=count)
    return Scores.of(said, truth, np.arange(count) * blocks // count, PRICE)


def value(name, scores):
    return metrics_of(scores.task)[name].value(scores)


def test_the_threshold_moves_accuracy_and_f1_as_in_scikit_learn():
    for threshold in (0.2, 0.7):
        scores = binary(threshold=threshold)
        said = scores.output > threshold
        assert value("accuracy", scores) == metrics.accuracy_score(scores.labels, said)
        assert value("f1", scores) == pytest.approx(metrics.f1_score(scores.labels, said))


def test_the_calibration_error_weighs_the_gaps_of_scikit_learns_curve():
    scores = binary(seed=3)
    # Edges are closed on the right here, and on the left there.
    output = np.clip(scores.output - 1e-9, 0, 1)
    hits, said = calibration_curve(scores.labels, output, n_bins=10)
    rows = np.bincount(np.clip(np.ceil(scores.output * 10).astype(int) - 1, 0, 9), minlength=10)
    expected = (np.abs(hits - said) * rows).sum() / rows.sum()
    assert value("calibration_error", scores) == pytest.approx(expected, abs=1e-6)


def expected_error(p, right):
    """Rows by tenths of p, closed on the right, as the papers write it."""
    tenth = np.minimum(np.searchsorted(np.arange(1, 11) / 10, p), 9)
    gaps = [abs(p[tenth == t].mean() - right[tenth == t].mean()) for t in np.unique(tenth)]
    return np.average(gaps, weights=np.unique(tenth, return_counts=True)[1])


def test_gaps_of_either_sign_in_neighbouring_tenths_do_not_make_up_for_one_another():
    rng = np.random.default_rng(7)
    output = rng.random(4_000)
    labels = rng.random(4_000) < np.where(np.floor(output * 10) % 2, output + 0.1, output - 0.1)
    scores = Scores.of(output, labels, np.zeros(4_000, np.int64), YES)
    found = value("calibration_error", scores)
    assert found == pytest.approx(expected_error(output, labels))
    assert found > 0.08


def test_the_calibration_error_of_several_classes_is_that_of_the_class_that_was_said():
    rng = np.random.default_rng(8)
    output = rng.dirichlet(np.ones(3), 2_000)
    labels = rng.choice(["a", "b", "c"], 2_000)
    scores = Scores.of(output, labels, np.zeros(2_000, np.int64), KINDS)
    right = np.array(["a", "b", "c"])[output.argmax(axis=1)] == labels
    expected = expected_error(output.max(axis=1), right)
    assert value("calibration_error", scores) == pytest.approx(expected)


def test_a_jackknife_of_a_mean_over_equal_blocks_is_t_on_block_means():
    scores = numbers()
    found = leaving(lambda rows: float(scores.truth[rows].mean()), Groups(scores.blocks))
    means = scores.truth.reshape(10, -1).mean(axis=1)
    low, high = stats.t.interval(0.95, 9, means.mean(), stats.sem(means))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert (found.rows, found.blocks) == (600, 10)


def several(count=400, blocks=8, seed=0):
    rng = np.random.default_rng(seed)
    output = rng.dirichlet(np.ones(3), count).round(1)
    labels = rng.choice(np.array(["a", "b", "c"], dtype=object), count)
    return Scores.of(output, labels, rng.integers(0, blocks, count), KINDS)


def expected(count=400, blocks=8, seed=0):
    rng = np.random.default_rng(seed)
    q = rng.random(count)
    blocks = np.arange(count) * blocks // count
    return Scores("binary", rng.random(count).round(1), np.column_stack([1 - q, q]), blocks)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("made", [binary, numbers, several, expected])
def test_leaving_a_block_out_of_the_sums_is_leaving_out_its_rows(made, seed):
    scores = made(count=400, blocks=8, seed=seed)
    for metric in metrics_of(scores.task).values():
        if metric.parts is None:
            continue
        groups = Groups(scores.blocks)
        rows = [metric.value(scores.take(scores.blocks != block)) for block in range(8)]
        assert metric.parts.without(scores, groups) == pytest.approx(rows, rel=1e-12)


def test_the_auc_is_that_of_scikit_learn_without_each_block_too():
    scores = binary(count=300, blocks=6, seed=9)
    left = [scores.blocks != block for block in range(6)]
    own = [metrics.roc_auc_score(scores.labels[rows], scores.output[rows]) for rows in left]
    found = Groups(scores.blocks).auc_without(scores.output, scores.truth[:, 1])
    assert found == pytest.approx(own, rel=1e-12)


def test_a_jackknife_knows_the_error_of_an_auc_on_independent_rows():
    aucs = [value("auc", binary(seed=seed, blocks=20)) for seed in range(200)]
    found = [metrics_of("binary")["auc"].interval(binary(seed=s, blocks=20)) for s in range(60)]
    reach = stats.t.ppf(0.975, 19)
    errors = [(interval.high - interval.low) / 2 / reach for interval in found]
    assert np.mean(errors) == pytest.approx(np.std(aucs, ddof=1), rel=0.15)


def test_intervals_that_are_no_means_cover_the_truth_of_a_clustered_stream():
    inside = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        day = np.repeat(np.arange(20), 50)
        said = rng.normal(size=1000)
        truth = said + rng.normal(size=20)[day] + rng.normal(size=1000)
        found = metrics_of("regression")["r2"].interval(Scores.of(said, truth, day, PRICE))
        inside += found.low <= 1 - 2 / 3 <= found.high
    assert inside >= 85


def test_more_blocks_than_the_jackknife_leaves_out_are_joined_with_their_neighbours():
    scores = numbers(blocks=300)
    found = metrics_of("regression")["r2"].interval(scores)
    joined = Scores.of(scores.output, scores.labels, scores.blocks * 60 // 300, PRICE)
    same = metrics_of("regression")["r2"].interval(joined)
    assert (found.low, found.high) == (same.low, same.high)
    assert (found.blocks, same.blocks) == (300, 60)


@pytest.mark.parametrize("scores", [binary(blocks=4), numbers(blocks=4)])
def test_under_five_blocks_nothing_has_bounds(scores):
    found = [metric.interval(scores) for metric in metrics_of(scores.task).values()]
    assert all(one.low is None and one.high is None for one in found)


def test_rows_that_do_not_define_a_metric_give_none():
    one = Scores.of(np.array([0.1, 0.2]), np.array([False, False]), np.arange(2), YES)
    assert value("auc", one) is None
    assert value("f1", one) is None
    flat = Scores.of(np.array([1.0, 2.0]), np.array([3.0, 3.0]), np.arange(2), PRICE)
    assert value("r2", flat) is None
    two = np.array([[0.5, 0.3, 0.2], [0.2, 0.6, 0.2]])
    absent = Scores.of(two, np.array(["a", "b"], dtype=object), np.arange(2), KINDS)
    assert value("auc", absent) is None
    nothing = one.take(np.zeros(2, bool))
    assert all(metric.interval(nothing) is None for metric in metrics_of("binary").values())


def test_a_block_without_which_the_auc_is_not_defined_leaves_it_without_bounds():
    labels = np.zeros(50, bool)
    labels[:10:2] = True  # all of the first block
    scores = Scores.of(np.linspace(0, 1, 50), labels, np.arange(50) // 10, YES)
    found = metrics_of("binary")["auc"].interval(scores)
    assert (found.low, found.high) == (None, None)


def test_bounds_stay_where_the_metric_can_be():
    scores = binary(count=30, blocks=6)
    for metric in metrics_of("binary").values():
        found = metric.interval(scores)
        assert metric.bounds[0] <= found.low <= found.high <= metric.bounds[1]


def test_expected_shares_give_the_mean_over_labels_drawn_from_them():
    rng = np.random.default_rng(5)
    scores = binary(count=300)
    q = rng.random(300)
    told = Scores("binary", scores.output, np.column_stack([1 - q, q]), scores.blocks)
    drawn = [Scores.of(scores.output, rng.random(300) < q, scores.blocks, YES) for _ in range(400)]
    for name in ours.ESTIMATED:
        values = [value(name, one) for one in drawn]
        assert value(name, told) == pytest.approx(np.mean(values), abs=4 * stats.sem(values) + 2e-3)


def test_rows_in_another_order_give_the_same_bits():
    for scores in (binary(), numbers()):
        shuffled = scores.take(np.random.default_rng(1).permutation(600))
        for metric in metrics_of(scores.task).values():
            assert metric.interval(shuffled) == metric.interval(scores)


def cost(labels, scores, threshold):
    return float(np.where(scores > threshold, 1, 10 * labels).mean())


def profit(labels, scores):
    return 2.0


profit.greater_is_better = True


def offered(monkeypatch, **functions):
    entries = {
        name: EntryPoint(name, f"{__name__}:{function}", ours.GROUP)
        for name, function in functions.items()
    }
    monkeypatch.setattr(
        ours, "entry_points", lambda group, name: [entries[name]] * (name in entries)
    )


def test_a_cost_of_ones_own_is_found_by_its_entry_point_and_told_the_threshold(monkeypatch):
    offered(monkeypatch, money="cost", gain="profit")
    scores = binary(threshold=0.3)
    found = chosen("money", "binary")
    assert found.value(scores) == cost(scores.labels, scores.output, 0.3)
    assert found.interval(scores).low < found.value(scores)
    assert not found.greater
    assert chosen("gain", "binary").greater


def test_a_metric_that_nobody_knows_is_refused_with_those_that_are_known():
    with pytest.raises(SettingsError, match="'rmse' is no metric of a binary model") as caught:
        chosen("rmse", "binary")
    assert "log_loss, brier, accuracy, auc" in caught.value.hint


def test_a_metric_of_ones_own_that_gives_no_number_is_an_error():
    with pytest.raises(SchemaError, match="gave nan, not a finite number"):
        brought("odd", lambda labels, scores: math.nan).value(binary())
