"""Files in and out of the journal: labels added, rows exported and imported.

Takes a project and a CSV or Parquet file, which is read in batches; gives counts of what happened
to the rows. An export read back by import is the same history.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from homeostat.build import Project
from homeostat.entries import Appended, Erased, Labelled
from homeostat.errors import HomeostatError, SchemaError
from homeostat.journal import shape
from homeostat.records import TrainingRows
from homeostat.rowfile import TableFile
from homeostat.schema import SYSTEM, TIMESTAMP, Schema

CHUNK = 10_000  # labels handed to the journal at once
ROWS = 200_000  # rows handed to it at once, which are a commit of history
CHECK = 0.1  # of an import is what looking through the file before takes, about

Progress = Callable[[float, int], None]
"""Told after each batch: the share of the work that is done, and how many rows or labels."""


def add_labels(project: Project, file: Path, progress: Progress | None = None) -> dict[str, int]:
    """Labels by `prediction_id`; checked against the champion's target where there is one.

    Memory is bounded. All are checked before the first is added; raises HomeostatError.
    """
    source, schema = TableFile(file), _schema(project)
    for name in ("prediction_id", "label"):
        if name not in source.names:
            raise SchemaError(
                f"{file.name} has no column {name!r}.",
                hint="It needs prediction_id and label, and may have labelled_at.",
            )
    types = {name: kind for name, kind in _LABELS.items() if name in source.names}
    now = pa.scalar(datetime.now(UTC), TIMESTAMP)

    def ready() -> Iterator[pa.Table]:
        for table in source.tables(types, CHUNK):
            yield pa.table(
                {
                    "prediction_id": table.column("prediction_id").cast(pa.string()),
                    "label": _texts(schema, table.column("label")),
                    "labelled_at": pc.fill_null(_times(source, table), now),
                }
            )

    for _ in ready():
        pass
    total, count = Labelled(0, 0, 0), 0
    told = progress or (lambda _share, _count: None)
    for labels in ready():
        total += project.journal.label(labels)
        count += labels.num_rows
        told(source.share, count)
    return {"written": total.written, "repeated": total.repeated, "changed": total.changed}


_LABELS = {"prediction_id": pa.string(), "label": pa.string(), "labelled_at": TIMESTAMP}


def _times(source: TableFile, labels: pa.Table) -> pa.Array | pa.ChunkedArray:
    if "labelled_at" not in source.names:
        return pa.nulls(labels.num_rows, TIMESTAMP)
    try:
        return labels.column("labelled_at").cast(TIMESTAMP)
    except pa.ArrowException as error:
        raise SchemaError(f"{source.name} cannot be read: labelled_at holds no times.") from error


def _schema(project: Project) -> Schema | None:
    champion = project.releases.champion()
    if champion is None:
        return None
    return Schema.from_json(project.releases.object(champion, "schema"))


def _texts(schema: Schema | None, column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Labels as the journal has them; SchemaError for one that the champion's target has not."""
    if schema is None:
        return column.cast(pa.string())
    target = schema.target
    try:
        values = (column.cast(pa.float64()) if target.task == "regression" else column).to_pylist()
    except pa.ArrowException as error:
        raise SchemaError(f"a label of {target.name!r} is not a number.") from error
    return pa.array([target.text(value) for value in values], pa.string())


def export(project: Project, file: Path) -> dict[str, int]:
    """All rows, joined with their labels, oldest first."""
    if file.suffix not in (".csv", ".parquet"):
        raise HomeostatError(f"{file.name} is neither .csv nor .parquet.")
    file.parent.mkdir(parents=True, exist_ok=True)
    tables = iter(project.journal.scan())
    first = next(tables)
    count = 0
    if file.suffix == ".parquet":
        writer = pq.ParquetWriter(file, first.schema, compression="zstd")
    else:
        options = pcsv.WriteOptions(quoting_style="all_valid")
        writer = pcsv.CSVWriter(file, first.schema, write_options=options)
    with writer:
        for rows in chain([first], tables):
            # Of an empty chunk, Arrow's writer of CSV writes what its buffer last held.
            writer.write_table(rows.combine_chunks())
            count += rows.num_rows
    return {"rows": count}


def erase(
    project: Project,
    ids: Sequence[str],
    where: str | None,
    sure: Callable[[str], bool],
    finish: str | None = None,
) -> dict[str, int]:
    """Remove rows by id or condition, for good, if `sure` agrees to their counts.

    `finish` is the id of an unfinished erasure, of which this is the same again.
    """
    if not ids and where is None:
        raise HomeostatError("nothing to erase was named.", hint="Give --id or --where.")
    counts: dict[str, int] = {}

    def agreed(erased: Erased) -> bool:
        counts.update(rows=erased.rows, labels=erased.labels, releases=len(erased.releases))
        agreed = sure(
            f"{erased.rows:,} rows and {erased.labels:,} labels; {len(erased.releases)} releases "
            "were trained on some of them"
        )
        counts["erased"] = int(agreed)
        return agreed

    with project.locked():
        now = datetime.now(UTC)
        trainings = _seen(project)
        project.journal.erase(
            now, ids=ids, where=where, trainings=trainings, sure=agreed, finish=finish
        )
        counts["unfinished"] = len(project.journal.unfinished())
    return counts


def _seen(project: Project) -> dict[str, TrainingRows]:
    """The rows that models and map of each release have seen, as one stretch."""
    seen: dict[str, TrainingRows] = {}
    for release, rows in project.releases.trainings():
        known = seen.setdefault(release, rows)
        seen[release] = replace(
            rows,
            start=min(known.start, rows.start),
            cutoff=max(known.cutoff, rows.cutoff),
            as_of=max(known.as_of, rows.as_of),
        )
    return seen


def load(project: Project, file: Path, progress: Progress | None = None) -> dict[str, int]:
    """Rows and labels of an export into history; known rows are left alone.

    Memory is bounded: each batch is a commit of its own, and killed between two of them the same
    call goes on. All rows are checked before the first is written; raises HomeostatError.
    """
    source, schema = TableFile(file), _schema(project)
    known = {**SYSTEM, "label": pa.string(), "labelled_at": TIMESTAMP}
    missing = [name for name in known if name not in source.names]
    if missing:
        raise SchemaError(
            f"{file.name} lacks the columns {', '.join(missing)}.",
            hint="It must be a file that `homeostat log export` wrote.",
        )
    if schema is not None:
        known |= {feature.name: feature.arrow for feature in schema.features}
    types = {name: known.get(name, pa.string()) for name in source.names}
    told = progress or (lambda _share, _count: None)
    guess = _Guess([name for name in source.names if source.text and name not in known])
    for rows in source.tables(types, ROWS):
        shape.conformed(rows)
        shape.labels(rows)
        _texts(schema, rows.column("label").drop_null().unique())  # a training reads all of them
        guess.see(rows)
        told(CHECK * source.share, 0)
    total, marked, count = Appended(0, 0), Labelled(0, 0, 0), 0
    with project.locked():
        for rows in source.tables(types, ROWS):
            added, labelled = project.journal.load(guess.applied(rows), exported=True)
            total, marked, count = total + added, marked + labelled, count + rows.num_rows
            told(CHECK + (1 - CHECK) * source.share, count)
    return {
        "rows_written": total.written,
        "rows_known": total.repeated,
        "labels_written": marked.written,
        "labels_known": marked.repeated,
    }


class _Guess:
    """What columns of text hold, when nobody tells: numbers or booleans, if all cells are."""

    def __init__(self, names: Sequence[str]) -> None:
        self._may = {name: [pa.float64(), pa.bool_()] for name in names}
        self._empty = set(names)

    def see(self, rows: pa.Table) -> None:
        for name, kinds in self._may.items():
            column = rows.column(name)
            self._may[name] = [kind for kind in kinds if _fits(column, kind)]
            if column.null_count < len(column):
                self._empty.discard(name)

    def applied(self, rows: pa.Table) -> pa.Table:
        """The rows, whose cells were all seen, in these kinds, without columns of nulls alone."""
        for name, kinds in self._may.items():
            if kinds and name not in self._empty:
                place = rows.schema.get_field_index(name)
                rows = rows.set_column(place, name, rows.column(name).cast(kinds[0]))
        return rows.drop_columns(sorted(self._empty))


def _fits(column: pa.ChunkedArray, kind: pa.DataType) -> bool:
    try:
        column.cast(kind)
    except pa.ArrowInvalid:
        return False
    return True
