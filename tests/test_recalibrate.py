import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, Ridge

from homeostat.errors import TrainingError
from homeostat.recalibrate import FOLDS, crossed, fit_calibrator, fitted, rescaled
from homeostat.schema import Target
from homeostat.scoring import losses

BINARY = Target("y", "binary", "bool", ("false", "true"))
MULTI = Target("y", "multiclass", "str", ("a", "b", "c"))
NUMBER = Target("y", "regression", "float")


def binary(seed=0, rows=2_000):
    """Outputs whose logits are half as steep and one too low."""
    draw = np.random.default_rng(seed)
    logit = draw.normal(size=rows)
    labels = draw.random(rows) < 1 / (1 + np.exp(-(2 * logit + 1)))
    return 1 / (1 + np.exp(-logit)), labels


def multiclass(seed=0, rows=2_000):
    draw = np.random.default_rng(seed)
    logs = draw.normal(size=(rows, 3))
    labels = (2 * logs + [0.5, 0, -0.5] + draw.gumbel(size=(rows, 3))).argmax(axis=1)
    p = np.exp(logs)
    return p / p.sum(axis=1, keepdims=True), np.asarray(MULTI.classes, dtype=object)[labels]


def test_a_binary_map_is_that_of_logistic_regression():
    output, labels = binary()
    fitted = fit_calibrator(output, labels, BINARY, ridge=1e-9)
    logit = np.log(output / (1 - output)).reshape(-1, 1)
    peer = LogisticRegression(C=np.inf, tol=1e-10).fit(logit, labels)
    assert fitted.scale == pytest.approx(peer.coef_[0, 0], rel=1e-4)
    assert fitted.shift == pytest.approx(peer.intercept_, rel=1e-4)


def test_a_multiclass_map_finds_the_temperature_and_the_biases():
    output, labels = multiclass(rows=20_000)
    fitted = fit_calibrator(output, labels, MULTI, ridge=1e-3)
    assert fitted.scale == pytest.approx(2, abs=0.1)
    assert np.subtract(fitted.shift[:2], fitted.shift[2]) == pytest.approx([1, 0.5], abs=0.1)


def test_a_multiclass_map_cannot_be_bettered_by_a_small_step():
    output, labels = multiclass()
    best = fit_calibrator(output, labels, MULTI, ridge=1.0)

    def penalised(scale, shift):
        mapped = type(best)(scale, tuple(shift)).apply(output, MULTI)
        away = (scale - 1) ** 2 + sum(s**2 for s in shift)
        return losses(mapped, labels, MULTI).sum() + away / 2

    least = penalised(best.scale, best.shift)
    for place in range(4):
        for step in (-1e-3, 1e-3):
            theta = [best.scale, *best.shift]
            theta[place] += step
            assert penalised(theta[0], theta[1:]) > least


def test_a_regression_map_is_that_of_ridge_regression():
    draw = np.random.default_rng(0)
    output = draw.normal(3, 2, size=500)
    labels = 1.5 * output - 2 + draw.normal(size=500)
    fitted = fit_calibrator(output, labels, NUMBER, ridge=2.0)
    x, y = (output - labels.mean()) / labels.std(), (labels - labels.mean()) / labels.std()
    peer = Ridge(alpha=2.0, fit_intercept=False).fit(np.column_stack([x, np.ones(500)]), y - x)
    mapped = labels.mean() + labels.std() * ((1 + peer.coef_[0]) * x + peer.coef_[1])
    assert fitted.apply(output, NUMBER) == pytest.approx(mapped)


def test_a_regression_map_does_not_depend_on_the_unit():
    draw = np.random.default_rng(0)
    output = draw.normal(3, 2, size=200)
    labels = 1.5 * output - 2 + draw.normal(size=200)
    fitted = fit_calibrator(output, labels, NUMBER, ridge=50.0)
    other = fit_calibrator(1000 * output + 7, 1000 * labels + 7, NUMBER, ridge=50.0)
    mapped = fitted.apply(output, NUMBER)
    assert other.apply(1000 * output + 7, NUMBER) == pytest.approx(1000 * mapped + 7)


@pytest.mark.parametrize(
    ("make", "target"), [(binary, BINARY), (multiclass, MULTI)], ids=["binary", "multiclass"]
)
def test_much_ridge_leaves_the_output_as_it_is(make, target):
    output, labels = make()
    fitted = fit_calibrator(output, labels, target, ridge=1e9)
    assert fitted.apply(output, target) == pytest.approx(output, abs=1e-4)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 60), ridge=st.floats(0.01, 10))
def test_the_map_never_raises_the_penalised_loss_of_its_rows_and_is_repeatable(seed, rows, ridge):
    output, labels = binary(seed, rows)
    fitted = fit_calibrator(output, labels, BINARY, ridge=ridge)
    mapped = fitted.apply(output, BINARY)
    away = (fitted.scale - 1) ** 2 + fitted.shift[0] ** 2
    before = losses(output, labels, BINARY).sum()
    assert losses(mapped, labels, BINARY).sum() + ridge / 2 * away <= before + 1e-9
    assert fit_calibrator(output, labels, BINARY, ridge=ridge) == fitted


def test_separable_rows_and_certain_outputs_give_finite_maps():
    output, labels = np.asarray([0.0, 0.0, 1.0, 1.0]), np.asarray([False, False, True, True])
    fitted = fit_calibrator(output, labels, BINARY, ridge=0.1)
    assert np.isfinite([fitted.scale, *fitted.shift]).all()
    wrong = fit_calibrator(output, ~labels, BINARY, ridge=0.1)
    assert losses(wrong.apply(output, BINARY), ~labels, BINARY).mean() < 5


@pytest.mark.parametrize(("rows", "ridge"), [(0, 1.0), (5, 0.0), (5, -1.0)])
def test_what_has_no_minimum_is_refused(rows, ridge):
    with pytest.raises(TrainingError):
        fit_calibrator(np.full(rows, 0.5), np.zeros(rows, dtype=bool), BINARY, ridge=ridge)


def test_shares_of_two_classes_are_rescaled_as_by_beta_calibration():
    output, labels = binary()
    p = np.where(labels, output, output**2)  # no map of the logit mends this
    shares, truth = np.column_stack([1 - p, p]), np.column_stack([~labels, labels]).astype(float)
    both = np.log(np.column_stack([p, 1 - p]))
    peer = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1_000).fit(both, labels)
    asked = np.linspace(0.01, 0.99, 99)
    found = rescaled(shares, truth, np.column_stack([1 - asked, asked]), ridge=1e-6)
    logs = np.log(np.column_stack([asked, 1 - asked]))
    assert found == pytest.approx(peer.predict_proba(logs), abs=1e-4)


def test_shares_of_many_classes_are_rescaled_to_a_least_loss():
    output, labels = multiclass()
    truth = np.eye(3)[[MULTI.classes.index(one) for one in labels]]
    found = rescaled(output, truth, output, ridge=1e-6)
    least = -(truth * np.log(found)).sum()
    for place in range(3):
        for step in (-1e-2, 1e-2):
            scores = np.log(found)
            for moved in (step, step * np.log(output[:, place])):  # a shift, a scale
                away = scores.copy()
                away[:, place] += moved
                away -= np.log(np.exp(away).sum(axis=1, keepdims=True))
                assert -(truth * away).sum() > least


def test_much_ridge_leaves_shares_as_they_are():
    output, labels = multiclass()
    truth = np.eye(3)[[MULTI.classes.index(one) for one in labels]]
    assert rescaled(output, truth, output, ridge=1e9) == pytest.approx(output, abs=1e-4)


@pytest.mark.parametrize(
    ("made", "target"), [(binary, BINARY), (multiclass, MULTI)], ids=["binary", "multiclass"]
)
def test_each_stretch_of_time_is_mapped_by_what_the_others_teach(made, target):
    output, labels = made(rows=400)
    days = np.arange(400) // 20
    found = crossed(output, labels, days, target)
    for number in range(FOLDS):
        inside = days // 5 == number
        own = fitted(output[~inside], labels[~inside], days[~inside], target)
        assert (found[inside] == own.apply(output[inside], target)).all()
    assert losses(found, labels, target).mean() < losses(output, labels, target).mean()


def test_labels_of_a_stretch_do_not_reach_its_own_map():
    output, labels = binary(rows=400)
    days, other = np.arange(400) // 20, labels.copy()
    other[:100] = ~other[:100]
    one, two = (crossed(output, each, days, BINARY) for each in (labels, other))
    assert (one[:100] == two[:100]).all()
    assert (one[100:] != two[100:]).all()


@pytest.mark.parametrize("target", [BINARY, MULTI, NUMBER], ids=lambda each: each.task)
def test_no_map_turns_a_model_round(target):
    """What is right once it is reversed becomes all but constant, at the best level of that."""
    draw = np.random.default_rng(0)
    if target is NUMBER:
        output = draw.normal(size=500)
        labels = 3 - output
        constant = np.full(500, labels.mean())
    elif target is BINARY:
        output, labels = binary(rows=500)
        output = 1 - output
        constant = np.full(500, labels.mean())
    else:
        output, labels = multiclass(rows=500)
        output = 1 / output / (1 / output).sum(axis=1, keepdims=True)
        constant = np.tile([(labels == name).mean() for name in MULTI.classes], (500, 1))
    found = fit_calibrator(output, labels, target, ridge=1e-3)
    assert found.scale == 0.01
    mapped = losses(found.apply(output, target), labels, target).mean()
    assert mapped == pytest.approx(losses(constant, labels, target).mean(), rel=0.03)


def test_of_one_block_no_stretch_can_teach_another():
    output, labels = binary(rows=50)
    assert (crossed(output, labels, np.zeros(50, dtype=int), BINARY) == output).all()
