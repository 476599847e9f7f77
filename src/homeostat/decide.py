"""The decision: from the evidence of one window, and what was done before, to what to do now.

It takes Evidence, Past, the present time and the section `decide` of the settings. It gives a
Decision with the reason a human reads and the numbers behind it; it touches nothing, and the same
arguments always give the same decision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import partial

from homeostat.contracts import Policy
from homeostat.records import Action, ColumnDrift, Decision, Evidence, Hurts, Past, State
from homeostat.settings import Decide

DAY = timedelta(days=1)
NAMED = 3  # columns or findings that a reason names; the rest are counted


def policy(rule: Decide) -> Policy:
    """`decide` under one rule, as the loop takes it."""
    return partial(decide, rule=rule)


def decide(evidence: Evidence, past: Past, now: datetime, rule: Decide) -> Decision:
    """What to do about one window.

    A failed look or too few rows hold; broken data calls a human; harm, then drift that was tested
    in this window, then growth of the labelled rows retrain. A training within `rule.cooldown` of
    the last one waits, and under the mode `observe` none is ever started.
    """
    wanted = _wanted(evidence)
    if wanted.trigger == "none" and rule.growth and past.trained_rows:
        wanted = _grown(evidence.history, past.trained_rows, rule.growth, wanted)
    since = None if past.last_training is None else now - past.last_training
    numbers = dict(wanted.numbers)
    if since is not None:
        numbers["days_since_training"] = since / DAY
    if wanted.action is not Action.RETRAIN:
        return Decision(wanted.action, wanted.trigger, wanted.reason, numbers)
    if past.last_training is not None and since is not None and since < rule.cooldown:
        until = _later(past.last_training, rule.cooldown)
        reason = (
            f"{wanted.reason} But {_days(since)} passed since the last training: no other before "
            f"{until:%Y-%m-%d %H:%M} UTC (decide.cooldown)."
        )
        return Decision(Action.HOLD, "cooldown", reason, numbers)
    if rule.mode == "observe":
        reason = f"Would retrain ({wanted.trigger}), but decide.mode is observe: {wanted.reason}"
        return Decision(Action.HOLD, "observe", reason, numbers)
    last = "no training before" if since is None else f"{_days(since)} since the last training"
    return Decision(Action.RETRAIN, wanted.trigger, f"{wanted.reason[:-1]}; {last}.", numbers)


def asked(evidence: Evidence | None, champion: str, *, force: bool = False) -> Decision:
    """What to do when a human or a schedule asks for a retraining, on the last evidence.

    No cool-down applies. Without `force` it retrains for the same reasons as `decide`, and only
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
    return _wanted(evidence)


def _wanted(evidence: Evidence) -> Decision:
    """What the evidence alone asks for."""
    numbers = _numbers(evidence)
    if evidence.state == State.FAILED:
        reason = f"The window could not be examined, so nothing is done: {_sentence(evidence)}"
        return Decision(Action.HOLD, "failed", reason, numbers)
    if evidence.state == State.BROKEN_DATA:
        return Decision(Action.CALL, "broken_data", _broken(evidence), numbers)
    if evidence.state == State.INSUFFICIENT_DATA:
        reason = f"There is not enough data to decide on: {_sentence(evidence)}"
        return Decision(Action.HOLD, "insufficient_data", reason, numbers)
    if evidence.hurts == Hurts.YES:
        return Decision(Action.RETRAIN, "harm", _harm(evidence), numbers)
    if evidence.state == State.DRIFT and not evidence.carried_over:
        return Decision(Action.RETRAIN, "drift", _drift(evidence), numbers)
    return Decision(Action.HOLD, "none", _calm(evidence), numbers)


def _grown(rows: int, trained: int, growth: float, calm: Decision) -> Decision:
    """A retraining where the labelled rows have grown enough, else `calm`."""
    numbers = {**calm.numbers, "history": rows, "trained_rows": trained}
    if rows < trained * (1 + growth):
        return Decision(calm.action, calm.trigger, calm.reason, numbers)
    reason = (
        f"There are {rows:,} labelled rows, {rows / trained - 1:.0%} more than the champion was "
        "trained on."
    )
    return Decision(Action.RETRAIN, "growth", reason, numbers)


def _numbers(evidence: Evidence) -> Mapping[str, float]:
    """The figures of a decision; what is not known or not finite is left out."""
    numbers: dict[str, float] = {
        "rows": evidence.rows,
        "labelled": evidence.labelled,
        "refused": evidence.refused,
        "columns": len(evidence.columns),
        "drifted": sum(column.drifted for column in evidence.columns),
        "blocking": sum(finding.severity == "block" for finding in evidence.findings),
    }
    if evidence.performance is not None:
        for name in ("realised", "estimated", "baseline"):
            interval = getattr(evidence.performance, name)
            if interval is not None:
                numbers[name] = interval.value
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _broken(evidence: Evidence) -> str:
    findings = [finding for finding in evidence.findings if finding.severity == "block"]
    if not findings:
        return f"The data is broken, so no model may learn from it: {_sentence(evidence)}"
    named = [
        f"{finding.check} in {finding.column[:40]}" if finding.column else finding.check
        for finding in findings[:NAMED]
    ]
    return f"The data is broken, so no model may learn from it: {_listed(named, len(findings))}."


def _harm(evidence: Evidence) -> str:
    performance = evidence.performance
    if performance is None or performance.baseline is None:
        return f"The champion's predictions got worse: {_sentence(evidence)}"
    now, told = performance.realised, performance.estimated
    name = performance.metric.replace("_", " ")
    if performance.harm_by == "estimate" and told is not None:
        return (
            f"The champion's {name} is estimated at {told.value:.4g} on {told.rows:,} rows that "
            f"have no label yet, against {performance.baseline.value:.4g} at its release."
        )
    if now is None:
        return f"The champion's predictions got worse: {_sentence(evidence)}"
    spread = "" if now.low is None or now.high is None else f" ({now.low:.4g} to {now.high:.4g})"
    return (
        f"The champion's {name} is {now.value:.4g}{spread} on "
        f"{now.rows:,} labelled rows, against {performance.baseline.value:.4g} at its release."
    )


def _drift(evidence: Evidence) -> str:
    drifted = sorted((c for c in evidence.columns if c.drifted), key=_rank)
    prediction, joint = evidence.prediction_drift, evidence.joint_drift
    shifted = prediction is not None and prediction.drifted
    together = joint is not None and joint.drifted
    nothing = not (drifted or shifted or together)
    if nothing or any(c.distance <= c.threshold for c in drifted):
        # Where Evidently decides, ours are not the numbers that did.
        return f"The window drifted: {_sentence(evidence)}"
    parts = []
    if drifted:
        named = [f"{c.column[:40]} {c.distance:.2f} > {c.threshold:.2f}" for c in drifted[:NAMED]]
        total = len(evidence.columns)
        parts.append(f"{len(drifted)} of {total} columns drifted ({_listed(named, len(drifted))})")
    if joint is not None and together:
        measured = f"{joint.test[:80]}, {joint.distance:.2f} > {joint.threshold:.2f}"
        parts.append(f"the columns drifted together ({measured})")
    if prediction is not None and shifted:
        measured = f"{prediction.distance:.2f} > {prediction.threshold:.2f}"
        parts.append(f"the predictions drifted ({measured})")
    text = " and ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _calm(evidence: Evidence) -> str:
    if evidence.state == State.DRIFT:
        return "Nothing could be tested in this window: the drift flag is carried over."
    worse = {
        Hurts.NO: "and the champion's loss is as it was",
        Hurts.UNKNOWN: "and labels do not say that the champion got worse",
    }
    total = len(evidence.columns)
    return f"None of {total} columns calls for action {worse[Hurts(evidence.hurts)]}."


def _rank(column: ColumnDrift) -> tuple[float, str]:
    excess = column.distance - column.threshold
    return (-excess if math.isfinite(excess) else 0.0, column.column)


def _listed(named: list[str], total: int) -> str:
    rest = total - len(named)
    return ", ".join(named) + (f" and {rest} more" if rest > 0 else "")


def _sentence(evidence: Evidence) -> str:
    text = evidence.reason.strip() or f"the monitor says {State(evidence.state).value}"
    return text if text.endswith((".", "!", "?")) else f"{text}."


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
