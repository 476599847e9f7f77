"""The forms of the loop's files, as far as the page reads them.

Takes the content of a file. Raises HomeostatError for one of another form, so that a foreign or
broken file is told of in one place and no part of the page falls over it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from homeostat.errors import HomeostatError
from homeostat.records import Json
from homeostat.report import SHAPES, STATUS


class _Form(BaseModel):
    """Other fields may stand beside those that are named."""

    model_config = ConfigDict(extra="allow", frozen=True)


class _Feature(_Form):
    distance: float | None = None
    threshold: float | None = None
    drifted: bool = False
    windows: int | None = None
    quality: list[dict[str, Any]] = []


class _Status(_Form):
    features: dict[str, _Feature] = {}
    window: dict[str, Any] = {}
    segments: list[dict[str, Any]] = []
    quarantined: list[dict[str, Any]] = []
    joint_drift: dict[str, Any] | None = None


class _Shape(_Form):
    labels: list[str]
    reference: list[float]
    current: list[float]


class _Shapes(_Form):
    columns: dict[str, _Shape] = {}
    importance: dict[str, float] = {}
    window: dict[str, Any] = {}


FORMS: Final[Mapping[str, type[_Form]]] = {STATUS: _Status, SHAPES: _Shapes}


def check(name: str, content: Mapping[str, Json]) -> None:
    """Raise HomeostatError where the file of this name is not as the loop writes it."""
    try:
        FORMS[name].model_validate(content)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"][:2]))
        raise HomeostatError(f"{name} is not as the loop writes it, at {where!r}.") from None
