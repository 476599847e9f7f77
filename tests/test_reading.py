"""A window's rows may come in any number of pieces: the evidence has the same bits."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeostat.errors import JournalError
from homeostat.levels import Levels
from homeostat.monitor import Subject, examine, performance, reading
from homeostat.monitor.reading import Reading, Wanted
from homeostat.profile import Profile
from homeostat.records import State, Window
from homeostat.schema import TIMESTAMP, Feature, Schema, Target
from homeostat.settings import Monitor
from homeostat.traits import Traits

DAY = timedelta(days=1)
START = datetime(2024, 1, 1, tzinfo=UTC)
WEEK = Window(START + 70 * DAY, START + 77 * DAY)
FEATURES = (Feature("temp", "number"), Feature("wind", "number"), Feature("carrier", "category"))
TASKS = {
    "binary": Target("y", "binary", "bool", ("false", "true")),
    "multiclass": Target("y", "multiclass", "str", ("a", "b", "c")),
    "regression": Target("y", "regression", "float"),
}


def rows(count, task="binary", window=WEEK, seed=1):
    """Served rows of a window, half of them labelled; some repeat the row before."""
    random = np.random.default_rng(seed)
    p, labelled = random.random(count), random.random(count) < 0.5
    temp = np.round(random.normal(size=count), 1)
    temp[1::9] = temp[:-1:9]
    labels = {
        "binary": np.where(random.random(count) < p, "true", "false"),
        "multiclass": random.choice(["a", "b", "c"], count),
        "regression": temp + random.normal(size=count),
    }[task]
    table = {
        "prediction_id": pa.array([f"{i:06}" for i in range(count)]),
        "occurred_at": pa.array([window.start + window.length * (i / count) for i in range(count)]),
        "model_version": pa.array(random.choice(["r1", "r1", "r0"], count)),
        "prediction": pa.array(
            [repr(v) for v in temp.tolist()] if task == "regression" else ["a"] * count
        ),
        "probability": pa.array(p),
        "probabilities": pa.array([f"[{v / 2}, {v / 2}, {1 - v}]" for v in p]),
        "label": pa.array(labels, mask=~labelled),
        "temp": pa.array(temp, mask=random.random(count) < 0.1),
        "wind": pa.array(random.normal(size=count)),
        "carrier": pa.array(random.choice(["AA", "BB"], count)),
    }
    made = pa.table(table)
    return made.set_column(1, "occurred_at", made["occurred_at"].cast(TIMESTAMP))


def subject(task):
    old = rows(7_000, task, Window(START, WEEK.start), seed=0)
    schema = Schema(FEATURES, TASKS[task]).learned_from(old)
    known = Profile.of(old, schema, block=DAY, output_edges=(0.0,) if task == "regression" else ())
    levels = Levels.of(old, schema.features, ["carrier"], block=DAY)
    traits = Traits.of(old, schema, block=DAY)
    return Subject("r1", schema, known, old, None, traits=traits, levels=levels)


SUBJECTS = {task: subject(task) for task in TASKS}


class Handed:
    """Remembers which rows Evidently was handed."""

    def evidently(self, reference, current, schema):
        self.rows = current.to_pylist()
        return {"dataset_drift": False}


def look(current, of=SUBJECTS["binary"], **changed):
    reporter = Handed()
    found = examine(
        of,
        current,
        WEEK,
        refused={},
        last=None,
        settings=Monitor(**changed),
        mature_until=WEEK.end,
        now=WEEK.end,
        reporter=reporter,
    )
    return found, getattr(reporter, "rows", None)


def cut(table, places):
    bounds = [0, *sorted(place for place in places if place < table.num_rows), table.num_rows]
    return [table.slice(a, b - a) for a, b in pairwise(bounds)]


CUTS = st.sets(st.integers(1, 599), max_size=6)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("few", [False, True], ids=["whole", "drawn"])
def test_one_piece_and_many_give_the_same_evidence(task, few, monkeypatch):
    if few:
        monkeypatch.setattr(performance, "MOST", 250)
        monkeypatch.setattr(reading, "SAMPLE", 100)
    current, of = rows(600, task), SUBJECTS[task]
    chosen = {"sample": 150, "segments": ("carrier",)}
    whole = look(current, of, **chosen)
    assert whole[0].state in (State.STABLE, State.DRIFT)
    assert {segment.level for segment in whole[0].segments} == {"AA", "BB"}
    assert len(whole[1]) == (150 if few else 600)
    assert ("sampled_share" in whole[0].performance.extra) is few

    @settings(deadline=None, max_examples=5)
    @given(CUTS)
    def same(places):
        assert look(iter(cut(current, places)), of, **chosen) == whole

    same()


def emptied(table, name, kind):
    return table.set_column(
        table.schema.get_field_index(name), name, pa.nulls(table.num_rows, kind)
    )


BAD = {
    "missing": lambda table: table.drop_columns(["wind"]),
    "further": lambda table: table.append_column("wing", table["wind"]),
    "whole numbers": lambda table: table.set_column(
        7, "temp", pa.array(np.arange(table.num_rows) % 7)
    ),
    "text of numbers": lambda table: table.set_column(7, "temp", table["wind"].cast(pa.string())),
    "text of none": lambda table: table.set_column(7, "temp", table["carrier"]),
    "empty": lambda table: emptied(table, "carrier", pa.null()),
    "text of times": lambda table: table.set_column(
        1, "occurred_at", pa.compute.strftime(table["occurred_at"], "%Y-%m-%dT%H:%M:%SZ")
    ),
    "one id": lambda table: table.set_column(0, "prediction_id", pa.array(["x"] * table.num_rows)),
    "one value": lambda table: table.set_column(8, "wind", pa.array([2.5] * table.num_rows)),
    "feet": lambda table: table.set_column(8, "wind", pa.compute.multiply(table["wind"], 9.0)),
    "alike": lambda table: table.take([0] * table.num_rows),
}


@pytest.mark.parametrize("fault", BAD)
def test_what_is_wrong_with_rows_is_told_the_same_of_any_number_of_pieces(fault):
    current = BAD[fault](rows(600))
    whole = look(current)
    assert whole[0].findings or fault in ("whole numbers", "empty")

    @settings(deadline=None, max_examples=3)
    @given(CUTS)
    def same(places):
        assert look(cut(current, places)) == whole

    same()


def test_times_that_are_lost_in_one_piece_block_the_window():
    current = rows(600)
    lost = emptied(current.slice(400), "occurred_at", TIMESTAMP)
    found, _ = look([current.slice(0, 200), current.slice(200, 200), lost])
    assert [f.check for f in found.findings if f.severity == "block"] == ["unusable_times"]
    assert (found.state, found.data_drift, found.rows) == (State.BROKEN_DATA, False, 600)


def test_a_column_that_cannot_be_read_in_one_piece_blocks():
    current = rows(600)
    text = current["wind"].cast(pa.string())
    spoilt = pa.chunked_array([[*text.slice(0, 599).to_pylist(), "gale"]])
    found, _ = look(cut(current.set_column(8, "wind", spoilt), {200, 400}))
    assert [(f.check, f.severity, f.column) for f in found.findings] == [
        ("retyped_column", "block", "wind")
    ]
    assert found.state is State.BROKEN_DATA


def test_how_many_rows_the_metrics_were_told_from_is_told(monkeypatch):
    monkeypatch.setattr(performance, "MOST", 100)
    current = rows(600)
    own = sum(release == "r1" for release in current["model_version"].to_pylist())
    found = look(current)[0]
    assert found.performance.extra["sampled_share"] == pytest.approx(100 / own)
    assert found.performance.extra["estimate_sampled_share"] == pytest.approx(100 / own)
    assert found.performance.estimated.rows == 100
    assert (found.rows, found.labelled) == (600, current["label"].drop_null().length())


def test_a_stage_that_fails_on_a_piece_fails_alone():
    current = rows(600)
    # What is no probability is nothing to count, and the rest of the pass goes on.
    hurt = current.set_column(4, "probability", pa.array(["secret"] * 600))
    found, handed = look([current.slice(0, 300), hurt.slice(300), current.slice(300)])
    assert found.state is State.FAILED
    assert found.reason.startswith("Profile failed: the column 'probability' holds string")
    assert "secret" not in found.reason
    assert len(handed) == 900


def test_rows_that_cannot_be_read_to_their_end_are_not_taken_for_all():
    def torn():
        yield rows(300)
        raise JournalError("the history is torn.")

    with pytest.raises(JournalError, match="torn"):
        look(torn())


def test_no_piece_is_held_while_the_next_is_read(monkeypatch):
    monkeypatch.setattr(performance, "MOST", 100)
    monkeypatch.setattr(reading, "SAMPLE", 100)
    whole, held = rows(20_000), []

    def pieces():
        for _ in range(6):
            before = pa.total_allocated_bytes()
            yield whole.take(np.arange(20_000))
            held.append(pa.total_allocated_bytes() - before)

    read = Reading.of(pieces(), Wanted(SUBJECTS["binary"].schema, "r1", Monitor()))
    assert read.rows == 120_000
    assert max(held) < whole.nbytes / 2


def test_the_baseline_of_a_metric_and_late_labels_are_told_from_bounded_samples(monkeypatch):
    monkeypatch.setattr(performance, "MOST", 100)
    old = rows(3_000, window=Window(START, WEEK.end), seed=3)

    def past(window, schema):
        low, high = (pa.scalar(moment, TIMESTAMP) for moment in (window.start, window.end))
        times = old["occurred_at"]
        chosen = pa.compute.and_(pa.compute.greater_equal(times, low), pa.compute.less(times, high))
        yield from cut(old.filter(chosen), {50, 120, 121})

    scope = performance.Scope(
        "r1", WEEK.start, DAY, None, "auc", window=WEEK, past=past, since=START
    )
    found = performance.performance(rows(300), SUBJECTS["binary"].schema, scope)
    assert found.extra["sampled_share"] < 1
    assert found.extra["labelled_share"] == found.realised.rows / 100
    assert 0 < found.baseline.rows < 100
    assert "estimate_sampled_share" not in found.extra
