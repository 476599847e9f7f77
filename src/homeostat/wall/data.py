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
from homeostat.wall.board import View
from homeostat.wall.ledger import STEPS, UNTESTED, Look, ratios
from homeostat.wall.story import columns

FIGURES = ("realised", "estimated", "first_release", "baseline")
encode = msgspec.json.Encoder().encode


def milliseconds(text: str) -> int:
    """Since 1970, as a browser counts them."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def performance(view: View) -> bytes:
    """`metric`, `greater`, `looks` and `turns`.

    A look is its end, the end of the rows whose labels have come, the release, and [value, low,
    high] of each of `FIGURES`, or null; a turn its time, action, trigger, reason, outcome and line.
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
                turn.trigger,
                sentence(turn.reason),
                sentence(" ".join(text for _, text in turn.came)),
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


def heat(view: View) -> bytes:
    """`names` in the order of what matters to the model, `ends` of the looks, and `cells` in
    base64, row by row, in `steps` of the threshold (`untested`: nothing was told).

    `places` are those of the names in the ledger, `begins` the looks at which another release
    serves.
    """
    grid = ratios(view.looks, len(view.names))
    place = {name: row for row, name in enumerate(view.names)}
    ordered = [row["name"] for row in columns(view) if row["name"] in place]
    rows = np.array([place[name] for name in ordered], dtype=np.int64)
    cells = np.ascontiguousarray(grid[rows]) if len(rows) else grid
    served = [look.release for look in view.looks]
    told = {
        "names": [shown(name) for name in ordered],
        "places": rows.tolist(),
        "ends": [milliseconds(look.end) for look in view.looks],
        "states": [look.state for look in view.looks],
        "begins": [i for i in range(1, len(served)) if served[i] != served[i - 1]],
        "steps": STEPS,
        "untested": UNTESTED,
        "cells": base64.b64encode(cells.tobytes()).decode(),
    }
    return encode(told)


def shape(shapes: Mapping[str, Json], name: str) -> dict[str, Any]:
    """Reference and current of one column, drawn over each other; empty where there are none."""
    body = shapes.get("columns", {}).get(name)
    if not body:
        return {}
    return {**body, "labels": [shown(label) for label in body["labels"]]}
