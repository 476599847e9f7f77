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
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from homeostat.blend import Blend
from homeostat.convert import convert
from homeostat.errors import TwinError
from homeostat.infer import infer
from homeostat.scoring import Calibrator, Scorer
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


def altered(content, change, place=0):
    """The graph with `change` applied to the attributes of its trees, of one model of several."""
    graph = onnx.load_from_string(content)
    trees = [node for node in graph.graph.node if node.op_type == "TreeEnsemble"][place]
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
    assert found.told["rows_share"] == 0
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


@pytest.mark.parametrize("place", range(3))
def test_a_split_of_any_member_of_a_blend_is_tried(place):
    parts = [prepared(rows=rows) for rows in (300, 450, 600)]
    (_, schema, table), blend = (
        parts[-1],
        Blend(tuple(pickle.dumps(model) for model, *_ in parts), "binary"),
    )
    scorer, content = Scorer(blend, schema), convert(blend, schema)
    with np.errstate(over="ignore"):  # of what is scaled
        told = prove(scorer, Session(content), table, table.slice(0, 20))
        each = [
            prove(Scorer(model, schema), Session(convert(model, schema)), table, table)
            for model, *_ in parts
        ]
    assert told["splits_tried"] == sum(one["splits_tried"] for one in each)

    def moved(splits):
        return np.nextafter(splits, np.inf)

    wrong = Session(altered(content, rewrite("nodes_splits", moved), place))
    with (
        np.errstate(over="ignore"),
        pytest.raises(TwinError, match=r"other labels|differs from the model by more than"),
    ):
        prove(scorer, wrong, table, table.slice(0, 20))


def test_a_blend_with_a_member_that_cannot_become_a_graph_serves_itself_and_says_why():
    own = boosted()
    own.steps[-1] = ("last", Halved())
    own.steps.insert(1, ("filled", StandardScaler()))
    parts = [prepared_without_nulls(model) for model in (boosted(), own)]
    blend = Blend(tuple(pickle.dumps(model) for model, *_ in parts), "binary")
    found = made(blend, *parts[0][1:])
    assert (found.content, found.told["engine"]) == (None, "native")
    assert found.told["why"] == "skl2onnx knows no ONNX graph for Halved."


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


class Off:
    """A session whose output is off by `by` in the rows of which `where` says so."""

    def __init__(self, content, where, by):
        self._session, self._where, self._by = Session(content), where, by
        self.levels = self._session.levels

    def output(self, columns):
        found = self._session.output(columns)
        return found + np.where(self._where(columns), self._by, 0.0)


def at(place, values):
    return lambda columns: np.isin(np.array(columns[place], dtype=object), values)


def pairs_of(table):
    return list(zip(*(table.column(n).to_pylist() for n in ("amount", "gap")), strict=True))


def test_a_difference_in_one_row_of_a_thousand_is_stated_and_in_more_it_is_refused(proved):
    scorer, content, _ = proved
    _, _, table = prepared(rows=2_000)
    amount, gap = (scorer.schema.names.index(name) for name in ("amount", "gap"))

    def off(rows):
        known = set(pairs_of(table)[100 : 100 + rows])
        return Off(
            content,
            lambda columns: [
                len(columns[0]) == 2_000 and pair in known
                for pair in zip(columns[amount], columns[gap], strict=True)
            ],
            2e-6,
        )

    told = prove(scorer, off(2), table, table.slice(0, 20))
    assert (told["rows"], told["rows_share"]) == (2_000, 0.001)
    assert told["rows_worst"] == pytest.approx(2e-6)
    with pytest.raises(TwinError, match=r"on 0\.15% of 2000 rows, by 2e-06 at worst"):
        prove(scorer, off(3), table, table.slice(0, 20))
    with pytest.raises(TwinError, match="on golden rows"):
        prove(scorer, Off(content, lambda c: len(c[0]) == 20, 2e-6), table, table.slice(0, 20))


@pytest.mark.parametrize(
    ("name", "values", "told"),
    [
        ("city", ["Oslo"], r"levels of 'city'"),
        ("city", [None], r"nulls of 'city'"),
        ("amount", [1e16], r"extremes of 'amount'"),
        ("gap", [None], r"nulls of 'gap'"),
        ("member", [True], r"truth values of 'member'"),
        ("member", [False], r"truth values of 'member'"),
    ],
)
def test_a_fault_of_one_value_is_refused_though_no_given_row_has_it(proved, name, values, told):
    scorer, content, table = proved
    place = scorer.schema.names.index(name)
    has = pa.array(at(place, values)([column.to_pylist() for column in table.columns]))
    clean = table.filter(pa.compute.invert(has))
    others = tuple(n for n in ("gap", "city", "member") if n != name)
    narrow = Scorer(scorer.estimator, scorer.schema.without_nulls_in(others))
    with pytest.raises(TwinError, match=f"on {told}"):
        prove(narrow, Off(content, at(place, values), 2e-6), clean, clean.slice(0, 20))


def test_a_fault_at_one_threshold_is_refused_and_the_feature_named(proved):
    scorer, content, table = proved
    rare = np.sort(np.array(table.column("amount").to_pylist()))[[-1]]
    place = scorer.schema.names.index("amount")
    edge = scorer.schema.by_name["amount"].edges[-2]
    wrong = Off(content, at(place, [np.nextafter(edge, np.inf)]), 2e-6)
    assert edge < rare[0]
    with pytest.raises(TwinError, match="on thresholds of 'amount', by 2e-06"):
        prove(scorer, wrong, table, table.slice(0, 20))


def test_a_faulty_entry_in_the_table_of_a_rare_level_is_refused():
    frame = drifting_stream(3_000, seed=1).drop(columns="occurred_at")
    frame.loc[[50, 60, 70], "city"] = "Narvik"
    frame.loc[frame["city"] == "Narvik", "target"] = 1
    schema = infer(frame, target="target")
    columns = {n: [None if v != v else v for v in frame[n].tolist()] for n in schema.names}
    table = schema.table(columns)
    encode = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    before = make_column_transformer((numbers, ["amount", "gap", "member"]), (encode, ["city"]))
    model = make_pipeline(before, LogisticRegression(C=100))
    model.fit(schema.frame(table), frame["target"])
    graph = onnx.load_from_string(convert(model, schema))
    known = [*schema.by_name["city"].levels]
    (held,) = [c for c in graph.graph.initializer if c.dims[:1] == [len(known) + 2]]
    entries = numpy_helper.to_array(held).copy()
    entries[known.index("Narvik")] = 0.0  # as for a level that was never seen
    held.CopyFrom(numpy_helper.from_array(entries, held.name))
    fresh = table.filter(pa.compute.not_equal(table.column("city"), "Narvik").fill_null(True))
    assert prove(Scorer(model, schema), Session(convert(model, schema)), fresh, fresh.slice(0, 20))
    wrong = Session(graph.SerializeToString())
    with pytest.raises(TwinError, match="on levels of 'city'"):
        prove(Scorer(model, schema), wrong, fresh, fresh.slice(0, 20))


def test_what_a_calibrator_makes_of_the_difference_is_refused_too(proved):
    scorer, content, table = proved
    golden = table.slice(0, 20)
    slight = Off(content, lambda columns: True, 5e-7)
    assert prove(scorer, slight, table, golden)["rows_share"] == 0
    steep = Scorer(scorer.estimator, scorer.schema, Calibrator(40.0, (0.0,)))
    assert prove(steep, Session(content), table, golden)["rows_worst"] < 1e-9
    with pytest.raises(TwinError, match=r"differs from the model by more than 1e-06 on .* rows"):
        prove(steep, slight, table, golden)


def test_a_label_that_differs_after_calibration_only_is_refused(proved):
    scorer, content, table = proved
    usual = np.sort(scorer.output(table))
    middle = usual[len(usual) // 4]  # the calibrator's border lies just above an answer
    shift = -float(np.log(middle + 2e-7) - np.log1p(-middle - 2e-7))
    chosen = Scorer(scorer.estimator, scorer.schema, Calibrator(1.0, (shift,)))
    slight = Off(content, lambda columns: True, 4e-7)
    with pytest.raises(TwinError, match="other labels on rows than the model"):
        prove(chosen, slight, table, table.slice(0, 20))


def test_a_candidate_with_a_calibrator_is_proved_with_it():
    model, schema, table = prepared()
    objects = pickle.dumps(model), schema.to_json().encode(), parquet(table.slice(0, 20)), table
    calm = make(*objects, Calibrator(1.1, (0.2,)).to_json())
    assert calm.told["engine"] == "onnx"
    assert make(*objects, b'{"format": 2}').told["why"] == "the calibrator has format 2, not 1."


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
    with pytest.raises(TwinError, match="refuses other extremes of 'amount' than the model"):
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
