"""One fit in the child process: the user's `fit(frame)`, and all that a release needs of it.

It takes the training rows, their schema and the user's script; the estimator is pickled with the
script's own code inside, read back, scored and probed before anything of it is believed.
It gives the objects of a candidate as bytes, with its parameters, versions and printed output.
"""

from __future__ import annotations

import io
import os
import pickle
import platform
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from homeostat.blend import Elder, Joined, joined
from homeostat.entries import Queried
from homeostat.errors import SchemaError, TrainingError
from homeostat.objects import Job, made
from homeostat.schema import Schema
from homeostat.scoring import Calibrator, Scorer, outputs
from homeostat.script import called, opened, own_modules, own_version

if TYPE_CHECKING:
    import pandas as pd

LOG = 20_000  # bytes of the user's output that are kept, the last ones
PARAMS, PARAM = 100, 200  # most parameters, and characters of each
PACKAGES = ("homeostat", "numpy", "pandas", "scikit-learn")
LEARNERS = ("lightgbm", "xgboost", "catboost")


@dataclass(frozen=True, slots=True)
class Fitted:
    """What crosses back from the child; see `Candidate` for the fields."""

    objects: dict[str, bytes]
    seconds: float
    params: dict[str, str]
    versions: dict[str, str]
    log: str


def fit(job: Job, rows: pa.Table, schema: Schema) -> Fitted:
    """Fit, pickle, read back, probe, and score the rows that the release carries.

    The reference's prediction column holds the model's own answers on its training rows. Raises
    TrainingError when the script fails or its estimator cannot be released.
    """
    with _captured() as output:
        model, seconds, params = _trained(job, training_frame(rows, schema), schema)
        # Read back without the script at hand, as a server will.
        objects = made(Scorer(_read_back(model), schema), rows, job)
        log = _tail(output)
    return Fitted({"model": model, **objects}, seconds, params, _versions(), log)


def finish(
    job: Job,
    rows: pa.Table,
    schema: Schema,
    model: bytes,
    *,
    elder: Elder | None,
    keep: int,
    twice: bool,
) -> tuple[dict[str, bytes], Joined]:
    """The objects of a model, blended with the newest of the elder's as `joined` has it.

    The bytes of both were verified, or come from such a child; `rows` are those that `model` was
    fitted on. Raises TrainingError as `fit` does.
    """
    with _captured(), own_version():
        found = joined(elder, model, keep, schema.target.task, twice=twice)
        objects = made(Scorer(_read_back(found.model), schema), rows, job)
    return {"model": found.model, **objects}, found


def adopt(job: Job, content: bytes, rows: pa.Table, schema: Schema) -> Fitted:
    """What `fit` gives, of an estimator that was fitted elsewhere; `rows` are its reference.

    `content` is a pickle or a file of joblib's, which may run any code when it is read: the user
    vouches for it. Raises TrainingError when the estimator cannot be released.
    """
    with _captured() as output:
        estimator = _opened(content)
        _check(estimator, schema, "the file holds")
        _check_classes(estimator, schema)
        model = _pickled(estimator)
        objects = made(Scorer(_read_back(model), schema), rows, job)
        log = _tail(output)
    return Fitted({"model": model, **objects}, 0.0, _params(estimator), _versions(), log)


def features_of(content: bytes) -> tuple[str, ...] | None:
    """The names that the estimator in a file was fitted with, in order; None where it has none.

    Raises TrainingError as `adopt` does.
    """
    with _captured():
        names = getattr(_opened(content), "feature_names_in_", None)
    return None if names is None else tuple(str(name) for name in names)


def _opened(content: bytes) -> Any:
    import joblib

    try:
        with own_version():
            return joblib.load(io.BytesIO(content))
    except (MemoryError, TrainingError):
        raise
    except Exception as error:
        raise TrainingError(
            f"the model cannot be read: {type(error).__name__}: {error}",
            hint="It must be a pickle or a joblib file, made with the libraries installed here.",
        ) from error


def _check_classes(estimator: Any, schema: Schema) -> None:
    for known in np.asarray(getattr(estimator, "classes_", ())).tolist():
        try:
            schema.target.text(known)
        except SchemaError as error:
            raise TrainingError(
                f"the model knows a class of {schema.target.name!r} that no row of the data has.",
                hint=f"{error.hint} Bring rows of every class.",
            ) from error


def _trained(job: Job, frame: pd.DataFrame, schema: Schema) -> tuple[bytes, float, dict[str, str]]:
    """The pickled estimator, the seconds that the user's `fit` took, and the parameters."""
    import cloudpickle

    random.seed(job.seed)
    np.random.seed(job.seed)  # scikit-learn draws from this global state
    known = set(sys.modules)
    with opened(job.script, job.root) as module:
        began = time.monotonic()
        with own_version():
            estimator = called(module, "fit", frame)
        seconds = time.monotonic() - began
        _check(estimator, schema)
        own = own_modules(known, job.root)
        for part in own:
            cloudpickle.register_pickle_by_value(part)
        try:
            return _pickled(estimator), seconds, _params(estimator)
        finally:
            for part in own:
                cloudpickle.unregister_pickle_by_value(part)


def score(model: bytes, rows: pa.Table, schema: Schema, calibrator: bytes | None) -> pa.Table:
    """The journal's columns of a prediction for each row, by verified model bytes."""
    chosen = None if calibrator is None else Calibrator.from_json(calibrator)
    return Scorer(unpickled(model), schema, chosen).score(rows)


def query(model: bytes, golden: bytes, schema: bytes, calibrator: bytes | None) -> Queried:
    """How verified model bytes answer the golden rows, when they are read anew.

    All at once they must answer bit by bit as they did, and each by itself what it answers among
    the others, but for rounding. Raises TrainingError for bytes of another scikit-learn, and what
    the model raises.
    """
    rows = pq.read_table(io.BytesIO(golden))
    chosen = None if calibrator is None else Calibrator.from_json(calibrator)
    with own_version():
        scorer = Scorer(pickle.loads(model), Schema.from_json(schema), chosen)  # noqa: S301 - as below
        scores = scorer.score(rows)  # a blend reads its members when it is asked
    target = scorer.schema.target
    if scores != rows.select(scores.column_names):
        return Queried("does not answer its golden rows as it did", 0.0)
    alone, seconds = [], []
    for place in range(rows.num_rows):
        row = rows.slice(place, 1)
        began = time.perf_counter()
        alone.append(scorer.score(row))
        seconds.append(time.perf_counter() - began)
    apart = outputs(pa.concat_tables(alone), target)
    if not np.allclose(apart, outputs(scores, target), rtol=1e-4, atol=1e-6):
        return Queried("answers a row otherwise by itself than among others", 0.0)
    return Queried("", float(np.median(seconds)))


@lru_cache(maxsize=2)
def unpickled(model: bytes) -> Any:
    """The estimator in bytes that were verified, or were made by this process."""
    return pickle.loads(model)  # noqa: S301 - the caller verified the bytes, or made them


def training_frame(rows: pa.Table, schema: Schema) -> pd.DataFrame:
    """What the user's `fit` gets: the features, and the target under its name in its own type."""
    import pandas as pd

    frame = schema.frame(rows)
    labels = schema.labels(rows)
    text = schema.target.task != "regression" and schema.target.dtype == "str"
    frame[schema.target.name] = pd.array(labels, dtype="str") if text else labels
    return frame


def _check(estimator: Any, schema: Schema, what: str = "fit() returned") -> None:
    needed = ["predict"] if schema.target.task == "regression" else ["predict", "predict_proba"]
    missing = [name for name in needed if not callable(getattr(estimator, name, None))]
    if missing:
        raise TrainingError(
            f"{what} {type(estimator).__name__}, which has no {' and no '.join(missing)}.",
            hint="Return a fitted estimator with scikit-learn's methods.",
        )


def _pickled(estimator: Any) -> bytes:
    import cloudpickle

    try:
        return bytes(cloudpickle.dumps(estimator))
    except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
        raise TrainingError(
            f"the estimator cannot be pickled: {type(error).__name__}: {error}",
            hint="Keep locks, files, generators and connections out of it.",
        ) from error


def _read_back(model: bytes) -> Any:
    try:
        return pickle.loads(model)  # noqa: S301 - these bytes were made by this process just now
    except MemoryError:
        raise
    except Exception as error:
        raise TrainingError(
            f"the pickled estimator cannot be read back: {type(error).__name__}: {error}",
            hint="Define its classes in the training script or in an installed package.",
        ) from error


def _params(estimator: Any) -> dict[str, str]:
    """The estimator's parameters as text, without memory addresses, which differ every time."""
    try:
        given = estimator.get_params()
    except Exception:  # noqa: BLE001 - parameters are for people; a model without them is sound
        return {"estimator": type(estimator).__name__}
    params = {"estimator": type(estimator).__name__}
    for name in sorted(given)[: PARAMS - 1]:
        text = re.sub(r" at 0x[0-9a-f]+", "", " ".join(repr(given[name]).split()))
        params[name] = text if len(text) <= PARAM else text[: PARAM - 1] + "…"
    return params


def _versions() -> dict[str, str]:
    learners = [name for name in LEARNERS if name in sys.modules]
    versions = {"python": platform.python_version()}
    for name in (*PACKAGES, *learners):
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


@contextmanager
def _captured() -> Iterator[BinaryIO]:
    """Standard output and error of Python and of compiled code, into a file."""
    with tempfile.TemporaryFile() as file:
        sys.stdout.flush()
        sys.stderr.flush()
        kept = os.dup(1), os.dup(2)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield file
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for place, descriptor in enumerate(kept, start=1):
                os.dup2(descriptor, place)
                os.close(descriptor)


def _tail(file: BinaryIO) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - LOG))
    return file.read().decode(errors="replace")
