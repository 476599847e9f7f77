from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats
from sklearn import metrics

from homeostat.errors import SchemaError
from homeostat.monitor.performance import Scope, hurts, performance
from homeostat.records import Hurts, Interval, Performance, Window
from homeostat.schema import TIMESTAMP, Feature, Schema, Target
from homeostat.scoring import tabulate

DAY = timedelta(days=1)
START = datetime(2024, 1, 1, tzinfo=UTC)
FEATURES = (Feature("x", "number"),)
BINARY = Schema(FEATURES, Target("y", "binary", "bool", ("false", "true")))
CLASSES = Schema(FEATURES, Target("y", "multiclass", "str", ("a", "b", "c")))
NUMBER = Schema(FEATURES, Target("y", "regression", "float"))
SCOPE = Scope("r1", START + 365 * DAY, DAY, None)
RNG = np.random.default_rng(0)


def table(schema, output, labels, days=7, release="r1"):
    count = len(output)
    kind = pa.float64() if schema.target.task == "regression" else pa.string()
    columns = {
        "x": pa.nulls(count, pa.float64()),
        "occurred_at": pa.array(
            [START + DAY * (days * i / count) for i in range(count)], TIMESTAMP
        ),
        "model_version": pa.array([release] * count, pa.string()),
        "label": pa.array(labels, kind),
    }
    scores = tabulate(np.asarray(output), schema.target)
    return pa.table(columns | {name: scores.column(name) for name in scores.column_names})


def binary(count=400, **options):
    output = RNG.random(count).round(2)
    positive = RNG.random(count) < output
    labels = ["true" if value else "false" for value in positive]
    return table(BINARY, output, labels, **options), output, positive


def test_binary_metrics_are_those_of_scikit_learn():
    rows, output, positive = binary()
    found = performance(rows, BINARY, SCOPE)
    assert found.metric == "log_loss"
    assert found.realised.value == pytest.approx(metrics.log_loss(positive, output))
    assert found.realised.rows == 400
    assert found.realised.blocks == 7
    said = {name: interval.value for name, interval in found.measures.items()}
    assert said["auc"] == pytest.approx(metrics.roc_auc_score(positive, output))
    assert said["accuracy"] == metrics.accuracy_score(positive, output > 0.5)
    assert said["brier"] == pytest.approx(metrics.brier_score_loss(positive, output))
    assert said["f1"] == pytest.approx(metrics.f1_score(positive, output > 0.5))
    assert all(
        interval.low <= interval.value <= interval.high for interval in found.measures.values()
    )


def test_multiclass_and_regression_have_their_own_metrics():
    output = RNG.dirichlet(np.ones(3), 200)
    labels = RNG.choice(list("abc"), 200)
    found = performance(table(CLASSES, output, labels), CLASSES, SCOPE)
    assert found.realised.value == pytest.approx(metrics.log_loss(labels, output))
    best = np.array(list("abc"))[output.argmax(axis=1)]
    said = {name: interval.value for name, interval in found.measures.items()}
    assert said["accuracy"] == metrics.accuracy_score(labels, best)
    assert said["f1"] == pytest.approx(metrics.f1_score(labels, best, average="macro"))
    auc = metrics.roc_auc_score(labels, output, multi_class="ovr")
    assert said["auc"] == pytest.approx(auc)
    brier = metrics.brier_score_loss(labels, output, scale_by_half=False)
    assert said["brier"] == pytest.approx(brier)

    truth, said = RNG.normal(size=200), RNG.normal(size=200)
    found = performance(table(NUMBER, said, truth), NUMBER, SCOPE)
    assert found.metric == "rmse"
    assert found.realised.value == pytest.approx(metrics.root_mean_squared_error(truth, said))
    assert found.realised.low < found.realised.value < found.realised.high
    assert found.measures["mae"].value == pytest.approx(metrics.mean_absolute_error(truth, said))
    assert found.measures["r2"].value == pytest.approx(metrics.r2_score(truth, said))


def test_only_mature_labelled_rows_of_the_champion_are_judged():
    mine, output, positive = binary(200)
    other, *_ = binary(100, release="r0")
    labels = [v if i % 2 else None for i, v in enumerate(mine.column("label").to_pylist())]
    half = mine.set_column(mine.column_names.index("label"), "label", pa.array(labels, pa.string()))
    young = Scope("r1", START + 3.5 * DAY, DAY, None)
    found = performance(pa.concat_tables([half, other]), BINARY, young)
    chosen = slice(1, 100, 2)
    expected = metrics.log_loss(positive[chosen], output[chosen])
    assert found.realised.value == pytest.approx(expected)
    assert found.realised.rows == 50
    assert found.realised.blocks == 4
    assert found.realised.low is None
    assert performance(other, BINARY, SCOPE).realised is None
    assert performance(mine.drop_columns(["label"]), BINARY, SCOPE).realised is None


def test_the_interval_is_that_of_t_on_the_means_of_equal_blocks():
    rows, output, positive = binary(280)
    loss = -np.log(np.clip(np.where(positive, output, 1 - output), 1e-15, 1)).reshape(7, 40)
    means = loss.mean(axis=1)
    low, high = stats.t.interval(0.95, 6, means.mean(), stats.sem(means))
    found = performance(rows, BINARY, SCOPE).realised
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    shuffled = rows.take(np.random.default_rng(0).permutation(280))
    assert performance(shuffled, BINARY, SCOPE).realised == found


def test_one_class_has_no_auc_and_a_label_that_is_no_class_is_counted_not_scored():
    rows = table(BINARY, [0.2, 0.3, 0.4], ["false", "false", "maybe"])
    found = performance(rows, BINARY, SCOPE)
    assert "auc" not in found.measures
    assert found.extra["unknown_labels"] == 1
    assert found.realised.rows == 2


def test_a_loss_that_is_not_finite_is_an_error_not_a_number():
    rows = table(NUMBER, [1e300, 1.0], [-1e300, 1.0])
    with np.errstate(over="ignore"), pytest.raises(SchemaError, match="not finite"):
        performance(rows, NUMBER, SCOPE)


@pytest.mark.parametrize(
    ("low", "high", "baseline", "expected"),
    [
        (1.10, 1.20, Interval(1.0, 0.95, 1.05, 100, 7), Hurts.YES),
        (1.10, 1.20, Interval(1.0, None, None, 100, 3), Hurts.YES),
        (1.10, 1.20, Interval(1.0, 0.8, 1.15, 100, 7), Hurts.UNKNOWN),
        (1.01, 1.20, Interval(1.0, 0.99, 1.005, 100, 7), Hurts.UNKNOWN),
        (0.90, 1.01, Interval(1.0, 0.95, 1.05, 100, 7), Hurts.NO),
        (0.90, 1.10, Interval(1.0, 0.95, 1.05, 100, 7), Hurts.UNKNOWN),
        (None, None, Interval(1.0, 0.95, 1.05, 100, 7), Hurts.UNKNOWN),
        (1.10, 1.20, None, Hurts.UNKNOWN),
    ],
)
def test_harm_is_called_only_where_both_intervals_agree(low, high, baseline, expected):
    realised = Interval(1.0, low, high, 100, 7)
    assert hurts(Performance("log_loss", realised, baseline)) is expected


@pytest.mark.parametrize(
    ("low", "high", "baseline", "expected"),
    [
        (0.60, 0.70, Interval(0.8, 0.75, 0.85, 100, 7), Hurts.YES),
        (0.60, 0.70, Interval(0.8, 0.65, 0.85, 100, 7), Hurts.UNKNOWN),
        (0.79, 0.85, Interval(0.8, 0.75, 0.85, 100, 7), Hurts.NO),
        (0.90, 0.95, Interval(0.8, 0.75, 0.85, 100, 7), Hurts.NO),
        (-0.505, -0.50, Interval(-0.5, -0.6, -0.4, 100, 7), Hurts.NO),
        (-0.90, -0.80, Interval(-0.5, -0.6, -0.4, 100, 7), Hurts.YES),
    ],
)
def test_of_a_metric_of_which_more_is_better_less_is_harm(low, high, baseline, expected):
    realised = Interval((low + high) / 2, low, high, 100, 7)
    found = Performance("r2", realised, baseline, greater_is_better=True)
    assert hurts(found) is expected


def test_one_wild_day_leaves_the_root_of_a_mean_square_a_lower_bound_of_nought():
    said = np.zeros(280)
    said[0] = 100.0
    found = performance(table(NUMBER, said, np.zeros(280)), NUMBER, SCOPE).realised
    assert (found.low, found.blocks) == (0.0, 7)
    assert found.high > found.value


@pytest.mark.parametrize("since", [START + 7 * DAY, START + 30 * DAY])
def test_a_champion_younger_than_any_label_has_no_baseline_of_another_metric(since):
    rows, *_ = binary()
    window = Window(START, START + 7 * DAY)
    more = {"metric": "accuracy", "window": window, "since": since}
    scope = Scope("r1", window.end, DAY, None, past=lambda within, schema: [rows], **more)
    found = performance(rows, BINARY, scope)
    assert (found.baseline, hurts(found)) == (None, Hurts.UNKNOWN)


def test_the_first_window_is_no_baseline_before_it_is_over():
    rows, *_ = binary()
    told = []
    for days in (3, 8):
        window = Window(START + DAY * (days - 7), START + days * DAY)
        more = {"metric": "accuracy", "window": window, "since": START}
        scope = Scope("r1", window.end, DAY, None, past=lambda within, schema: [rows], **more)
        told.append(performance(rows, BINARY, scope).baseline)
    assert (told[0], told[1].rows) == (None, 400)


def test_rows_that_were_all_looked_at_are_told_of_no_share_that_was_drawn():
    rows, *_ = binary()
    assert performance(rows, BINARY, SCOPE).extra == {"labelled_share": 1.0}


def test_the_share_labelled_of_several_classes_goes_by_the_probability_of_the_one_that_was_said():
    output = np.random.default_rng(4).dirichlet(np.ones(3), 400)
    sure = output.max(axis=1) > np.median(output.max(axis=1))
    rows = table(CLASSES, output, ["a" if known else None for known in sure])
    assert performance(rows, CLASSES, SCOPE).labelled_by_score == (0.0,) * 5 + (1.0,) * 5


@pytest.mark.parametrize(("late", "lag"), [(DAY / 2, 0), (DAY, 1), (3 * DAY, 3)])
def test_labels_late_by_less_than_a_block_are_those_of_the_window_itself(late, lag):
    rows, *_ = binary()
    window = Window(START, START + 7 * DAY)
    scope = Scope(
        "r1", window.end - late, DAY, None, window=window, past=lambda within, schema: [rows]
    )
    assert performance(rows, BINARY, scope).lag_days == lag


def test_without_labels_harm_is_unknown():
    baseline = Interval(1.0, 0.9, 1.1, 100, 7)
    assert hurts(Performance("log_loss", None, baseline)) is Hurts.UNKNOWN
