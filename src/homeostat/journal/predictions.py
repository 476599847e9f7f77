"""The tail of predictions: one CSV file per schema, each row once.

It takes tables of served rows and appends them under a lock that all workers share, after it has
read what the others appended. It gives counts, the rows of given ids, and all rows per file.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Generic, TypeVar

import pyarrow as pa

from homeostat.errors import ConflictError, JournalError
from homeostat.journal import lines, shape
from homeostat.journal.disk import Disk, failed, locked
from homeostat.journal.tail import Consumer, Rows, Tail
from homeostat.records import Appended

C = TypeVar("C", bound=Consumer)
_ASIDE = re.compile(r"predictions\.([0-9a-f]{12})\.csv")
_ENTRY = struct.Struct(">8sQI")  # digest of the content, offset and length of the record


class Index:
    """What is known of each id of one file: 20 bytes that tell its content and its place."""

    def __init__(self, columns: pa.Schema) -> None:
        self._columns = columns
        self._features = shape.Shape(columns).features
        self._person = shape.Shape(columns).fingerprint.encode()
        self.entries: dict[bytes, bytes] = {}

    def clear(self) -> None:
        self.entries = {}

    def add(self, data: bytes, offset: int) -> None:
        table = lines.decode(data, self._columns)
        self.note(
            ids(table), self.digests(table), lines.ends(data, table.num_rows).tolist(), offset
        )

    def note(
        self, known: Sequence[bytes], digests: Sequence[bytes], ends: Sequence[int], offset: int
    ) -> None:
        start = 0
        for key, digest, end in zip(known, digests, ends, strict=True):
            self.entries.setdefault(key, _ENTRY.pack(digest, offset + start, end - start))
            start = end

    def digests(self, table: pa.Table) -> list[bytes]:
        """Eight bytes for each row, the same for the same features at the same event time."""
        content = lines.encode(table.select(self._features))
        times = table.column("occurred_at").cast(pa.int64()).to_numpy().tobytes()
        return [
            blake2b(
                times[8 * row : 8 * row + 8] + record, digest_size=8, person=self._person
            ).digest()
            for row, record in enumerate(lines.split(content, table.num_rows))
        ]


def ids(table: pa.Table) -> list[bytes]:
    return list(table.column("prediction_id").cast(pa.binary()).to_pylist())


class Files(Generic[C]):
    """The files of predictions as one process sees them; to be used under the lock."""

    def __init__(self, folder: Path, consumer: Callable[[pa.Schema], C]) -> None:
        self.folder = folder
        self.current = folder / "predictions.csv"
        self.tails: dict[str, Tail] = {}
        self.consumers: dict[str, C] = {}
        self._make = consumer
        self._sidecars: dict[str, tuple[bytes, str]] = {}

    def look(self) -> str | None:
        """Find all files, the current one last; return the fingerprint of the current one."""
        try:
            names = {entry.name for entry in os.scandir(self.folder)}
        except FileNotFoundError:
            names = set()
        present: dict[str, Path] = {}
        for name in sorted(names):
            if match := _ASIDE.fullmatch(name):
                present[self._known(f"predictions.{match[1]}.schema.json")] = self.folder / name
        current = None
        if self.current.name in names:
            current = self._known("predictions.schema.json")
            if current in present:
                raise JournalError(
                    f"{self.current} and {present[current]} have the same columns.",
                    hint="One of them came from a copy; move it out of the folder.",
                )
            present[current] = self.current
        for fingerprint, path in present.items():
            self.tails[fingerprint].path = path
        for gone in self.tails.keys() - present.keys():
            del self.tails[gone], self.consumers[gone]
        self.tails = {fingerprint: self.tails[fingerprint] for fingerprint in present}
        return current

    def _known(self, sidecar: str) -> str:
        """The fingerprint that a schema file tells; its tail is made if it is new."""
        path = self.folder / sidecar
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise failed("read", path, error) from error
        seen = self._sidecars.get(sidecar)
        if seen is None or seen[0] != raw:
            columns = shape.Shape.from_json(raw, sidecar).columns
            seen = self._sidecars[sidecar] = raw, shape.Shape(columns).fingerprint
        if seen[1] not in self.tails:
            columns = shape.Shape.from_json(raw, sidecar).columns
            consumer = self.consumers[seen[1]] = self._make(columns)
            self.tails[seen[1]] = Tail(self.folder / "predictions.csv", columns, consumer)
        return seen[1]


class Predictions:
    """The tail of predictions in `folder`."""

    def __init__(self, folder: Path, disk: Disk, torn: Callable[[Path, int], None]) -> None:
        self._folder = folder
        self._lock = folder / "predictions.lock"
        self._disk = disk
        self._torn = torn
        self._written = Files(folder, Index)
        self._read = Files(folder, Rows)

    def append(self, rows: pa.Table) -> Appended:
        """See `contracts.Journal.append`."""
        rows = shape.conformed(rows)
        index = Index(rows.schema)
        known, digests, data = ids(rows), index.digests(rows), lines.encode(rows)
        with self._caught_up() as current:
            fresh = self._fresh(known, digests)
            if len(fresh) < len(known):
                known, digests = [known[i] for i in fresh], [digests[i] for i in fresh]
                data = lines.encode(rows.take(pa.array(fresh, pa.int64())))
            if fresh:
                ends = lines.ends(data, len(fresh)).tolist()
                fingerprint = self._ready(shape.Shape(rows.schema), current)
                tail = self._written.tails[fingerprint]
                with tail.open(os.O_RDWR | os.O_APPEND) as file:
                    tail.follow(file)
                    self._disk.append(file, data, tail.end, tail.path)
                self._written.consumers[fingerprint].note(known, digests, ends, tail.end)
                tail.appended(len(data))
        return Appended(written=len(fresh), repeated=rows.num_rows - len(fresh))

    def catch_up(self) -> None:
        """Read what others appended, so that the next append has less to do."""
        with self._caught_up():
            pass

    def known(self, wanted: Sequence[str]) -> pa.Table:
        """The rows of the tail that have one of these ids, in the order of the ids."""
        found: dict[bytes, pa.Table] = {}
        # A lone surrogate is no error here: no row has such an id.
        keys = list(dict.fromkeys(key.encode("utf-8", "surrogatepass") for key in wanted))
        with self._caught_up():
            for fingerprint, tail in self._written.tails.items():
                entries = self._written.consumers[fingerprint].entries
                places = {key: _ENTRY.unpack(entries[key]) for key in keys if key in entries}
                if places:
                    with tail.open(os.O_RDONLY) as file:
                        for key, (_, offset, length) in places.items():
                            record = os.pread(file, length, offset)
                            found[key] = lines.decode(record, tail.schema)
        columns = shape.union([table.schema for table in found.values()])
        tables = [shape.aligned(found[key], columns) for key in keys if key in found]
        return pa.concat_tables([columns.empty_table(), *tables])

    def tables(self) -> list[pa.Table]:
        """All rows, one table for each file, that of the current file last."""
        with locked(self._lock, shared=True):
            self._read.look()
            for tail in self._read.tails.values():
                with tail.open(os.O_RDONLY) as file:
                    tail.follow(file)
        return [self._read.consumers[fingerprint].table for fingerprint in self._read.tails]

    @contextmanager
    def _caught_up(self) -> Iterator[str | None]:
        """Hold the lock with every file read to its end and mended; gives the current schema."""
        with locked(self._lock):
            current = self._written.look()
            for tail in self._written.tails.values():
                with tail.open(os.O_RDWR) as file:
                    torn = tail.follow(file)
                    if torn:
                        self._disk.cut(file, tail.end, tail.path)
                        self._torn(tail.path, torn)
            yield current

    def _fresh(self, known: Sequence[bytes], digests: Sequence[bytes]) -> list[int]:
        """Positions of the rows that are new; raises ConflictError for the first that differs."""
        files = [index.entries for index in self._written.consumers.values()]
        here: dict[bytes, bytes] = {}
        fresh = []
        for row, (key, digest) in enumerate(zip(known, digests, strict=True)):
            entry = here.get(key) or next((f[key] for f in files if key in f), None)
            if entry is None:
                here[key] = digest
                fresh.append(row)
            elif entry[:8] != digest:
                raise ConflictError(
                    "the prediction_id is known with other features or another time.",
                    row=row,
                    hint="Give each row an id of its own.",
                )
        return fresh

    def _ready(self, columns: shape.Shape, current: str | None) -> str:
        """Make sure that there is a file for these columns; a file of others is set aside.

        Columns that were set aside before go on in their own file, so that two workers which
        serve different releases for a moment do not push each other's file away.
        """
        fingerprint = columns.fingerprint
        if fingerprint in self._written.tails:
            return fingerprint
        if current is not None:
            old = self._written.tails[current].schema
            aside = self._folder / f"predictions.{current}.csv"
            self._disk.replace(aside.with_suffix(".schema.json"), shape.Shape(old).to_json())
            self._disk.move(self._written.current, aside)
        # The schema first: a file without one could not be read after a crash between the two.
        self._disk.replace(self._folder / "predictions.schema.json", columns.to_json())
        self._disk.replace(self._written.current, lines.header(columns.columns))
        self._written.look()
        return fingerprint
