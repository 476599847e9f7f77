"""The predictor: check rows, score and calibrate them, record them, and only then answer.

It takes the store of releases, the journal, a clock and the settings of serving; no web framework
is in it. It gives answers from one verified champion, which `refresh` swaps in a single step when
the pointer moves, and the counts of what it did since it started.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

import pyarrow as pa
import structlog

from homeostat import decode
from homeostat.answer import Answer, Answered, Answerer, recalled
from homeostat.champion import Champion, load
from homeostat.contracts import Clock, Journal, Releases
from homeostat.entries import Committed, Entry, Refusal
from homeostat.errors import (
    ConflictError,
    HomeostatError,
    JournalError,
    RowError,
    UnavailableError,
)
from homeostat.follow import Follower
from homeostat.listening import Serving
from homeostat.reader import new_id
from homeostat.records import Json
from homeostat.schema import RESERVED, Schema

RECOVERY = timedelta(seconds=5)  # after which a journal that failed is given traffic again

_log = structlog.get_logger("homeostat.predictor")


class WatchedReleases(Releases, Protocol):
    def mark(self) -> object:
        """A cheap token that changes when the pointer may have changed; None without one."""
        ...


class ServingJournal(Journal, Protocol):
    def commit(
        self, columns: pa.Schema, entries: Sequence[Entry]
    ) -> Sequence[Committed | ConflictError]:
        """Write the rows of all entries at once; what became of each. Raises JournalError, and
        then nothing may be answered.
        """
        ...

    def catch_up(self) -> None:
        """Get ready for an append. Raises `JournalError` when it could not be written."""
        ...


@dataclass(frozen=True, slots=True)
class Asked:
    """A request whose rows were checked, with the champion that is to answer it."""

    answerer: Answerer
    batch: decode.Batch
    single: bool = False  # one object was sent, rather than an array


class Predictor:
    """Answers from the champion, journals every answer before it is given, follows the pointer.

    Safe to call from many threads: a request keeps the champion that it began with.
    """

    def __init__(
        self,
        releases: WatchedReleases,
        journal: ServingJournal,
        clock: Clock,
        *,
        serving: Serving,
    ) -> None:
        self._releases = releases
        self._journal = journal
        self._clock = clock
        self._serving = serving
        self._answerer: Answerer | None = None
        self._follower = Follower()
        self._unwritable: datetime | None = None
        self._refreshing = threading.Lock()
        self._counting = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._refused: Counter[Refusal] = Counter()

    @property
    def champion(self) -> Champion | None:
        """What answers now; None before the first verified release."""
        return self._answerer.champion if self._answerer else None

    @property
    def failure(self) -> str | None:
        """Why the release that the pointer names does not serve, in a sentence without a path; the
        log has all of it. None when all is well.
        """
        return self._follower.failure

    def counts(self) -> Mapping[tuple[str, str], int]:
        """Counts since the start of the process by what was counted and its label, such as
        ("unseen", column), ("refused", code), ("labels", kind) or ("predictions", "").
        """
        with self._counting:
            return dict(self._counts)

    def serving(self) -> Champion:
        """What answers now. Raises UnavailableError before the first verified release."""
        return self._require().champion

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

    def ask(self, body: bytes) -> Asked:
        """The rows of a request's body, checked.

        Raises RowError or ConflictError when any row is refused, UnavailableError without a
        champion.
        """
        answerer = self._require()
        with self._refusing(answerer.schema):
            batch = answerer.reader.read(body, self._clock.now())
            if batch is not None:
                return Asked(answerer, batch, single=body[:1] != b"[")
            rows, single = decode.parse(body, max_rows=self._serving.max_rows)
            return Asked(answerer, self._batch(rows, answerer.schema), single)

    def asked(self, rows: Sequence[Mapping[str, Json]]) -> Asked:
        """Rows that are objects already, checked; raises as `ask` does."""
        answerer = self._require()
        with self._refusing(answerer.schema):
            return Asked(answerer, self._batch(rows, answerer.schema))

    def answer(self, waiting: Sequence[Asked]) -> list[list[Answer] | HomeostatError]:
        """For each request one answer per row, in order, each journalled before this returns.

        All requests are scored, written and synced together, whichever of them are refused. An
        id that the journal knows with the same content is answered as it was answered first. What
        refuses a request stands in the place of its answers: ConflictError, RowError where the
        model has none for its rows, JournalError for all when nothing can be written.
        """
        results: dict[int, list[Answer] | HomeostatError] = {}
        groups: dict[int, list[int]] = {}
        for place, asked in enumerate(waiting):
            groups.setdefault(id(asked.answerer), []).append(place)
        for places in groups.values():
            found = self._together([waiting[place] for place in places])
            results.update(zip(places, found, strict=True))
        return [results[place] for place in range(len(waiting))]

    def predict(self, rows: Sequence[Mapping[str, Json]]) -> list[Answer]:
        """One answer per row, in order, each journalled before this returns.

        A row is a flat object of the champion's features, with `prediction_id` and `occurred_at`
        if the client likes. Raises RowError or ConflictError, with no row recorded, when any row
        is refused; UnavailableError without a champion; JournalError when nothing can be written.
        """
        (result,) = self.answer([self.asked(rows)])
        if isinstance(result, HomeostatError):
            raise result
        return result

    def feedback(self, items: Sequence[Mapping[str, Json]]) -> dict[str, int]:
        """Take labels: `prediction_id`, `label`, and `labelled_at` if it is not now.

        Returns how many were `accepted` (written), how many of these `changed` an earlier label,
        and how many were `repeated`. Unknown ids are kept. Raises as `predict` does.
        """
        schema = self._require().schema
        with self._refusing(schema):
            labels = decode.labels(
                items,
                schema.target,
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
        """Count one refusal; `flush` journals it. Names that are no column of the model are left
        out, since a client may put anything into a name.
        """
        code = error.code if isinstance(error, RowError) else "conflict"
        name = error.field if isinstance(error, RowError) else None
        known = RESERVED | (set(schema.names) if schema is not None else set())
        refusal = Refusal(code, name if name in known else None)
        with self._counting:
            self._counts["refused", code] += 1
            if refusal.field is not None:
                self._counts["refused_columns", refusal.field] += 1
            if code == "conflict":
                self._counts["conflicts", ""] += 1
            self._refused[refusal] += 1

    def flush(self) -> None:
        """Journal the refusals that were counted since the last time. Raises JournalError; they
        are counted on then.
        """
        with self._counting:
            refused, self._refused = self._refused, Counter()
        if not refused:
            return
        try:
            with self._writing():
                self._journal.reject(list(refused.elements()), self._clock.now())
        except JournalError:
            with self._counting:
                self._refused.update(refused)
            raise

    def refresh(self) -> bool:
        """Follow the pointer if it moved; whether another release answers from now on.

        Never raises. A release that cannot be verified, unpickled, or does not answer its golden
        rows as it should is not served: the present one stays, `failure` says why, and after a
        while the release is tried again, since its files may be still on their way.
        """
        with self._refreshing:
            try:
                if not self._follower.due(self._releases.mark()):
                    return False
                present = self.champion
                champion = load(self._releases, present)
                # All that is made for a release is made before it answers.
                answerer = Answerer(champion, self._serving) if champion else None
            except Exception as error:  # noqa: BLE001 - fails closed: the present champion stays
                self._follower.failed(error)
                self._count({("refresh_failures", ""): 1})
                return False
            self._follower.succeeded()
            moved = champion is not None and (
                present is None or champion.release.id != present.release.id
            )
            self._answerer = answerer
            if moved and champion is not None:
                _log.info("serving", release=champion.release.short)
            return moved

    def _require(self) -> Answerer:
        if self._answerer is None:
            failure = self.failure
            hint = "The log says why." if failure else "Run homeostat train."
            raise UnavailableError(failure or "there is no released model yet.", hint=hint)
        return self._answerer

    def _batch(self, rows: Sequence[Mapping[str, Json]], schema: Schema) -> decode.Batch:
        return decode.rows(
            rows, schema, now=self._clock.now(), max_skew=self._serving.max_skew, make_id=new_id
        )

    def _together(self, waiting: Sequence[Asked]) -> list[list[Answer] | HomeostatError]:
        """The results of requests to the same champion; those that it refuses hold up no other."""
        answerer = waiting[0].answerer
        batches = [asked.batch for asked in waiting]
        made = answerer.answered(batches, decode.stamp(self._clock.now()), "serve")
        for each in made:
            if isinstance(each, RowError):
                self.refuse(each)
        taken = [
            (asked, each)
            for asked, each in zip(waiting, made, strict=True)
            if not isinstance(each, RowError)
        ]
        written = iter(self._written(answerer, taken) if taken else ())
        return [each if isinstance(each, RowError) else next(written) for each in made]

    def _written(
        self, answerer: Answerer, taken: Sequence[tuple[Asked, Answered]]
    ) -> list[list[Answer] | HomeostatError]:
        """The results of requests that were scored, written by one commit."""
        try:
            with self._writing():
                entries = [entry for _, (entry, _) in taken]
                committed = self._journal.commit(answerer.schema.journal, entries)
                results = [
                    self._told(asked, answers, end)
                    for (asked, (_, answers)), end in zip(taken, committed, strict=True)
                ]
        except JournalError as error:
            return [error] * len(taken)
        kept = [
            (asked.batch, end)
            for (asked, _), end in zip(taken, committed, strict=True)
            if isinstance(end, Committed)
        ]
        if kept:
            counts = answerer.counts([batch for batch, _ in kept])
            counts["predictions", ""] = sum(end.written for _, end in kept)
            counts["repeated", ""] = sum(end.repeated for _, end in kept)
            self._count(counts)
        return results

    def _told(
        self, asked: Asked, answers: list[Answer], end: Committed | ConflictError
    ) -> list[Answer] | HomeostatError:
        """The answers to one request that was written, or the conflict that kept it out."""
        batch = asked.batch
        if isinstance(end, ConflictError):
            # The row's number in the request, not among its distinct rows.
            row = None if end.row is None else batch.asked.index(batch.ids[end.row])
            conflict = ConflictError(end.message, row=row, hint=end.hint)
            self.refuse(conflict)
            return conflict
        if end.recorded is None and batch.asked is batch.ids:
            return answers
        told = dict(zip(batch.ids, answers, strict=True))
        if end.recorded is not None:
            try:
                recorded = self._recorded(end.recorded, asked.answerer)
            except HomeostatError as error:
                _log.error("first answer not read", reason=str(error))
                return UnavailableError("the release that answered first cannot be read.")
            told |= {answer["prediction_id"]: answer for answer in recorded}
        return [told[name] for name in batch.asked]

    def _recorded(self, known: pa.Table, answerer: Answerer) -> list[Answer]:
        """The earlier answers to these ids; each is read with the classes of its own release."""
        targets = {answerer.champion.release.id: answerer.schema.target}
        for version in known.column("model_version").unique().to_pylist():
            if version not in targets:
                release = self._releases.get(version)
                held = self._releases.object(release, "schema")
                targets[version] = Schema.from_json(held).target
        return recalled(known, targets)

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
