"""The predictor: check rows, score and calibrate them, record them, and only then answer.

It takes the store of releases, the journal, a clock and the settings of serving; no web framework
is in it. It gives answers from one verified champion, which `refresh` swaps in a single step when
the pointer moves, and the counts of what it did since it started.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc
import structlog
import uuid_utils

from homeostat import decode
from homeostat.champion import Champion, load
from homeostat.contracts import Clock, Journal, Releases
from homeostat.errors import (
    ConflictError,
    HomeostatError,
    JournalError,
    RowError,
    UnavailableError,
)
from homeostat.records import Appended, Json, Refusal
from homeostat.schema import RESERVED, TIMESTAMP, Schema, Target
from homeostat.settings import Serving

PATIENCE = 64  # looks that are skipped, at most, before a release that failed is tried again
RECOVERY = timedelta(seconds=5)  # after which a journal that failed is given traffic again
_KEY = ("prediction_id", "occurred_at")
_ANSWER = ("prediction_id", "prediction", "probability", "probabilities", "model_version")

_log = structlog.get_logger("homeostat.predictor")
_NEVER = object()


class WatchedReleases(Releases, Protocol):
    def mark(self) -> object:
        """A cheap token that changes when the pointer may have changed; None without one."""
        ...


class RecallingJournal(Journal, Protocol):
    def known(self, ids: Sequence[str]) -> pa.Table:
        """The recorded rows of these ids, as far as the tail of the journal holds them."""
        ...

    def catch_up(self) -> None:
        """Get ready for an append. Raises `JournalError` when it could not be written."""
        ...


class Predictor:
    """Answers from the champion, journals every answer before it is given, follows the pointer.

    Safe to call from many threads: a request keeps the champion that it began with.
    """

    def __init__(
        self,
        releases: WatchedReleases,
        journal: RecallingJournal,
        clock: Clock,
        *,
        serving: Serving,
    ) -> None:
        self._releases = releases
        self._journal = journal
        self._clock = clock
        self._serving = serving
        self._champion: Champion | None = None
        self._failure: str | None = None
        self._unwritable: datetime | None = None
        self._mark: object = _NEVER
        self._skip = self._backoff = 0
        self._refreshing = threading.Lock()
        self._counting = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()

    @property
    def champion(self) -> Champion | None:
        """What answers now; None before the first verified release."""
        return self._champion

    @property
    def failure(self) -> str | None:
        """Why the release that the pointer names does not serve; None when all is well."""
        return self._failure

    def counts(self) -> Mapping[tuple[str, str], int]:
        """Counts since the start of the process by what was counted and its label, such as
        ("unseen", column), ("refused", code), ("labels", kind) or ("predictions", "").
        """
        with self._counting:
            return dict(self._counts)

    def check(self) -> None:
        """Whether a prediction could be answered now.

        Raises UnavailableError without a champion, JournalError when the journal cannot write.
        """
        self._require()
        failed = self._unwritable
        if failed is not None and self._clock.now() - failed < RECOVERY:
            raise JournalError("the last answer could not be journalled.", hint="Check the disk.")
        with self._writing():
            self._journal.catch_up()

    def predict(self, rows: Sequence[Mapping[str, Json]]) -> list[dict[str, Json]]:
        """One answer per row, in order, each journalled before this returns.

        A row is a flat object of the champion's features, with `prediction_id` and `occurred_at`
        if the client likes. An id that the journal knows with the same content is answered as it
        was answered first. Raises RowError or ConflictError, with no row recorded, when any row
        is refused; UnavailableError without a champion; JournalError when nothing can be written.
        """
        champion = self._require()
        with self._refusing(champion.schema):
            batch = decode.rows(
                rows,
                champion.schema,
                now=self._clock.now(),
                max_skew=self._serving.max_skew,
                make_id=lambda: str(uuid_utils.uuid7()),
            )
            table = self._score(champion, batch)
            with self._writing():
                appended = self._append(table, batch)
        unseen = champion.schema.unseen(batch.columns)
        self._count({("unseen", name): count for name, count in unseen.items()})
        self._count({("predictions", ""): appended.written, ("repeated", ""): appended.repeated})
        answers = _answers(table, champion.schema.target)
        if appended.repeated:
            with self._writing():
                answers |= self._recorded(batch.ids, champion)
        return [answers[name] for name in batch.asked]

    def feedback(self, items: Sequence[Mapping[str, Json]]) -> dict[str, int]:
        """Take labels: `prediction_id`, `label`, and `labelled_at` if it is not now.

        Returns how many were `accepted` (written), how many of these `changed` an earlier label,
        and how many were `repeated`. Unknown ids are kept. Raises as `predict` does.
        """
        champion = self._require()
        with self._refusing(champion.schema):
            labels = decode.labels(
                items,
                champion.schema.target,
                now=self._clock.now(),
                max_skew=self._serving.max_skew,
            )
        with self._writing():
            labelled = self._journal.label(labels)
        result = {
            "accepted": labelled.written,
            "repeated": labelled.repeated,
            "changed": labelled.changed,
        }
        self._count({("labels", kind): n for kind, n in result.items()})
        return result

    def refuse(self, error: RowError | ConflictError, schema: Schema | None = None) -> None:
        """Count and journal one refusal. Names that are no column of the model are left out,
        since a client may put anything into a name.
        """
        code = error.code if isinstance(error, RowError) else "conflict"
        name = error.field if isinstance(error, RowError) else None
        known = RESERVED | (set(schema.names) if schema is not None else set())
        self._count({("refused", code): 1})
        with self._writing():
            refusal = Refusal(code, name if name in known else None)
            self._journal.reject([refusal], self._clock.now())

    def refresh(self) -> bool:
        """Follow the pointer if it moved; whether another release answers from now on.

        Never raises. A release that cannot be verified, unpickled, or does not answer its golden
        rows as it should is not served: the present one stays, `failure` says why, and after a
        while the release is tried again, since its files may be still on their way.
        """
        with self._refreshing:
            try:
                mark = self._releases.mark()
                if mark == self._mark and not self._due():
                    return False
                self._mark = mark
                champion = load(self._releases, self._champion)
            except Exception as error:  # noqa: BLE001 - fails closed: the present champion stays
                self._fail(error)
                return False
            self._failure = None
            self._skip = self._backoff = 0
            moved = champion is not None and (
                self._champion is None or champion.release.id != self._champion.release.id
            )
            self._champion = champion
            if moved and champion is not None:
                _log.info("serving", release=champion.release.short)
            return moved

    def _due(self) -> bool:
        """Whether a release that failed should be tried again at this look."""
        if self._failure is None:
            return False
        self._skip -= 1
        return self._skip < 0

    def _fail(self, error: Exception) -> None:
        text = _explain(error)
        if text != self._failure:
            _log.error("release not served", reason=text)
        self._failure = text
        self._backoff = min(2 * self._backoff or 1, PATIENCE)
        self._skip = self._backoff
        self._count({("refresh_failures", ""): 1})

    def _require(self) -> Champion:
        if self._champion is None:
            raise UnavailableError(
                self._failure or "there is no released model yet.", hint="Run homeostat train."
            )
        return self._champion

    def _score(self, champion: Champion, batch: decode.Batch) -> pa.Table:
        """The rows of the journal, with the champion's answers."""
        features = champion.schema.table(batch.columns)
        try:
            scores = champion.scorer.score(features)
        except Exception as error:  # noqa: BLE001 - fails closed: no answer from a failed model
            # The text of a foreign error may hold feature values, so its type must do.
            _log.error("model failed", release=champion.release.short, error=type(error).__name__)
            raise RowError("model_failed", "the model failed on these rows.") from None
        size = len(batch.ids)
        system = {
            "prediction_id": pa.array(batch.ids, pa.string()),
            "occurred_at": pa.array(batch.occurred, TIMESTAMP),
            "recorded_at": pa.array([self._clock.now()] * size, TIMESTAMP),
            "model_version": [champion.release.id] * size,
            "source": ["serve"] * size,
        }
        parts = (scores, features)
        columns = {name: part.column(name) for part in parts for name in part.column_names}
        return pa.table({**system, **columns}, schema=champion.schema.journal)

    def _append(self, table: pa.Table, batch: decode.Batch) -> Appended:
        """Journal the rows. A row that came again without a time keeps the time it was given at
        first, so that a client which tries again is not told of a conflict.
        """
        try:
            try:
                return self._journal.append(table)
            except ConflictError:
                if not batch.untimed:
                    raise
                return self._journal.append(self._timed(table, batch.untimed))
        except ConflictError as error:
            # The row's number in the request, not among its distinct rows.
            row = None if error.row is None else list(batch.places.values())[error.row]
            raise ConflictError(error.message, row=row, hint=error.hint) from None

    def _timed(self, table: pa.Table, untimed: frozenset[str]) -> pa.Table:
        """The rows, those of the given ids at the times that are recorded for them."""
        known = self._journal.known(sorted(untimed))
        first = dict(zip(*(known.column(name).to_pylist() for name in _KEY), strict=True))
        given = zip(*(table.column(name).to_pylist() for name in _KEY), strict=True)
        times = [first.get(name, when) for name, when in given]
        place = table.schema.get_field_index("occurred_at")
        return table.set_column(place, table.schema.field(place), pa.array(times, TIMESTAMP))

    def _recorded(self, ids: Sequence[str], champion: Champion) -> dict[str, dict[str, Json]]:
        """The earlier answers to these ids; each is read with the classes of its own release."""
        known = self._journal.known(ids).select(_ANSWER)
        answers: dict[str, dict[str, Json]] = {}
        for version in known.column("model_version").unique().to_pylist():
            target = champion.schema.target
            if version != champion.release.id:
                release = self._releases.get(version)
                target = Schema.from_json(self._releases.object(release, "schema")).target
            chosen = pc.equal(known.column("model_version"), version)
            answers |= _answers(known.filter(chosen), target)
        return answers

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Whatever the system refuses below the journal is the journal's failure; remembered, so
        that a balancer sends the next requests elsewhere.
        """
        try:
            yield
        except (JournalError, OSError) as error:
            self._unwritable = self._clock.now()
            self._count({("journal_failures", ""): 1})
            if isinstance(error, JournalError):
                raise
            raise JournalError("the journal cannot be used.", hint="Check the disk.") from error
        self._unwritable = None

    @contextmanager
    def _refusing(self, schema: Schema) -> Iterator[None]:
        try:
            yield
        except (RowError, ConflictError) as error:
            self.refuse(error, schema)
            raise

    def _count(self, more: Mapping[tuple[str, str], int]) -> None:
        with self._counting:
            self._counts.update(more)


def _answers(rows: pa.Table, target: Target) -> dict[str, dict[str, Json]]:
    """Rows of the journal as answers, by id."""
    answers = {}
    for row in rows.select(_ANSWER).to_pylist():
        answer = {
            "prediction_id": row["prediction_id"],
            "prediction": target.value(row["prediction"]),
        }
        if target.task == "binary":
            answer["probability"] = row["probability"]
        elif target.task == "multiclass":
            shares = json.loads(row["probabilities"])
            answer["probabilities"] = dict(zip(target.classes, shares, strict=True))
        answer["model_version"] = row["model_version"]
        answers[row["prediction_id"]] = answer
    return answers


def _explain(error: Exception) -> str:
    """A text for people. That of a foreign error may hold values, unless it names an import."""
    if isinstance(error, HomeostatError | ImportError | AttributeError | OSError):
        return str(error)
    return f"{type(error).__name__} while the release was loaded."
