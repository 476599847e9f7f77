"""The tail of the journal turns into history, each row exactly once.

It takes portions of the tail, oldest first, and the histories. It gives counts: a portion's rows
are committed under a number that an intent told before, then cut off the tail, so that whoever
comes after a kill finds out which of the two is left to do.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from homeostat import files
from homeostat.entries import Sealed
from homeostat.errors import JournalError, other_format
from homeostat.journal import join, shape
from homeostat.journal.disk import failed
from homeostat.journal.history import DeltaLog
from homeostat.journal.jsonl import Fact, JsonLines
from homeostat.journal.labels import Labels
from homeostat.journal.predictions import Predictions
from homeostat.journal.scan import FILED, View, numbered
from homeostat.journal.snapshot import SLICE
from homeostat.journal.tail import Portion
from homeostat.records import Json, utc
from homeostat.schema import SYSTEM, TIMESTAMP

FORMAT = 1


@dataclass(frozen=True)
class Sealer:
    """Seals one journal; to be used by one process at a time."""

    folder: Path
    predictions: Predictions
    labels: Labels
    rows: DeltaLog
    filed: DeltaLog
    log: JsonLines  # a line for each portion sealed, or for many together
    view: Callable[[], View]

    def seal(self, before: datetime, orphaned: datetime, now: datetime) -> Sealed:
        """Move what was recorded earlier than `before` into history.

        Labels without a prediction stay, and are dropped once recorded earlier than `orphaned`.
        """
        total, seen = Sealed(), set[str]()
        while portions := _unseen(self.predictions.portions(before, now, SLICE), seen):
            for portion in portions:
                total += self._seal_rows(portion)
        while portions := _unseen(self.labels.portions(before, now, SLICE), seen):
            for portion in portions:
                total += self._seal_labels(portion, orphaned)
        return total

    def recover(self) -> Sealed:
        """Finish, or forget, what a sealer that was killed had begun."""
        intent = self._intent()
        if intent is None:
            return Sealed()
        table = self.filed if intent["table"] == "labels" else self.rows
        if intent["committed"] or table.number >= intent["number"]:
            return self._finish(intent)
        self._path.unlink(missing_ok=True)
        return Sealed()

    def total(self) -> Sealed:
        """What all seals of this folder came to."""
        return sum(map(_counted, self.log), Sealed())

    def fold(self) -> None:
        """Make one line of the log's, once they are many; nothing may be left to recover."""
        self.log.fold(lambda lines: [_together(lines)])

    # --- inside ---

    def _seal_rows(self, portion: Portion) -> Sealed:
        """One portion of predictions. A row whose id history knows is not written again."""
        rows = join.first_rows(portion.table)
        ids = rows.column("prediction_id")
        known = self.rows.snapshot().located(ids, rows.schema)
        fresh = join.without(rows, known.column("prediction_id"))
        conflicts = _differing(join.having(rows, known.column("prediction_id")), known)
        counts = Sealed(
            rows=fresh.num_rows,
            repeated=portion.table.num_rows - fresh.num_rows - conflicts,
            conflicts=conflicts,
        )
        return self._carry_out("predictions", portion, fresh, counts)

    def _seal_labels(self, portion: Portion, orphaned: datetime) -> Sealed:
        """One portion of labels; those that have to wait for their predictions stay."""
        table, filed = portion.table, self.filed
        ids = table.column("prediction_id")
        occurred = join.looked_up(ids, self.view().times(ids), "occurred_at")
        known = occurred.is_valid()
        recent = pc.greater_equal(table.column("recorded_at"), pa.scalar(utc(orphaned), TIMESTAMP))
        waiting = table.filter(pc.and_(pc.invert(known), recent))
        if waiting.num_rows == table.num_rows:
            return Sealed()
        self.labels.follow(utc(pc.max(table.column("arrived_at")).as_py()))
        numbers = numbered(filed.number + 1) + np.arange(table.num_rows)
        arrived = join.arrivals(table, numbers)
        arrived = arrived.append_column(FILED.field("occurred_at"), occurred)
        sent = pa.repeat(pa.scalar("sent"), table.num_rows)
        ready = arrived.append_column(FILED.field("source"), sent).filter(known)
        counts = Sealed(
            labels=ready.num_rows, orphans=table.num_rows - ready.num_rows - waiting.num_rows
        )
        return self._carry_out("labels", portion, ready, counts, waiting)

    def _carry_out(
        self,
        name: str,
        portion: Portion,
        rows: pa.Table,
        counts: Sealed,
        keep: pa.Table | None = None,
    ) -> Sealed:
        """Say what will be done; commit; cut; say that it was done."""
        table = self.filed if name == "labels" else self.rows
        intent: dict[str, Json] = {
            "format": FORMAT,
            "id": str(uuid.uuid4()),
            "table": name,
            "fingerprint": portion.fingerprint,
            "length": portion.length,
            "digest": portion.digest,
            "number": table.number + 1,
            "committed": not rows.num_rows,  # then there is nothing to commit
            "counts": asdict(counts),
            "keep": None if keep is None or not keep.num_rows else _packed(keep),
        }
        try:
            files.write(self._path, json.dumps(intent).encode())
        except OSError as error:
            raise failed("write", self._path, error) from error
        table.append(rows, intent["number"])
        return self._finish(intent)

    def _finish(self, intent: Mapping[str, Json]) -> Sealed:
        empty = shape.LABELS.empty_table()
        keep = None if intent["keep"] is None else _unpacked(intent["keep"])
        tail = self.labels if intent["table"] == "labels" else self.predictions
        tail.cut(Portion(intent["fingerprint"], intent["length"], intent["digest"], empty), keep)
        if all(line.get("id") != intent["id"] for line in self.log):
            self.log.add([{"id": intent["id"], "table": intent["table"], **intent["counts"]}])
        self._path.unlink(missing_ok=True)
        return Sealed(**intent["counts"])

    @property
    def _path(self) -> Path:
        return self.folder / "seal.json"

    def _intent(self) -> Mapping[str, Json] | None:
        try:
            intent = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise JournalError(
                f"{self._path} cannot be read ({type(error).__name__}).",
                hint="Restore it from a copy; without it, remove it and rows count as repeated.",
            ) from error
        if intent["format"] != FORMAT:
            raise other_format(JournalError, str(self._path), intent["format"], FORMAT)
        return dict(intent)


_COUNTS = [field.name for field in fields(Sealed)]


def _counted(line: Fact) -> Sealed:
    return Sealed(**{name: line.get(name, 0) for name in _COUNTS})


def _together(lines: Iterable[Fact]) -> Fact:
    """The sum of all lines, with the id of the last: after a power cut its intent may be there
    again, and must be found done.
    """
    total, last = Sealed(), None
    for line in lines:
        total, last = total + _counted(line), line.get("id")
    return {"id": last, **asdict(total)}


def _unseen(portions: list[Portion], seen: set[str]) -> list[Portion]:
    """Those that were not tried before: what could not be cut off is left for another time."""
    fresh = [portion for portion in portions if portion.digest not in seen]
    seen.update(portion.digest for portion in fresh)
    return fresh


def _differing(rows: pa.Table, known: pa.Table) -> int:
    """How many rows have other features, or another event time, than the row of their id."""
    if not rows.num_rows:
        return 0
    names = [n for n in rows.column_names if n not in SYSTEM or n == "occurred_at"]
    place = pc.index_in(
        rows.column("prediction_id"), value_set=known.column("prediction_id").combine_chunks()
    )
    before = known.select(names).take(place)
    same = np.ones(rows.num_rows, dtype=bool)
    for name in names:
        now, then = rows.column(name), before.column(name)
        equal = pc.fill_null(pc.equal(now, then), fill_value=False)
        same &= pc.or_(equal, pc.and_(now.is_null(), then.is_null())).to_numpy()
    return int((~same).sum())


def _packed(table: pa.Table) -> str:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return base64.b64encode(sink.getvalue()).decode()


def _unpacked(text: str) -> pa.Table:
    return pa.ipc.open_stream(base64.b64decode(text)).read_all()
