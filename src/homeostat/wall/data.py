"""Data: what the page's charts are drawn from, in compact arrays.

Takes a `View`. Gives JSON: the performance by look with every decision, and the heat map of all
columns by all looks as one byte a cell.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
import numpy as np

from homeostat.page import sentence, shown
from homeostat.records import Json
from homeostat.wall import story, words
from homeostat.wall.board import View
from homeostat.wall.ledger import BROKEN, STEPS, UNTESTED, Look, ratios

FIGURES = ("realised", "estimated", "first_release", "baseline")
encode = msgspec.json.Encoder().encode


def milliseconds(text: str) -> int:
    """Since 1970, as a browser counts them."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def performance(view: View) -> bytes:
    """`metric`, `greater`, `looks` and `turns`.

    A look is its end, the end of the rows whose labels have come, the release, and [value, low,
    high] of each of `FIGURES`, or null; a turn its time, action, that and its trigger in words,
    reason, outcome and line.
    """
    looks = [look for look in view.looks if look.figures]
    last = looks[-1].figures if looks else None
    told: dict[str, Any] = {
        "metric": str((last or {}).get("metric", "")).replace("_", " "),
        "greater": bool((last or {}).get("greater_is_better", False)),
        "figures": FIGURES,
        "looks": [_figures(look) for look in looks],
        "turns": [
            [
                milliseconds(turn.look.end if turn.look else turn.at),
                turn.action,
                shown(f"{words.action(turn)} ({words.trigger(turn)})"),
                sentence(turn.reason),
                sentence(words.outcome(turn)),
                turn.seq,
            ]
            for turn in view.turns
        ],
    }
    return encode(told)


def _figures(look: Look) -> list[Any]:
    told = look.figures or {}
    lag = float(told.get("lag_days") or 0.0) * 86_400_000
    end = milliseconds(look.end)
    return [end, round(end - lag), look.release[:12], *(_three(told.get(name)) for name in FIGURES)]


def _three(told: Sequence[float | None] | None) -> Sequence[float | None] | None:
    return list(told[:3]) if told else None


def known(view: View) -> tuple[str, ...]:
    """Every column that was ever compared, or that the last look tells of, by its place."""
    drawn = view.shapes.get("columns", {})
    return tuple(dict.fromkeys([*view.names, *view.features, *drawn]))


def columns(view: View) -> list[dict[str, Any]]:
    """The columns of the last look, first those that are broken, then by what matters most to the
    model.
    """
    broken = {
        name
        for name, told in view.features.items()
        if any(item["severity"] == "block" for item in told.get("quality", ()))
    }
    place = {name: at for at, name in enumerate(known(view))}
    rows = [
        {**row, "broken": row["name"] in broken, "place": place[row["name"]]}
        for row in story.columns(view)
    ]
    return sorted(rows, key=lambda row: not row["broken"])


def heat(view: View) -> bytes:
    """`names` in the order of `columns`, `ends` of the looks, and `cells` in base64, row by row, in
    `steps` of the threshold (`untested`: nothing was told; `broken`: the last look found it so).

    `places` are those in `known`, `looks` the numbers of the looks' lines, `begins` the looks at
    which another release serves.
    """
    rows, names, looks = columns(view), known(view), len(view.looks)
    grid = ratios(view.looks, names)
    places = np.array([row["place"] for row in rows], dtype=np.int64)
    cells = grid[places] if looks else grid[:0]
    last = _last(view)
    if last is not None:
        cells[[at for at, row in enumerate(rows) if row["broken"]], last] = BROKEN
    compared = [at for at in range(len(cells)) if (cells[at] != UNTESTED).any()]
    cells, rows = np.ascontiguousarray(cells[compared]), [rows[at] for at in compared]
    served = [look.release for look in view.looks]
    told = {
        "names": [shown(row["name"]) for row in rows],
        "places": [row["place"] for row in rows],
        "looks": [look.seq for look in view.looks],
        "ends": [milliseconds(look.end) for look in view.looks],
        "states": [look.state for look in view.looks],
        "begins": [i for i in range(1, len(served)) if served[i] != served[i - 1]],
        "steps": STEPS,
        "untested": UNTESTED,
        "broken": BROKEN,
        "cells": base64.b64encode(cells.tobytes()).decode(),
    }
    return encode(told)


def _last(view: View) -> int | None:
    """The place of the look that the status tells of; None where the chain has no such look."""
    window, release = view.status.get("window", {}), view.status.get("reference", {})
    for place in reversed(range(len(view.looks))):
        look = view.looks[place]
        if look.end == window.get("end") and release.get("release", look.release) == look.release:
            return place
    return None


def shape(shapes: Mapping[str, Json], name: str) -> dict[str, Any]:
    """Reference and current of one column, drawn over each other; empty where there are none."""
    body = shapes.get("columns", {}).get(name)
    if not body:
        return {}
    return {**body, "labels": [shown(label) for label in body["labels"]]}
