"""The policies that a replay can compare, each a value in one table.

Takes a policy's name as it is written on the command line and the terms of the replay. Gives a
`Strategy`: what the loop is handed to decide by, and whether its gate judges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from homeostat import decide
from homeostat.contracts import Policy
from homeostat.errors import HomeostatError
from homeostat.records import Action, Decision, Evidence, Past
from homeostat.settings import Decide

WAYS = "never, every:K (K steps), homeostat"


@dataclass(frozen=True, slots=True)
class Terms:
    """What a policy may know of the replay."""

    start: datetime  # when the first model was trained
    every: timedelta  # length of a step
    decide: Decide


@dataclass(frozen=True, slots=True)
class Strategy:
    name: str
    policy: Policy
    gated: bool  # False: whatever was trained, on all rows that have a label, is promoted


def strategies(names: tuple[str, ...], terms: Terms) -> tuple[Strategy, ...]:
    """One strategy for each name, in order. Raises HomeostatError for a name that is none."""
    if not names:
        raise HomeostatError("no policy is named.", hint=f"Policies are {WAYS}.")
    if len(set(names)) != len(names):
        raise HomeostatError("a policy is named twice.")
    made = []
    for name in names:
        kind, _, argument = name.partition(":")
        if kind not in POLICIES:
            raise HomeostatError(f"{name!r} is no policy.", hint=f"Policies are {WAYS}.")
        made.append(POLICIES[kind](argument, terms))
    return tuple(made)


def _never(argument: str, terms: Terms) -> Strategy:  # noqa: ARG001 - one form for the table
    _no_argument("never", argument)
    return Strategy("never", _hold, gated=True)


def _every(argument: str, terms: Terms) -> Strategy:
    if not argument.isdecimal() or not 1 <= int(argument) <= 10_000:
        raise HomeostatError(
            f"'every:{argument}' does not say after how many steps to retrain.",
            hint="Write every:4 to retrain at every fourth step.",
        )
    policy = _Every(terms.start, int(argument) * terms.every)
    return Strategy(f"every:{int(argument)}", policy, gated=False)


def _homeostat(argument: str, terms: Terms) -> Strategy:
    _no_argument("homeostat", argument)
    return Strategy("homeostat", decide.policy(terms.decide), gated=True)


POLICIES: Mapping[str, Callable[[str, Terms], Strategy]] = {
    "never": _never,
    "every": _every,
    "homeostat": _homeostat,
}


def _hold(evidence: Evidence, past: Past, now: datetime) -> Decision:  # noqa: ARG001 - a Policy
    return Decision(Action.HOLD, "never", "This policy never retrains.")


@dataclass(frozen=True, slots=True)
class _Every:
    """Retrains on a schedule, whatever the window shows."""

    start: datetime
    length: timedelta

    def __call__(self, evidence: Evidence, past: Past, now: datetime) -> Decision:  # noqa: ARG002 - a Policy
        due = (past.last_training or self.start) + self.length
        if now < due:
            return Decision(Action.HOLD, "schedule", f"The next training is due on {due}.")
        return Decision(Action.RETRAIN, "schedule", "The schedule says so.")


def _no_argument(name: str, argument: str) -> None:
    if argument:
        raise HomeostatError(f"the policy {name!r} takes no {argument!r}.", hint=f"Write {name}.")
