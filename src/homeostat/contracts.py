"""The small Protocols between the loop and the parts that touch the world.

A room takes these as arguments and knows nothing of CSV, Delta, MLflow or processes behind them.
Each contract states its ordering and its errors; `homeostat.testing` ships the test class that
every implementation of `Journal` and `Engine` passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar

import pyarrow as pa

from homeostat.blend import Elder
from homeostat.entries import Appended, Labelled, Queried, Refusal, Sealed, Sent
from homeostat.past import Past
from homeostat.records import (
    Candidate,
    Decision,
    Evidence,
    Json,
    Outcome,
    Release,
    Verdict,
    Window,
)
from homeostat.schema import Schema

P = ParamSpec("P")
T = TypeVar("T")


class Clock(Protocol):
    def now(self) -> datetime:
        """The present, aware UTC. Live it is the wall clock; in a replay or a demo it is not."""
        ...


class Journal(Protocol):
    """The append-only log of predictions and labels.

    A method that writes returns only once the rows are durable, and raises `JournalError` with
    nothing written otherwise. Tables have the columns of `Schema.journal`; tables read back have
    `label` (text for classes, float64 for numbers) and `labelled_at` besides.
    """

    def append(self, rows: pa.Table) -> Appended:
        """Add served rows. The same id with the same content counts as repeated; with other
        content `ConflictError` is raised, and no row of the call is written.
        """
        ...

    def label(self, labels: pa.Table) -> Labelled:
        """Add labels: columns `prediction_id`, `label` (text), `labelled_at` (UTC).

        Ids that are not known yet are kept and joined later. The last version of a label wins;
        all versions are kept.
        """
        ...

    def load(self, rows: pa.Table) -> tuple[Appended, Labelled]:
        """Import rows of the user's `load()` with `source=load` and their labels; rows whose id
        the journal knows bring only their label.
        """
        ...

    def reject(self, refusals: Sequence[Refusal], at: datetime) -> None:
        """Count refused rows by code and column, without their values."""
        ...

    def read(
        self,
        window: Window | None = None,
        *,
        as_of: datetime | None = None,
        labelled: bool | None = None,
        schema: Schema | None = None,
    ) -> pa.Table:
        """Rows joined with their labels, ordered by event time and then id.

        `window` is of event time, None for all; labels that arrived after `as_of` are hidden, and
        so are those that came later and are dated back, where the row itself was recorded by
        then; `labelled=True` keeps only rows with a label. With `schema`, the features are its
        own, in its order, null where a row never had them.
        """
        ...

    def scan(
        self,
        window: Window | None = None,
        *,
        as_of: datetime | None = None,
        labelled: bool | None = None,
        schema: Schema | None = None,
    ) -> Iterator[pa.Table]:
        """What `read` gives, in the same order, in tables of bounded size, at least one; rows
        that come meanwhile are not among them.
        """
        ...

    def seal(self, now: datetime) -> Sealed:
        """Move what was recorded long enough ago into history; no row is lost, none doubled, and
        reads before, after and meanwhile give the same. `now` is of the clock that stamps rows.
        """
        ...

    def newest(self, *, source: str | None = None) -> datetime | None:
        """The newest event time, of one source or of all; None in an empty journal."""
        ...

    def refused(self, window: Window) -> Mapping[str, int]:
        """Refused rows in the window of arrival time, counted by `code` or `code:column`."""
        ...


class Releases(Protocol):
    """The store of releases and the pointer to the champion."""

    def champion(self) -> Release | None:
        """The verified champion; None before the first. Raises `VerificationError`."""
        ...

    def get(self, release: str) -> Release:
        """A release by id or unambiguous prefix, its manifest verified against its id."""
        ...

    def object(self, release: Release, name: str) -> bytes:
        """The bytes of one object of a release, verified against its hash."""
        ...

    def add(self, candidate: Candidate, verdict: Verdict, at: datetime) -> Release:
        """Store a candidate with the evidence for it. The pointer does not move."""
        ...

    def promote(self, release: Release) -> None:
        """Make a stored release the champion, atomically. Raises `ReleaseError` when another
        one was promoted since the release was stored, or no signing key is at hand.
        """
        ...

    def roll_back(self, to: str | None = None) -> Release:
        """Make an earlier release (by default the predecessor) the champion again."""
        ...

    def line(self) -> Sequence[Release]:
        """The champions from the present one back to the first, newest first."""
        ...


class Audit(Protocol):
    """The hash-chained record of all that happened; the loop alone writes it."""

    def write(self, kind: str, at: datetime, body: Mapping[str, Json]) -> None: ...

    def past(self) -> Past: ...

    def lines(self) -> Sequence[Mapping[str, Json]]: ...


class Engine(Protocol):
    """Runs a module-level function in a child process with limits.

    Raises `EngineError` when the function raises (its own HomeostatErrors pass through), when the
    child dies, and when time or memory run out; the next call gets a fresh child then.
    """

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T: ...

    def close(self) -> None: ...


class Trainer(Protocol):
    """The user's code, run in a child."""

    def load(self) -> pa.Table | None:
        """What the user's `load()` returns, checked: its columns, the target under its own name,
        `prediction_id`, `occurred_at`, `labelled_at`; None without such code.
        """
        ...

    def schema_of(self, loaded: pa.Table) -> Schema:
        """The columns of what `load` gave; a fit learns the rest. Raises `SchemaError`."""
        ...

    def rows_of(self, loaded: pa.Table, schema: Schema, at: datetime) -> pa.Table:
        """The same rows as the journal takes them: `Schema.journal`, `label`, `labelled_at`."""
        ...

    def fit(
        self,
        rows: pa.Table,
        schema: Schema,
        *,
        cutoff: datetime,
        as_of: datetime,
        parent: str | None,
        trial: bool = False,
    ) -> Candidate:
        """Fit on exactly these labelled rows. Raises `TrainingError` or `EngineError`.

        A `trial` is only judged, never released, and need not carry a reference.
        """
        ...

    def finished(
        self,
        candidate: Candidate,
        rows: pa.Table,
        elder: Elder | None = None,
        *,
        keep: int = 1,
        trial: bool = False,
        twice: bool = False,
    ) -> Candidate:
        """A candidate that a trial of these rows gave, as it is judged or released: blended with
        the newest models of `elder` to `keep` in all, of which it counts as two with `twice`, and
        with the objects of the result, those of a release unless it is a `trial`.

        Raises `TrainingError` or `EngineError`.
        """
        ...

    def score(
        self, model: bytes, rows: pa.Table, schema: Schema, calibrator: bytes | None = None
    ) -> pa.Table:
        """`prediction`, `probability` and `probabilities` of each row, in order."""
        ...

    def query(self, candidate: Candidate) -> Queried:
        """Read the candidate's bytes anew and ask them for its golden rows, all and one by one.

        Raises `TrainingError` or `EngineError` when they cannot be read or do not answer.
        """
        ...

    def with_twin(self, candidate: Candidate, rows: pa.Table) -> Candidate:
        """The candidate about to be released, with an ONNX twin among its objects where one
        proved equal to the model on these rows, and what was found in `twin`. Never raises.
        """
        ...


class Policy(Protocol):
    def __call__(self, evidence: Evidence, past: Past, now: datetime) -> Decision:
        """Pure: the same arguments give the same decision."""
        ...


class Reporter(Protocol):
    def evidently(
        self, reference: pa.Table, current: pa.Table, schema: Schema
    ) -> Mapping[str, Json]:
        """Write the HTML report and return its numbers; on failure `{"error": …}`, never raises."""
        ...

    def status(self, evidence: Evidence) -> None:
        """Write the status file, atomically."""
        ...

    def last(self) -> Evidence | None:
        """The evidence of the last status; None when there is none that can be read."""
        ...


class Tracker(Protocol):
    """Where trainings are recorded for people. Never raises, never waits."""

    def training(
        self,
        candidate: Candidate,
        verdict: Verdict,
        release: Release | None,
        report: Path | None,
        *,
        serves: bool = True,
    ) -> None: ...

    def serves(self, release: Release) -> None: ...

    def close(self) -> None: ...


class Alerts(Protocol):
    def send(self, title: str, body: str) -> Sent:
        """Tell people; who took it and who failed. Never raises."""
        ...


class Watcher(Protocol):
    """Sees each outcome as it falls: a live display, a counter in a replay."""

    def __call__(self, outcome: Outcome) -> None: ...
