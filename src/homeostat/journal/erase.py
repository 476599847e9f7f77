"""Rows and labels that are to be gone for good, from tail and history, with the files they were in.

It takes ids, or a condition in SQL that finds them. It gives counts, and keeps a record that
something was erased, when, and of which releases' training rows; never what.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from homeostat.entries import Erased, Unfinished
from homeostat.errors import JournalError
from homeostat.journal import join, shape
from homeostat.journal.history import DeltaLog
from homeostat.journal.jsonl import JsonLines
from homeostat.journal.labels import Labels
from homeostat.journal.predictions import Predictions
from homeostat.journal.scan import View
from homeostat.journal.snapshot import Delta, home, unreadable
from homeostat.records import TrainingRows, Window, utc
from homeostat.schema import TIMESTAMP

_SQL = {"string": "VARCHAR", "double": "DOUBLE", "bool": "BOOLEAN"}
_TOLD = pa.schema(
    [("prediction_id", pa.string()), ("occurred_at", TIMESTAMP), ("recorded_at", TIMESTAMP)]
)


@dataclass(frozen=True)
class Eraser:
    """Erases from one journal; to be used by one process at a time."""

    folder: Path
    predictions: Predictions
    labels: Labels
    rows: DeltaLog
    filed: DeltaLog
    log: JsonLines  # two lines for each erasure: what it will come to, and that it came to it

    def find(self, view: View, ids: Sequence[str], where: str | None) -> pa.Array:
        """The ids that are given, and those of the rows for which `where` is true."""
        found = [pa.array(list(ids), pa.string())]
        if where is not None:
            found += [_of_history(view, where), *self._of_tail(view, where)]
        return pc.unique(pa.concat_arrays(found))

    def weigh(self, view: View, ids: pa.Array, trainings: Mapping[str, TrainingRows]) -> Erased:
        """How many rows and labels these ids have, and how many rows trained each release."""
        tail = [shelf.having(ids, _TOLD.names) for shelf in view.tail]
        rows = join.first_rows(pa.concat_tables([view.rows.located(ids, _TOLD), *tail]))
        labels = pa.concat_tables(view.versions(self._places(view, ids)))
        releases = {}
        for release, training in trainings.items():
            low, high = join.keys(Window(training.start, training.cutoff))
            trained = join.joined(
                join.between(rows, low, high),
                labels,
                training.as_of,
                labelled=True,
                numbers=False,
            )
            if trained.num_rows:
                releases[release] = trained.num_rows
        return Erased(rows.num_rows, labels.num_rows, releases)

    def erase(self, ids: pa.Array, erased: Erased, now: datetime, name: str | None = None) -> None:
        """Erase these ids. `erased` is noted before anything is done, so that it is known even if
        this process is killed; to be run again then, under the `name` of what was not finished.

        Labels go first: while its row is there, a condition still finds what is left of it.
        """
        name, at = name or str(uuid.uuid4()), utc(now).isoformat()
        self.log.add(
            [
                {
                    "id": name,
                    "at": at,
                    "rows": erased.rows,
                    "labels": erased.labels,
                    "releases": dict(erased.releases),
                }
            ]
        )
        for tail, history in ((self.labels, self.filed), (self.predictions, self.rows)):
            tail.erase(ids)
            days = _days(history, ids)
            if days:
                history.rewrite(days, ids)
            history.clean(at_once=True)
        for left in (*self.folder.glob("*.cut"), *self.folder.glob(".*.tmp")):
            left.unlink(missing_ok=True)
        self._forget_copies()
        self.log.add([{"id": name, "at": at, "done": True}])

    def unfinished(self) -> list[Unfinished]:
        """Erasures that were begun and not ended, in the order in which they were begun."""
        begun: dict[str, Unfinished] = {}
        for line in self.log:
            name = line["id"]
            if line.get("done"):
                begun.pop(name, None)
            elif name not in begun:
                at = datetime.fromisoformat(line["at"])
                begun[name] = Unfinished(name, at, line["rows"], line["labels"])
        return list(begun.values())

    def named(self, start: str) -> str:
        """The id of the one unfinished erasure whose id begins so. Raises JournalError."""
        known = [one.id for one in self.unfinished()]
        found = [name for name in known if start and name.startswith(start)]
        if len(found) != 1:
            names = ", ".join(name[:8] for name in known) or "none"
            raise JournalError(
                f"{start!r} names {len(found)} of the unfinished erasures.",
                hint=f"Unfinished: {names}.",
            )
        return found[0]

    def releases(self) -> dict[str, datetime]:
        """Releases of whose training rows some were erased, and when that was first."""
        found: dict[str, datetime] = {}
        for line in self.log:
            for release in line.get("releases", ()):
                found.setdefault(release, datetime.fromisoformat(line["at"]))
        return found

    def _places(self, view: View, ids: pa.Array) -> pa.Table:
        """The ids, with the event time under which history files a label of theirs, or null."""
        filed = view.labels.located(ids, _TOLD)
        found = pa.table({"prediction_id": ids})
        times = join.looked_up(found.column(0), filed, "occurred_at")
        return found.append_column("occurred_at", times)

    def _forget_copies(self) -> None:
        """Remove what a search that was killed left of the tail."""
        for left in self.folder.glob(".where-*"):
            shutil.rmtree(left)

    def _of_tail(self, view: View, where: str) -> Iterator[pa.Array]:
        """Ids of rows of the tail, which DataFusion is given as a table of Delta for a moment."""
        from deltalake import DeltaTable, write_deltalake

        self._forget_copies()
        columns = view.columns()
        # Delta takes no names that differ only in case.
        places = [f"column_{number}" for number in range(len(columns))]
        for table in chain.from_iterable(shelf.pieces() for shelf in view.tail):
            if table.num_rows:
                with tempfile.TemporaryDirectory(prefix=".where-", dir=self.folder) as folder:
                    rows = shape.aligned(table, columns).rename_columns(places)
                    try:
                        write_deltalake(folder, rows)
                    except Exception as error:  # deltalake raises bare Exceptions
                        raise unreadable("search", self.folder, error) from error
                    yield _matching(DeltaTable(folder), places, columns, where)


def _of_history(view: View, where: str) -> pa.Array:
    from deltalake import DeltaTable

    if view.rows.version < 0:
        return pa.array([], pa.string())
    delta = DeltaTable(view.rows.path, version=view.rows.version)
    present, columns = pa.schema(delta.schema().to_arrow()), view.columns()
    places = [home(field, present) for field in columns]
    known = [place if place in present.names else None for place in places]
    return _matching(delta, known, columns, where)


def _matching(
    delta: Delta, places: Sequence[str | None], columns: pa.Schema, where: str
) -> pa.Array:
    """Ids of the rows of a table for which the condition is true. It is asked of `columns`, each
    of which lies in the table under the name in `places`, or not at all.
    """
    from deltalake import QueryBuilder

    shown = []
    for field, place in zip(columns, places, strict=True):
        cell = f"CAST(NULL AS {_kind(field)})" if place is None else _quoted(place)
        shown.append(f"{cell} AS {_quoted(field.name)}")
    query = f"SELECT {', '.join(shown)} FROM history"  # noqa: S608 - of quoted names
    query = f"SELECT prediction_id FROM ({query}) WHERE ({where}\n)"  # noqa: S608 - reads only
    try:
        # Names as they are written, without quotes, too.
        builder = QueryBuilder({"datafusion.sql_parser.enable_ident_normalization": "false"})
        batches = builder.register("history", delta).execute(query)
        found = [pa.array([], pa.string())]
        found += [pa.record_batch(batch).column(0).cast(pa.string()) for batch in batches]
    except Exception as error:  # noqa: BLE001 - deltalake's; the text may hold a value
        raise JournalError(
            f"the condition cannot be asked of the rows ({type(error).__name__}).",
            hint="It is SQL over the columns " + ", ".join(columns.names) + ".",
        ) from None
    return pa.concat_arrays(found)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _kind(field: pa.Field) -> str:
    return _SQL.get(str(field.type), "TIMESTAMP")


def _days(table: DeltaLog, ids: pa.Array) -> list[date]:
    """The days on which a row or label of these ids lies."""
    times = table.snapshot().located(ids, _TOLD).column("occurred_at")
    return sorted(set(times.cast(pa.date32()).to_pylist()))
