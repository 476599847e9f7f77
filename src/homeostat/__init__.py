"""Homeostat keeps a deployed tabular model fit, unattended, and can prove that it did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from homeostat.build import Project, load_project
    from homeostat.monitor.compare import DriftReport, compare
    from homeostat.predictor import Predictor
    from homeostat.profile import Profile
    from homeostat.replay import replay

__version__ = "0.1.0"
__all__ = [
    "DriftReport",
    "Predictor",
    "Profile",
    "Project",
    "__version__",
    "compare",
    "load_project",
    "replay",
]

_HOMES = {
    "DriftReport": "homeostat.monitor.compare",
    "Predictor": "homeostat.predictor",
    "Profile": "homeostat.profile",
    "Project": "homeostat.build",
    "compare": "homeostat.monitor.compare",
    "load_project": "homeostat.build",
    "replay": "homeostat.replay",
}


def __getattr__(name: str) -> Any:
    # Public names are imported when they are asked for: a server must not pay for the loop.
    from importlib import import_module

    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'homeostat' has no attribute {name!r}")
