"""Challenges: which challenger is taken; whatever is wrong with it is refused with its reason."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
import sklearn
from loop_fixtures import (
    LOADED,
    SABOTAGED,
    TRAIN,
    bodies,
    contents,
    copied,
    project,
    rewrite,
    stream,
    trained,
    turning,
    wrapped,
)

from homeostat import fit, gate
from homeostat.engines import LocalEngine
from homeostat.errors import TrainingError
from homeostat.testing import START

DAY = timedelta(days=1)
LATER = 35
GATE = {"window": "7d", "min_rows": 50, "slices": 40, "false_promotions": 0.2}


@pytest.fixture(scope="module")
def engine():
    with LocalEngine(timeout=timedelta(seconds=60), memory=8_192) as warm:
        yield warm


def hinted(frame):
    """With a column that equals the target until a week before the end, as if written later."""
    draw = np.random.default_rng(1).normal(size=len(frame))
    known = frame["occurred_at"] < START + (LATER - 7) * DAY
    return frame.assign(hint=np.where(known, frame["target"] * 2.0 - 1, draw))


@pytest.fixture(scope="module")
def changed(tmp_path_factory, engine):
    """The world changed when the champion was trained; three weeks of labelled traffic since."""
    return trained(tmp_path_factory.mktemp("changed") / "p", engine, stream(), LATER)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory, engine):
    """Nothing changed, in three weeks of labelled traffic."""
    frame = hinted(stream(shift=0))
    return trained(tmp_path_factory.mktemp("quiet") / "p", engine, frame, LATER)


@pytest.fixture
def fresh(tmp_path):
    """A copy of a project, for this test alone."""
    return lambda root: copied(root, tmp_path / "p")


def challenged(root, engine, *, recent=0.0, blend=1, **gate):
    training = {"recent": recent, "blend": blend, "min_rows": 100}
    with turning(root, engine, LATER, training=training, gate={**GATE, **gate}) as loop:
        return loop.retrain(force=True)


# --- challengers side by side ---


def test_after_a_change_the_challenger_of_the_newest_rows_is_chosen_and_fitted_again_so(
    changed, fresh, engine
):
    root = fresh(changed)
    outcome = challenged(root, engine, recent=0.4)
    (told,), (looked,) = bodies(root, "trained"), bodies(root, "gate")
    (beside,) = told["beside"]
    assert (told["share"], beside["share"]) == (0.4, 1.0)
    assert beside["loss"] > outcome.verdict.challenger
    assert outcome.promoted
    assert (
        "Of 2 challengers, that of the newest 40% of the rows alone did better" in looked["reason"]
    )
    released = project(root).releases.champion().manifest["training"]
    assert released["start"] > (START + LOADED * DAY).isoformat()
    assert released["rows"] == pytest.approx(0.4 * LATER * 28, abs=1)


def test_where_nothing_changed_that_of_all_rows_is_taken_and_tested_at_most_of_the_level(
    quiet, fresh, engine, tmp_path
):
    both, alone = fresh(quiet), copied(quiet, tmp_path / "alone")
    two, one = challenged(both, engine, recent=0.4).verdict, challenged(alone, engine).verdict
    (told,) = bodies(both, "trained")
    assert (told["share"], told["beside"][0]["share"]) == (1, 0.4)
    assert (two.challenger, two.window, two.level) == (one.challenger, one.window, one.level)
    assert two.p_value == pytest.approx(min(1, one.p_value / 0.75))
    assert "Of 2 challengers, that of all rows alone was taken." in two.reason
    assert bodies(alone, "trained")[0]["beside"] == []


def test_where_the_better_challenger_is_refused_the_usual_one_is_tested_at_its_own_part(
    changed, fresh, engine, monkeypatch
):
    judge = gate.judge

    shares = []

    def strict(**given):
        shares.append(given["share"])
        verdict = judge(**given)
        refused = replace(verdict, promote=False, reason="Harm is not excluded.")
        return refused if given["share"] == 0.25 else verdict

    monkeypatch.setattr(gate, "judge", strict)
    root = fresh(changed)
    outcome = challenged(root, engine, recent=0.4)
    (told,), (looked,) = bodies(root, "trained"), bodies(root, "gate")
    assert outcome.promoted
    assert (told["share"], told["beside"][0]["share"]) == (1.0, 0.4)
    assert shares == [0.25, 0.75]
    said = "That of the newest 40% of the rows alone did better and was refused: Harm is not"
    assert said in looked["reason"]
    assert project(root).releases.champion().manifest["training"]["start"] <= START.isoformat()


def test_a_second_challenger_that_fails_leaves_the_first_to_be_judged(changed, fresh, engine):
    root = fresh(changed)
    rewrite(root, TRAIN.replace("def fit(frame):", "def fit(frame):\n    assert len(frame) > 400"))
    outcome = challenged(root, engine, recent=0.4)
    (told,) = bodies(root, "trained")
    assert outcome.verdict is not None
    assert told["share"] == 1
    assert "AssertionError" in told["beside"][0]["reason"]
    assert "challengers" not in outcome.verdict.reason


def test_where_the_newest_rows_are_too_few_there_is_one_challenger(changed, fresh, engine):
    root = fresh(changed)
    challenged(root, engine, recent=0.1)
    assert bodies(root, "trained")[0]["beside"] == []


# --- whatever is wrong is refused, and nothing changes ---

ODD = """
import threading, time
import numpy as np

class Odd:
    def __init__(self, model):
        self.model, self.classes_ = model, model.classes_

    def predict_proba(self, frame):
        found = self.model.predict_proba(frame)
        {body}
        return found

    def predict(self, frame):
        return self.classes_[self.predict_proba(frame).argmax(axis=1)]
"""


def odd(body):
    return wrapped("Odd", ODD.format(body=body))


OLD_PICKLE = wrapped(
    "aged",
    """
import pickle, sklearn

def aged(model):
    version = sklearn.__version__.encode()
    return pickle.loads(pickle.dumps(model).replace(version, b"9" + version[1:]))
""",
)

WRONG = {
    "shuffled labels": (SABOTAGED, "The challenger is worse"),
    "a feature that leaks the target": (
        TRAIN.replace('["amount", "member"]', '["amount", "member", "hint"]'),
        "The challenger is worse",
    ),
    "a constant": (odd("found[:] = 0.5"), "The challenger is worse"),
    "not a number": (odd("found[:] = np.nan"), "not finite"),
    "not a number in one row": (
        odd("found[(frame['hint'].abs() != 1).to_numpy()] = np.nan"),
        "not finite",
    ),
    "not to be pickled": (
        odd("pass").replace(
            "self.classes_ = model, model",
            "self.lock, self.classes_ = model, threading.Lock(), model",
        ),
        "cannot be pickled",
    ),
    "of another scikit-learn": (OLD_PICKLE, "InconsistentVersionWarning"),
    "other answers alone than in a batch": (
        odd("found = (found + found.mean(axis=0)) / 2"),
        "otherwise by itself than among others",
    ),
    "other answers each time": (
        odd("found = 0.98 * found + 0.02 * np.random.default_rng().dirichlet([1, 1], len(found))"),
        "does not answer its golden rows",
    ),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_challenger_with_a_fault_is_refused_with_its_reason_and_changes_nothing(
    quiet, changed, fresh, engine, fault
):
    code, reason = WRONG[fault]
    late = "answers" in fault  # it is only asked once it has won
    root = fresh(changed if late else quiet)
    rewrite(root, code)
    before = contents(root, "models", "data")
    outcome = challenged(root, engine)
    told = outcome.verdict.reason if outcome.verdict else outcome.decision.reason
    assert not outcome.promoted
    assert reason in told
    assert contents(root, "models", "data") == before
    if late:
        assert bodies(root, "gate")[0]["promote"] is False


def test_a_challenger_that_is_too_slow_for_one_row_is_refused(changed, fresh, engine):
    root = fresh(changed)
    rewrite(root, odd("time.sleep(0.03)"))
    outcome = challenged(root, engine, latency="0.01s")
    assert not outcome.promoted
    assert "gate.latency allows 10 ms" in outcome.verdict.reason
    assert bodies(root, "gate")[0]["promote"] is False


def test_a_challenger_within_the_budget_of_time_is_promoted(changed, fresh, engine):
    assert challenged(fresh(changed), engine, latency="1m").promoted


def test_stored_bytes_that_another_scikit_learn_pickled_are_not_answered_from(changed):
    here = project(changed)
    release = here.releases.champion()
    held = [here.releases.object(release, name) for name in ("model", "golden", "schema")]
    assert fit.query(*held, None).problem == ""
    version = sklearn.__version__.encode()
    aged = held[0].replace(version, b"9" + version[1:])
    with pytest.raises(TrainingError, match="was pickled by scikit-learn 9"):
        fit.query(aged, *held[1:], None)
