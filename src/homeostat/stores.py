"""The stores that the loop's parts work with, handed on together.

Takes nothing and does nothing: one frozen value, so that each part says what it needs.
"""

from __future__ import annotations

from dataclasses import dataclass

from homeostat.contracts import Audit, Journal, Releases, Trainer
from homeostat.settings import Settings


@dataclass(frozen=True)
class Stores:
    """The rules of one project, its stores, and its code."""

    settings: Settings
    journal: Journal
    releases: Releases
    audit: Audit
    trainer: Trainer
