"""The monitor's report as one picture: the columns that matter, their drift over time, the loss.

Takes what `findings` gives, in the child in which Evidently draws too. Gives the bytes of a PNG,
the same for the same findings and version of matplotlib.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHAPES = 6  # columns whose distributions are drawn
HEAT = 16  # columns of the heat map
WIDE = 115  # signs of a line of the headline
LONGEST = 28  # characters of a name
INK, FAINT, BEFORE, AFTER = "#1b2430", "#5b6675", "#9db2c9", "#c2410c"
CALM, ALARM = (37, 99, 168), (198, 40, 40)  # red, green, blue
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so it is the same everywhere
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#d9dee5",
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "text.parse_math": False,  # a name may hold dollar signs
}


def can_draw() -> bool:
    """Whether matplotlib is installed; it comes with the extra `demo`."""
    return find_spec("matplotlib") is not None


def plot(found: Mapping[str, Any]) -> bytes:
    """The PNG, 1,200 pixels wide; `found` must hold at least one column with a shape."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    shaped = [row for row in found["features"] if row["tested"] and row["shape"] is not None]
    shaped, heat = shaped[:SHAPES], found["heat"]
    lines = (len(shaped) + 2) // 3
    tall = 0.24 * max(4, min(HEAT, len(heat["rows"]))) + 0.6
    with warnings.catch_warnings(), mpl.rc_context(STYLE):
        # A sign that the font lacks is drawn as a box, which is no reason to warn.
        warnings.simplefilter("ignore")
        layout, size = ConstrainedLayoutEngine(w_pad=0.12), (10, 1.1 + 1.75 * lines + tall)
        figure = Figure(figsize=size, dpi=120, layout=layout)
        figure.suptitle(_headline(found), fontsize=10, ha="left", x=0.01)
        parts: Any = figure.subfigures(2, 1, height_ratios=[1.75 * lines, tall])
        upper, lower = parts
        for axes, row in zip(upper.subplots(lines, 3, squeeze=False).flat, shaped, strict=False):
            _shape(axes, row)
        for axes in upper.axes[len(shaped) :]:
            axes.set_axis_off()
        upper.axes[0].legend(loc="upper left", frameon=False, fontsize=7)
        left, right = lower.subplots(1, 2, width_ratios=[3, 1])
        _heat(left, heat)
        _performance(right, found["performance"])
        out = io.BytesIO()
        figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _headline(found: Mapping[str, Any]) -> str:
    said = _plain(f"{found['title']}: {found['reason']}")
    said = textwrap.fill(said, WIDE, max_lines=2, placeholder=" …", break_on_hyphens=False)
    return f"{said}\nRelease {found['release']}, looked at on {found['created']} UTC"


def _shape(axes: Axes, row: Mapping[str, Any]) -> None:
    shape, places = row["shape"], range(len(row["shape"].labels))
    axes.bar(places, shape.reference, width=1.0, color=BEFORE, label="reference")
    steps = [*shape.current, shape.current[-1]]
    edges = [place - 0.5 for place in range(len(steps))]
    axes.step(edges, steps, where="post", color=AFTER, linewidth=1.3, label="window")
    axes.set_title(_cut(row["name"]), fontsize=9, loc="left")
    said = f"{row['distance']:.3g}{' drifted' if row['drifted'] else ''}"
    axes.set_title(said, fontsize=8, loc="right", color=AFTER if row["drifted"] else FAINT)
    axes.set_yticks([])
    ticks = sorted({0, len(places) // 2, len(places) - 1} if len(places) > 3 else set(places))
    axes.set_xticks(ticks, [_cut(shape.labels[tick], 18) for tick in ticks], fontsize=7)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _heat(axes: Axes, heat: Mapping[str, Any]) -> None:
    rows = heat["rows"][:HEAT]
    looks = len(heat["ends"])
    colours = [[_colour(ratio) for ratio in row["cells"]] for row in rows]
    axes.imshow(colours, aspect="auto", interpolation="nearest")
    axes.set_yticks(range(len(rows)), [_cut(row["name"], 26) for row in rows], fontsize=7)
    ticks = sorted({0, looks - 1} if looks < 4 else {0, looks // 2, looks - 1})
    axes.set_xticks(ticks, [heat["ends"][tick] for tick in ticks], fontsize=7)
    for place in heat["begins"]:
        axes.axvline(place - 0.5, color=INK, linewidth=1, linestyle="--")
    axes.set_title(
        "Drift over time (red: beyond the threshold; dashed: another release)",
        fontsize=9,
        loc="left",
    )
    axes.spines[:].set_visible(False)


def _performance(axes: Axes, performance: Mapping[str, Any] | None) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    if performance is None:
        axes.set_title("Performance: not known", fontsize=9, loc="left")
        axes.set_axis_off()
        return
    rows = performance["rows"]
    for place, row in enumerate(rows):
        if row["low"] is not None and row["high"] is not None:
            axes.plot([row["low"], row["high"]], [place, place], color=BEFORE, linewidth=5)
        axes.plot([row["value"]], [place], marker="o", color=AFTER, markersize=5)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.margins(x=0.2)
    axes.locator_params(axis="x", nbins=4)
    axes.set_title(f"{performance['metric']}, 95 % interval", fontsize=9, loc="left")


def _colour(ratio: float | None) -> tuple[float, float, float]:
    if ratio is None:
        return 0.95, 0.95, 0.95
    strength = min(1.0, 0.06 + 0.47 * ratio)
    red, green, blue = (1 - strength * (1 - part / 255) for part in (ALARM if ratio > 1 else CALM))
    return red, green, blue


def _cut(name: str, longest: int = LONGEST) -> str:
    text = _plain(name)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _plain(text: str) -> str:
    """One line of signs that can be printed; a title on two lines would push the drawing away."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)
