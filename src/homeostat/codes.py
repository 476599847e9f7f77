"""Codes: 64 bits for each row that are the same for equal rows, and how many rows repeat another.

Takes columns of numbers, texts and booleans. Gives codes that do not depend on what else stands in
a table, so that pieces of rows can be compared, and counts of repeated ones in bounded memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Codes: TypeAlias = NDArray[np.uint64]

MOST = 1 << 21
"""Different codes that a `Repeats` holds, 8 bytes each."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_NULL = np.uint64(0x6A09E667F3BCC909)
_WORD = 8  # bytes


def mixed(values: Codes) -> Codes:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014, OOPSLA): every bit stirs all.

    Different values stay different.
    """
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> np.uint64(31)))


def codes(columns: Iterable[pa.ChunkedArray], rows: int) -> Codes:
    """The code of each row, shape (rows,): equal where all columns are; null is a value.

    The columns are float64, text or boolean. Two of n different rows share a code with a
    probability of about n² / 2⁶⁵.
    """
    found = np.zeros(rows, dtype=np.uint64)
    for column in columns:
        found = mixed(found * _GOLDEN + _cells(column))
    return found


def places(first: int, count: int, seed: int) -> Codes:
    """Codes of the places `first` and on in a sequence, each different, shape (count,)."""
    begun = mixed(np.full(1, seed % (1 << 64), dtype=np.uint64))
    return mixed((np.arange(first, first + count, dtype=np.uint64) + begun) * _GOLDEN)


def _cells(column: pa.ChunkedArray) -> Codes:
    array = column.combine_chunks()
    if pa.types.is_floating(array.type):
        found = np.asarray(array.fill_null(0.0).to_numpy(), dtype=np.float64).view(np.uint64)
    elif pa.types.is_boolean(array.type):
        found = array.fill_null(False).cast(pa.uint8()).to_numpy().astype(np.uint64)
    else:
        found = _texts(array.cast(pa.large_string()).fill_null(""))
    if array.null_count:
        found = np.where(array.is_null().to_numpy(zero_copy_only=False), _NULL, found)
    return found


def _texts(texts: pa.Array) -> Codes:
    """The length of each text and its UTF-8 stirred together, eight bytes at a time."""
    if not len(texts):
        return np.empty(0, dtype=np.uint64)
    _, ends, data = texts.buffers()
    bounds = np.frombuffer(ends, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    held = np.frombuffer(data, np.uint8)[: bounds[-1]] if data else np.empty(0, np.uint8)
    words = np.lib.stride_tricks.sliding_window_view(
        np.concatenate([held, np.zeros(_WORD, np.uint8)]), _WORD
    )
    found = mixed(np.diff(bounds).astype(np.uint64) * _GOLDEN)
    left = np.flatnonzero(np.diff(bounds))
    at = bounds[left]
    while len(left):
        rest = bounds[left + 1] - at
        word = np.ascontiguousarray(words[at]).view("<u8").ravel()
        unused = (_WORD * np.maximum(_WORD - rest, 0)).astype(np.uint64)
        word = (word << unused) >> unused
        found[left] = mixed(found[left] * _GOLDEN + word)
        more = rest > _WORD
        left, at = left[more], at[more] + _WORD
    return found


class Repeats:
    """How many of the rows whose codes are added have the code of another one before them.

    Exact while there are at most `most` different codes. From then on only codes that end in a
    zero bit count, then in two, and so on: all rows of one code or none of them, a share of 2⁻ʲ of
    the codes, chosen by the codes alone (Gibbons 2001, VLDB: distinct sampling). So order and
    partition of the rows change nothing.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._held = np.empty(0, dtype=np.uint64)
        self._zeros = 0  # bits in which the codes end that are held
        self._rows = np.zeros(65, dtype=np.int64)  # by the zero bits in which their codes end

    def add(self, found: Codes) -> None:
        zeros = _zeros(found)
        self._rows += np.bincount(zeros, minlength=65)
        held = np.concatenate([self._held, found[zeros >= self._zeros]])
        held.sort()
        self._held = held[np.append(True, held[1:] != held[:-1])[: len(held)]]
        while len(self._held) > self._most:
            self._zeros += 1
            self._held = self._held[_zeros(self._held) >= self._zeros]

    @property
    def rows(self) -> int:
        return int(self._rows.sum())

    @property
    def count(self) -> int:
        """Rows that repeat another one; a rounded estimate where not all codes are held."""
        counted = int(self._rows[self._zeros :].sum())
        repeated = counted - len(self._held)
        return round(self.rows * repeated / counted) if counted else 0


def _zeros(found: Codes) -> NDArray[np.int64]:
    """In how many zero bits each code ends; 64 for 0."""
    lowest = found & (~found + np.uint64(1))
    return np.asarray(np.bitwise_count(lowest - np.uint64(1))).astype(np.int64)
