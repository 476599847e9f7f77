"""Tracked: where MLflow has the run of a turn, as far as a visitor may know.

Takes a turn and the settings of tracking. Gives whether there is a run, and the store's address
without what may be secret in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from homeostat.settings import Tracking
from homeostat.wall.ledger import Turn

WEB = frozenset({"http", "https"})
HOSTED = ("databricks", "uc")  # no `mlflow ui` opens these


@dataclass(frozen=True, slots=True)
class Store:
    """Where the runs are; all empty for who may not know."""

    link: str = ""  # of a server
    command: str = ""  # that shows a store without a server
    said: str = ""  # of neither


def has_run(turn: Turn) -> bool:
    """Whether the turn tracked a fit of its own.

    That of a first release, or a challenger that the gate judged. A map is tracked under the time
    of the model below it, and what could not be promoted not at all.
    """
    kinds = {kind for kind, _ in turn.came}
    return (turn.action in ("first", "adopted") or "gate" in kinds) and "not_promoted" not in kinds


def store(tracking: Tracking, *, admin: bool) -> Store:
    """The store's address; one that holds more than host and path is for an admin alone, and no one
    is shown its password or its query.
    """
    uri = tracking.uri
    try:
        parts = urlsplit(uri)
        bare = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    except ValueError:
        return Store()
    if parts.scheme and not parts.netloc and uri.startswith(f"{parts.scheme}://"):
        bare = uri.partition("?")[0].partition("#")[0]  # three or four strokes stay as they are
    if "@" in bare or (bare != uri and not admin):  # an address that is none may hide a password
        return Store()
    if parts.scheme in WEB:
        return Store(link=bare)
    if uri.partition(":")[0] in HOSTED:
        return Store(said=bare)
    return Store(command=f"mlflow ui --backend-store-uri {bare}")
