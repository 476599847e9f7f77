"""The picture of a replay: each policy's metric by window, and each remedy where it was tried.

Takes lines with their marks. Writes a PNG of one panel for the metrics and one for what was done.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from homeostat.errors import HomeostatError
from homeostat.plot import FAINT, STYLE, can_draw
from homeostat.replay.track import Mark

SIGNS = {"retrain": "o", "recalibrate": "D", "roll_back": "<"}
SIZES = {"o": 6, "D": 4, "<": 7}
HARM = "#b91c1c"
COLORS = ("#2563a8", "#d97706", "#15803d", "#7c3aed", "#0891b2", "#a16207", "#db2777", "#4d7c0f")


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    values: Sequence[float | None]
    marks: Sequence[Mark]
    faded: bool


def draw(path: Path | str, starts: Sequence[datetime], lines: Sequence[Line], metric: str) -> None:
    """Write the PNG. Raises HomeostatError where Matplotlib is missing."""
    if not can_draw():
        raise HomeostatError("the picture needs Matplotlib.", hint="pip install 'homeostat[demo]'")
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with warnings.catch_warnings(), mpl.rc_context(STYLE):
        warnings.simplefilter("ignore")
        tall = 0.28 * len(lines) + 0.5
        figure = Figure(figsize=(11, 4.4 + tall), dpi=130, layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4.4, tall])
        for row, line in enumerate(lines):
            values = [math.nan if value is None else value for value in line.values]
            color = FAINT if line.faded else COLORS[row % len(COLORS)]
            style = "--" if line.faded else "-"
            upper.plot(_times(starts), values, label=line.name, color=color, lw=1.4, ls=style)
            _done(lower, row, line, color)
        upper.set_ylabel(f"{metric} by window")
        upper.set_title("The same rows under each policy", loc="left", fontsize=10)
        upper.legend(loc="best", frameon=False, fontsize=8)
        lower.set_yticks(range(len(lines)), [line.name for line in lines], fontsize=8)
        lower.set_ylim(len(lines) - 0.5, -0.5)
        lower.set_title(
            "What was done: circle retrain, diamond recalibration, triangle rollback; hollow: "
            "refused; red cross: did harm",
            loc="left",
            fontsize=8,
        )
        for axes in (upper, lower):
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, format="png", metadata={"Software": None})


def _done(axes: Any, row: int, line: Line, color: str) -> None:
    axes.axhline(row, color="#eef1f5", lw=1, zorder=0)
    for mark in line.marks:
        sign = SIGNS[mark.kind]
        inside = color if mark.promoted else "white"
        at, size = _times([mark.at]), SIZES[sign]
        axes.plot(at, [row], sign, ms=size, mfc=inside, mec=color, mew=1.1)
        if mark.harmful:
            axes.plot(at, [row], "x", ms=size + 6, mec=HARM, mew=1.8)


def _times(moments: Sequence[datetime]) -> Any:
    return np.asarray([moment.replace(tzinfo=None) for moment in moments], "datetime64[us]")
