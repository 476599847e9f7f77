"""Probation: a champion that turns out worse than what it replaced is taken back, and only then."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from loop_fixtures import Heard, promoted_unjudged, unjudged
from remedy_fixtures import FIRST, WEEK, Stage, binary, changed, week

from homeostat import gate, maps, probation, remedy
from homeostat.errors import TrainingError
from homeostat.past import PROBATION
from homeostat.rebuild import frames
from homeostat.records import Action, Candidate, TrainingRows, Window
from homeostat.report import newest_turn
from homeostat.schema import Schema
from homeostat.scoring import Calibrator, outputs
from homeostat.testing import START, served_rows
from homeostat.unseen import Model, unseen

SAME = binary()
QUIET = {"growth": 0, "max_age": None, "recalibrate": False, "probation": 4}
BAD = """
    target = target.sample(frac=1, random_state=0).to_numpy()
"""


def promoted_unseen(stage: Stage, *, bad: bool) -> str:
    """Promote a model that no gate has judged, as a bug in one might; its release."""
    script = stage.script.read_text()
    if bad:
        stage.script.write_text(script.replace('frame.pop("target")', 'frame.pop("target")' + BAD))
    release = promoted_unjudged(stage.loop)
    stage.script.write_text(script)
    return release.id


@pytest.fixture(scope="module", params=["auto", "observe"])
def worse(request, tmp_path_factory):
    """A promotion that should not have been, and the two weeks that followed it."""
    rules = {"decide": {**QUIET, "mode": request.param}}
    stage = Stage(tmp_path_factory.mktemp(request.param), SAME, settings=rules)
    stage.turn(1)
    first = stage.releases.champion().id
    bad = promoted_unseen(stage, bad=True)
    return stage, first, bad, stage.turn(2), request.param


def test_a_worse_champion_is_rolled_back_once_its_labels_have_come(worse):
    stage, first, bad, outcomes, mode = worse
    if mode == "observe":
        assert outcomes[0].decision.trigger == "observe"
        assert "Would roll back" in outcomes[0].decision.reason
        assert stage.releases.champion().id == bad
        return
    assert outcomes[0].decision.action is Action.ROLL_BACK
    assert outcomes[0].decision.trigger == "probation"
    assert "worse" in outcomes[0].decision.reason
    assert outcomes[0].release == first == stage.releases.champion().id
    (told,) = stage.bodies("rolled_back")
    assert (told["from"], told["release"], told["by"]) == (bad, first, "probation")
    assert stage.audit.past().undone == (bad,)


def test_each_look_is_taken_once_on_rows_newer_than_both(worse):
    stage, first, bad, _, _ = worse
    looks = stage.bodies("probation")
    assert [look["look"] for look in looks] == [1]
    (look,) = looks
    assert (look["release"], look["replaced"]) == (bad, first)
    start = look["window"]["start"]
    assert start >= stage.releases.get(bad).seen_until.isoformat()
    assert look["level"] == pytest.approx(0.05 / 4)


def test_what_was_taken_back_is_not_on_probation_again_and_not_trained_again_at_once(worse):
    _, _, _, outcomes, mode = worse
    if mode == "observe":
        assert outcomes[1].decision.trigger == "observe"  # it is still worse, and said so again
        return
    assert outcomes[1].decision.action is Action.HOLD
    assert outcomes[1].evidence.trial is None


def test_a_champion_that_is_as_good_stays_through_all_its_looks_and_then_is_let_be(tmp_path):
    stage = Stage(tmp_path, SAME, settings={"decide": QUIET})
    stage.turn(1)
    good = promoted_unseen(stage, bad=False)
    stage.turn(6)
    assert stage.releases.champion().id == good
    assert [look["look"] for look in stage.bodies("probation")] == [1, 2, 3, 4]
    assert not any(look["worse"] for look in stage.bodies("probation"))


def test_a_false_alarm_over_all_looks_is_as_rare_as_was_asked(tmp_path):
    """Two models of the same rows but a few: over many seeds, hardly one is called worse."""
    alarms = 0
    for seed in range(6):
        root = tmp_path / str(seed)
        root.mkdir()
        stage = Stage(root, SAME, settings={"decide": QUIET}, seed=seed)
        stage.turn(1)
        promoted_unseen(stage, bad=False)
        stage.turn(4)
        alarms += bool(stage.bodies("rolled_back"))
    assert alarms <= 1


def test_a_map_over_a_new_model_does_not_keep_that_model_from_its_own_looks(tmp_path):
    moved = changed(SAME, binary(bias=2.0), FIRST + 2)
    stage = Stage(tmp_path, moved, settings={"decide": {**QUIET, "recalibrate": True}})
    stage.turn(1)
    model = promoted_unseen(stage, bad=False)
    stage.turn(6)
    maps = [each for each in stage.bodies("promoted") if each["kind"] == "recalibrate"]
    one = maps[0]["release"]
    looks = stage.bodies("probation")
    assert model != one
    assert [each["look"] for each in looks if each["release"] == model] == [1, 2, 3, 4]
    assert [each["look"] for each in looks if each["release"] == one]


def misled(stage: Stage) -> tuple[str, str]:
    """Promote a sound model under a map that is far off; what served before, and that release."""
    stage.turn(1)
    first = stage.releases.champion()
    candidate, verdict = unjudged(stage.loop)
    schema = Schema.from_json(candidate.objects["schema"])
    off = maps.mapped(stage.loop._challenger, candidate, Calibrator(1.0, (3.0,)), schema, None)
    release = stage.loop._promote(off, verdict, stage.clock.now())
    return first.id, release.id


@pytest.mark.parametrize("mode", ["auto", "approve"])
def test_where_only_the_map_of_a_promotion_is_worse_its_model_stays_without_it(tmp_path, mode):
    stage = Stage(tmp_path, SAME, settings={"decide": {**QUIET, "mode": mode}})
    _, bad = misled(stage)
    (outcome,) = stage.turn(1)
    assert (outcome.decision.action, outcome.decision.trigger) == (Action.RECALIBRATE, PROBATION)
    assert "no worse without its map" in outcome.decision.reason
    champion = stage.releases.champion()
    assert outcome.promoted
    assert champion.id == outcome.release != bad
    assert champion.manifest["parent"] == bad
    model = stage.releases.get(bad).manifest["objects"]["model"]
    assert champion.manifest["objects"]["model"] == model
    frame = week(FIRST + 5, SAME)
    bare = stage.trainer.score(
        stage.releases.object(champion, "model"),
        served_rows(frame, schema := Schema.from_json(stage.releases.object(champion, "schema"))),
        schema,
        None,
    )
    assert np.allclose(stage.served(frame), outputs(bare, schema.target))
    assert not any(found.promoted for found in stage.turn(5))  # by its map of then it is let be
    assert stage.releases.champion().id == champion.id
    assert not stage.audit.past().undone


@pytest.mark.parametrize("maps_wanted", [True, False])
def test_the_map_of_what_was_replaced_is_taken_over_where_the_model_needs_one(
    tmp_path, maps_wanted
):
    """A model that is two off in its logits, which a map had mended before."""
    skewed, rules = binary(bias=2.0), {**QUIET, "recalibrate": maps_wanted}
    stage = Stage(tmp_path, changed(SAME, skewed, FIRST), settings={"decide": rules})
    first, now = stage.releases.champion(), stage.clock.now()
    stage.serve()
    now, by = stage.clock.now(), stage.loop._challenger
    schema = Schema.from_json(stage.releases.object(first, "schema"))
    model = Model.of(stage.releases, first)
    rows = unseen(by, model, Window(now - WEEK, now), now)
    mending = Calibrator(1.0, (2.0,))
    mended = remedy._made(by, first, mending, rows, maps.trained(by, rows, now))
    verdict = replace(gate.unjudged("", None), promote=True)
    before = stage.loop._promote(mended, verdict, now)
    again = replace(
        mended,
        kind="retrain",
        parent=before.id,
        objects={**mended.objects, "model": pickle.dumps(pickle.loads(mended.objects["model"]), 4)},
        calibration=None,
    )
    off = maps.mapped(by, again, Calibrator(1.0, (-2.0,)), schema, None)
    bad = stage.loop._promote(off, verdict, now)
    (outcome,) = stage.turn(1)
    assert outcome.decision.trigger == PROBATION
    if not maps_wanted:
        assert outcome.release == before.id
        return
    assert "by the map of the release that it replaced" in outcome.decision.reason
    champion = stage.releases.champion()
    assert champion.manifest["parent"] == bad.id
    held = stage.releases.object(champion, "calibrator")
    assert Calibrator.from_json(held) == mending
    told = frames([(champion.id, champion.calibration)], stage.journal, stage.releases, stage.audit)
    assert [each.result for each in told] == ["same"]


def test_a_model_that_learned_another_class_is_on_probation_beside_one_with_a_map(tmp_path):
    """The map of the release that it replaced is over fewer classes, and so no choice."""

    def truth(x, draw, number):
        return np.asarray(["a", "b", "c"])[draw.integers(3, size=len(x))]

    stage = Stage(tmp_path, truth, settings={"decide": {**QUIET, "recalibrate": True}})
    first, now, by = stage.releases.champion(), stage.clock.now(), stage.loop._challenger
    schema = Schema.from_json(stage.releases.object(first, "schema"))
    candidate, verdict = unjudged(stage.loop)
    mapped = maps.mapped(by, candidate, Calibrator(1.0, (0.1, 0.0, 0.0)), schema, None)
    before = stage.loop._promote(mapped, verdict, now)
    data = tmp_path / "rows.parquet"
    others = week(0, truth, seed=1).assign(target="d")
    others["prediction_id"] = "d-" + others["prediction_id"]
    pd.concat([pd.read_parquet(data), others]).to_parquet(data)
    candidate, verdict = unjudged(stage.loop)
    schema = Schema.from_json(candidate.objects["schema"])
    assert len(schema.target.classes) == 4
    off = maps.mapped(by, candidate, Calibrator(1.0, (9.0, 0.0, 0.0, 0.0)), schema, None)
    stage.loop._promote(off, verdict, stage.clock.now())
    (outcome,) = stage.turn(1)
    assert stage.bodies("probation_failed") == []
    (look,) = [look for look in stage.bodies("probation") if look["replaced"] == before.id]
    assert look["worse"]
    assert outcome.decision.trigger == PROBATION


def test_where_another_map_cannot_be_made_what_was_replaced_serves_again(tmp_path, monkeypatch):
    stage = Stage(tmp_path, SAME, settings={"decide": QUIET})
    first, _ = misled(stage)

    def broken(*_: object) -> None:
        raise TrainingError("no map")

    monkeypatch.setattr(maps, "mapped", broken)
    (outcome,) = stage.turn(1)
    assert stage.releases.champion().id == first == outcome.release
    assert outcome.decision.action is Action.ROLL_BACK
    (told,) = stage.bodies("rolled_back")
    assert "But that could not be had: no map" in told["reason"]
    turn = newest_turn(stage.audit.lines(), None)
    assert (turn.decision.action, turn.promoted) == (Action.ROLL_BACK, True)
    assert turn.decision.reason == told["reason"]


def test_without_probation_nothing_is_looked_at(tmp_path):
    stage = Stage(tmp_path, SAME, settings={"decide": {**QUIET, "probation": 0}})
    stage.turn(1)
    promoted_unseen(stage, bad=True)
    stage.turn(2)
    assert stage.bodies("probation") == []


def test_a_turn_killed_between_the_look_and_the_rollback_is_finished_by_the_next(
    tmp_path, monkeypatch
):
    stage = Stage(tmp_path, SAME, settings={"decide": QUIET})
    stage.turn(1)
    first = stage.releases.champion().id
    promoted_unseen(stage, bad=True)
    stage.serve()

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(type(stage.releases), "roll_back", killed)
        with pytest.raises(KeyboardInterrupt):
            stage.loop.step()
    assert stage.bodies("probation")[-1]["worse"]
    assert stage.loop.step().release == first
    assert len(stage.bodies("probation")) == 1


def test_a_look_that_fails_leaves_the_champion_and_says_why(tmp_path, monkeypatch):
    stage = Stage(tmp_path, SAME, settings={"decide": QUIET})
    stage.turn(1)
    bad = promoted_unseen(stage, bad=True)
    monkeypatch.setattr(probation.lineage, "maps", lambda *_: 1 / 0)
    stage.turn(1)
    assert stage.releases.champion().id == bad
    (told,) = stage.bodies("probation_failed")
    assert "ZeroDivisionError" in told["reason"]


def test_the_same_challenger_is_not_tried_again(tmp_path):
    stage = Stage(tmp_path, SAME, settings={"decide": QUIET, "training": {"refit": False}})
    stage.turn(1)
    bad = promoted_unseen(stage, bad=True)
    stage.turn(1)
    assert stage.audit.past().undone == (bad,)
    candidate = Candidate(
        kind="retrain",
        parent=stage.releases.champion().id,
        objects={},
        training=TrainingRows(1, START, START, START, stage.releases.get(bad).training.sha256),
        seconds=0.0,
        params=stage.releases.get(bad).manifest["params"],
        versions={},
        seed=0,
    )
    challenger = stage.loop._challenger
    assert challenger._undone(candidate)
    other = replace(candidate, params={"estimator": "Other"})
    assert not challenger._undone(other)
    newer = replace(candidate, training=replace(candidate.training, sha256="0" * 64))
    assert not challenger._undone(newer)


def test_people_are_told_of_a_rollback_and_why(tmp_path):
    heard = Heard()
    stage = Stage(tmp_path, SAME, settings={"decide": QUIET})
    stage.loop = stage.turning(alerts=heard)
    stage.turn(1)
    promoted_unseen(stage, bad=True)
    stage.loop.monitor()
    stage.turn(1)
    title, body = heard.said[-1]
    assert title == "homeostat: rolled back"
    assert "The champion is worse" in body
