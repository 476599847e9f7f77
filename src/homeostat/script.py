"""The user's training script: runs it in the child process and reads what its `load()` returns.

It takes the script's path, the project's folder and its settings; the script is executed under a
name of its own, so that its `if __name__ == "__main__"` part stays out.
It gives the module for as long as it is needed, and the loaded rows as a checked Arrow table.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from homeostat.errors import SchemaError, TrainingError
from homeostat.rowhash import row_ids
from homeostat.schema import RESERVED, TIMESTAMP
from homeostat.settings import Project

if TYPE_CHECKING:
    import pandas as pd

GIVEN = ("prediction_id", "occurred_at", "labelled_at")
MAX_ID = 128  # characters
TRACEBACK_LINES = 12


def load(script: Path, root: Path, project: Project) -> pa.Table | None:
    """The rows of the user's `load()`: features, the target under its own name, `prediction_id`,
    `occurred_at`, `labelled_at`; None where the script has no `load`.

    What the script prints goes to standard error. Raises TrainingError when it fails, SchemaError
    when the frame is not what it should be.
    """
    with opened(script, root) as module, _printing_to_stderr():
        if not hasattr(module, "load"):
            return None
        frame = called(module, "load")
    return table_of(frame, project)


@contextmanager
def opened(script: Path, root: Path) -> Iterator[ModuleType]:
    """The executed script, with the project's folder as working directory and on the path.

    On the way out its modules are forgotten, so that the next call sees an edited script.
    """
    name = f"homeostat_script_{hashlib.sha256(script.read_bytes()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, script)
    if spec is None or spec.loader is None:
        raise TrainingError(f"{script} is no Python file.", hint="Set training.script.")
    module = importlib.util.module_from_spec(spec)
    known, path, folder = set(sys.modules), list(sys.path), Path.cwd()
    sys.path[:0] = [str(script.parent), str(root)]
    os.chdir(root)
    sys.modules[name] = module
    try:
        _guarded(script.name, lambda: spec.loader.exec_module(module))  # type: ignore[union-attr]  # checked above
        yield module
    finally:
        for other in own_modules(known, root):
            del sys.modules[other.__name__]
        sys.path[:] = path
        os.chdir(folder)


def own_modules(known: set[str], root: Path) -> list[ModuleType]:
    """Modules imported since `known` from files of the project: a server has none of them."""
    own = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name in known or not file or module.__name__ != name:
            continue
        if name.partition(".")[0] != "homeostat":
            path = Path(file).resolve()
            if path.is_relative_to(root.resolve()) and "site-packages" not in path.parts:
                own.append(module)
    return own


def called(module: ModuleType, name: str, *args: object) -> Any:
    """What the script's function gives; TrainingError with the end of its traceback if it fails."""
    function = getattr(module, name, None)
    if not callable(function):
        raise TrainingError(
            f"the training script has no function {name}().", hint="It must define it."
        )
    return _guarded(f"{name}()", lambda: function(*args))


def _guarded(what: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - fails closed: raised as TrainingError
        lines = "".join(traceback.format_exception(error)).rstrip().splitlines()
        tail = "\n".join(lines[-TRACEBACK_LINES:])
        raise TrainingError(
            f"{what} raised {type(error).__name__}: {error}\n{tail}",
            hint="Correct the training script.",
        ) from None


@contextmanager
def own_version() -> Iterator[None]:
    """Refuses estimators that another version of scikit-learn pickled, at which it only warns."""
    from sklearn.exceptions import InconsistentVersionWarning

    with warnings.catch_warnings():
        warnings.simplefilter("error", InconsistentVersionWarning)
        try:
            yield
        except InconsistentVersionWarning as error:
            raise TrainingError(
                f"{error.estimator_name} was pickled by scikit-learn "
                f"{error.original_sklearn_version}, and {error.current_sklearn_version} is "
                "installed.",
                hint="Fit it anew with the version that is installed.",
            ) from error


@contextmanager
def _printing_to_stderr() -> Iterator[None]:
    # Standard output belongs to the caller, who may be writing JSON there.
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def table_of(frame: object, project: Project) -> pa.Table:
    """A loaded frame as a checked Arrow table, see `load`; its index is ignored."""
    import pandas as pd

    if not isinstance(frame, pd.DataFrame):
        raise TrainingError(
            f"load() returned {type(frame).__name__}, not a pandas DataFrame.",
            hint="Return the labelled rows as a DataFrame.",
        )
    _check_columns(frame, project)
    occurred = _times(frame[project.time], project.time, project)
    missing = int(occurred.isna().sum())
    if missing:
        raise SchemaError(
            f"{missing} rows of load() have no time in {project.time!r}.",
            hint="Fill it, or drop those rows.",
        )
    columns = {}
    for name in frame.columns:
        if str(name) not in {*GIVEN, project.time, *project.exclude} - {project.target}:
            columns[str(name)] = _column(str(name), frame[name])
    known = occurred
    if "labelled_at" in frame.columns:
        known = _times(frame["labelled_at"], "labelled_at", project).fillna(occurred)
    labelled = pc.is_valid(columns[project.target])
    arrived = pc.if_else(labelled, _moments(known), pa.scalar(None, TIMESTAMP))
    table = pa.table({**columns, "occurred_at": _moments(occurred), "labelled_at": arrived})
    return table.append_column("prediction_id", _ids(frame, table, project))


def _check_columns(frame: pd.DataFrame, project: Project) -> None:
    names = [str(name) for name in frame.columns]
    shown = ", ".join(names[:40])
    for setting in ("target", "time"):
        name = getattr(project, setting)
        if name not in names:
            raise SchemaError(
                f"load() returned no column {name!r}, which project.{setting} names.",
                hint=f"Columns are {shown}.",
            )
    if frame.empty:
        raise SchemaError("load() returned no rows.")
    if len(set(names)) != len(names):
        raise SchemaError("two columns of load() have the same name.", hint="Rename one.")
    allowed = {"prediction_id", "labelled_at", project.time, project.target, *project.exclude}
    for name in sorted(RESERVED.intersection(names) - allowed):
        raise SchemaError(
            f"the column {name!r} of load() has a name that the journal needs.",
            hint="Rename it, or list it in project.exclude.",
        )


def _times(column: pd.Series[Any], name: str, project: Project) -> pd.Series[Any]:
    """The column in UTC, microseconds.

    A naive time is read in project.timezone: one that occurs twice there is the first of the two,
    one that never occurs is the first moment after the gap.
    """
    import numpy as np
    import pandas as pd
    from pandas.api import types

    if types.is_numeric_dtype(column):
        raise SchemaError(
            f"the times in {name!r} are numbers.", hint="Convert them with pandas.to_datetime."
        )
    try:
        times = pd.to_datetime(column, format="ISO8601", utc=_all_have_offsets(column))
    except (ValueError, TypeError) as error:
        raise SchemaError(
            f"{name!r} holds values that are no times.",
            hint="Use datetimes or ISO 8601, all with an offset or none.",
        ) from error
    if times.dt.tz is None:
        if project.zone is None:
            raise SchemaError(
                f"the times in {name!r} have no time zone.",
                hint="Set project.timezone, for example to 'UTC', or give them an offset.",
            )
        first = np.ones(len(times), dtype=bool)
        times = times.dt.tz_localize(project.zone, ambiguous=first, nonexistent="shift_forward")
    read: pd.Series[Any] = times.dt.tz_convert("UTC").dt.as_unit("us")
    return read


def _all_have_offsets(column: pd.Series[Any]) -> bool:
    from pandas.api import types

    if types.is_datetime64_any_dtype(column):
        return False  # its dtype tells
    # Summer and winter time have different offsets in one column.
    offset = r"\d\d:\d\d.*(?:Z|[+-]\d\d(?::?\d\d)?)$"
    return bool(column.dropna().astype("str").str.contains(offset).all())


def _moments(times: pd.Series[Any]) -> pa.Array:
    return pa.Array.from_pandas(times).cast(TIMESTAMP)


def _column(name: str, column: pd.Series[Any]) -> pa.Array:
    """One column in Arrow; categoricals are text, whatever their categories are."""
    import numpy as np
    import pandas as pd

    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype("object").map(str, na_action="ignore")
    try:
        array = pa.Array.from_pandas(column)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise SchemaError(
            f"the column {name!r} of load() mixes types; a category must be text throughout.",
            hint=f"Convert it in load(): frame[{name!r}].astype('str').",
        ) from error
    if pa.types.is_decimal(array.type):
        array = array.cast(pa.float64())
    if pa.types.is_floating(array.type):
        infinite = int(np.isinf(array.to_numpy(zero_copy_only=False)).sum())
        if infinite:
            raise SchemaError(
                f"{infinite} values of {name!r} are infinite.",
                hint="Replace them in load(), by NaN where the value is unknown.",
            )
    return array.cast(pa.string()) if pa.types.is_large_string(array.type) else array


def _ids(frame: pd.DataFrame, table: pa.Table, project: Project) -> pa.Array:
    if "prediction_id" not in frame.columns:
        content = table.drop_columns([project.target, "labelled_at"])
        return pa.array(row_ids(content, table.column(project.target)), pa.string())
    given = frame["prediction_id"]
    ids = given.astype("str")
    if given.isna().any() or (ids.str.len() > MAX_ID).any() or (ids == "").any():
        raise SchemaError(f"a prediction_id of load() is missing or over {MAX_ID} characters.")
    repeated = int(ids.duplicated().sum())
    if repeated:
        raise SchemaError(
            f"{repeated} rows of load() repeat the prediction_id of another row.",
            hint="Give each row an id of its own, or leave the column out.",
        )
    return pa.array(ids.tolist(), pa.string())
