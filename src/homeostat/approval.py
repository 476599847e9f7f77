"""Approval: candidates that the gate promotes and that wait for a human, under the mode `approve`.

Takes the audit chain's lines. Gives what waits, and refuses what may not be released; the loop
stores and promotes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from homeostat.errors import ReleaseError
from homeostat.past import MOVES
from homeostat.records import Json, Release

WAITING = "waiting"
"""The kind of line in the audit chain that says that a release waits."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A stored release that waits for `homeostat approve`."""

    release: str
    kind: str  # retrain or recalibrate
    since: datetime  # UTC
    reason: str  # the gate's sentence


def waiting(lines: Sequence[Mapping[str, Json]]) -> tuple[Waiting, ...]:
    """What waits, oldest first; what challenged another release than what serves is void."""
    found: list[Waiting] = []
    for line in lines:
        body = line["body"]
        if line["kind"] in MOVES:
            found.clear()
        elif line["kind"] == WAITING:
            since = datetime.fromisoformat(line["at"])
            found.append(Waiting(body["release"], body["kind"], since, body["reason"]))
    return tuple(found)


def check(release: Release, lines: Sequence[Mapping[str, Json]]) -> None:
    """Raise ReleaseError for a release that the gate refused or that does not wait."""
    verdict = release.manifest["gate"]
    if verdict is None or not verdict["promote"]:
        why = verdict["reason"] if verdict else "It was never judged."
        raise ReleaseError(f"the gate did not promote release {release.short}: {why}")
    if release.id not in {each.release for each in waiting(lines)}:
        raise ReleaseError(
            f"release {release.short} does not wait for approval.",
            hint="See homeostat status; what challenged an earlier champion is void.",
        )
