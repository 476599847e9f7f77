"""The decision: one row of the table per rule, in the order of the rules."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_fixtures import calm, drift

from homeostat.decide import asked, decide, policy
from homeostat.records import (
    Action,
    ColumnDrift,
    Decision,
    Evidence,
    Finding,
    Hurts,
    Interval,
    Past,
    Performance,
    State,
    Window,
)
from homeostat.settings import Decide

NOW = datetime(2013, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)
RULE = Decide(cooldown=28 * DAY)
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
    decision = decide(DRIFT, LONG_AGO, NOW, Decide(mode="observe"))
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
        assert evidence.hurts is Hurts.YES or not evidence.carried_over
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
