"""Fits: a frame of a replay is fitted once, by whichever loop or schedule asks for it first.

Takes the ids of the whole stream, and what fits a frame. Gives the trial of that frame to everyone
who asks; the model itself lies in a file, so that no more is held than is used.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from homeostat.fit import Fitted
from homeostat.schema import Schema

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]

MODEL = "model"


@dataclass(frozen=True, slots=True)
class Trial:
    """What a trial of the stream's own schema came to; it may travel between processes."""

    fitted: Fitted  # without the model
    model: Path
    seconds: float  # of CPU, all threads

    @classmethod
    def kept(cls, fitted: Fitted, model: Path, seconds: float) -> Trial:
        """The model is written to the file of that name."""
        rest = dict(fitted.objects)
        model.write_bytes(rest.pop(MODEL))
        return cls(replace(fitted, objects=rest), model, seconds)

    @property
    def whole(self) -> Fitted:
        """With the model, as it was fitted."""
        model = {MODEL: self.model.read_bytes()}
        return replace(self.fitted, objects=model | self.fitted.objects)

    @property
    def averse(self) -> frozenset[str]:
        """Features in which the model takes no null."""
        schema = Schema.from_json(self.fitted.objects["schema"])
        return frozenset(f.name for f in schema.features if not f.nullable)


class Fits:
    """Trials by frame. A frame is the set of its rows: in one replay an id stands for its row and
    its label, and all fits take rows in one order.
    """

    def __init__(self, rows: pa.Table, folder: Path) -> None:
        self._rows = rows
        self._folder = folder
        self._turn = threading.Lock()
        self._made: dict[bytes, Future[Trial]] = {}

    @cached_property
    def _places(self) -> dict[str, int]:
        ids = self._rows.column("prediction_id").to_pylist()
        return {name: place for place, name in enumerate(ids)}

    def frame(self, rows: pa.Table) -> bytes:
        """The key of the frame of these rows, which are rows of the stream."""
        taken = np.zeros(self._rows.num_rows, dtype=bool)
        taken[self.places(rows)] = True
        return frame_of(taken)

    def places(self, rows: pa.Table) -> NDArray[np.int64]:
        """Where in the stream these rows are, shape (rows,)."""
        ids = rows.column("prediction_id").to_pylist()
        return np.fromiter(map(self._places.__getitem__, ids), np.int64, len(ids))

    def trial(self, frame: bytes, make: Callable[[Path], Trial]) -> Trial:
        """What `make` gives of the path for its model; of those who ask at once, one makes it.

        Raises what making it raised, each time that it is asked for.
        """
        with self._turn:
            known = self._made.get(frame)
            made = known or self._made.setdefault(frame, Future())
        if known is None:
            try:
                made.set_result(make(self._folder / f"{frame.hex()}.model"))
            except BaseException as error:
                made.set_exception(error)
                raise
        return made.result()

    @property
    def seconds(self) -> float:
        """CPU seconds of all fits so far."""
        done = [made for made in self._made.values() if made.done() and not made.exception()]
        return sum(made.result().seconds for made in done)


def frame_of(taken: Mask) -> bytes:
    """Of the frame of those rows of the stream; shape (rows of the stream,)."""
    return hashlib.sha256(np.packbits(taken).tobytes()).digest()
