"""Words: what the loop did and why, as people say it.

Takes a `Turn`. Gives phrases for the list of decisions and for the chart; a name that is not known
is shown as it is.
"""

from __future__ import annotations

from homeostat.wall.ledger import Turn

ACTIONS = {
    "hold": "kept the model",
    "recalibrate": "tried a map over the model",
    "retrain": "trained a challenger",
    "adopt": "took a release over",
    "roll_back": "went back",
    "stop_and_call": "called for a human",
    "first": "first release",
    "adopted": "model brought from elsewhere",
    "approved": "approved",
    "rolled_back": "rolled back",
    "pinned": "pinned",
    "unpinned": "unpinned",
    "order_refused": "not done as asked",
    "recovered": "finished a turn that was killed",
    "replayed": "replayed its rules",
}
TRIGGERS = {
    "none": "nothing asks for more",
    "asked": "asked for",
    "first": "there was none",
    "drift": "the data drifted",
    "harm": "the model does harm",
    "growth": "there are many more rows",
    "staleness": "newer rows would do better",
    "age": "the model is old",
    "schedule": "it was time",
    "calibration": "the outputs are off",
    "probation": "worse than the one before",
    "cooldown": "too soon after the last training",
    "refused": "the gate refused the last ones",
    "budget": "the budget is used up",
    "pinned": "the champion is pinned",
    "observe": "the mode is observe",
    "broken_data": "the data is broken",
    "insufficient_data": "too little data",
    "no_fresh_labels": "too few fresh labels",
    "no_status": "no look to act on",
    "old_status": "the last look is of another release",
    "failed": "something failed",
    "approve": "a release waits for approval",
    "approved": "approved",
    "brought": "brought from elsewhere",
}
OUTCOMES = {
    "waiting": "A release waits for approval.",
    "rolled_back": "The earlier release serves again.",
    "not_promoted": "The release could not be made to serve.",
    "training_failed": "The training failed.",
    "calibration_failed": "The map failed.",
    "rollback_failed": "The rollback failed.",
}
"""What a turn came to, by the kind of line that says so; a later line outweighs an earlier one."""


def action(turn: Turn) -> str:
    """What was done."""
    return ACTIONS.get(turn.action, turn.action.replace("_", " "))


def trigger(turn: Turn) -> str:
    """Why, in a word or two."""
    return TRIGGERS.get(turn.trigger, turn.trigger.replace("_", " "))


def outcome(turn: Turn) -> str:
    """What came of it, in one short sentence; empty where nothing did."""
    found = ""
    for kind, text in turn.came:
        if kind in ("gate", "calibration_gate"):
            found = text.partition(":")[0] + "."
        elif kind in ("promoted", "recovered", "held"):
            found = text
        else:
            found = OUTCOMES.get(kind, found)
    return found
