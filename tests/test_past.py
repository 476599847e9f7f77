"""What the audit chain's lines come to, for a decision."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from homeostat.audit import jsonable
from homeostat.past import Past, past
from homeostat.records import Window

NOW = datetime(2025, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def at(day):
    return NOW + day * DAY


def line(kind, day, /, **body):
    return {"kind": kind, "at": at(day).isoformat(), "body": jsonable(body)}


def look(day, state, **more):
    return {"state": state, "window": Window(at(day - 7), at(day)), "history": 100 * day, **more}


def decided(day, action, trigger, state="drift", **more):
    decision = {"action": action, "trigger": trigger}
    return line("decided", day, decision=decision, evidence=look(day, state, **more))


def gate(day, *, promote, kind="gate"):
    return line(kind, day, promote=promote, window=Window(at(day - 14), at(day)))


def test_nothing_happened_yet():
    assert past([]) == Past()
    first = [line("first", 1), line("promoted", 1, release="a", kind="first")]
    assert past(first) == Past(began=at(1))


def test_trainings_and_looks_at_models_and_maps_are_kept_apart():
    lines = [
        line("trained", 1),
        gate(1, promote=False),
        gate(9, promote=True, kind="calibration_gate"),
        line("training_failed", 3),
    ]
    found = past(lines)
    assert found.last_training == at(3)
    assert found.trainings == (at(1), at(3))
    assert (found.looked_until, found.mapped_until) == (at(1), at(9))


def test_a_run_of_drift_ends_with_a_calm_window_and_with_another_model_but_not_with_a_map():
    run = [decided(day, "hold", "cooldown") for day in (7, 8, 14)]
    ends = [window.end for window in past(run).drifted]
    assert ends == [at(14), at(8), at(7)]
    torn = decided(15, "hold", "insufficient_data", state="insufficient_data")
    assert len(past([*run, torn]).drifted) == 3
    assert past([*run, decided(15, "hold", "none", state="stable")]).drifted == ()
    assert past([*run, line("promoted", 15, release="a", kind="retrain")]).drifted == ()
    assert len(past([*run, line("promoted", 15, release="a", kind="recalibrate")]).drifted) == 3


def test_refusals_count_by_trigger_until_a_promotion():
    refusal = [decided(20, "retrain", "growth"), line("trained", 20), gate(20, promote=False)]
    again = [decided(50, "retrain", "growth"), line("trained", 50), gate(50, promote=False)]
    assert past([*refusal, *again]).refused == {"growth": 2}
    promoted = line("promoted", 60, release="a", kind="retrain")
    assert past([*refusal, promoted, *again]).refused == {"growth": 1}


def test_growth_counts_from_the_rows_at_the_last_training():
    lines = [decided(20, "retrain", "growth"), line("trained", 20), decided(27, "hold", "none")]
    assert past(lines).history == 2000


def probation(day, release, p_value):
    return line("probation", day, release=release, p_value=p_value)


def test_a_promotion_has_paid_when_its_last_look_finds_it_better_and_until_the_next_one():
    promoted = line("promoted", 20, release="b", kind="retrain")
    better, unsure = probation(30, "b", 0.95), probation(37, "b", 0.6)
    assert past([promoted, better]).paid
    assert not past([promoted, better, unsure]).paid
    assert not past([promoted, probation(30, "a", 0.95)]).paid
    assert past([promoted, better, line("promoted", 40, release="m", kind="recalibrate")]).paid
    assert not past([promoted, better, line("promoted", 40, release="c", kind="retrain")]).paid


def test_a_model_has_paid_by_what_it_did_without_any_map():
    promoted = line("promoted", 20, release="b", kind="retrain")
    masked = line("probation", 30, release="b", p_value=0.3, alone=0.97)
    flattered = line("probation", 30, release="b", p_value=0.97, alone=0.3)
    assert past([promoted, masked]).paid
    assert not past([promoted, flattered]).paid


def test_going_back_from_a_map_does_not_hold_up_trainings_and_from_a_model_does():
    lines = [
        line("promoted", 1, release="a", kind="retrain"),
        line("promoted", 2, release="b", kind="retrain"),
        line("promoted", 4, release="c", kind="recalibrate"),
    ]
    by = {"by": "probation"}
    one = past([*lines, line("rolled_back", 5, release="b", **by, **{"from": "c"})])
    other = past([*lines, line("rolled_back", 5, release="a", **by, **{"from": "c"})])
    assert (one.rolled_back, one.undone) == (None, ("c",))
    assert (other.rolled_back, other.undone) == (at(5), ("b",))


def test_trainings_at_which_nothing_had_paid_are_counted_in_a_row():
    found, lines = [], [line("first", 0)]
    for day in (20, 40, 60):
        lines += [line("trained", day), line("promoted", day, release=str(day), kind="retrain")]
        found.append(past(lines).unpaid)
    assert found == [0, 1, 2]
    assert past([*lines, probation(70, "60", 0.95), line("trained", 80)]).unpaid == 0


def test_maps_that_did_not_mend_harm_count_until_one_does():
    refused = [
        decided(7, "recalibrate", "harm"),
        gate(7, promote=False, kind="calibration_gate"),
    ]
    other = [
        decided(14, "recalibrate", "calibration"),
        gate(14, promote=False, kind="calibration_gate"),
    ]
    assert past([*refused, *other, *refused]).unmended == 2
    promoted = line("promoted", 20, release="a", kind="recalibrate")
    assert past([*refused, promoted]).unmended == 0


def test_the_record_of_maps_is_what_each_gained_over_bare_answers_by_rows():
    def told(day, rows, **loss):
        window = {"start": at(day - 7).isoformat(), "end": at(day).isoformat()}
        return line("calibration_record", day, window=window, rows=rows, loss=loss)

    lines = [told(7, 100, none=0.5, a=0.4), told(14, 300, none=0.3, a=0.5, b=0.2)]
    found = past(lines)
    assert found.maps == pytest.approx({"a": (-10 + 60) / 400, "b": -0.1})
    assert found.recorded_until == at(14)


def test_the_twins_record_is_how_often_they_agreed_with_the_gate():
    lines = []
    for low, promote in ((0.1, True), (0.1, False), (-0.1, False), (None, True)):
        told = {"gain": 0.2, "low": low, "high": 0.3}
        lines += [decided(7, "retrain", "drift", staleness=told), gate(7, promote=promote)]
    assert past(lines).probes == (2, 3)


def test_only_the_loops_own_rollbacks_count_as_such():
    asked = line("rolled_back", 3, **{"from": "b", "release": "a", "by": "ada"})
    own = line("rolled_back", 5, **{"from": "c", "release": "a", "by": "probation"})
    assert past([asked]).undone == ()
    found = past([asked, own])
    assert (found.rolled_back, found.undone) == (at(5), ("c",))


def test_lines_of_an_older_version_are_read_as_they_were():
    """They name no history, no staleness and no kind of promotion."""
    evidence = {"state": "drift", "window": jsonable(Window(at(0), at(7)))}
    decision = {"action": "retrain", "trigger": "drift"}
    lines = [
        line("decided", 7, decision=decision, evidence=evidence),
        gate(7, promote=False),
        line("promoted", 8, release="a"),
    ]
    assert past(lines[:2]).refused == {"drift": 1}
    assert past(lines).refused == {}


def test_going_back_from_a_map_leaves_it_known_that_its_model_has_paid():
    lines = [
        line("promoted", 1, release="a", kind="retrain"),
        line("promoted", 2, release="b", kind="retrain"),
        line("probation", 3, release="b", p_value=0.95),
        line("promoted", 4, release="c", kind="recalibrate"),
    ]
    assert past([*lines, line("rolled_back", 5, release="b", **{"from": "c"})]).paid
    assert not past([*lines, line("rolled_back", 5, release="a", **{"from": "c"})]).paid
