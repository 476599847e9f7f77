"""Where the row of each id is, and whether a row that comes again is the same.

It takes records, whole or being written, of one file of predictions. It gives places, and compares
two records by what counts as content: the features and, unless the client gave none, the event
time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import accumulate

import numpy as np
import pyarrow as pa

from homeostat.journal import lines, shape
from homeostat.journal.lines import Places

_LENGTH = 1 << 32  # a record is shorter than this
_VALUE = rb'(?:"[^"]*(?:""[^"]*)*"|[^",\n]*)'
# An id, a time, six more values of the system, and then the features.
_SYSTEM = re.compile(_VALUE + b",(" + _VALUE + b")(?:," + _VALUE + b"){6},")


class Index:
    """The place of each id of one file, a `tail.Consumer`."""

    def __init__(self, columns: pa.Schema) -> None:  # noqa: ARG002 - as every consumer is made
        self.places: dict[bytes, int] = {}

    def clear(self) -> None:
        self.places = {}

    def add(self, data: bytes, ends: Places, offset: int) -> None:
        starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
        places = (starts + offset) * _LENGTH + (ends - starts)
        self.places.update(zip(lines.keys(data, ends), places.tolist(), strict=True))

    def note(self, keys: Iterable[bytes], sizes: Sequence[int], offset: int) -> None:
        """Records that were just written one after another from `offset` on."""
        starts = accumulate(sizes, initial=offset)
        places = (start * _LENGTH + size for start, size in zip(starts, sizes, strict=False))
        self.places.update(zip(keys, places, strict=True))

    def drop(self, bound: int) -> bool:
        first = bound * _LENGTH
        self.places = {key: place for key, place in self.places.items() if place >= first}
        return True


def located(place: int) -> tuple[int, int]:
    """The offset and the length of a record."""
    return divmod(place, _LENGTH)


def same(one: bytes, other: bytes, columns: pa.Schema, *, timed: bool) -> bool:
    """Whether two records of these columns have the same content; `timed` if times count.

    Raises pa.ArrowInvalid for what is no record of these columns.
    """
    left, right = _SYSTEM.match(one), _SYSTEM.match(other)
    if (
        left is not None
        and right is not None
        and one[left.end() :] == other[right.end() :]
        and (left[1] == right[1] or not timed)
    ):
        return True
    # Earlier versions wrote quotes around numbers, too: what is written in two ways may be equal.
    names = [*shape.Shape(columns).features, *["occurred_at"] * timed]
    first, second = (lines.decode(record, columns).select(names) for record in (one, other))
    return bool(first.equals(second))
