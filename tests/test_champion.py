"""The champion: its twin serves where there is one, and neither engine before it was tried."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import textwrap

import numpy as np
import pyarrow.parquet as pq
import pytest
from serving_fixtures import AT, SOURCE, objects, promote

from homeostat.champion import load
from homeostat.errors import ReleaseError, SchemaError, VerificationError
from homeostat.records import Candidate, TrainingRows, Verdict
from homeostat.release import FileReleases
from homeostat.schema import Schema
from homeostat.scoring import Calibrator, calibrated, outputs
from homeostat.signing import signing_key
from homeostat.twin import make

CALIBRATOR = Calibrator(1.25, (-0.5,))
COLUMNS = [[0.5, None, -2.0], [None, 1.0, 2.0], ["Oslo", None, "unheard of"], [True, None, False]]


def with_twin(task="binary", calibrator=None):
    held = objects(task=task, calibrator=calibrator)
    rows = pq.read_table(io.BytesIO(held["golden"]))
    made = make(held["model"], held["schema"], held["golden"], rows)
    assert made.content is not None, made.told
    return {**held, "twin": made.content}, made.told


def release(root, held, told=None):
    """A promoted release with what is told of its twin in the manifest."""
    models = root / "models"
    store = FileReleases(models, signing_key(root / ".homeostat", models, {}))
    training = TrainingRows(300, AT, AT, AT, "0" * 64)
    candidate = Candidate("first", None, held, training, 0.1, {}, {}, 0, twin=told)
    verdict = Verdict(True, "first", "log_loss", None, None, None, None, None, 0, 0, None)
    store.promote(store.add(candidate, verdict, AT))
    return FileReleases(models)


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_twin_and_model_give_the_same_output_and_say_which_of_them_it_was(tmp_path, task):
    held, told = with_twin(task)
    twin = load(release(tmp_path / "a", held, told), None)
    native = {name: content for name, content in held.items() if name != "twin"}
    told = {"engine": "native", "why": "It differs."}
    model = load(release(tmp_path / "b", native, told), None)
    assert (twin.engine, twin.why) == ("onnx", None)
    assert (model.engine, model.why) == ("native", "It differs.")
    np.testing.assert_allclose(twin.output(COLUMNS), model.output(COLUMNS), rtol=1e-12)
    assert twin.release.manifest["twin"]["engine"] == "onnx"


def test_a_release_from_before_there_were_twins_serves_its_model_and_says_so(tmp_path):
    promote(tmp_path, objects())
    champion = load(FileReleases(tmp_path / "models"), None)
    assert champion.engine == "native"
    assert champion.why == "No twin was made when this was released."


def test_the_calibrator_is_applied_after_either_engine(tmp_path):
    held, told = with_twin(calibrator=CALIBRATOR)
    plain, _ = with_twin()
    native = {name: content for name, content in held.items() if name != "twin"}
    raw = load(release(tmp_path / "raw", plain), None).output(COLUMNS)
    wanted = CALIBRATOR.apply(raw, Schema.from_json(held["schema"]).target)
    for place, parts in (("twin", held), ("native", native)):
        champion = load(release(tmp_path / place, parts, told), None)
        np.testing.assert_allclose(champion.output(COLUMNS), wanted, rtol=1e-12)


def test_no_rows_have_no_output(tmp_path):
    for task, shape in (("binary", (0,)), ("multiclass", (0, 3))):
        held, told = with_twin(task)
        champion = load(release(tmp_path / task, held, told), None)
        assert champion.output([[], [], [], []]).shape == shape


def test_a_twin_serves_without_its_model_being_unpickled_and_without_heavy_libraries(tmp_path):
    held, told = with_twin()
    release(tmp_path, {**held, "model": b"whoever unpickles this fails"}, told)
    code = """
        import sys
        from pathlib import Path
        from homeostat.champion import load
        from homeostat.release import FileReleases
        champion = load(FileReleases(Path("models")), None)
        assert champion.engine == "onnx"
        champion.output([[0.5], [None], ["Oslo"], [True]])
        heavy = {"pandas", "sklearn", "scipy", "mlflow", "evidently", "onnx", "skl2onnx"}
        print(sorted(heavy & set(sys.modules)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_an_altered_twin_is_not_loaded(tmp_path):
    held, told = with_twin()
    store = release(tmp_path, held, told)
    file = tmp_path / "models/objects" / store.champion().manifest["objects"]["twin"]
    file.chmod(0o600)
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(VerificationError, match="'twin'"):
        load(FileReleases(tmp_path / "models"), None)


def test_a_twin_that_does_not_answer_its_golden_rows_does_not_serve(tmp_path):
    held, told = with_twin()
    other = objects(seed=5)["golden"]
    with pytest.raises(ReleaseError, match="golden rows"):
        load(release(tmp_path, {**held, "golden": other}, told), None)


def test_golden_rows_are_those_of_the_uncalibrated_twin_within_its_tolerance(tmp_path):
    held, told = with_twin()
    rows = pq.read_table(io.BytesIO(held["golden"]))
    champion = load(release(tmp_path, held, told), None)
    given = champion.output([rows.column(name).to_pylist() for name in champion.schema.names])
    np.testing.assert_allclose(given, outputs(rows, champion.schema.target), atol=1e-6)


def test_what_is_not_finite_is_never_answered():
    target = Schema.from_json(objects()["schema"]).target
    for calibrator in (None, CALIBRATOR):
        with pytest.raises(SchemaError, match="not finite"):
            calibrated(np.array([0.5, np.nan]), target, calibrator)
