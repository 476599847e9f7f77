"""A journal, releases and an audit trail that live in memory: the loop's stores in a replay.

They take and give what `contracts` says, as the stores in files do, and share their join and their
columns; nothing is written anywhere. With them come a clock that is moved by hand and a reporter
that remembers the last status and counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from homeostat.audit import jsonable
from homeostat.binning import micro
from homeostat.entries import Appended, Labelled, Refusal, Sealed
from homeostat.errors import ConflictError, JournalError, ReleaseError
from homeostat.journal import join, jsonl, shape
from homeostat.order import ordered
from homeostat.past import Past, past
from homeostat.records import EPOCH, Candidate, Evidence, Json, Release, Verdict, Window
from homeostat.release import released
from homeostat.schema import SYSTEM, TIMESTAMP, Schema

if TYPE_CHECKING:
    from numpy.typing import NDArray

PIECE = 1 << 19  # rows that a scan gives at a time
_KEYS = pa.schema([(name, SYSTEM[name]) for name in ("occurred_at", "prediction_id")])


@dataclass
class SimulatedClock:
    """A clock that stands at `time` until that is set; aware UTC."""

    time: datetime

    def now(self) -> datetime:
        return self.time


@dataclass(frozen=True)
class _View:
    """Rows in their order, and the place of the row of each label that has one: looked up once for
    all reads between two writes.
    """

    tables: Sequence[pa.Table]
    order: pa.Array | None  # of the rows of all tables; None where they are in order as they came
    times: NDArray[np.int64]  # microseconds since 1970, ascending
    labels: pa.Table  # `join.ARRIVALS`, by the place of their rows
    places: NDArray[np.int64]  # ascending, shape (labels,)
    _aligned: dict[pa.Schema, pa.Table] = field(default_factory=dict)

    @classmethod
    def of(cls, tables: Sequence[pa.Table], labels: Sequence[pa.Table]) -> _View:
        known = _KEYS.empty_table(), *(table.select(_KEYS.names) for table in tables)
        keys = pa.concat_tables(known)
        rows = ordered(keys.append_column("place", pa.array(np.arange(keys.num_rows))))
        order = rows.column("place").combine_chunks()
        moved = bool((np.diff(order.to_numpy()) != 1).any())
        came = pa.concat_tables([shape.LABELS.empty_table(), *labels])
        came = join.arrivals(came, np.arange(came.num_rows))
        came, places = join.placed(came, rows.column("prediction_id"))
        by_place = np.argsort(places, kind="stable")
        return cls(
            tuple(tables),
            order if moved else None,
            np.asarray(rows.column("occurred_at").cast(pa.int64()).to_numpy()),
            came.take(pa.array(by_place)),
            places[by_place],
        )

    def rows(self, columns: pa.Schema) -> pa.Table:
        """All rows, with these columns."""
        if columns not in self._aligned:
            tables = [shape.aligned(table, columns) for table in self.tables]
            rows = pa.concat_tables([columns.empty_table(), *tables])
            self._aligned[columns] = rows if self.order is None else rows.take(self.order)
        return self._aligned[columns]

    def within(self, window: Window | None) -> tuple[int, int]:
        """Where the rows of a window begin and end."""
        if window is None:
            return 0, len(self.times)
        first, last = np.searchsorted(self.times, [micro(window.start), micro(window.end)])
        return int(first), int(last)

    def labelled(self, first: int, last: int) -> tuple[pa.Table, NDArray[np.int64]]:
        """The labels of the rows at these places, and the place of each from `first` on."""
        low, high = np.searchsorted(self.places, [first, last])
        return self.labels.slice(low, high - low), self.places[low:high] - first


class MemoryJournal:
    """The `contracts.Journal` without files. A label needs its `labelled_at`: nothing arrives
    here at a time of its own.
    """

    def __init__(self) -> None:
        self._rows: list[pa.Table] = []
        self._labels: list[pa.Table] = []
        self._ids: set[str] = set()
        self._last: dict[str, str] = {}  # id → newest version of its label
        self._imported: dict[str, str] = {}  # id → what load() said last
        self._refused: list[jsonl.Fact] = []
        self._view: _View | None = None

    def append(self, rows: pa.Table) -> Appended:
        """Add served rows. Raises ConflictError with the row's number, and JournalError."""
        served = shape.conformed(rows)
        fresh = self._unknown(served.column("prediction_id").to_pylist())
        if len(fresh) < served.num_rows:
            self._check_repeated(served, frozenset(fresh))
        return self._add(served, fresh)

    def label(self, labels: pa.Table) -> Labelled:
        """Add labels. Raises JournalError where `labelled_at` is null."""
        return self._learn(labels, self._last)

    def load(self, rows: pa.Table) -> tuple[Appended, Labelled]:
        """Import rows; what an earlier `load` said of a label already is no news."""
        served = shape.imported(rows, exported=False)
        added = self._add(served, self._unknown(served.column("prediction_id").to_pylist()))
        given = shape.brought(rows, served).drop_columns("recorded_at")
        given = given.filter(pc.is_valid(given.column("label")))
        return added, self._learn(given, {**self._last, **self._imported}, self._imported)

    def reject(self, refusals: Sequence[Refusal], at: datetime) -> None:
        """Count refused rows by code and column, without their values."""
        self._refused += jsonl.refusals(refusals, at)

    def read(
        self,
        window: Window | None = None,
        *,
        as_of: datetime | None = None,
        labelled: bool | None = None,
        schema: Schema | None = None,
    ) -> pa.Table:
        """All that `scan` gives with the same arguments, in one table."""
        return pa.concat_tables(
            self.scan(window, as_of=as_of, labelled=labelled, schema=schema)
        ).combine_chunks()

    def scan(
        self,
        window: Window | None = None,
        *,
        as_of: datetime | None = None,
        labelled: bool | None = None,
        schema: Schema | None = None,
    ) -> Iterator[pa.Table]:
        """Rows with the labels that had arrived by `as_of`, see `contracts.Journal.scan`."""
        columns = schema.journal if schema else shape.union([table.schema for table in self._rows])
        view = self._seen()
        rows, (first, last) = view.rows(columns), view.within(window)
        numbers = schema is not None and schema.target.task == "regression"
        for start in range(first, max(last, first + 1), PIECE):
            piece = rows.slice(start, min(PIECE, last - start))
            labels, row = view.labelled(start, start + piece.num_rows)
            yield join.at_places(piece, labels, row, as_of, labelled=labelled, numbers=numbers)

    def _seen(self) -> _View:
        """Made anew when rows or labels came since the last time."""
        if self._view is None:
            self._view = _View.of(self._rows, self._labels)
        return self._view

    def seal(self, now: datetime) -> Sealed:  # noqa: ARG002 - the contract names it
        """Nothing moves: all rows are in memory."""
        return Sealed()

    def newest(self, *, source: str | None = None) -> datetime | None:
        """The newest event time, of one source or of all; None in an empty journal."""
        moments = (join.newest(table, source) for table in self._rows)
        return max((moment for moment in moments if moment is not None), default=None)

    def refused(self, window: Window) -> Mapping[str, int]:
        """Refused rows in the window of arrival time, counted by `code` or `code:column`."""
        return jsonl.counts(self._refused, window)

    def _unknown(self, ids: Sequence[str]) -> list[int]:
        """The places of ids that are new, each id once."""
        first = {name: place for place, name in reversed(list(enumerate(ids)))}
        return sorted(place for name, place in first.items() if name not in self._ids)

    def _add(self, served: pa.Table, fresh: Sequence[int]) -> Appended:
        new = served.take(pa.array(fresh, pa.int64())).combine_chunks()
        if new.num_rows:
            self._rows.append(new)
            self._view = None
            self._ids.update(new.column("prediction_id").to_pylist())
        return Appended(new.num_rows, served.num_rows - new.num_rows)

    def _check_repeated(self, served: pa.Table, fresh: frozenset[int]) -> None:
        """Raise ConflictError for the first row whose id came before with other content."""
        wanted = served.column("prediction_id").combine_chunks()
        known: dict[str, str] = {}
        for table in self._rows:
            known.update(_contents(table.filter(pc.is_in(table.column("prediction_id"), wanted))))
        for place, (name, content) in enumerate(_contents(served)):
            if place in fresh:
                known[name] = content
            elif known[name] != content:
                raise ConflictError(
                    f"the prediction_id of row {place} is known with other content.",
                    row=place,
                    hint="Give each prediction an id of its own.",
                )

    def _learn(
        self, given: pa.Table, before: Mapping[str, str], told: dict[str, str] | None = None
    ) -> Labelled:
        """Keep those labels that differ from `before`; `told` remembers what was said."""
        stamps = pa.repeat(pa.scalar(EPOCH, TIMESTAMP), given.num_rows)  # order of calls counts
        table = shape.labels(given.append_column("recorded_at", stamps))
        if table.column("labelled_at").null_count:
            raise JournalError("a label has no time of arrival.", hint="Give its labelled_at.")
        newest, keep, changed = dict(before), [], 0
        names, values = (table.column(name).to_pylist() for name in ("prediction_id", "label"))
        for place, (name, value) in enumerate(zip(names, values, strict=True)):
            if newest.get(name) != value:
                keep.append(place)
                changed += name in newest
                newest[name] = self._last[name] = value
            if told is not None:
                told[name] = value
        if keep:
            self._labels.append(table.take(pa.array(keep, pa.int64())))
            self._view = None
        return Labelled(len(keep), table.num_rows - len(keep), changed)


def _contents(rows: pa.Table) -> list[tuple[str, str]]:
    """Id and content of each row: its event time, and its features that are not null."""
    names = [name for name in rows.column_names if name == "occurred_at" or name not in SYSTEM]
    ids = rows.column("prediction_id").to_pylist()
    texts = (
        repr(sorted((name, value) for name, value in row.items() if value is not None))
        for row in rows.select(names).to_pylist()
    )
    return list(zip(ids, texts, strict=True))


class MemoryReleases:
    """The `contracts.Releases` without files, keys or signatures: its bytes never leave the
    process. The same candidate has the same id as in the store on disk.
    """

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}
        self._releases: dict[str, Release] = {}
        self._champion: Release | None = None

    def champion(self) -> Release | None:
        return self._champion

    def get(self, release: str) -> Release:
        """A release by id or unambiguous prefix. Raises ReleaseError."""
        found = [identity for identity in self._releases if identity.startswith(release)]
        if len(found) != 1:
            raise ReleaseError(f"{len(found)} releases begin with {release[:64]!r}.")
        return self._releases[found[0]]

    def object(self, release: Release, name: str) -> bytes:
        """Raises ReleaseError where the release has no such object."""
        if name not in release.manifest["objects"]:
            raise ReleaseError(f"release {release.short} has no object {name!r}.")
        return self._objects[release.manifest["objects"][name]]

    def add(self, candidate: Candidate, verdict: Verdict, at: datetime) -> Release:
        """Keep a candidate. Raises ReleaseError when its parent is not the champion."""
        if candidate.parent != (self._champion.id if self._champion else None):
            raise ReleaseError("the candidate challenges a release that is not the champion.")
        sequence = self._champion.sequence + 2 if self._champion else 2
        release = released(candidate, verdict, at, sequence)
        hashes = release.manifest["objects"]
        self._objects.update((hashes[name], held) for name, held in candidate.objects.items())
        self._releases[release.id] = release
        return release

    def promote(self, release: Release) -> None:
        """Raises ReleaseError when another release was promoted since this one was added."""
        champion = self._champion.id if self._champion else None
        if self.get(release.id).manifest["parent"] != champion:
            raise ReleaseError("another release was promoted since this one was added.")
        self._champion = release

    def roll_back(self, to: str | None = None) -> Release:
        """Raises ReleaseError when there is no way back."""
        line = self.line()
        target = self.get(to) if to else (line[1] if len(line) > 1 else None)
        if target is None or target not in line[1:]:
            raise ReleaseError("there is no such earlier release to go back to.")
        self._champion = Release(target.id, line[0].sequence + 2, target.manifest)
        return self._champion

    def line(self) -> Sequence[Release]:
        """The champions from the present one back to the first, newest first."""
        line, release = [], self._champion
        while release is not None:
            line.append(release)
            parent = release.manifest["parent"]
            release = None if parent is None else self._releases[parent]
        return line


class MemoryAudit:
    """The `contracts.Audit` without a file, and so without hashes."""

    def __init__(self) -> None:
        self._lines: list[Mapping[str, Json]] = []

    def write(self, kind: str, at: datetime, body: Mapping[str, Json]) -> None:
        self._lines.append(jsonable({"at": at, "kind": kind, "body": body}))

    def lines(self) -> Sequence[Mapping[str, Json]]:
        return tuple(self._lines)

    def past(self) -> Past:
        """As the chain on disk tells it, from the same lines."""
        return past(self._lines)


@dataclass
class CountingReporter:
    """A reporter that draws nothing: it keeps the last status and counts the verdicts."""

    verdicts: Counter[str] = field(default_factory=Counter)
    _last: Evidence | None = None

    def evidently(
        self,
        reference: pa.Table,  # noqa: ARG002 - the contract names it
        current: pa.Table,  # noqa: ARG002 - as above
        schema: Schema,  # noqa: ARG002 - as above
    ) -> Mapping[str, Json]:
        return {}

    def status(self, evidence: Evidence) -> None:
        self.verdicts[evidence.state.value] += 1
        self._last = evidence

    def last(self) -> Evidence | None:
        return self._last
