"""The matrix of models and windows: what any plain schedule would have come to is read off it.

Takes what its models share and the children that fit them. Gives the losses of each model on each
row from its step on, bare or by prequential maps; models are fitted side by side, each frame once.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from homeostat.contracts import Engine
from homeostat.errors import HomeostatError
from homeostat.replay.fits import Fits, frame_of
from homeostat.replay.model import Made, Stream, Work, judged, learned, tried

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

T = TypeVar("T")

ALL, LATE = "all", "recent"
"""Names of models: of all mature rows, and of those of the last windows."""


class Children:
    """Some engines, each of which does one work at a time, in the order of asking."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._free: queue.SimpleQueue[Engine] = queue.SimpleQueue()
        for engine in engines:
            self._free.put(engine)
        self._threads = ThreadPoolExecutor(len(engines), thread_name_prefix="replay")

    def submit(self, work: Callable[[Engine], T]) -> Future[T]:
        """`work` has the engine to itself."""
        return self._threads.submit(self._run, work)

    def _run(self, work: Callable[[Engine], T]) -> T:
        engine = self._free.get()
        try:
            return work(engine)
        finally:
            self._free.put(engine)

    def close(self) -> None:
        """Nothing that still waits is begun."""
        self._threads.shutdown(wait=True, cancel_futures=True)


@dataclass
class Matrix:
    """Models by step and name. The first one is there at once, or its error is raised; the others
    are begun by `begin` and waited for when they are asked for.
    """

    work: Work
    children: Children
    fits: Fits
    rows: Stream
    folder: Path  # where losses go
    maps: bool  # whether models are judged by maps as well
    loops: bool  # whether any may ask for the model of a frame
    _made: dict[tuple[int, str], Future[Made]] = field(default_factory=dict)
    _same: dict[tuple[int, str], tuple[int, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        first = self._begun(0, ALL, self._frame(0, ALL))
        self.work = replace(self.work, averse=first.result().trial.averse)

    @property
    def steps(self) -> int:
        return len(self.work.starts)

    def begin(self, names: Iterable[str], tick: Callable[[], object]) -> int:
        """Begin all models of these names; `tick` is called as each one ends. Their number.

        Steps between which no label came share a model.
        """
        known = dict[bytes, tuple[int, str]]()
        count = 0
        for name in names:
            for step in range(self.steps):
                key, frame = (step, name), self._frame(step, name)
                first = known.setdefault(frame, key)
                self._same[key] = first
                if first == key and key not in self._made:
                    self._begun(step, name, frame).add_done_callback(lambda _: tick())
                    count += 1
        return count

    def _frame(self, step: int, name: str) -> bytes:
        return frame_of(learned(self.work, self.rows, step, recent=name == LATE))

    def _begun(self, step: int, name: str, frame: bytes) -> Future[Made]:
        work, recent = self.work, name == LATE
        losses = self.folder / f"{name}-{step}.npy"

        def made(engine: Engine) -> Made:
            trial = self.fits.trial(
                frame, lambda path: engine.run(tried, work, step, path, recent=recent)
            )
            found = engine.run(judged, work, step, trial, losses, recent=recent, maps=self.maps)
            if not self.loops:
                trial.model.unlink()
            return found

        self._made[step, name] = self.children.submit(made)
        return self._made[step, name]

    def get(self, step: int, name: str) -> Made | None:
        """The model, once it is fitted; None where its training failed."""
        try:
            return self._made[self._same.get((step, name), (step, name))].result()
        except HomeostatError:
            return None

    def losses(self, step: int, name: str, *, mapped: bool) -> Floats:
        """Of each row from the step on; NaN without a label, infinite where it was refused."""
        origin, name = self._same.get((step, name), (step, name))
        found = self._made[origin, name].result()
        lines = np.load(found.losses, mmap_mode="r")
        ahead = self.work.edges[step] - self.work.edges[origin]
        return np.asarray(lines[1 if mapped else 0][ahead:])

    def costs(self, names: Sequence[str], kept: NDArray[np.bool_]) -> list[Mapping[str, Floats]]:
        """What each model costs in each window from its step on, for `oracle.best_schedule`.

        By maps where there are maps; over the rows that are `kept`, counted from the first window.
        """
        edges = np.asarray(self.work.edges) - self.work.edges[0]
        found: list[Mapping[str, Floats]] = []
        for step in range(self.steps):
            models: dict[str, Floats] = {}
            for name in names if step else (ALL,):
                if self.get(step, name) is not None:
                    loss = self.losses(step, name, mapped=self.maps)
                    loss = np.where(kept[edges[step] :], loss, 0.0)
                    total = np.append(0.0, np.cumsum(loss))
                    models[name] = np.diff(total[edges[step:] - edges[step]])
            found.append(models)
        return found

    @property
    def seconds(self) -> tuple[float, float]:
        """CPU seconds of scoring and of maps so far."""
        done = [f.result() for f in self._made.values() if f.done() and not f.exception()]
        scores, maps = (each.score_seconds for each in done), (each.map_seconds for each in done)
        return sum(scores), sum(maps)
