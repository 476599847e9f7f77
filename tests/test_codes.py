"""Codes tell equal rows from different ones, and repeats are counted in any order and division."""

import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeostat.codes import Repeats, codes, places

NUMBERS = st.sampled_from([None, 0.0, 1.0, -1.0, math.inf, math.nan, 1e-300])
TEXTS = st.one_of(
    st.none(),
    st.sampled_from(["", "\0", "a", "a\0", "1234567", "12345678", "123456789", "12345678" * 9]),
    st.text(max_size=20),
)
ROWS = st.lists(st.tuples(NUMBERS, TEXTS, st.sampled_from([None, True, False])), max_size=30)
KINDS = (pa.float64(), pa.string(), pa.bool_())


def told(rows):
    columns = [pa.chunked_array([[row[i] for row in rows]], kind) for i, kind in enumerate(KINDS)]
    return codes(columns, len(rows))


@given(ROWS)
def test_rows_have_one_code_where_they_are_equal_and_only_there(rows):
    same = Counter(map(repr, rows))  # NaN is NaN there, and null is a value
    assert sorted(Counter(told(rows).tolist()).values()) == sorted(same.values())


@given(ROWS, st.integers(0, 30))
def test_a_code_does_not_depend_on_the_other_rows(rows, cut):
    apart = np.concatenate([told(rows[:cut]), told(rows[cut:])])
    assert apart.tolist() == told(rows).tolist()
    texts = pa.chunked_array([[row[1] for row in rows]], pa.string())
    part = pa.chunked_array([[row[1] for row in rows[cut:]]], pa.string())
    assert codes([texts.slice(cut)], len(part)).tolist() == codes([part], len(part)).tolist()


def test_columns_do_not_stand_in_for_one_another():
    texts = [pa.chunked_array([["a", "b"]]), pa.chunked_array([["b", "a"]])]
    first, second = codes(texts, 2)
    assert first != second


def repeats(found, most, cuts=()):
    counted = Repeats(most)
    for piece in np.split(found, sorted(cuts)):
        counted.add(piece)
    return counted


@given(st.lists(st.integers(0, 40), max_size=120), st.sets(st.integers(0, 120)), st.randoms())
def test_repeats_are_counted_exactly_where_all_codes_are_held(values, cuts, random):
    random.shuffle(values)
    found = codes([pa.chunked_array([[float(v) for v in values]], pa.float64())], len(values))
    counted = repeats(found, 41, [cut for cut in cuts if cut < len(values)])
    assert (counted.rows, counted.count) == (len(values), len(values) - len(set(values)))


@given(st.sets(st.integers(1, 4_999), max_size=9), st.integers(0, 2**32 - 1))
def test_beyond_what_is_held_repeats_are_estimated_the_same_in_any_order_and_division(cuts, seed):
    # 3,000 different ones, 2,000 of which came twice.
    found = places(0, 3_000, 5)
    found = np.concatenate([found, found[:2_000]])
    told = repeats(np.random.default_rng(seed).permutation(found), 1_000, cuts).count
    assert told == repeats(found, 1_000).count
    assert told == pytest.approx(2_000, rel=0.1)


def test_one_row_that_came_a_million_times_needs_no_room():
    found = np.concatenate([np.full(1_000_000, 7, np.uint64), places(0, 100, 0)])
    assert repeats(found, 101).count == 999_999
    assert repeats(np.empty(0, np.uint64), 1).count == 0


def test_places_have_codes_of_their_own_that_another_seed_changes():
    assert len(set(places(0, 10_000, 3).tolist())) == 10_000
    assert places(5, 5, 3).tolist() == places(0, 10, 3)[5:].tolist()
    assert not set(places(0, 100, 3).tolist()) & set(places(0, 100, -4).tolist())
