"""The tail of predictions: one CSV file per schema, each row once.

It takes the served rows of one or more requests and appends them by one write, under a lock that
all workers share, after it has read what the others appended. It gives what became of each
request, the rows of given ids, and all rows per file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from homeostat.entries import Appended, Committed, Entry
from homeostat.errors import ConflictError, JournalError
from homeostat.journal import lines, shape
from homeostat.journal.disk import Disk, Lock, Opened
from homeostat.journal.files import Files
from homeostat.journal.index import Index, located, same
from homeostat.journal.portion import LIMIT, Cut, Stretch, moved
from homeostat.journal.shelf import Shelf, Shelved
from homeostat.journal.tail import Nothing, Portion, Tail, at_end

_NONE: frozenset[bytes] = frozenset()


class _Requests(NamedTuple):
    """The records of several requests, one behind the other."""

    records: list[bytes]
    sizes: list[int]  # rows of each request
    untimed: list[frozenset[bytes]]  # keys of each request
    made: bool  # no id can be known


class _Columns:
    """What is worked out once for the columns of a schema."""

    def __init__(self, columns: pa.Schema) -> None:
        shape.checked(columns)
        self.given = columns
        self.shape = shape.Shape(columns)
        self.fingerprint = self.shape.fingerprint
        self.encoder = lines.Encoder(columns)

    def requests(self, entries: Sequence[Entry]) -> _Requests:
        records = self.encoder.records([row for entry in entries for row in entry.rows])
        untimed = [
            frozenset(map(lines.key_of, entry.untimed)) if entry.untimed else _NONE
            for entry in entries
        ]
        sizes = [len(entry.rows) for entry in entries]
        return _Requests(records, sizes, untimed, all(entry.made for entry in entries))


class Predictions:
    """The tail of predictions in `folder`."""

    def __init__(self, folder: Path, disk: Disk, torn: Callable[[Path, int], None]) -> None:
        self._folder = folder
        self._lock = Lock(folder / "predictions.lock")
        self._cutting = Lock(folder / "predictions.cut.lock")
        self._disk = disk
        self._torn = torn
        self._columns: _Columns | None = None
        self._generation = self._lock.generation
        shelf = partial(Shelf, folder=folder, ordered=True)
        self._written = Files(folder, Index, flags=os.O_RDWR | os.O_APPEND)
        self._read = Files(folder, shelf)
        self._fronts = Files(folder, Nothing)

    def commit(
        self, columns: pa.Schema, entries: Sequence[Entry]
    ) -> list[Committed | ConflictError]:
        """See `FileJournal.commit`."""
        known = self._prepared(columns)
        group = self._write(known, known.requests(entries))
        return group.results(known.given)

    def append(self, rows: pa.Table) -> Appended:
        """See `contracts.Journal.append`."""
        rows = shape.conformed(rows)
        known = self._prepared(rows.schema)
        records = list(known.encoder.of(rows))
        requests = _Requests(records, [len(records)], [_NONE], made=False)
        group = self._write(known, requests)
        (result,) = group.outcomes
        if isinstance(result, ConflictError):
            raise result
        return Appended(written=rows.num_rows - len(result), repeated=len(result))

    def catch_up(self) -> None:
        """Read what others appended, so that the next append has less to do."""
        self._disk.trusted()
        with self._caught_up():
            pass

    def known(self, wanted: Sequence[str]) -> pa.Table:
        """The rows of the tail that have one of these ids, in the order of the ids."""
        found: dict[bytes, pa.Table] = {}
        keys = list(dict.fromkeys(map(lines.key_of, wanted)))
        seen = _Seen()
        with self._caught_up(asked=True) as files:
            for key in keys:
                for name, index in files.consumers.items():
                    if key in index.places and key not in found:
                        record = seen.record(files.tails[name], index.places[key])
                        found[key] = _decoded(record, files.tails[name].schema)
        seen.sync(self._disk)
        columns = shape.union([table.schema for table in found.values()])
        tables = [shape.aligned(found[key], columns) for key in keys if key in found]
        return pa.concat_tables([columns.empty_table(), *tables])

    def shelved(self) -> list[Shelved]:
        """All rows, those of each file, the current one last. For one thread at a time.

        What is read is parsed without the lock.
        """
        with at_end(self._lock, self._step(self._read), shared=True, between=self._settle):
            pass
        self._settle()
        return [self._read.consumers[name].shelved() for name in self._read.tails]

    def portions(self, before: datetime, now: datetime, limit: int = LIMIT) -> list[Portion]:
        """Of each file the first rows, `limit` at most, as far as all were recorded `before`; see
        `Stretch.portion`.
        """
        portions = [
            front.portion(name, before, now, limit) for name, front in self._stretches().items()
        ]
        return [portion for portion in portions if portion is not None]

    def cut(self, portion: Portion, keep: pa.Table | None = None) -> bool:
        """Cut the portion off, durably; rows of `keep` take its place.

        False where the file does not begin with the portion any more. Raises JournalError when
        the file stays as it was.
        """
        with self._cutting.held():
            front = self._stretches().get(portion.fingerprint)
            if front is None or not front.begins_with(portion):
                return False
            kept = [lines.encode(shape.cast(keep, front.schema))] if keep is not None else []
            return self._replaced(portion.fingerprint, Cut(front, portion.length, kept, self._disk))

    def erase(self, ids: pa.Array) -> None:
        """Write each file anew that has rows of these ids, without them. Raises JournalError."""
        with self._cutting.held():
            for name, front in self._stretches().items():
                if front.has(ids):
                    cut = Cut(front, front.size, front.without(ids), self._disk)
                    if not self._replaced(name, cut):
                        raise moved(front.path)

    def _replaced(self, fingerprint: str, cut: Cut) -> bool:
        """Put the cut file in place; False where the old one is not there any more."""
        with at_end(self._lock, self._step(self._fronts)):
            tail = self._fronts.tails.get(fingerprint)
            if tail is None or not cut.replace(tail):
                return False
            if tail.torn:  # it stayed behind
                self._torn(tail.path, tail.torn)
            self._fronts.follow()
            self._fronts.discard(fingerprint, self._disk)
        return True

    def _stretches(self) -> dict[str, Stretch]:
        with at_end(self._lock, self._step(self._fronts), shared=True):
            return {name: Stretch.of(tail) for name, tail in self._fronts.tails.items()}

    def _settle(self) -> None:
        for name, shelf in self._read.consumers.items():
            try:
                shelf.settle()
            except pa.ArrowInvalid:
                raise self._read.tails[name].misfit() from None  # Arrow's text holds the value

    def _step(self, files: Files[Any]) -> Callable[[], bool]:
        """Reads a piece of `files`, for who holds the lock."""

        def step() -> bool:
            # In a forked child what is in memory may be half done.
            if self._generation != self._lock.generation:
                self._generation = self._lock.generation
                for known in (self._written, self._read, self._fronts):
                    known.forget()
            return files.step()

        return step

    def _prepared(self, columns: pa.Schema) -> _Columns:
        known = self._columns
        if known is None or not (known.given is columns or known.given.equals(columns)):
            known = self._columns = _Columns(columns)
        return known

    @contextmanager
    def _caught_up(self, *, asked: bool = False) -> Iterator[Files[Index]]:
        """Hold the lock with every file read to its end and mended; `asked` if for ids."""
        step = self._step(self._written)
        with at_end(self._lock, (lambda: step() or self._look_up()) if asked else step):
            for tail in self._written.tails.values():
                if tail.torn:
                    self._disk.cut(tail.file.file, tail.place(tail.end), tail.path)
                    self._torn(tail.path, tail.torn)
                    tail.torn = 0
            yield self._written

    def _look_up(self) -> bool:
        """Read ids that were not asked for until now; whether there are more."""
        tails = self._written.tails
        more = False
        for name, index in self._written.consumers.items():
            try:
                more |= index.complete(tails[name].read)
            except pa.ArrowInvalid:
                raise tails[name].misfit() from None
        return more

    def _write(self, columns: _Columns, requests: _Requests) -> _Group:
        """Write what is new, and return when all of it and all that is repeated is durable."""
        self._disk.trusted()
        with self._caught_up(asked=not requests.made) as files:
            group = _Group(columns, files)
            group.take(requests)
            if records := group.records:
                tail = files.tails.get(columns.fingerprint)
                tail = tail or files.ready(columns.shape, self._disk)
                data = b"".join(records)
                self._disk.write(tail.file.file, data, tail.place(tail.end), tail.path)
                index = files.consumers[columns.fingerprint]
                index.note(records, group.keys, tail.end, len(data))
                tail.appended(len(data))
                group.seen.note(tail, tail.end)
        group.seen.sync(self._disk)
        return group


class _Seen:
    """Which files an answer rests on, and up to where: that much must be durable before it."""

    def __init__(self) -> None:
        self._files: dict[Opened, tuple[int, Path]] = {}

    def note(self, tail: Tail, end: int) -> None:
        before, _ = self._files.get(tail.file, (0, tail.path))
        self._files[tail.file] = max(before, end), tail.path

    def record(self, tail: Tail, place: int) -> bytes:
        offset, length = located(place)
        self.note(tail, offset + length)
        return tail.read(offset, length)

    def sync(self, disk: Disk) -> None:
        for opened, (end, path) in self._files.items():
            disk.sync(opened, end, path)


class _Group:
    """Requests that are written together; a later one knows what an earlier one brings."""

    def __init__(self, columns: _Columns, files: Files[Index]) -> None:
        self._columns = columns
        self._files = files
        self._sizes: list[int] = []
        self.records: Sequence[bytes] = ()  # to be written
        self.keys: Sequence[bytes] | None = None  # theirs, where they had to be worked out
        self.outcomes: list[list[bytes] | ConflictError] = []  # or the records that were repeated
        self.seen = _Seen()

    def take(self, requests: _Requests) -> None:
        """All at once where every row is new, or else one request after another."""
        self._sizes = requests.sizes
        if requests.made or self._all_new(requests):
            self.records = requests.records
            self.outcomes = [[] for _ in requests.sizes]
            return
        pending: dict[bytes, bytes] = {}
        rows = ((lines.key(record), record) for record in requests.records)
        for size, untimed in zip(requests.sizes, requests.untimed, strict=True):
            try:
                self.outcomes.append(self._sorted_out(list(islice(rows, size)), untimed, pending))
            except ConflictError as error:
                self.outcomes.append(error)
        self.keys, self.records = list(pending), list(pending.values())

    def _all_new(self, requests: _Requests) -> bool:
        keys = list(map(lines.key, requests.records))
        distinct = dict.fromkeys(keys).keys()
        # Of two views, unlike of two sets, the shorter one is gone through.
        known = [index.places.keys() for index in self._files.consumers.values()]
        new = len(distinct) == len(keys) and all(map(distinct.isdisjoint, known))
        self.keys = keys if new else None
        return new

    def _sorted_out(
        self,
        rows: Sequence[tuple[bytes, bytes]],
        untimed: frozenset[bytes],
        pending: dict[bytes, bytes],
    ) -> list[bytes]:
        """Add what is new of the keys and records to `pending`; return the recorded rows of the
        rest.
        """
        new: dict[bytes, bytes] = {}
        repeated = []
        for row, (key, record) in enumerate(rows):
            before = new.get(key) or pending.get(key) or self._recorded(key, row)
            if before is None:
                new[key] = record
                continue
            if not _same(before, record, self._columns.given, timed=key not in untimed):
                raise _conflict(row)
            repeated.append(before)
        pending.update(new)
        return repeated

    def _recorded(self, key: bytes, row: int) -> bytes | None:
        for name, index in self._files.consumers.items():
            place = index.places.get(key)
            if place is not None:
                if name != self._columns.fingerprint:
                    raise _conflict(row)  # other features
                return self.seen.record(self._files.tails[name], place)
        return None

    def results(self, columns: pa.Schema) -> list[Committed | ConflictError]:
        """What became of each request."""
        lists = [outcome for outcome in self.outcomes if isinstance(outcome, list)]
        records = b"".join(record for found in lists for record in found)
        recorded = _decoded(records, columns) if records else None
        results: list[Committed | ConflictError] = []
        start = 0
        for outcome, size in zip(self.outcomes, self._sizes, strict=True):
            if isinstance(outcome, ConflictError):
                results.append(outcome)
            elif recorded is None or not outcome:
                results.append(_plain(size))
            else:
                count = len(outcome)
                rows = recorded.slice(start, count)
                results.append(Committed(size - count, count, rows))
                start += count
        return results


@lru_cache(maxsize=128)
def _plain(rows: int) -> Committed:
    return Committed(rows, 0)


def _conflict(row: int) -> ConflictError:
    return ConflictError(
        "the prediction_id is known with other features or another time.",
        row=row,
        hint="Give each row an id of its own.",
    )


def _same(one: bytes, other: bytes, columns: pa.Schema, *, timed: bool) -> bool:
    try:
        return same(one, other, columns, timed=timed)
    except pa.ArrowInvalid:
        raise _misfit() from None


def _decoded(records: bytes, columns: pa.Schema) -> pa.Table:
    try:
        return lines.decode(records, columns)
    except pa.ArrowInvalid:
        raise _misfit() from None


def _misfit() -> JournalError:
    return JournalError(
        "a recorded row does not fit its columns.",
        hint="Was a file of the journal edited? Restore it from a copy, or move it aside.",
    )
