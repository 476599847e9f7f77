"""The proof: a twin that differs anywhere is refused, with the reason, and never an exception."""

from __future__ import annotations

import pickle

import numpy as np
import onnx
import pyarrow as pa
import pytest
from onnx import numpy_helper
from serving_fixtures import parquet
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier as Trees
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from homeostat import twin
from homeostat.convert import convert
from homeostat.errors import TwinError
from homeostat.infer import infer
from homeostat.scoring import Scorer
from homeostat.session import Session
from homeostat.testing import drifting_stream
from homeostat.twin import make, prove


def prepared(model=None, rows=600):
    frame = drifting_stream(rows, seed=1).drop(columns="occurred_at")
    schema = infer(frame, target="target")
    columns = {n: [None if v != v else v for v in frame[n].tolist()] for n in schema.names}
    table = schema.table(columns)
    model = model or boosted()
    return model.fit(schema.frame(table), frame["target"]), schema, table


def boosted():
    encode = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    columns = make_column_transformer(
        (StandardScaler(), ["amount", "gap", "member"]), (encode, ["city"])
    )
    return make_pipeline(columns, Trees(max_iter=15, random_state=0))


def made(model, schema, table):
    golden = parquet(table.slice(0, 20))
    return make(pickle.dumps(model), schema.to_json().encode(), golden, table)


def altered(content, change):
    """The graph with `change` applied to the attributes of its trees."""
    graph = onnx.load_from_string(content)
    trees = next(node for node in graph.graph.node if node.op_type == "TreeEnsemble")
    change({attribute.name: attribute for attribute in trees.attribute})
    return graph.SerializeToString()


def rewrite(name, function):
    def change(attributes):
        held = attributes[name].t
        held.CopyFrom(numpy_helper.from_array(function(numpy_helper.to_array(held)), held.name))

    return change


@pytest.fixture(scope="module")
def proved():
    model, schema, table = prepared()
    return Scorer(model, schema), convert(model, schema), table


def test_a_twin_that_is_equal_at_every_split_is_kept_with_what_was_compared():
    found = made(*prepared())
    assert found.told["engine"] == "onnx"
    assert found.told["why"] is None
    assert found.told["rows"] == 600
    assert found.told["splits_tried"] > 100
    assert found.told["probes"] > 4 * found.told["splits_tried"]
    assert found.told["rows_share"] == found.told["probes_share"] == 0
    assert found.told["probes_worst"] < 1e-12
    assert found.told["opsets"] == {"ai.onnx": 21, "ai.onnx.ml": 5}
    assert set(found.told["versions"]) == {"onnx", "onnxruntime", "skl2onnx"}
    assert made(*prepared()) == found


def test_thresholds_rounded_to_32_bits_are_refused(proved):
    scorer, content, table = proved

    def rounded(splits):
        return splits.astype(np.float32).astype(float)

    wrong = Session(altered(content, rewrite("nodes_splits", rounded)))
    with pytest.raises(TwinError, match=r"other labels|differs from the model by more than"):
        prove(scorer, wrong, table, table.slice(0, 20))


def test_a_split_moved_by_one_float_is_refused(proved):
    scorer, content, table = proved

    def moved(splits):
        return np.nextafter(splits, np.inf)

    wrong = Session(altered(content, rewrite("nodes_splits", moved)))
    with pytest.raises(TwinError, match=r"other labels|differs from the model by more than"):
        prove(scorer, wrong, table, table.slice(0, 20))


def test_nulls_that_go_to_the_other_side_are_refused(proved):
    scorer, content, table = proved

    def turned(attributes):
        ints = attributes["nodes_missing_value_tracks_true"].ints
        ints[:] = [1 - value for value in ints]

    # Even if no row that was given has a null.
    full = table.filter(pa.compute.is_valid(table.column("gap")))
    with pytest.raises(TwinError, match=r"differs|other labels"):
        prove(scorer, Session(altered(content, turned)), full, full.slice(0, 20))


def test_another_leaf_is_refused_on_the_rows_themselves(proved):
    scorer, content, table = proved
    wrong = Session(altered(content, rewrite("leaf_weights", lambda leaves: leaves * 1.01)))
    with pytest.raises(TwinError, match=r"on rows than the model|of 600 rows"):
        prove(scorer, wrong, table, table.slice(0, 20))


def test_a_difference_that_is_rare_is_stated_and_a_golden_row_allows_none(proved, monkeypatch):
    scorer, content, table = proved
    moved = rewrite("leaf_weights", lambda leaves: leaves * 1.00005)
    wrong = Session(altered(content, moved))
    monkeypatch.setattr(twin, "SHARE", 1.0)
    few = table.slice(0, 0)
    told = prove(scorer, wrong, table, few)
    assert 0 < told["rows_share"] <= 1
    assert 1e-6 < told["rows_worst"] < 1e-3
    with pytest.raises(TwinError, match="golden rows"):
        prove(scorer, wrong, table, table.slice(0, 20))


def test_a_twin_that_answers_what_the_model_refuses_is_refused(proved):
    scorer, content, table = proved

    class Shy:
        def __init__(self, estimator):
            self.estimator, self.classes_ = estimator, estimator.classes_

        def predict_proba(self, frame):
            if frame["amount"].abs().max() > 1e290:
                raise ValueError("too large")
            return self.estimator.predict_proba(frame)

    shy = Scorer(Shy(scorer.estimator), scorer.schema)
    with pytest.raises(TwinError, match="refuses other probes than the model"):
        prove(shy, Session(content), table, table.slice(0, 20))


class Halved(LogisticRegression):
    """A class of one's own that differs from the one that it extends."""

    def predict_proba(self, X):  # noqa: N803 - scikit-learn's protocol
        return (super().predict_proba(X) + 0.5) / 2


def test_a_model_that_cannot_become_a_graph_serves_itself_and_the_reason_is_told():
    model = boosted()
    model.steps[-1] = ("last", Halved())
    model.steps.insert(1, ("filled", StandardScaler()))
    frame_model, schema, table = prepared_without_nulls(model)
    found = made(frame_model, schema, table)
    assert found.content is None
    assert found.told["engine"] == "native"
    assert found.told["why"] == "skl2onnx knows no ONNX graph for Halved."


def prepared_without_nulls(model):
    frame = drifting_stream(300, seed=2).drop(columns="occurred_at").fillna({"gap": 0.0})
    schema = infer(frame, target="target")
    columns = {n: [None if v != v else v for v in frame[n].tolist()] for n in schema.names}
    table = schema.table(columns)
    return model.fit(schema.frame(table), frame["target"]), schema, table


def test_no_rows_prove_nothing():
    model, schema, table = prepared()
    found = made(model, schema, table.slice(0, 0))
    assert (found.content, found.told["engine"]) == (None, "native")
    assert "golden" not in found.told["why"]


def test_bytes_that_are_no_model_are_a_reason_too():
    _, schema, table = prepared()
    found = make(b"no pickle", schema.to_json().encode(), parquet(table), table)
    assert found.content is None
    assert found.told["why"].startswith("UnpicklingError")
