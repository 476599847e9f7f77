"""How the served model did beside January's frozen one, measured when the year is over.

Takes the project that the demo left and the loop's outcomes; scores the frozen model, and for
each promotion the release that it replaced, on the journalled rows. Gives the figures of
`demo.json` and the picture.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from homeostat.build import Project
from homeostat.contracts import Trainer
from homeostat.demo.stream import WEEK
from homeostat.hindsight import Aftermath, regrets
from homeostat.records import Action, Outcome, Window
from homeostat.schema import TIMESTAMP, Schema
from homeostat.scoring import losses, outputs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

HORIZON = timedelta(weeks=4)


@dataclass(frozen=True, slots=True)
class Quality:
    log_loss: float
    auc: float


@dataclass(frozen=True, slots=True)
class Week:
    start: datetime
    rows: int  # labelled flights
    frozen: float  # mean log loss of January's model
    served: float  # mean log loss of what was answered
    decision: str


@dataclass(frozen=True, slots=True)
class Result:
    rows: int  # flights predicted
    frozen: Quality
    served: Quality
    relative_gain: float  # 1 - served ÷ frozen log loss
    retrains: int  # challengers trained, promoted or not
    recalibrations: int  # maps that were released
    promotions: int
    harmful_promotions: int
    seconds: float
    weeks: tuple[Week, ...]

    def summary(self) -> Mapping[str, Any]:
        """What `demo.json` holds."""
        found = asdict(self)
        del found["weeks"]
        return found


def measure(
    here: Project, outcomes: Sequence[Outcome], window: Window, trainer: Trainer, began: float
) -> Result:
    """The figures over `window`; `began` is the monotonic time at which the demo did."""
    first = here.releases.get(str(outcomes[0].release))
    schema = Schema.from_json(here.releases.object(first, "schema"))
    rows = here.journal.read(window, labelled=True, schema=schema)
    labels = schema.labels(rows)
    scored = _Scored(here, trainer, schema)
    frozen = scored.output(first.id, rows)
    served = outputs(rows, schema.target)
    turns = [outcome for outcome in outcomes[1:] if outcome.verdict is not None]
    trained = [o for o in turns if o.decision.action is not Action.RECALIBRATE or o.refused]
    promoted = [o for o in turns if o.promoted]
    after = [scored.aftermath(o, rows) for o in promoted]
    block = here.settings.monitor.block
    weeks = _weeks(
        rows,
        losses(frozen, labels, schema.target),
        losses(served, labels, schema.target),
        outcomes,
        window.start,
    )
    old, new = _quality(frozen, labels, schema), _quality(served, labels, schema)
    return Result(
        rows=here.journal.read(window, schema=schema).num_rows,
        frozen=old,
        served=new,
        relative_gain=1 - new.log_loss / old.log_loss,
        retrains=len(trained),
        recalibrations=sum(o.decision.action is Action.RECALIBRATE for o in promoted),
        promotions=len(promoted),
        harmful_promotions=sum(regret.harmful for regret in regrets(after, block=block)),
        seconds=time.monotonic() - began,
        weeks=weeks,
    )


@dataclass(frozen=True)
class _Scored:
    """Releases scored on journalled rows, as nobody was answered."""

    here: Project
    trainer: Trainer
    schema: Schema

    def output(self, release: str, rows: pa.Table) -> Floats:
        found = self.here.releases.get(release)
        held = {n: self.here.releases.object(found, n) for n in found.manifest["objects"]}
        own = Schema.from_json(held["schema"])
        return outputs(
            self.trainer.score(held["model"], rows, own, held.get("calibrator")), own.target
        )

    def aftermath(self, promotion: Outcome, rows: pa.Table) -> Aftermath:
        """Losses of the promoted and the replaced release over the four weeks that followed."""
        at, release = promotion.at, str(promotion.release)
        before = str(self.here.releases.get(release).manifest["parent"])
        times = rows.column("occurred_at")
        inside = pc.and_(
            pc.greater_equal(times, pa.scalar(at, TIMESTAMP)),
            pc.less(times, pa.scalar(at + HORIZON, TIMESTAMP)),
        )
        later = rows.filter(inside)
        labels = self.schema.labels(later)
        target = self.schema.target
        return Aftermath(
            release=release,
            at=at,
            occurred_at=later.column("occurred_at").to_numpy(),
            promoted=losses(self.output(release, later), labels, target),
            replaced=losses(self.output(before, later), labels, target),
        )


def _quality(output: Floats, labels: NDArray[Any], schema: Schema) -> Quality:
    from sklearn.metrics import roc_auc_score

    return Quality(
        float(losses(output, labels, schema.target).mean()), float(roc_auc_score(labels, output))
    )


def _weeks(
    rows: pa.Table, frozen: Floats, served: Floats, outcomes: Sequence[Outcome], start: datetime
) -> tuple[Week, ...]:
    since = rows.column("occurred_at").to_numpy() - np.datetime64(start.replace(tzinfo=None))
    index = since // np.timedelta64(WEEK)
    done = []
    for number in np.unique(index).tolist():
        here = index == number
        outcome = outcomes[number + 1] if number + 1 < len(outcomes) else None
        done.append(
            Week(
                start + number * WEEK,
                int(here.sum()),
                float(frozen[here].mean()),
                float(served[here].mean()),
                did(outcome),
            )
        )
    return tuple(done)


def did(outcome: Outcome | None) -> str:
    """What a turn came to, in a word or two; "" where there was none."""
    if outcome is None:
        return ""
    if outcome.promoted:
        done = {Action.RECALIBRATE: "recalibrated", Action.ROLL_BACK: "rolled back"}
        return done.get(outcome.decision.action, "promoted")
    if outcome.verdict is None:
        return f"hold ({outcome.decision.trigger})"
    return "map refused" if outcome.decision.action is Action.RECALIBRATE else "refused"


def plot(result: Result, file: Path) -> None:
    """Log loss by week, served beside frozen, promotions marked; a PNG."""
    from matplotlib.figure import Figure

    starts: Any = [week.start for week in result.weeks]  # Matplotlib's types know no dates
    figure = Figure(figsize=(11, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(starts, [w.frozen for w in result.weeks], color="#999999", label="January, frozen")
    axes.plot(starts, [w.served for w in result.weeks], color="#0b6e4f", label="served", lw=2)
    for name, (colour, line) in {"promoted": ("#0b6e4f", "-"), "refused": ("#c44536", ":")}.items():
        marked = [
            at + WEEK for at, w in zip(starts, result.weeks, strict=True) if w.decision == name
        ]
        for place, at in enumerate(marked):
            label = None if place else f"challenger {name}"
            axes.axvline(at, color=colour, ls=line, lw=1, alpha=0.7, label=label)
    axes.set_ylabel("log loss, weekly mean")
    lower = "lower" if result.relative_gain >= 0 else "higher"
    axes.set_title(
        f"Flights of 2013: log loss {abs(result.relative_gain):.1%} {lower} than that of January's "
        f"model; {result.retrains} retrainings, {result.promotions} promotions"
    )
    axes.legend(loc="upper left", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=130)
