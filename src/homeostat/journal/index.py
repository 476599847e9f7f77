"""Where the row of each id is, and whether a row that comes again is the same.

It takes records, whole or being written, of one file of predictions. It gives places, and compares
two records by what counts as content: the features and, unless the client gave none, the event
time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

import numpy as np
import pyarrow as pa

from homeostat.journal import lines, shape
from homeostat.journal.lines import Places

_LENGTH = 1 << 32  # a record is shorter than this
_PIECE = 1 << 22  # bytes that are looked at under one hold of the lock
_VALUE = rb'(?:"[^"]*(?:""[^"]*)*"|[^",\n]*)'
# An id, a time, six more values of the system, and then the features.
_SYSTEM = re.compile(_VALUE + b",(" + _VALUE + b")(?:," + _VALUE + b"){6},")


class Index:
    """The place of each id of one file, a `tail.Consumer`.

    Ids are read only once somebody asks for one: who never brings an id of his own costs neither
    the time nor the memory. Until then it is known where records lie that were not looked at.
    """

    def __init__(self, columns: pa.Schema) -> None:  # noqa: ARG002 - as every consumer is made
        self.clear()

    def clear(self) -> None:
        self.places: dict[bytes, int] = {}
        self._asked = False
        self._left: list[tuple[int, int]] = []  # stretches of whole records, by offset

    def add(self, data: bytes, ends: Places, offset: int) -> None:
        if self._asked:
            self._take(data, ends, offset)
        else:
            self._leave(offset, offset + len(data))

    def note(
        self, records: Sequence[bytes], keys: Iterable[bytes] | None, offset: int, size: int
    ) -> None:
        """Records that were just written one after another from `offset` on, `size` bytes in all;
        None for keys that were not worked out.
        """
        if not self._asked:
            self._leave(offset, offset + size)
            return
        sizes = list(map(len, records))
        starts = accumulate(sizes, initial=offset)
        places = (start * _LENGTH + size for start, size in zip(starts, sizes, strict=False))
        self.places.update(zip(keys or map(lines.key, records), places, strict=True))

    def complete(self, read: Callable[[int, int], bytes]) -> bool:
        """Look at some records that were left; whether there are more.

        `read` gives so many bytes from an offset on.
        """
        self._asked = True
        if not self._left:
            return False
        start, end = self._left.pop()
        size = _PIECE
        while not len(ends := lines.ends(data := read(start, min(size, end - start)))):
            if len(data) >= end - start:
                raise pa.ArrowInvalid("a stretch of records has no end")
            size *= 2
        whole = int(ends[-1])
        self._take(data[:whole], ends, start)
        if start + whole < end:
            self._left.append((start + whole, end))
        return bool(self._left)

    def drop(self, bound: int) -> bool:
        first = bound * _LENGTH
        self.places = {key: place for key, place in self.places.items() if place >= first}
        self._left = [(max(start, bound), end) for start, end in self._left if end > bound]
        return True

    def _take(self, data: bytes, ends: Places, offset: int) -> None:
        starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
        places = (starts + offset) * _LENGTH + (ends - starts)
        self.places.update(zip(lines.keys(data, ends), places.tolist(), strict=True))

    def _leave(self, start: int, end: int) -> None:
        if self._left and self._left[-1][1] == start:
            start, _ = self._left.pop()
        self._left.append((start, end))


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
