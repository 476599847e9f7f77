"""A file of rows, scored as the server would score them: checked, answered, journalled.

It takes a project and a CSV or Parquet file, and reads it in batches, so that memory does not grow
with the file. It gives a file of answers beside ids and row numbers, and counts of what became of
the rows; the same file again, with ids, gives the same answers and journals nothing twice.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from homeostat import build
from homeostat.answer import Answer
from homeostat.errors import ConflictError, HomeostatError, RowError
from homeostat.predictor import Predictor
from homeostat.records import Json
from homeostat.rowfile import RowFile
from homeostat.schema import Target
from homeostat.settings import Settings

SHOWN = 20  # refused rows that the report names one by one

Progress = Callable[[float, int], None]
"""Told after each batch: the share of the file that is done, and the rows so far."""


@dataclass
class Report:
    """What became of the rows of a file."""

    file: str
    out: str
    model_version: str
    ignored: Sequence[str]  # columns that are no features
    rows: int = 0
    answered: int = 0
    repeated: int = 0  # of these: journalled before, and answered as they were then
    refused: Counter[str] = field(default_factory=Counter)  # by code
    refusals: list[dict[str, Json]] = field(default_factory=list)  # the first of them
    seconds: float = 0.0

    def told(self) -> dict[str, Json]:
        """As one JSON document."""
        speed = round(self.rows / self.seconds) if self.seconds else None
        return {**asdict(self), "refused": dict(self.refused), "rows_per_second": speed}


def score(
    chosen: Settings,
    file: Path,
    out: Path | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    on_error: Literal["stop", "skip"] = "stop",
    progress: Progress | None = None,
) -> Report:
    """Score `file` into `out`, by default beside it; all rows by the champion of this moment.

    `columns` names those of `prediction_id` and `occurred_at` where they are called otherwise. A
    row that the server would refuse ends it (RowError with the row's number in the file, from 0)
    or is left out and counted; what was answered until then is in `out` and in the journal.
    Raises UnavailableError without a champion, SchemaError for a file without its features,
    JournalError when nothing can be written.
    """
    predictor = _predictor(chosen)
    champion = predictor.serving()
    out = out or file.with_name(f"{file.stem}.scored{file.suffix}")
    began = time.monotonic()
    source = RowFile(file, champion.schema, columns or {}, chosen.project.timezone)
    report = Report(str(file), str(out), champion.release.id, source.ignored)
    work = _Work(predictor, report, skip=on_error == "skip")
    try:
        with _written(out, file, champion.schema.target) as write:
            for rows in source.rows():
                write(work.answered(rows))
                report.seconds = time.monotonic() - began
                if progress is not None:
                    progress(source.share, report.rows)
    finally:
        predictor.flush()
    report.repeated = predictor.counts().get(("repeated", ""), 0)
    return report


def _predictor(chosen: Settings) -> Predictor:
    """One that takes rows of any time, since the file is the operator's own."""
    lifted = chosen.serving.model_copy(update={"max_skew": None})
    predictor = build.predictor(chosen.model_copy(update={"serving": lifted}))
    predictor.refresh()
    return predictor


@dataclass
class _Work:
    predictor: Predictor
    report: Report
    skip: bool

    def answered(self, rows: Sequence[Mapping[str, Json]]) -> list[tuple[int, Answer]]:
        """Row number and answer of each row that is not refused."""
        first = self.report.rows
        self.report.rows += len(rows)
        try:
            answers = self._together(rows)
        except (RowError, ConflictError) as error:
            if not self.skip:
                raise _placed(error, first) from None
            found = self._one_by_one(rows, first, error)
        else:
            found = list(zip(range(first, first + len(rows)), answers, strict=True))
        self.report.answered += len(found)
        return found

    def _together(self, rows: Sequence[Mapping[str, Json]]) -> list[Answer]:
        (result,) = self.predictor.answer([self.predictor.asked(rows)])
        if isinstance(result, HomeostatError):
            raise result
        return result

    def _one_by_one(
        self, rows: Sequence[Mapping[str, Json]], first: int, known: RowError | ConflictError
    ) -> list[tuple[int, Answer]]:
        """Each row as a request of its own, scored and journalled together all the same.

        The row that `known` is about was counted when it was refused.
        """
        asked, numbers = [], []
        for number, row in enumerate(rows, start=first):
            if number - first == known.row:
                self._refused(number, known)
                continue
            try:
                asked.append(self.predictor.asked([row]))
                numbers.append(number)
            except RowError as error:
                self._refused(number, error)
        found = []
        for number, result in zip(numbers, self.predictor.answer(asked), strict=True):
            if isinstance(result, RowError | ConflictError):
                self._refused(number, result)
            elif isinstance(result, HomeostatError):
                raise result
            else:
                found.append((number, result[0]))
        return found

    def _refused(self, number: int, error: RowError | ConflictError) -> None:
        code = error.code if isinstance(error, RowError) else "conflict"
        self.report.refused[code] += 1
        if len(self.report.refusals) < SHOWN:
            self.report.refusals.append({"row": number, "code": code, "why": error.message})


def _placed(error: RowError | ConflictError, first: int) -> HomeostatError:
    """The same error, its row counted in the file."""
    if error.row is None:
        return error
    row = first + error.row
    text, hint = f"row {row}: {error.message}", f"{error.hint} Or leave it out: --on-error skip."
    if isinstance(error, ConflictError):
        return ConflictError(text, row=row, hint=hint.strip())
    return RowError(error.code, text, field=error.field, row=row, hint=hint.strip())


# --- answers ---


@contextmanager
def _written(
    out: Path, file: Path, target: Target
) -> Iterator[Callable[[Sequence[tuple[int, Answer]]], None]]:
    """Writes answers to `out`, which is there, whole, once the work has ended in any way."""
    if out.suffix not in (".csv", ".parquet"):
        raise HomeostatError(f"{out.name} is neither .csv nor .parquet.")
    if out.resolve() == file.resolve():
        raise HomeostatError(f"{out} is the file to be scored.", hint="Give another --out.")
    out.parent.mkdir(parents=True, exist_ok=True)
    begun = out.with_name(f".{out.name}.part")
    schema = _columns(target)
    made = pq.ParquetWriter if out.suffix == ".parquet" else pcsv.CSVWriter

    def write(answers: Sequence[tuple[int, Answer]]) -> None:
        writer.write_table(pa.Table.from_pylist([_flat(*each) for each in answers], schema))

    try:
        with made(str(begun), schema) as writer:
            yield write
    finally:
        begun.replace(out)


def _columns(target: Target) -> pa.Schema:
    kinds = {"int": pa.int64(), "bool": pa.bool_(), "str": pa.string(), "float": pa.float64()}
    columns = [("row", pa.int64()), ("prediction_id", pa.string())]
    columns.append(("prediction", kinds[target.dtype]))
    if target.task == "binary":
        columns.append(("probability", pa.float64()))
    elif target.task == "multiclass":
        columns += [(f"probability_{text}", pa.float64()) for text in target.classes]
    return pa.schema([*columns, ("model_version", pa.string())])


def _flat(number: int, answer: Answer) -> dict[str, Any]:
    shares = answer.get("probabilities", {})
    return {"row": number, **answer, **{f"probability_{text}": p for text, p in shares.items()}}
