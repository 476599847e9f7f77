"""Challenges: a challenger is trained, and judged against the champion on rows that none has seen.

Takes the stores, the user's code and the settings. Gives a candidate with the gate's verdict, or
the reason why there is none; nothing is released here, and what fails raises.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from homeostat import gate, lineage, maps, quarantine, slices, wealth
from homeostat.audit import fitted, jsonable
from homeostat.blend import Elder
from homeostat.errors import HomeostatError, ReleaseError, TrainingError, cause
from homeostat.holdout import Holdout, before, hold_out, newest
from homeostat.records import Candidate, Json, Release, Verdict
from homeostat.schema import Schema
from homeostat.scoring import row_losses
from homeostat.stats import CONFIDENCE, BlockMean, block_keys
from homeostat.stores import Stores
from homeostat.unseen import JUDGED, judged

MILLISECOND = timedelta(milliseconds=1)
USUAL = 0.75  # part of the level at which the usual challenger is tested, where others stand by


@dataclass(frozen=True, slots=True)
class Challenged:
    """What a challenge came to: `candidate` and `verdict`, or why nothing was trained."""

    candidate: Candidate | None = None
    verdict: Verdict | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class _Challenger:
    """A candidate and its losses on the judging rows."""

    share: float  # of the rows that could train, the newest, from which it learned
    candidate: Candidate
    losses: Any  # shape (rows,)

    @property
    def loss(self) -> float:
        """Their mean; infinite where it is not finite, so that such a challenger is not chosen."""
        mean = float(self.losses.mean()) if len(self.losses) else 0.0
        return mean if math.isfinite(mean) else math.inf

    @property
    def told(self) -> dict[str, Json]:
        rows, members = self.candidate.training.rows, self.members
        return {"share": self.share, "rows": rows, "loss": self.loss, "members": members}

    @property
    def members(self) -> int:
        return max(len(self.candidate.members), 1)

    def __str__(self) -> str:
        if self.members > 1:
            return f"the blend of {self.members} models"
        rows = "all rows" if self.share == 1 else f"the newest {self.share:.0%} of the rows"
        return f"that of {rows} alone"

    def beats(self, usual: _Challenger, keys: Any) -> bool:
        """Whether it is significantly better on rows in these blocks (one-sided t, as the gate)."""
        if not math.isfinite(usual.loss):
            return self.loss < usual.loss
        paired = BlockMean.of(usual.losses - self.losses, keys)
        return paired.p_greater() <= 1 - CONFIDENCE


_Made: TypeAlias = list[_Challenger]


@dataclass(frozen=True)
class Challenge(Stores):
    """Trains and judges by the rules of one project."""

    def first(self, now: datetime) -> tuple[Candidate, Verdict]:
        """A model of all rows, with the evidence of a sibling that never saw the newest ones."""
        schema = self._import(now, None)
        rows = self._labelled(now, schema)
        parts = self._split(rows, None)
        if parts.problem:
            verdict = gate.unjudged(parts.problem, parts.window)
        else:
            sibling = self._fit(parts.training, schema, parts.window.start, now, None, trial=True)
            scores, own = self._scores(sibling.objects, parts.fresh)
            verdict = gate.judge_first(
                training=own.labels(parts.training),
                labels=own.labels(parts.fresh),
                losses=row_losses(scores, parts.fresh, own),
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
        if self.settings.decide.recalibrate:
            maps.record(self, now)
        made, left = self._challengers(parts, schema, champion, now)
        best, verdict = self._ruled(made, champion, parts, now)
        beside = [one.told for one in made if one is not best] + left
        told = {"share": best.share, "members": best.members, "beside": beside}
        self.audit.write("trained", now, fitted(best.candidate) | told)
        if self._undone(best.candidate):
            return Challenged(problem="The challenger is one that was rolled back as worse.")
        self.audit.write("gate", now, jsonable(verdict))
        candidate = best.candidate
        if not verdict.promote:
            return Challenged(candidate, verdict)
        if self.settings.training.refit:
            rows, elder = newest(rows, best.share), Elder.of(candidate)
            candidate = self._fit(rows, schema, parts.window.end, now, champion.id, elder=elder)
            self.query(candidate)
            self.audit.write("refitted", now, fitted(candidate))
            verdict = replace(verdict, sibling=True)
            candidate = self._remembering(candidate, best.candidate, parts.fresh)
        else:
            candidate = self.trainer.finished(candidate, newest(parts.training, best.share))
        candidate = self._mapped(candidate, parts.window.end, now)
        return Challenged(self.trainer.with_twin(candidate, parts.judging), verdict)

    def _remembering(self, candidate: Candidate, sibling: Candidate, rows: pa.Table) -> Candidate:
        """The candidate with what its sibling answers to the rows that judged it, which it was
        fitted on itself.
        """
        answers = judged(rows, self._scores(sibling.objects, rows)[0])
        return replace(candidate, objects={**candidate.objects, JUDGED: answers})

    def _mapped(self, candidate: Candidate, until: datetime, now: datetime) -> Candidate:
        """The candidate with a map of the rows before `until`, where the record speaks for one; as
        it is where these are too few, which the audit chain then tells.
        """
        if not self._by_maps:
            return candidate
        made = maps.given(self, candidate, until, now)
        if made is None:
            reason = "Too few rows are known that the new model has not seen, for a map."
            self.audit.write("calibration_failed", now, {"reason": reason})
            return candidate
        self.query(made)
        self.audit.write("calibrated", now, fitted(made))
        return made

    @property
    def _by_maps(self) -> bool:
        """Whether what is released now is to have a map."""
        wanted = self.settings.decide.recalibrate
        return wanted and maps.chosen(self.audit.past(), self.settings) is not maps.BARE

    def query(self, candidate: Candidate) -> None:
        """Ask the stored bytes for the golden rows; raises ReleaseError when they answer otherwise
        than at the fit, or take longer than `gate.latency`.
        """
        found, budget = self.trainer.query(candidate), self.settings.gate.latency
        if found.problem:
            raise ReleaseError(f"the challenger {found.problem}.")
        took = timedelta(seconds=found.seconds)
        if budget is not None and took > budget:
            raise ReleaseError(
                f"the challenger takes {took / MILLISECOND:.3g} ms for one row, at the median of "
                f"its golden rows; gate.latency allows {budget / MILLISECOND:.3g} ms."
            )

    def _undone(self, candidate: Candidate) -> bool:
        """Whether the same rows and parameters made a champion that probation found worse."""
        for name in self.audit.past().undone:
            manifest = self.releases.get(name).manifest
            same = manifest["training"]["sha256"] == candidate.training.sha256
            if same and manifest["kind"] == "retrain" and manifest["params"] == candidate.params:
                return True
        return False

    def _fit(
        self,
        rows: pa.Table,
        schema: Schema,
        cutoff: datetime,
        now: datetime,
        parent: str | None,
        *,
        elder: Elder | None = None,
        trial: bool = False,
    ) -> Candidate:
        """A model of these rows, blended with the newest of `elder`, where there is one."""
        learned, keep = schema.learned_from(rows), self.settings.training.blend
        blended = elder is not None and keep > 1
        made = self.trainer.fit(
            rows, learned, cutoff=cutoff, as_of=now, parent=parent, trial=trial or blended
        )
        return self.trainer.finished(made, rows, elder, keep=keep) if blended else made

    def _challengers(
        self, parts: Holdout, schema: Schema, champion: Release, now: datetime
    ) -> tuple[_Made, list[dict[str, Json]]]:
        """What is judged, the usual one first, and why others could not be made.

        Usual is the blend of a model of all rows with the newest of the champion's line; beside it
        stand that model alone, and one of the newest rows. A failure to fit the former raises.
        """
        training, left, elder = parts.training, list[dict[str, Json]](), self._elder(champion)
        made = [self._challenger(parts, 1.0, schema, champion.id, now)]
        try:
            made = self._blended(made[0], elder, parts) if elder else made
        except HomeostatError as error:  # the model alone is judged
            left.append({"share": 1.0, "reason": f"It could not be blended: {cause(error)}"})
        share = self.settings.training.recent
        recent = newest(training, share)
        if self.settings.training.min_rows <= recent.num_rows < training.num_rows:
            try:
                made.append(self._challenger(parts, share, schema, champion.id, now))
            except HomeostatError as error:  # one class only, a limit: the others are judged
                left.append({"share": share, "reason": cause(error)})
        return made, left

    def _challenger(
        self, parts: Holdout, share: float, schema: Schema, parent: str, now: datetime
    ) -> _Challenger:
        rows, start = newest(parts.training, share), parts.window.start
        candidate = self._fit(rows, schema, start, now, parent, trial=True)
        return _Challenger(share, candidate, self._losses(candidate.objects, parts.fresh))

    def _elder(self, champion: Release) -> Elder | None:
        """What of the champion a challenger is blended with; None where nothing is."""
        if self.settings.training.blend == 1:
            return None
        model, schema = (self.releases.object(champion, name) for name in ("model", "schema"))
        return Elder(model, schema, champion.members)

    def _blended(self, alone: _Challenger, elder: Elder, parts: Holdout) -> _Made:
        """Its blend and itself, or itself where no other model can join it."""
        keep = self.settings.training.blend
        candidate = self.trainer.finished(
            alone.candidate,
            parts.training,
            elder,
            keep=keep,
            trial=True,
            twice=self.settings.training.refit,  # as in the release, which holds its refit, too
        )
        if len(candidate.members) == 1:
            return [replace(alone, candidate=candidate)]
        losses = self._losses(candidate.objects, parts.fresh)
        return [replace(alone, candidate=candidate, losses=losses), alone]

    def _taken(self, made: _Made, parts: Holdout) -> _Challenger:
        """The usual one, unless others are significantly better: then the best of these."""
        usual, *others = made
        times = parts.fresh.column("occurred_at").to_numpy()
        keys = block_keys(times, self.settings.monitor.block)
        better = [one for one in others if one.beats(usual, keys)]
        return min(better, key=lambda one: one.loss, default=usual)

    def _ruled(
        self, made: _Made, champion: Release, parts: Holdout, now: datetime
    ) -> tuple[_Challenger, Verdict]:
        """The one that is taken, with the gate's verdict; where that refuses it, the usual one,
        which has its own part of the look's level, is tested as well.
        """
        usual, best = made[0], self._taken(made, parts)
        verdict = self._judge(best, made, champion, parts, now)
        if verdict.promote or best is usual:
            return best, verdict
        instead = self._judge(usual, made, champion, parts, now)
        if instead.promote:
            told = f"{instead.reason} {str(best).capitalize()} did better and was refused:"
            return usual, replace(instead, reason=f"{told} {verdict.reason}")
        return best, replace(verdict, reason=f"{verdict.reason} {instead.reason}")

    def _judge(
        self, best: _Challenger, made: _Made, champion: Release, parts: Holdout, now: datetime
    ) -> Verdict:
        """The one of the challengers that was taken beside the champion."""
        schema = Schema.from_json(self.releases.object(champion, "schema"))
        seen = self.journal.read(parts.window, as_of=now, labelled=True, schema=schema)
        ids = parts.fresh.column("prediction_id")
        seen = seen.filter(pc.is_in(seen.column("prediction_id"), ids.combine_chunks()))
        if seen.column("prediction_id") != ids:
            raise ReleaseError("champion and challenger were not given the same rows.")
        own = Schema.from_json(best.candidate.objects["schema"])
        numbers = schema.target.task == "regression"
        verdict = gate.judge(
            occurred_at=parts.fresh.column("occurred_at").to_numpy(),
            champion=self._defended(champion, seen, schema),
            challenger=best.losses,
            metric="rmse" if numbers else "log_loss",
            gate=self.settings.gate,
            block=self.settings.monitor.block,
            window=parts.window,
            classes=None if numbers else len(parts.fresh.column("label").unique()),
            parts=slices.parts(parts.fresh, own.features, self.settings.gate),
            level=wealth.level(self.audit.past().looks, now, self.settings.gate),
            share=_share(best, made),
        )
        verdict = replace(verdict, mapped=self._by_maps)
        if len(made) > 1:
            told = "was taken" if best is made[0] else "did better"
            reason = f"{verdict.reason} Of {len(made)} challengers, {best} {told}."
            verdict = replace(verdict, reason=reason)
        if not verdict.promote:
            return verdict
        try:
            self.query(best.candidate)
        except HomeostatError as error:  # fails closed, and these rows have been looked at
            return replace(verdict, promote=False, reason=cause(error))
        return verdict

    def _defended(self, champion: Release, rows: pa.Table, schema: Schema) -> Any:
        """The champion's losses, shape (rows,), beside which a challenger's are put."""
        if not self.settings.decide.recalibrate:
            return lineage.losses(self.trainer, self.releases, champion, rows)
        model = self.releases.object(champion, "model")
        return self._compared(self.trainer.score(model, rows, schema), rows, schema)

    def _compared(self, scores: pa.Table, rows: pa.Table, schema: Schema) -> Any:
        """The losses of bare outputs or, where releases have a map, of outputs by one that is
        cross-fitted: so models are compared, and not a model with a map and one without.
        """
        if self._by_maps:
            scores = maps.crossed(scores, rows, schema, self.settings.monitor.block)
        return row_losses(scores, rows, schema)

    def _losses(self, held: Mapping[str, bytes], rows: pa.Table) -> Any:
        """Loss of each labelled row by the model in `held`, shape (rows,), as it is compared."""
        scores, schema = self._scores(held, rows)
        return self._compared(scores, rows, schema)

    def _scores(self, held: Mapping[str, bytes], rows: pa.Table) -> tuple[pa.Table, Schema]:
        schema = Schema.from_json(held["schema"])
        return self.trainer.score(held["model"], rows, schema), schema

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
        return hold_out(
            rows,
            known_until=champion.cutoff if champion else None,
            looked_until=self.audit.past().looked_until,
            gate=self.settings.gate,
            training=self.settings.training,
            block=self.settings.monitor.block,
        )


def _share(best: _Challenger, made: _Made) -> float:
    """The part of the look's level at which the one that was taken is tested, so that all of them
    together stay within it.
    """
    if len(made) == 1:
        return 1.0
    return USUAL if best is made[0] else (1 - USUAL) / (len(made) - 1)
