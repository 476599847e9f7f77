"""The story: how the model is, in a word and a sentence, with the numbers behind it.

Takes a `View` and what holds beside the files: what the loop does, who answers, the time. Gives a
`Story` for the top of the page, the sentences about one column, and the rows of the releases; pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from homeostat.findings import ranked
from homeostat.records import Json, Shape
from homeostat.settings import Monitor, Settings
from homeostat.wall.board import View
from homeostat.wall.ledger import Look
from homeostat.wall.traffic import Server, down
from homeostat.wall.turns import Doing


@dataclass(frozen=True, slots=True)
class Around:
    """What holds beside the files of the project."""

    doing: Doing
    servers: Sequence[Server]
    now: datetime
    rules: Settings


@dataclass(frozen=True, slots=True)
class Story:
    """How things stand."""

    word: str  # a key of `WORDS`: what the page's mark shows
    title: str
    parts: tuple[str, ...]  # sentences; times in them are written as {ISO 8601} in braces


WORDS = {
    "well": "The model is well",
    "calm": "Nothing drifted; whether it hurts is not known",
    "drift": "The data drifted",
    "hurt": "The model is not well",
    "call": "A human is needed",
    "down": "No server answers",
    "stuck": "The loop cannot step",
    "late": "Nobody has looked for a while",
    "wait": "A release waits for approval",
    "unknown": "How the model is cannot be told",
    "none": "There is no model yet",
}
LATE = 3
"""So many steps' time after a look the next one is missing: a step may be long, or fail once."""


def story(view: View, around: Around) -> Story:
    """How the champion is, as far as the last look tells; whatever keeps that from being known or
    true comes first.
    """
    word = _word(view, around)
    return Story(word, WORDS[word], tuple(_sentences(view)))


def _word(view: View, around: Around) -> str:
    last, turn = _newest(view), view.last
    if view.problems:
        return "unknown"
    if not view.champion:
        return "none"
    if down(around.servers):
        return "down"
    if around.doing.problem:
        return "stuck"
    if last is None:
        return "unknown"
    called = turn is not None and turn.action == "stop_and_call"
    found = {
        "call": called or last.state == "broken_data",
        "late": late(view, around),
        "unknown": last.state in ("failed", "insufficient_data"),
        "hurt": last.hurts == "yes",
        "wait": bool(view.waiting),
        "drift": last.state == "drift",
        "well": last.hurts == "no",
    }
    return next((word for word, is_so in found.items() if is_so), "calm")


def late(view: View, around: Around) -> bool:
    """Whether the next look should have come."""
    last, every = _newest(view), around.rules.run.every
    return last is not None and around.now - datetime.fromisoformat(last.at) > LATE * every


def next_training(view: View, around: Around) -> str:
    """When the loop may train of its own accord, where that is not yet; empty otherwise."""
    if view.pinned is not None:
        return "Nothing is trained while the champion is pinned."
    if not view.trained:
        return ""
    cool = datetime.fromisoformat(view.trained) + around.rules.decide.cooldown
    if cool <= around.now:
        return ""
    return f"It trains of its own accord from {{{cool.isoformat()}}} on (decide.cooldown)."


def _newest(view: View) -> Look | None:
    return max(view.looks, key=lambda look: look.seq, default=None)


def _sentences(view: View) -> Iterator[str]:
    if not view.champion:
        if not view.problems:
            yield "Run `homeostat train` for the first release."
        return
    since = next((move.at for move in reversed(view.moves)), None)
    held = f", pinned by {view.pinned}" if view.pinned is not None else ""
    when = f" since {{{since}}}" if since else ""
    yield f"Release {view.champion[:12]} serves{when}{held}."
    last = _newest(view)
    if last is None:
        yield "Nothing was looked at yet."
        return
    yield f"The last look, {{{last.at}}}: {last.reason}"
    yield _hurt(last)
    if view.unearned:
        yield f"What the gate promotes waits for approval. {view.unearned}"


def _hurt(last: Look) -> str:
    words = {
        "yes": "It hurts",
        "no": "It does not hurt",
        "unknown": "Whether it hurts is not known",
    }
    told = last.figures or {}
    figures = [
        f"{name.replace('_', ' ')} {interval(told[name])}"
        for name in ("realised", "estimated", "baseline", "first_release")
        if told.get(name)
    ]
    metric = str(told.get("metric", "")).replace("_", " ")
    return (
        f"{words[last.hurts]}: {metric} {', '.join(figures)}."
        if figures
        else words[last.hurts] + "."
    )


def interval(told: Sequence[float | None]) -> str:
    value, low, high = told[:3]
    if low is None or high is None:
        return f"{value:.4g}"
    return f"{value:.4g} ({low:.4g} to {high:.4g})"


# --- columns ---


def columns(view: View) -> list[dict[str, Any]]:
    """The columns of the last look, those that matter most to the model first, then all others that
    were ever looked at.
    """
    shapes = [
        Shape(name, tuple(body["labels"]), tuple(body["reference"]), tuple(body["current"]))
        for name, body in view.shapes.get("columns", {}).items()
    ]
    told = view.features
    rows = ranked(told, shapes, view.shapes.get("importance", {})) if told or shapes else []
    known = {row["name"] for row in rows}
    rest = [name for name in view.names if name not in known]
    return rows + [
        {"name": name, "tested": False, "drifted": False, "ratio": None} for name in rest
    ]


def about(view: View, name: str, rules: Monitor) -> list[str]:
    """What is to be said of one column in the last look: numbers, threshold and its origin, nulls
    and unseen levels.
    """
    body = view.features.get(name, {})
    found = [item["message"] for item in body.get("quality", ())]
    if body.get("distance") is None or body.get("threshold") is None:
        return [*found, "It was not compared in the last look."]
    verdict = "It drifted" if body["drifted"] else "It did not drift"
    if body["threshold"] >= 1 and rules.detector != "evidently":
        verdict = (
            "No drift of this column can be found: the reference is too short, and no distance is "
            "above 1"
        )
    return [
        f"{verdict}: distance {body['distance']:.4g}, threshold {body['threshold']:.4g} "
        f"({body['test']}).",
        _origin(body, rules),
        *_importance(view, name),
        *found,
        *_nulls(view, name),
    ]


def _origin(body: Mapping[str, Json], rules: Monitor) -> str:
    if rules.detector == "evidently":
        return "Evidently decides here (monitor.detector); its threshold is its own."
    if body["threshold"] <= rules.min_effect:
        return (
            f"The threshold is the minimum effect, {rules.min_effect:g} (monitor.min_effect): what "
            "this stream does by chance alone stays below it."
        )
    chance = f"the distance that chance passes in at most {100 * rules.alpha:.3g} % of such windows"
    if body.get("windows"):
        return (
            f"The threshold is {chance}, all columns together (monitor.alpha), measured on this "
            f"stream's own variation: {body['windows']} stretches of the reference as long as this."
        )
    return (
        f"The threshold is {chance} if rows were independent of one another: the reference is too "
        "short to measure how this stream varies."
    )


def _importance(view: View, name: str) -> Iterator[str]:
    weight = view.shapes.get("importance", {}).get(name)
    if weight is not None:
        yield f"Shuffling it would add {max(0.0, weight):.3g} to the model's loss."


def _nulls(view: View, name: str) -> Iterator[str]:
    shape = view.shapes.get("columns", {}).get(name)
    if not shape:
        return
    places = {label: place for place, label in enumerate(shape["labels"])}
    for label, what in (("null", "Nulls"), ("all others", "Rare and unseen levels")):
        if label in places:
            before, after = (shape[side][places[label]] for side in ("reference", "current"))
            yield f"{what}: {before:.2%} of the reference, {after:.2%} of the window."


# --- releases ---


def releases(view: View) -> list[dict[str, Any]]:
    """The releases that wait, then those that served, newest first, each with what a row shows."""
    waiting = {each.release: each for each in view.waiting}
    served: dict[str, Any] = {}
    for move in view.moves:
        served.pop(move.release, None)
        served[move.release] = move
    line = view.line
    order = [*waiting, *reversed(served)]
    return [
        {
            "id": name,
            "state": "waits" if name in waiting else "serves" if name == view.champion else "",
            "since": waiting[name].since.isoformat() if name in waiting else served[name].at,
            "by": "" if name in waiting else served[name].by,
            "back": name in line[1:],
            "seconds": view.seconds.get(name),
            "manifest": view.releases[name].manifest if name in view.releases else None,
        }
        for name in dict.fromkeys(order)
    ]
