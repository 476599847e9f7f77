"""Which map a champion has: a fresh one at once, the best by its record, and none that harms."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import datetime
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from remedy_fixtures import A_WEEK, FIRST, FIT, WEEK, Stage, binary, changed, week
from sklearn.linear_model import LogisticRegression

from homeostat import maps, remedy
from homeostat.errors import TrainingError, cause
from homeostat.past import Past
from homeostat.rebuild import frames
from homeostat.records import Action, Decision, Window
from homeostat.schema import Schema
from homeostat.scoring import Calibrator, outputs
from homeostat.settings import Settings
from homeostat.testing import START, schema_of, served_rows
from homeostat.unseen import Model, Unseen, unseen

GROWING = {"decide": {"growth": 0.2, "cooldown": "21d", "probation": 0}}
LATER = FIRST + 1


def swinging(x, draw, number):
    """Each week is off the other way: a map of the week before is always wrong."""
    return binary(bias=1.5 if number % 2 else -1.5)(x, draw, number)


def grown(stage):
    """Turns until a challenger is promoted."""
    for _ in range(8):
        (outcome,) = stage.turn(1)
        if outcome.promoted and outcome.decision.action is Action.RETRAIN:
            return outcome
    raise AssertionError("no challenger was promoted")


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """A stream whose slope and level move soon after the first release, up to a retraining."""
    truth = changed(binary(), binary((0.5, -2.0), bias=1.0), LATER)
    stage = Stage(tmp_path_factory.mktemp("moved"), truth, settings=GROWING)
    return stage, grown(stage)


def test_a_fresh_release_has_a_map_at_once_of_rows_that_its_model_has_seen(moved):
    stage, outcome = moved
    release = stage.releases.get(outcome.release)
    assert release.manifest["kind"] == "retrain"
    assert "calibrator" in release.manifest["objects"]
    assert release.calibration.cutoff <= release.cutoff
    golden = pq.read_table(io.BytesIO(stage.releases.object(release, "golden")))
    schema = Schema.from_json(stage.releases.object(release, "schema"))
    raw = outputs(
        stage.trainer.score(stage.releases.object(release, "model"), golden, schema), schema.target
    )
    own = Calibrator.from_json(stage.releases.object(release, "calibrator"))
    assert outputs(golden, schema.target) == pytest.approx(own.apply(raw, schema.target))


def test_rows_that_a_model_was_fitted_on_are_answered_by_those_that_have_not_seen_them(moved):
    """By hand: the gate's sibling on the rows that judged, the first model on those before."""
    stage, outcome = moved
    release = stage.releases.get(outcome.release)
    judged = datetime.fromisoformat(release.manifest["gate"]["window"]["start"])
    first = stage.releases.line()[-1]
    window = Window(first.cutoff, stage.clock.now())
    found = unseen(stage.loop._challenger, Model.of(stage.releases, release), window, window.end)
    weeks = [stage._week(number) for number in range(stage.number)]
    frame = pd.concat(weeks, ignore_index=True)
    frame["occurred_at"] = frame["occurred_at"].dt.floor("us")
    models = {}
    for name, cutoff in (("first", first.cutoff), ("sibling", judged)):
        rows = frame[frame["occurred_at"] < cutoff].sort_values("occurred_at")
        models[name] = LogisticRegression().fit(rows[["u", "v"]], rows["target"])
    told = found.rows.to_pandas()
    late = (told["occurred_at"] >= judged).to_numpy()
    assert late.any()
    assert not late.all()
    assert len(told) == (frame["occurred_at"] >= first.cutoff).sum()
    for name, part in (("sibling", late), ("first", ~late)):
        wanted = models[name].predict_proba(told.loc[part, ["u", "v"]])[:, 1]
        assert found.raw[part] == pytest.approx(wanted, abs=1e-9)


def test_a_row_that_the_sibling_did_not_answer_is_answered_by_the_model_that_was_replaced(moved):
    """Its label came after the gate."""
    stage, outcome = moved
    release = stage.releases.get(outcome.release)
    model = Model.of(stage.releases, release)
    kept = pq.read_table(io.BytesIO(model.held("judged"))).slice(1)
    buffer = io.BytesIO()
    pq.write_table(kept, buffer)
    less = replace(
        model, held=lambda name: buffer.getvalue() if name == "judged" else model.held(name)
    )
    first = stage.releases.line()[-1]
    by, now = stage.loop._challenger, stage.clock.now()
    window = Window(first.cutoff, now)
    found, before = unseen(by, less, window, now), unseen(by, model, window, now)
    (place,) = np.flatnonzero(found.raw != before.raw)
    old = unseen(by, Model.of(stage.releases, first), window, now)
    assert found.raw[place] == old.raw[place]


def test_champion_and_challenger_are_compared_as_maps_of_their_own_would_make_them(moved):
    _, outcome = moved
    assert outcome.verdict.mapped
    assert outcome.verdict.promote


def test_the_rows_that_fitted_a_fresh_releases_map_are_rebuilt_to_their_hash(moved):
    stage, outcome = moved
    release = stage.releases.get(outcome.release)
    named = [(release.id, release.calibration)]
    (found,) = frames(named, stage.journal, stage.releases, stage.audit)
    assert found.result == "same"


def test_the_record_has_each_window_once_by_the_release_that_served_in_it(moved):
    stage, _ = moved
    told = stage.bodies("calibration_record")
    starts = [datetime.fromisoformat(body["window"]["start"]) for body in told]
    assert starts == [START + (FIRST + k) * WEEK for k in range(len(told))]
    moves = [line for line in stage.audit.lines() if line["kind"] == "promoted"]
    for body, start in zip(told, starts, strict=True):
        served = [m["body"]["release"] for m in moves if datetime.fromisoformat(m["at"]) <= start]
        assert body["release"] == served[-1]
    assert all(set(body["loss"]) == {"none", "4x20", "2x20", "4x100"} for body in told)
    assert all(body["rows"] == A_WEEK for body in told)


def test_where_maps_harm_the_record_speaks_for_none_and_none_is_released(tmp_path):
    settings = {"decide": {"growth": 0, "probation": 0}}
    stage = Stage(tmp_path, swinging, settings=settings)
    stage.turn(8)
    assert maps.chosen(stage.audit.past(), stage.chosen) == maps.BARE
    serving = stage.releases.champion()
    own = serving.manifest["objects"].get("calibrator")
    text = stage.releases.object(serving, "calibrator") if own else None
    assert text is None or Calibrator.from_json(text) == Calibrator(1.0, (0.0,))


def test_where_the_record_speaks_for_no_map_models_are_compared_and_released_bare(tmp_path):
    def truth(x, draw, number):
        return swinging(x, draw, number) if number >= FIRST else binary()(x, draw, number)

    stage = Stage(tmp_path, truth)
    mend = Decision(Action.RECALIBRATE, "calibration", "Rows can judge a map.")
    stage.loop = stage.turning(policy=lambda *_: mend)
    stage.turn(8)
    assert maps.chosen(stage.audit.past(), stage.chosen) == maps.BARE
    found = stage.loop._challenger.retrain(stage.releases.champion(), stage.clock.now())
    assert not found.verdict.mapped
    assert "calibrator" not in found.candidate.objects


def test_without_switching_it_on_a_fresh_release_has_no_map(tmp_path):
    settings = {"decide": {**GROWING["decide"], "recalibrate": False}}
    truth = changed(binary(), binary((0.5, -2.0), bias=1.0), LATER)
    stage = Stage(tmp_path, truth, settings=settings)
    outcome = grown(stage)
    release = stage.releases.get(outcome.release)
    assert "calibrator" not in release.manifest["objects"]
    assert not outcome.verdict.mapped
    assert stage.bodies("calibration_record") == []


def test_a_challenger_whose_map_cannot_be_made_is_not_released(tmp_path, monkeypatch):
    failure = TrainingError("no map today.")

    def fail(*_):
        raise failure

    monkeypatch.setattr(maps, "given", fail)
    truth = changed(binary(), binary((0.5, -2.0), bias=1.0), LATER)
    settings = {"decide": {**GROWING["decide"], "cooldown": "70d"}}
    stage = Stage(tmp_path, truth, settings=settings)
    champion = stage.releases.line()[-1].manifest["objects"]["model"]
    stage.turn(6)
    assert {"reason": cause(failure)} in stage.bodies("training_failed")
    assert stage.releases.champion().manifest["objects"]["model"] == champion


def test_where_no_challenger_came_of_a_training_a_map_is_tried_in_the_same_turn(tmp_path):
    """The level moves, and the training script turns every label round."""
    settings = {"gate": {"window": "7d"}}
    stage = Stage(tmp_path, changed(binary(), binary(bias=3.0), FIRST), settings=settings)
    wrong = FIT.replace("    model =", "    target = 1 - target\n    model =")
    stage.script.write_text(wrong.format(data=str(tmp_path / "rows.parquet")))
    drift = Decision(Action.RETRAIN, "drift", "Something drifted.")
    stage.loop = stage.turning(policy=lambda *_: drift)
    held, tried = stage.turn(2)
    assert (held.decision.action, held.refused) == (Action.HOLD, None)
    assert not tried.refused.promote
    assert (tried.promoted, tried.decision.action) == (True, Action.RECALIBRATE)
    assert stage.releases.champion().manifest["kind"] == "recalibrate"


def test_a_turn_killed_while_a_map_is_made_leaves_the_champion_and_the_next_one_works(
    tmp_path, monkeypatch
):
    truth = changed(binary(), binary(bias=2.0), LATER)
    stage = Stage(tmp_path, truth, settings={"decide": {"growth": 0}})

    def killed(*_):
        raise KeyboardInterrupt

    champion = stage.releases.champion()
    with monkeypatch.context() as patch:
        patch.setattr(maps, "mapped", killed)
        with pytest.raises(KeyboardInterrupt):
            stage.turn(6)
    assert stage.releases.champion() == champion
    stage.loop.recover()
    assert stage.turn(4)
    assert stage.releases.champion().manifest["kind"] == "recalibrate"


def test_maps_of_independent_noise_are_released_no_more_often_than_asked(monkeypatch):
    """Calibrated outputs: the rule is judged on 300 streams of its own."""
    chosen = Settings(project={"target": "target", "time": "occurred_at"})
    schema = schema_of(week(0, binary()).drop(columns="prediction_id").replace({"target": {0: 2}}))
    rule, released = maps.rules(chosen)[0], 0
    champion = SimpleNamespace(manifest={"objects": {}})
    held = SimpleNamespace(object=lambda release, name: schema.to_json())
    by = SimpleNamespace(settings=chosen, releases=held)
    days = START + 5 * WEEK * (np.arange(5 * 210) / (5 * 210))
    rows = served_rows(
        pd.DataFrame({"occurred_at": days, "u": 0.0, "v": 0.0}).assign(
            prediction_id=[str(n) for n in range(len(days))]
        ),
        schema,
    )
    judging = Window(START + 4 * WEEK, START + 5 * WEEK)
    monkeypatch.setattr(remedy, "Model", SimpleNamespace(of=lambda releases, release: None))
    for seed in range(300):
        draw = np.random.default_rng(seed)
        p = draw.uniform(0.05, 0.95, len(days))
        known = Unseen(rows, p, 1 + (draw.random(len(p)) < p), schema)
        monkeypatch.setattr(
            maps, "unseen", lambda by, model, window, now, as_of=None, of=known: of.within(window)
        )
        released += remedy._judge(by, champion, rule, judging, judging.end).promote
    assert 0 < released / 300 <= remedy.LEVEL


def late(stage):
    """The stage's challenge, its champion's model and first rule, where labels take a week."""
    labels = stage.chosen.labels.model_copy(update={"delay": WEEK})
    by = replace(
        stage.loop._challenger, settings=stage.chosen.model_copy(update={"labels": labels})
    )
    return by, Model.of(stage.releases, stage.releases.champion()), maps.rules(by.settings)[0]


def test_a_map_is_judged_as_it_could_have_served_with_the_labels_known_by_then(moved):
    now = moved[0].clock.now()
    by, model, rule = late(moved[0])
    rows, (found,) = maps.foretold(by, model, [rule], Window(now - WEEK, now), now)
    known = unseen(by, model, Window(now - 6 * WEEK, now - 2 * WEEK), now)
    own = known.fit(by.settings.monitor.block)
    assert np.array_equal(found, own.apply(rows.raw, rows.schema.target))
    fresher = unseen(by, model, Window(now - 5 * WEEK, now - WEEK), now)
    ahead = fresher.fit(by.settings.monitor.block)
    assert not np.allclose(found, ahead.apply(rows.raw, rows.schema.target))


def test_a_map_for_harm_is_judged_by_all_rows_before_the_window(moved):
    now = moved[0].clock.now()
    by, model, rule = late(moved[0])
    rows, (found,) = maps.foretold(by, model, [rule], Window(now - WEEK, now), now, ahead=True)
    own = unseen(by, model, Window(now - 5 * WEEK, now - WEEK), now).fit(by.settings.monitor.block)
    assert np.array_equal(found, own.apply(rows.raw, rows.schema.target))


def test_a_candidate_is_chosen_by_what_it_gained_over_bare_answers():
    chosen = Settings()
    first, second, third = maps.rules(chosen)
    assert maps.chosen(Past(), chosen) == first
    told = {first.name: 0.1, second.name: -0.2, third.name: -0.1}
    assert maps.chosen(Past(maps=told), chosen) == second
    assert maps.chosen(Past(maps=dict.fromkeys(told, 0.0)), chosen) == maps.BARE
    assert maps.chosen(Past(maps={"9x20": -1.0}), chosen) == first


def test_a_map_is_never_an_advantage_over_the_same_model_without_one(tmp_path):
    """The champion's own model challenges it: cross-fitted maps make that a tie."""
    truth = changed(binary(), binary(bias=2.0), LATER)
    stage = Stage(tmp_path, truth, settings={"decide": {"growth": 0}})
    while stage.releases.champion().calibration is None:
        stage.turn(1)
    stage.serve()
    by, champion = stage.loop._challenger, stage.releases.champion()
    schema = Schema.from_json(stage.releases.object(champion, "schema"))
    window = Window(champion.cutoff, stage.clock.now())
    rows = stage.journal.read(window, labelled=True, schema=schema)
    bare = stage.trainer.score(stage.releases.object(champion, "model"), rows, schema)
    assert (by._defended(champion, rows, schema) == by._compared(bare, rows, schema)).all()
    off = replace(
        by,
        settings=by.settings.model_copy(
            update={"decide": by.settings.decide.model_copy(update={"recalibrate": False})}
        ),
    )
    mapped, plain = off._defended(champion, rows, schema), off._compared(bare, rows, schema)
    assert not np.allclose(mapped, plain)
