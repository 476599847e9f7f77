from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from homeostat.monitor.quality import quality
from homeostat.profile import Profile
from homeostat.records import Window
from homeostat.schema import TIMESTAMP, Feature, Schema, Target

DAY = timedelta(days=1)
START = datetime(2024, 1, 1, tzinfo=UTC)
WEEK = Window(START + 100 * DAY, START + 107 * DAY)
SCHEMA = Schema(
    (
        Feature("temp", "number", edges=tuple(np.linspace(-2, 2, 31))),
        Feature("gust", "number", edges=(0.0, 1.0)),  # seldom known
        Feature("carrier", "category", levels=("AA", "BB", "CC")),
        Feature("loud", "boolean"),
    ),
    Target("y", "binary", "bool", ("false", "true")),
)


def columns(rows, days, seed=0):
    rng = np.random.default_rng(seed)
    gust = rng.random(rows)
    return {
        "temp": rng.normal(size=rows).tolist(),
        "gust": [None if value < 0.8 else value for value in gust],
        "carrier": rng.choice(["AA", "BB", "CC"], rows).tolist(),
        "loud": (rng.random(rows) < 0.5).tolist(),
    }


def profile(rows=700, days=7, start=WEEK.start, **changed):
    times = [start + DAY * (days * i / rows) for i in range(rows)]
    values = columns(rows, days) | changed
    table = pa.table(
        {"occurred_at": pa.array(times, TIMESTAMP)}
        | {f.name: pa.array(values[f.name], f.arrow) for f in SCHEMA.features}
    )
    return Profile.of(table, SCHEMA, block=DAY)


REFERENCE = profile(10_000, 100, START)


def find(current, refused=(), reference=REFERENCE):
    found = quality(reference, current, WEEK, dict(refused))
    return [(f.check, f.severity, f.column) for f in found]


def test_an_ordinary_window_has_no_findings():
    assert find(profile()) == []


def test_an_empty_column_blocks():
    assert find(profile(temp=[None] * 700)) == [("empty_column", "block", "temp")]
    assert find(profile(loud=[None] * 700)) == [("empty_column", "block", "loud")]


@pytest.mark.parametrize(
    ("nulls", "expected"),
    [(21, []), (140, [("null_spike", "warn", "temp")]), (420, [("null_spike", "block", "temp")])],
)
def test_nulls_warn_when_they_rise_and_block_when_they_rule(nulls, expected):
    temp = columns(700, 7)["temp"]
    assert find(profile(temp=[None] * nulls + temp[nulls:])) == expected


def test_a_column_that_is_seldom_known_may_stay_so():
    assert find(profile(80, 1, gust=[None] * 15 + [1.0] * 65)) == []
    assert find(profile(30, 1, gust=[None] * 30)) == [("row_volume", "warn", None)]
    assert find(profile(700, gust=[None] * 600 + [1.0] * 100)) == []


def test_what_the_reference_went_through_is_not_called_broken():
    # In one of its weeks nothing was measured.
    temp = columns(10_000, 100)["temp"]
    reference = profile(10_000, 100, START, temp=[None] * 700 + temp[700:])
    assert find(profile(temp=[None] * 700), reference=reference) == []


@pytest.mark.parametrize(("new", "severity"), [(20, None), (70, "warn"), (500, "block")])
def test_levels_never_seen_warn_and_then_block(new, severity):
    carrier = ["ZZ"] * new + columns(700, 7)["carrier"][new:]
    expected = [("unseen_levels", severity, "carrier")] if severity else []
    assert find(profile(carrier=carrier)) == expected


def test_a_column_that_no_longer_varies_warns():
    assert find(profile(carrier=["BB"] * 700)) == [("constant_column", "warn", "carrier")]
    assert find(profile(temp=[0.3] * 700)) == [("constant_column", "warn", "temp")]
    # Beyond the last edge anything may vary: a hot summer after a winter of training.
    assert find(profile(temp=[9.0] * 700)) == []
    still = profile(10_000, 100, START, carrier=["BB"] * 10_000)
    assert find(profile(carrier=["BB"] * 700), reference=still) == []


@pytest.mark.parametrize(
    ("count", "severity"), [(0, None), (30, None), (100, "warn"), (800, "block")]
)
def test_refused_rows_warn_and_then_block(count, severity):
    expected = [("refused_rows", severity, None)] if severity else []
    assert find(profile(), {"wrong_type:temp": count, "missing_field:loud": 0}) == expected


def test_a_collapse_of_traffic_is_worth_a_look_but_no_more():
    assert find(profile(40)) == [("row_volume", "warn", None)]
    assert find(profile(80)) == []


def test_an_empty_window_has_an_answer():
    assert find(profile(0)) == [("row_volume", "warn", None)]


def test_a_finding_states_what_was_measured_and_where_it_trips():
    (finding,) = quality(REFERENCE, profile(), WEEK, {"wrong_type:temp": 1400})
    assert finding.value == pytest.approx(2 / 3)
    assert finding.threshold == 0.5
    assert (
        finding.message == "67% of the rows sent were refused, most of them for 'wrong_type:temp'."
    )
