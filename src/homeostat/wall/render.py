"""Templates: values become HTML, in which no name of a column, level or release can act.

Takes a template's name and values. Gives text; whatever is shown is escaped by Jinja2, and signs
that would turn or hide text are shown by their number.
"""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from functools import lru_cache
from importlib.resources import files as packaged
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from homeostat.page import sentence, shown, templates
from homeostat.wall import words
from homeostat.wall.story import interval

if TYPE_CHECKING:
    from jinja2 import Environment

ASSETS = {
    "echarts.min.js": "text/javascript",
    "htmx.min.js": "text/javascript",
    "page.js": "text/javascript",
    "performance.js": "text/javascript",
    "heat.js": "text/javascript",
    "shape.js": "text/javascript",
    "charts.js": "text/javascript",
    "theme.js": "text/javascript",
    "page.css": "text/css",
    "icon.svg": "image/svg+xml",
}
"""What the page loads, all of it from this package."""


def render(template: str, **values: Any) -> str:
    """The HTML of a template."""
    return _environment().get_template(template).render(values)


@lru_cache(maxsize=len(ASSETS))
def asset(name: str) -> bytes:
    """The bytes of one of `ASSETS`; raises KeyError for any other name."""
    if name not in ASSETS:
        raise KeyError(name)
    return packaged("homeostat").joinpath("wall", "static", name).read_bytes()


@lru_cache(maxsize=1)
def stamp() -> str:
    """What changes with the assets: a browser keeps each by it for as long as it likes."""
    return hashlib.sha256(b"".join(map(asset, ASSETS))).hexdigest()[:16]


def moment(text: str) -> Markup:
    """A time in UTC, which the page's script shows in the viewer's zone."""
    try:
        at = datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        return escape(shown(text))
    return Markup('<time datetime="{}">{}</time>').format(
        at.isoformat(), f"{at:%Y-%m-%d %H:%M} UTC"
    )


def timed(text: str) -> Markup:
    """A sentence in which times stand in braces, as `story` writes them."""
    parts = re.split(r"\{(\d{4}-[\d:.T+-]+)\}", text)
    return Markup("").join(
        moment(part) if place % 2 else escape(sentence(part)) for place, part in enumerate(parts)
    )


def figure(value: float | None) -> str:
    """A number of any kind: whole ones in full, others to four digits."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.4g}"


def seconds(value: float | None) -> str:
    """A length of time for people."""
    if value is None:
        return "–"
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min"


def duration(value: float | None) -> str:
    """A latency."""
    if value is None:
        return "–"
    if value == float("inf"):
        return "> 10 s"
    return f"≤ {value * 1000:g} ms" if value < 1 else f"≤ {value:g} s"


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = templates(_text)
    environment.filters |= {
        "figure": figure,
        "moment": moment,
        "timed": timed,
        "seconds": seconds,
        "duration": duration,
        "interval": interval,
        "action": words.action,
        "trigger": words.trigger,
        "outcome": words.outcome,
    }
    return environment


def _text(name: str) -> str:
    return packaged("homeostat").joinpath("wall", "templates", name).read_text(encoding="utf-8")
