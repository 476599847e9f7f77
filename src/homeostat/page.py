"""The monitor's own page: one HTML file without scripts, that loads nothing, for any screen.

Takes what `findings` gives. Gives bytes, the same for the same findings; Jinja2 escapes every name,
and signs that would turn or hide text are shown by their number.
"""

from __future__ import annotations

import base64
import hashlib
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib.resources import files as packaged
from typing import TYPE_CHECKING, Any

from homeostat.records import Shape

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATE = "monitor_report.html"
PICTURES = 24  # columns whose shape is drawn
HEAT = 30  # columns of the heat map
LONGEST = 80  # characters of a name or level that are shown
WIDE, HIGH = 288, 96  # of a shape's drawing, in its own units
JOINER = "\u200d"  # holds an emoji together


def page(found: Mapping[str, Any], *, picture: str, drift_report: str) -> bytes:
    """The HTML; `picture` tells of the PNG beside it, `drift_report` is the name of Evidently's."""
    shaped = [row for row in found["features"] if row["shape"] is not None and row["tested"]]
    strongest = max((row["impact"] or 0.0 for row in found["features"]), default=0.0)
    environment = _environment()
    text = environment.get_template(TEMPLATE).render(
        found,
        shaped=shaped[:PICTURES],
        heat_rows=found["heat"]["rows"][:HEAT],
        strongest=strongest,
        picture=picture,
        drift_report=drift_report,
        style=_style(),
        policy=_policy(_style()),
        wide=WIDE,
        high=HIGH,
    )
    return text.encode("utf-8", "replace")


def shown(text: str) -> str:
    """`text` on one line, cut to a bearable length, with no sign that is invisible or turns others.

    Control and format characters, and what stands for no character, become `‹U+202E›`; the joiner
    between emoji stays.
    """
    clean = "".join(
        f"‹U+{ord(sign):04X}›"
        if unicodedata.category(sign) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
        and sign != JOINER
        else sign
        for sign in text[: LONGEST + 1]
    )
    return clean if len(text) <= LONGEST else f"{clean[: LONGEST - 1]}…"


def sentence(text: str) -> str:
    """A sentence that may quote names: as `shown`, but as long as it is."""
    return "".join(shown(text[at : at + LONGEST]) for at in range(0, len(text), LONGEST))


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def area(shape: Shape, shares: Sequence[float], *, closed: bool) -> str:
    """The path of a histogram's outline in a drawing of `WIDE` by `HIGH`, its base at the foot."""
    top = max(*shape.reference, *shape.current, 1e-9)
    step = WIDE / len(shares)
    parts = [f"M0 {HIGH}"] if closed else []
    for place, share in enumerate(shares):
        y = HIGH - share / top * (HIGH - 4)
        start = "M" if not parts else "L"
        parts.append(f"{start}{place * step:.1f} {y:.1f}L{(place + 1) * step:.1f} {y:.1f}")
    return "".join(parts) + (f"L{WIDE} {HIGH}Z" if closed else "")


def described(shape: Shape) -> str:
    """Where reference and window differ most, in words, for those who do not see the drawing."""
    gaps = [abs(a - b) for a, b in zip(shape.reference, shape.current, strict=True)]
    place = gaps.index(max(gaps))
    return (
        f"They differ most at {shown(shape.labels[place])}: {shape.reference[place]:.1%} of the "
        f"reference, {shape.current[place]:.1%} of the window."
    )


def shade(ratio: float | None) -> str:
    """How opaque a cell of the heat map is: more with the distance, in units of the threshold."""
    return "0" if ratio is None else f"{min(1.0, 0.06 + 0.47 * ratio):.2f}"


def templates(read: Callable[[str], str]) -> Environment:
    """The templates that `read` gives by name; Jinja2 escapes every value, and an unknown one is an
    error. Filters are `shown`, `sentence` and `number`.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(read),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": shown, "sentence": sentence, "number": number}
    return environment


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = templates(_text)
    environment.filters |= {"described": described, "shade": shade}
    environment.globals["area"] = area
    return environment


def _text(name: str) -> str:
    return packaged("homeostat").joinpath("pages", name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _style() -> str:
    return _text("monitor_report.css")


def _policy(style: str) -> str:
    """Nothing is loaded, sent or run; only this very style sheet holds."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
