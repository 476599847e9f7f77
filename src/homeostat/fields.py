"""Fields: how lengths of time, shares, and what may be unset are written in settings.

Takes what stands in TOML, in a variable or in a call. Gives the value, or raises ValueError with
what it should have been; of all that is wrong, one line.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
)


class Section(BaseModel):
    """A section of the settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def _duration(value: Any) -> Any:
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhdw])\s*", value)
        if match is None:
            raise ValueError("must be a number and one of s, m, h, d, w, for example '7d'")
        try:
            return timedelta(seconds=float(match[1]) * _UNITS[match[2]])
        except OverflowError:
            raise ValueError("is too long; 10000w is long enough for ever") from None
    return value


def _short(value: timedelta) -> str:
    seconds = value.total_seconds()
    for unit in ("d", "h", "m"):
        if seconds and seconds % _UNITS[unit] == 0:
            return f"{int(seconds // _UNITS[unit])}{unit}"
    return f"{seconds:.6f}".rstrip("0").rstrip(".") + "s"


Duration = Annotated[timedelta, BeforeValidator(_duration), PlainSerializer(_short)]
Share = Annotated[float, Field(ge=0, le=1)]


def lifted(value: Any) -> Any:
    """None for the text "none": TOML has no null."""
    return None if value == "none" else value


def explained(error: ValidationError) -> str:
    """What is wrong with each field. The input is left out: it may be a secret."""
    lines = []
    for problem in error.errors(include_input=False, include_url=False):
        name = ".".join(map(str, problem["loc"])) or "settings"
        lines.append(f"{name}: {problem['msg']}")
    return "; ".join(lines) + "."
