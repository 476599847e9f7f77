"""A reservoir holds all rows while they are few, and then a fair sample of them."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from homeostat.reservoir import Reservoir


def drawn(count, size, cuts=(), seed=0):
    held = Reservoir(size, seed)
    for piece in np.split(np.arange(count), sorted(cut for cut in cuts if cut < count)):
        held.add(pa.table({"place": pa.array(piece, pa.int64())}))
    return held


def places(held):
    return held.rows["place"].to_pylist()


@given(st.integers(0, 50), st.sets(st.integers(0, 50)))
def test_all_rows_are_held_in_their_order_while_they_are_few(count, cuts):
    held = drawn(count, 50, cuts)
    assert (places(held), held.seen, held.share) == (list(range(count)), count, 1.0)


@given(st.integers(0, 300), st.integers(1, 40), st.sets(st.integers(0, 300)), st.integers(0, 9))
def test_the_sample_is_the_same_however_the_rows_were_divided(count, size, cuts, seed):
    held = drawn(count, size, cuts, seed)
    assert places(held) == places(drawn(count, size, seed=seed))
    assert places(held) == sorted(set(places(held)))
    assert (len(places(held)), held.seen) == (min(count, size), count)
    assert held.share == pytest.approx(len(places(held)) / count if count else 1.0)


def test_each_row_is_drawn_as_often_as_any_other_and_pairs_too():
    tries, count, size = 4_000, 20, 5
    taken = np.zeros((tries, count))
    for seed in range(tries):
        taken[seed, places(drawn(count, size, seed=seed))] = 1
    assert stats.chisquare(taken.sum(axis=0)).pvalue > 1e-3
    pairs = (taken.T @ taken)[np.triu_indices(count, 1)]
    assert stats.chisquare(pairs).pvalue > 1e-3


def test_other_rows_are_drawn_with_another_seed():
    assert places(drawn(1_000, 10, seed=1)) != places(drawn(1_000, 10, seed=2))


def test_a_sample_does_not_hold_on_to_the_pieces_that_it_was_drawn_from():
    held, before = Reservoir(100, 0), pa.total_allocated_bytes()
    for piece in range(50):
        held.add(pa.table({"value": np.arange(20_000.0) + piece}))
        assert pa.total_allocated_bytes() - before < 4 * 20_000 * 8
    assert held.rows.num_rows == 100
