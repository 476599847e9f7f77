"""Small models of the monitor's own: cheap, deterministic, and of any features.

Takes rows of the journal with their schema, or features as numbers. Gives features as numbers, and
what thirty shallow trees say; none of it is ever served.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from homeostat.records import Task, Window
from homeostat.schema import Schema

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]

Past: TypeAlias = Callable[[Window, Schema], Iterable[pa.Table]]
"""Rows of a window of event time with these features, as `Journal.scan` gives them."""

TREES, DEPTH = 30, 3


def encoded(rows: pa.Table, schema: Schema) -> Floats:
    """The features as numbers, shape (rows, features): a boolean as 0 or 1, a category as the
    place of its level in the schema; what is null, unseen or infinite as NaN.
    """
    columns: list[Any] = []
    for feature in schema.features:
        column = rows.column(feature.name)
        if feature.kind == "category":
            column = pc.index_in(column, pa.array(feature.levels, pa.string()))
        values = pc.fill_null(column.cast(pa.float64(), safe=False), math.nan).to_numpy()
        columns.append(np.where(np.isfinite(values), values, np.nan))
    return np.column_stack(columns) if columns else np.empty((rows.num_rows, 0))


def trees(
    features: Floats, labels: Floats, asked: Floats, *, task: Task, classes: int = 0, seed: int
) -> Floats:
    """Boosted trees fitted on `features` and `labels`, asked about other rows.

    `labels` are numbers of a regression, else places of classes, two different ones at least.
    Gives the value, the probability of class 1 of a binary task, or those of all `classes`, 0 for
    a class that no label names. The same rows in the same order give the same bits.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from threadpoolctl import threadpool_limits

    form: dict[str, Any] = {
        "max_iter": TREES,
        "max_depth": DEPTH,
        "early_stopping": False,
        "random_state": seed,
    }
    shares = np.zeros((len(asked), classes))
    with threadpool_limits(1):  # more threads stall whatever runs beside them
        if task == "regression":
            fitted = HistGradientBoostingRegressor(**form).fit(features, labels)
            return np.asarray(fitted.predict(asked), dtype=float)
        model = HistGradientBoostingClassifier(**form).fit(features, labels.astype(int))
        shares[:, model.classes_] = model.predict_proba(asked)
    return np.ascontiguousarray(shares[:, 1]) if task == "binary" else shares
