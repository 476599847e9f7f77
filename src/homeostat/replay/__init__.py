"""Replay: what a policy would have done on one's own history, by the very loop that runs live.

Takes a frame of labelled rows, which of its columns mean what, and names of policies. Gives a
`ReplayResult` that compares them on the same rows: predicted first, in windows of event time, by
the champion of that moment, and learned from only when the label had truly arrived.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pyarrow.compute as pc
from pydantic import TypeAdapter, ValidationError

from homeostat.engines import LocalEngine
from homeostat.errors import HomeostatError
from homeostat.records import EPOCH, Window
from homeostat.replay.learner import MeteredEngine, Shared
from homeostat.replay.policies import Terms, strategies
from homeostat.replay.result import Curve, ReplayResult, Row, summarise
from homeostat.replay.run import Scene, run
from homeostat.replay.source import Columns, Source, source
from homeostat.replay.view import progress as progress_bar
from homeostat.settings import Duration
from homeostat.train import ScriptTrainer

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["DEFAULT", "Curve", "ReplayResult", "Row", "replay"]

DEFAULT = ("never", "every:4", "homeostat")
"""Policies that are compared where none is named."""
SHARE = 0.2  # of the time that trains the first model
MOST = 5_000  # windows


def replay(
    frame: pd.DataFrame,
    *,
    time: str,
    target: str,
    every: timedelta | str,
    labelled_at: str | None = None,
    exclude: Sequence[str] = (),
    task: str | None = None,
    timezone: str | None = None,
    policies: Sequence[str] = DEFAULT,
    start: float | datetime | str = SHARE,
    project: Path | str | None = None,
    progress: bool = False,
) -> ReplayResult:
    """Run each policy over the rows of `frame`, in the order of the column `time`.

    `target` is predicted from all columns but `time`, `labelled_at`, `exclude` and those that
    cannot be features. The first model trains at `start`: a share of the time that the rows span,
    or a moment. Then come windows of the length `every` (a timedelta, or text like '7d'); after
    each of them the loop takes one step. A label counts from its time in `labelled_at` on, or
    `every` after its row where that is not known. `policies` are `never`, `every:K` (retrain at
    each K-th step on all labelled rows, without a gate) and `homeostat`. With `project`, that
    project's settings and its `fit` are used, else those that `homeostat init` would write for
    these rows. Times without a zone are read in `timezone`, else the project's, else UTC.

    The same frame and arguments give the same result, but for the CPU seconds. Raises
    HomeostatError, naming the column or argument, and TrainingError or EngineError when the first
    model cannot be trained.
    """
    length = _length(every)
    columns = Columns(time, target, labelled_at, tuple(exclude), task, timezone)
    folder = None if project is None else Path(project)
    with tempfile.TemporaryDirectory(prefix="homeostat-replay-") as made:
        found = source(frame, columns, length, project=folder, root=Path(made).resolve())
        training = found.settings.training
        with LocalEngine(
            timeout=training.timeout, memory=training.memory, threads=training.threads
        ) as engine:
            scene = _scene(found, MeteredEngine(engine), length, start)
            terms = Terms(scene.windows[0].start, length, found.settings.decide)
            chosen = strategies(tuple(policies), terms)
            with progress_bar(len(chosen), len(scene.windows), shown=progress) as begin:
                tracks = [run(scene, each, begin(each.name)) for each in chosen]
            return summarise(scene, tracks, found.said)


def _scene(
    found: Source, engine: MeteredEngine, every: timedelta, start: float | datetime | str
) -> Scene:
    trainer = ScriptTrainer(
        engine,
        script=found.script,
        project=found.settings.project,
        training=found.settings.training,
        block=found.settings.monitor.block,
    )
    schema = trainer.schema_of(found.table)
    times = pc.min_max(found.table.column("occurred_at")).as_py()
    first, last = (times[name].astimezone(UTC) for name in ("min", "max"))
    begin = _start(start, first, last, found)
    if begin + every > last:
        raise HomeostatError(
            f"from {begin:%Y-%m-%d %H:%M} UTC to the last row are fewer than two windows.",
            hint="Start earlier, or take shorter windows (--every).",
        )
    count = (last - begin) // every + 1
    if count > MOST:
        raise HomeostatError(f"{count:,} windows are more than {MOST:,}.", hint="Take longer ones.")
    windows = tuple(Window(begin + i * every, begin + (i + 1) * every) for i in range(count))
    rows = trainer.rows_of(found.table, schema, begin)
    order = [("occurred_at", "ascending"), ("prediction_id", "ascending")]
    shared = Shared(trainer, engine, schema)
    return Scene(rows.sort_by(order).combine_chunks(), found.settings, windows, shared)


def _length(every: timedelta | str) -> timedelta:
    try:
        length = TypeAdapter(Duration).validate_python(every)
    except ValidationError:
        raise HomeostatError(
            f"every={every!r} is no length of time.", hint="Write '7d' or '12h', for example."
        ) from None
    if length <= timedelta(0):
        raise HomeostatError("a window must be longer than nothing (every).")
    return length


def _start(
    start: float | datetime | str, first: datetime, last: datetime, found: Source
) -> datetime:
    """When the first model trains; a share of the time is rounded down to a whole block."""
    moment = _moment(start)
    if isinstance(moment, float):
        if not 0 < moment < 1:
            raise HomeostatError(f"start={start} is no share between 0 and 1.")
        block = found.settings.monitor.block
        return EPOCH + ((first + moment * (last - first) - EPOCH) // block) * block
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=ZoneInfo(found.settings.project.timezone or "UTC"))
    if not first < moment < last:
        raise HomeostatError(
            f"start={start} is not between the first row ({first}) and the last ({last})."
        )
    return moment.astimezone(UTC)


def _moment(start: float | datetime | str) -> float | datetime:
    if isinstance(start, datetime):
        return start
    try:
        return float(start)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(str(start))
    except ValueError:
        raise HomeostatError(
            f"start={start!r} is neither a share nor a time.", hint="Write 0.2 or 2024-03-01."
        ) from None


class _Callable(ModuleType):
    """`homeostat.replay` is this module once it was imported, and the function before."""

    def __call__(self, *args: Any, **kwargs: Any) -> ReplayResult:
        return replay(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
