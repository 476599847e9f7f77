"""Rows that judge a challenger are newer than all that was learned or looked at before."""

from __future__ import annotations

from datetime import timedelta

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from homeostat.holdout import before, hold_out, newest
from homeostat.records import MICROSECOND
from homeostat.schema import TIMESTAMP
from homeostat.settings import Gate, Training
from homeostat.testing import START

HOUR = timedelta(hours=1)
GATE = Gate(window=48 * HOUR, min_rows=5, min_blocks=2)
TRAINING = Training(min_rows=10)


def rows(hours):
    times = pa.array([START + hour * HOUR for hour in hours], TIMESTAMP)
    return pa.table({"occurred_at": times, "prediction_id": [str(i) for i in range(len(hours))]})


def split(hours, known=None, looked=None):
    moments = [None if hour is None else START + hour * HOUR for hour in (known, looked)]
    return hold_out(
        rows(hours),
        known_until=moments[0],
        looked_until=moments[1],
        gate=GATE,
        training=TRAINING,
        block=24 * HOUR,
    )


def hours_of(table):
    return [(at - START) / HOUR for at in table.column("occurred_at").to_pylist()]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 200), max_size=60),
    st.none() | st.integers(0, 250),
    st.none() | st.integers(0, 250),
)
def test_no_row_is_used_twice(hours, known, looked):
    found = split(hours, known, looked)
    old, fresh = hours_of(found.training), hours_of(found.fresh)
    if not hours:
        assert found.problem
        return
    assert sorted(old + fresh) == sorted(hours)
    used = max((hour for hour in (known, looked) if hour is not None), default=-1)
    assert all(hour >= used for hour in fresh)
    assert not fresh or max(old, default=-1) < min(fresh)
    assert found.window.length <= GATE.window
    start, end = ((at - START) / HOUR for at in (found.window.start, found.window.end))
    assert all(start <= hour < end for hour in fresh)
    assert all(hour < start for hour in old)
    if not found.problem:
        assert len(fresh) >= GATE.min_rows
        assert len(old) >= TRAINING.min_rows
        assert known is None or any(hour >= known for hour in old)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 200), min_size=1, max_size=60), st.randoms())
def test_the_order_of_rows_does_not_matter(hours, random):
    shuffled = list(hours)
    random.shuffle(shuffled)
    one, other = split(hours, 50, 60), split(shuffled, 50, 60)
    assert sorted(hours_of(one.fresh)) == sorted(hours_of(other.fresh))
    assert (one.window, one.problem) == (other.window, other.problem)


def test_the_window_ends_just_after_the_newest_row_and_is_as_long_as_asked():
    found = split(range(100))
    assert found.problem == ""
    assert found.window.end == START + 99 * HOUR + MICROSECOND
    assert found.window.length == GATE.window
    assert (found.training.num_rows, found.fresh.num_rows) == (52, 48)


def test_the_problem_names_what_is_missing():
    assert "No row has a label" in split([]).problem
    assert "No labelled row is newer than 2025-01-05 03:00" in split(range(100), known=100).problem
    assert "Only 3 labelled rows are newer" in split(range(100), known=50, looked=97).problem
    assert "Only 2 labelled rows are older" in split(range(50)).problem


def test_a_challenger_that_would_learn_no_more_than_the_champion_is_not_worth_it():
    assert "learn nothing more" in split(range(100), known=60, looked=60).problem
    assert split(range(100), known=40, looked=60).problem == ""


def test_before_leaves_the_moment_itself_out():
    assert hours_of(before(rows([1, 2, 3]), START + 2 * HOUR)) == [1]


@given(st.lists(st.integers(0, 30), max_size=40), st.floats(0, 1))
def test_the_newest_share_is_newer_than_the_rest_and_no_smaller_than_asked(hours, share):
    found = hours_of(newest(rows(hours), share))
    rest = list(hours)
    for hour in found:
        rest.remove(hour)
    assert len(found) >= share * len(hours) - 1e-9
    assert not found or not rest or max(rest) < min(found)
    fewer = [hour for hour in found if hour > min(found)]
    assert not found or len(fewer) < max(share * len(hours), 1)


def test_rows_of_too_few_blocks_of_time_judge_nothing_and_so_nothing_is_trained():
    day = [110 + n / 8 for n in range(24)]
    found = split([*range(60), *day], known=50)
    assert "lie in 1 of the 2 blocks of time" in found.problem
    assert split([*range(60), *day, 130], known=50).problem == ""
    assert split([*range(60), *day]).problem == ""
