"""Scores and losses: the same numbers as scikit-learn, and a round trip through the journal."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import log_loss

from homeostat.errors import SchemaError
from homeostat.infer import infer
from homeostat.schema import Feature, Schema, Target
from homeostat.scoring import CLIP, Calibrator, Scorer, losses, outputs, row_losses, tabulate

BINARY = Target("late", "binary", "int", ("0", "1"))
MANY = Target("kind", "multiclass", "str", ("a", "b", "c"))
NUMBER = Target("price", "regression", "float")
shares = st.floats(1e-6, 1 - 1e-6)


def simplex(rows, seed=0):
    return np.random.default_rng(seed).dirichlet([1, 1, 1], size=rows)


@given(st.lists(st.tuples(shares, st.integers(0, 1)), min_size=1, max_size=30))
def test_the_mean_loss_of_two_classes_is_scikit_learns(pairs):
    output, labels = (np.array(column) for column in zip(*pairs, strict=True))
    theirs = log_loss(labels, output, labels=[0, 1])
    assert losses(output, labels, BINARY).mean() == pytest.approx(theirs, rel=1e-9)


@given(st.integers(1, 30), st.integers(0, 99))
def test_the_mean_loss_of_many_classes_is_scikit_learns(rows, seed):
    output = simplex(rows, seed)
    labels = np.random.default_rng(seed).choice(list(MANY.classes), size=rows).astype(object)
    theirs = log_loss(labels, output, labels=list(MANY.classes))
    assert losses(output, labels, MANY).mean() == pytest.approx(theirs, rel=1e-9)


def test_certainty_costs_a_finite_loss_and_a_number_its_squared_error():
    sure = losses(np.array([0.0, 1.0]), np.array([1, 1]), BINARY)
    assert sure == pytest.approx([-math.log(CLIP), 0], abs=1e-12)
    assert losses(np.array([1.0, 4.0]), np.array([3.0, 4.0]), NUMBER).tolist() == [4, 0]


@pytest.mark.parametrize(
    ("target", "output"),
    [
        (BINARY, np.array([0.0, 0.5, 0.1 + 0.2, 1.0])),
        (MANY, simplex(4)),
        (NUMBER, np.array([0.1 + 0.2, -1e300, 5e-324, 3.0])),
    ],
)
def test_the_journals_columns_hold_every_bit_of_an_output(target, output):
    table = tabulate(output, target)
    assert np.array_equal(outputs(table, target), output)
    assert table.column_names == ["prediction", "probability", "probabilities"]


def test_the_prediction_is_the_likelier_class():
    assert tabulate(np.array([0.4, 0.6]), BINARY)["prediction"].to_pylist() == ["0", "1"]
    told = tabulate(np.array([[0.2, 0.5, 0.3]]), MANY)
    assert told["prediction"].to_pylist() == ["b"]
    assert told["probability"].to_pylist() == [None]


def test_a_class_that_the_model_does_not_know_costs_as_much_as_no_probability():
    schema = Schema((Feature("x", "number"),), BINARY)
    rows = pa.table({"label": ["1", "2", "0"]})
    found = row_losses(tabulate(np.array([0.5, 0.5, 0.5]), BINARY), rows, schema)
    assert found == pytest.approx([math.log(2), -math.log(CLIP), math.log(2)])


@pytest.mark.parametrize("target", [BINARY, MANY, NUMBER])
def test_the_losses_of_rows_are_those_of_their_outputs(target):
    schema = Schema((Feature("x", "number"),), target)
    output = simplex(3) if target is MANY else np.array([0.2, 0.7, 0.9])
    texts = ([*target.classes] * 2)[:3] or [1.5, 2.0, -1.0]
    rows = pa.table({"label": texts})
    found = row_losses(tabulate(output, target), rows, schema)
    assert found.tolist() == losses(output, schema.labels(rows), target).tolist()


# --- calibrators ---


@settings(deadline=None)
@given(st.floats(0.1, 5), st.lists(st.floats(-3, 3), min_size=3, max_size=3))
def test_a_calibrator_survives_its_json(scale, shift):
    one = Calibrator(scale, tuple(shift))
    assert Calibrator.from_json(one.to_json()) == one


def test_a_calibrator_of_another_format_is_refused():
    with pytest.raises(SchemaError, match="format 2"):
        Calibrator.from_json(b'{"format": 2, "scale": 1, "shift": [0]}')


@given(st.lists(shares, min_size=1, max_size=20), st.floats(0.2, 3), st.floats(-2, 2))
def test_two_classes_are_moved_on_the_logit(values, scale, shift):
    output = np.array(values)
    wanted = special.expit(scale * special.logit(output) + shift)
    assert Calibrator(scale, (shift,)).apply(output, BINARY) == pytest.approx(wanted, rel=1e-9)


@given(st.integers(1, 20), st.floats(0.2, 3), st.tuples(*[st.floats(-2, 2)] * 3))
def test_many_classes_are_moved_on_the_logarithm(rows, scale, shift):
    output = simplex(rows)
    wanted = special.softmax(scale * np.log(output) + np.array(shift), axis=1)
    found = Calibrator(scale, shift).apply(output, MANY)
    assert found == pytest.approx(wanted, rel=1e-9)
    assert found.sum(axis=1) == pytest.approx(np.ones(rows))


def test_the_identity_changes_nothing_and_extremes_stay_within_bounds():
    output = np.array([0.0, 0.3, 1.0])
    assert Calibrator(1, (0.0,)).apply(output, BINARY) == pytest.approx(output, abs=1e-9)
    assert Calibrator(1, (0.0,) * 3).apply(simplex(5), MANY) == pytest.approx(simplex(5))
    assert Calibrator(2, (1.0,)).apply(output, NUMBER) == pytest.approx([1, 1.6, 3])


# --- scorers ---


class Estimator:
    """Knows only some classes, and in an order of its own."""

    def __init__(self, classes, columns):
        self.classes_ = np.array(classes, dtype=object)
        self.columns = columns

    def predict_proba(self, frame):
        return np.tile(self.columns, (len(frame), 1))

    def predict(self, frame):
        return np.full(len(frame), np.nan)


X = Feature("x", "number")


def test_probabilities_come_in_the_schemas_order_with_0_for_unknown_classes():
    scorer = Scorer(Estimator(["c", "a"], [0.7, 0.3]), Schema((X,), MANY))
    assert scorer.output(pa.table({"x": [1.0, 2.0]})).tolist() == [[0.3, 0, 0.7]] * 2


def test_a_value_that_is_not_finite_is_refused():
    with pytest.raises(SchemaError, match="not finite"):
        Scorer(Estimator([], []), Schema((X,), NUMBER)).output(pa.table({"x": [1.0]}))


@pytest.mark.parametrize("target", [BINARY, MANY, NUMBER])
def test_no_rows_give_no_scores(target):
    scorer = Scorer(Estimator(["a"], [1.0]), Schema((X,), target))
    assert scorer.score(pa.table({"x": pa.array([], pa.float64())})).num_rows == 0


def test_a_scikit_learn_model_scores_as_it_does_by_itself():
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"x": random.normal(size=60)})
    frame["late"] = frame["x"] + random.normal(size=60) > 0
    schema = infer(frame, target="late")
    model = LogisticRegression().fit(frame[["x"]], frame["late"])
    table = pa.table({"x": frame["x"]})
    wanted = model.predict_proba(frame[["x"]])[:, 1]
    assert Scorer(model, schema).output(table).tolist() == wanted.tolist()
    moved = Scorer(model, schema, Calibrator(1, (1.0,))).output(table)
    assert moved == pytest.approx(special.expit(special.logit(wanted) + 1))
    told = Scorer(model, schema).score(table)["prediction"].to_pylist()
    assert told == [str(value).lower() for value in model.predict(frame[["x"]])]


def test_a_regression_scores_the_value_itself():
    frame = pd.DataFrame({"x": [0.0, 1.0, 2.0], "price": [1.5, 3.5, 5.5]})
    schema = infer(frame, target="price", task="regression")
    model = LinearRegression().fit(frame[["x"]], frame["price"])
    output = Scorer(model, schema).output(pa.table({"x": frame["x"]}))
    assert output == pytest.approx([1.5, 3.5, 5.5])
