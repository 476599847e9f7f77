"""Input of any shape has a defined answer: too little data, or a finding that names the trouble."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from homeostat import report
from homeostat.monitor import Subject, examine
from homeostat.profile import Profile
from homeostat.records import State, Window
from homeostat.report import FileReporter
from homeostat.schema import TIMESTAMP, Feature, Schema, Target
from homeostat.settings import Monitor
from homeostat.traits import Traits

DAY = timedelta(days=1)
START = datetime(2024, 1, 1, tzinfo=UTC)
WEEK = Window(START + 140 * DAY, START + 147 * DAY)
HOSTILE = "</script><script>alert(1)</script>"
BARE = Schema(
    (
        Feature("temp", "number"),
        Feature("city", "category"),
        Feature("open", "boolean"),
        Feature(HOSTILE, "number"),
    ),
    Target("y", "binary", "bool", ("false", "true")),
)


def rows(count, window=WEEK, *, seed=1, **changed):
    random = np.random.default_rng(seed)
    times = [window.start + window.length * (i / max(count, 1)) for i in range(count)]
    values = {
        "occurred_at": pa.array(times, TIMESTAMP),
        "model_version": pa.array(["m"] * count, pa.string()),
        "temp": pa.array(random.normal(size=count)),
        "city": pa.array(random.choice(["Oslo", "Rome", "Bern"], count).tolist(), pa.string()),
        "open": pa.array((random.random(count) < 0.5).tolist(), pa.bool_()),
        HOSTILE: pa.array(random.normal(size=count)),
    }
    return pa.table(values | changed)


OLD = rows(14_000, Window(START, WEEK.start), seed=0)
SCHEMA = BARE.learned_from(OLD)
SUBJECT = Subject(
    "m",
    SCHEMA,
    Profile.of(OLD, SCHEMA, block=DAY),
    OLD.slice(0, 100),
    None,
    traits=Traits.of(OLD, SCHEMA, block=DAY),
)


class Silent:
    def evidently(self, reference, current, schema):
        return {}


def look(current, window=WEEK, now=None, **settings):
    return examine(
        SUBJECT,
        current,
        window,
        refused={},
        last=None,
        settings=Monitor(**settings),
        mature_until=window.start,
        now=now or window.end,
        reporter=Silent(),
    )


def said(found):
    return [(f.check, f.severity, f.column) for f in found.findings]


@pytest.mark.parametrize("count", [0, 1])
def test_empty_and_single_row_windows_are_too_little(count):
    found = look(rows(count))
    assert found.state is State.INSUFFICIENT_DATA
    assert found.carried_over


@pytest.mark.parametrize("extreme", [{}, {"temp": pa.array([1e9]), "city": pa.array(["Bern"])}])
def test_a_single_row_tells_no_drift_even_where_settings_take_it_as_enough(extreme):
    found = look(rows(1, **extreme), min_rows=1)
    assert found.state is State.INSUFFICIENT_DATA
    assert (found.data_drift, found.carried_over) == (False, True)
    assert found.reason == "The window holds 1 rows; 2 are needed to compare."


def test_an_empty_window_is_too_little_even_where_settings_take_one_row_as_enough():
    assert look(rows(0), min_rows=1).state is State.INSUFFICIENT_DATA


@pytest.mark.parametrize("count", [2, 3, 4, 8])
def test_a_handful_of_ordinary_rows_is_no_drift_where_settings_take_it_as_enough(count):
    found = [look(rows(count, seed=seed), min_rows=1) for seed in range(100, 110)]
    assert {each.state for each in found} == {State.STABLE}
    assert not any(each.joint_drift.drifted for each in found)


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("temp", pa.array([1.5] * 700), ("constant_column", "block")),
        ("temp", pa.nulls(700, pa.float64()), ("empty_column", "block")),
        ("temp", pa.nulls(700), ("empty_column", "block")),
        ("city", pa.array(["Paris"] * 700), ("unseen_levels", "block")),
        ("city", pa.array([f"c{i}" for i in range(700)]), ("unseen_levels", "block")),
        ("temp", pa.array(["1.5", "two"] * 350), ("retyped_column", "block")),
        ("temp", pa.array([f"{i / 7}" for i in range(700)]), ("retyped_column", "warn")),
        ("temp", pa.array(["2024-05-20"] * 700), ("retyped_column", "block")),
        ("temp", pa.array([WEEK.start] * 700, TIMESTAMP), ("retyped_column", "block")),
        ("temp", pa.array([[1.0]] * 700), ("retyped_column", "block")),
        ("open", pa.array(["perhaps"] * 700), ("retyped_column", "block")),
        ("city", pa.array([1, 2] * 350), ("retyped_column", "warn")),
        ("temp", pa.array([np.inf, -np.inf] * 350), ("not_finite", "block")),
        ("temp", pa.array([np.inf] + [0.1 * (i % 30) for i in range(699)]), ("not_finite", "warn")),
    ],
)
def test_a_column_that_cannot_be_used_is_named_and_the_others_are_tested(column, values, expected):
    found = look(rows(700, **{column: values}))
    assert (*expected, column) in said(found)
    sound = {c.column for c in found.columns}
    assert sound >= set(SCHEMA.names) - {column}
    if expected[1] == "block":
        assert (found.state, column in sound) == (State.BROKEN_DATA, False)


def test_a_hundred_thousand_levels_are_named_in_bounded_time():
    count = 100_000
    found = look(rows(count, city=pa.array([f"level {i}" for i in range(count)])))
    assert ("unseen_levels", "block", "city") in said(found)


def test_missing_and_further_columns_are_named():
    current = rows(700).drop_columns(["temp"]).append_column("wind", pa.array([1.0] * 700))
    assert said(look(current)) == [
        ("missing_column", "block", "temp"),
        ("extra_column", "warn", "wind"),
    ]


def texts(times, zones):
    zoned = [t.astimezone(z) for t, z in zip(times, zones, strict=True)]
    return pa.array([t.isoformat() for t in zoned])


def test_times_of_mixed_zones_are_read_as_the_same_instants():
    from zoneinfo import ZoneInfo

    current = rows(700)
    times = current["occurred_at"].to_pylist()
    zones = [ZoneInfo("Asia/Tokyo"), ZoneInfo("Europe/Berlin"), UTC, ZoneInfo("UTC")] * 175
    mixed = current.set_column(0, "occurred_at", texts(times, zones))
    found, plain = look(mixed), look(current)
    assert said(found) == [("retyped_column", "warn", "occurred_at")]
    assert found.columns == plain.columns


@pytest.mark.parametrize(
    "times",
    [
        pa.array([datetime(2024, 5, 20)] * 700, pa.timestamp("us")),  # noqa: DTZ001 - on purpose
        pa.array(["20.05.2024"] * 700),
        pa.array(["2024-05-20T10:00:00Z", "2024-05-20T10:00:00"] * 350),
        pa.array([None] * 700, TIMESTAMP),
        pa.array(range(700)),
    ],
)
def test_times_that_cannot_be_put_in_order_block_the_window(times):
    found = look(rows(700).set_column(0, "occurred_at", times))
    assert found.state is State.BROKEN_DATA
    assert ("unusable_times", "block", None) in said(found)
    assert found.rows == 700


def test_a_window_before_the_reference_says_so():
    window = Window(START - 10 * DAY, START - 3 * DAY)
    found = look(rows(700, window), window)
    assert said(found) == [("window_before_reference", "warn", None)]


def test_names_that_are_markup_are_escaped_wherever_they_are_shown(tmp_path):
    class Failing:
        def run(self, function, *args, **kwargs):
            raise ValueError

    found = look(rows(700, **{HOSTILE: pa.nulls(700, pa.float64())}))
    assert HOSTILE in found.reason
    reporter = FileReporter(tmp_path, Failing(), sample=100, seed=0)
    reporter.status(found)
    page = (tmp_path / report.HTML).read_text()
    assert "<script>" not in page
    assert "&lt;/script&gt;" in page
    assert "<script>" not in report.summary(found)
    assert reporter.last().findings == found.findings
