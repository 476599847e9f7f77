"""What the champion's age costs, as two small models tell it."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from loop_fixtures import InProcess
from scipy import stats

from homeostat.errors import EngineError
from homeostat.monitor.metrics import Scores, metrics_of
from homeostat.monitor.staleness import Twins, gain, staleness
from homeostat.records import Window
from homeostat.schema import TIMESTAMP, Feature, Schema, Target

DAY = timedelta(days=1)
WEEK = 7 * DAY
START = datetime(2024, 1, 1, tzinfo=UTC)
PER_DAY, WEEKS = 40, 10
FEATURES = (
    Feature("x", "number"),
    Feature("place", "category", levels=("a", "b")),
    Feature("open", "boolean"),
)
YES = Schema(FEATURES, Target("y", "binary", "bool", ("false", "true")))
PRICE = Schema(FEATURES, Target("y", "regression", "float"))


def stream(schema, *, turned_from=None, seed=0):
    """Ten weeks of labelled rows; from one week on, x works the other way round."""
    rng = np.random.default_rng(seed)
    count = WEEKS * 7 * PER_DAY
    week = np.arange(count) // (7 * PER_DAY)
    x = rng.normal(size=count)
    effect = 2 * x
    if turned_from is not None:
        effect = np.where(week >= turned_from, -effect, effect)
    if schema.target.task == "regression":
        label = pa.array(effect + rng.normal(size=count), pa.float64())
    else:
        true = rng.random(count) < 1 / (1 + np.exp(-effect))
        label = pa.array(np.where(true, "true", "false"), pa.string())
    times = [START + DAY * (i / PER_DAY) for i in range(count)]
    return pa.table(
        {
            "occurred_at": pa.array(times, TIMESTAMP),
            "x": pa.array(x),
            "place": pa.array(rng.choice(["a", "b", "c"], count)),
            "open": pa.array(rng.random(count) < 0.5),
            "label": label,
        }
    )


def twins(**changed):
    end = START + WEEKS * WEEK
    given = {
        "cutoff": START + 4 * WEEK,
        "mature_until": end,
        "window": Window(end - WEEK, end),
        "delay": timedelta(0),
        "block": DAY,
    }
    return Twins(**(given | changed))


def told(rows, schema=YES, engine=None, parts=1, **changed):
    def past(window, schema):
        times = rows.column("occurred_at")
        low, high = (pa.scalar(moment, TIMESTAMP) for moment in (window.start, window.end))
        whole = rows.filter(pc.and_(pc.greater_equal(times, low), pc.less(times, high)))
        size = max(-(-whole.num_rows // parts), 1)
        return [whole.slice(i * size, size) for i in range(parts)]

    return staleness(past, schema, twins(**changed), engine or InProcess())


@pytest.mark.parametrize("schema", [YES, PRICE])
def test_a_world_that_turned_since_the_cutoff_makes_the_newer_twin_better(schema):
    found = told(stream(schema, turned_from=5), schema)
    assert found.low > 0.3
    assert (found.rows, found.blocks, found.reason) == (280, 7, "")


def test_a_world_that_stayed_as_it_was_shows_no_gain():
    found = told(stream(YES))
    assert found.low < 0 < found.high
    assert abs(found.gain) < 0.05


def test_the_gain_is_told_in_the_users_metric_and_above_zero_favours_the_newer():
    for metric in ("auc", "accuracy", "brier"):
        found = told(stream(YES, turned_from=5), metric=metric)
        assert found.metric == metric
        assert 0.05 < found.low < found.gain < found.high


def test_a_gain_of_mean_losses_has_the_interval_of_a_paired_t_test_on_block_means():
    rng = np.random.default_rng(1)
    truth, block = rng.random(700) < 0.5, np.arange(700) // 100
    old, new = (
        Scores.of(rng.random(700), truth, block, YES.target),
        Scores.of(rng.random(700), truth, block, YES.target),
    )
    brier = metrics_of("binary")["brier"]
    gaps = ((old.output - truth) ** 2 - (new.output - truth) ** 2).reshape(7, 100).mean(axis=1)
    low, high = stats.t.interval(0.95, 6, gaps.mean(), stats.sem(gaps))
    found = gain(old, new, brier)
    assert (found.value, found.low, found.high) == pytest.approx((gaps.mean(), low, high))


def test_rows_whose_labels_had_not_come_then_teach_neither_twin():
    # The world turned a week before the asked rows, and labels take two.
    late = told(stream(YES, turned_from=8), delay=2 * WEEK)
    assert abs(late.gain) < 0.1
    soon = told(stream(YES, turned_from=5), delay=2 * WEEK)
    assert soon.gain > 0.3


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"cutoff": START + 9 * WEEK}, "no mature row newer than the champion"),
        ({"cutoff": START + DAY}, "40 labelled rows do not make the older twin"),
        ({"least": 1000}, "280 labelled rows are too few to ask about"),
        ({"metric": "rmse"}, "'rmse' is no metric of a binary model"),
    ],
)
def test_where_it_cannot_be_told_there_is_a_reason_and_no_number(changed, why):
    found = told(stream(YES), **changed)
    assert (found.gain, found.low, found.high) == (None, None, None)
    assert why in found.reason


def test_one_class_makes_no_twin():
    rows = stream(YES)
    labels = pa.array(["true"] * rows.num_rows)
    found = told(rows.set_column(rows.column_names.index("label"), "label", labels))
    assert found.gain is None
    assert "do not make the older twin" in found.reason


def test_a_child_that_dies_leaves_no_number_and_says_why():
    class Dying(InProcess):
        def run(self, function, *args, **kwargs):
            raise EngineError("the child process died.")

    found = told(stream(YES), engine=Dying())
    assert found.gain is None
    assert found.reason == "The twins failed: the child process died."


def test_the_same_rows_in_any_number_of_parts_give_the_same_bits(monkeypatch):
    monkeypatch.setattr("homeostat.monitor.staleness.MOST", 500)
    rows = stream(YES, turned_from=5)
    assert told(rows) == told(rows, parts=5)
