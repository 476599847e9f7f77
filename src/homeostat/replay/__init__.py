"""Replay: what a policy would have done on one's own history, by the very loop that runs live.

Takes a frame of labelled rows, which of its columns mean what, and names of policies. Gives a
`ReplayResult` that compares them on the same rows: predicted first, in windows of event time, by
the champion of that moment, and learned from only when the label had truly arrived.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time as clock
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter, ValidationError

from homeostat import fit
from homeostat.binning import micro
from homeostat.engines import LocalEngine
from homeostat.errors import HomeostatError, TrainingError
from homeostat.fields import Duration
from homeostat.records import EPOCH, MICROSECOND, Window
from homeostat.replay.fits import Fits
from homeostat.replay.learner import MeteredEngine, Shared
from homeostat.replay.matrix import ALL, LATE, Children, Matrix
from homeostat.replay.model import Stream, Work
from homeostat.replay.policies import BASELINES, Every, Oracle, Ours, Strategy, strategies
from homeostat.replay.result import Cost, Curve, ReplayResult, Row, summarise
from homeostat.replay.run import run
from homeostat.replay.schedules import in_hindsight, scheduled
from homeostat.replay.source import Columns, Source, source
from homeostat.replay.track import Mark, Scene, Track
from homeostat.replay.view import Bar
from homeostat.replay.view import progress as progress_bar
from homeostat.train import ScriptTrainer

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["DEFAULT", "Curve", "Mark", "ReplayResult", "Row", "replay"]

DEFAULT = ("never", "every:4", "every:4+recalibrate", "homeostat", "oracle")
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
    each K-th step on all mature rows, without a gate), `every:K+recalibrate`, `evidently`,
    `homeostat`, `homeostat:NAME=VALUE+…` (with other settings of the section `decide`), `oracle`
    and `oracle:N`; `never` and `every:1`, against which gains are measured, are always there. With
    `project`, that project's settings and its `fit` are used, else those that `homeostat init`
    would write for these rows. Times without a zone are read in `timezone`, else the project's,
    else UTC.

    The same frame and arguments give the same result, but for CPU seconds. Raises HomeostatError,
    naming the column or argument, and TrainingError or EngineError when the first model cannot be
    trained.
    """
    began, length = clock.process_time(), _length(every)
    columns = Columns(time, target, labelled_at, tuple(exclude), task, timezone)
    folder = None if project is None else Path(project)
    with tempfile.TemporaryDirectory(prefix="homeostat-replay-") as made, ExitStack() as opened:
        root = Path(made).resolve()
        found = source(frame, columns, length, project=folder, root=root)
        chosen = strategies(tuple(policies), found.settings.decide)
        engine = MeteredEngine(opened.enter_context(_engine(found)))
        scene, trainer = _scene(found, engine, length, start)
        children = Children([opened.enter_context(_engine(found)) for _ in range(_cores())])
        opened.callback(children.close)
        with progress_bar(shown=progress) as bar, _first(scene):
            matrix = _matrix(scene, found, chosen, children, root)
            shared = Shared(trainer, engine, scene, matrix.fits)
            tracks = _tracks(scene, matrix, chosen, shared, bar)
        said = [*found.said, *_told(chosen, tracks)]
        cost = _cost(matrix, engine, rest=clock.process_time() - began)
        return summarise(scene, tracks, chosen, said, cost)


def _engine(found: Source) -> LocalEngine:
    training = found.settings.training
    return LocalEngine(timeout=training.timeout, memory=training.memory, threads=training.threads)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _first(scene: Scene) -> Iterator[None]:
    """After the first training every failure keeps the champion, so that only it raises."""
    try:
        yield
    except TrainingError as error:
        delay = scene.settings.labels.delay / timedelta(days=1)
        raise TrainingError(
            f"the first model cannot be trained on {scene.windows[0].start:%Y-%m-%d}: "
            f"{error.message}",
            hint=f"Start later. Rows are learned from when they are {delay:g} days old "
            "(labels.delay).",
        ) from error


def _matrix(
    scene: Scene, found: Source, chosen: Sequence[Strategy], children: Children, root: Path
) -> Matrix:
    """The matrix with its first model."""
    rows = root / "rows.arrow"
    with pa.OSFile(str(rows), "wb") as sink, pa.ipc.new_file(sink, scene.rows.schema) as writer:
        writer.write_table(scene.rows)
    settings = scene.settings
    work = Work(
        rows=rows,
        schema=scene.schema,
        script=found.script,
        project=settings.project,
        training=settings.training,
        block=settings.monitor.block,
        starts=tuple(micro(window.start) for window in scene.windows),
        edges=tuple(scene.edges),
        delay=settings.labels.delay // MICROSECOND,
        every=scene.windows[0].length // MICROSECOND,
    )
    maps = any(isinstance(s, Oracle) or (isinstance(s, Every) and s.recalibrate) for s in chosen)
    loops = any(isinstance(s, Ours) for s in chosen)
    fits, stream = Fits(scene.rows, root), Stream(scene.rows, scene.schema)
    return Matrix(work, children, fits, stream, root, maps, loops)


def _tracks(
    scene: Scene, matrix: Matrix, chosen: Sequence[Strategy], shared: Shared, bar: Bar
) -> list[Track]:
    """The way of each policy, in order, and then of the baselines that are not among them.

    The loops run while the children fit the matrix; the oracle waits for all of them.
    """
    everyone = [*chosen, *(each for each in BASELINES if each not in chosen)]
    names = (ALL, LATE) if any(isinstance(each, Oracle) for each in chosen) else (ALL,)
    models = matrix.begin(names, bar.tick)
    loops = [each for each in everyone if isinstance(each, Ours)]
    bar.expect(models + len(loops) * len(scene.windows))
    done: dict[str, Track] = {}
    for ours in loops:
        bar.say(ours.name)
        done[ours.name] = run(scene, shared, ours, bar.tick)
    bar.say("models")
    for each in everyone:
        if not isinstance(each, Ours | Oracle):
            done[each.name] = scheduled(scene, matrix, each)
    most = [done[each.name].retrains for each in loops or everyone if each.name in done]
    kept = list(done.values())
    for each in everyone:
        if isinstance(each, Oracle):
            retrains = most[0] if each.retrains is None else each.retrains
            done[each.name] = in_hindsight(scene, matrix, each.name, retrains, kept)
    return [done[each.name] for each in everyone]


def _told(chosen: Sequence[Strategy], tracks: Sequence[Track]) -> Iterator[str]:
    """What the reader of a table with an oracle must know."""
    if any(isinstance(each, Oracle) and each.retrains is None for each in chosen):
        ours = next((each for each in chosen if isinstance(each, Ours)), chosen[0])
        most = next(track.retrains for track in tracks if track.policy == ours.name)
        yield f"oracle: at most {most} retrains, as many as {ours.name} made."


def _cost(matrix: Matrix, engine: MeteredEngine, rest: float) -> Cost:
    """`matrix.fits` counts what `engine` fitted; what else that did for the loops is told apart."""
    scores, maps = matrix.seconds
    fits, answers = (engine.spent.get(call.__qualname__, 0.0) for call in (fit.fit, fit.score))
    finished = sum(engine.spent.values()) - fits - answers
    return Cost(matrix.fits.seconds + finished, scores + answers, maps, rest)


def _scene(
    found: Source, engine: MeteredEngine, every: timedelta, start: float | datetime | str
) -> tuple[Scene, ScriptTrainer]:
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
    rows = rows.sort_by(order).combine_chunks()
    return Scene(rows, found.settings, schema, windows), trainer


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
