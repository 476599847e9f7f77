"""Parts: what each fragment of the page is filled with.

Takes a `View` and what was asked. Gives the values of the template of the same name; None where
there is nothing of that name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from homeostat.settings import Monitor, Settings
from homeostat.wall import data, story
from homeostat.wall.board import Board, View
from homeostat.wall.ledger import Look, Turn
from homeostat.wall.sessions import Session
from homeostat.wall.story import Around

LOOKS = 60  # rows of the table of looks
TURNS = 25  # decisions on one page
DRIFTED = 60  # columns whose names a decision lists

Asked = Mapping[str, str]


def top(view: View, around: Around) -> dict[str, Any]:
    """How things stand, what was done last, and what comes next."""
    return {
        "story": story.story(view, around),
        "turn": view.last,
        "doing": around.doing,
        "training": story.next_training(view, around),
        "problems": view.problems,
        "orders": view.orders,
        "refused": _refused(view),
    }


def _refused(view: View) -> Turn | None:
    """The last order, if it is the newest of all and was not carried out."""
    turn = view.turns[-1] if view.turns else None
    return turn if turn is not None and turn.action == "order_refused" else None


def looks(view: View, asked: Asked) -> dict[str, Any]:
    """A page of the looks, newest first, as the table beside the chart."""
    newest = [look for look in reversed(view.looks) if look.figures]
    page, pages = _page(asked, len(newest), LOOKS)
    metric = str((newest[0].figures or {}).get("metric", "")) if newest else ""
    return {
        "looks": newest[page * LOOKS : (page + 1) * LOOKS],
        "metric": metric.replace("_", " "),
        "figures": data.FIGURES,
        "page": page,
        "pages": pages,
    }


def drift(view: View) -> dict[str, Any]:
    """The columns, first those that matter most to the model."""
    rows = story.columns(view)
    return {
        "columns": rows,
        "drifted": sum(bool(row["drifted"]) for row in rows),
        "weighed": bool(view.shapes.get("importance")),
        "looks": len(view.looks),
        "together": view.status.get("joint_drift"),
        "alarms": view.status.get("false_alarms_per_year"),
        "window": view.status.get("window"),
        "segments": [one for one in view.status.get("segments", ()) if one.get("furthest")],
    }


def column(board: Board, asked: Asked, rules: Monitor) -> dict[str, Any] | None:
    """One column in the last look, and in the look that was chosen in the heat map."""
    view = board.view
    name = asked.get("name", "")
    if asked.get("place", "").isdecimal():
        place = int(asked["place"])
        name = view.names[place] if place < len(view.names) else ""
    if name not in view.names and name not in view.features:
        return None
    chosen = _chosen(view, asked)
    shapes = board.shapes(chosen) if chosen else {}
    own = bool(shapes)  # whether the look that was chosen is drawn, and not the newest
    shapes = shapes or view.shapes
    shape = data.shape(shapes, name)
    return {
        "name": name,
        "about": story.about(view, name, rules),
        "shape": shape,
        "drawn": json.dumps(shape) if shape else "",
        "window": shapes.get("window"),
        "own": own,
        "chosen": chosen,
        "numbers": _numbers(view, chosen, name) if chosen else None,
    }


def _chosen(view: View, asked: Asked) -> Look | None:
    place = asked.get("look", "")
    return view.looks[int(place)] if place.isdecimal() and int(place) < len(view.looks) else None


def _numbers(view: View, look: Look, name: str) -> tuple[float, float] | None:
    """Distance and threshold of a column in one look."""
    if name in view.names:
        found = (look.columns == view.names.index(name)).nonzero()[0]
        if len(found):
            distance, threshold = look.numbers[:, found[0]].tolist()
            return distance, threshold
    return None


def releases(view: View, visitor: Session) -> dict[str, Any]:
    """The line of champions and what waits, and what the visitor may ask for."""
    return {
        "releases": story.releases(view),
        "pinned": view.pinned,
        "admin": visitor.admin,
        "orders": view.orders,
    }


def decisions(view: View, asked: Asked) -> dict[str, Any]:
    """A page of the decisions that have all the words, newest first."""
    words = asked.get("q", "").casefold().split()[:10]
    found = [turn for turn in reversed(view.turns) if all(word in turn.text for word in words)]
    page, pages = _page(asked, len(found), TURNS)
    return {
        "turns": found[page * TURNS : (page + 1) * TURNS],
        "found": len(found),
        "of": len(view.turns),
        "query": asked.get("q", ""),
        "page": page,
        "pages": pages,
    }


def decision(board: Board, asked: Asked, settings: Settings) -> dict[str, Any] | None:
    """One decision with its evidence."""
    view = board.view
    seq = asked.get("seq", "")
    turn = next((turn for turn in view.turns if str(turn.seq) == seq), None)
    if turn is None:
        return None
    drifted: Sequence[str] = turn.look.drifted if turn.look else ()
    return {
        "turn": turn,
        "drifted": drifted[:DRIFTED],
        "more": max(0, len(drifted) - DRIFTED),
        "reported": turn.look is not None and board.report(turn.look) is not None,
        "tracking": settings.tracking.uri if settings.tracking.enabled else "",
        "experiment": settings.project.name,
        "fitted": bool(turn.spent),
    }


def asked(view: View, action: str, release: str) -> dict[str, Any]:
    """What a visitor is about to ask for."""
    return {"action": action, "release": release, "champion": view.champion}


def _page(asked: Asked, count: int, size: int) -> tuple[int, int]:
    """Which page is meant, and how many there are."""
    pages = max(1, -(-count // size))
    text = asked.get("page", "")
    return min(int(text) if text.isdecimal() and len(text) < 8 else 0, pages - 1), pages
