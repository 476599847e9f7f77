"""Hindsight: whether a promotion turned out to be harmful, or of no use.

Takes, for each promotion, the losses of the released model and of the one it replaced on the same
later rows, over one fixed horizon; gives which ones did harm, and how much. Nothing here decides
anything: it is the yardstick by which a policy is judged afterwards.
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
    total: float  # loss that it added, summed over the rows; 0 where it was better
    p_value: float  # one-sided, of being worse; t on block means
    adjusted_p_value: float  # Holm over all promotions
    harmful: bool


def regrets(aftermaths: Sequence[Aftermath], *, block: timedelta) -> tuple[Regret, ...]:
    """One regret for each promotion, in the same order.

    Harmful is more than 1 % worse over the horizon, also where the release was replaced sooner,
    with p ≤ .05 after Holm. A promotion with rows of fewer than two blocks has p = 1.
    """
    measured = [_measure(after, block) for after in aftermaths]
    adjusted = holm([p for *_, p in measured])
    return tuple(
        Regret(after.release, after.at, *found, fair, found[0] > MARGIN and fair <= ALPHA)
        for after, found, fair in zip(aftermaths, measured, adjusted, strict=True)
    )


def needless(after: Aftermath, *, block: timedelta) -> bool:
    """Whether a retrain did not help: its loss is not below that of what it replaced with p ≤ .05,
    one-sided t on block means. One with rows of fewer than two blocks did not.
    """
    if not len(after.promoted):
        return True
    keys = block_keys(after.occurred_at, block)
    return BlockMean.of(after.replaced - after.promoted, keys).p_greater() > ALPHA


def _measure(after: Aftermath, block: timedelta) -> tuple[float, float, float]:
    if not len(after.promoted):
        return 0.0, 0.0, 1.0
    paired = BlockMean.of(after.promoted - after.replaced, block_keys(after.occurred_at, block))
    relative = paired.mean / float(after.replaced.mean())
    return relative, max(0.0, paired.mean) * paired.rows, paired.p_greater()
