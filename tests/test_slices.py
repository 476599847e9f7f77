"""Slices: which parts of the judging rows are compared, and when one of them keeps the champion."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from test_gate import DAY, RULE, WINDOW, replace_gate, times

from homeostat.audit import jsonable
from homeostat.gate import KEPT, judge
from homeostat.records import Verdict
from homeostat.schema import Feature
from homeostat.slices import BINS, LEVELS, Part, compared, parts
from homeostat.stats import block_keys

CITY, MEMBER, AMOUNT = (
    Feature("city", "category"),
    Feature("member", "boolean"),
    Feature("x", "number"),
)
ROWS = 2_800
KEYS = block_keys(times(ROWS, 14), DAY)


def judged(champion, challenger, split, metric="log_loss", gate=RULE):
    return judge(
        occurred_at=times(len(champion), 14),
        champion=champion,
        challenger=challenger,
        metric=metric,
        gate=gate,
        block=DAY,
        window=WINDOW,
        parts=split,
    )


def better_but(harm, seed=0):
    """Losses of a challenger that is better everywhere, but for `harm` in every tenth row."""
    rng = np.random.default_rng(seed)
    champion = rng.gamma(2, 0.25, ROWS)
    few = np.arange(ROWS) % 10 == 0
    challenger = champion - 0.1 + rng.normal(0, 0.05, ROWS) + np.where(few, harm, 0)
    return champion, challenger, few


def city(few):
    return [Part("city", "Graz", few), Part("city", "Linz", ~few)]


def test_a_challenger_that_is_better_on_the_whole_and_worse_in_one_slice_is_refused_by_name():
    champion, challenger, few = better_but(0.3)
    assert judged(champion, challenger, []).promote
    verdict = judged(champion, challenger, city(few))
    assert not verdict.promote
    assert verdict.difference < 0
    for said in ("worse where city is Graz", "280 rows in 14 blocks", "2 slices", "is better"):
        assert said in verdict.reason
    worst, other = verdict.slices
    assert (worst.column, worst.level, worst.worse, other.worse) == ("city", "Graz", True, False)
    assert worst.champion == pytest.approx(champion[few].mean())
    assert worst.challenger == pytest.approx(challenger[few].mean())
    assert f"{worst.challenger:.4g} against {worst.champion:.4g}" in verdict.reason


def test_a_challenger_that_is_worse_in_no_slice_is_promoted_and_the_verdict_has_them():
    champion, challenger, few = better_but(0.05)
    verdict = judged(champion, challenger, city(few))
    assert verdict.promote
    assert (verdict.sliced, len(verdict.slices)) == (2, 2)
    assert not any(one.worse for one in verdict.slices)


def test_harm_to_a_slice_within_its_delta_is_borne():
    champion = np.full(ROWS, 0.5)
    few = np.arange(ROWS) % 10 == 0
    challenger = champion - np.where(few, -0.0005, 0.1)
    assert judged(champion, challenger, city(few), gate=replace_gate(slice_delta=0.002)).promote
    strict = replace_gate(slice_delta=0.0)
    assert not judged(champion, challenger, city(few), gate=strict).promote


def test_a_slice_in_which_the_champion_hardly_errs_is_no_veto_against_a_great_gain():
    few = np.arange(ROWS) % 10 == 0
    champion = np.where(few, 5e-5, 5.0)
    challenger = np.where(few, 5e-3, 0.27)  # a hundred times as much there, and next to nothing
    assert judged(champion, challenger, city(few)).promote


def test_slices_of_numbers_are_told_in_the_unit_of_the_metric():
    champion, challenger, few = better_but(0.3)
    verdict = judged(champion, challenger, city(few), metric="rmse")
    assert not verdict.promote
    assert verdict.slices[0].champion == pytest.approx(np.sqrt(champion[few].mean()))
    assert "RMSE" in verdict.reason


def test_a_slice_s_p_value_is_the_one_sided_t_test_s_on_its_block_means():
    champion, challenger, few = better_but(0.12, seed=4)
    (found,) = compared([Part("city", "Graz", few)], champion, challenger, KEYS, RULE)
    allowed = RULE.slice_delta * champion.mean()
    excess = (challenger - champion - allowed)[few].reshape(14, -1).mean(axis=1)
    expected = stats.ttest_1samp(excess, 0, alternative="greater").pvalue
    assert found.p_value == pytest.approx(expected, rel=1e-9)
    assert (found.rows, found.blocks) == (280, 14)


def test_a_challenger_that_is_as_good_everywhere_is_refused_for_a_slice_no_more_often_than_stated():
    rng, turns, refused = np.random.default_rng(7), 200, 0
    split = [Part("x", str(i), np.arange(ROWS) % 20 == i) for i in range(20)]
    gate = replace_gate(slice_delta=0.0)
    for _ in range(turns):
        difference = rng.normal(0, 0.05, 14)[KEYS - KEYS[0]] + rng.normal(0, 0.1, ROWS)
        found = compared(split, np.ones(ROWS), 1 + difference, KEYS, gate)
        refused += any(one.worse for one in found)
    allowed = 0.05
    assert stats.binom.ppf(0.001, turns, allowed) <= refused
    assert refused <= stats.binom.ppf(0.999, turns, allowed)


def test_slices_with_few_blocks_are_not_compared():
    champion, challenger, few = better_but(3.0)
    early = few & (times(ROWS, 14) < times(ROWS, 14)[ROWS * 4 // 14])
    assert compared([Part("city", "Graz", early)], champion, challenger, KEYS, RULE) == ()


def test_a_verdict_keeps_the_slices_that_speak_most_against_the_challenger():
    champion, challenger, _ = better_but(0.0)
    split = [Part("x", str(i), np.arange(ROWS) % 14 == i) for i in range(14)]
    verdict = judged(champion, challenger, split)
    values = [one.p_value for one in verdict.slices]
    assert (verdict.sliced, len(values)) == (14, KEPT)
    assert values == sorted(values)


# --- which rows ---


def table(**columns):
    return pa.table(columns)


def named(split):
    return [(part.column, part.level, int(part.rows.sum())) for part in split]


def test_slices_are_levels_and_ranges_with_enough_rows_and_no_nulls():
    rows = table(
        city=["a"] * 100 + ["b"] * 80 + ["rare"] * 10 + [None] * 10,
        member=pa.array([True, False] * 95 + [None] * 10, pa.bool_()),
        x=pa.array([float(i) for i in range(160)] + [float("nan")] * 20 + [None] * 20),
    )
    found = named(parts(rows, [CITY, MEMBER, AMOUNT], replace_gate(min_rows=40, slices=40)))
    assert sorted(found) == [
        ("city", "a", 100),
        ("city", "b", 80),
        ("member", "false", 95),
        ("member", "true", 95),
        ("x", "39 to 79", 40),
        ("x", "79 to 119", 40),
        ("x", "over 119", 40),
        ("x", "up to 39", 40),
    ]


def test_a_level_that_all_rows_have_is_no_slice_of_its_own():
    assert parts(table(city=["a"] * 100, x=[1.0] * 100), [CITY, AMOUNT], RULE) == ()


def test_where_there_are_too_many_slices_each_feature_has_its_largest_first():
    rows = table(city=["a"] * 90 + ["b"] * 60 + ["c"] * 50, member=[True] * 120 + [False] * 80)
    found = named(parts(rows, [CITY, MEMBER], replace_gate(slices=3)))
    assert found == [("city", "a", 90), ("member", "true", 120), ("city", "b", 60)]
    assert parts(rows, [CITY, MEMBER], replace_gate(slices=0)) == ()


def test_a_hostile_name_is_told_on_one_line_and_cut():
    champion, challenger, few = better_but(0.3)
    part = Part("city\n\u202e", "<b>" + "x" * 500, few)
    reason = judged(champion, challenger, [part]).reason
    assert "\n" not in reason
    assert "\u202e" not in reason
    assert len(reason) < 600


@given(
    st.lists(st.floats(allow_infinity=False) | st.none(), min_size=1, max_size=80),
    st.lists(st.sampled_from("abcdefghijkl") | st.none(), min_size=80, max_size=80),
)
@settings(max_examples=100, deadline=None)
def test_slices_of_a_feature_share_no_row(numbers, letters):
    rows = table(x=pa.array(numbers, pa.float64()), city=letters[: len(numbers)])
    rows = rows.set_column(1, "city", rows.column("city").cast(pa.string()))
    split = parts(rows, [AMOUNT, CITY], replace_gate(min_rows=2, slices=40))
    for name, most in (("x", BINS), ("city", LEVELS)):
        own = [part.rows for part in split if part.column == name]
        assert len(own) <= most
        assert not own or np.sum(own, axis=0).max() <= 1


# --- what is stored ---


def test_a_verdict_comes_back_as_it_was_written_and_an_older_one_without_slices():
    champion, challenger, few = better_but(0.3)
    verdict = judged(champion, challenger, city(few))
    body = json.loads(json.dumps(jsonable(verdict)))
    assert Verdict.of(body) == verdict
    del body["slices"], body["sliced"]
    assert Verdict.of(body) == replace(verdict, slices=(), sliced=0)
    assert Verdict.of(body | {"window": None}).window is None
    assert verdict.window.length == timedelta(days=7)
