"""The few bins in which people see a column: they hold every row, once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from homeostat.monitor.shapes import BINS, LEVELS, shapes
from homeostat.profile import Profile
from homeostat.schema import TIMESTAMP, Feature, Schema, Target

LEVELLED = tuple(f"l{place:02}" for place in range(40))
SCHEMA = Schema(
    (
        Feature("fine", "number", edges=tuple(np.linspace(-2, 2, 101).tolist())),
        Feature("coarse", "number", edges=(1.0, 2.0)),
        Feature("level", "category", levels=LEVELLED),
        Feature("flag", "boolean"),
        Feature("bare", "number"),
    ),
    Target("y", "binary", "bool", ("false", "true")),
)


def profile(count, shift=0.0, top=0):
    draw = np.random.default_rng(count)
    values = {
        "fine": draw.normal(shift, size=count),
        "coarse": draw.choice([1.0, 2.0, 3.0], count),
        "level": [LEVELLED[top] if place % 2 else "new" for place in range(count)],
        "flag": draw.random(count) < 0.5,
        "bare": [None] * count,
    }
    kinds = {feature.name: feature.arrow for feature in SCHEMA.features}
    columns = {name: pa.array(values[name], kinds[name]) for name in kinds}
    moment = datetime(2024, 1, 1, tzinfo=UTC)
    columns["occurred_at"] = pa.array([moment] * count, TIMESTAMP)
    return Profile.of(pa.table(columns), SCHEMA, block=timedelta(days=1))


def test_every_row_is_in_one_bin():
    for shape in shapes(profile(900), profile(500, shift=1.0), SCHEMA):
        assert len(shape.labels) == len(shape.reference) == len(shape.current)
        assert sum(shape.reference) == pytest.approx(1)
        assert sum(shape.current) == pytest.approx(1)
        assert shape.labels[-1] == "null"


def test_many_bins_become_few_of_equal_width_and_what_moved_is_seen():
    fine = shapes(profile(9_000), profile(9_001, shift=1.0), SCHEMA)[0]
    assert len(fine.labels) == BINS + 3
    assert (fine.labels[0], fine.labels[-2]) == ("up to -1.96", "above 1.96")
    assert fine.current[-2] == pytest.approx(0.168, abs=0.015)  # P(Z + 1 > 1.96)
    assert fine.reference[-2] == pytest.approx(0.023, abs=0.006)


def test_few_bins_stay_as_they_are():
    coarse = shapes(profile(900), profile(500), SCHEMA)[1]
    assert coarse.labels == ("up to 1", "1 to 2", "above 2", "null")
    assert min(coarse.reference[:3]) > 0.3


def test_a_level_that_only_the_window_has_often_is_drawn_and_unknown_ones_are_together():
    level = shapes(profile(900), profile(500, top=39), SCHEMA)[2]
    assert len(level.labels) == LEVELS + 2
    assert level.current[level.labels.index("l39")] == 0.5
    assert level.current[level.labels.index("all others")] == 0.5


def test_without_rows_all_shares_are_zero():
    empty = shapes(profile(900), profile(0), SCHEMA)
    assert {share for shape in empty for share in shape.current} == {0.0}
