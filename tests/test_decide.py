"""The decision: one row of the table per rule, in the order of the rules."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_fixtures import calm, drift

from homeostat.decide import asked, decide, policy
from homeostat.past import Past
from homeostat.records import (
    Action,
    ColumnDrift,
    Decision,
    Evidence,
    Finding,
    Hurts,
    Interval,
    Performance,
    Staleness,
    State,
    Trial,
    Window,
)
from homeostat.settings import Decide

NOW = datetime(2013, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)
RULE = Decide(cooldown=28 * DAY, backoff=2.0, max_age=None, recalibrate=True)
NEVER, LONG_AGO, LATELY = Past(), Past(NOW - 31 * DAY), Past(NOW - 5 * DAY)


QUIET = calm(
    window=Window(NOW - 7 * DAY, NOW),
    reason="The monitor has spoken.",
    columns=(drift("dep_hour", 0.05), drift("carrier", 0.02)),
)
CHAMPION = QUIET.release
DRIFT = replace(
    QUIET,
    state=State.DRIFT,
    data_drift=True,
    columns=tuple(
        drift(*c, 0.12)
        for c in [
            ("temp", 0.2),
            ("dep_hour", 0.31),
            ("carrier", 0.02),
            ("wind", 0.14),
            ("dew", 0.15),
        ]
    ),
)
HARM = replace(
    QUIET,
    hurts=Hurts.YES,
    performance=Performance(
        "log_loss", Interval(0.48, 0.46, 0.5, 900, 7), Interval(0.42, None, None, 800, 7)
    ),
)
ESTIMATED = replace(
    HARM.performance, realised=None, estimated=Interval(0.51, 0.5, 0.52, 80, 7), harm_by="estimate"
)
FINDINGS = (
    Finding("volume", "block", None, 0.1, 0.5, "few"),
    Finding("unseen", "warn", "carrier", 0.1, 0.05, "new"),
    Finding("nulls", "block", "temp", 0.9, 0.1, "many"),
)
BROKEN = replace(QUIET, state=State.BROKEN_DATA, findings=FINDINGS)

TABLE = [
    ("failed", replace(DRIFT, state=State.FAILED, hurts=Hurts.YES), Action.HOLD, "failed"),
    ("broken", replace(BROKEN, hurts=Hurts.YES), Action.CALL, "broken_data"),
    (
        "too few rows",
        replace(DRIFT, state=State.INSUFFICIENT_DATA, hurts=Hurts.YES),
        Action.HOLD,
        "insufficient_data",
    ),
    ("harm without drift", HARM, Action.RETRAIN, "harm"),
    ("harm before drift", replace(DRIFT, hurts=Hurts.YES), Action.RETRAIN, "harm"),
    ("drift", DRIFT, Action.RETRAIN, "drift"),
    ("drift that does no harm yet", replace(DRIFT, hurts=Hurts.NO), Action.RETRAIN, "drift"),
    ("a carried-over flag", replace(DRIFT, carried_over=True), Action.HOLD, "none"),
    (
        "harm and a carried-over flag",
        replace(DRIFT, carried_over=True, hurts=Hurts.YES),
        Action.RETRAIN,
        "harm",
    ),
    ("stable, flag up", replace(QUIET, data_drift=True), Action.HOLD, "none"),
    ("stable", QUIET, Action.HOLD, "none"),
]


@pytest.mark.parametrize(
    ("evidence", "action", "trigger"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
@pytest.mark.parametrize("past", [NEVER, LONG_AGO], ids=["never trained", "trained long ago"])
def test_each_state_leads_to_its_action(evidence, action, trigger, past):
    decision = decide(evidence, past, NOW, RULE)
    assert (decision.action, decision.trigger) == (action, trigger)
    assert decision.reason.endswith(".")
    assert policy(RULE)(evidence, past, NOW) == decision


@pytest.mark.parametrize("evidence", [DRIFT, HARM], ids=["drift", "harm"])
@pytest.mark.parametrize(
    ("since", "action", "trigger"),
    [
        (timedelta(0), Action.HOLD, "cooldown"),
        (28 * DAY - timedelta(seconds=1), Action.HOLD, "cooldown"),
        (28 * DAY, Action.RETRAIN, None),
        (-DAY, Action.HOLD, "cooldown"),
    ],
)
def test_a_training_waits_for_the_cooldown_and_not_a_moment_longer(
    evidence, since, action, trigger
):
    decision = decide(evidence, Past(NOW - since), NOW, RULE)
    assert decision.action is action
    if trigger:
        assert decision.trigger == trigger
        until = NOW - since + 28 * DAY
        assert f"{until:%Y-%m-%d %H:%M}" in decision.reason


def test_the_cooldown_does_not_silence_a_call_for_a_human():
    assert decide(BROKEN, LATELY, NOW, RULE).action is Action.CALL


def test_without_a_cooldown_every_drift_trains():
    rule = Decide(cooldown=timedelta(0))
    assert decide(DRIFT, Past(NOW), NOW, rule).action is Action.RETRAIN


def test_observing_never_trains_and_says_what_it_would_have_done():
    decision = decide(DRIFT, LONG_AGO, NOW, Decide(mode="observe", recalibrate=True))
    assert (decision.action, decision.trigger) == (Action.HOLD, "observe")
    assert "Would retrain (drift)" in decision.reason
    assert "4 of 5 columns" in decision.reason
    assert decide(DRIFT, LATELY, NOW, Decide(mode="observe")).trigger == "cooldown"


def test_the_reason_for_drift_names_the_columns_that_drifted_most_and_the_time_since_training():
    decision = decide(DRIFT, LONG_AGO, NOW, RULE)
    assert decision.reason == (
        "4 of 5 columns drifted (dep_hour 0.31 > 0.12, temp 0.20 > 0.12, dew 0.15 > 0.12 "
        "and 1 more); 31 days since the last training."
    )
    assert decision.numbers["drifted"] == 4
    assert decision.numbers["columns"] == 5
    assert decision.numbers["days_since_training"] == 31


def test_the_reason_for_harm_compares_the_loss_with_that_at_release():
    decision = decide(HARM, NEVER, NOW, RULE)
    assert decision.reason == (
        "The champion's log loss is 0.48 (0.46 to 0.5) on 900 labelled rows, against 0.42 at its "
        "release; no training before."
    )
    assert decision.numbers["realised"] == 0.48
    assert decision.numbers["baseline"] == 0.42


def test_the_reason_for_a_call_names_the_blocking_findings_only():
    decision = decide(BROKEN, NEVER, NOW, RULE)
    assert "volume, nulls in temp." in decision.reason
    assert "carrier" not in decision.reason
    assert decision.numbers["blocking"] == 2


def test_where_evidently_called_a_column_drifted_its_reason_stands_for_ours():
    small = replace(drift("carrier", 0.02), drifted=True)
    decision = decide(replace(DRIFT, columns=(small,)), NEVER, NOW, RULE)
    assert decision.trigger == "drift"
    assert "The monitor has spoken" in decision.reason
    assert ">" not in decision.reason


def test_drift_of_the_predictions_alone_is_named():
    evidence = replace(DRIFT, columns=(), prediction_drift=drift("prediction", 0.4, 0.12))
    assert decide(evidence, NEVER, NOW, RULE).reason.startswith(
        "The predictions drifted (0.40 > 0.12)"
    )


def test_hours_are_told_as_hours():
    reason = decide(DRIFT, Past(NOW - timedelta(hours=30)), NOW, RULE).reason
    assert "30 hours" in reason


def test_a_cooldown_of_thousands_of_years_means_never():
    rule = Decide(cooldown=timedelta(days=9_999_999))
    assert decide(DRIFT, LONG_AGO, NOW, rule).trigger == "cooldown"


# --- what a human or a schedule asks for ---


@pytest.mark.parametrize(
    ("evidence", "force", "action", "trigger"),
    [
        (None, True, Action.RETRAIN, "asked"),
        (QUIET, True, Action.RETRAIN, "asked"),
        (None, False, Action.HOLD, "no_status"),
        (replace(DRIFT, release="b" * 64), False, Action.HOLD, "old_status"),
        (DRIFT, False, Action.RETRAIN, "drift"),
        (HARM, False, Action.RETRAIN, "harm"),
        (replace(DRIFT, carried_over=True), False, Action.HOLD, "none"),
        (replace(DRIFT, state=State.FAILED), False, Action.HOLD, "failed"),
        (BROKEN, False, Action.CALL, "broken_data"),
        (QUIET, False, Action.HOLD, "none"),
    ],
)
def test_what_is_asked_for_is_done_on_drift_about_the_champion_or_by_force(
    evidence, force, action, trigger
):
    decision = asked(evidence, CHAMPION, force=force)
    assert (decision.action, decision.trigger) == (action, trigger)
    assert decision.reason.endswith(".")


# --- properties ---

moments = st.datetimes(timezones=st.just(UTC))
floats = st.floats()
intervals = st.builds(
    Interval,
    floats,
    st.none() | floats,
    st.none() | floats,
    st.integers(0, 10**9),
    st.integers(0, 400),
)
drifts = st.builds(
    ColumnDrift,
    st.text(),
    st.text(),
    floats,
    floats,
    floats,
    floats,
    st.booleans(),
    floats,
    st.integers(),
)
findings = st.builds(
    Finding,
    st.text(),
    st.sampled_from(["block", "warn"]),
    st.none() | st.text(),
    floats,
    floats,
    st.text(),
)
evidences = st.builds(
    Evidence,
    window=st.just(QUIET.window),
    release=st.sampled_from([CHAMPION, "", "b" * 64]),
    state=st.sampled_from(State),
    data_drift=st.booleans(),
    carried_over=st.booleans(),
    hurts=st.sampled_from(Hurts),
    reason=st.text(),
    rows=st.integers(0),
    labelled=st.integers(0),
    refused=st.integers(0),
    reference_rows=st.integers(0),
    reference_blocks=st.integers(0),
    columns=st.lists(drifts, max_size=4).map(tuple),
    findings=st.lists(findings, max_size=4).map(tuple),
    prediction_drift=st.none() | drifts,
    performance=st.none()
    | st.builds(Performance, st.text(), st.none() | intervals, st.none() | intervals),
)
rules = st.builds(
    Decide, mode=st.sampled_from(["observe", "auto"]), cooldown=st.timedeltas(timedelta(0))
)


@given(evidences, st.builds(Past, st.none() | moments), moments, rules)
@settings(max_examples=300, deadline=None)
def test_every_evidence_gets_one_decision_and_the_same_one_again(evidence, past, now, rule):
    decision = decide(evidence, past, now, rule)
    assert isinstance(decision, Decision)
    assert decision == decide(evidence, past, now, rule)
    assert decision.reason.strip()
    assert asked(evidence, CHAMPION).trigger
    if decision.action is Action.RETRAIN:
        assert rule.mode == "auto"
        assert evidence.state in (State.DRIFT, State.STABLE)
        by_drift = decision.trigger == "drift"
        assert not (by_drift and evidence.carried_over)
        assert past.last_training is None or now - past.last_training >= rule.cooldown


@pytest.mark.parametrize(
    ("history", "action", "trigger"),
    [
        (1099, Action.HOLD, "none"),
        (1100, Action.RETRAIN, "growth"),
        (5000, Action.RETRAIN, "growth"),
    ],
)
def test_enough_more_labels_than_the_champion_saw_call_for_a_training(history, action, trigger):
    evidence, past = replace(QUIET, history=history), Past(trained_rows=1000)
    decision = decide(evidence, past, NOW, Decide(growth=0.1))
    assert (decision.action, decision.trigger) == (action, trigger)
    assert decision.numbers["history"] == history


def test_growth_waits_for_the_cooldown_and_can_be_switched_off():
    evidence, past = replace(QUIET, history=9000), Past(trained_rows=1000)
    lately = replace(past, last_training=NOW - DAY)
    assert decide(evidence, lately, NOW, RULE).trigger == "cooldown"
    assert decide(evidence, past, NOW, Decide(growth=0)).trigger == "none"


def test_broken_data_is_never_outvoted_by_growth():
    evidence = replace(BROKEN, history=9000)
    assert decide(evidence, Past(trained_rows=1000), NOW, RULE).action is Action.CALL


def test_estimated_harm_is_told_as_an_estimate_and_not_as_what_labels_say():
    reason = decide(replace(HARM, performance=ESTIMATED), Past(), NOW, RULE).reason
    assert "log loss is estimated at 0.51 on 80 rows that have no label yet, against 0.42" in reason


# --- the cheapest remedy first ---

MENDABLE = replace(HARM, fresh=300)


def test_harm_tries_a_map_before_a_training_even_within_the_cooldown():
    for past in (NEVER, LATELY):
        decision = decide(MENDABLE, past, NOW, RULE)
        assert (decision.action, decision.trigger) == (Action.RECALIBRATE, "harm")
    assert "300 labelled rows can judge a map" in decision.reason
    assert decision.numbers["fresh"] == 300


@pytest.mark.parametrize(
    ("evidence", "past", "rule"),
    [
        (MENDABLE, Past(unmended=2), RULE),
        (HARM, NEVER, RULE),
        (MENDABLE, NEVER, Decide(recalibrate=False)),
        (replace(DRIFT, hurts=Hurts.YES, fresh=300), NEVER, RULE),
    ],
    ids=["two maps did not mend it", "no rows judge a map", "switched off", "drift as well"],
)
def test_harm_that_no_map_is_to_mend_trains(evidence, past, rule):
    decision = decide(evidence, past, NOW, rule)
    assert (decision.action, decision.trigger) == (Action.RETRAIN, "harm")


@pytest.mark.parametrize(
    ("evidence", "past"),
    [(QUIET, NEVER), (DRIFT, LATELY)],
    ids=["nothing else to do", "a training has to wait"],
)
def test_between_trainings_a_map_is_tried_when_rows_have_come_to_judge_it(evidence, past):
    decision = decide(replace(evidence, fresh=300), past, NOW, RULE)
    assert (decision.action, decision.trigger) == (Action.RECALIBRATE, "calibration")
    assert decide(evidence, past, NOW, RULE).action is Action.HOLD


@pytest.mark.parametrize("evidence", [BROKEN, replace(QUIET, state=State.INSUFFICIENT_DATA)])
def test_no_map_is_tried_on_data_that_is_not_to_be_trusted(evidence):
    assert decide(replace(evidence, fresh=300), NEVER, NOW, RULE).action is not Action.RECALIBRATE


def test_observing_never_recalibrates():
    decision = decide(MENDABLE, NEVER, NOW, Decide(mode="observe", recalibrate=True))
    assert (decision.action, decision.trigger) == (Action.HOLD, "observe")
    assert "Would recalibrate (harm)" in decision.reason


# --- probation ---

TRIAL = Trial(
    release=CHAMPION,
    replaced="b" * 64,
    look=1,
    window=QUIET.window,
    champion=0.5,
    before=0.4,
    difference=0.1,
    p_value=0.001,
    alone=0.4,
    level=0.0125,
    rows=900,
    blocks=7,
    worse=True,
    reason="The champion is worse.",
)


@pytest.mark.parametrize("evidence", [QUIET, DRIFT, HARM, BROKEN])
def test_a_champion_that_probation_found_worse_is_rolled_back(evidence):
    decision = decide(replace(evidence, trial=TRIAL), LATELY, NOW, RULE)
    assert (decision.action, decision.trigger) == (Action.ROLL_BACK, "probation")
    assert decision.reason == "The champion is worse."
    assert decision.numbers["difference"] == 0.1


@pytest.mark.parametrize("instead", ["bare", "earlier"])
def test_where_only_its_map_is_worse_the_model_stays_by_another_one(instead):
    evidence = replace(BROKEN, trial=replace(TRIAL, instead=instead))
    decision = decide(evidence, LATELY, NOW, RULE)
    assert (decision.action, decision.trigger) == (Action.RECALIBRATE, "probation")
    assert decision.reason == "The champion is worse."


def test_a_champion_that_is_not_worse_stays():
    evidence = replace(QUIET, trial=replace(TRIAL, worse=False))
    assert decide(evidence, NEVER, NOW, RULE).trigger == "none"


def test_after_a_rollback_no_training_starts_for_a_cooldown():
    past = Past(NOW - 60 * DAY, rolled_back=NOW - 5 * DAY)
    decision = decide(DRIFT, past, NOW, RULE)
    assert (decision.action, decision.trigger) == (Action.HOLD, "cooldown")
    assert "rolled back" in decision.reason
    assert decide(DRIFT, replace(past, rolled_back=NOW - 28 * DAY), NOW, RULE).trigger == "drift"


# --- what makes a training wait, or fall due ---


def windows(*ends):
    return tuple(Window(NOW - (end + 7) * DAY, NOW - end * DAY) for end in ends)


@pytest.mark.parametrize(
    ("before", "action"),
    [
        ((), Action.HOLD),
        ((1, 2, 6), Action.HOLD),
        ((7,), Action.HOLD),
        ((1, 7, 8, 13), Action.HOLD),
        ((1, 7, 8, 14), Action.RETRAIN),
    ],
)
def test_drift_must_persist_over_disjoint_windows(before, action):
    past = Past(drifted=windows(*before))
    decision = decide(DRIFT, past, NOW, Decide(persistence=3))
    assert decision.action is action
    assert ("3 disjoint windows" in decision.reason) == (action is Action.RETRAIN)


def test_a_drift_that_does_not_persist_leaves_other_triggers_alone():
    evidence, past = replace(DRIFT, history=2000), Past(trained_rows=1000)
    assert decide(evidence, past, NOW, Decide(persistence=3)).trigger == "growth"


@pytest.mark.parametrize(
    ("times", "days", "action"),
    [
        (1, 55, Action.HOLD),
        (1, 56, Action.RETRAIN),
        (2, 111, Action.HOLD),
        (2, 112, Action.RETRAIN),
        (9, 223, Action.HOLD),
        (9, 224, Action.RETRAIN),
    ],
)
def test_each_refusal_in_a_row_doubles_the_wait_for_the_same_trigger(times, days, action):
    past = Past(NOW - days * DAY, refused={"drift": times})
    decision = decide(DRIFT, past, NOW, RULE)
    assert decision.action is action
    if action is Action.HOLD:
        assert decision.trigger == "refused"
        assert "decide.backoff" in decision.reason
    assert decide(HARM, past, NOW, RULE).action is Action.RETRAIN


def test_growth_counts_from_the_last_training_whatever_became_of_it():
    past = Past(LONG_AGO.last_training, trained_rows=1000, history=2000)
    rule = Decide(growth=0.1, cooldown=DAY, max_age=None)
    assert decide(replace(QUIET, history=2199), past, NOW, rule).trigger == "none"
    decision = decide(replace(QUIET, history=2200), past, NOW, rule)
    assert decision.trigger == "growth"
    assert "10% more than at the last training" in decision.reason


def test_a_budget_bounds_the_trainings_of_a_period():
    rule = Decide(cooldown=DAY, budget=2, budget_period=100 * DAY)
    trainings = tuple(NOW - days * DAY for days in (60, 50, 20))
    spent = Past(NOW - 20 * DAY, began=NOW - 300 * DAY, trainings=trainings)
    decision = decide(DRIFT, spent, NOW, rule)
    assert (decision.action, decision.trigger) == (Action.HOLD, "budget")
    assert "2 in 100 days, and one beforehand" in decision.reason
    assert decide(DRIFT, spent, NOW + 40 * DAY, rule).action is Action.RETRAIN


def test_one_training_is_always_there_even_by_a_clock_that_lies_before_the_first_release():
    assert decide(DRIFT, Past(began=NOW + 9 * DAY), NOW, RULE).action is Action.RETRAIN


def test_a_budget_is_earned_as_evenly_as_time_passes_and_one_is_there_at_once():
    rule = Decide(cooldown=DAY, budget=2, budget_period=100 * DAY)
    assert decide(DRIFT, Past(began=NOW), NOW, rule).action is Action.RETRAIN
    one = Past(NOW - 40 * DAY, began=NOW - 49 * DAY, trainings=(NOW - 40 * DAY,))
    assert decide(DRIFT, one, NOW, rule).trigger == "budget"
    assert decide(DRIFT, one, NOW + DAY, rule).action is Action.RETRAIN


@pytest.mark.parametrize(
    ("rule", "trigger"),
    [(Decide(max_age=100 * DAY), "age"), (Decide(max_age=None, every=100 * DAY), "schedule")],
)
def test_age_and_schedule_are_due_to_the_day(rule, trigger):
    young, old = Past(trained_at=NOW - 99 * DAY), Past(trained_at=NOW - 100 * DAY)
    assert decide(QUIET, young, NOW, rule).trigger == "none"
    decision = decide(QUIET, old, NOW, rule)
    assert (decision.action, decision.trigger) == (Action.RETRAIN, trigger)
    assert "100 days ago" in decision.reason


def test_age_and_schedule_count_from_the_last_training_even_if_it_was_refused():
    past = Past(NOW - 50 * DAY, trained_at=NOW - 200 * DAY, paid=True)
    for rule in (Decide(max_age=None, every=51 * DAY), Decide(max_age=51 * DAY)):
        assert decide(QUIET, past, NOW, rule).trigger == "none"
        assert decide(QUIET, past, NOW + DAY, rule).trigger in ("age", "schedule")


@pytest.mark.parametrize(("unpaid", "times"), [(0, 2), (1, 4), (2, 8), (3, 8), (900, 8)])
def test_where_promotions_do_not_pay_a_model_may_grow_older(unpaid, times):
    rule = Decide(max_age=10 * DAY, cooldown=DAY)
    last = NOW - times * 10 * DAY
    calm = decide(QUIET, Past(last + DAY, unpaid=unpaid), NOW, rule)
    assert calm.trigger == "none"
    decision = decide(QUIET, Past(last, unpaid=unpaid), NOW, rule)
    assert decision.trigger == "age"
    assert f"{times} times decide.max_age, as no promotion has paid" in decision.reason
    assert decide(QUIET, Past(NOW - 10 * DAY, unpaid=unpaid, paid=True), NOW, rule).trigger == "age"


@pytest.mark.parametrize(
    ("record", "trigger"),
    [((0, 0), "none"), ((7, 7), "none"), ((6, 8), "none"), ((7, 8), "staleness")],
)
def test_staleness_trains_only_once_its_record_has_earned_it(record, trigger):
    stale = Staleness(0.02, 0.01, 0.03, 900, 7, "log_loss")
    evidence, past = replace(QUIET, staleness=stale), Past(probes=record)
    assert decide(evidence, past, NOW, RULE).trigger == trigger
    unsure = replace(QUIET, staleness=replace(stale, low=-0.01))
    assert decide(unsure, past, NOW, RULE).trigger == "none"
