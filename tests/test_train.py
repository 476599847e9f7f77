import io
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeostat.engines import LocalEngine
from homeostat.errors import EngineError, SchemaError, TrainingError
from homeostat.fit import LOG, training_frame
from homeostat.profile import Profile
from homeostat.records import Task
from homeostat.rowhash import frame_hash, row_ids
from homeostat.schema import Schema
from homeostat.script import table_of
from homeostat.settings import Project, Training
from homeostat.train import ScriptTrainer

NOW = datetime(2024, 1, 1, tzinfo=UTC)
HEAD = """
import numpy as np, pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingClassifier as Trees
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder
"""
LOAD = """
def load():
    return pd.read_parquet("rows.parquet")
"""
GOOD = """
class Shortened:
    def fit(self, X, y=None):
        return self
    def transform(self, X):
        return X[["carrier"]].fillna("none").map(lambda text: text[:1])
    def get_params(self, deep=True):
        return {}

def fit(frame):
    print("fitting", len(frame))
    target = frame.pop("late")
    encode = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    columns = make_column_transformer(
        (make_pipeline(Shortened(), encode), ["carrier"]), remainder="passthrough"
    )
    return make_pipeline(columns, Trees(max_iter=3, max_leaf_nodes=5)).fit(frame, target)
"""


def flights(rows=400, seed=0):
    draw = np.random.default_rng(seed)
    distance = draw.normal(1000, 300, size=rows)
    return pd.DataFrame(
        {
            "distance": np.where(draw.random(rows) < 0.1, np.nan, distance),
            "carrier": draw.choice(["UA", "AA", None], size=rows, p=[0.5, 0.4, 0.1]),
            "weekend": draw.random(rows) < 0.3,
            "late": draw.random(rows) < 1 / (1 + np.exp(-(distance - 1000) / 100)),
            "at": pd.Timestamp("2023-01-01", tz="UTC") + pd.to_timedelta(np.arange(rows), "h"),
        }
    )


PROJECT = Project(target="late", time="at")
TRAINING = Training()


@pytest.fixture(scope="module")
def engine():
    with LocalEngine(timeout=timedelta(seconds=30), memory=8192) as engine:
        yield engine


@pytest.fixture
def trainer(engine, tmp_path):
    def make(code, frame=None, project=PROJECT, training=TRAINING):
        file = tmp_path / "src/training/train.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(HEAD + textwrap.dedent(code))
        (flights() if frame is None else frame).to_parquet(tmp_path / "rows.parquet")
        return ScriptTrainer(engine, script=file, project=project, training=training)

    return make


def prepared(trainer):
    loaded = trainer.load()
    schema = trainer.schema_of(loaded)
    return trainer.rows_of(loaded, schema, NOW), schema


def fitted(trainer):
    rows, schema = prepared(trainer)
    return trainer.fit(rows, schema, cutoff=NOW, as_of=NOW, parent=None)


# --- load ---


def test_load_gives_the_journals_rows_with_their_labels(trainer):
    frame = flights()
    frame["late"] = frame["late"].astype("boolean")
    frame.loc[3, "late"] = None
    made = trainer(LOAD, frame)
    rows, schema = prepared(made)
    assert rows.schema.names == [*schema.journal.names, "label", "labelled_at"]
    assert rows.select(schema.journal.names).schema == schema.journal
    assert set(rows.column("source").to_pylist()) == {"load"}
    assert rows.column("label").to_pylist()[:4] == [
        *(str(value).lower() for value in frame.late[:3]),
        None,
    ]
    assert rows.column("labelled_at")[3].as_py() is None
    assert rows.column("labelled_at")[2] == rows.column("occurred_at")[2]
    assert rows.column("prediction").null_count == len(frame)


def test_ids_are_the_same_again_and_do_not_depend_on_order_or_on_the_label(trainer):
    frame = flights()
    first = trainer(LOAD, frame).load()
    shuffled = frame.sample(frac=1, random_state=1)
    shuffled["late"] = ~shuffled["late"]
    second = trainer(LOAD, shuffled).load()
    by_time, again = (
        {row["occurred_at"]: row["prediction_id"] for row in table.to_pylist()}
        for table in (first, second)
    )
    assert by_time == again
    assert len(set(by_time.values())) == len(frame)
    assert all(name.startswith("load-") and len(name) == 37 for name in by_time.values())


def test_rows_of_the_same_content_stay_distinct():
    frame = pd.concat([flights(20)] * 3, ignore_index=True)
    frame["late"] = [value % 3 == 0 for value in range(60)]
    one = table_of(frame, PROJECT)
    other = table_of(frame.iloc[::-1], PROJECT)
    ids = one.column("prediction_id").to_pylist()
    assert len(set(ids)) == 60
    pairs = [
        sorted((row["prediction_id"], row["late"]) for row in table.to_pylist())
        for table in (one, other)
    ]
    assert pairs[0] == pairs[1]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.one_of(st.none(), st.floats(allow_nan=False)),
            st.one_of(st.none(), st.text(alphabet="a,\n\x00é", max_size=3)),
        ),
        min_size=1,
        max_size=20,
        unique_by=lambda row: (row[0] if row[0] != 0 else 0.0, row[1]),
    )
)
def test_different_content_has_different_ids_and_chunks_do_not_matter(rows):
    table = pa.table(
        {
            "number": pa.array([row[0] for row in rows], pa.float64()),
            "text": pa.array([row[1] for row in rows], pa.string()),
        }
    )
    label = pa.chunked_array([pa.nulls(len(rows), pa.string())])
    ids = row_ids(table, label)
    assert len(set(ids)) == len(rows)
    parts = pa.concat_tables([table.slice(0, 1), table.slice(1)]).select(["text", "number"])
    assert row_ids(parts, label) == ids


def test_local_times_are_read_in_the_projects_zone():
    frame = flights(3)
    frame["at"] = pd.to_datetime(["2023-03-26 02:30", "2023-10-29 02:30", "2023-07-01 12:00"])
    with pytest.raises(SchemaError, match=r"'at' have no time zone.*project\.timezone"):
        table_of(frame, PROJECT)
    berlin = Project(target="late", time="at", timezone="Europe/Berlin")
    assert table_of(frame, berlin).column("occurred_at").to_pylist() == [
        datetime(2023, 3, 26, 1, tzinfo=UTC),  # never occurred: the first moment after the gap
        datetime(2023, 10, 29, 0, 30, tzinfo=UTC),  # occurred twice: the first of the two
        datetime(2023, 7, 1, 10, tzinfo=UTC),
    ]


def test_times_as_text_are_read_and_nonsense_is_refused():
    frame = flights(2)
    frame["at"] = ["2023-01-01T00:00:00Z", "2023-01-01T01:00:00+01:00"]
    assert (
        table_of(frame, PROJECT).column("occurred_at").to_pylist()
        == [datetime(2023, 1, 1, tzinfo=UTC)] * 2
    )
    for values in (["yesterday", "today"], [1, 2], ["2023-01-01T00:00Z", "2023-01-01T00:00"]):
        frame["at"] = values
        with pytest.raises(SchemaError, match="'at'"):
            table_of(frame, PROJECT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="late"), r"no column 'late', which project\.target names"),
        (lambda f: f.drop(columns="at"), r"no column 'at', which project\.time names"),
        (lambda f: f.iloc[:0], "no rows"),
        (lambda f: f.assign(at=f["at"].where(f.index > 1)), "2 rows .* have no time"),
        (lambda f: f.assign(distance=np.inf), "20 values of 'distance' are infinite"),
        (lambda f: f.assign(source="web"), "'source' .* the journal needs"),
        (lambda f: f.assign(mixed=[1, "a"] * 10), "'mixed' .* mixes types"),
        (lambda f: f.assign(prediction_id="x"), "19 rows .* repeat"),
        (lambda f: f.assign(prediction_id=None), "prediction_id .* missing"),
        (lambda f: pd.concat([f, f[["distance"]]], axis=1), "the same name"),
    ],
)
def test_a_frame_that_cannot_be_used_is_refused_with_the_reason(change, message):
    with pytest.raises(SchemaError, match=message):
        table_of(change(flights(20)), PROJECT)


def test_given_ids_and_label_times_are_kept_and_excluded_columns_are_not():
    frame = flights(3).assign(
        prediction_id=[1, 2, 3], labelled_at=pd.Timestamp("2023-02-01", tz="UTC"), source="x"
    )
    table = table_of(frame, Project(target="late", time="at", exclude=("source",)))
    assert table.column("prediction_id").to_pylist() == ["1", "2", "3"]
    assert table.column("labelled_at")[0].as_py() == datetime(2023, 2, 1, tzinfo=UTC)
    assert "source" not in table.column_names


def test_without_a_script_or_a_load_there_is_nothing_to_load(trainer, tmp_path):
    made = trainer("")
    assert made.load() is None
    (tmp_path / "src/training/train.py").unlink()
    assert made.load() is None


def test_a_load_that_raises_or_returns_no_frame_says_so(trainer):
    with pytest.raises(TrainingError, match=r"load\(\) raised KeyError: 'gone'(.|\n)*in load"):
        trainer("def load():\n    return {}['gone']").load()
    with pytest.raises(TrainingError, match=r"load\(\) returned list, not a pandas DataFrame"):
        trainer("def load():\n    return []").load()
    with pytest.raises(TrainingError, match=r"train\.py raised SyntaxError"):
        trainer("def load(:").load()


def test_an_edited_script_and_its_neighbours_are_read_anew(trainer, tmp_path):
    code = "from shared import make\nload = make"
    made = trainer(code)
    neighbour = tmp_path / "src/training/shared.py"
    for rows in (3, 42):
        neighbour.write_text(
            f"import pandas as pd\ndef make(): return pd.read_parquet('rows.parquet')[:{rows}]"
        )
        os.utime(neighbour, (rows, rows))
        assert made.load().num_rows == rows


# --- fit ---


def test_a_candidate_answers_in_a_process_that_never_saw_the_script(trainer, tmp_path):
    candidate = fitted(trainer(LOAD + GOOD))
    for name in ("model", "schema", "golden"):
        (tmp_path / name).write_bytes(candidate.objects[name])
    (tmp_path / "src/training/train.py").unlink()
    code = """
        import pickle, pathlib, pyarrow.parquet as pq
        from homeostat.schema import Schema
        from homeostat.scoring import Scorer
        schema = Schema.from_json(pathlib.Path("schema").read_text())
        golden = pq.read_table("golden")
        scores = Scorer(pickle.loads(pathlib.Path("model").read_bytes()), schema).score(golden)
        assert scores == golden.select(scores.column_names)
        assert golden.num_rows == 20
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, check=True)


def test_a_candidate_carries_what_its_release_needs(trainer):
    made = trainer(LOAD + GOOD)
    rows, schema = prepared(made)
    candidate = made.fit(rows, schema, cutoff=NOW, as_of=NOW, parent="abc")
    assert (candidate.kind, candidate.parent) == ("retrain", "abc")
    assert candidate.training.rows == 400
    assert candidate.training.start == datetime(2023, 1, 1, tzinfo=UTC)
    assert candidate.training.sha256 == frame_hash(rows, schema)
    assert candidate.log == "fitting 400\n"
    assert candidate.params["estimator"] == "Pipeline"
    assert candidate.params["histgradientboostingclassifier__max_iter"] == "3"
    assert {"python", "numpy", "pandas", "scikit-learn"} <= set(candidate.versions)
    reference = Profile.from_bytes(candidate.objects["reference"])
    assert reference.rows == 400
    assert reference.column("prediction")[1].sum() == 400
    sample = pq.read_table(io.BytesIO(candidate.objects["reference_sample"]))
    assert sample.column_names == [
        *schema.names,
        "prediction",
        "probability",
        "probabilities",
        "label",
    ]
    assert sample.num_rows == 400


def test_the_same_rows_give_the_same_bits_in_whatever_order_they_come(trainer):
    made = trainer(LOAD + GOOD.replace("Shortened()", "'passthrough'"))
    rows, schema = prepared(made)
    order = np.random.default_rng(1).permutation(rows.num_rows)
    one = made.fit(rows, schema, cutoff=NOW, as_of=NOW, parent=None)
    other = made.fit(rows.take(order), schema, cutoff=NOW, as_of=NOW, parent=None)
    assert one.objects == other.objects
    assert one.training == other.training


def test_the_frame_hash_sees_every_cell_and_no_chunks(trainer):
    rows, schema = prepared(trainer(LOAD))
    plain = frame_hash(rows, schema)
    assert frame_hash(pa.concat_tables([rows.slice(100), rows.slice(0, 100)]), schema) == plain
    for name, value in [("distance", 1.0), ("carrier", "ZZ"), ("label", "true")]:
        place = rows.schema.get_field_index(name)
        values = rows.column(name).to_pylist()
        values[5] = value if values[5] != value else "false"
        changed = rows.set_column(place, name, pa.array(values, rows.schema.field(name).type))
        assert frame_hash(changed, schema) != plain


def test_the_users_fit_sees_features_and_target_in_their_own_types(trainer):
    rows, schema = prepared(trainer(LOAD))
    frame = training_frame(rows, schema)
    assert list(frame.columns) == ["distance", "carrier", "weekend", "late"]
    assert frame.dtypes.astype(str).to_dict() == {
        "distance": "float64",
        "carrier": "str",
        "weekend": "float64",
        "late": "bool",
    }
    assert frame["late"].tolist() == flights()["late"].tolist()


def test_features_in_which_the_model_takes_no_null_are_found(trainer):
    frame = flights().assign(distance=1.0, weekend=True, carrier="UA")
    code = """
        def fit(frame):
            target = frame.pop("late")
            encode = OneHotEncoder(handle_unknown="ignore")
            columns = make_column_transformer((encode, ["carrier"]), remainder="passthrough")
            return make_pipeline(columns, LogisticRegression()).fit(frame, target)
    """
    schema = Schema.from_json(
        fitted(trainer(LOAD + textwrap.dedent(code), frame)).objects["schema"]
    )
    assert {f.name: f.nullable for f in schema.features} == {
        "distance": False,
        "carrier": True,
        "weekend": False,
    }


def test_a_model_that_fails_on_an_unseen_level_is_refused_with_the_remedy(trainer):
    code = """
        def fit(frame):
            target = frame.pop("late")
            columns = make_column_transformer((OneHotEncoder(), ["carrier"]))
            return make_pipeline(columns, LogisticRegression()).fit(frame, target)
    """
    with pytest.raises(TrainingError, match=r"level of 'carrier'.*handle_unknown='ignore'"):
        fitted(trainer(LOAD + textwrap.dedent(code)))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise RuntimeError('no luck')", r"fit\(\) raised RuntimeError: no luck(.|\n)*in fit"),
        ("pass", r"fit\(\) returned NoneType, which has no predict"),
        ("return LinearRegression()", "LinearRegression, which has no predict_proba"),
        ("return Trees()", "cannot score its own training rows: NotFittedError"),
        ("raise SystemExit(1)", r"fit\(\) raised SystemExit: 1"),
        (
            "m = Trees().fit(frame[['distance']], frame['late']); m.x = (i for i in []); return m",
            "cannot be pickled",
        ),
    ],
)
def test_a_script_that_yields_no_estimator_says_why(trainer, body, message):
    with pytest.raises(TrainingError, match=message):
        fitted(trainer(LOAD + f"\ndef fit(frame):\n    {body}\n"))


def test_a_script_without_fit_says_so(trainer):
    with pytest.raises(TrainingError, match=r"no function fit\(\)"):
        fitted(trainer(LOAD))


def test_a_fit_that_hangs_is_ended(trainer, tmp_path):
    made = trainer(LOAD + "\ndef fit(frame):\n    import time; time.sleep(60)\n")
    rows, schema = prepared(made)
    with LocalEngine(timeout=timedelta(seconds=3), memory=None) as short:
        hasty = ScriptTrainer(
            short,
            script=tmp_path / "src/training/train.py",
            project=PROJECT,
            training=Training(),
        )
        with pytest.raises(EngineError, match=r"fit took longer than 3 s.*training\.timeout"):
            hasty.fit(rows, schema, cutoff=NOW, as_of=NOW, parent=None)


def test_rows_that_cannot_train_are_refused_before_a_child_runs(trainer):
    made = trainer(LOAD)
    rows, schema = prepared(made)

    def fit(rows, cutoff=NOW):
        return made.fit(rows, schema, cutoff=cutoff, as_of=NOW, parent=None)

    with pytest.raises(TrainingError, match=r"50 labelled rows are too few.*training\.min_rows"):
        fit(rows.slice(0, 50))
    late = pa.compute.equal(rows.column("label"), "true")
    with pytest.raises(TrainingError, match=r"all .* rows have the same 'late'"):
        fit(pa.concat_tables([rows.filter(late)] * 3))
    with pytest.raises(TrainingError, match="not older than the cut-off"):
        fit(rows, cutoff=datetime(2023, 1, 5, tzinfo=UTC))


def test_only_the_end_of_a_talkative_fit_is_kept(trainer):
    code = GOOD.replace('print("fitting", len(frame))', "print('x' * 50_000); print('end')")
    log = fitted(trainer(LOAD + code)).log
    assert len(log) == LOG
    assert log.endswith("x\nend\n")


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_other_tasks_fit_and_score(trainer, task: Task):
    frame = flights()
    values = (frame["distance"].fillna(1000) // 300).clip(1, 4).astype(int)
    frame["late"] = values.map("class {}".format) if task == "multiclass" else values * 1.5
    model = "Trees" if task == "multiclass" else "Numbers"
    code = f"""
        from sklearn.ensemble import HistGradientBoostingRegressor as Numbers
        def fit(frame):
            target = frame.pop("late")
            columns = make_column_transformer(("passthrough", ["distance"]))
            return make_pipeline(columns, {model}(max_iter=3)).fit(frame, target)
    """
    made = trainer(LOAD + textwrap.dedent(code), frame)
    candidate = fitted(made)
    schema = Schema.from_json(candidate.objects["schema"])
    assert schema.target.task == task
    golden = pq.read_table(io.BytesIO(candidate.objects["golden"]))
    scores = made.score(candidate.objects["model"], golden, schema)
    assert scores == golden.select(scores.column_names)
    assert Profile.from_bytes(candidate.objects["reference"]).column("prediction")[1].sum() == 400


def test_the_script_runs_in_the_projects_folder_and_not_as_main(trainer, tmp_path):
    code = """
        from pathlib import Path
        Path("here").write_text(__name__)
        if __name__ == "__main__":
            raise SystemExit("ran as main")
    """
    trainer(textwrap.dedent(code) + LOAD).load()
    assert Path(tmp_path / "here").read_text().startswith("homeostat_script_")


# --- twins ---


FAST = """
def fit(frame):
    target = frame.pop("late")
    levels = OrdinalEncoder(
        handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-1
    )
    columns = make_column_transformer((levels, ["carrier"]), remainder="passthrough")
    trees = Trees(max_iter=5, categorical_features=[0], early_stopping=False)
    return make_pipeline(columns, trees).fit(frame, target)
"""


def test_a_candidate_gets_a_twin_that_proved_equal_and_keeps_its_model(trainer):
    made = trainer(LOAD + FAST)
    rows, _ = prepared(made)
    candidate = fitted(made)
    with_twin = made.with_twin(candidate, rows)
    assert with_twin.twin["why"] is None
    assert set(with_twin.objects) == {*candidate.objects, "twin"}
    assert {n: with_twin.objects[n] for n in candidate.objects} == candidate.objects
    assert with_twin.twin["engine"] == "onnx"
    assert with_twin.twin["rows"] == rows.num_rows
    assert made.with_twin(candidate, rows) == with_twin


TYPED = """
def typed(frame):
    return frame.astype({"carrier": "category"})


def fit(frame):
    from lightgbm import LGBMClassifier
    from sklearn.preprocessing import FunctionTransformer

    target = frame.pop("late")
    trees = LGBMClassifier(n_estimators=5, min_child_samples=5, verbose=-1)
    return make_pipeline(FunctionTransformer(typed), trees).fit(frame, target)
"""


def test_a_script_that_gives_lightgbm_categories_of_pandas_gets_a_twin(trainer):
    made = trainer(LOAD + TYPED)
    rows, _ = prepared(made)
    assert made.with_twin(fitted(made), rows).twin["why"] is None


def test_a_candidate_with_a_calibrator_is_proved_with_it(trainer):
    made = trainer(LOAD + FAST)
    rows, _ = prepared(made)
    candidate = fitted(made)
    unread = replace(candidate, objects={**candidate.objects, "calibrator": b'{"format": 2}'})
    assert made.with_twin(unread, rows).twin["why"] == "the calibrator has format 2, not 1."


def test_a_script_with_transformers_of_its_own_is_released_without_a_twin_and_says_why(trainer):
    made = trainer(LOAD + GOOD)
    rows, _ = prepared(made)
    candidate = fitted(made)
    without = made.with_twin(candidate, rows)
    assert without.objects == candidate.objects
    assert without.twin["engine"] == "native"
    assert without.twin["why"] == "Shortened takes categories in a way that is not understood."


def test_a_child_that_dies_over_a_twin_does_not_fail_the_release(trainer):
    class Dead(LocalEngine):
        def run(self, *args, **kwargs):
            return super().run(os._exit, 9)

    made = trainer(LOAD + FAST)
    rows, _ = prepared(made)
    candidate = fitted(made)
    with Dead(timeout=timedelta(seconds=30), memory=8192) as engine:
        made._engine = engine
        without = made.with_twin(candidate, rows)
    assert without.objects == candidate.objects
    assert without.twin["engine"] == "native"
    assert without.twin["why"]
