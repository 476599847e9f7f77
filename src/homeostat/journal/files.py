"""The files of predictions, one for each schema, as one process sees them.

It takes the folder and what is to be kept in memory of each file. It gives the files by the
fingerprint of their columns; whatever other workers did to them is found out by asking the system
for their state, and only then by reading the folder and the schema files in it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import pyarrow as pa

from homeostat.errors import JournalError
from homeostat.journal import lines, shape
from homeostat.journal.disk import Disk, failed
from homeostat.journal.tail import Consumer, Tail

C = TypeVar("C", bound=Consumer)
_ASIDE = re.compile(r"predictions\.([0-9a-f]{12})\.csv")


class Files(Generic[C]):
    """All methods are for who holds the lock."""

    def __init__(
        self, folder: Path, consumer: Callable[[pa.Schema], C], *, flags: int = os.O_RDONLY
    ) -> None:
        self._folder = folder
        self._current = folder / "predictions.csv"
        self._schema = folder / "predictions.schema.json"
        self.tails: dict[str, Tail] = {}  # the current one last
        self.consumers: dict[str, C] = {}
        self.current: str | None = None  # its fingerprint
        self._make = consumer
        self._flags = flags

    def step(self) -> bool:
        """Read a piece of every file that has grown; whether there may be more."""
        states = {name: tail.state() for name, tail in self.tails.items()}
        if self.current is None or None in states.values():
            self._look()
            states = {}
        more = [tail.step(states.get(name)) for name, tail in self.tails.items()]
        return any(more)

    def follow(self) -> None:
        """Read every file to its end."""
        while self.step():
            pass

    def forget(self) -> None:
        """Begin anew."""
        self.tails, self.consumers, self.current = {}, {}, None

    def ready(self, columns: shape.Shape, disk: Disk) -> Tail:
        """The file for these columns, made if there is none; a current one of others is set aside.

        Columns that were set aside before go on in their own file, so that two workers which
        serve different releases for a moment do not push each other's file away.
        """
        fingerprint = columns.fingerprint
        if fingerprint not in self.tails:
            if self.current is not None:
                old = self.tails[self.current].schema
                aside = self._folder / f"predictions.{self.current}.csv"
                disk.replace(aside.with_suffix(".schema.json"), shape.Shape(old).to_json())
                disk.move(self._current, aside)
            # The schema first: a file without one could not be read after a crash between the two.
            disk.replace(self._schema, columns.to_json())
            disk.replace(self._current, lines.header(columns.columns))
            self.follow()
        return self.tails[fingerprint]

    def discard(self, fingerprint: str, disk: Disk) -> None:
        """Remove a file that was set aside and holds no rows any more."""
        tail = self.tails[fingerprint]
        if fingerprint != self.current and tail.end == tail.start:
            schema = tail.path.with_suffix(".schema.json")
            # The rows' file first: a schema without one is looked at by nobody.
            for path in (tail.path, self._cuts(fingerprint), schema):
                path.unlink(missing_ok=True)
            disk.sync_folder(self._folder)

    def _look(self) -> None:
        """Find all files by what the folder holds."""
        try:
            names = {entry.name for entry in os.scandir(self._folder)}
        except FileNotFoundError:
            names = set()
        present: dict[str, tuple[Path, pa.Schema]] = {}
        for name in sorted(names):
            if match := _ASIDE.fullmatch(name):
                columns = self._told(self._folder / f"predictions.{match[1]}.schema.json")
                present[columns.fingerprint] = self._folder / name, columns.columns
        self.current = None
        if self._current.name in names:
            columns = self._told(self._schema)
            self.current = columns.fingerprint
            if self.current in present:
                raise JournalError(
                    f"{self._current} and {present[self.current][0]} have the same columns.",
                    hint="One of them came from a copy; move it out of the folder.",
                )
            present[self.current] = self._current, columns.columns
        self.tails = {name: self._tail(name, *about) for name, about in present.items()}
        self.consumers = {name: self.consumers[name] for name in present}

    def _tail(self, fingerprint: str, path: Path, columns: pa.Schema) -> Tail:
        tail = self.tails.get(fingerprint)
        if tail is None:
            consumer = self.consumers[fingerprint] = self._make(columns)
            cuts = self._cuts(fingerprint)
            tail = Tail(path, columns, consumer, flags=self._flags, cuts=cuts)
        tail.path = path
        return tail

    def _cuts(self, fingerprint: str) -> Path:
        return self._folder / f"predictions.{fingerprint}.cuts.json"

    def _told(self, path: Path) -> shape.Shape:
        """The columns that a schema file tells."""
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise failed("read", path, error) from error
        return shape.Shape.from_json(raw, path.name)
