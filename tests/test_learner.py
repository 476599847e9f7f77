"""The learner of a replay: a row is answered once by a model, and as the model itself would."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeostat.errors import SchemaError
from homeostat.records import Window
from homeostat.replay.fits import Fits
from homeostat.replay.learner import PolicyTrainer, Shared
from homeostat.replay.track import Scene
from homeostat.scoring import Calibrator, outputs, tabulate
from homeostat.settings import Settings
from homeostat.testing import START, drifting_stream, schema_of, served_rows

ROWS = 60
FRAME = drifting_stream(ROWS, seed=3)
SCHEMA = schema_of(FRAME)
MAP = Calibrator(0.5, (1.0,)).to_json()


class Model:
    """Answers by one column, takes no null there, and counts the rows that it was asked for."""

    def __init__(self):
        self.asked = 0

    def score(self, model, rows, schema, calibrator=None):
        self.asked += rows.num_rows
        values = rows.column("gap")
        if model == b"averse" and values.null_count:
            raise SchemaError("no null is taken.")
        output = 1 / (1 + np.exp(-values.fill_null(0.0).to_numpy()))
        if calibrator is not None:
            output = Calibrator.from_json(calibrator).apply(output, schema.target)
        return tabulate(output, schema.target)


@pytest.fixture
def made(tmp_path):
    """The model, the trainer of a policy, and the rows in their order."""
    return learner(tmp_path)


def learner(folder):
    rows = served_rows(FRAME, SCHEMA).sort_by("occurred_at")
    for name, kind in (("label", pa.string()), ("labelled_at", pa.timestamp("us", "UTC"))):
        rows = rows.append_column(name, pa.nulls(ROWS, kind))
    length = (FRAME["occurred_at"].max() - START).to_pytimedelta() / 5
    windows = tuple(Window(START + i * length, START + (i + 1) * length) for i in range(1, 6))
    scene = Scene(rows, Settings(root=folder), SCHEMA, windows)
    model = Model()
    shared = Shared(model, SimpleNamespace(seconds=0.0), scene, Fits(rows, folder))
    return model, PolicyTrainer(shared, scene.history), rows


@settings(max_examples=20, deadline=None)
@given(
    asked=st.lists(st.integers(0, ROWS - 1), unique=True), calibrator=st.sampled_from([None, MAP])
)
def test_rows_are_answered_as_the_model_itself_answers_them(tmp_path_factory, asked, calibrator):
    model, trainer, rows = learner(tmp_path_factory.mktemp("learner"))
    rows = rows.take(pa.array(asked, pa.int64()))
    for _ in range(2):
        found = trainer.score(b"model", rows, SCHEMA, calibrator)
        assert found.equals(model.score(b"model", rows, SCHEMA, calibrator))


def test_a_row_that_was_served_is_answered_once_however_often_it_is_looked_at(made):
    model, trainer, rows = made
    later = rows.slice(ROWS // 2)
    first = trainer.score(b"model", later, SCHEMA)
    asked = model.asked
    assert trainer.score(b"model", later.slice(3, 9), SCHEMA).equals(first.slice(3, 9))
    mapped = trainer.score(b"model", later, SCHEMA, MAP)
    assert (outputs(mapped, SCHEMA.target) != outputs(first, SCHEMA.target)).any()
    assert model.asked == asked <= ROWS
    trainer.score(b"another model", later, SCHEMA)
    assert model.asked == 2 * asked


def test_a_row_that_a_model_takes_no_null_in_is_its_own_to_refuse(made):
    _, trainer, rows = made
    assert rows.column("gap").slice(ROWS // 2).null_count
    averse = SCHEMA.without_nulls_in(["gap"])
    with pytest.raises(SchemaError, match="no null is taken"):
        trainer.score(b"averse", rows.slice(ROWS // 2), averse)
