"""What one champion answers: checked rows become rows of the journal and answers to clients.

It takes a champion and batches of checked rows, and scores all of them in one call. It gives, for
each batch, the entry that the journal is to write and the answers, or the model's refusal; of rows
that the journal knew, it reads back the answers that were given first.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain, repeat
from typing import Any, TypeAlias

import pyarrow as pa
import structlog

from homeostat.champion import Champion
from homeostat.decode import Batch
from homeostat.entries import Entry
from homeostat.errors import RowError, SchemaError
from homeostat.listening import Serving
from homeostat.reader import Reader
from homeostat.records import Json
from homeostat.schema import Target
from homeostat.scoring import told

Answer: TypeAlias = dict[str, Json]
Answered: TypeAlias = tuple[Entry, list[Answer]]
"""The rows that the journal is to write for a batch, and the answers to its client."""

_log = structlog.get_logger("homeostat.predictor")
_NULL = type(None)

_ANSWER = ("prediction_id", "prediction", "probability", "probabilities", "model_version")


class Answerer:
    """A champion with all that is worked out once for it. Safe to use from many threads."""

    def __init__(self, champion: Champion, serving: Serving) -> None:
        self.champion = champion
        self.schema = champion.schema
        self.reader = Reader(champion.schema, serving)
        target = self.schema.target
        classes = {text: target.value(text) for text in target.classes}
        self._value = classes.__getitem__ if classes else target.value

    def answered(
        self, batches: Sequence[Batch], recorded: str, source: str
    ) -> Sequence[Answered | RowError]:
        """Entry and answers, row by row, of each batch, or why the model has none for it;
        `recorded` is the time of arrival, as `decode.stamp` writes it.

        All are scored by one call. Where it fails each half is scored by itself, so that k batches
        to blame among n are found by some k log n calls.
        """
        try:
            return self._scored(batches, recorded, source)
        except Exception as error:  # noqa: BLE001 - fails closed: no answer from a failed model
            if len(batches) == 1:
                return [self._refused(error)]
        middle = len(batches) // 2
        halves = batches[:middle], batches[middle:]
        return [each for half in halves for each in self.answered(half, recorded, source)]

    def _scored(self, batches: Sequence[Batch], recorded: str, source: str) -> list[Answered]:
        columns = merged(batches)
        scores = told(self.champion.output(columns), self.schema.target)
        ids = list(chain.from_iterable(batch.ids for batch in batches))
        times = list(chain.from_iterable(batch.times for batch in batches))
        version = self.champion.release.id
        alike = (repeat(recorded), repeat(version), repeat(source))
        written = list(zip(ids, times, *alike, *scores, *columns, strict=False))
        predictions, probability, shares = scores
        values = list(map(self._value, predictions))
        answers = told_as(self.schema.target, ids, (values, probability, shares), version)
        made: list[Answered] = []
        start = 0
        for batch in batches:
            end = start + len(batch.ids)
            entry = Entry(batch.ids, written[start:end], batch.untimed, batch.made)
            made.append((entry, answers[start:end]))
            start = end
        return made

    def _refused(self, error: Exception) -> RowError:
        """What is told of rows on which the model failed."""
        if isinstance(error, ValueError | OverflowError | SchemaError):
            # So a model says of values, however valid, that it cannot work with them.
            hint = "Are its numbers of the size that the model was trained on?"
            return RowError("model_refused", "the model has no answer to this.", hint=hint)
        # The text of a foreign error may hold feature values, so its type must do.
        release = self.champion.release.short
        _log.error("model failed", release=release, error=type(error).__name__)
        return RowError("model_failed", "the model failed on these rows.")

    def counts(self, batches: Sequence[Batch]) -> Counter[tuple[str, str]]:
        """Levels that training never saw, by column, and nulls by feature."""
        counts: Counter[tuple[str, str]] = Counter()
        columns = dict(zip(self.schema.names, merged(batches), strict=True))
        for name, count in self.schema.unseen(columns).items():
            counts["unseen", name] = count
        for name, column in columns.items():
            if _NULL in set(map(type, column)):
                counts["nulls", name] = column.count(None)
        return counts


def merged(batches: Sequence[Batch]) -> Sequence[Sequence[Any]]:
    """The columns of all batches, one after the other."""
    if len(batches) == 1:
        return batches[0].columns
    rows = chain.from_iterable(zip(*batch.columns, strict=True) for batch in batches)
    return list(zip(*rows, strict=True))


def told_as(
    target: Target,
    ids: Sequence[str],
    scores: tuple[Sequence[Json], Sequence[float | None], Sequence[str | None]],
    version: str,
) -> list[Answer]:
    """Answers as a client gets them, from predictions, probability and probabilities."""
    predictions, probability, probabilities = scores
    if target.task == "regression":
        return [
            {"prediction_id": name, "prediction": value, "model_version": version}
            for name, value in zip(ids, predictions, strict=True)
        ]
    if target.task == "binary":
        return [
            {"prediction_id": name, "prediction": value, "probability": p, "model_version": version}
            for name, value, p in zip(ids, predictions, probability, strict=True)
        ]
    return [
        {
            "prediction_id": name,
            "prediction": value,
            "probabilities": dict(zip(target.classes, json.loads(shares or "[]"), strict=True)),
            "model_version": version,
        }
        for name, value, shares in zip(ids, predictions, probabilities, strict=True)
    ]


def recalled(rows: pa.Table, targets: Mapping[str, Target]) -> list[Answer]:
    """The answers in rows of the journal; `targets` are those of their releases."""
    answers: list[Answer] = []
    for row in rows.select(_ANSWER).to_pylist():
        target = targets[row["model_version"]]
        score = ([target.value(row["prediction"])], [row["probability"]], [row["probabilities"]])
        answers += told_as(target, [row["prediction_id"]], score, row["model_version"])
    return answers
