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
from typing import TYPE_CHECKING, Any

import numpy as np

from homeostat.errors import HomeostatError
from homeostat.records import Window
from homeostat.replay.run import Promotion, Scene, Track
from homeostat.stats import BlockMean, block_keys

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Mask = NDArray[np.bool_]

LEAST_GAIN = 0.01  # of plain retraining over never, below which no share of it is formed
ERRORS = 2  # standard errors by which that gain must differ from 0
NAMES = {"log_loss": "log loss", "rmse": "RMSE"}


@dataclass(frozen=True, slots=True)
class Row:
    """One policy in numbers; None where a number was not formed."""

    policy: str
    metric: str  # log_loss or rmse
    value: float  # over all compared rows; smaller is better
    relative_gain: float | None  # 1 − value ÷ that of `never`
    gain_kept: float | None  # share of the gain of `every:1` over `never`
    oracle_share: float | None  # share of what the best schedule in hindsight gains
    retrains: int  # challengers trained, promoted or not
    recalibrations: int
    promotions: int
    harmful_promotions: int
    cpu_seconds: float  # of all trainings but the first
    failed_trainings: int


@dataclass(frozen=True, slots=True)
class Curve:
    """One policy by window."""

    policy: str
    values: tuple[float | None, ...]  # the metric in each window; None without a label
    promotions: tuple[Promotion, ...]


@dataclass(frozen=True)
class ReplayResult:
    """A table, a picture and a JSON document; `said` tells what was assumed."""

    rows: tuple[Row, ...]  # one for each policy, in the order asked for
    curves: tuple[Curve, ...]
    windows: tuple[Window, ...]
    compared: int  # labelled rows that every policy answered
    said: tuple[str, ...]

    @property
    def table(self) -> pd.DataFrame:
        """One row for each policy, the columns those of `Row`."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.rows]).set_index("policy")

    def to_json(self) -> str:
        """A JSON array with one object for each policy, its fields those of `Row`."""
        return json.dumps([asdict(row) for row in self.rows], indent=1, allow_nan=False) + "\n"

    def plot(self, path: Path | str) -> None:
        """Write a PNG: the metric by window for each policy, promotions marked.

        Raises HomeostatError where Matplotlib is missing.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise HomeostatError(
                "the picture needs Matplotlib.", hint="pip install 'homeostat[demo]'"
            ) from None
        figure = Figure(figsize=(11, 5), layout="constrained")
        axes = figure.add_subplot()
        starts = np.asarray([w.start.replace(tzinfo=None) for w in self.windows], "datetime64[us]")
        for curve in self.curves:
            values = [math.nan if value is None else value for value in curve.values]
            faded = curve.policy == "never"
            color = "#999999" if faded else None
            (line,) = axes.plot(starts, values, label=curve.policy, color=color, lw=1.6)
            _mark(axes, curve, self.windows, values, line.get_color())
        axes.set_ylabel(f"{NAMES[self.rows[0].metric]} by window")
        axes.set_title("The same rows under each policy; dots are promotions, crosses harmful ones")
        axes.legend(loc="best", frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, dpi=130, format="png")


def _mark(
    axes: Any, curve: Curve, windows: Sequence[Window], values: Sequence[float], color: Any
) -> None:
    """A dot or a cross on the first window that a promoted model served."""
    starts = [window.start for window in windows]
    for harmful, marker in ((False, "o"), (True, "X")):
        at = [starts.index(p.at) for p in curve.promotions if p.harmful is harmful]
        places = [np.datetime64(starts[i].replace(tzinfo=None), "us") for i in at]
        heights = [values[i] for i in at]
        axes.plot(places, heights, marker, color=color, ms=6 + 4 * harmful)


def summarise(scene: Scene, tracks: Sequence[Track], said: Sequence[str]) -> ReplayResult:
    """The result of all tracks. Raises HomeostatError where no row can be compared."""
    common: Mask = np.all([np.isfinite(track.loss) for track in tracks], axis=0)
    if not common.any():
        raise HomeostatError(
            "no row after the first training has a label, so nothing can be compared.",
            hint="Start earlier, or bring rows with labels.",
        )
    task = scene.shared.schema.target.task
    metric = "rmse" if task == "regression" else "log_loss"
    losses = {track.policy: track.loss[common] for track in tracks}
    values = {name: _metric(loss, metric) for name, loss in losses.items()}
    plain = _plain_gain(scene, losses, common)
    rows = tuple(_row(track, metric, values, plain) for track in tracks)
    curves = tuple(_curve(scene, track, common, metric) for track in tracks)
    notes = (*said, *(note for track in tracks for note in _notes(track)))
    return ReplayResult(rows, curves, scene.windows, int(common.sum()), notes)


def _metric(loss: Floats, metric: str) -> float:
    """The mean of log losses, or the root of the mean of squared errors."""
    mean = math.fsum(loss.tolist()) / len(loss)
    return math.sqrt(mean) if metric == "rmse" else mean


def _plain_gain(scene: Scene, losses: Mapping[str, Floats], common: Mask) -> bool:
    """Whether plain retraining at every step gains enough over never for a share to be formed.

    Its gain in mean loss must exceed 1 % and two standard errors of block means.
    """
    if "never" not in losses or "every:1" not in losses:
        return False
    times = scene.times[scene.edges[0] :][common]
    gain = losses["never"] - losses["every:1"]
    paired = BlockMean.of(gain, block_keys(times, scene.settings.monitor.block))
    least = LEAST_GAIN * float(losses["never"].mean())
    return paired.mean > max(least, ERRORS * paired.error)


def _row(track: Track, metric: str, values: Mapping[str, float], plain: bool) -> Row:
    value, never = values[track.policy], values.get("never")
    kept = None
    if plain and never is not None:
        kept = (never - value) / (never - values["every:1"])
    return Row(
        policy=track.policy,
        metric=metric,
        value=value,
        relative_gain=1 - value / never if never else None,
        gain_kept=kept,
        oracle_share=None,
        retrains=track.retrains,
        recalibrations=0,
        promotions=len(track.promotions),
        harmful_promotions=sum(promotion.harmful for promotion in track.promotions),
        cpu_seconds=track.cpu_seconds,
        failed_trainings=track.failed,
    )


def _curve(scene: Scene, track: Track, common: Mask, metric: str) -> Curve:
    first = scene.edges[0]
    values: list[float | None] = []
    for number in range(len(scene.windows)):
        place = scene.window(number)
        inside = slice(place.start - first, place.stop - first)
        loss = track.loss[inside][common[inside]]
        values.append(_metric(loss, metric) if len(loss) else None)
    return Curve(track.policy, tuple(values), track.promotions)


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
