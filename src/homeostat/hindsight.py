"""Hindsight: whether a promotion turned out to be harmful.

Takes, for each promotion, the losses of the released model and of the one it replaced on the same
later rows, over one fixed horizon; gives which ones did harm. Nothing here decides anything: it is
the yardstick by which a policy is judged afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np

from homeostat.stats import BlockMean, block_keys, holm

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

MARGIN = 0.01  # relative loss beyond which a promotion can be harmful
ALPHA = 0.05  # significance after Holm's correction over all promotions


@dataclass(frozen=True)
class Aftermath:
    """What came after one promotion: losses of each row within the horizon, shape (rows,)."""

    release: str
    at: datetime
    occurred_at: NDArray[np.datetime64]
    promoted: Floats
    replaced: Floats


@dataclass(frozen=True, slots=True)
class Regret:
    """How much worse a promoted model was than the one it replaced."""

    release: str
    at: datetime
    relative: float  # (mean loss − replaced mean loss) ÷ replaced mean loss; above 0 is worse
    p_value: float  # one-sided, of being worse; t on block means
    adjusted_p_value: float  # Holm over all promotions
    harmful: bool


def regrets(aftermaths: Sequence[Aftermath], *, block: timedelta) -> tuple[Regret, ...]:
    """One regret for each promotion, in the same order.

    Harmful is more than 1 % worse over the horizon, also where the release was replaced sooner,
    with p ≤ .05 after Holm. A promotion with rows of fewer than two blocks has p = 1.
    """
    measured = [_measure(after, block) for after in aftermaths]
    adjusted = holm([p for _, p in measured])
    return tuple(
        Regret(after.release, after.at, relative, p, fair, relative > MARGIN and fair <= ALPHA)
        for after, (relative, p), fair in zip(aftermaths, measured, adjusted, strict=True)
    )


def _measure(after: Aftermath, block: timedelta) -> tuple[float, float]:
    if not len(after.promoted):
        return 0.0, 1.0
    paired = BlockMean.of(after.promoted - after.replaced, block_keys(after.occurred_at, block))
    relative = paired.mean / float(after.replaced.mean())
    return relative, paired.p_greater()
