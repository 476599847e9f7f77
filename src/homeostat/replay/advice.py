"""Advice: the settings to take from a replay, and whether the loop has earned to act alone.

Takes what each compared rule of `homeostat` came to. Gives the best of them as lines of
`homeostat.toml`, with what it would have cost and gained; chosen in hindsight, so somewhat too
good, the more the more rules were compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import tomlkit

from homeostat.settings import Decide
from homeostat.stats import CONFIDENCE, BlockMean

if TYPE_CHECKING:
    from homeostat.replay.result import Row
    from homeostat.replay.track import Scene


BEARABLE = 0.1
"""Of a gain, what promotions that were worse for a while may have cost where some did harm."""


@dataclass(frozen=True, slots=True)
class Merit:
    """What one rule of `homeostat` came to.

    `won`: it gained over `never` with a one-sided 95 % bound above 0, and either no promotion did
    harm, or all that were worse for a while together cost a tenth of that gain at most.
    """

    won: bool
    reason: str  # one sentence

    @classmethod
    def of(cls, row: Row, gain: BlockMean) -> Merit:
        loss = row.value**2 if row.metric == "rmse" else row.value
        cost = row.total_regret * loss  # of promotions that were worse, a row
        gained, harmful = gain.bound(1 - CONFIDENCE) > 0, row.harmful_promotions
        won = gained and (not harmful or cost <= BEARABLE * gain.mean)
        reason = (
            f"{row.policy} would have taken {row.retrains} retrains, {row.recalibrations} "
            f"recalibrations and {row.cpu_seconds:.0f} CPU seconds of training for a "
            f"{row.metric.replace('_', ' ')} {abs(row.relative_gain):.1%} "
            f"{'below' if row.relative_gain >= 0 else 'above'} that of never"
        )
        if not gained:
            return cls(won, f"{reason}, which may be chance: it has not earned to act alone.")
        if harmful:
            share = f"worse ones cost {cost / gain.mean:.0%} of the gain"
            reason += f", though {harmful} of its promotions did harm and {share}"
        earned = "it has" if won else f"over {BEARABLE:.0%}, so it has not"
        return cls(won, f"{reason}: {earned} earned to act alone.")


@dataclass(frozen=True, slots=True)
class Advice:
    """The best rule and its merit."""

    policy: str
    won: bool
    settings: str  # lines of homeostat.toml
    reason: str  # one sentence


def advised(
    scene: Scene, rules: Mapping[str, Decide], rows: Sequence[Row], merits: Mapping[str, Merit]
) -> Advice:
    """Of the rules without harmful promotions the best one, or of all where each has some."""
    ours = [row for row in rows if row.policy in rules]
    best = min(ours, key=lambda row: (row.harmful_promotions > 0, row.value))
    merit = merits[best.policy]
    rule = rules[best.policy].model_copy(update={"mode": "auto" if merit.won else "observe"})
    return Advice(best.policy, merit.won, _settings(scene, rule), merit.reason)


def _settings(scene: Scene, rule: Decide) -> str:
    """What the replay ran with, where it is not the default, and how it decided."""
    every = scene.settings.run.model_copy(update={"every": scene.windows[0].length})
    document = tomlkit.document()
    for name, section in (
        ("labels", scene.settings.labels),
        ("monitor", scene.settings.monitor),
        ("decide", rule),
        ("run", every),
    ):
        told = section.model_dump(mode="json", exclude_none=True)
        plain = type(section)().model_dump(mode="json")
        changed = {key: value for key, value in told.items() if value != plain.get(key)}
        if name == "decide":
            changed["mode"] = rule.mode
        if changed:
            document[name] = changed
    return tomlkit.dumps(document)
