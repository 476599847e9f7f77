"""Challenges: a challenger is trained, and judged against the champion on rows that none has seen.

Takes the stores, the user's code and the settings. Gives a candidate with the gate's verdict, or
the reason why there is none; nothing is released here, and what fails raises.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from homeostat import gate, quarantine, slices
from homeostat.audit import fitted, jsonable
from homeostat.contracts import Audit, Journal, Releases, Trainer
from homeostat.errors import ReleaseError, TrainingError
from homeostat.holdout import Holdout, before, everything, hold_out
from homeostat.records import Candidate, Release, Verdict
from homeostat.schema import Schema
from homeostat.scoring import row_losses
from homeostat.settings import Settings


@dataclass(frozen=True, slots=True)
class Challenged:
    """What a challenge came to: `candidate` and `verdict`, or why nothing was trained."""

    candidate: Candidate | None = None
    verdict: Verdict | None = None
    problem: str = ""


@dataclass(frozen=True)
class Challenge:
    """Trains and judges by the rules of one project; `gated` False promotes without a gate."""

    settings: Settings
    journal: Journal
    releases: Releases
    audit: Audit
    trainer: Trainer
    gated: bool = True

    def first(self, now: datetime) -> tuple[Candidate, Verdict]:
        """A model of all rows, with the evidence of a sibling that never saw the newest ones."""
        schema = self._import(now, None)
        rows = self._labelled(now, schema)
        parts = self._split(rows, None)
        if parts.problem:
            verdict = gate.unjudged(parts.problem, parts.window)
        else:
            sibling = self._fit(parts.training, schema, parts.window.start, now, None, trial=True)
            own = Schema.from_json(sibling.objects["schema"])
            verdict = gate.judge_first(
                training=own.labels(parts.training),
                labels=own.labels(parts.fresh),
                losses=self._losses(sibling.objects, parts.fresh),
                task=own.target.task,
                occurred_at=parts.fresh.column("occurred_at").to_numpy(),
                block=self.settings.monitor.block,
                window=parts.window,
            )
            verdict = replace(verdict, sibling=True)
        candidate = self._fit(rows, schema, parts.window.end, now, None)
        self.audit.write("first", now, fitted(candidate))
        candidate = self.trainer.with_twin(candidate, parts.judging)
        return replace(candidate, kind="first"), verdict

    def retrain(self, champion: Release, now: datetime) -> Challenged:
        """A challenger of the user's code, judged; refitted on all rows where that is wanted."""
        schema = self._import(now, champion)
        rows = self._labelled(now, schema)
        parts = self._split(rows, champion)
        if parts.problem:
            return Challenged(problem=parts.problem)
        refit = self.gated and self.settings.training.refit
        start = parts.window.start
        candidate = self._fit(parts.training, schema, start, now, champion.id, trial=refit)
        self.audit.write("trained", now, fitted(candidate))
        verdict = self._judge(candidate, champion, parts, now)
        self.audit.write("gate", now, jsonable(verdict))
        if verdict.promote and refit:
            candidate = self._fit(rows, schema, parts.window.end, now, champion.id)
            self.query(candidate)
            self.audit.write("refitted", now, fitted(candidate))
            verdict = replace(verdict, sibling=True)
        if verdict.promote:
            candidate = self.trainer.with_twin(candidate, parts.judging)
        return Challenged(candidate, verdict)

    def query(self, candidate: Candidate) -> None:
        """Ask the stored bytes for the golden rows; raises ReleaseError when they differ."""
        held = candidate.objects
        golden = pq.read_table(io.BytesIO(held["golden"]))
        schema = Schema.from_json(held["schema"])
        scores = self.trainer.score(held["model"], golden, schema, held.get("calibrator"))
        if scores != golden.select(scores.column_names):
            raise ReleaseError("the challenger does not answer its golden rows as it did.")

    def _fit(
        self,
        rows: pa.Table,
        schema: Schema,
        cutoff: datetime,
        now: datetime,
        parent: str | None,
        *,
        trial: bool = False,
    ) -> Candidate:
        learned = schema.learned_from(rows)
        return self.trainer.fit(rows, learned, cutoff=cutoff, as_of=now, parent=parent, trial=trial)

    def _judge(
        self, candidate: Candidate, champion: Release, parts: Holdout, now: datetime
    ) -> Verdict:
        if not self.gated:
            return replace(gate.unjudged("No gate, as asked.", parts.window), promote=True)
        held = {name: self.releases.object(champion, name) for name in champion.manifest["objects"]}
        schema = Schema.from_json(held["schema"])
        seen = self.journal.read(parts.window, as_of=now, labelled=True, schema=schema)
        ids = parts.fresh.column("prediction_id")
        seen = seen.filter(pc.is_in(seen.column("prediction_id"), ids.combine_chunks()))
        if seen.column("prediction_id") != ids:
            raise ReleaseError("champion and challenger were not given the same rows.")
        own = Schema.from_json(candidate.objects["schema"])
        numbers = schema.target.task == "regression"
        verdict = gate.judge(
            occurred_at=parts.fresh.column("occurred_at").to_numpy(),
            champion=self._losses(held, seen),
            challenger=self._losses(candidate.objects, parts.fresh),
            metric="rmse" if numbers else "log_loss",
            gate=self.settings.gate,
            block=self.settings.monitor.block,
            window=parts.window,
            classes=None if numbers else len(parts.fresh.column("label").unique()),
            parts=slices.parts(parts.fresh, own.features, self.settings.gate),
        )
        if verdict.promote:
            self.query(candidate)
        return verdict

    def _losses(self, held: Mapping[str, bytes], rows: pa.Table) -> Any:
        """Loss of each labelled row by the model in `held`, shape (rows,)."""
        schema = Schema.from_json(held["schema"])
        scores = self.trainer.score(held["model"], rows, schema, held.get("calibrator"))
        return row_losses(scores, rows, schema)

    def _import(self, now: datetime, champion: Release | None) -> Schema:
        """Bring what `load()` returns into history; the columns that training will read."""
        loaded = self.trainer.load()
        if loaded is not None and loaded.num_rows:
            schema = self.trainer.schema_of(loaded)
            self.journal.load(self.trainer.rows_of(loaded, schema, now))
            return schema
        if champion is None:
            raise TrainingError(
                "there is nothing to train on.",
                hint=f"Let load() in {self.settings.training.script} return labelled rows; "
                "`homeostat init` writes that script.",
            )
        return Schema.from_json(self.releases.object(champion, "schema"))

    def _labelled(self, now: datetime, schema: Schema) -> pa.Table:
        """All labelled rows that are old enough to be judged, but for those in quarantine."""
        rows = self.journal.read(as_of=now, labelled=True, schema=schema)
        rows = before(rows, now - self.settings.labels.delay)
        return quarantine.left_out(rows, self.audit, schema, now)

    def _split(self, rows: pa.Table, champion: Release | None) -> Holdout:
        if champion is not None and not self.gated:
            return everything(rows)
        return hold_out(
            rows,
            known_until=champion.cutoff if champion else None,
            looked_until=self.audit.past().looked_until,
            gate=self.settings.gate,
            training=self.settings.training,
        )
