"""Wealth: at which level a look of the gate may test, so that years of looks do little harm.

Takes the earlier looks and the section `gate` of the settings, and gives one level; it touches
nothing. Every look spends of a wealth which promotions and time restore, so it never dies out.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from homeostat.past import Look
from homeostat.settings import Gate

SPENT = 0.25  # part of the wealth that a look may spend
FIRST = 4  # looks at the full level that the wealth holds at first: enough for one
FULL = 10  # looks at the full level that the wealth can hold, so that old merits are not hoarded
YEAR = timedelta(days=365.25)


def level(looks: Sequence[Look], now: datetime, gate: Gate) -> float:
    """The one-sided level of the look at `now`, after the `looks` before it, in order of time.

    With α = 1 − `gate.confidence`, r = `gate.false_promotions` a year and wealth W, beginning at
    4 α: a look may test at the level min(α, W / 4), which it spends, W ← W − level; a promotion
    adds α; time adds r a year from the first look on; W stays at or below 10 α. Each look is on
    rows that no other has used, so its chance of a harmful promotion is at most its level,
    whatever came before. As W is never negative, the levels add up to no more than came in:

        E[harmful promotions] ≤ 4 α + α · E[promotions] + r · years

    Alpha-investing of Foster and Stine (2008), J. of the Royal Statistical Society B 70, with the
    payout of Aharoni and Rosset (2014), same journal, B 76; the income that lets it recover has
    the purpose of the decaying memory of Ramdas, Yang, Wainwright and Jordan (2017), NeurIPS 30.
    Without `gate.false_promotions` every look has the level α.
    """
    alpha = 1 - gate.confidence
    if gate.false_promotions is None:
        return alpha
    most = FULL * alpha
    wealth = FIRST * alpha
    before = looks[0].at if looks else now
    for look in looks:
        wealth = min(most, wealth + _income(before, look.at, gate.false_promotions))
        wealth = max(0.0, wealth - look.level) + (alpha if look.promoted else 0.0)
        before = look.at
    wealth = min(most, wealth + _income(before, now, gate.false_promotions))
    return min(alpha, SPENT * wealth)


def _income(since: datetime, until: datetime, yearly: float) -> float:
    return max(0.0, (until - since) / YEAR) * yearly
