from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from homeostat.monitor.quality import Case, quality
from homeostat.monitor.sums import Sums
from homeostat.profile import Profile
from homeostat.records import Window
from homeostat.schema import TIMESTAMP, Feature, Schema, Target
from homeostat.traits import Traits

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


def table(rows=700, days=7, start=WEEK.start, **changed):
    times = [start + DAY * (days * i / rows) for i in range(rows)]
    values = columns(rows, days) | changed
    return pa.table(
        {"occurred_at": pa.array(times, TIMESTAMP)}
        | {f.name: pa.array(values[f.name], f.arrow) for f in SCHEMA.features}
    )


REFERENCE = table(10_000, 100, START)


def look(rows, refused=(), reference=REFERENCE, schema=SCHEMA):
    traits = Traits.of(reference, schema, block=DAY)
    case = Case(
        schema,
        Profile.of(reference, schema, block=DAY),
        traits,
        Sums.of([rows], schema, traits),
        Profile.of(rows, schema, block=DAY),
        WEEK,
        dict(refused),
        now=WEEK.end,
        last=None,
    )
    return quality(case)


def find(rows, refused=(), reference=REFERENCE, schema=SCHEMA):
    found = look(rows, refused, reference, schema)
    return [(f.check, f.severity, f.column) for f in found]


def test_an_ordinary_window_has_no_findings():
    assert find(table()) == []


def test_an_empty_column_blocks():
    assert find(table(temp=[None] * 700)) == [("empty_column", "block", "temp")]
    assert find(table(loud=[None] * 700)) == [("empty_column", "block", "loud")]


@pytest.mark.parametrize(
    ("nulls", "expected"),
    [(21, []), (140, [("null_spike", "warn", "temp")]), (420, [("null_spike", "block", "temp")])],
)
def test_nulls_warn_when_they_rise_and_block_when_they_rule(nulls, expected):
    temp = columns(700, 7)["temp"]
    assert find(table(temp=[None] * nulls + temp[nulls:])) == expected


def test_a_column_that_is_seldom_known_may_stay_so():
    known = columns(700, 7)["gust"]
    rare = [value if i % 2 else None for i, value in enumerate(known)]
    assert find(table(gust=rare)) == []
    assert find(table(30, gust=[None] * 30)) == [("row_volume", "warn", None)]


def test_what_the_reference_went_through_is_not_called_broken():
    # In one of its weeks nothing was measured.
    temp = columns(10_000, 100)["temp"]
    reference = table(10_000, 100, START, temp=[None] * 700 + temp[700:])
    assert find(table(temp=[None] * 700), reference=reference) == []


@pytest.mark.parametrize(("new", "severity"), [(20, None), (70, "warn"), (500, "block")])
def test_levels_never_seen_warn_and_then_block(new, severity):
    carrier = ["ZZ"] * new + columns(700, 7)["carrier"][new:]
    expected = [("unseen_levels", severity, "carrier")] if severity else []
    assert find(table(carrier=carrier)) == expected


def test_a_column_that_no_longer_varies_blocks():
    assert find(table(carrier=["BB"] * 700)) == [("constant_column", "block", "carrier")]
    assert find(table(temp=[0.3] * 700)) == [("constant_column", "block", "temp")]
    assert find(table(temp=[9.0] * 700)) == [("constant_column", "block", "temp")]
    # A level that nearly had the column to itself before may come to have it quite.
    before = ["BB"] * 6000 + columns(10_000, 100)["carrier"][6000:]
    mostly = np.random.default_rng(1).permutation(before).tolist()
    expected = [("constant_column", "warn", "carrier")]
    assert (
        find(table(carrier=["BB"] * 700), reference=table(10_000, 100, START, carrier=mostly))
        == expected
    )


def test_what_was_constant_in_every_stretch_may_be_so_with_another_value():
    still = table(10_000, 100, START, carrier=["BB"] * 10_000)
    assert find(table(carrier=["BB"] * 700), reference=still) == []
    season = table(10_000, 100, START, gust=[float(i // 2_000) for i in range(10_000)])
    assert find(table(gust=[4.0] * 700), reference=season) == []


def test_what_varies_beyond_the_last_edge_is_no_constant():
    hot = [9.0 + i / 100 for i in range(700)]
    assert ("constant_column", "block", "temp") not in find(table(temp=hot))


def test_a_level_or_a_value_that_hardly_ever_changed_may_stay():
    random = np.random.default_rng(2)
    loud = (random.random(10_000) < 0.97).tolist()
    assert find(table(loud=[True] * 700), reference=table(10_000, 100, START, loud=loud)) == []


def test_what_blocks_is_named_before_what_only_warns():
    temp = [None] * 140 + [0.3] * 560
    assert find(table(temp=temp)) == [("constant_column", "block", "temp")]


def test_a_share_that_few_rows_reach_by_chance_is_no_finding():
    random = np.random.default_rng(3)
    often = [None if random.random() < 0.3 else float(random.normal()) for _ in range(10_000)]
    temp = [None] * 10 + columns(10, 1)["temp"]
    reference = table(10_000, 100, START, temp=often)
    assert find(table(20, temp=temp), reference=reference) == [("row_volume", "warn", None)]


def test_levels_and_infinities_that_the_reference_held_as_often_are_no_finding():
    def some(count, seed):
        random = np.random.default_rng(seed)
        carrier = np.where(random.random(count) < 0.3, "ZZ", columns(count, 1)["carrier"])
        temp = np.where(random.random(count) < 0.2, np.inf, columns(count, 1)["temp"])
        return {"carrier": carrier.tolist(), "temp": temp.tolist()}

    reference = table(10_000, 100, START, **some(10_000, 0))
    assert find(table(**some(700, 1)), reference=reference) == []
    assert find(table(**some(700, 1))) == [
        ("not_finite", "block", "temp"), ("unseen_levels", "warn", "carrier"),
    ]  # fmt: skip


def test_another_value_of_what_never_varied_is_out_of_range_but_has_no_width_to_be_far_beyond():
    reference = table(10_000, 100, START, gust=[5.0] * 10_000)
    gust = [6.0] * 210 + [5.0] * 490
    assert find(table(gust=gust), reference=reference) == [("out_of_range", "warn", "gust")]


def test_far_beyond_a_range_that_the_reference_had_only_just_reached_is_no_broken_data():
    constant, moved = [5.0] * 9_000, [5.0 + 0.001 * place for place in range(1_000)]
    edges = (4.999, 5.0, 5.2, 5.4, 5.6, 5.8, 5.999)
    schema = Schema((Feature("gust", "number", edges=edges),), SCHEMA.target)
    week = table(gust=[20.0 + 0.01 * place for place in range(700)])
    late = table(10_000, 100, START, gust=constant + moved)
    always = table(10_000, 100, START, gust=[5.0 + 0.001 * (i % 1_000) for i in range(10_000)])

    def found(reference):
        told = look(week.select(["occurred_at", "gust"]), (), reference, schema)
        return [(each.check, each.severity) for each in told if each.column == "gust"]

    assert found(late) == [("out_of_range", "warn")]
    assert found(always) == [("out_of_range", "block")]


def test_levels_that_are_new_where_new_ones_came_all_the_time_are_no_broken_data():
    months = tuple("abcdefgh")
    schema = Schema((Feature("carrier", "category", levels=months),), SCHEMA.target)
    week = table(carrier=["i"] * 700)
    rising = table(10_000, 100, START, carrier=[months[i // 1_250] for i in range(10_000)])
    mixed = table(10_000, 100, START, carrier=[months[i % 8] for i in range(10_000)])

    def found(reference):
        told = look(week.select(["occurred_at", "carrier"]), (), reference, schema)
        return [(each.check, each.severity) for each in told if each.column == "carrier"]

    assert found(rising) == [("unseen_levels", "warn")]
    assert found(mixed) == [("unseen_levels", "block")]


FINE = Schema(
    (Feature("temp", "number", edges=tuple(np.linspace(-4, 4, 161))), *SCHEMA.features[1:]),
    SCHEMA.target,
)


def scaled(count, factor, seed=0):
    return (factor * np.random.default_rng(seed).normal(0, 0.5, count)).tolist()


@pytest.mark.parametrize(("factor", "severity"), [(1.2, None), (1.75, "warn"), (2.6, "block")])
def test_a_scale_warns_where_it_may_be_drift_and_blocks_where_it_is_too_large(factor, severity):
    reference = table(10_000, 100, START, temp=scaled(10_000, 1))
    found = find(table(temp=scaled(700, factor, seed=1)), reference=reference, schema=FINE)
    units = [(check, said) for check, said, column in found if check == "unit_change"]
    assert units == ([("unit_change", severity)] if severity else [])


def test_a_scale_that_the_column_had_for_a_week_is_no_change_of_unit():
    temp = scaled(10_000, 1)
    temp[3_000:3_700] = scaled(700, 2.6, seed=2)
    found = find(
        table(temp=scaled(700, 2.6, seed=1)),
        reference=table(10_000, 100, START, temp=temp),
        schema=FINE,
    )
    assert "unit_change" not in [check for check, *_ in found]


@pytest.mark.parametrize(
    ("count", "severity"), [(0, None), (30, None), (100, "warn"), (800, "block")]
)
def test_refused_rows_warn_and_then_block(count, severity):
    expected = [("refused_rows", severity, None)] if severity else []
    assert find(table(), {"wrong_type:temp": count, "missing_field:loud": 0}) == expected


def test_a_collapse_of_traffic_is_worth_a_look_but_no_more():
    assert find(table(40)) == [("row_volume", "warn", None)]
    assert find(table(80)) == []


def test_an_empty_window_has_an_answer():
    assert find(table(0)) == [("row_volume", "warn", None)]


def test_a_finding_states_what_was_measured_and_where_it_trips():
    (finding,) = look(table(), {"wrong_type:temp": 1200, "missing_field:gust": 200})
    assert finding.value == pytest.approx(2 / 3)
    assert finding.threshold == 0.5
    assert (
        finding.message
        == "67% of the rows sent were refused: 'wrong_type:temp' 57%, 'missing_field:gust' 10%."
    )
