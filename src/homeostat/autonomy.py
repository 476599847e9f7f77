"""Autonomy: whether `homeostat run` may release on its own, which a replay has to have earned.

Takes settings and the audit chain's lines. Gives the settings that hold until a replay of the
project's own rules has won, and why; and the body of the line that keeps what a replay came to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from homeostat.audit import canonical, jsonable
from homeostat.records import Json
from homeostat.settings import Settings

REPLAYED = "replayed"
"""The kind of line in the audit chain that keeps what a replay of the project's rules came to."""

LEAST = 10
"""Windows of a replay that earns anything, as of a reference that calibrates."""

_APART: Mapping[str, frozenset[str]] = {
    "labels": frozenset(),
    "monitor": frozenset({"segments", "timeout", "sample", "staleness"}),
    "training": frozenset({"script", "timeout", "memory", "threads"}),
    "gate": frozenset(),
    "decide": frozenset({"mode", "proof"}),
}
"""The sections that make the rules, and their fields that no decision depends on."""


def rules(settings: Settings) -> str:
    """A fingerprint of all that decides what is trained and released: SHA-256 as hex digits."""
    told = {
        name: getattr(settings, name).model_dump(mode="json", exclude=apart)
        for name, apart in _APART.items()
    }
    told["project"] = {"target": settings.project.target, "task": settings.project.task}
    return hashlib.sha256(canonical(jsonable(told))).hexdigest()


def told(
    settings: Settings, *, every: timedelta, windows: int, won: bool, reason: str
) -> dict[str, Json]:
    """The body of a line of kind `REPLAYED`."""
    if won and windows < LEAST:
        won, reason = False, f"{reason} But {windows} windows are fewer than {LEAST}."
    return {
        "rules": rules(settings),
        "every": every.total_seconds(),
        "windows": windows,
        "won": won,
        "reason": reason,
    }


def unearned(settings: Settings, lines: Sequence[Mapping[str, Json]]) -> str:
    """Why `decide.mode = auto` does not hold in `homeostat run`, as a sentence; empty where it
    does, and in every other mode. Of several replays of the present rules the newest counts.
    """
    if settings.decide.mode != "auto" or settings.decide.proof == "none":
        return ""
    found = [line for line in lines if line["kind"] == REPLAYED]
    mark = rules(settings)
    newest = next((line for line in reversed(found) if line["body"]["rules"] == mark), None)
    if newest is not None and newest["body"]["won"] is True:
        return ""
    if newest is not None:
        day = datetime.fromisoformat(newest["at"])
        why = f"the replay of {day:%Y-%m-%d} did not: {newest['body']['reason']}"
    elif found:
        why = "these settings have not been replayed since they were changed."
    else:
        why = "no replay was made."
    return f"Acting alone has to be earned by a replay, and {why}"


def held(settings: Settings) -> Settings:
    """The settings with the mode `approve`."""
    decide = settings.decide.model_copy(update={"mode": "approve"})
    return settings.model_copy(update={"decide": decide})
