"""What all policies of a replay share, and what one of them came to.

Holds the rows and windows as a `Scene`, and a policy's way through them as a `Track`. Takes the
losses that followed each change of what serves; gives marks that say which did harm, and which
were of no use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa

from homeostat.hindsight import Aftermath, needless, regrets
from homeostat.records import Window
from homeostat.schema import Schema
from homeostat.settings import Settings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

HORIZON = 4  # windows over which a promotion is judged in hindsight
USE = 8  # windows within which a retrain must have helped

Kind = Literal["retrain", "recalibrate", "roll_back"]


@dataclass(frozen=True)
class Scene:
    """What all policies of one replay share."""

    rows: pa.Table  # as the journal takes them, with `label` and `labelled_at`, in order of time
    settings: Settings
    schema: Schema
    windows: tuple[Window, ...]

    @cached_property
    def times(self) -> NDArray[np.datetime64]:
        return np.asarray(self.rows.column("occurred_at").to_numpy(), dtype="datetime64[us]")

    @cached_property
    def edges(self) -> list[int]:
        """The number of the first row of each window, and that after the last one."""
        ends = [self.windows[0].start, *(window.end for window in self.windows)]
        naive = [np.datetime64(end.replace(tzinfo=None), "us") for end in ends]
        return [int(place) for place in np.searchsorted(self.times, naive)]

    @property
    def regression(self) -> bool:
        return self.schema.target.task == "regression"

    @property
    def history(self) -> pa.Table:
        """The rows before the first window."""
        return self.rows.slice(0, self.edges[0])

    def window(self, number: int) -> slice:
        return slice(self.edges[number], self.edges[number + 1])

    def part(self, number: int) -> pa.Table:
        place = self.window(number)
        return self.rows.slice(place.start, place.stop - place.start)

    def ahead(self, number: int, windows: int) -> slice:
        """The rows of so many windows from that one on, or of as many as there are."""
        return slice(self.edges[number], self.edges[min(number + windows, len(self.windows))])


@dataclass(frozen=True, slots=True)
class Mark:
    """One remedy that was tried, at the beginning of a window."""

    at: datetime
    kind: Kind
    promoted: bool  # False: the gate refused it, or it failed
    harmful: bool = False  # worse over the horizon than what it replaced, see `hindsight.regrets`
    needless: bool = False  # a retrain that did not help, see `hindsight.needless`


@dataclass(frozen=True)
class Track:
    """What one policy came to."""

    policy: str
    loss: Floats  # of each row from the first window on; NaN without a label or where refused
    retrains: int  # challengers trained, promoted or not, the first model apart
    recalibrations: int  # maps that were released
    failed: int  # trainings that came to nothing
    blind: int  # windows in which the monitor failed
    refused: int  # rows
    cpu_seconds: float
    marks: tuple[Mark, ...]
    regret: float  # loss that harmful and merely bad promotions added, summed over rows


@dataclass(frozen=True, slots=True)
class Change:
    """Something else serves from this window on; `after` gives the losses of both on rows ahead."""

    number: int
    kind: Kind
    release: str
    after: Callable[[slice], tuple[Floats, Floats]]  # promoted, replaced; not finite: not judged


def judged(scene: Scene, changes: Sequence[Change]) -> tuple[tuple[Mark, ...], float]:
    """A mark for each change, and the total regret, see `hindsight.regrets`."""
    block = scene.settings.monitor.block
    after = [_aftermath(scene, change, HORIZON) for change in changes]
    found = regrets(after, block=block)
    marks = []
    for change, regret in zip(changes, found, strict=True):
        at = scene.windows[change.number].start
        mark = Mark(at, change.kind, promoted=True, harmful=regret.harmful)
        if change.kind == "retrain":
            vain = needless(_aftermath(scene, change, USE), block=block)
            mark = replace(mark, needless=vain)
        marks.append(mark)
    return tuple(marks), sum(regret.total for regret in found)


def _aftermath(scene: Scene, change: Change, windows: int) -> Aftermath:
    """Losses of both on the rows of the horizon that both answer."""
    place = scene.ahead(change.number, windows)
    promoted, replaced = change.after(place)
    both = np.isfinite(promoted) & np.isfinite(replaced)
    at = scene.windows[change.number].start
    return Aftermath(change.release, at, scene.times[place][both], promoted[both], replaced[both])
