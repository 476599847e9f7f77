"""Changes of unit: which are told from drift, by quantiles alone."""

from __future__ import annotations

import numpy as np
import pytest

from homeostat.monitor.units import LEVELS, change, quantiles


def drawn(seed, count=2_000, *, at=10.0, wide=2.0):
    return np.random.default_rng(seed).normal(at, wide, count)


def told(values, *stretches):
    """The change from the first of the stretches, which are rows of the reference, and those."""
    known = np.array([np.quantile(rows, LEVELS) for rows in stretches])
    return change(values, known[0], known)


HERE = drawn(0)


@pytest.mark.parametrize("factor", [0.001, 1 / 2.54, 1.7, 2.54, 1000])
def test_a_scale_is_told_with_its_factor(factor):
    found = told(factor * drawn(1), HERE)
    assert found.factor == pytest.approx(factor, rel=0.05)
    assert found.offset == 0
    assert found.size == pytest.approx(max(factor, 1 / factor), rel=0.05)
    assert found.certain is (found.size > 2.1)
    assert str(found).startswith("multiplied by ")


@pytest.mark.parametrize("offset", [-273.15, 20.0, 273.15])
def test_a_shift_by_more_than_twice_its_width_is_told(offset):
    found = told(drawn(1) + offset, HERE)
    assert (found.factor, found.certain) == (1.0, True)
    assert found.offset == pytest.approx(offset, abs=0.5)


@pytest.mark.parametrize(
    ("factor", "offset"), [(1.8, 32.0), (1 / 1.8, -32 / 1.8)], ids=["to °F", "to °C"]
)
def test_degrees_of_the_other_scale_are_told_as_such(factor, offset):
    found = told(factor * drawn(1) + offset, HERE)
    assert (found.factor, found.offset, found.certain) == (factor, offset, True)


def test_a_sign_that_was_turned_is_told_only_of_what_has_one_sign():
    assert told(-drawn(1), HERE).factor == pytest.approx(-1, rel=0.05)
    assert told(-drawn(1, at=3), drawn(0, at=3)) is None


@pytest.mark.parametrize(
    "values",
    [
        drawn(1),
        1.3 * drawn(1),
        drawn(1) + 3,
        drawn(1) + 8,
        drawn(1, wide=4.0),
        drawn(1, wide=1.0),
        np.exp(drawn(1) / 3),
        np.where(np.random.default_rng(2).random(2_000) < 0.3, 1000 * drawn(1), drawn(1)),
    ],
    ids=["nothing", "more", "higher", "far higher", "wider", "narrower", "bent", "some rows"],
)
def test_what_may_be_drift_is_no_change_of_unit(values):
    assert told(values, HERE) is None


@pytest.mark.parametrize("change_of", [lambda v: 2.54 * v, lambda v: v / 2.54, lambda v: v - 20])
def test_what_some_stretch_of_the_reference_went_through_is_no_change_of_unit(change_of):
    assert told(change_of(drawn(1)), HERE) is not None
    assert told(change_of(drawn(1)), HERE, change_of(drawn(2))) is None
    gone = change(change_of(drawn(1)), np.quantile(HERE, LEVELS), np.full((1, 19), np.nan))
    assert gone is not None


@pytest.mark.parametrize("factor", [2.54, 1 / 2.54])
def test_a_scale_is_told_by_the_spread_alone_where_the_middle_is_nought(factor):
    found = told(factor * drawn(1, at=0), drawn(0, at=0))
    assert found.factor == pytest.approx(factor, rel=0.1)


def test_nothing_is_tried_where_spread_and_middle_are_those_of_some_stretch():
    random = np.random.default_rng(5)
    humps = random.choice([-1.1, 0.0, 1.1], 2_000, p=[0.45, 0.1, 0.45])
    other = 25.4 + np.abs(2.54 * HERE - 25.4).mean() * humps + random.normal(0, 0.1, 2_000)
    assert told(2.54 * drawn(1), HERE, other) is None
    assert told(2.54 * drawn(1), HERE) is not None


def bent(seed, much):
    """Rows around nought whose right half is wider than the left one."""
    rows = drawn(seed, 20_000, at=0)
    return np.where(rows > 0, rows * (1 + much), rows * (1 - much))


def test_the_larger_a_change_the_more_may_be_left_unexplained():
    here = drawn(0, 20_000, at=0)
    assert told(2.2 * bent(1, 0.25), here) is None
    assert told(1_000 * bent(1, 0.25), here).factor == pytest.approx(1_000, rel=0.1)


def test_a_map_that_explains_little_more_than_none_at_all_is_no_change_of_unit():
    here = drawn(0, 20_000, at=0)
    assert told(1.6 * bent(1, 0.05), here) is not None
    assert told(1.6 * bent(1, 0.13), here) is None
    assert told(2.5 * bent(1, 0.13), here) is not None


def test_beside_a_wide_column_degrees_are_not_told_from_a_scale():
    wide = drawn(0, at=1_000, wide=200)
    found = told(1.8 * drawn(1, at=1_000, wide=200) + 32, wide)
    assert found.offset == 0
    assert found.certain is False


def test_few_rows_or_few_different_values_are_not_tried():
    for count, tried in ((29, False), (30, True)):
        even = np.quantile(HERE, (np.arange(count) + 0.5) / count)
        assert (told(1000 * even, HERE) is not None) is tried
    assert told(np.round(drawn(1, wide=0.5)) * 1000, np.round(drawn(0, wide=0.5))) is None
    assert told(1000 * drawn(1), np.round(drawn(0, wide=0.5))) is None
    assert told(np.round(drawn(1, wide=0.5)) * 1000, HERE) is None
    steps = np.repeat(np.arange(7.0, 14.0), 300)
    assert told(1000 * (steps + drawn(2, 2_100, at=0, wide=0.01)), steps) is None


def test_quantiles_of_counts_are_upper_edges_and_unknown_without_rows():
    edges = np.array([1.0, 2.0, 3.0])
    found = quantiles(np.array([[10, 10, 0, 0], [0, 0, 0, 5], [0, 0, 0, 0]]), edges)
    assert (found[0] == np.where(LEVELS <= 0.5 + 1e-9, 1.0, 2.0)).all()
    assert (found[1] == 3.0).all()
    assert np.isnan(found[2]).all()
