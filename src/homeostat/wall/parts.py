"""Parts: what each fragment of the page is filled with.

Takes a `View` and what was asked. Gives the values of the template of the same name; None where
there is nothing of that name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from homeostat.settings import Monitor, Settings
from homeostat.wall import data, story, tracked, words
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
    """What is quarantined, and the columns, first those that are broken or matter most."""
    rows = data.columns(view)
    return {
        "columns": rows,
        "drifted": sum(bool(row["drifted"]) for row in rows),
        "broken": sum(row["broken"] for row in rows),
        "quarantined": view.status.get("quarantined", ()),
        "weighed": bool(view.shapes.get("importance")),
        "together": view.status.get("joint_drift"),
        "alarms": view.status.get("false_alarms_per_year"),
        "window": view.status.get("window"),
        "segments": [one for one in view.status.get("segments", ()) if one.get("furthest")],
    }


def column(board: Board, asked: Asked, rules: Monitor) -> dict[str, Any] | None:
    """One column in the last look, and in the look that was chosen in the heat map."""
    view = board.view
    name = asked.get("name", "")
    known = data.known(view)
    if asked.get("place", "").isdecimal():
        place = int(asked["place"])
        name = known[place] if place < len(known) else ""
    if name not in known:
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
        "newest": view.status.get("window"),
        "chosen": chosen,
        "drifted": chosen is not None and name in chosen.drifted,
        "bounded": rules.detector != "evidently",  # no distance is above 1
        "numbers": _numbers(view, chosen, name) if chosen else None,
    }


def _chosen(view: View, asked: Asked) -> Look | None:
    """By the number of its line: its place shifts when a look comes in between."""
    seq = asked.get("look", "")
    return next((look for look in view.looks if str(look.seq) == seq), None)


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
    }


def decisions(view: View, asked: Asked) -> dict[str, Any]:
    """A page of the decisions that have all the words, newest first.

    Pages after the first are counted from the line `until`, so that none shifts when a decision
    comes while someone reads.
    """
    sought = asked.get("q", "").casefold().split()[:10]
    found = [turn for turn in reversed(view.turns) if _has(turn, sought)]
    first = asked.get("page", "") in ("", "0")
    newest = view.turns[-1].seq if view.turns else 0
    until = asked.get("until", "")
    last = int(until) if until.isdecimal() and len(until) < 12 and not first else newest
    held = [turn for turn in found if turn.seq <= last]
    page, pages = _page(asked, len(held), TURNS)
    return {
        "turns": held[page * TURNS : (page + 1) * TURNS],
        "found": len(found),
        "of": len(view.turns),
        "query": asked.get("q", ""),
        "page": page,
        "pages": pages,
        "until": last,
        "new": len(found) - len(held),
        "newest": newest,
    }


def _has(turn: Turn, sought: Sequence[str]) -> bool:
    text = f"{turn.text} {words.action(turn)} {words.trigger(turn)}"
    return all(word in text for word in sought)


def decision(
    board: Board, asked: Asked, settings: Settings, visitor: Session
) -> dict[str, Any] | None:
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
        "store": tracked.store(settings.tracking, admin=visitor.admin),
        "experiment": settings.project.name,
        "tracked": settings.tracking.enabled and tracked.has_run(turn),
        "newest": turn is view.turns[-1],
    }


def asked(view: View, action: str, release: str) -> dict[str, Any]:
    """What a visitor is about to ask for."""
    return {"action": action, "release": release, "champion": view.champion}


def _page(asked: Asked, count: int, size: int) -> tuple[int, int]:
    """Which page is meant, and how many there are."""
    pages = max(1, -(-count // size))
    text = asked.get("page", "")
    return min(int(text) if text.isdecimal() and len(text) < 8 else 0, pages - 1), pages
