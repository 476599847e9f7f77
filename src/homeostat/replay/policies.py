"""The policies that a replay can compare, each a value in one table.

Takes a policy's name as it is written on the command line and the project's rule of decisions.
Gives a `Strategy`: a plain schedule over models that are fitted once for all, or the rule by which
the loop itself decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from pydantic import ValidationError

from homeostat.errors import HomeostatError
from homeostat.settings import Decide

WAYS = (
    "never, every:K and every:K+recalibrate (K steps), evidently, homeostat (or "
    "homeostat:NAME=VALUE+NAME=VALUE, names of the settings' section decide), oracle (or oracle:N, "
    "N retrains)"
)
RECALIBRATE = "recalibrate"


@dataclass(frozen=True, slots=True)
class Never:
    """Keeps the first model."""

    name: str = "never"


@dataclass(frozen=True, slots=True)
class Every:
    """Retrains at each K-th step on all mature rows, without a gate."""

    name: str
    steps: int
    recalibrate: bool = False  # a map before each window, of the windows that were known by then


@dataclass(frozen=True, slots=True)
class Evidently:
    """Retrains, without a gate, whenever Evidently calls the data set drifted."""

    name: str = "evidently"


@dataclass(frozen=True, slots=True)
class Ours:
    """The loop itself, by this rule."""

    name: str
    rule: Decide


@dataclass(frozen=True, slots=True)
class Oracle:
    """The best schedule in hindsight; None: with as many retrains as `homeostat` makes."""

    name: str
    retrains: int | None = None


Strategy: TypeAlias = Never | Every | Evidently | Ours | Oracle
BASELINES = Never(), Every("every:1", 1)
"""What every policy is measured against: no gain at all, and that of retraining at each step."""


def strategies(names: tuple[str, ...], rule: Decide) -> tuple[Strategy, ...]:
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
        made.append(POLICIES[kind](argument, rule))
    return tuple(made)


def _never(argument: str, rule: Decide) -> Strategy:  # noqa: ARG001 - one form for the table
    _no_argument("never", argument)
    return Never()


def _every(argument: str, rule: Decide) -> Strategy:  # noqa: ARG001 - as above
    count, plus, remedy = argument.partition("+")
    if not count.isdecimal() or not 1 <= int(count) <= 10_000:
        raise HomeostatError(
            f"'every:{argument}' does not say after how many steps to retrain.",
            hint="Write every:4 to retrain at every fourth step.",
        )
    if plus and remedy != RECALIBRATE:
        raise HomeostatError(f"'every:{argument}' adds {remedy!r}.", hint=f"Add +{RECALIBRATE}.")
    return Every(f"every:{int(count)}{plus}{remedy}", int(count), bool(plus))


def _evidently(argument: str, rule: Decide) -> Strategy:  # noqa: ARG001 - as above
    _no_argument("evidently", argument)
    return Evidently()


def _homeostat(argument: str, rule: Decide) -> Strategy:
    if not argument:
        return Ours("homeostat", rule)
    given = dict(part.partition("=")[::2] for part in argument.split("+"))
    try:
        rule = Decide.model_validate({**rule.model_dump(), **given})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise HomeostatError(
            f"'homeostat:{argument}' is no rule: {field}: {first['msg']}.",
            hint="Write homeostat:growth=0.2+cooldown=14d, with names of the section decide.",
        ) from None
    return Ours(f"homeostat:{argument}", rule.model_copy(update={"mode": "auto"}))


def _oracle(argument: str, rule: Decide) -> Strategy:  # noqa: ARG001 - as above
    if argument and not argument.isdecimal():
        raise HomeostatError(
            f"'oracle:{argument}' does not say how often it may retrain.",
            hint="Write oracle:5, or oracle for as many retrains as homeostat makes.",
        )
    return Oracle(f"oracle:{int(argument)}", int(argument)) if argument else Oracle("oracle")


POLICIES: Mapping[str, Callable[[str, Decide], Strategy]] = {
    "never": _never,
    "every": _every,
    "evidently": _evidently,
    "homeostat": _homeostat,
    "oracle": _oracle,
}


def _no_argument(name: str, argument: str) -> None:
    if argument:
        raise HomeostatError(f"the policy {name!r} takes no {argument!r}.", hint=f"Write {name}.")
