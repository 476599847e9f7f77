"""The matrix of models and windows: what any plain schedule would have come to is read off it.

Takes what its models share and the children that fit them. Gives the losses of each model on each
row from its step on, bare or by prequential maps; models are fitted side by side, each frame once.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import numpy as np

from homeostat.contracts import Engine
from homeostat.errors import HomeostatError
from homeostat.replay.model import Made, Stream, Work, learned, made

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

P = ParamSpec("P")
T = TypeVar("T")

ALL, LATE = "all", "recent"
"""Names of models: of all mature rows, and of those of the last windows."""


class Children:
    """Some engines, each of which does one call at a time, in the order of asking."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._free: queue.SimpleQueue[Engine] = queue.SimpleQueue()
        for engine in engines:
            self._free.put(engine)
        self._threads = ThreadPoolExecutor(len(engines), thread_name_prefix="replay")

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        return self._threads.submit(self._run, partial(function, *args, **kwargs))

    def _run(self, call: partial[T]) -> T:
        engine = self._free.get()
        try:
            return engine.run(call.func, *call.args, **call.keywords)
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
    folder: Path  # where losses go
    maps: bool  # whether models are judged by maps as well
    _made: dict[tuple[int, str], Future[Made]] = field(default_factory=dict)
    _same: dict[tuple[int, str], tuple[int, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        first = self._begun(0, ALL)
        self.work = replace(self.work, averse=first.result().averse)

    @property
    def steps(self) -> int:
        return len(self.work.starts)

    def begin(self, table: pa.Table, names: Iterable[str], tick: Callable[[], object]) -> int:
        """Begin all models of these names; `tick` is called as each one ends. Their number.

        Steps between which no label came share a model.
        """
        stream, known = Stream(table, self.work.schema), dict[bytes, tuple[int, str]]()
        count = 0
        for name in names:
            for step in range(self.steps):
                key = (step, name)
                taught = learned(self.work, stream, step, recent=name == LATE)
                first = known.setdefault(np.packbits(taught).tobytes(), key)
                self._same[key] = first
                if first == key and key not in self._made:
                    self._begun(step, name)
                    self._made[key].add_done_callback(lambda _: tick())
                    count += 1
        return count

    def _begun(self, step: int, name: str) -> Future[Made]:
        path = self.folder / f"{name}-{step}.npy"
        self._made[step, name] = self.children.submit(
            made, self.work, step, path, recent=name == LATE, maps=self.maps
        )
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
    def seconds(self) -> tuple[float, float, float]:
        """CPU seconds of fits, of scoring, and of maps so far."""
        done = [f.result() for f in self._made.values() if f.done() and not f.exception()]
        return (
            sum(each.fit_seconds for each in done),
            sum(each.score_seconds for each in done),
            sum(each.map_seconds for each in done),
        )
