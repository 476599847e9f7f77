"""Recalibration as a remedy: found where a map mends, judged, released, served and taken back."""

from __future__ import annotations

import io
import pickle
from datetime import datetime
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from remedy_fixtures import FIRST, WEEK, Stage, binary, changed, week

from homeostat import champion as server
from homeostat import lineage, maps, recalibrate, remedy
from homeostat.errors import TrainingError, cause
from homeostat.rebuild import frames
from homeostat.records import Action, TrainingRows, Window
from homeostat.schema import Schema, Target
from homeostat.scoring import Calibrator, outputs, tabulate, uncalibrated
from homeostat.testing import START, schema_of, served_rows
from homeostat.unseen import Unseen

SAME = binary()
LATER = FIRST + 3
NO_GROWTH = {"decide": {"growth": 0}}


def numbers(x, draw, number):
    return 3 * x[:, 0] - x[:, 1] + draw.normal(size=len(x))


def lifted(x, draw, number):
    return 5 + numbers(x, draw, number)


def classes(bias):
    def truth(x, draw, number):
        scores = np.column_stack([x[:, 0], x[:, 1], bias + 0 * x[:, 0]])
        return np.asarray(["a", "b", "c"])[(scores + draw.gumbel(size=scores.shape)).argmax(axis=1)]

    return truth


KINDS = {
    "binary": (changed(SAME, binary(bias=2.0), LATER), "log_loss"),
    "multiclass": (changed(classes(0.0), classes(2.5), LATER), "log_loss"),
    "regression": (changed(numbers, lifted, LATER), "rmse"),
}


@pytest.fixture(scope="module", params=KINDS)
def mended(request, tmp_path_factory):
    """A stream whose level moves by much, three weeks after the first release."""
    truth, metric = KINDS[request.param]
    stage = Stage(tmp_path_factory.mktemp(request.param), truth, settings=NO_GROWTH)
    return stage, stage.turn(7), metric


@pytest.fixture(scope="module")
def shifted(tmp_path_factory):
    """A binary stream like that, of which a map has answered the last week."""
    stage = Stage(tmp_path_factory.mktemp("shifted"), KINDS["binary"][0], settings=NO_GROWTH)
    while stage.releases.champion().manifest["kind"] != "recalibrate":
        stage.turn()
    stage.serve()
    return stage


def test_a_level_that_moved_is_mended_by_a_map_alone(mended):
    stage, outcomes, metric = mended
    moved = [outcome for outcome in outcomes if outcome.promoted]
    assert moved
    assert moved[0].decision.action is Action.RECALIBRATE
    verdict = moved[0].verdict
    assert (verdict.metric, verdict.sibling) == (metric, True)
    assert verdict.challenger < verdict.champion
    kinds = [line["kind"] for line in stage.audit.lines()]
    assert "trained" not in kinds[: kinds.index("calibrated")]


def test_the_map_that_is_released_makes_the_loss_what_it_was(mended):
    stage, _, _ = mended
    line = stage.releases.line()
    first, last = line[-1], line[0]
    frame = stage._week(stage.number)
    schema = Schema.from_json(stage.releases.object(last, "schema"))
    rows = served_rows(frame, schema)
    labels = [schema.target.text(value) for value in frame["target"].tolist()]
    rows = rows.append_column("label", pa.array(labels, pa.string()))
    if schema.target.task == "regression":
        rows = rows.set_column(
            rows.num_columns - 1, "label", rows.column("label").cast(pa.float64())
        )
    old, new = (
        lineage.losses(stage.trainer, stage.releases, release, rows).mean()
        for release in (first, last)
    )
    assert new < 0.8 * old


def test_a_recalibrated_release_shares_all_but_the_map_and_names_its_rows(mended):
    stage, _, _ = mended
    line = stage.releases.line()
    new, old = line[0], line[-1]
    changed_objects = {
        name
        for name, digest in new.manifest["objects"].items()
        if old.manifest["objects"].get(name) != digest
    }
    assert changed_objects == {"calibrator", "golden"}
    assert new.manifest["kind"] == "recalibrate"
    assert new.training == old.training
    fitted = new.calibration
    assert fitted.start >= old.cutoff
    assert fitted.cutoff == new.seen_until > new.cutoff
    assert old.calibration is None
    assert old.seen_until == old.cutoff
    assert "calibration" not in old.manifest


def test_a_map_is_judged_only_where_a_newer_one_than_the_champions_could_have_served(mended):
    stage, champion = mended[0], mended[0].releases.champion()
    late = stage.chosen.labels.model_copy(update={"delay": 2 * WEEK})
    chosen = stage.chosen.model_copy(update={"labels": late})
    seen = lineage.judged_until(champion)
    assert seen >= champion.seen_until
    assert champion.calibration is not None
    assert remedy.stretch(champion, None, seen + 3.9 * WEEK, chosen) is None
    judging = remedy.stretch(champion, None, seen + 4 * WEEK, chosen)
    assert judging == Window(seen + 3 * WEEK, seen + 4 * WEEK)


def test_rows_that_judge_a_map_are_never_those_that_fitted_it_and_never_judge_twice(mended):
    stage, _, _ = mended
    looks = [body["window"] for body in stage.bodies("calibration_gate")]
    edges = [(datetime.fromisoformat(w["start"]), datetime.fromisoformat(w["end"])) for w in looks]
    first = stage.releases.line()[-1]
    assert edges[0][0] >= first.cutoff + WEEK
    for (_, end), (start, _) in pairwise(edges):
        assert end <= start


def test_a_server_answers_by_the_map(mended):
    stage, _, _ = mended
    release = stage.releases.champion()
    ready = server.opened(stage.releases, release)
    schema = ready.schema
    rows = served_rows(stage._week(stage.number), schema)
    given = ready.output([rows.column(name).to_pylist() for name in schema.names])
    raw = outputs(
        stage.trainer.score(stage.releases.object(release, "model"), rows, schema, None),
        schema.target,
    )
    own = Calibrator.from_json(stage.releases.object(release, "calibrator"))
    assert given == pytest.approx(own.apply(raw, schema.target))
    assert not np.allclose(given, raw)


def test_a_map_is_always_over_the_bare_model_and_never_over_another_map(tmp_path):
    def rising(x, draw, number):
        return binary(bias=0.5 * max(0, number - FIRST))(x, draw, number)

    stage = Stage(tmp_path, rising, settings=NO_GROWTH)
    stage.turn(9)
    made = [r for r in stage.releases.line() if r.manifest["kind"] == "recalibrate"]
    assert len(made) >= 2
    newest = made[0]
    told = newest.calibration
    schema = Schema.from_json(stage.releases.object(newest, "schema"))
    rows = stage.journal.read(Window(told.start, told.cutoff), labelled=True, schema=schema)
    assert rows.num_rows == told.rows
    model = stage.releases.object(newest, "model")
    raw = outputs(stage.trainer.score(model, rows, schema, None), schema.target)
    known = Unseen(rows, raw, schema.labels(rows), schema)
    block = stage.chosen.monitor.block
    fits = [known.fit(block, rule.ridge).to_json() for rule in maps.rules(stage.chosen)]
    assert stage.releases.object(newest, "calibrator") in fits


def no_harm(stage):
    """Whether the champion's answers lie within .1 of those of the first release."""
    served = np.concatenate([stage.served(stage._week(90 + k)) for k in range(3)])
    stage.releases._champion = stage.releases.line()[-1]
    before = np.concatenate([stage.served(stage._week(90 + k)) for k in range(3)])
    return np.abs(served - before).max() < 0.1


@pytest.mark.parametrize("seed", range(3))
def test_where_nothing_changes_no_map_does_harm(tmp_path, seed):
    stage = Stage(tmp_path, SAME, settings=NO_GROWTH, seed=seed)
    outcomes = stage.turn(6)
    assert stage.bodies("calibration_gate")
    assert no_harm(stage)
    assert not any(outcome.decision.action is Action.ROLL_BACK for outcome in outcomes)


def test_where_features_move_and_the_truth_stays_no_map_does_harm(tmp_path):
    stage = Stage(tmp_path, SAME, shift=lambda number: 0.5 * (number >= LATER), settings=NO_GROWTH)
    stage.turn(6)
    assert stage.bodies("calibration_gate")
    assert no_harm(stage)


def test_harm_that_two_maps_do_not_mend_trains(tmp_path):
    """Weights that swap: no map over the old score can mend that for long."""
    truth = changed(SAME, binary((-1.0, 2.0)), LATER)
    stage = Stage(tmp_path, truth, settings={"decide": {"growth": 0, "probation": 0}})
    stage.turn(9)
    decided = [
        (body["decision"]["action"], body["decision"]["trigger"])
        for body in stage.bodies("decided")
    ]
    harm = [action for action, trigger in decided if trigger == "harm"]
    assert harm[0] == "recalibrate"
    assert ("retrain", "harm") in decided
    assert stage.bodies("trained")


def test_what_a_model_was_judged_at_stays_the_baseline_whatever_map_is_over_it(mended):
    stage, _, _ = mended
    line = stage.releases.line()
    subject = stage.loop._subject(line[0])
    assert subject.baseline.value == line[-1].manifest["gate"]["challenger"]


def test_a_map_alone_is_no_drift_of_the_predictions(shifted):
    """The reference holds the bare model's answers; the features have not moved."""
    evidence = shifted.loop.monitor()
    assert shifted.releases.champion().manifest["kind"] == "recalibrate"
    assert evidence.prediction_drift is not None
    assert evidence.prediction_drift.distance < 0.05


def test_a_challenger_may_be_judged_by_rows_that_fitted_the_champions_map(shifted):
    """Each row is scored by the newest map that has not seen it, so no row is lost to the maps."""
    champion = shifted.releases.champion()
    schema = Schema.from_json(shifted.releases.object(champion, "schema"))
    rows = shifted.journal.read(
        Window(champion.cutoff, shifted.clock.now()), labelled=True, schema=schema
    )
    model = shifted.releases.object(champion, "model")
    raw = outputs(shifted.trainer.score(model, rows, schema, None), schema.target)
    found = lineage.mapped(raw, rows, schema.target, lineage.maps(shifted.releases, champion))
    times = rows.column("occurred_at").to_pylist()
    for number, moment in enumerate(times):
        known = [
            release
            for release in shifted.releases.line()
            if release.calibration is not None and release.seen_until <= moment
        ]
        own = raw[number : number + 1]
        if known:
            text = shifted.releases.object(known[0], "calibrator")
            own = Calibrator.from_json(text).apply(own, schema.target)
        assert found[number] == own[0]
    assert (found != raw).any()
    assert (found == raw).any()


def test_looks_at_maps_take_no_rows_from_looks_at_models(shifted):
    past = shifted.audit.past()
    assert past.mapped_until is not None
    assert past.looked_until is None


def test_a_recalibration_is_rolled_back_like_any_release(tmp_path):
    stage = Stage(tmp_path, KINDS["binary"][0], settings=NO_GROWTH)
    stage.turn(6)
    newest = stage.releases.champion()
    assert newest.manifest["kind"] == "recalibrate"
    outcome = stage.loop.roll_back()
    assert outcome.release == newest.manifest["parent"]
    assert stage.turn(1)[0].evidence.release == outcome.release


def test_a_failing_map_keeps_the_champion_and_the_reason_is_kept(tmp_path, monkeypatch):
    stage = Stage(tmp_path, SAME, settings=NO_GROWTH)
    stage.turn(1)

    failure = TrainingError("no map today.")

    def fail(*_, **__):
        raise failure

    monkeypatch.setattr(recalibrate, "fit_calibrator", fail)
    champion = stage.releases.champion()
    (outcome,) = stage.turn(1)
    assert (outcome.decision.action, outcome.decision.trigger) == (Action.HOLD, "failed")
    assert stage.bodies("calibration_failed") == [{"reason": cause(failure)}]
    assert stage.releases.champion() == champion


def test_switched_off_no_map_is_ever_tried(tmp_path):
    stage = Stage(
        tmp_path, KINDS["binary"][0], settings={"decide": {"growth": 0, "recalibrate": False}}
    )
    stage.turn(6)
    assert "recalibrate" not in stage.actions
    assert stage.bodies("calibration_gate") == []


@pytest.mark.parametrize(
    ("target", "output", "calibrator"),
    [
        (Target("y", "binary", "bool", ("no", "yes")), [0.1, 0.5, 0.9], Calibrator(1.7, (-0.4,))),
        (Target("y", "regression", "float"), [-3.0, 0.0, 8.5], Calibrator(-2.0, (4.0,))),
        (
            Target("y", "multiclass", "str", ("a", "b", "c")),
            [[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]],
            Calibrator(0.6, (0.1, -0.2, 0.5)),
        ),
    ],
    ids=["binary", "regression", "multiclass"],
)
def test_what_a_map_did_can_be_undone_in_the_journal(target, output, calibrator):
    raw = np.asarray(output)
    rows = tabulate(calibrator.apply(raw, target), target)
    bare = uncalibrated(rows, target, calibrator)
    assert outputs(bare, target) == pytest.approx(raw)
    if target.task != "regression":
        assert bare.column("prediction") == tabulate(raw, target).column("prediction")
    assert uncalibrated(rows, target, None) is rows


def test_the_ridge_counts_blocks_where_rows_of_a_block_are_alike():
    """Rows that are off together by the day move the map less than rows that are off each alone."""
    draw = np.random.default_rng(0)
    frame = week(0, SAME)
    schema = schema_of(frame.drop(columns="prediction_id").assign(target=[True, False] * 105))
    rows = served_rows(frame, schema)
    days = (frame["occurred_at"] - START).dt.days.to_numpy()
    off = {"alone": draw.random(len(frame)) < 0.8, "together": (days % 7) < 5}
    block = WEEK / 7
    shifts = {
        name: Unseen(rows, np.full(len(frame), 0.5), hit, schema).fit(block).shift[0]
        for name, hit in off.items()
    }
    assert 0 < shifts["together"] < 0.5 * shifts["alone"]


def test_training_rows_come_back_from_the_manifest(shifted):
    release = shifted.releases.champion()
    assert TrainingRows.of(release.manifest["training"]) == release.training
    golden = pq.read_table(io.BytesIO(shifted.releases.object(release, "golden")))
    assert pickle.loads(shifted.releases.object(release, "model")) is not None
    assert golden.num_rows > 0


def test_the_rows_that_fitted_a_map_are_rebuilt_to_the_hash_that_the_release_names(mended):
    stage, _, _ = mended
    maps = [
        (release.id, release.calibration)
        for release in stage.releases.line()
        if release.calibration is not None
    ]
    assert maps
    found = frames(maps, stage.journal, stage.releases, stage.audit)
    assert {frame.result for frame in found} == {"same"}
