"""Blends: the newest models of the champion's line as one, alone and through the whole loop."""

from __future__ import annotations

import io
import json
import pickle
from dataclasses import replace
from datetime import timedelta

import cloudpickle
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import sklearn
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from loop_fixtures import (
    LOADED,
    TRAIN,
    bodies,
    copied,
    days,
    make,
    project,
    rewrite,
    serve,
    stream,
    trained,
    turning,
    wrapped,
)
from scipy import special
from sklearn.linear_model import LinearRegression, LogisticRegression

from homeostat import cli
from homeostat.blend import CLIP, Blend, Elder, joined, pooled
from homeostat.engines import LocalEngine
from homeostat.records import TrainingRows
from homeostat.schema import Schema
from homeostat.scoring import Scorer
from homeostat.testing import START, drifting_stream, schema_of, served_rows

DAY = timedelta(days=1)
LATER = 35
GATE = {"window": "7d", "min_rows": 50, "delta": 0.02}
FRAME = pd.DataFrame({"u": np.linspace(-2, 2, 40), "v": np.cos(np.arange(40.0))})


def rows_of(number):
    return TrainingRows(100, START, START + number * DAY, START + number * DAY, f"{number:064}")


def classifier(seed, classes=(0, 1)):
    draw = np.random.default_rng(seed)
    labels = np.resize(classes, len(FRAME))
    return cloudpickle.dumps(LogisticRegression().fit(FRAME, draw.permutation(labels)))


def elder(*members, schema=b""):
    model = members[0] if len(members) == 1 else pickle.dumps(Blend(members, "binary"))
    return Elder(model, schema, tuple(rows_of(i) for i in range(len(members))))


# --- what a blend answers ---

shares = st.floats(0, 1, allow_subnormal=False)


@given(arrays(float, st.tuples(st.integers(1, 4), st.integers(1, 5)), elements=shares))
def test_of_two_classes_a_blend_gives_the_mean_of_logits(given_shares):
    both = np.stack([1 - given_shares, given_shares], axis=2)
    clipped = np.log(np.maximum(both, CLIP))
    logits = (clipped[:, :, 1] - clipped[:, :, 0]).mean(axis=0)
    assert pooled(both)[:, 1] == pytest.approx(special.expit(logits), rel=1e-9)


@given(arrays(float, (3, 4, 5), elements=st.floats(1e-9, 1)))
def test_of_many_classes_it_gives_the_mean_of_logarithms_renormalised(given_shares):
    wanted = special.softmax(np.log(np.maximum(given_shares, CLIP)).mean(axis=0), axis=1)
    assert pooled(given_shares) == pytest.approx(wanted, rel=1e-9)


@given(shares, st.integers(1, 3))
def test_a_member_that_is_certain_leaves_the_others_their_say(share, others):
    certain, rest = np.array([[[0.0, 1.0]]]), np.array([[[1 - share, share]]])
    found = pooled(np.concatenate([certain, *[rest] * others]))
    assert np.isfinite(found).all()
    assert found.sum() == pytest.approx(1)
    least = np.exp(np.log(CLIP) / (others + 1)) * (1 - share) ** (others / (others + 1)) / 2
    assert found[0, 0] >= min(least, 0.5 * CLIP)


def test_what_is_not_a_number_in_one_member_is_none_in_the_blend():
    given_shares = np.full((2, 2, 2), 0.5)
    given_shares[1, 0] = np.nan
    found = pooled(given_shares)
    assert np.isnan(found[0]).all()
    assert found[1].tolist() == [0.5, 0.5]


def test_of_numbers_it_gives_the_mean():
    parts = [LinearRegression().fit(FRAME, FRAME["u"] * slope) for slope in (1, 2, 6)]
    blend = Blend(tuple(map(cloudpickle.dumps, parts)), "regression")
    assert blend.predict(FRAME) == pytest.approx(3 * FRAME["u"].to_numpy())
    assert not hasattr(blend, "classes_")


def test_its_prediction_is_the_likeliest_class():
    blend = Blend((classifier(0, ("no", "yes")), classifier(1, ("no", "yes"))), "binary")
    wanted = blend.classes_[blend.predict_proba(FRAME).argmax(axis=1)]
    assert blend.predict(FRAME).tolist() == wanted.tolist()
    assert set(wanted) <= {"no", "yes"}


class Greedy:
    """Writes into the rows that it is asked about."""

    classes_ = np.array([0, 1])

    def predict_proba(self, frame):
        frame["u"] = frame["u"] + 5
        share = special.expit(frame["u"].to_numpy())
        return np.stack([1 - share, share], axis=1)


def test_a_member_that_writes_into_its_rows_changes_them_for_no_other():
    once = pickle.dumps(Greedy())
    frame = FRAME.copy()
    found = Blend((once, once, once), "binary").predict_proba(frame)
    assert found == pytest.approx(Greedy().predict_proba(FRAME.copy()), rel=1e-6, abs=2e-6)
    assert frame.equals(FRAME)


def test_its_members_are_kept_as_the_bytes_that_they_came_in():
    first, second = classifier(0), classifier(1)
    blend = pickle.loads(pickle.dumps(Blend((first, second), "binary")))
    blend.predict(FRAME)
    again = pickle.loads(cloudpickle.dumps(blend))
    assert again.members == (first, second)
    assert again.predict_proba(FRAME).tolist() == blend.predict_proba(FRAME).tolist()


# --- which models join ---


@pytest.mark.parametrize("keep", range(1, 6))
def test_the_newest_models_are_kept_and_the_new_one_is_last(keep):
    old, new = [classifier(seed) for seed in range(3)], classifier(9)
    found = joined(elder(*old), new, keep, "binary")
    kept = old[len(old) - min(keep - 1, 3) :]
    made = pickle.loads(found.model)
    assert (made.members if kept else (found.model,)) == (*kept, new)
    assert found.older == tuple(map(rows_of, range(3)))[3 - len(kept) :]
    assert found.left_out == ()


@pytest.mark.parametrize("keep", range(1, 6))
def test_a_model_that_stands_for_its_refit_weighs_as_both_will(keep):
    old, new, refit = [classifier(seed) for seed in range(3)], classifier(9), classifier(10)
    judged = joined(elder(*old), new, keep, "binary", twice=True)
    both = Elder(judged.model, b"", (*judged.older, rows_of(9)))
    released = pickle.loads(joined(both, refit, keep, "binary").model)
    made = pickle.loads(judged.model)
    if keep < 3:
        assert judged.model == new
        return
    assert (*made.members, refit) == released.members
    weights = np.append(np.ones(len(made.members) - 1), 2)
    logits = [special.logit(e.predict_proba(FRAME)[:, 1]) for e in made.estimators]
    wanted = special.expit(np.average(logits, axis=0, weights=weights))
    assert made.predict_proba(FRAME)[:, 1] == pytest.approx(wanted, rel=1e-6)
    assert len(released.members) == min(keep, 5)


def test_a_model_of_other_classes_is_left_out_and_an_older_one_takes_its_place():
    old = classifier(0), classifier(1, (0, 1, 2)), classifier(2)
    found = joined(elder(*old), classifier(9), 3, "binary")
    assert found.older == (rows_of(0), rows_of(2))
    assert found.left_out == ("An older model knows other classes.",)


def test_where_no_model_joins_the_new_one_stays_as_it_came():
    new = classifier(9)
    assert joined(elder(classifier(0, (0, 1, 2))), new, 4, "binary").model == new
    found = joined(elder(b"torn"), new, 4, "binary")
    assert (found.model, found.older) == (new, ())
    assert "cannot be read" in found.left_out[0]


def test_a_blend_that_was_adopted_is_one_member():
    brought = pickle.dumps(Blend((classifier(0), classifier(1)), "binary"))
    found = joined(elder(brought), classifier(9), 4, "binary")
    made = pickle.loads(found.model)
    assert made.members[0] == brought
    assert len(found.older) == 1
    assert made.predict_proba(FRAME).shape == (40, 2)


def test_a_line_that_cannot_answer_all_that_the_new_model_can_is_unlike_it():
    schema = schema_of(drifting_stream(60))
    held = schema.to_json().encode()
    assert elder(b"", schema=held).unlike(schema) == ""
    strict = schema.without_nulls_in(["gap"])
    assert elder(b"", schema=held).unlike(strict) == ""
    assert "no null in 'gap'" in elder(b"", schema=strict.to_json().encode()).unlike(schema)
    fewer = replace(schema, features=schema.features[1:])
    assert "other features" in elder(b"", schema=held).unlike(fewer)
    other = replace(schema, target=replace(schema.target, task="multiclass"))
    assert "another target" in elder(b"", schema=held).unlike(other)


# --- through the loop ---


@pytest.fixture(scope="module")
def engine():
    with LocalEngine(timeout=timedelta(seconds=60), memory=8_192) as warm:
        yield warm


def challenged(root, engine, day=LATER, **training):
    training = {"min_rows": 100, **training}
    with turning(root, engine, day, training=training, gate=GATE) as loop:
        return loop.retrain(force=True)


def moving():
    """The level of the target moves up a little once the first model has learned."""
    frame = stream(shift=0)
    late = frame["occurred_at"] >= START + LOADED * DAY
    draw = np.random.default_rng(7).random(len(frame))
    return frame.assign(target=frame["target"].where(~late | (draw > 0.1), 1))


@pytest.fixture(scope="module")
def promoted(tmp_path_factory, engine):
    """Two promotions after the first model, a fortnight apart."""
    frame = moving()
    root = trained(tmp_path_factory.mktemp("moving") / "p", engine, frame, LATER)
    assert challenged(root, engine).promoted
    serve(root, days(frame, LATER, LATER + 14))
    outcome = challenged(root, engine, LATER + 14)
    return root, frame, outcome


def answers(root, release, frame):
    """The release's own answers, and those of each of its members."""
    here = project(root)
    schema = Schema.from_json(here.releases.object(release, "schema"))
    table = schema.frame(served_rows(frame, schema))
    blend = pickle.loads(here.releases.object(release, "model"))
    members = [pickle.loads(member).predict_proba(table)[:, 1] for member in blend.members]
    return blend.predict_proba(table)[:, 1], members


def test_a_promoted_challenger_answers_by_the_mean_logit_of_the_newest_models(promoted):
    root, frame, _ = promoted
    _, first, origin = project(root).releases.line()
    (refitted, *_), (told, *_) = bodies(root, "refitted"), bodies(root, "trained")
    assert (told["members"], told["share"], refitted["members"]) == (2, 1, 3)
    own, members = answers(root, first, days(frame, 0, 9))
    assert len(members) == 3
    assert own == pytest.approx(special.expit(special.logit(members).mean(axis=0)), rel=1e-9)
    rows = [release.training.rows for release in (origin, first)]
    assert [each.rows for each in first.members] == [rows[0], told["training"]["rows"], rows[1]]
    assert first.cutoff == first.members[-1].cutoff
    assert origin.members == (origin.training,)
    assert first.manifest["training"] == first.manifest["members"][-1]


def test_the_next_one_keeps_the_newest_of_them(promoted):
    root, _, outcome = promoted
    second, first, _ = project(root).releases.line()
    assert outcome.promoted
    assert second.members[:2] == first.members[1:]
    assert len(second.members) == 4
    assert "the blend of 3 models" in outcome.verdict.reason  # the newest stands for two


def test_the_reference_and_the_golden_rows_are_the_blends_own_answers(promoted):
    here = project(promoted[0])
    release = here.releases.champion()
    schema = Schema.from_json(here.releases.object(release, "schema"))
    scorer = Scorer(pickle.loads(here.releases.object(release, "model")), schema)
    for name in ("golden", "reference_sample"):
        kept = pq.read_table(io.BytesIO(here.releases.object(release, name)))
        told = scorer.score(kept)["probability"].to_pylist()
        assert told == pytest.approx(kept["probability"].to_pylist(), rel=1e-9)


def test_the_twin_answers_for_all_of_them(promoted):
    release = project(promoted[0]).releases.champion()
    assert release.manifest["twin"]["engine"] == "onnx"


def test_the_rows_of_every_member_are_rebuilt_to_their_hash(promoted, capsys):
    root = promoted[0]
    with pytest.raises(SystemExit) as end:
        cli.main(["verify", "--project", str(root), "--json"])
    document = json.loads(capsys.readouterr().out)
    assert (end.value.code, document["frames"]) == (0, 1 + 3 + 4)


def test_rows_that_were_erased_since_are_told_for_each_release_that_learned_them(
    promoted, tmp_path, capsys
):
    root = copied(promoted[0], tmp_path / "p")
    newest = [release.id for release in project(root).releases.line()][:2]
    with pytest.raises(SystemExit):
        cli.main(["log", "erase", "--id", f"id-{28 * LOADED + 5}", "--yes", "--project", str(root)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main(["verify", "--project", str(root), "--json"])
    document = json.loads(capsys.readouterr().out)
    assert (end.value.code, sorted(document["erased"])) == (0, sorted(newest))
    assert document["frames"] == 2  # of the first model, as itself and in the blend after it


def test_the_status_says_of_how_many_models_the_champion_is(promoted, capsys):
    with pytest.raises(SystemExit):
        cli.main(["status", "--project", str(promoted[0])])
    assert "a blend of 4 models" in capsys.readouterr().out


def test_after_an_abrupt_change_the_new_model_serves_without_the_older_ones(tmp_path, engine):
    root = trained(tmp_path / "p", engine, stream(), LATER)
    outcome = challenged(root, engine)
    (told,) = bodies(root, "trained")
    (beside,) = told["beside"]
    assert outcome.promoted
    assert beside["members"] == 2
    assert beside["loss"] > outcome.verdict.challenger
    assert "Of 2 challengers, that of all rows alone did better." in outcome.verdict.reason
    first, origin = project(root).releases.line()
    assert len(first.members) == 2
    assert origin.training not in first.members


def test_without_a_refit_the_blend_that_was_judged_is_released_whole(tmp_path, engine):
    root = trained(tmp_path / "p", engine, moving(), LATER)
    outcome = challenged(root, engine, refit=False)
    (told,) = bodies(root, "trained")
    champion = project(root).releases.champion()
    assert outcome.promoted
    assert champion.manifest["members"][-1] == told["training"]
    assert len(champion.members) == told["members"] == 2
    assert {"reference", "traits", "twin"} <= champion.manifest["objects"].keys()


def test_with_blend_1_the_fitted_estimator_alone_is_released(tmp_path, engine):
    root = trained(tmp_path / "p", engine, moving(), LATER)
    assert challenged(root, engine, blend=1).promoted
    champion = project(root).releases.champion()
    model = pickle.loads(project(root).releases.object(champion, "model"))
    assert not isinstance(model, Blend)
    assert "members" not in champion.manifest
    assert champion.members == (champion.training,)
    assert bodies(root, "trained")[0]["beside"] == []


OLD_PICKLE = wrapped(
    "aged",
    """
import pickle, sklearn, warnings

class Aged:
    def __init__(self, model):
        self.classes_, self.model = model.classes_, model
    def __getstate__(self):
        import pickle, sklearn
        version = sklearn.__version__.encode()
        return pickle.dumps(self.model).replace(version, b"9" + version[1:])
    def __setstate__(self, state):
        import pickle
        self.model = pickle.loads(state)
        self.classes_ = self.model.classes_
    def predict_proba(self, frame):
        return self.model.predict_proba(frame)
    def predict(self, frame):
        return self.model.predict(frame)

def aged(model):
    return Aged(model)
""",
)


def test_a_model_that_another_scikit_learn_pickled_is_left_out_of_the_blend_and_told(
    tmp_path, engine
):
    root = make(tmp_path / "p", days(moving(), 0, LOADED), OLD_PICKLE)
    with turning(root, engine, LOADED) as loop:
        loop.train()
    rewrite(root, TRAIN)
    assert sklearn.__version__[0] != "9"
    with pytest.warns(sklearn.exceptions.InconsistentVersionWarning):
        serve(root, days(moving(), LOADED, LATER))
    challenged(root, engine)
    (told,) = bodies(root, "trained")
    assert told["members"] == 1
    assert "InconsistentVersionWarning" in told["left_out"][0]


def test_a_challenger_with_another_column_is_judged_alone(tmp_path, engine):
    root = trained(tmp_path / "p", engine, moving(), LATER)
    pd.read_parquet(root / "rows.parquet").assign(more=1.0).to_parquet(root / "rows.parquet")
    outcome = challenged(root, engine)
    (told,) = bodies(root, "trained")
    assert outcome.verdict is not None
    assert (told["members"], told["beside"]) == (1, [])
    assert told["left_out"] == ["The champion's line has other features."]
