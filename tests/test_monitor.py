from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from loop_fixtures import InProcess

from homeostat import monitor
from homeostat.monitor import Journalled, Subject, examine
from homeostat.profile import Profile
from homeostat.records import Evidence, Hurts, Interval, State, Window
from homeostat.schema import TIMESTAMP, Feature, Schema, Target
from homeostat.settings import Monitor

DAY = timedelta(days=1)
START = datetime(2024, 1, 1, tzinfo=UTC)
WEEK = Window(START + 140 * DAY, START + 147 * DAY)
SCHEMA = Schema(
    (
        Feature("temp", "number", edges=tuple(np.linspace(-2, 2, 63))),
        Feature("wind", "number", edges=tuple(np.linspace(-2, 2, 63))),
        Feature("carrier", "category", levels=("AA", "BB")),
    ),
    Target("y", "binary", "bool", ("false", "true")),
)


def rows(count, window=WEEK, *, seed=1, release="r1", noise=0.0, **changed):
    rng = np.random.default_rng(seed)
    p = rng.random(count)
    true = rng.random(count) < p
    values = {
        "occurred_at": [window.start + window.length * (i / count) for i in range(count)],
        "model_version": [release] * count,
        "probability": p * (1 - noise) + noise * rng.random(count),
        "label": ["true" if v else "false" for v in true],
        "temp": rng.normal(size=count),
        "wind": rng.normal(size=count),
        "carrier": rng.choice(["AA", "BB"], count),
    } | changed
    text = ("model_version", "label", "carrier")
    kinds = dict.fromkeys(text, pa.string()) | {"occurred_at": TIMESTAMP}
    return pa.table({n: pa.array(v, kinds.get(n, pa.float64())) for n, v in values.items()})


OLD = rows(14_000, Window(START, WEEK.start), seed=0)
SUBJECT = Subject(
    release="r1",
    schema=SCHEMA,
    reference=Profile.of(OLD, SCHEMA, block=DAY),
    sample=OLD.slice(0, 500),
    baseline=Interval(0.56, 0.5, 0.62, 700, 7),
)


class Reports:
    """Answers what Evidently is meant to have said."""

    def __init__(self, answer=None):
        self.answer = answer or {"drifted_share": 0.0, "dataset_drift": False}

    def evidently(self, reference, current, schema):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def look(
    current, *, refused=None, last=None, reports=None, subject=SUBJECT, asked=None, **settings
):
    return examine(
        subject,
        current,
        WEEK,
        refused=refused or {},
        last=last,
        settings=Monitor(**settings),
        mature_until=WEEK.end,
        now=WEEK.end,
        reporter=reports or Reports(),
        asked=asked,
    )


def test_an_ordinary_window_is_stable_and_does_not_hurt():
    found = look(rows(700))
    assert (found.state, found.data_drift, found.carried_over) == (State.STABLE, False, False)
    assert found.hurts is Hurts.NO
    assert (found.rows, found.labelled, found.refused) == (700, 700, 0)
    assert (found.reference_rows, found.reference_blocks) == (14_000, 140)
    assert [column.column for column in found.columns] == list(SCHEMA.names)
    assert not found.prediction_drift.drifted
    assert found.findings == ()
    assert found.reason.startswith("None of 3 columns drifted on 700 rows; nearest to it came")


def test_a_moved_column_is_drift_with_its_numbers_in_the_reason():
    found = look(rows(700, temp=np.random.default_rng(0).normal(1, size=700)))
    assert (found.state, found.data_drift) == (State.DRIFT, True)
    assert found.reason.startswith("1 of 3 columns drifted, most of all 'temp' (distance 0.")


def test_columns_that_come_apart_are_drift_though_each_is_as_it_was():
    rng = np.random.default_rng(4)
    temp = {count: rng.normal(size=count) for count in (14_000, 700)}
    old = rows(14_000, Window(START, WEEK.start), seed=0, temp=temp[14_000], wind=temp[14_000])
    subject = replace(SUBJECT, reference=Profile.of(old, SCHEMA, block=DAY))
    together = look(rows(700, temp=temp[700], wind=temp[700]), subject=subject)
    assert together.state is State.STABLE
    assert not together.joint_drift.drifted
    apart = look(rows(700), subject=subject)
    assert (apart.state, apart.data_drift) == (State.DRIFT, True)
    assert not any(column.drifted for column in apart.columns)
    assert apart.reason.startswith("None of 3 columns drifted by itself on 700 rows, but together")


def test_the_false_alarms_to_be_expected_are_told_where_they_are_known():
    assert look(rows(700)).false_alarms_per_year == pytest.approx(0.01 * 365.25 / 7)
    day = replace(SUBJECT, reference=Profile.of(rows(900, seed=3).slice(0, 100), SCHEMA, block=DAY))
    unknown = look(rows(700), subject=day)
    assert unknown.false_alarms_per_year is None
    assert "This is not calibrated" in unknown.reason
    assert unknown.reason.endswith("and rows are taken as independent.")
    month = replace(SUBJECT, reference=SUBJECT.reference.take(np.arange(31)))
    shorter = look(rows(700), subject=month)
    assert shorter.false_alarms_per_year is None
    assert shorter.reason.endswith("and shorter stretches stand for them.")


def test_worse_predictions_hurt_although_no_column_moved():
    found = look(rows(1400, noise=0.9))
    assert found.state is State.STABLE
    assert found.hurts is Hurts.YES


@pytest.mark.parametrize("flag", [True, False])
def test_too_few_rows_keep_the_flag_as_it_was(flag):
    last = replace(look(rows(200)), data_drift=flag)
    found = look(rows(29), last=last)
    assert (found.state, found.data_drift, found.carried_over) == (
        State.INSUFFICIENT_DATA,
        flag,
        True,
    )
    assert "29 rows; 30 are needed" in found.reason
    assert not look(rows(0)).data_drift


def test_a_window_whose_rows_were_nearly_all_refused_is_broken_not_small():
    found = look(rows(5), refused={"wrong_type:temp": 995})
    assert found.state is State.BROKEN_DATA
    assert "refused" in found.reason
    assert look(rows(5), refused={"wrong_type:temp": 20}).state is State.INSUFFICIENT_DATA


def test_broken_data_is_not_drift_but_the_sound_columns_are_still_tested():
    found = look(rows(700, temp=[None] * 700))
    assert (found.state, found.data_drift) == (State.BROKEN_DATA, False)
    assert [column.column for column in found.columns] == ["wind", "carrier"]
    assert found.reason == "Broken data: 'temp' is null throughout; the reference held values."
    both = look(rows(700, temp=[None] * 700, wind=np.linspace(1, 3, 700)))
    assert (both.state, both.data_drift, both.carried_over) == (State.BROKEN_DATA, True, False)


def test_refused_rows_leave_a_window_that_cannot_be_judged():
    last = replace(look(rows(700)), data_drift=True)
    found = look(rows(700), refused={"wrong_type:temp": 2000}, last=last)
    assert (found.state, found.data_drift, found.carried_over) == (State.BROKEN_DATA, True, True)


def test_only_the_champions_own_predictions_are_judged():
    mixed = pa.concat_tables([rows(700, release="r0", seed=5), rows(20, seed=6)])
    found = look(mixed)
    assert found.state is State.STABLE
    assert found.prediction_drift is None
    assert found.performance.realised.rows == 20
    assert look(rows(700, release="r0")).hurts is Hurts.UNKNOWN


def test_a_stage_that_fails_is_a_failure_never_stable_and_the_others_still_report():
    last = replace(look(rows(700)), data_drift=True)
    current = rows(700)
    hurt = current.set_column(
        current.column_names.index("probability"), "probability", pa.array(["secret"] * 700)
    )
    found = look(hurt, last=last)
    assert (found.state, found.data_drift, found.carried_over) == (State.FAILED, True, True)
    assert found.reason.startswith("Profile failed: the column 'probability' holds string")
    assert "secret" not in found.reason
    assert found.evidently["dataset_drift"] is False


def test_the_text_of_a_foreign_error_is_not_repeated():
    found = look(rows(700), reports=Reports(RuntimeError("secret")))
    assert found.state is State.FAILED
    assert found.reason.startswith("Evidently failed: RuntimeError at test_monitor.py:")
    assert found.columns


def test_evidently_failing_is_noted_but_does_not_decide():
    found = look(rows(700), reports=Reports({"error": "out of memory"}))
    assert found.state is State.STABLE
    assert found.evidently == {"error": "out of memory"}


def test_evidently_decides_where_settings_say_so():
    drifted = Reports({"drifted_share": 0.67, "dataset_drift": True})
    found = look(rows(700), reports=drifted, detector="evidently")
    assert (found.state, found.data_drift) == (State.DRIFT, True)
    assert found.reason == "Evidently calls 67% of the columns drifted, on 700 rows."
    failed = look(rows(700), reports=Reports({"error": "x"}), detector="evidently")
    assert (failed.state, failed.carried_over) == (State.FAILED, True)


def test_where_evidently_decides_its_columns_are_the_ones_that_drifted():
    told = {"temp": {"drifted": False}, "wind": {"drifted": True}}  # carrier it could not take
    reports = Reports({"drifted_share": 0.5, "dataset_drift": True, "columns": told})
    moved = rows(700, temp=np.random.default_rng(0).normal(1, size=700))
    found = look(moved, reports=reports, detector="evidently")
    assert {column.column for column in found.columns if column.drifted} == {"wind"}
    assert found.columns[0].distance > found.columns[0].threshold
    ours = look(moved, reports=reports)
    assert {column.column for column in ours.columns if column.drifted} == {"temp"}


@pytest.mark.parametrize("answer", [{"error": "x"}, {"skipped": "not drawn"}, RuntimeError("x")])
def test_a_look_at_which_evidently_did_not_decide_although_it_should_is_a_failure(answer):
    last = replace(look(rows(700)), data_drift=True)
    found = look(rows(700), reports=Reports(answer), detector="evidently", last=last)
    assert (found.state, found.data_drift, found.carried_over) == (State.FAILED, True, True)
    assert look(rows(29), reports=Reports(answer), detector="evidently", last=last).carried_over


def test_a_look_holds_what_the_report_draws_and_what_each_column_is_worth():
    known = replace(SUBJECT, importance={"temp": 0.5})
    found = look(rows(700), subject=known)
    assert [shape.column for shape in found.shapes] == list(SCHEMA.names)
    assert found.importance == {"temp": 0.5}


def test_that_nothing_can_be_drawn_changes_no_verdict(monkeypatch):
    def failing(*_):
        raise RuntimeError

    monkeypatch.setattr(monitor, "shapes", failing)
    found = look(rows(700))
    assert (found.state, found.shapes) == (State.STABLE, ())


def test_rows_in_another_order_give_the_same_evidence():
    current = rows(700)
    order = np.random.default_rng(0).permutation(700)
    assert look(current.take(order)) == look(current)


def test_evidence_is_all_that_is_ever_given_back():
    assert isinstance(look(rows(700).drop_columns(["model_version"])), Evidence)
    assert look(rows(700).drop_columns(["occurred_at"])).state is State.FAILED
    assert look(rows(5).drop_columns(["occurred_at"])).state is State.FAILED


def journalled():
    """All rows there are, of which any window may be asked."""
    whole = pa.concat_tables([OLD, rows(700)])
    for name in ("prediction", "probabilities"):
        whole = whole.append_column(name, pa.nulls(whole.num_rows, pa.string()))

    def past(window, schema):
        times = whole.column("occurred_at")
        low, high = (pa.scalar(moment, TIMESTAMP) for moment in (window.start, window.end))
        yield whole.filter(pc.and_(pc.greater_equal(times, low), pc.less(times, high)))

    return Journalled(past, InProcess())


def test_what_was_journalled_before_tells_of_estimates_their_record_and_the_champions_age():
    aged = replace(SUBJECT, cutoff=START + 70 * DAY)
    found = look(rows(700), subject=aged, asked=journalled())
    assert found.state is State.STABLE
    assert found.performance.record["windows"] == 8
    assert found.performance.estimated.value == pytest.approx(0.5, abs=0.05)
    assert (found.staleness.rows, found.staleness.reason) == (700, "")
    off = look(rows(700), subject=aged, asked=journalled(), staleness=False)
    assert off.staleness is None
    assert off.performance == found.performance


def test_the_metric_that_settings_name_is_what_hurts_is_told_by():
    found = look(rows(700), asked=journalled(), metric="auc", decision_threshold=0.3)
    assert found.performance.metric == "auc"
    assert found.performance.baseline is None
    assert found.hurts is Hurts.UNKNOWN
    unknown = look(rows(700), metric="glory")
    assert unknown.state is State.FAILED
    assert "'glory' is no metric" in unknown.reason
