"""What each column is worth to a model, measured by shuffling it."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LinearRegression

from homeostat import importance
from homeostat.schema import Feature, Schema, Target
from homeostat.scoring import Scorer

BINARY = Target("y", "binary", "bool", ("false", "true"))
NUMBER = Target("y", "regression", "float")
FEATURES = (Feature("strong", "number"), Feature("weak", "number"), Feature("idle", "number"))


class Leaning:
    """P(true) leans on `strong` and a little on `weak`."""

    classes_ = np.array([False, True])

    def predict_proba(self, frame):
        p = 1 / (1 + np.exp(-2 * frame["strong"].to_numpy() - 0.5 * frame["weak"].to_numpy()))
        return np.column_stack([1 - p, p])


class Failing(Leaning):
    def predict_proba(self, frame):
        raise RuntimeError("no")


def table(count=2_000, label="true"):
    draw = np.random.default_rng(0)
    columns = {feature.name: draw.normal(size=count) for feature in FEATURES}
    score = 2 * columns["strong"] + 0.5 * columns["weak"]
    true = draw.random(count) < 1 / (1 + np.exp(-score))
    labels = [label if value else "false" for value in true]
    return pa.table({**columns, "label": pa.array(labels, pa.string())})


def test_columns_rank_by_what_the_model_makes_of_them():
    told = json.loads(importance.measure(Scorer(Leaning(), Schema(FEATURES, BINARY)), table(), 3))
    found = told["features"]
    assert found["strong"] > 5 * found["weak"] > 0
    assert found["idle"] == pytest.approx(0, abs=1e-12)
    assert (told["metric"], told["rows"], told["repeats"], told["seed"]) == (
        "log_loss",
        importance.ROWS,
        importance.REPEATS,
        3,
    )


def test_the_numbers_are_those_of_scikit_learn():
    draw = np.random.default_rng(1)
    x = draw.normal(size=(800, 3))
    y = x @ [3.0, 1.0, 0.0] + draw.normal(size=800)
    names = [feature.name for feature in FEATURES]
    rows = pa.table({**dict(zip(names, x.T, strict=True)), "label": y})
    scorer = Scorer(
        LinearRegression().fit(rows.select(names).to_pandas(), y), Schema(FEATURES, NUMBER)
    )
    found = json.loads(importance.measure(scorer, rows, 0))
    frame = rows.select(names).to_pandas()
    scoring = "neg_mean_squared_error"
    peer = permutation_importance(
        scorer.estimator, frame, y, scoring=scoring, n_repeats=30, random_state=0
    )
    assert found["metric"] == "squared_error"
    for place, name in enumerate(names):
        # 2·β²·Var(x), give or take what three shuffles vary by
        assert found["features"][name] == pytest.approx(
            peer.importances_mean[place], abs=0.05 + 0.06 * peer.importances_mean[place]
        )


def test_the_same_seed_gives_the_same_bytes():
    scorer = Scorer(Leaning(), Schema(FEATURES, BINARY))
    assert importance.measure(scorer, table(), 1) == importance.measure(scorer, table(), 1)
    assert importance.measure(scorer, table(), 1) != importance.measure(scorer, table(), 2)


def test_without_labels_or_with_a_model_that_fails_there_is_none():
    schema = Schema(FEATURES, BINARY)
    bare = table().set_column(3, "label", pa.nulls(2_000, pa.string()))
    assert importance.measure(Scorer(Leaning(), schema), bare, 0) is None
    assert importance.measure(Scorer(Failing(), schema), table(), 0) is None


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"format": 2, "features": {"a": 1}}'])
def test_what_cannot_be_read_is_not_known(content):
    assert importance.read(content) == {}


def test_what_was_measured_reads_back():
    made = importance.measure(Scorer(Leaning(), Schema(FEATURES, BINARY)), table(), 0)
    assert importance.read(made) == json.loads(made)["features"]
