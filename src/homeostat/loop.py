"""The loop: the only file that knows the order of things.

`Loop` takes the stores, the user's code and the policy as arguments, so that live operation, the
demo and a replay are the same code with other parts. Each public method is one turn and gives an
`Outcome`; whatever fails between journal and gate ends in hold, with the reason in the audit chain.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import pyarrow as pa

from homeostat import approval, blocks, frozen, gate, lineage, probation, quarantine, remedy
from homeostat.alerts import tell
from homeostat.audit import attempted, fitted, jsonable, looked
from homeostat.challenge import Challenge, Challenged
from homeostat.contracts import (
    Alerts,
    Audit,
    Clock,
    Engine,
    Journal,
    Policy,
    Releases,
    Reporter,
    Tracker,
    Trainer,
    Watcher,
)
from homeostat.decide import after_training, asked, stayed
from homeostat.errors import ReleaseError, cause
from homeostat.monitor import Journalled, Subject, examine, failed
from homeostat.notes import Note
from homeostat.past import MOVES, PROBATION, Past
from homeostat.records import (
    Action,
    Candidate,
    Decision,
    Evidence,
    Json,
    Outcome,
    Release,
    State,
    Trial,
    Verdict,
    Window,
)
from homeostat.settings import Settings


@dataclass(frozen=True)
class Loop:
    """monitor → decide → train → gate → release; the journal before it, the server after it."""

    settings: Settings
    clock: Clock
    journal: Journal
    releases: Releases
    audit: Audit
    trainer: Trainer
    reporter: Reporter
    tracker: Tracker
    alerts: Alerts
    policy: Policy
    copy: Callable[[], object]  # makes the champion's copies for people
    watch: Watcher
    report: Path | None = None  # the drift report, to be tracked beside a training
    kept: blocks.Kept | None = None  # profiles of days; None: every look counts all rows
    engine: Engine | None = None  # where the monitor's twins are fitted; None: they are not
    beside: bool = False  # each look tells what the first release would have come to
    _subjects: dict[str, Subject] = field(default_factory=dict, repr=False)

    # --- turns ---

    def step(self, now: datetime | None = None) -> Outcome:
        """Monitor, decide, and do what was decided."""
        now = now or self.clock.now()
        evidence = self._look(now)
        if evidence.state != State.FAILED:
            evidence = replace(evidence, trial=self._trial(now))
        return self._act(self.policy(evidence, self._past(), now), evidence, now)

    def monitor(self, now: datetime | None = None) -> Evidence:
        """Evidence only; nothing is decided."""
        now = now or self.clock.now()
        evidence = self._look(now)
        self.audit.write("monitored", now, looked(evidence))
        self._tell(now)
        return evidence

    def retrain(self, now: datetime | None = None, *, force: bool = False) -> Outcome:
        """Act on the last status, as `src/training/retrain.py` does; `force` needs no drift."""
        evidence = self.reporter.last()
        decision = stayed(asked(evidence, self._champion().id, force=force), self.audit.past())
        return self._act(decision, evidence, now or self.clock.now())

    def train(self, now: datetime | None = None) -> Outcome:
        """The first release; where a champion serves, a challenger that the gate judges."""
        if self.releases.champion() is not None:
            return self.retrain(now, force=True)
        now, began = now or self.clock.now(), time.monotonic()
        candidate, verdict = self._challenger.first(now)
        release = self._promote(candidate, verdict, now)
        decision = Decision(Action.RETRAIN, "first", "There was no champion yet.")
        return self._done(Outcome(now, decision, None, verdict, release.id, promoted=True), began)

    def roll_back(
        self, to: str | None = None, now: datetime | None = None, *, by: str = ""
    ) -> Outcome:
        """Make an earlier release (by default the predecessor) the champion again, pinned or not.

        `by` says who asked.
        """
        now, began = now or self.clock.now(), time.monotonic()
        old = self._champion()
        release = self.releases.roll_back(to)
        who = {"by": by} if by else {}
        self.audit.write("rolled_back", now, {"from": old.id, "release": release.id, **who})
        self.tracker.serves(release)
        self.copy()
        reason = f"Asked for: {release.short} serves again, in the place of {old.short}."
        decision = Decision(Action.ROLL_BACK, "asked", reason)
        return self._done(Outcome(now, decision, release=release.id, promoted=True), began)

    def approve(self, release: str, by: str, now: datetime | None = None) -> Outcome:
        """Promote a release that waits, by id or prefix; `by` says who asked.

        Raises ReleaseError for one that the gate refused, that does not wait, or that challenged
        another champion than the present one, and while the champion is pinned.
        """
        now, began = now or self.clock.now(), time.monotonic()
        found, pinned = self.releases.get(release), self.audit.past().pinned
        if pinned is not None:
            raise ReleaseError("the champion is pinned.", hint="`homeostat unpin` lets it change.")
        approval.check(found, self.audit.lines())
        self.audit.write("approved", now, {"release": found.id, "by": by})
        self._serve(found, now, f"Approved by {by}.")
        self.tracker.serves(found)
        decision = Decision(Action.ADOPT, "approved", f"{found.short} was approved by {by}.")
        return self._done(Outcome(now, decision, release=found.id, promoted=True), began)

    def pin(self, by: str, now: datetime | None = None, *, pinned: bool = True) -> None:
        """Keep the champion whatever comes, or with `pinned` False let it change again.

        While it is pinned nothing is trained or promoted, nor does probation go back; a rollback
        that is asked for moves it, and what serves then stays. Raises ReleaseError without a
        champion, and where it is so already.
        """
        champion = self._champion()
        if (self.audit.past().pinned is not None) == pinned:
            raise ReleaseError(f"the champion is {'pinned already' if pinned else 'not pinned'}.")
        told = {"release": champion.id, "by": by}
        self.audit.write("pinned" if pinned else "unpinned", now or self.clock.now(), told)

    def adopt(self, candidate: Candidate, rows: pa.Table, now: datetime | None = None) -> Outcome:
        """The first release, of a model that was fitted elsewhere; `rows` become history.

        Raises ReleaseError where a champion serves.
        """
        now, began = now or self.clock.now(), time.monotonic()
        if self.releases.champion() is not None:
            raise ReleaseError("there is a champion already.", hint="Adopt into a new project.")
        self._challenger.query(candidate)
        self.journal.load(rows)
        window = Window(candidate.training.start, candidate.training.cutoff)
        verdict = gate.unjudged("The rows it was fitted on are unknown: none can judge it.", window)
        self.audit.write("adopted", now, fitted(candidate))
        release = self._promote(candidate, verdict, now)
        decision = Decision(Action.ADOPT, "brought", "A model that was fitted elsewhere serves.")
        return self._done(Outcome(now, decision, None, verdict, release.id, promoted=True), began)

    def recover(self, notes: Sequence[Note | None] = ()) -> None:
        """Finish what a killed turn left: the pointer's audit line and the champion's copies.

        Where a server moved the pointer back, `notes` tell who asked for it.
        """
        champion = self.releases.champion()
        if champion is None:
            return
        told = [line["body"]["release"] for line in self.audit.lines() if line["kind"] in MOVES]
        if told[-1:] != [champion.id]:
            asked = next((n for n in notes if n and n.release == champion.id), None)
            if asked is not None:
                self.audit.write("rolled_back", self.clock.now(), asked.told)
            else:
                self.audit.write("recovered", self.clock.now(), {"release": champion.id})
        self.copy()

    # --- look ---

    def _look(self, now: datetime) -> Evidence:
        champion, last = self._champion(), self.reporter.last()
        mature = now - self.settings.labels.delay
        window = Window(now - self.settings.monitor.window, now)
        try:
            window = blocks.window(now, self.journal.newest(source="serve"), self.settings.monitor)
            subject = self._subject(champion)
            parts = self.journal.scan(window, as_of=now, schema=subject.schema)
            evidence = examine(
                subject,
                map(blocks.served, parts),  # holds no piece while the next is read
                window,
                refused=self.journal.refused(window),
                last=last,
                settings=self.settings.monitor,
                mature_until=mature,
                now=now,
                reporter=self.reporter,
                kept=self.kept,
                asked=Journalled.of(self.journal, now, self.settings, self.engine),
            )
            evidence = self._with_first(evidence, champion, now)
            evidence = quarantine.hold(self.audit, evidence, now)
            history, fresh = remedy.counted(self._challenger, champion, subject.schema, now)
            evidence = replace(evidence, history=history, fresh=fresh)
        except Exception as error:  # noqa: BLE001 - fails closed: the state says failed, and why
            evidence = failed(champion.id, window, last, error, now)
        self.reporter.status(evidence)
        return evidence

    def _with_first(self, evidence: Evidence, champion: Release, now: datetime) -> Evidence:
        """With the metric of the first release; without it, and why, where that fails."""
        told = evidence.performance
        if not self.beside or told is None:
            return evidence
        try:
            told = frozen.beside(self._challenger, champion, told, evidence.window, now)
        except Exception as error:  # noqa: BLE001 - it informs, and no verdict rests on it
            self.audit.write("beside_failed", now, {"reason": cause(error)})
        return replace(evidence, performance=told)

    def _subject(self, champion: Release) -> Subject:
        if champion.id not in self._subjects:
            self._subjects.clear()
            names = {"schema", "reference", "reference_sample"}
            # Older releases lack some.
            names |= {"importance", "traits", "segments", "calibrator"} & champion.manifest[
                "objects"
            ].keys()
            held = {name: self.releases.object(champion, name) for name in sorted(names)}
            *_, base = lineage.kin(self.releases, champion)
            self._subjects[champion.id] = Subject.of(champion, held, base)
        return self._subjects[champion.id]

    def _trial(self, now: datetime) -> Trial | None:
        """The look of the probation that is due; a failure leaves the champion, and says why."""
        try:
            return probation.look(self._challenger, self._champion(), now)
        except Exception as error:  # noqa: BLE001 - fails closed: no rollback without evidence
            self.audit.write("probation_failed", now, {"reason": cause(error)})
            return None

    def _past(self) -> Past:
        trained = self._champion().training
        return replace(self.audit.past(), trained_rows=trained.rows, trained_at=trained.as_of)

    # --- act ---

    def _act(self, decision: Decision, evidence: Evidence | None, now: datetime) -> Outcome:
        began, champion = time.monotonic(), self._champion()
        about = looked(evidence) if evidence else None
        self.audit.write("decided", now, {"decision": jsonable(decision), "evidence": about})
        outcome = Outcome(now, decision, evidence, release=champion.id)
        if decision.action is Action.RETRAIN:
            outcome = self._challenge(outcome, champion)
            outcome = self._beside(outcome, champion)
        elif decision.action is Action.RECALIBRATE and decision.trigger == PROBATION:
            outcome = self._exchange(outcome, champion)
        elif decision.action is Action.RECALIBRATE:
            outcome = self._recalibrate(outcome, champion)
        elif decision.action is Action.ROLL_BACK:
            outcome = self._go_back(outcome, champion)
        return self._done(outcome, began)

    def _challenge(self, outcome: Outcome, champion: Release) -> Outcome:
        """Train a challenger and let the gate judge it; any failure keeps the champion."""
        now = outcome.at
        try:
            found = self._challenger.retrain(champion, now)
        except Exception as error:  # noqa: BLE001 - fails closed: the champion stays, and why
            self.audit.write("training_failed", now, {"reason": cause(error)})
            return outcome.held("failed", f"Training failed: {cause(error)}")
        return self._judged(outcome, found)

    def _beside(self, outcome: Outcome, champion: Release) -> Outcome:
        """Where no challenger came of a training, try a map over the champion's model instead."""
        waits = outcome.verdict is not None and outcome.verdict.promote
        decision = after_training(outcome.evidence, self.settings.decide)
        if outcome.promoted or waits or decision is None:
            return outcome
        tried = replace(outcome, decision=decision, refused=outcome.verdict, verdict=None)
        tried = self._recalibrate(tried, champion)
        return tried if tried.promoted else outcome

    def _recalibrate(self, outcome: Outcome, champion: Release) -> Outcome:
        """Try another map over the champion's model; any failure keeps the champion."""
        now = outcome.at
        try:
            harm = outcome.decision.trigger == "harm"
            found = remedy.recalibrate(self._challenger, champion, now, harm=harm)
        except Exception as error:  # noqa: BLE001 - fails closed: the champion stays, and why
            self.audit.write("calibration_failed", now, {"reason": cause(error)})
            return outcome.held("failed", f"Recalibration failed: {cause(error)}")
        return self._judged(outcome, found)

    def _judged(self, outcome: Outcome, found: Challenged) -> Outcome:
        """Release what the gate promotes."""
        now, candidate, verdict = outcome.at, found.candidate, found.verdict
        if verdict is None:
            self.audit.write("held", now, {"reason": found.problem})
            return outcome.held("no_fresh_labels", found.problem)
        if candidate is None or not verdict.promote:
            if candidate is not None:
                self.tracker.training(candidate, verdict, None, self.report)
            return replace(outcome, verdict=verdict)
        if self.settings.decide.mode == "approve":
            release = self.releases.add(candidate, verdict, now)
            told = {"release": release.id, "kind": candidate.kind, "reason": verdict.reason}
            self.audit.write(approval.WAITING, now, told)
            self.tracker.training(candidate, verdict, release, self.report, serves=False)
            reason = f"{release.short} waits for `homeostat approve`: {verdict.reason}"
            return replace(outcome.held("approve", reason), verdict=verdict)
        release = self._promote(candidate, verdict, now)
        return replace(outcome, verdict=verdict, release=release.id, promoted=True)

    def _exchange(self, outcome: Outcome, champion: Release) -> Outcome:
        """Give the champion's model the map that probation asks for; where that fails, go back."""
        now, trial = outcome.at, outcome.evidence.trial if outcome.evidence else None
        try:
            candidate, verdict = remedy.exchanged(self._challenger, champion, trial, now)
            release = self._promote(candidate, verdict, now)
        except Exception as error:  # noqa: BLE001 - fails closed: what was worse does not stay
            told = f"{outcome.decision.reason} But that could not be had: {cause(error)}"
            decision = replace(outcome.decision, action=Action.ROLL_BACK, reason=told)
            return self._go_back(replace(outcome, decision=decision), self._champion())
        return replace(outcome, verdict=verdict, release=release.id, promoted=True)

    def _go_back(self, outcome: Outcome, champion: Release) -> Outcome:
        """Make the release that the champion replaced serve again, as probation asks."""
        now, trial = outcome.at, outcome.evidence.trial if outcome.evidence else None
        try:
            release = self.releases.roll_back(trial.replaced if trial else None)
        except ReleaseError as error:
            self.audit.write("rollback_failed", now, {"reason": cause(error)})
            return outcome.held("failed", f"The rollback failed: {cause(error)}")
        told = {"from": champion.id, "release": release.id, "by": PROBATION}
        self.audit.write("rolled_back", now, {**told, "reason": outcome.decision.reason})
        self.tracker.serves(release)
        self.copy()
        return replace(outcome, release=release.id, promoted=True)

    def _promote(self, candidate: Candidate, verdict: Verdict, now: datetime) -> Release:
        release = self.releases.add(candidate, verdict, now)
        self._serve(release, now, verdict.reason)
        self.tracker.training(candidate, verdict, release, self.report)
        return release

    def _serve(self, release: Release, now: datetime, reason: str) -> None:
        try:
            self.releases.promote(release)
        except ReleaseError as error:
            self.audit.write("not_promoted", now, {"release": release.id, "reason": cause(error)})
            self._end(now)
            raise
        told: dict[str, Json] = {"previous": release.manifest["parent"], "reason": reason}
        told |= {"release": release.id, "sequence": release.sequence}
        self.audit.write("promoted", now, {**told, "kind": release.manifest["kind"]})
        self.copy()

    # --- small ---

    @property
    def _challenger(self) -> Challenge:
        return Challenge(self.settings, self.journal, self.releases, self.audit, self.trainer)

    def _champion(self) -> Release:
        champion = self.releases.champion()
        if champion is None:
            raise ReleaseError("there is no champion yet.", hint="Run `homeostat train` first.")
        return champion

    def _done(self, outcome: Outcome, began: float) -> Outcome:
        self.watch(outcome := replace(outcome, seconds=time.monotonic() - began))
        self._end(outcome.at)
        return outcome

    def _end(self, now: datetime) -> None:
        attempted(self.audit, "seal", now, self.journal.seal)
        self._tell(now)

    def _tell(self, now: datetime) -> None:
        tell(self.alerts, self.audit, self.settings.project.name, now)
