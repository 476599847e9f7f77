"""The learner of a replay: the user's script in a child, each fit done once for all policies.

Takes an engine, the script's trainer and the rows before the start. Gives a `Trainer` for one
policy's loop, which counts the CPU time of its trainings, and the losses of any model on any
window.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from homeostat.blend import Elder
from homeostat.contracts import Engine
from homeostat.entries import Queried, Refusal
from homeostat.errors import TrainingError
from homeostat.order import ordered
from homeostat.records import Candidate
from homeostat.replay.fits import Fits, Trial
from homeostat.replay.track import Scene
from homeostat.schema import SYSTEM, Schema
from homeostat.scoring import Calibrator, outputs, row_losses, tabulate
from homeostat.train import ScriptTrainer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

P = ParamSpec("P")
T = TypeVar("T")


class MeteredEngine:
    """An `Engine` that knows the CPU seconds of the last call, all threads, and of all calls by the
    name of the function.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.seconds = 0.0
        self.spent: dict[str, float] = defaultdict(float)

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        metered: _Metered[T] = _Metered(function)
        result, self.seconds = self._engine.run(metered, *args, **kwargs)
        self.spent[function.__qualname__] += self.seconds
        return result

    def close(self) -> None:
        self._engine.close()


class _Metered(Generic[T]):
    """A function that also gives its CPU seconds, under its own name in errors."""

    def __init__(self, function: Callable[..., T]) -> None:
        self._function = function
        self.__qualname__ = function.__qualname__

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[T, float]:
        began = time.process_time()
        result = self._function(*args, **kwargs)
        return result, time.process_time() - began


@dataclass(frozen=True, slots=True)
class Served:
    """One window as one model answered it."""

    answered: NDArray[np.bool_]  # of every row of the window; False where it was refused
    scores: pa.Table  # the journal's columns of a prediction, for each row that was answered
    loss: Floats  # of every row of the window; NaN where it was refused or has no label
    refusals: tuple[Refusal, ...]


@dataclass
class Shared:
    """What the policies of one replay share: a fit for each frame, an answer for each window."""

    trainer: ScriptTrainer
    engine: MeteredEngine
    scene: Scene
    fits: Fits
    candidates: dict[bytes, tuple[Candidate, Trial]] = field(default_factory=dict)
    blends: dict[tuple[object, ...], tuple[Candidate, float]] = field(default_factory=dict)
    answers: dict[tuple[bytes, bytes, int], Served] = field(default_factory=dict)

    def fit(
        self, rows: pa.Table, schema: Schema, *, cutoff: datetime, as_of: datetime
    ) -> tuple[Candidate, float]:
        """A trial without parent, and the CPU seconds of its fit.

        The model is that of the frame, whoever had it fitted; edges and levels are the `schema`'s.
        """
        if not rows.num_rows:
            raise TrainingError("no row has a label that is old enough to be learned from.")
        frame = self.fits.frame(rows)
        if frame not in self.candidates:
            trial = self.fits.trial(frame, lambda path: self._trial(rows, cutoff, path))
            # The key stands for the hash of every cell, which takes longer than many a fit.
            name, rows = frame.hex(), ordered(rows)
            made = self.trainer.candidate(
                trial.whole, rows, name, cutoff=cutoff, as_of=as_of, parent=None
            )
            self.candidates[frame] = made, trial
        candidate, trial = self.candidates[frame]
        own = schema.without_nulls_in(sorted(trial.averse)).to_json().encode()
        training = replace(candidate.training, cutoff=cutoff, as_of=as_of)
        objects = {**candidate.objects, "schema": own}
        return replace(candidate, training=training, objects=objects), trial.seconds

    def _trial(self, rows: pa.Table, cutoff: datetime, model: Path) -> Trial:
        fitted = self.trainer.fitted(ordered(rows), self.scene.schema, cutoff=cutoff, trial=True)
        return Trial.kept(fitted, model, self.engine.seconds)

    def finished(
        self,
        candidate: Candidate,
        rows: pa.Table,
        elder: Elder | None,
        *,
        keep: int,
        trial: bool,
        twice: bool = False,
    ) -> tuple[Candidate, float]:
        """The candidate as `Trainer.finished` makes it, and the CPU seconds of that."""
        old = (_digest(elder.model), elder.members) if elder else None
        model = candidate.objects["model"]
        key = _digest(model), candidate.training, old, keep, trial, twice
        if key not in self.blends:
            made = self.trainer.finished(
                candidate, rows, elder, keep=keep, trial=trial, twice=twice
            )
            self.blends[key] = made, self.engine.seconds
        made, seconds = self.blends[key]
        own = replace(made, kind=candidate.kind, parent=candidate.parent)
        return own, seconds

    def score(
        self, model: bytes, rows: pa.Table, schema: Schema, calibrator: bytes | None
    ) -> pa.Table:
        """As `Trainer.score`, of rows of the stream: from the answers to whole windows, so that a
        row is answered once by a model, however often it is looked at.
        """
        places = self.fits.places(rows)
        numbers = np.searchsorted(self.scene.edges, places, side="right") - 1
        held = {"model": model, "schema": schema.to_json().encode()}
        bare, order = [_UNSCORED], []
        for number in np.unique(numbers).tolist():
            mine = np.flatnonzero(numbers == number)
            if number < 0:  # before the first window nothing was served
                bare.append(self.trainer.score(model, rows.take(pa.array(mine)), schema))
            else:
                served = self.serve(held, number)
                inside = places[mine] - self.scene.edges[number]
                if not served.answered[inside].all():  # the model says what it makes of them
                    return self.trainer.score(model, rows, schema, calibrator)
                answer = np.cumsum(served.answered) - 1
                bare.append(served.scores.take(pa.array(answer[inside])))
            order.append(mine)
        scores = pa.concat_tables(bare)
        if order:
            scores = scores.take(pa.array(np.argsort(np.concatenate(order), kind="stable")))
        if calibrator is None or not scores.num_rows:
            return scores
        return self._calibrated(scores, calibrator)

    def serve(self, held: Mapping[str, bytes], number: int) -> Served:
        """How the release with these objects answers the rows of window `number`.

        A model answers a window once, whatever maps its answers.
        """
        rows = self.scene.part(number)
        model, schema = (_digest(held[name]) for name in ("model", "schema"))
        key = model, schema, number
        if key not in self.answers:
            self.answers[key] = self._served(held, rows)
        bare = self.answers[key]
        if "calibrator" not in held or not bare.scores.num_rows:
            return bare
        return self._mapped(bare, held["calibrator"], rows)

    def _served(self, held: Mapping[str, bytes], rows: pa.Table) -> Served:
        schema = Schema.from_json(held["schema"])
        refused, refusals = _refused(rows, schema)
        taken = rows.filter(pa.array(~refused))
        scores = _UNSCORED
        if taken.num_rows:
            scores = self.trainer.score(held["model"], taken, schema)
        return Served(~refused, scores, _loss(~refused, scores, rows, schema), refusals)

    def _mapped(self, bare: Served, calibrator: bytes, rows: pa.Table) -> Served:
        scores = self._calibrated(bare.scores, calibrator)
        loss = _loss(bare.answered, scores, rows, self.scene.schema)
        return replace(bare, scores=scores, loss=loss)

    def _calibrated(self, scores: pa.Table, calibrator: bytes) -> pa.Table:
        target = self.scene.schema.target
        output = Calibrator.from_json(calibrator).apply(outputs(scores, target), target)
        return tabulate(output, target)


def _loss(answered: NDArray[np.bool_], scores: pa.Table, rows: pa.Table, schema: Schema) -> Floats:
    """Of every row; NaN where it was refused or has no label."""
    loss = np.full(rows.num_rows, np.nan)
    taken = rows.filter(pa.array(answered))
    known = pc.is_valid(taken.column("label"))
    found = row_losses(scores.filter(known), taken.filter(known), schema)
    loss[np.flatnonzero(answered)[known.to_numpy()]] = found
    return loss


_UNSCORED = pa.schema(
    [(name, SYSTEM[name]) for name in ("prediction", "probability", "probabilities")]
).empty_table()


def _refused(rows: pa.Table, schema: Schema) -> tuple[NDArray[np.bool_], tuple[Refusal, ...]]:
    """Which rows the server would refuse, since the model cannot take a null, and as what."""
    refused = np.zeros(rows.num_rows, dtype=bool)
    refusals: list[Refusal] = []
    for feature in schema.features:
        if not feature.nullable:
            null = pc.is_null(rows.column(feature.name), nan_is_null=True).to_numpy() & ~refused
            refusals += [Refusal("null_not_allowed", feature.name)] * int(null.sum())
            refused |= null
    return refused, tuple(refusals)


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


class PolicyTrainer:
    """The `Trainer` of one policy's loop. `load` gives the rows before the start, once: all
    later rows come by serving. `cpu_seconds` sums its trainings, but for that of the first model:
    each frame and each blend once, whether or not another policy had the same done already.
    """

    def __init__(self, shared: Shared, history: pa.Table) -> None:
        self._shared = shared
        self._history: pa.Table | None = history
        self._paid: set[object] = set()
        self.cpu_seconds = 0.0

    def load(self) -> pa.Table | None:
        history, self._history = self._history, None
        return history

    def schema_of(self, loaded: pa.Table) -> Schema:  # noqa: ARG002 - the whole stream has one
        return self._shared.scene.schema

    def rows_of(self, loaded: pa.Table, schema: Schema, at: datetime) -> pa.Table:  # noqa: ARG002 - they have this form
        return loaded

    def fit(
        self,
        rows: pa.Table,
        schema: Schema,
        *,
        cutoff: datetime,
        as_of: datetime,
        parent: str | None,
        trial: bool = False,
    ) -> Candidate:
        candidate, seconds = self._shared.fit(rows, schema, cutoff=cutoff, as_of=as_of)
        self._pay(candidate.training.sha256, seconds if parent else 0.0)
        if not trial:
            whole, seconds = self._shared.finished(candidate, rows, None, keep=1, trial=False)
            self._pay((candidate.training.sha256, trial), seconds if parent else 0.0)
            candidate = replace(whole, members=candidate.members)
        if parent is None:
            return candidate
        return replace(candidate, kind="retrain", parent=parent)

    def finished(
        self,
        candidate: Candidate,
        rows: pa.Table,
        elder: Elder | None = None,
        *,
        keep: int = 1,
        trial: bool = False,
        twice: bool = False,
    ) -> Candidate:
        made, seconds = self._shared.finished(
            candidate, rows, elder, keep=keep, trial=trial, twice=twice
        )
        self._pay((made.members, trial), seconds)
        return made

    def _pay(self, what: object, seconds: float) -> None:
        if what not in self._paid:
            self._paid.add(what)
            self.cpu_seconds += seconds

    def score(
        self, model: bytes, rows: pa.Table, schema: Schema, calibrator: bytes | None = None
    ) -> pa.Table:
        if "prediction_id" not in rows.column_names:  # golden rows
            return self._shared.trainer.score(model, rows, schema, calibrator)
        return self._shared.score(model, rows, schema, calibrator)

    def query(self, candidate: Candidate) -> Queried:
        return self._shared.trainer.query(candidate)

    def with_twin(self, candidate: Candidate, rows: pa.Table) -> Candidate:  # noqa: ARG002
        """The candidate as it is: nothing is served in a replay."""
        return candidate
