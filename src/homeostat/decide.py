"""The decision: from the evidence of one window, and what was done before, to what to do now.

It takes Evidence, Past, the present time and the section `decide` of the settings. It gives a
Decision with the reason a human reads and the numbers behind it; it touches nothing, and the same
arguments always give the same decision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

from homeostat import reasons
from homeostat.contracts import Policy
from homeostat.past import PROBATION, Past
from homeostat.records import Action, Decision, Evidence, Hurts, State, Window
from homeostat.settings import Decide

DAY = timedelta(days=1)
LONGEST = 8  # cool-downs that refusals in a row make of one, and ages of one, at most
TRIES = 2  # a map is judged by windows that came after what it is to mend
RECORD, EARNED = 8, 0.8  # judgements after which the twins' word counts, if that share was right


def policy(rule: Decide) -> Policy:
    """`decide` under one rule, as the loop takes it."""
    return partial(decide, rule=rule)


def decide(evidence: Evidence, past: Past, now: datetime, rule: Decide) -> Decision:
    """What to do about one window; the triggers and their order are in docs/decisions.md.

    A failed look or too few rows hold; a champion that probation found worse is rolled back, or
    gets another map where only its map is; broken data calls a human; harm, drift, growth,
    staleness, age and the schedule retrain, unless cool-down, budget or earlier refusals bid to
    wait. Where harm is shown, or nothing else is to be done, and there are rows to judge it by, a
    recalibration comes first. A pinned champion stays.
    Under the mode `observe` nothing is ever done.
    """
    wanted = _wanted(evidence, past, rule)
    if wanted.trigger == "none":
        if rule.growth and past.trained_rows:
            told = {"history": evidence.history, "trained_rows": past.trained_rows}
            wanted = replace(wanted, numbers={**wanted.numbers, **told})
        wanted = next(_due(wanted, evidence, past, now, rule), wanted)
    if past.last_training is not None:
        since = (now - past.last_training) / DAY
        wanted = replace(wanted, numbers={**wanted.numbers, "days_since_training": since})
    if wanted.action is Action.RETRAIN and not _cheaper(wanted, evidence, past, rule):
        wanted = _allowed(wanted, past, now, rule)
    if _cheaper(wanted, evidence, past, rule):
        wanted = _recalibrated(wanted, evidence)
    wanted = stayed(wanted, past)
    does = wanted.action in (Action.RETRAIN, Action.RECALIBRATE, Action.ROLL_BACK)
    if does and rule.mode == "observe":
        what = wanted.action.value.replace("_", " ")
        reason = f"Would {what} ({wanted.trigger}), but decide.mode is observe: {wanted.reason}"
        return replace(wanted, action=Action.HOLD, trigger="observe", reason=reason)
    return wanted


def stayed(wanted: Decision, past: Past) -> Decision:
    """`wanted`, or to hold where it would change or train what is pinned."""
    acts = wanted.action in (Action.RETRAIN, Action.RECALIBRATE, Action.ROLL_BACK)
    if past.pinned is None or not acts:
        return wanted
    what = wanted.action.value.replace("_", " ")
    by = past.pinned or "someone"
    reason = f"Would {what} ({wanted.trigger}), but {by} pinned the champion: {wanted.reason}"
    return replace(wanted, action=Action.HOLD, trigger="pinned", reason=reason)


def asked(evidence: Evidence | None, champion: str, *, force: bool = False) -> Decision:
    """What to do when a human or a schedule asks for a retraining, on the last evidence.

    No cool-down applies. Without `force` it retrains for harm or drift as `decide` does, and only
    on evidence about the release `champion`, so that one window never retrains twice.
    """
    if force:
        return Decision(Action.RETRAIN, "asked", "A training was asked for.")
    if evidence is None:
        reason = "There is no drift status to act on: run the monitor first."
        return Decision(Action.HOLD, "no_status", reason)
    if evidence.release != champion:
        reason = (
            f"The drift status is about release {evidence.release[:12]}, but {champion[:12]} "
            "serves now: run the monitor again."
        )
        return Decision(Action.HOLD, "old_status", reason)
    return _wanted(evidence, Past(), Decide())


def after_training(evidence: Evidence | None, rule: Decide) -> Decision | None:
    """What to do in the same turn where a training brought no challenger: try a map, or nothing."""
    if evidence is None or not (rule.recalibrate and evidence.fresh):
        return None
    calm = Decision(Action.HOLD, "none", "", reasons.numbers(evidence))
    return _recalibrated(calm, evidence)


def _wanted(evidence: Evidence, past: Past, rule: Decide) -> Decision:
    """What the evidence alone asks for."""
    numbers, trial = reasons.numbers(evidence), evidence.trial
    if evidence.state == State.FAILED:
        told = reasons.sentence(evidence)
        reason = f"The window could not be examined, so nothing is done: {told}"
        return Decision(Action.HOLD, "failed", reason, numbers)
    if trial is not None and trial.worse:
        numbers = {**numbers, "difference": trial.difference, "p_value": trial.p_value}
        action = Action.RECALIBRATE if trial.instead else Action.ROLL_BACK
        return Decision(action, PROBATION, trial.reason, numbers)
    if evidence.state == State.BROKEN_DATA:
        return Decision(Action.CALL, "broken_data", reasons.broken(evidence), numbers)
    if evidence.state == State.INSUFFICIENT_DATA:
        reason = f"There is not enough data to decide on: {reasons.sentence(evidence)}"
        return Decision(Action.HOLD, "insufficient_data", reason, numbers)
    return _worse(evidence, past, rule, numbers)


def _worse(evidence: Evidence, past: Past, rule: Decide, numbers: Mapping[str, float]) -> Decision:
    """What a sound window of enough rows asks for."""
    if evidence.hurts == Hurts.YES:
        return Decision(Action.RETRAIN, "harm", reasons.harm(evidence), numbers)
    if evidence.state == State.DRIFT and not evidence.carried_over:
        return _persistent(
            Decision(Action.RETRAIN, "drift", reasons.drift(evidence), numbers),
            _disjoint(evidence.window, past.drifted),
            rule,
        )
    return Decision(Action.HOLD, "none", reasons.calm(evidence), numbers)


def _persistent(drifted: Decision, windows: int, rule: Decide) -> Decision:
    if rule.persistence == 1:
        return drifted
    found = replace(drifted, numbers={**drifted.numbers, "windows": windows})
    if windows >= rule.persistence:
        return replace(
            found, reason=f"{found.reason[:-1]}, in {windows} disjoint windows in a row."
        )
    reason = (
        f"{found.reason} But that is window {windows} of the {rule.persistence} in a row that "
        "decide.persistence asks for."
    )
    return replace(found, action=Action.HOLD, trigger="none", reason=reason)


def _disjoint(window: Window, before: tuple[Window, ...]) -> int:
    """How many windows that do not overlap there are from `window` back."""
    count, start = 1, window.start
    for earlier in before:
        if earlier.end <= start:
            count, start = count + 1, earlier.start
    return count


def _due(
    calm: Decision, evidence: Evidence, past: Past, now: datetime, rule: Decide
) -> Iterator[Decision]:
    """The trainings that are due though the window asks for none, in the order of their merit."""

    def training(trigger: str, reason: str) -> Decision:
        return replace(calm, action=Action.RETRAIN, trigger=trigger, reason=reason)

    rows, trained = evidence.history, past.trained_rows
    if rule.growth and trained:
        base = max(trained, past.history)
        if rows >= base * (1 + rule.growth):
            since = "the champion was trained on" if base == trained else "at the last training"
            reason = f"There are {rows:,} labelled rows, {rows / base - 1:.0%} more than {since}."
            yield training("growth", reason)
    told, (right, judged) = evidence.staleness, past.probes
    earned = judged >= RECORD and right >= EARNED * judged
    if earned and told and told.gain is not None and told.low is not None and told.low > 0:
        reason = (
            f"A model of the newest rows would gain {told.gain:.4g} ({told.low:.4g} at least) in "
            f"{told.metric.replace('_', ' ')}, and {right} of {judged} such words came true."
        )
        yield training("staleness", reason)
    last = past.last_training or past.trained_at
    if rule.max_age is not None and last:
        times = patience(past)
        if now >= _later(last, _times(rule.max_age, times)):
            reason = f"The last training is {_days(now - last)} ago (decide.max_age)."
            if times > 1:
                unpaid = f"{times} times decide.max_age, as no promotion has paid for a while"
                reason = f"The last training is {_days(now - last)} ago: {unpaid}."
            yield training("age", reason)
    if rule.every is not None and last and now - last >= rule.every:
        yield training("schedule", f"The last training is {_days(now - last)} ago (decide.every).")


def patience(past: Past) -> int:
    """How many times `decide.max_age` a model may be old.

    Once where nothing was trained yet, or the last promotion has paid; else twice as often for each
    training in a row at which none had, eight times at most.
    """
    if past.last_training is None or past.paid:
        return 1
    return int(min(2 ** (past.unpaid + 1), LONGEST))


def _allowed(wanted: Decision, past: Past, now: datetime, rule: Decide) -> Decision:
    """The training that is wanted, or why it has to wait."""
    numbers = wanted.numbers
    if past.last_training is None:
        last = "no training before"
    else:
        since = now - past.last_training
        last = f"{_days(since)} since the last training"
        if since < rule.cooldown:
            until = _later(past.last_training, rule.cooldown)
            reason = (
                f"{wanted.reason} But {_days(since)} passed since the last training: no other "
                f"before {until:%Y-%m-%d %H:%M} UTC (decide.cooldown)."
            )
            return Decision(Action.HOLD, "cooldown", reason, numbers)
        refused = past.refused.get(wanted.trigger)
        if refused is not None:
            times = min(rule.backoff**refused, LONGEST)
            until = _later(past.last_training, _times(rule.cooldown, times))
            if now < until:
                reason = (
                    f"{wanted.reason} But the gate refused the last {refused} that were "
                    f"trained for this: no other before {until:%Y-%m-%d %H:%M} UTC "
                    "(decide.backoff)."
                )
                return Decision(Action.HOLD, "refused", reason, numbers)
    if past.rolled_back is not None and now - past.rolled_back < rule.cooldown:
        until = _later(past.rolled_back, rule.cooldown)
        reason = (
            f"{wanted.reason} But the last model turned out worse and was rolled back: no "
            f"training before {until:%Y-%m-%d %H:%M} UTC (decide.cooldown)."
        )
        return Decision(Action.HOLD, "cooldown", reason, numbers)
    if rule.budget is not None:
        spent = sum(now - at < rule.budget_period for at in past.trainings)
        passed = (now - past.began) / rule.budget_period if past.began else 1.0
        if spent > rule.budget * min(max(passed, 0.0), 1.0):
            reason = (
                f"{wanted.reason} But {spent} trainings use up what decide.budget allows: "
                f"{rule.budget} in {_days(rule.budget_period)}, and one beforehand."
            )
            return Decision(Action.HOLD, "budget", reason, {**numbers, "spent": spent})
    return replace(wanted, reason=f"{wanted.reason[:-1]}; {last}.")


def _cheaper(wanted: Decision, evidence: Evidence, past: Past, rule: Decide) -> bool:
    """Whether a map is to be tried: where no training is started, and first of all for harm, but
    where the window drifted, and where `TRIES` maps in a row did not mend the harm.
    """
    if not (rule.recalibrate and evidence.fresh):
        return False
    if wanted.action is Action.HOLD:
        return wanted.trigger in ("none", "cooldown", "refused", "budget")
    drifts = evidence.state == State.DRIFT and not evidence.carried_over
    return wanted.trigger == "harm" and not drifts and past.unmended < TRIES


def _recalibrated(wanted: Decision, evidence: Evidence) -> Decision:
    rows = f"{evidence.fresh:,} labelled rows can judge a map over the champion's output"
    harm = wanted.trigger == "harm"
    reason = f"{wanted.reason} {rows}, which is tried first." if harm else f"{rows}."
    numbers = {**wanted.numbers, "fresh": evidence.fresh}
    return Decision(Action.RECALIBRATE, "harm" if harm else "calibration", reason, numbers)


def _days(length: timedelta) -> str:
    days = length / DAY
    if abs(days) < 2:
        return f"{length / timedelta(hours=1):.0f} hours"
    return f"{days:.0f} days"


def _later(moment: datetime, length: timedelta) -> datetime:
    try:
        return moment + length
    except OverflowError:  # a cool-down of thousands of years means never
        return datetime.max.replace(tzinfo=UTC)


def _times(length: timedelta, times: float) -> timedelta:
    try:
        return length * times
    except OverflowError:
        return timedelta.max
