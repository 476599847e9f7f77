"""The fits of a replay: whoever asks for a frame gets the one trial that was made of it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest

from homeostat.errors import TrainingError
from homeostat.fit import Fitted
from homeostat.replay.fits import Fits, Trial, frame_of
from homeostat.testing import drifting_stream, schema_of

SCHEMA = schema_of(drifting_stream(40, seed=3))


def stream(rows=12):
    return pa.table({"prediction_id": [f"p{number}" for number in range(rows)]})


def trial(path, model=b"a model", seconds=1.5):
    objects = {"model": model, "schema": SCHEMA.to_json().encode(), "golden": b"rows"}
    return Trial.kept(Fitted(objects, 0.1, {}, {}, ""), path, seconds)


@pytest.fixture
def fits(tmp_path):
    return Fits(stream(), tmp_path)


def test_a_frame_is_its_rows_in_whatever_order_and_however_it_is_named(fits):
    rows = stream().slice(2, 5)
    taken = np.zeros(12, dtype=bool)
    taken[2:7] = True
    assert fits.frame(rows) == fits.frame(rows.take([4, 0, 2, 1, 3])) == frame_of(taken)
    assert fits.frame(rows) != fits.frame(stream().slice(2, 4))


def test_a_second_one_who_asks_waits_for_the_fit_of_the_first(fits):
    begun, go_on, made = threading.Event(), threading.Event(), []

    def slow(path):
        begun.set()
        assert go_on.wait(30)
        made.append(path)
        return trial(path)

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(fits.trial, b"frame", slow)
        assert begun.wait(30)
        second = threads.submit(fits.trial, b"frame", lambda _: pytest.fail("fitted twice"))
        go_on.set()
        assert first.result(30) is second.result(30)
    assert len(made) == 1
    assert fits.seconds == 1.5


def test_a_frame_that_cannot_be_fitted_is_refused_to_everyone_with_the_reason(fits):
    def fails(path):
        raise TrainingError("one class only.")

    for make in (fails, trial):
        with pytest.raises(TrainingError, match="one class only"):
            fits.trial(b"frame", make)
    fits.trial(b"another", trial)
    assert fits.seconds == 1.5


def test_the_model_lies_in_a_file_and_comes_back_with_the_rest(fits):
    found = fits.trial(b"frame", trial)
    assert "model" not in found.fitted.objects
    assert found.whole.objects["model"] == found.model.read_bytes() == b"a model"
    assert found.whole.objects["golden"] == b"rows"
    assert found.averse == frozenset(f.name for f in SCHEMA.features if not f.nullable)
