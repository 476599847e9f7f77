"""Adopting: a model fitted elsewhere becomes a release like any other, or nothing is released."""

from __future__ import annotations

import json
import os
import pickle
from datetime import datetime
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
from loop_fixtures import InProcess
from serving_fixtures import ROW, estimator, serving
from sklearn.linear_model import LinearRegression, LogisticRegression

from homeostat import adopt as adoption
from homeostat import build, cli, settings
from homeostat.build import load_project
from homeostat.engines.local import LocalEngine
from homeostat.errors import HomeostatError
from homeostat.records import State
from homeostat.testing import drifting_stream

WORDS = ["--target", "target", "--time", "occurred_at"]


class Marked:
    """Leaves a file where it is unpickled, with the number of the process that did it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return _mark, (str(self.path),)


def _mark(path):
    Path(path).write_text(str(os.getpid()))
    raise RuntimeError("no model")


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Starting a child takes seconds; the tests about it bring their own back."""
    for module in (adoption, build):
        monkeypatch.setattr(module, "LocalEngine", lambda **_: InProcess())


@pytest.fixture
def rows(tmp_path):
    frame = drifting_stream(300)
    frame.to_parquet(tmp_path / "rows.parquet")
    return frame


def saved(tmp_path, model, name="model.pkl"):
    path = tmp_path / name
    joblib.dump(model, path, compress=3) if name.endswith("joblib") else path.write_bytes(
        pickle.dumps(model)
    )
    return path


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "project"
    path.mkdir()
    return path


def fitted(rows, task="binary"):
    features = rows[["gap", "member", "amount", "city"]]  # not in the order of the data
    return estimator(task).fit(features, rows["target"])


def adopt(folder, model, data, **options):
    return adoption.adopt(folder, model, data, **options)


def named(folder, model, data):
    return adopt(folder, model, data, target="target", time="occurred_at")


def refused(folder, model, data, match, **options):
    options = options or {"target": "target", "time": "occurred_at"}
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(HomeostatError, match=match):
        adopt(folder, model, data, **options)
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize("name", ["model.pkl", "model.joblib"])
def test_an_adopted_model_is_a_release_with_reference_and_history(tmp_path, folder, rows, name):
    model = saved(tmp_path, fitted(rows), name)
    project, outcome = named(folder, model, tmp_path / "rows.parquet")
    champion = project.releases.champion()
    assert (outcome.release, outcome.promoted) == (champion.id, True)
    manifest = champion.manifest
    assert (manifest["kind"], manifest["parent"]) == ("adopt", None)
    assert manifest["gate"]["promote"] is False
    assert "unknown" in manifest["gate"]["reason"]
    assert manifest["training"]["rows"] == 300
    assert {"model", "schema", "golden", "reference", "reference_sample"} <= set(
        manifest["objects"]
    )
    history = project.journal.read(labelled=True)
    assert history.num_rows == 300
    assert set(history.column("source").to_pylist()) == {"load"}
    assert [line["kind"] for line in project.audit.lines()] == ["adopted", "promoted"]
    assert project.releases.verify() == 1
    assert (folder / "data" / "processed" / "reference.csv").is_file()
    assert settings.read(folder).project.target == "target"


def test_the_loop_looks_at_an_adopted_model_as_at_any_other(tmp_path, folder, rows):
    project, outcome = named(folder, saved(tmp_path, fitted(rows)), tmp_path / "rows.parquet")
    with project.loop() as loop:
        evidence = loop.monitor()
    assert (evidence.release, evidence.state) == (outcome.release, State.INSUFFICIENT_DATA)
    assert evidence.reference_rows == 300


def test_rows_without_a_label_are_history_but_no_reference(tmp_path, folder, rows):
    unlabelled = rows.astype({"target": "Int64"})
    unlabelled.loc[:49, "target"] = None
    unlabelled.to_parquet(tmp_path / "rows.parquet")
    project, _ = named(folder, saved(tmp_path, fitted(rows)), tmp_path / "rows.parquet")
    assert project.releases.champion().manifest["training"]["rows"] == 250
    assert project.journal.read().num_rows == 300


def test_rows_from_before_the_adoption_never_judge(tmp_path, folder, rows):
    project, _ = named(folder, saved(tmp_path, fitted(rows)), tmp_path / "rows.parquet")
    champion = project.releases.champion()
    assert champion.cutoff > rows["occurred_at"].max()
    assert champion.cutoff == datetime.fromisoformat(champion.manifest["training"]["as_of"])


def test_the_schema_is_the_models_own_in_its_order_and_leaves_other_columns_out(
    tmp_path, folder, rows
):
    rows.assign(note="x").to_csv(tmp_path / "rows.csv", index=False)
    project, _ = named(folder, saved(tmp_path, fitted(rows)), tmp_path / "rows.csv")
    held = project.releases.object(project.releases.champion(), "schema")
    names = [feature["name"] for feature in json.loads(held)["features"]]
    assert names == ["gap", "member", "amount", "city"]


@pytest.mark.filterwarnings("ignore:X has feature names:UserWarning")
def test_a_model_that_was_fitted_on_an_array_takes_the_columns_of_the_data(tmp_path, folder, rows):
    data = rows[["amount", "target", "occurred_at"]]
    data.to_parquet(tmp_path / "few.parquet")
    model = LogisticRegression().fit(data[["amount"]].to_numpy(), data["target"])
    project, outcome = named(folder, saved(tmp_path, model), tmp_path / "few.parquet")
    assert outcome.promoted
    assert project.releases.verify() == 1


def test_a_regression_is_adopted_with_its_outputs_in_the_reference(tmp_path, folder, rows):
    numbers = rows.assign(target=rows["amount"] * 3 + 0.25)
    numbers.to_parquet(tmp_path / "numbers.parquet")
    model = LinearRegression().fit(numbers[["amount"]], numbers["target"])
    project, _ = named(folder, saved(tmp_path, model), tmp_path / "numbers.parquet")
    assert project.releases.champion().manifest["task"] == "regression"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_does_not_fit_is_refused_and_nothing_is_left_behind(tmp_path, folder, rows):
    data, model = tmp_path / "rows.parquet", saved(tmp_path, fitted(rows))
    refused(folder, tmp_path / "none.pkl", data, "cannot be read")
    refused(folder, model, tmp_path / "none.parquet", "there is no file")
    refused(folder, model, data, "has no homeostat.toml", target="target")
    refused(folder, model, data, "project.target", target="nothing", time="occurred_at")
    (tmp_path / "torn.pkl").write_bytes(b"\x80\x04 no pickle")
    refused(folder, tmp_path / "torn.pkl", data, "the model cannot be read")
    refused(folder, saved(tmp_path, {"a": 1}, "dict.pkl"), data, "the file holds dict, which has")
    refused(folder, saved(tmp_path, LogisticRegression(), "raw.pkl"), data, "cannot score")
    rows.drop(columns="city").to_parquet(tmp_path / "less.parquet")
    refused(folder, model, tmp_path / "less.parquet", "'city', which the data has not")
    three = rows.assign(target=np.arange(300) % 3)
    wide = saved(tmp_path, fitted(three), "three.pkl")
    refused(folder, wide, data, "knows a class of 'target' that no row")


def test_a_second_adoption_is_refused_and_says_what_to_do(tmp_path, folder, rows):
    model, data = saved(tmp_path, fitted(rows)), tmp_path / "rows.parquet"
    project, outcome = named(folder, model, data)
    with pytest.raises(HomeostatError, match=r"champion already.*retrain --force"):
        adopt(folder, model, data)
    assert project.releases.champion().id == outcome.release


def test_settings_that_are_there_decide_and_are_not_contradicted(tmp_path, folder, rows):
    (folder / settings.FILE).write_text('[project]\ntarget = "target"\ntime = "occurred_at"\n')
    model, data = saved(tmp_path, fitted(rows)), tmp_path / "rows.parquet"
    with pytest.raises(HomeostatError, match=r"project.target is 'target' here, not 'city'"):
        adopt(folder, model, data, target="city")
    _, outcome = adopt(folder, model, data)
    assert outcome.promoted


def test_the_file_is_read_in_the_child_alone(tmp_path, folder, rows, monkeypatch):
    monkeypatch.setattr(adoption, "LocalEngine", LocalEngine)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    mark = tmp_path / "mark"
    model = saved(tmp_path, Marked(mark))
    with pytest.raises(HomeostatError, match="the model cannot be read: RuntimeError"):
        named(folder, model, tmp_path / "rows.parquet")
    assert int(mark.read_text()) != os.getpid()


def test_an_adopted_model_serves_and_verifies(tmp_path, folder, rows, capfd, monkeypatch):
    for module in (adoption, build):
        monkeypatch.setattr(module, "LocalEngine", LocalEngine)
    model = saved(tmp_path, fitted(rows), "model.joblib")
    words = [str(model), "--data", str(tmp_path / "rows.parquet"), *WORDS, "-p", str(folder)]
    with pytest.raises(SystemExit) as ended:
        cli.main(["adopt", *words, "--json"])
    assert not ended.value.code
    outcome = json.loads(capfd.readouterr().out)
    assert outcome["decision"]["action"] == "adopt"
    with serving(folder) as server, server.client() as http:
        answer = http.post("/predict", json=ROW).json()
        told = http.get("/model").json()
    assert answer["model_version"] == outcome["release"] == told["model_version"]
    assert told["kind"] == "adopt"
    assert load_project(folder).releases.champion().manifest["twin"]["engine"] in ("onnx", "native")
    wanted = fitted(rows).predict_proba(pd.DataFrame([ROW])[["gap", "member", "amount", "city"]])
    assert answer["probability"] == pytest.approx(wanted[0, 1], abs=1e-6)
    with pytest.raises(SystemExit) as ended:
        cli.main(["verify", "-p", str(folder)])
    assert not ended.value.code
    assert load_project(folder).audit.verify() == 2
