"""What a replay found: the table of policies, the picture and the JSON.

Takes the tracks of all policies through the same rows. Gives a `ReplayResult`; all policies are
compared on the rows that every one of them answered and whose label is known.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from homeostat.errors import HomeostatError
from homeostat.records import Interval, Window
from homeostat.replay import plot
from homeostat.replay.advice import Advice, Merit, advised
from homeostat.replay.policies import BASELINES, Ours, Strategy
from homeostat.replay.track import Mark, Scene, Track
from homeostat.settings import Settings
from homeostat.stats import BlockMean, block_keys

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Mask = NDArray[np.bool_]

LEAST_GAIN = 0.01  # over never, under which no share of a gain is formed
ERRORS = 2  # standard errors by which that gain must differ from 0
NAMES = {"log_loss": "log loss", "rmse": "RMSE"}
NEVER, PLAIN = (each.name for each in BASELINES)


@dataclass(frozen=True, slots=True)
class Row:
    """One policy in numbers; None where a number was not formed."""

    policy: str
    metric: str  # log_loss or rmse
    value: float  # over all compared rows; smaller is better
    relative_gain: float  # 1 − value ÷ that of `never`
    gain_kept: float | None  # share of the gain of `every:1` over `never`
    oracle_share: float | None  # share of what the best schedule in hindsight gains
    retrains: int  # challengers trained, promoted or not
    needless_retrains: int  # those that did not help
    recalibrations: int  # maps that were released
    promotions: int  # of whatever kind, the first release apart
    harmful_promotions: int
    total_regret: float  # loss that promotions added, as a share of the policy's whole loss
    cpu_seconds: float  # of all trainings but the first
    failed_trainings: int
    baseline: bool  # what the others are measured against, asked for or not


@dataclass(frozen=True, slots=True)
class Curve:
    """One policy by window."""

    policy: str
    values: tuple[float | None, ...]  # the metric in each window; None without a label
    marks: tuple[Mark, ...]  # every remedy that was tried
    gain: Interval  # mean loss of `never` − its own, by blocks of rows that are alike


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU seconds of a replay, all processes that fitted and the one that led."""

    fits: float  # of the user's `fit`, each frame once, and of making and asking candidates
    scores: float  # of answering rows
    maps: float  # of the calibrators of schedules and oracle
    rest: float  # of the leading process: the loops with their looks, and all else


@dataclass(frozen=True)
class ReplayResult:
    """A table, a picture and a JSON document; `said` tells what was assumed."""

    rows: tuple[Row, ...]  # one for each policy, in the order asked for, and the baselines
    curves: tuple[Curve, ...]
    windows: tuple[Window, ...]
    compared: int  # labelled rows that every policy answered
    said: tuple[str, ...]
    settings: Settings  # of the loops
    merits: Mapping[str, Merit]  # of each rule of `homeostat`, by its name
    advice: Advice | None  # settings to take from here; None where `homeostat` was not compared
    cost: Cost

    @property
    def table(self) -> pd.DataFrame:
        """One row for each policy, the columns those of `Row`."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.rows]).set_index("policy")

    def to_json(self) -> str:
        """A JSON array with one object for each policy, its fields those of `Row`."""
        return json.dumps([asdict(row) for row in self.rows], indent=1, allow_nan=False) + "\n"

    def plot(self, path: Path | str) -> None:
        """Write a PNG: the metric by window for each policy, and each remedy that was tried.

        Raises HomeostatError where Matplotlib is missing.
        """
        starts = [window.start for window in self.windows]
        lines = [plot.Line(c.policy, c.values, c.marks, c.policy == NEVER) for c in self.curves]
        plot.draw(path, starts, lines, NAMES[self.rows[0].metric])


def summarise(
    scene: Scene,
    tracks: Sequence[Track],
    strategies: Sequence[Strategy],
    said: Sequence[str],
    cost: Cost,
) -> ReplayResult:
    """The result of all tracks, those of the baselines among them, in the order of `strategies`.

    Raises HomeostatError where no row can be compared.
    """
    common: Mask = np.all([np.isfinite(track.loss) for track in tracks], axis=0)
    if not common.any():
        raise HomeostatError(
            "no row after the first training has a label, so nothing can be compared.",
            hint="Start earlier, or bring rows with labels.",
        )
    losses = {track.policy: track.loss[common] for track in tracks}
    gains = _gains(scene, losses, common)
    metric = "rmse" if scene.regression else "log_loss"
    values = {name: _metric(loss, metric) for name, loss in losses.items()}
    formed = {name for name, gain in gains.items() if _counts(gain, float(losses[NEVER].mean()))}
    asked = {strategy.name for strategy in strategies}
    oracle = next((n for n in values if n.partition(":")[0] == "oracle" and n in formed), None)
    of = {PLAIN: PLAIN if PLAIN in formed else None, "oracle": oracle}
    rows = tuple(_row(track, metric, values, losses, of) for track in tracks)
    curves = tuple(_curve(scene, track, common, metric, gains[track.policy]) for track in tracks)
    notes = [*said, *(note for track in tracks for note in _notes(track))]
    added = [track.policy for track in tracks if track.policy not in asked]
    if added:
        notes.append(f"{' and '.join(added)} are what the others are measured against.")
    rules = {each.name: each.rule for each in strategies if isinstance(each, Ours)}
    merits = {row.policy: Merit.of(row, gains[row.policy]) for row in rows if row.policy in rules}
    advice = advised(scene, rules, rows, merits) if rules else None
    return ReplayResult(
        rows=rows,
        curves=curves,
        windows=scene.windows,
        compared=int(common.sum()),
        said=tuple(notes),
        settings=scene.settings,
        merits=merits,
        advice=advice,
        cost=cost,
    )


def _metric(loss: Floats, metric: str) -> float:
    """The mean of log losses, or the root of the mean of squared errors."""
    mean = math.fsum(loss.tolist()) / len(loss)
    return math.sqrt(mean) if metric == "rmse" else mean


def _gains(scene: Scene, losses: Mapping[str, Floats], common: Mask) -> dict[str, BlockMean]:
    """Mean loss of `never` less that of each policy, with the error of block means."""
    keys = block_keys(scene.times[scene.edges[0] :][common], scene.settings.monitor.block)
    return {name: BlockMean.of(losses[NEVER] - loss, keys) for name, loss in losses.items()}


def _counts(gain: BlockMean, never: float) -> bool:
    """Whether a gain is one of which a share can be formed: above 1 % and two standard errors."""
    return gain.mean > max(LEAST_GAIN * never, ERRORS * gain.error)


def _row(
    track: Track,
    metric: str,
    values: Mapping[str, float],
    losses: Mapping[str, Floats],
    of: Mapping[str, str | None],
) -> Row:
    value, never = values[track.policy], values[NEVER]
    promoted = [mark for mark in track.marks if mark.promoted]

    def share(whole: str | None) -> float | None:
        return None if whole is None else (never - value) / (never - values[whole])

    total = math.fsum(losses[track.policy].tolist())
    return Row(
        policy=track.policy,
        metric=metric,
        value=value,
        relative_gain=1 - value / never if never else 0.0,
        gain_kept=share(of[PLAIN]),
        oracle_share=share(of["oracle"]),
        retrains=track.retrains,
        needless_retrains=sum(mark.needless for mark in track.marks),
        recalibrations=track.recalibrations,
        promotions=len(promoted),
        harmful_promotions=sum(mark.harmful for mark in promoted),
        total_regret=track.regret / total if total else 0.0,
        cpu_seconds=track.cpu_seconds,
        failed_trainings=track.failed,
        baseline=track.policy in (NEVER, PLAIN),
    )


def _curve(scene: Scene, track: Track, common: Mask, metric: str, gain: BlockMean) -> Curve:
    first = scene.edges[0]
    values: list[float | None] = []
    for number in range(len(scene.windows)):
        place = scene.window(number)
        inside = slice(place.start - first, place.stop - first)
        loss = track.loss[inside][common[inside]]
        values.append(_metric(loss, metric) if len(loss) else None)
    return Curve(track.policy, tuple(values), track.marks, gain.interval())


def _notes(track: Track) -> list[str]:
    told = []
    if track.failed:
        told.append(f"{track.policy}: {track.failed} trainings failed; the champion stayed.")
    if track.blind:
        told.append(f"{track.policy}: the monitor failed in {track.blind} windows.")
    if track.refused:
        told.append(
            f"{track.policy}: {track.refused:,} rows were refused, since the model takes no null "
            "there; they are not compared."
        )
    return told
