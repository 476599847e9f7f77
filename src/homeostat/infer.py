"""Inference of a schema from a labelled frame.

Takes what the user's `load()` returned and gives the `Schema` of a model trained on it: which
columns are features, of which kind, and what the target's task and classes are. Columns that no
model can be served with are refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from homeostat.errors import SchemaError
from homeostat.records import Task
from homeostat.schema import RESERVED, Feature, Schema, Target

if TYPE_CHECKING:
    import pandas as pd


def infer(
    frame: pd.DataFrame,
    *,
    target: str,
    task: Task | None = None,
    exclude: Sequence[str] = (),
    learned: bool = True,
) -> Schema:
    """The schema of a labelled training frame.

    Reserved and excluded columns are left out; without `learned`, so are edges, levels and
    examples, which `Schema.learned_from` takes from the rows of a fit. Raises SchemaError for a
    target or feature that no model can be served with, naming the column.
    """
    if target not in frame.columns:
        raise SchemaError(
            f"the target {target!r} is not a column.",
            hint=f"Columns are {', '.join(map(str, frame.columns[:40]))}.",
        )
    found = features(frame, exclude={target, *exclude}, learned=learned)
    if not found:
        raise SchemaError("no feature is left beside target and time.")
    return Schema(found, _target(frame[target], task))


def features(
    frame: pd.DataFrame, *, exclude: Iterable[str] = (), learned: bool = True
) -> tuple[Feature, ...]:
    """The features that the columns of a frame are, but for reserved and excluded ones.

    With `learned` they have the edges, levels and examples of its rows. Raises SchemaError for
    two columns of one name and for one that is no feature, naming it.
    """
    if len(set(frame.columns)) != len(frame.columns):
        raise SchemaError("two columns have the same name.", hint="Rename one in load().")
    skip = set(exclude) | RESERVED
    columns = {str(name): frame[name] for name in frame.columns if name not in skip}
    found = tuple(_feature(name, column) for name, column in columns.items())
    if not learned:
        return found
    return tuple(f.learned_from(columns[f.name].dropna()) for f in found)


def _feature(name: str, column: pd.Series[Any]) -> Feature:
    """The feature that a column of a frame is: its kind. Raises SchemaError when it has none."""
    from pandas.api import types

    filled = column.dropna()
    if types.is_bool_dtype(filled) or (len(filled) and all(type(v) is bool for v in filled)):
        return Feature(name, "boolean")
    if types.is_numeric_dtype(column):
        return Feature(name, "number")
    if types.is_datetime64_any_dtype(column) or types.is_timedelta64_dtype(column):
        raise SchemaError(
            f"the feature {name!r} is a point or length of time.",
            hint="Turn it into numbers in load(), or exclude it.",
        )
    if not all(isinstance(value, str) for value in filled):
        raise SchemaError(
            f"the feature {name!r} mixes types; a category must be text throughout.",
            hint=f"Convert it in load(): frame[{name!r}].astype('str').",
        )
    return Feature(name, "category")


def _target(column: pd.Series[Any], task: Task | None) -> Target:
    from pandas.api import types

    name = str(column.name)
    filled = column.dropna()
    if not len(filled):
        raise SchemaError(f"the target {name!r} has no value.", hint="Is it the right column?")
    if types.is_bool_dtype(filled):
        dtype: Literal["int", "bool", "str", "float"] = "bool"
    elif types.is_numeric_dtype(filled):
        whole = bool((filled.astype(float) % 1 == 0).all())
        dtype = "int" if whole else "float"
    else:
        dtype = "str"
    distinct = filled.nunique()
    if task is None:
        many = distinct > 20 if dtype == "int" else dtype == "float"
        task = "regression" if many else "binary" if distinct == 2 else "multiclass"
    if task == "regression":
        if dtype not in ("int", "float"):
            raise SchemaError(f"the target {name!r} is not a number, so it is no regression.")
        return Target(name, task, "float")
    if distinct < 2:
        raise SchemaError(
            f"the target {name!r} has one class only; a classifier needs two.",
            hint="Load rows of a longer time.",
        )
    if dtype == "float":
        raise SchemaError(f"the target {name!r} is not whole numbers, so it has no classes.")
    if task == "binary" and distinct != 2:
        raise SchemaError(f"the target {name!r} has {distinct} classes; a binary task has two.")
    cast = {"int": int, "bool": bool, "str": str}[dtype]
    classes = sorted({cast(value) for value in filled})
    texts = tuple(str(c).lower() if dtype == "bool" else str(c) for c in classes)
    return Target(name, task, dtype, texts)
