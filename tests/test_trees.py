"""Models as ONNX graphs: each library's own comparisons, nulls and categories, row by row."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lightgbm import LGBMClassifier, LGBMRegressor
from sklearn.compose import make_column_transformer
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.ensemble import HistGradientBoostingClassifier as Trees
from sklearn.ensemble import HistGradientBoostingRegressor as Numbers
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    StandardScaler,
)
from sklearn.tree import DecisionTreeClassifier
from xgboost import XGBClassifier, XGBRegressor

from homeostat.blend import Blend
from homeostat.convert import convert
from homeostat.errors import TwinError
from homeostat.infer import infer
from homeostat.scoring import Scorer
from homeostat.session import Session
from homeostat.trees import forest

NUMBERS, CATEGORIES = ["amount", "gap", "member"], ["city", "car"]
FEW = {"n_estimators": 12, "random_state": 0}
TYPES = {"enable_categorical": True, "n_jobs": 1}


def rows(task="binary", size=900, seed=0):
    draw = np.random.default_rng(seed)
    city = draw.integers(0, 130, size)  # more than one mask of onnxruntime holds
    frame = pd.DataFrame(
        {
            "amount": draw.normal(size=size) * 1e3,
            "gap": np.where(draw.random(size) < 0.1, np.nan, draw.exponential(size=size)),
            "member": draw.random(size) < 0.4,
            "city": pd.Series([f"c{place}" for place in city], dtype="str"),
            "car": pd.Series(draw.choice(list("abcdef"), size), dtype="str"),
        }
    )
    score = frame.amount / 500 + (city % 7 - 3) / 2 + (frame.car == "b") + draw.normal(size=size)
    frame.loc[draw.random(size) < 0.05, "city"] = None
    frame["target"] = {
        "binary": (score > 0).astype(int),
        "multiclass": np.digitize(score, [-1, 1]),
        "regression": score.abs() * 1e3,
    }[task]
    return frame


def ordinal():
    encode = OrdinalEncoder(
        handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-1
    )
    return make_column_transformer((encode, CATEGORIES), remainder="passthrough")


def onehot():
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    levels = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    return make_column_transformer((numbers, NUMBERS), (levels, CATEGORIES))


def imputed():
    levels = make_pipeline(
        SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore")
    )
    numbers = make_pipeline(SimpleImputer(add_indicator=True), MinMaxScaler())
    return make_column_transformer((numbers, NUMBERS), (levels, CATEGORIES))


def types():
    return FunctionTransformer(typed)


def typed(frame):
    return frame.astype(dict.fromkeys(CATEGORIES, "category"))


def some_types():
    numbers = ("passthrough", ["member", "gap"])
    levels = (FunctionTransformer(typed), CATEGORIES)
    made = make_column_transformer(levels, numbers, verbose_feature_names_out=False)
    return made.set_output(transform="pandas")


def known_types():
    return FunctionTransformer(known)


def known(frame):
    """XGBoost refuses a level that it never saw, so it becomes null."""
    levels = {"city": sorted(f"c{place}" for place in range(130)), "car": list("abcdef")}
    return frame.assign(
        **{
            name: pd.Categorical(frame[name].where(frame[name].isin(every)), categories=every)
            for name, every in levels.items()
        }
    )


def fitted(task, model, before=None, frame=None):
    frame = rows(task) if frame is None else frame
    schema = infer(frame, target="target", task=task)
    plain = schema.frame(tables(schema, frame))
    return make_pipeline(before or ordinal(), model).fit(plain, frame["target"]), schema


def columns(schema, frame):
    return [[None if pd.isna(v) else v for v in frame[name].tolist()] for name in schema.names]


def tables(schema, frame):
    return schema.table(dict(zip(schema.names, columns(schema, frame), strict=True)))


MODELS = {
    "flights": ("binary", Trees(max_iter=20, categorical_features=[0, 1]), ordinal),
    "boosted": ("binary", Trees(max_iter=20), onehot),
    "boosted classes": ("multiclass", Trees(max_iter=8, categorical_features=[0, 1]), ordinal),
    "boosted numbers": ("regression", Numbers(max_iter=20, categorical_features=[0]), ordinal),
    "boosted counts": ("regression", Numbers(max_iter=20, loss="poisson"), ordinal),
    "forest": ("binary", RandomForestClassifier(**FEW), ordinal),
    "forest of classes": ("multiclass", ExtraTreesClassifier(**FEW), ordinal),
    "forest of numbers": ("regression", RandomForestRegressor(**FEW), ordinal),
    "tree": ("binary", DecisionTreeClassifier(random_state=0), ordinal),
    "gradient": ("binary", GradientBoostingClassifier(**FEW), onehot),
    "gradient classes": ("multiclass", GradientBoostingClassifier(**FEW), imputed),
    "gradient numbers": ("regression", GradientBoostingRegressor(**FEW), onehot),
    "lightgbm": ("binary", LGBMClassifier(**FEW, verbose=-1), ordinal),
    "lightgbm classes": ("multiclass", LGBMClassifier(**FEW, verbose=-1), ordinal),
    "lightgbm numbers": ("regression", LGBMRegressor(**FEW, verbose=-1), ordinal),
    "lightgbm mean": (
        "binary",
        LGBMClassifier(**FEW, verbose=-1, boosting_type="rf", subsample=0.5, subsample_freq=1),
        ordinal,
    ),
    "lightgbm types": ("binary", LGBMClassifier(**FEW, verbose=-1), types),
    "lightgbm some types": ("multiclass", LGBMClassifier(**FEW, verbose=-1), some_types),
    "lightgbm dart": (
        "regression",
        LGBMRegressor(**FEW, verbose=-1, boosting_type="dart", drop_rate=0.5),
        types,
    ),
    "lightgbm zeros": (
        "binary",
        LGBMClassifier(**FEW, verbose=-1, zero_as_missing=True),
        ordinal,
    ),
    "xgboost types": ("binary", XGBClassifier(**FEW, **TYPES), known_types),
    "xgboost dart": (
        "regression",
        XGBRegressor(**FEW, **TYPES, booster="dart", rate_drop=0.5),
        known_types,
    ),
    "xgboost": ("binary", XGBClassifier(**FEW, n_jobs=1), ordinal),
    "xgboost classes": ("multiclass", XGBClassifier(**FEW, n_jobs=1), ordinal),
    "xgboost numbers": ("regression", XGBRegressor(**FEW, n_jobs=1), ordinal),
    "logistic": ("binary", LogisticRegression(), onehot),
    "logistic classes": ("multiclass", LogisticRegression(), imputed),
    "line": ("regression", LinearRegression(), onehot),
}
# XGBoost computes in 32 bits itself.
BLENDS = {
    "blend": ["boosted", "forest", "logistic", "lightgbm types"],
    "blend of classes": ["boosted classes", "gradient classes", "lightgbm classes"],
    "blend of numbers": ["boosted numbers", "forest of numbers", "line", "lightgbm numbers"],
    "xgboost blend": ["xgboost", "xgboost types"],
}


def blended(names):
    """Models of rows of their own, so that no two know the same levels."""
    parts = []
    for seed, name in enumerate(names):
        task, model, before = MODELS[name]
        made, schema = fitted(task, model, before(), rows(task, size=300 + 200 * seed, seed=seed))
        parts.append(pickle.dumps(made))
    return Blend(tuple(parts), task), schema


@pytest.fixture(scope="module", params=[*MODELS, *BLENDS])
def pair(request):
    """A model, its schema, its twin, and by how much they may differ, relatively."""
    with np.errstate(all="ignore"):
        if request.param in BLENDS:
            made, schema = blended(BLENDS[request.param])
        else:
            task, model, before = MODELS[request.param]
            made, schema = fitted(task, model, before())
    near = 1e-6 if request.param.startswith("xgboost") else 1e-12
    return made, schema, Session(convert(made, schema)), near


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
def test_the_twin_answers_as_the_model_on_rows_that_it_never_saw(pair):
    model, schema, session, near = pair
    fresh = rows(size=400, seed=1)
    fresh.loc[:20, "car"] = "a level that training never saw"
    fresh.loc[:5, "car"] = None
    wanted = Scorer(model, schema).output(tables(schema, fresh))
    given_ = session.output(columns(schema, fresh))
    assert given_.shape == wanted.shape
    np.testing.assert_allclose(given_, wanted, rtol=near, atol=near * np.abs(wanted).max())


def test_a_row_is_answered_in_the_same_bits_whatever_stands_beside_it(pair):
    _, schema, session, _ = pair
    held = columns(schema, rows(size=203, seed=2))
    together = session.output(held)
    for size in (1, 2, 3, 7, 33):
        parts = [
            session.output([column[at : at + size] for column in held])
            for at in range(0, 203, size)
        ]
        assert np.concatenate(parts).tobytes() == together.tobytes(), size


def test_the_same_model_gives_the_same_bytes(pair):
    model, schema, _, _ = pair
    assert convert(model, schema) == convert(model, schema)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_nodes_null_sides_and_sets_of_categories_are_those_of_scikit_learn(data):
    seed, levels = data.draw(st.integers(0, 999)), data.draw(st.sampled_from([3, 59, 60, 61, 200]))
    draw = np.random.default_rng(seed)
    x = np.column_stack(
        [draw.integers(0, levels, 400).astype(float), draw.normal(size=400).round(1)]
    )
    x[draw.random((400, 2)) < 0.2] = np.nan
    y = draw.random(400) < 0.2 + 0.6 * (np.nan_to_num(x[:, 0]) % 3 == 1)
    frame = pd.DataFrame(x, columns=["code", "size"]).assign(target=y.astype(int))
    model = Trees(max_iter=4, max_leaf_nodes=12, min_samples_leaf=3, categorical_features=[0])
    schema = infer(frame, target="target")
    model.fit(frame[["code", "size"]], frame["target"])
    session = Session(convert(model, schema))
    codes = [*range(-2, levels + 2), None, 0.5, 1e300, -1e300]
    for size in (None, -3.0, 0.05, 3.0):
        held = [[None if c is None else float(c) for c in codes], [size] * len(codes)]
        wanted = Scorer(model, schema).output(
            schema.table(dict(zip(schema.names, held, strict=True)))
        )
        np.testing.assert_allclose(session.output(held), wanted, rtol=1e-12)


def coder(kind, levels):
    """A small model of 400 rows, whose first column is a category, by its own reckoning."""
    common = {"n_estimators": 4, "random_state": 0}
    if kind == "lightgbm":
        quick = {"min_child_samples": 3, "min_data_per_group": 3, "cat_smooth": 1, "verbose": -1}
        return LGBMClassifier(**common, **quick, n_jobs=1), {"categorical_feature": [0]}
    onehot = 4 if levels % 2 else 1000
    types_ = {"feature_types": ["c", "q"], "enable_categorical": True}
    return XGBClassifier(**common, **types_, max_cat_to_onehot=onehot, n_jobs=1), {}


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
@pytest.mark.parametrize("kind", ["lightgbm", "xgboost"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), levels=st.sampled_from([3, 29, 34, 58, 59, 60, 61, 200]))
def test_sets_of_categories_are_those_of_the_library(kind, seed, levels):
    draw = np.random.default_rng(seed)
    x = np.column_stack(
        [draw.integers(0, levels, 400).astype(float), draw.normal(size=400).round(1)]
    )
    x[draw.random((400, 2)) < 0.2] = np.nan
    y = draw.random(400) < 0.2 + 0.6 * (np.nan_to_num(x[:, 0]) % 3 == 1)
    frame = pd.DataFrame(x, columns=["code", "size"]).assign(target=y.astype(int))
    model, options = coder(kind, levels)
    schema = infer(frame, target="target")
    model.fit(x, frame["target"], **options)
    session = Session(convert(model, schema))
    near = [0.5, -0.5, -1e-300, 1.0 - 1e-12, 2.0 + 1e-9, 2.5, 1e9, -1e9]
    codes = [*range(-2, levels + 2), None, *near]
    for size in (None, -3.0, 0.05, 3.0):
        held = [[None if c is None else float(c) for c in codes], [size] * len(codes)]
        rows_ = schema.table(dict(zip(schema.names, held, strict=True)))
        wanted = Scorer(model, schema).output(rows_)
        np.testing.assert_allclose(session.output(held), wanted, rtol=1e-6)


def test_zeros_that_lightgbm_takes_for_null_go_with_the_nulls():
    draw = np.random.default_rng(0)
    size = np.where(draw.random(500) < 0.4, 0.0, draw.normal(size=500))
    frame = pd.DataFrame({"size": size, "other": draw.normal(size=500)})
    frame["target"] = ((size == 0) | (size > 1)).astype(int)
    schema = infer(frame, target="target")
    model = LGBMClassifier(n_estimators=4, zero_as_missing=True, verbose=-1)
    model.fit(schema.frame(tables(schema, frame)), frame["target"])
    tried = [0.0, -0.0, 1e-36, -1e-36, 5e-324, 1e-30, -1e-30, None, 0.5, 2.0]
    held = [tried, [0.1] * len(tried)]
    wanted = Scorer(model, schema).output(schema.table(dict(zip(schema.names, held, strict=True))))
    assert wanted[0] == wanted[7] != wanted[8]
    np.testing.assert_allclose(Session(convert(model, schema)).output(held), wanted, rtol=1e-12)


def test_xgboosts_sums_of_32_bits_are_the_twins_to_the_last_bit():
    frame = rows("regression")
    frame["target"] += 1e5  # beside which a leaf is small
    model, schema = fitted("regression", XGBRegressor(n_estimators=300, n_jobs=1), frame=frame)
    wanted = Scorer(model, schema).output(tables(schema, frame))
    assert (
        Session(convert(model, schema)).output(columns(schema, frame)).tolist() == wanted.tolist()
    )


def test_names_of_levels_that_xgboost_cuts_are_told_of():
    frame = rows()
    frame["car"] = frame["car"].replace("b", "ß")
    step = FunctionTransformer(lambda f: f[["amount", "car"]].astype({"car": "category"}))
    model, schema = fitted("binary", XGBClassifier(**FEW, **TYPES), step, frame)
    with pytest.raises(TwinError, match="names of levels that are not ASCII"):
        convert(model, schema)


def test_a_step_that_counts_the_unseen_as_a_level_that_is_known_does_so_in_the_twin():
    def counted(frame):
        car = frame["car"].where(frame["car"].isin(list("abcdef")), "b")
        return frame[["amount"]].assign(car=car.astype("category"))

    model, schema = fitted(
        "binary", LGBMClassifier(**FEW, verbose=-1), FunctionTransformer(counted)
    )
    fresh = rows(size=100, seed=1)
    fresh["car"] = "a level that training never saw"
    wanted = Scorer(model, schema).output(tables(schema, fresh.assign(car="b")))
    given_ = Session(convert(model, schema)).output(columns(schema, fresh))
    np.testing.assert_allclose(given_, wanted, rtol=1e-12)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (LGBMClassifier(**FEW, verbose=-1), "do more than set pandas' types"),
        (XGBClassifier(**FEW, **TYPES), "does not tell what its categories stand for"),
    ],
)
def test_numbers_that_become_categories_of_pandas_are_no_graph(model, why):
    step = FunctionTransformer(
        lambda f: f[["amount"]].assign(of=f["member"].fillna(0).astype(int).astype("category"))
    )
    model, schema = fitted("binary", model, step)
    with pytest.raises(TwinError, match=why):
        convert(model, schema)


def test_steps_that_make_columns_of_their_own_beside_types_are_no_graph():
    own = FunctionTransformer(lambda frame: typed(frame).assign(ratio=frame.amount / frame.gap))
    model, schema = fitted("binary", LGBMClassifier(**FEW, verbose=-1), own)
    with pytest.raises(TwinError, match="do more than set pandas' types"):
        convert(model, schema)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (LGBMRegressor(n_estimators=2, linear_tree=True, verbose=-1), "linear trees"),
        (XGBRegressor(n_estimators=2, booster="gblinear"), "booster 'gblinear'"),
        (XGBRegressor(n_estimators=2, missing=-999.0), "numbers that are taken for null"),
    ],
)
def test_what_no_tree_of_tests_and_leaves_can_tell_is_named(model, why):
    draw = np.random.default_rng(0)
    x = draw.normal(size=(300, 2))
    with pytest.raises(TwinError, match=why):
        forest(model.fit(x, x[:, 0] + x[:, 1]))


def test_classes_come_in_the_order_of_the_schema():
    frame = rows("multiclass")
    frame["target"] = frame["target"].map({0: "zebra", 1: "ant", 2: "cow"}).astype("str")
    model, schema = fitted("multiclass", Trees(max_iter=3), ordinal(), frame)
    given_ = Session(convert(model, schema)).output(columns(schema, frame[:9]))
    wanted = Scorer(model, schema).output(tables(schema, frame[:9]))
    assert schema.target.classes == ("ant", "cow", "zebra")
    np.testing.assert_allclose(given_, wanted, rtol=1e-12)


def test_levels_that_the_schema_does_not_list_are_those_of_the_encoder():
    frame = rows(size=1500)
    frame["city"] = [f"c{place % 300}" for place in range(1500)]
    model, schema = fitted("binary", Trees(max_iter=5, categorical_features=[1]), ordinal(), frame)
    assert schema.by_name["city"].other
    given_ = Session(convert(model, schema)).output(columns(schema, frame))
    wanted = Scorer(model, schema).output(tables(schema, frame))
    np.testing.assert_allclose(given_, wanted, rtol=1e-12)


@pytest.mark.parametrize("kind", ["lightgbm types", "xgboost types"])
def test_levels_that_the_schema_does_not_list_are_those_of_the_model(kind):
    frame = rows()
    _, model, before = MODELS[kind]
    model, schema = fitted("binary", model, before(), frame)
    without = tuple(replace(feature, levels=()) for feature in schema.features)
    session = Session(convert(model, replace(schema, features=without)))
    wanted = Scorer(model, schema).output(tables(schema, frame))
    np.testing.assert_allclose(session.output(columns(schema, frame)), wanted, rtol=1e-6)


def test_a_model_that_is_one_leaf_answers_that_leaf():
    model, schema = fitted("binary", Trees(max_iter=2, min_samples_leaf=900))
    given_ = Session(convert(model, schema)).output(columns(schema, rows(size=3)))
    assert given_ == pytest.approx([rows()["target"].mean()] * 3)


def test_values_too_large_for_scikit_learns_trees_are_refused_by_the_twin_too():
    model, schema = fitted("binary", RandomForestClassifier(**FEW))
    given_ = Session(convert(model, schema)).output([[1e300], [1.0], [True], ["c1"], ["a"]])
    assert np.isnan(given_).all()


def test_a_step_of_ones_own_over_categories_is_no_graph():
    frame, own = rows(), FunctionTransformer(lambda x: x.map(len).to_frame())
    columns_ = make_column_transformer((own, "car"), remainder="drop")
    model, schema = fitted("binary", LogisticRegression(), columns_, frame)
    with pytest.raises(TwinError, match="FunctionTransformer takes categories in a way"):
        convert(model, schema)


def test_what_is_no_tree_is_named():
    with pytest.raises(TwinError, match="LogisticRegression is no model of trees"):
        forest(LogisticRegression())
    with pytest.raises(TwinError, match="binary:hinge"):
        forest(XGBClassifier(n_estimators=1, objective="binary:hinge").fit([[0], [1]], [0, 1]))
