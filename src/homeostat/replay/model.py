"""One model of the plain schedules: fitted as of one step, and what its answers cost from then on.

Runs in a warm child, which reads the rows from a file that all models share. Takes a step and how
far back its rows reach; gives where the losses lie that came of it, so that no row travels between
processes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from homeostat import fit
from homeostat.binning import moments
from homeostat.errors import TrainingError
from homeostat.recalibrate import fitted as fit_map
from homeostat.records import EPOCH, MICROSECOND
from homeostat.replay.fits import Trial
from homeostat.schema import Schema
from homeostat.scoring import Scorer, losses
from homeostat.settings import Project, Training
from homeostat.train import ScriptTrainer

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]
    Mask: TypeAlias = NDArray[np.bool_]

P = ParamSpec("P")
T = TypeVar("T")

RECENT = 8  # windows that a model of recent rows learns from
MAPPED = 4  # windows of mature rows that a map is fitted on


@dataclass(frozen=True, slots=True)
class Work:
    """What all models of a replay share. Times are microseconds since 1970 in UTC."""

    rows: Path  # Arrow file of the rows in order of time, with `label` and `labelled_at`
    schema: Schema
    script: Path
    project: Project
    training: Training
    block: timedelta
    starts: tuple[int, ...]  # of each window
    edges: tuple[int, ...]  # number of the first row of each window, and that after the last one
    delay: int  # rows younger than this teach and calibrate nothing
    every: int  # length of a window
    averse: frozenset[str] = frozenset()  # features in which the first model takes no null

    def since(self, step: int, *, recent: bool) -> tuple[int, int]:
        """From when to when rows occurred that a model of this step learns from."""
        until = self.starts[step] - self.delay
        return (until - RECENT * self.every if recent else np.iinfo(np.int64).min), until


@dataclass(frozen=True, slots=True)
class Made:
    """One model of the matrix."""

    trial: Trial
    losses: Path  # shape (1 or 2, rows from its step on): bare, and by maps that came before
    score_seconds: float  # of CPU: reading the rows, answering them, and taking the losses
    map_seconds: float


def tried(work: Work, step: int, model_at: Path, *, recent: bool) -> Trial:
    """Fit on all mature rows of that step, or on recent ones.

    Raises TrainingError or SchemaError.
    """
    began = time.process_time()
    held = stream(work.rows, work.schema.to_json())
    rows = held.table.filter(pa.array(learned(work, held, step, recent=recent)))
    if not rows.num_rows:
        raise TrainingError("no row has a label that is old enough to be learned from.")
    cutoff = EPOCH + work.since(step, recent=recent)[1] * MICROSECOND
    fitted = _trainer(work).fitted(rows, work.schema, cutoff=cutoff, trial=True)
    return Trial.kept(fitted, model_at, time.process_time() - began)


def judged(
    work: Work, step: int, trial: Trial, losses_at: Path, *, recent: bool, maps: bool
) -> Made:
    """Let a model of that step answer every later row.

    A row without a label costs NaN, one that a server would refuse costs infinity. Raises
    SchemaError.
    """
    began = time.process_time()
    held = stream(work.rows, work.schema.to_json())
    until = work.since(step, recent=recent)[1]
    # Rows that came before it but are too young to have taught it are the first to calibrate it.
    first = int(np.searchsorted(held.times, until)) if maps else work.edges[step]
    schema = work.schema.without_nulls_in(sorted(trial.averse))
    scorer = Scorer(fit.unpickled(trial.model.read_bytes()), schema)
    output, loss = _answers(scorer, held, first)
    scored = time.process_time()
    from_step = loss[work.edges[step] - first :]
    told = [from_step]
    if maps:
        told.append(_mapped(work, held, step, first, output=output, loss=loss))
    np.save(losses_at, np.stack(told))
    return Made(trial, losses_at, scored - began, time.process_time() - scored)


@dataclass(frozen=True)
class Stream:
    """All rows; a child holds them between calls."""

    table: pa.Table
    schema: Schema

    @cached_property
    def times(self) -> NDArray[np.int64]:
        return moments(self.table)

    @cached_property
    def arrived(self) -> NDArray[np.int64]:
        """When labels came; the largest number where there is none."""
        label, at = (self.table.column(name) for name in ("label", "labelled_at"))
        known = np.asarray(pc.and_(pc.is_valid(label), pc.is_valid(at)))
        never = np.iinfo(np.int64).max
        return np.where(known, np.asarray(at.cast(pa.int64()).fill_null(never)), never)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The features as a model sees them."""
        return self.schema.frame(self.table)

    @cached_property
    def labels(self) -> NDArray[Any]:
        """In the target's own type; any value where there is none."""
        classes = self.schema.target.classes
        filled = self.table.column("label").fill_null(classes[0] if classes else "0.0")
        return self.schema.labels(pa.table({"label": filled}))


@lru_cache(maxsize=1)
def stream(path: Path, schema: str) -> Stream:
    """The rows of a replay's file, and their schema as JSON."""
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
    return Stream(table, Schema.from_json(schema))


def learned(work: Work, held: Stream, step: int, *, recent: bool) -> Mask:
    """The rows that a model of this step learns from: mature, labelled by then, and not refused.

    What came before the first window was never served, so none of it was refused.
    """
    since, until = work.since(step, recent=recent)
    mature = (held.times >= since) & (held.times < until)
    found: Mask = mature & (held.arrived <= work.starts[step])
    refused = _null_in(held.table, work.averse)
    refused[: work.edges[0]] = False
    return found & ~refused


def _null_in(table: pa.Table, names: frozenset[str]) -> Mask:
    refused = np.zeros(table.num_rows, dtype=bool)
    for name in names:
        refused |= np.asarray(pc.is_null(table.column(name), nan_is_null=True))
    return refused


def _answers(scorer: Scorer, held: Stream, first: int) -> tuple[Floats, Floats]:
    """Outputs and losses of the rows from number `first` on."""
    averse = frozenset(f.name for f in scorer.schema.features if not f.nullable)
    refused, target = _null_in(held.table.slice(first), averse), held.schema.target
    known = held.arrived[first:] < np.iinfo(np.int64).max
    shape = (len(refused), len(target.classes)) if target.task == "multiclass" else len(refused)
    output = np.full(shape, np.nan)
    output[~refused] = scorer.answers(held.frame.iloc[first:][~refused])
    loss = np.full(len(refused), np.nan)
    judged = known & ~refused
    loss[judged] = losses(output[judged], held.labels[first:][judged], target)
    loss[refused] = np.inf
    return output, loss


def _mapped(
    work: Work, held: Stream, step: int, first: int, *, output: Floats, loss: Floats
) -> Floats:
    """The losses of each window by the map that was fitted before it began."""
    found, target = loss.copy(), held.schema.target
    labels, arrived = held.labels[first:], held.arrived[first:]
    times = held.times[first:]
    keys = times // (work.block // MICROSECOND)
    for number in range(step, len(work.starts)):
        until = work.starts[number] - work.delay
        since = until - MAPPED * work.every
        past = slice(*np.searchsorted(times, [since, until]).tolist())
        taught = np.isfinite(loss[past]) & (arrived[past] <= work.starts[number])
        if not taught.any():
            continue
        rows = past.start + np.flatnonzero(taught)
        calibrator = fit_map(output[rows], labels[rows], keys[rows], target)
        window = slice(work.edges[number] - first, work.edges[number + 1] - first)
        judged = np.isfinite(loss[window])
        mapped = calibrator.apply(output[window][judged], target)
        found[window][judged] = losses(mapped, labels[window][judged], target)
    return found[work.edges[step] - first :]


def _trainer(work: Work) -> ScriptTrainer:
    return ScriptTrainer(
        _Here(),
        script=work.script,
        project=work.project,
        training=work.training,
        block=work.block,
    )


class _Here:
    """An `Engine` that runs at once: this process is the child already."""

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return function(*args, **kwargs)

    def close(self) -> None:
        """Nothing was started."""
