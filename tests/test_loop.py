"""The loop in its order: what one turn does, what stops it, and what it leaves behind."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from loop_fixtures import (
    LOADED,
    SABOTAGED,
    TRAIN,
    CountingEngine,
    Heard,
    bodies,
    contents,
    copied,
    days,
    make,
    project,
    rewrite,
    serve,
    stream,
    turning,
    wrapped,
)

from homeostat.build import load_project
from homeostat.engines import LocalEngine
from homeostat.errors import (
    HomeostatError,
    JournalError,
    ReleaseError,
    TrainingError,
    VerificationError,
)
from homeostat.records import Action, Hurts, State, Window
from homeostat.report import FileReporter
from homeostat.testing import START

DAY = timedelta(days=1)
DRIFTED = 28  # the end of the first stretch of drifted rows
NO_MAPS = {"recalibrate": False}
LASTING = ("models", "data", "reports/decisions.jsonl")


@pytest.fixture(scope="module")
def engine():
    with LocalEngine(timeout=timedelta(seconds=60), memory=8_192) as warm:
        yield warm


@pytest.fixture(scope="module")
def frame():
    return stream()


@pytest.fixture(scope="module")
def untrained(tmp_path_factory, frame):
    return make(tmp_path_factory.mktemp("untrained"), days(frame, 0, LOADED))


@pytest.fixture(scope="module")
def first(untrained, engine, tmp_path_factory):
    """The first training: the project it left, and its outcome."""
    root = copied(untrained, tmp_path_factory.mktemp("first") / "p")
    with turning(root, engine, LOADED) as loop:
        return root, loop.train()


@pytest.fixture(scope="module")
def drifted(first, frame, tmp_path_factory):
    """A trained project, with two weeks of drifted and labelled traffic."""
    root = copied(first[0], tmp_path_factory.mktemp("drifted") / "p")
    serve(root, days(frame, LOADED, DRIFTED))
    return root


@pytest.fixture(scope="module")
def quiet(first, tmp_path_factory):
    """A trained project, with two weeks of labelled traffic like that of before."""
    root = copied(first[0], tmp_path_factory.mktemp("quiet") / "p")
    serve(root, days(stream(shift=0), LOADED, DRIFTED))
    return root


@pytest.fixture(scope="module")
def promoted(drifted, engine, tmp_path_factory):
    """One step over the drifted traffic: the project it left, and its outcome."""
    root = copied(drifted, tmp_path_factory.mktemp("promoted") / "p")
    with turning(root, engine, DRIFTED) as loop:
        return root, loop.step()


@pytest.fixture
def fresh(tmp_path):
    """A copy of a project, for this test alone."""
    return lambda root: copied(root, tmp_path / "p")


def kinds(root):
    return [line["kind"] for line in project(root).audit.lines()]


def time_of(body, *names):
    for name in names:
        body = body[name]
    return datetime.fromisoformat(body)


def looks_at(look):
    return Window(time_of(look, "window", "start"), time_of(look, "window", "end"))


def told(root):
    return json.loads((root / "reports" / "drift_status.json").read_text())


def agree(root):
    """Pointer, manifest, the copies for people and the audit chain tell of one release."""
    here = project(root)
    champion = here.releases.champion()
    assert (root / "models" / "model.pkl").read_bytes() == here.releases.object(champion, "model")
    sample = pq.read_table(io.BytesIO(here.releases.object(champion, "reference_sample")))
    copy = pd.read_csv(root / "data" / "processed" / "reference.csv", float_precision="round_trip")
    assert copy["amount"].tolist() == sample.column("amount").to_pylist()
    assert len(copy) == min(champion.manifest["training"]["rows"], 5_000)
    moves = ("promoted", "rolled_back", "recovered")
    moved = [line["body"]["release"] for line in here.audit.lines() if line["kind"] in moves]
    assert moved[-1] == champion.id
    assert here.audit.verify() == len(here.audit.lines())
    assert here.releases.verify() >= 1
    return champion


# --- the first release ---


def test_the_first_training_releases_and_leaves_copies_and_a_line(first):
    root, outcome = first
    champion = agree(root)
    assert (outcome.promoted, outcome.release) == (True, champion.id)
    assert outcome.decision.trigger == "first"
    assert kinds(root) == ["first", "promoted"]
    assert champion.manifest["kind"] == "first"
    assert champion.manifest["parent"] is None


def test_the_first_release_learns_every_row_and_carries_the_evidence_of_a_sibling(first, frame):
    root, outcome = first
    manifest = project(root).releases.champion().manifest
    assert manifest["training"]["rows"] == len(days(frame, 0, LOADED))
    assert manifest["gate"]["sibling"] is True
    assert time_of(manifest, "gate", "window", "end") == time_of(manifest, "training", "cutoff")
    assert outcome.verdict.challenger < outcome.verdict.champion
    assert 0 < manifest["gate"]["rows"] < manifest["training"]["rows"]


def test_a_first_training_whose_rows_cannot_judge_says_so_and_releases(tmp_path, frame, engine):
    root = make(tmp_path, days(frame, 0, 5))
    with turning(root, engine, 5) as loop:
        outcome = loop.train()
    assert outcome.promoted
    assert outcome.verdict.challenger is None
    assert "training wants 100" in outcome.verdict.reason
    assert agree(root).manifest["gate"]["rows"] == 0


def test_without_rows_nothing_is_released_and_the_error_says_where_to_look(tmp_path, engine):
    root = make(tmp_path, pd.DataFrame(), TRAIN.replace("def load", "def not_load"))
    with turning(root, engine, 1) as loop:
        with pytest.raises(TrainingError, match=r"load\(\) in src/training/train.py"):
            loop.train()
        with pytest.raises(ReleaseError, match="homeostat train"):
            loop.step()
    assert project(root).releases.champion() is None


def test_a_failed_first_training_leaves_no_release_and_the_next_one_works(untrained, fresh, engine):
    root = fresh(untrained)
    rewrite(root, TRAIN.replace("return make_pipeline", "return None; make_pipeline"))
    with turning(root, engine, LOADED) as loop, pytest.raises(TrainingError, match="NoneType"):
        loop.train()
    assert project(root).releases.champion() is None
    assert contents(root, "models/manifests") == {}
    rewrite(root, TRAIN)
    with turning(root, engine, LOADED) as loop:
        assert loop.train().promoted
    agree(root)


# --- drift, challenger, promotion ---


def test_drift_trains_a_challenger_which_is_promoted(first, promoted):
    root, outcome = promoted
    assert outcome.evidence.state is State.DRIFT
    assert outcome.evidence.hurts is Hurts.YES
    assert outcome.decision.action is Action.RETRAIN
    assert outcome.promoted
    champion = agree(root)
    assert champion.id == outcome.release != first[1].release
    assert champion.manifest["parent"] == first[1].release
    assert champion.sequence > project(first[0]).releases.champion().sequence
    assert kinds(root)[2:] == ["decided", "trained", "gate", "refitted", "promoted"]
    status = told(root)
    assert (status["data_drift"], status["reference"]["release"]) == (True, first[1].release)


def test_a_challenger_is_judged_on_rows_that_neither_it_nor_the_champion_learned(promoted, first):
    root, outcome = promoted
    before = project(first[0]).releases.champion().manifest["training"]
    (trained,), (looked,) = bodies(root, "trained"), bodies(root, "gate")
    start, end = (time_of(looked, "window", edge) for edge in ("start", "end"))
    assert time_of(trained, "training", "cutoff") == start >= time_of(before, "cutoff")
    rows = project(root).journal.read(outcome.verdict.window, labelled=True)
    assert looked["rows"] == rows.num_rows > 0
    assert end - start <= 7 * DAY


def test_a_refitted_release_learned_the_judging_rows_too_and_says_that_a_sibling_was_judged(
    promoted,
):
    root, outcome = promoted
    manifest = project(root).releases.champion().manifest
    (trained,), (looked,) = bodies(root, "trained"), bodies(root, "gate")
    assert manifest["training"]["rows"] == trained["training"]["rows"] + looked["rows"]
    assert manifest["training"]["cutoff"] == manifest["gate"]["window"]["end"]
    assert (manifest["gate"]["sibling"], looked["sibling"]) == (True, False)
    assert outcome.verdict.sibling is True


def test_without_refit_the_judged_model_itself_is_released(drifted, fresh, engine):
    root = fresh(drifted)
    with turning(root, engine, DRIFTED, training={"refit": False, "min_rows": 100}) as loop:
        assert loop.step().promoted
    manifest = agree(root).manifest
    assert manifest["training"]["cutoff"] == manifest["gate"]["window"]["start"]
    assert manifest["gate"]["sibling"] is False
    assert "refitted" not in kinds(root)


def test_after_a_promotion_the_window_is_compared_with_the_new_reference(
    promoted, fresh, engine, frame
):
    root = fresh(promoted[0])
    serve(root, days(frame, DRIFTED, 35))
    with turning(root, engine, 35) as loop:
        outcome = loop.step()
    assert outcome.evidence.release == promoted[1].release
    assert outcome.evidence.reference_rows > 392
    assert outcome.decision.trigger == "cooldown" or outcome.evidence.state is State.STABLE
    assert not outcome.promoted


def test_a_second_training_is_a_challenge_that_the_gate_judges(first, quiet, fresh, engine):
    root = fresh(quiet)
    with turning(root, engine, DRIFTED) as loop:
        outcome = loop.train()
    assert outcome.decision.trigger == "asked"
    assert outcome.verdict.champion is not None
    (looked,) = bodies(root, "gate")
    assert looked["promote"] is outcome.promoted
    if not outcome.promoted:
        assert project(root).releases.champion().id == first[1].release


# --- what keeps the champion ---

ALONE = {"blend": 1, "min_rows": 100}
"""The model that was fitted is judged as it is."""


def test_a_sabotaged_challenger_is_refused_and_everything_stays_byte_for_byte(quiet, fresh, engine):
    root = fresh(quiet)
    rewrite(root, SABOTAGED)
    before = contents(root, "models", "data")
    with turning(root, engine, DRIFTED, training=ALONE) as loop:
        champion = loop.releases.champion()
        outcome = loop.step()
    assert (outcome.promoted, outcome.verdict.promote) == (False, False)
    assert "worse" in outcome.verdict.reason
    assert outcome.release == champion.id
    assert contents(root, "models", "data") == before
    assert kinds(root)[2:] == ["decided", "trained", "gate"]
    assert project(root).audit.verify() == 5


CARELESS = wrapped(
    "Careless",
    """

import numpy as np

class Careless:
    def __init__(self, model):
        self.model, self.classes_ = model, model.classes_

    def predict_proba(self, frame):
        found = self.model.predict_proba(frame)
        wrong = (frame["amount"] < 0.3).to_numpy()
        found[wrong] = 1 - np.clip(found[wrong].round(), 0.02, 0.98)
        return found

    def predict(self, frame):
        return self.classes_[self.predict_proba(frame).argmax(axis=1)]
""",
)
"""Learns what drifted, and turns its answers round for small amounts."""


def test_a_challenger_that_is_better_but_not_for_small_amounts_is_refused(drifted, fresh, engine):
    root = fresh(drifted)
    rewrite(root, CARELESS)
    before = contents(root, "models", "data")
    rule = {"window": "7d", "min_rows": 20, "slices": 40}
    with turning(root, engine, DRIFTED, gate=rule, training=ALONE) as loop:
        outcome = loop.step()
    assert not outcome.promoted
    assert "The challenger is worse where amount is up to " in outcome.verdict.reason
    assert contents(root, "models", "data") == before
    assert bodies(root, "gate")[0]["slices"][0]["worse"] is True


def test_no_row_judges_twice(quiet, fresh, engine):
    root = fresh(quiet)
    rewrite(root, SABOTAGED)
    with turning(root, engine, DRIFTED) as loop:
        loop.step()
        rewrite(root, TRAIN)
        outcome = loop.retrain(force=True)
    assert outcome.decision.action is Action.HOLD
    assert outcome.decision.trigger == "no_fresh_labels"
    assert "used already" in outcome.decision.reason
    serve(root, days(stream(shift=0), DRIFTED, 33))
    with turning(root, engine, 33) as loop:
        loop.retrain(force=True)
    (first_training,), looks = bodies(root, "first"), bodies(root, "gate")
    earlier, later = map(looks_at, looks)
    learned = time_of(first_training, "training", "cutoff")
    assert learned <= earlier.start < earlier.end <= later.start
    cutoffs = [time_of(line, "training", "cutoff") for line in bodies(root, "trained")]
    assert cutoffs == [earlier.start, later.start]
    judged = project(root).journal.read(later, labelled=True)
    assert judged.num_rows == looks[1]["rows"]


def test_without_fresh_labels_nothing_is_trained_and_the_reason_is_said(
    first, fresh, engine, frame
):
    root = fresh(first[0])
    serve(root, days(frame, LOADED, DRIFTED), labels=False)
    with turning(root, engine, DRIFTED) as loop:
        outcome = loop.step()
    assert outcome.evidence.state is State.DRIFT
    assert outcome.evidence.hurts is Hurts.UNKNOWN
    assert outcome.decision.trigger == "no_fresh_labels"
    assert bodies(root, "held") == [{"reason": outcome.decision.reason}]
    assert "No labelled row is newer" in outcome.decision.reason
    assert kinds(root)[2:] == ["decided", "held"]
    assert project(root).releases.champion().id == first[1].release


def test_rows_younger_than_the_delay_of_labels_neither_train_nor_judge(
    drifted, fresh, engine, frame
):
    root = fresh(drifted)
    serve(root, days(frame, DRIFTED, 35))
    with turning(root, engine, 35, labels={"delay": "10d"}) as loop:
        outcome = loop.retrain(force=True)
    mature = START + 25 * DAY
    assert outcome.promoted
    assert mature - DAY < outcome.verdict.window.end <= mature
    released = agree(root)
    assert mature - DAY < released.cutoff <= mature
    assert released.manifest["training"]["rows"] == len(days(frame, 0, 25))


BREAKS = {
    "raises": (
        TRAIN.replace('target = frame.pop("target")', 'raise ValueError("no such column")'),
        "no such column",
    ),
    "returns nothing": (TRAIN.replace("return make_pipeline", "make_pipeline"), "NoneType"),
    "does not load": (TRAIN.replace('pd.read_parquet("rows.parquet")', "1 / 0"), "ZeroDivision"),
    "does not parse": (TRAIN + "\nthis is no Python", "SyntaxError"),
    "returns no classifier": (
        TRAIN.replace("return make_pipeline(columns, LogisticRegression())", "return columns"),
        "predict",
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_script_that_fails_keeps_the_champion_and_the_next_turn_works(
    drifted, fresh, engine, name
):
    code, reason = BREAKS[name]
    root = fresh(drifted)
    rewrite(root, code)
    before = contents(root, "models", "data")
    with turning(root, engine, DRIFTED, decide=NO_MAPS) as loop:
        outcome = loop.step()
        assert outcome.decision.action is Action.HOLD
        assert outcome.decision.trigger == "failed"
        assert reason in outcome.decision.reason
        assert outcome.verdict is None
        assert not outcome.promoted
        assert contents(root, "models", "data") == before
        assert reason in bodies(root, "training_failed")[0]["reason"]
        rewrite(root, TRAIN)
        assert loop.step().decision.trigger == "cooldown"
        assert loop.retrain().promoted
    agree(root)


def test_a_script_that_hangs_is_ended_and_keeps_the_champion(drifted, fresh):
    root = fresh(drifted)
    slow = 'import time; time.sleep(60); target = frame.pop("target")'
    rewrite(root, TRAIN.replace('target = frame.pop("target")', slow))
    short = LocalEngine(timeout=timedelta(seconds=6), memory=8_192)
    with short, turning(root, short, DRIFTED) as loop:
        outcome = loop.step()
    assert outcome.decision.trigger == "failed"
    assert "longer than 6 seconds" in outcome.decision.reason
    agree(root)


def test_labels_of_one_class_judge_nobody(first, fresh, engine, frame):
    root = fresh(first[0])
    served = days(frame, LOADED, DRIFTED).assign(target=1)
    serve(root, served)
    with turning(root, engine, DRIFTED) as loop:
        outcome = loop.retrain(force=True)
    assert not outcome.promoted
    assert "same label" in outcome.verdict.reason


def test_a_class_that_the_champion_does_not_know_is_learned(first, fresh, engine, frame):
    root = fresh(first[0])
    serve(root, days(frame, LOADED, 21))
    news = days(frame, 0, DRIFTED).copy()
    news.loc[news.index % 5 == 0, "target"] = 2
    news["prediction_id"] = "new-" + news["prediction_id"]
    news.to_parquet(root / "rows.parquet")
    with turning(root, engine, DRIFTED) as loop:
        outcome = loop.retrain(force=True)
    assert outcome.verdict is not None
    assert outcome.promoted
    assert agree(root).manifest["task"] == "multiclass"


def test_in_the_mode_observe_nothing_is_trained(drifted, fresh, engine):
    root = fresh(drifted)
    before = contents(root, "models", "data")
    with turning(root, engine, DRIFTED, decide={"mode": "observe"}) as loop:
        outcome = loop.step()
    assert outcome.evidence.state is State.DRIFT
    assert (outcome.decision.action, outcome.decision.trigger) == (Action.HOLD, "observe")
    assert kinds(root)[2:] == ["decided"]
    assert contents(root, "models", "data") == before


def test_within_the_cool_down_the_loop_does_not_train_of_its_own_accord(
    quiet, fresh, engine, frame
):
    root = fresh(quiet)
    rewrite(root, SABOTAGED)
    with turning(root, engine, DRIFTED) as loop:
        assert not loop.step().promoted
    rewrite(root, TRAIN)
    serve(root, days(frame, DRIFTED, 50))
    with turning(root, engine, 48, decide=NO_MAPS) as loop:
        outcome = loop.step()
        assert (outcome.evidence.state, outcome.decision.trigger) == (State.DRIFT, "cooldown")
    with turning(root, engine, 49, decide={"budget": None, **NO_MAPS}) as loop:
        assert loop.step().promoted


def test_a_history_that_has_grown_retrains_without_drift(quiet, fresh, engine):
    root = fresh(quiet)
    with turning(root, engine, DRIFTED) as loop:
        outcome = loop.step()
    assert outcome.evidence.state is State.STABLE
    assert outcome.evidence.history > 392 * 1.1
    assert outcome.decision.trigger == "growth"
    assert outcome.verdict is not None


def test_a_quiet_window_trains_nothing(first, fresh, engine):
    root = fresh(first[0])
    serve(root, days(stream(shift=0), LOADED, 21), labels=False)
    with turning(root, engine, 21) as loop:
        outcome = loop.step()
    assert outcome.evidence.state is State.STABLE
    assert outcome.decision.trigger == "none"
    assert told(root)["data_drift"] is False


def test_rows_of_load_are_no_traffic(first, fresh, engine):
    with turning(fresh(first[0]), engine, LOADED) as loop:
        outcome = loop.step()
    assert outcome.evidence.state is State.INSUFFICIENT_DATA
    assert outcome.evidence.rows == 0
    assert outcome.decision.action is Action.HOLD


# --- looks that fail ---


def missing_reference(root):
    champion = project(root).releases.champion()
    (root / "models" / "objects" / champion.manifest["objects"]["reference"]).unlink()


def unreadable_journal(root):
    for name in ("predictions.csv", "labels.csv"):
        (root / "data" / "logs" / name).unlink(missing_ok=True)
        (root / "data" / "logs" / name).mkdir()


@pytest.mark.parametrize("fault", [missing_reference, unreadable_journal])
def test_a_look_that_fails_is_never_stable_keeps_the_drift_flag_and_trains_nothing(
    drifted, fresh, engine, fault
):
    root = fresh(drifted)
    with turning(root, engine, DRIFTED) as loop:
        assert loop.monitor().data_drift is True
        fault(root)
    with turning(root, engine, DRIFTED) as loop:
        outcome = loop.step()
    assert outcome.evidence.state is State.FAILED
    assert (outcome.evidence.data_drift, outcome.evidence.carried_over) == (True, True)
    assert (outcome.decision.action, outcome.decision.trigger) == (Action.HOLD, "failed")
    status = told(root)
    assert (status["verdict"], status["data_drift"]) == ("failed", True)
    # A journal that cannot be read cannot be sealed, either, and the outcome stands all the same.
    assert kinds(root)[-1] == ("seal_failed" if fault is unreadable_journal else "decided")
    assert bodies(root, "decided")[-1]["evidence"]["state"] == "failed"


def test_people_are_told_of_each_change_once_however_often_the_loop_turns(drifted, fresh, engine):
    root, heard = fresh(drifted), Heard()
    rewrite(root, TRAIN.replace("def fit", "1 / 0\ndef fit"))
    with turning(
        root, engine, DRIFTED, decide={"cooldown": "0d", "budget": None, **NO_MAPS}
    ) as untold:
        loop = replace(untold, alerts=heard)
        loop.step()
        loop.step()
        loop.monitor()
        assert [title for title, _ in heard.said] == [
            "rides: promoted",
            "rides: drift",
            "rides: training failed",
        ]
        assert "ZeroDivisionError" in heard.said[-1][1]
        rewrite(root, TRAIN)
        assert loop.step().promoted
    assert [title for title, _ in heard.said[3:]] == [
        "rides: promoted",
        "rides: training works again",
    ]
    assert kinds(root).count("told") == len(heard.said)


def test_that_the_journal_could_not_be_sealed_is_told_to_people(drifted, fresh, engine):
    root, heard = fresh(drifted), Heard()
    unreadable_journal(root)
    with turning(root, engine, DRIFTED) as loop:
        replace(loop, alerts=heard).step()
    (told,) = [
        body for title, body in heard.said if title == "rides: the journal could not be sealed"
    ]
    assert "predictions.csv" in told


class InPieces:
    """A journal that gives its rows a few at a time, and never all at once."""

    def __init__(self, journal, torn=False):
        self._journal, self._torn = journal, torn

    def __getattr__(self, name):
        return getattr(self._journal, name)

    def read(self, *_, **__):
        raise AssertionError("a look read all rows of a window into one table")

    def scan(self, *window, **options):
        for rows in self._journal.scan(*window, **options):
            yield from (rows.slice(at, 100) for at in range(0, max(rows.num_rows, 1), 100))
            if self._torn:
                raise JournalError("the history is torn.")


def test_a_look_goes_through_the_rows_in_pieces_and_comes_to_the_same(drifted, fresh, engine):
    root = fresh(drifted)
    with turning(root, engine, DRIFTED) as loop:
        whole, status = loop.monitor(), told(root)
        assert replace(loop, journal=InPieces(loop.journal)).monitor() == whole
        assert told(root) == status
        torn = replace(loop, journal=InPieces(loop.journal, torn=True)).monitor()
    assert (torn.state, torn.data_drift, torn.carried_over) == (State.FAILED, True, True)
    assert "could not be examined: the history is torn" in torn.reason


def test_the_report_shows_each_look_and_what_the_release_says_of_its_columns(
    drifted, fresh, engine
):
    root = fresh(drifted)
    for day in (21, DRIFTED):
        with turning(root, engine, day) as loop:
            reporter = FileReporter(
                root / "reports", CountingEngine(), sample=100, seed=0, lines=loop.audit.lines
            )
            replace(loop, reporter=reporter).monitor()
    page = (root / "reports" / "monitor_report.html").read_text()
    assert "What matters most to this model is the drift of &#39;amount&#39;" in page
    assert "columns in 2 looks, from 2025-01-22 to 2025-01-29" in page
    assert (root / "reports" / "monitor_report.png").read_bytes() == b"a picture"
    assert set(bodies(root, "monitored")[0]["distances"]) == {"amount", "gap", "city", "member"}


def test_a_release_without_importances_is_looked_at_all_the_same(drifted, fresh, engine):
    root = fresh(drifted)
    with turning(root, engine, DRIFTED) as loop:
        champion = loop.releases.champion()
        objects = {k: v for k, v in champion.manifest["objects"].items() if k != "importance"}
        older = replace(champion, manifest={**champion.manifest, "objects": objects})
        subject = loop._subject(older)
    assert subject.importance == {}
    assert subject.reference.rows > 0


def test_evidently_is_asked_once_a_look_and_its_failure_does_not_stop_the_monitor(
    drifted, fresh, engine
):
    counting = CountingEngine()
    with turning(fresh(drifted), engine, DRIFTED) as loop:
        folder = loop.settings.path("reports")
        object.__setattr__(loop, "reporter", FileReporter(folder, counting, sample=100, seed=0))
        loop.monitor()
        assert counting.drawn == 1
        (folder / "drift_report.html").unlink()
        (folder / "drift_report.html").mkdir()
        evidence = loop.monitor()
    assert evidence.state is State.DRIFT
    assert "error" in evidence.evidently


def test_altered_bytes_of_the_champion_stop_every_turn(drifted, fresh, engine):
    root = fresh(drifted)
    pointer = root / "models" / "champion.json"
    pointer.write_text(pointer.read_text().replace('"sequence": 2', '"sequence": 9'))
    here = project(root)
    with pytest.raises(VerificationError), here.loop():
        pass


# --- asked for ---


def test_retrain_acts_on_the_last_status_once(drifted, fresh, engine):
    root = fresh(drifted)
    with turning(root, engine, DRIFTED) as loop:
        assert loop.retrain().decision.trigger == "no_status"
        loop.monitor()
        assert loop.retrain().promoted
        assert loop.retrain().decision.trigger == "old_status"
    agree(root)


def test_rolling_back_and_forth_keeps_copies_and_chain_in_step(promoted, fresh, engine, first):
    root = fresh(promoted[0])
    with turning(root, engine, DRIFTED) as loop:
        outcome = loop.roll_back()
        assert outcome.release == first[1].release
        assert outcome.decision.action is Action.ROLL_BACK
        with pytest.raises(ReleaseError):
            loop.roll_back()
    assert agree(root).id == first[1].release
    assert kinds(root)[-1] == "rolled_back"


def test_after_a_rollback_no_row_judges_again(promoted, fresh, engine):
    root = fresh(promoted[0])
    with turning(root, engine, DRIFTED) as loop:
        loop.roll_back()
        outcome = loop.retrain(force=True)
    assert outcome.decision.trigger == "no_fresh_labels"


# --- one writer, and restarts ---


def test_a_second_turn_in_another_process_is_refused(first, fresh, engine):
    root = fresh(first[0])
    with turning(root, engine, LOADED):
        done = subprocess.run(
            [sys.executable, "-m", "homeostat", "step", "--project", str(root)],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.strip().endswith(
        f"another turn of the loop runs in {root}. Wait until it has ended."
    )
    assert "Traceback" not in done.stderr
    with turning(root, engine, LOADED):
        again = load_project(root).loop()
        with pytest.raises(HomeostatError, match="another turn"):
            again.__enter__()


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import sklearn.compose, sklearn.linear_model, sklearn.pipeline
from loop_fixtures import InProcess, turning
from homeostat import files
from homeostat.audit import ChainAudit
from homeostat.release import FileReleases

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def before(kind):
    def write(self, what, at, body, write=ChainAudit.write):
        die() if what == kind else write(self, what, at, body)
    return write

def after_one(path, content, mode=0o666, write=files.write):
    write(path, content, mode)
    die()

def step(root, point):
    with turning(root, InProcess(), 28) as loop:
        copy = loop.copy

        def torn():
            files.write = after_one
            copy()

        if point == "promote":
            FileReleases.promote = die
        elif point == "copy":
            object.__setattr__(loop, "copy", torn)
        else:
            ChainAudit.write = before(point)
        loop.step()

for root in map(Path, sys.argv[2:]):
    child = os.fork()  # the imports, which take longest, are shared
    if not child:
        step(root, root.name)
        os._exit(0)
    ended = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(ended) and os.WTERMSIG(ended) == signal.SIGKILL, root.name
"""


@pytest.fixture(scope="module")
def killed(drifted, tmp_path_factory):
    """Projects whose turn was killed before it moved the pointer, told of it, or copied."""
    folder = tmp_path_factory.mktemp("killed")
    points = ("gate", "promote", "promoted", "copy")
    roots = {point: copied(drifted, folder / point) for point in points}
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), *map(str, roots.values())]
    subprocess.run(command, check=True, timeout=120)
    return roots


@pytest.mark.parametrize("point", ["gate", "promote"])
def test_a_turn_killed_before_the_pointer_moved_leaves_the_old_champion(
    killed, drifted, fresh, engine, point, frame
):
    root = fresh(killed[point])
    with turning(root, engine, DRIFTED, decide=NO_MAPS) as loop:
        assert loop.releases.champion().id == project(drifted).releases.champion().id
        agree(root)
        assert loop.step().decision.trigger == "cooldown"
    serve(root, days(frame, DRIFTED, 33))
    with turning(root, engine, 33) as loop:
        assert loop.retrain(force=True).promoted
    agree(root)


@pytest.mark.parametrize(("point", "repaired"), [("promoted", "recovered"), ("copy", "promoted")])
def test_a_turn_killed_after_the_pointer_moved_is_finished_by_the_next(
    killed, drifted, fresh, engine, point, repaired
):
    root = fresh(killed[point])
    moved = project(root).releases.champion()
    assert moved.id != project(drifted).releases.champion().id
    with pytest.raises(AssertionError):
        agree(root)
    with turning(root, engine, DRIFTED) as loop:
        assert agree(root).id == moved.id
        assert kinds(root)[-1] == repaired
        assert loop.step().evidence.release == moved.id
    with turning(root, engine, DRIFTED):
        assert kinds(root).count("recovered") == (repaired == "recovered")


def test_a_reader_needs_no_lock(promoted, engine, fresh):
    root = fresh(promoted[0])
    with turning(root, engine, DRIFTED):
        assert load_project(root).audit.verify() == len(kinds(root))


def test_copies_that_were_lost_or_changed_come_back_with_the_next_turn(promoted, fresh, engine):
    root = fresh(promoted[0])
    (root / "models" / "model.pkl").write_bytes(b"other")
    (root / "data" / "processed" / "reference.csv").unlink()
    with turning(root, engine, DRIFTED):
        agree(root)


def test_a_turn_seals_what_is_old_enough_and_the_next_one_reads_it_all_the_same(
    drifted, fresh, engine
):
    root = fresh(drifted)
    before = project(root).journal.read()
    with turning(root, engine, DRIFTED, journal={"tail": "7d"}) as loop:
        outcome = loop.step()
        assert outcome.decision.trigger != "failed"
        assert loop.journal.sealed.rows > 0
        again = loop.monitor()
    assert (again.rows, again.history) == (outcome.evidence.rows, outcome.evidence.history)
    after = project(root).journal.read(Window(START, START + DRIFTED * DAY))
    ids = before.column("prediction_id").to_pylist()
    assert [name for name in after.column("prediction_id").to_pylist() if name in set(ids)] == ids
