"""Files in and out of the journal: labels added, rows exported and imported.

Takes a project and a CSV or Parquet file; gives counts of what happened to the rows. An export
read back by import is the same history.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from homeostat.build import Project
from homeostat.errors import HomeostatError, SchemaError
from homeostat.records import Erased, Labelled
from homeostat.schema import SYSTEM, TIMESTAMP, Schema

CHUNK = 10_000  # labels handed to the journal at once


def read(file: Path, types: dict[str, pa.DataType]) -> pa.Table:
    """A CSV or Parquet file, by its ending; `types` of columns that must not be guessed."""
    if not file.is_file():
        raise HomeostatError(f"{file} does not exist.", hint="Give a CSV or Parquet file.")
    if file.suffix not in (".csv", ".parquet"):
        raise HomeostatError(f"{file.name} is neither .csv nor .parquet.")
    try:
        if file.suffix == ".parquet":
            return pq.read_table(file)
        return pcsv.read_csv(
            file,
            parse_options=pcsv.ParseOptions(newlines_in_values=True),
            convert_options=pcsv.ConvertOptions(
                column_types=types,
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
                null_values=[""],
            ),
        )
    except pa.ArrowInvalid as error:
        why = str(error).partition("invalid value")[0].strip(" :")  # the value stays out
        raise HomeostatError(f"{file.name} cannot be read: {why}.") from error


def add_labels(project: Project, file: Path) -> dict[str, int]:
    """Labels by `prediction_id`; checked against the champion's target where there is one."""
    text = {"prediction_id": pa.string(), "label": pa.string(), "labelled_at": TIMESTAMP}
    table = read(file, text)
    for name in ("prediction_id", "label"):
        if name not in table.column_names:
            raise SchemaError(
                f"{file.name} has no column {name!r}.",
                hint="It needs prediction_id and label, and may have labelled_at.",
            )
    now = pa.scalar(datetime.now(UTC), TIMESTAMP)
    given = "labelled_at" in table.column_names
    try:
        at = (
            table.column("labelled_at").cast(TIMESTAMP)
            if given
            else pa.nulls(len(table), TIMESTAMP)
        )
    except pa.ArrowException as error:
        raise SchemaError(f"{file.name} cannot be read: labelled_at holds no times.") from error
    ready = pa.table(
        {
            "prediction_id": table.column("prediction_id").cast(pa.string()),
            "label": _texts(project, table.column("label")),
            "labelled_at": pc.fill_null(at, now),
        }
    )
    total = Labelled(0, 0, 0)
    for start in range(0, len(ready), CHUNK):
        done = project.journal.label(ready.slice(start, CHUNK))
        total = Labelled(
            total.written + done.written,
            total.repeated + done.repeated,
            total.changed + done.changed,
        )
    return {"written": total.written, "repeated": total.repeated, "changed": total.changed}


def _texts(project: Project, column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Labels as the journal has them; SchemaError for one that the champion's target has not."""
    champion = project.releases.champion()
    if champion is None:
        return column.cast(pa.string())
    target = Schema.from_json(project.releases.object(champion, "schema")).target
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
        trainings = project.releases.trainings()
        project.journal.erase(
            now, ids=ids, where=where, trainings=trainings, sure=agreed, finish=finish
        )
        counts["unfinished"] = len(project.journal.unfinished())
    return counts


def load(project: Project, file: Path) -> dict[str, int]:
    """Rows and labels of an export into history; known rows are left alone."""
    champion = project.releases.champion()
    types = {**SYSTEM, "label": pa.string(), "labelled_at": TIMESTAMP}
    if champion is not None:
        schema = Schema.from_json(project.releases.object(champion, "schema"))
        types |= {feature.name: feature.arrow for feature in schema.features}
    table = read(file, types)
    missing = [name for name in (*SYSTEM, "label", "labelled_at") if name not in table.column_names]
    if missing:
        raise SchemaError(
            f"{file.name} lacks the columns {', '.join(missing)}.",
            hint="It must be a file that `homeostat log export` wrote.",
        )
    _texts(project, table.column("label").drop_null().unique())  # a training reads all of them
    with project.locked():
        rows, marked = project.journal.load(table)
    return {
        "rows_written": rows.written,
        "rows_known": rows.repeated,
        "labels_written": marked.written,
        "labels_known": marked.repeated,
    }
