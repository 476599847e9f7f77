"""The features and the target of one model: infer them, check rows against them, encode them.

A `Schema` is inferred from training rows and released with the model. It is the one place that
knows which columns a row must have, of which kind, and how they look in Arrow (the journal) and
in pandas (what the user's `fit` and the model get): numbers and booleans as float64 with NaN for
null, categories as text.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import pyarrow as pa

from homeostat.errors import RowError, SchemaError, other_format
from homeostat.records import Json, Task

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

Kind: TypeAlias = Literal["number", "category", "boolean"]

FORMAT = 1
MAX_BINS = 128  # quantile bins of a number; below, above and nulls apart
MAX_LEVELS = 255  # known levels of a category; the rest are "other"
TIMESTAMP = pa.timestamp("us", "UTC")
UNSEEN = "homeostat: a level that training never saw"

SYSTEM = {
    "prediction_id": pa.string(),
    "occurred_at": TIMESTAMP,
    "recorded_at": TIMESTAMP,
    "model_version": pa.string(),
    "source": pa.string(),
    "prediction": pa.string(),
    "probability": pa.float64(),
    "probabilities": pa.string(),
}
"""Columns of every journal row, before the features. `prediction` is text, `probability` is that
of the positive class, `probabilities` a JSON array in the order of the classes."""

RESERVED = frozenset(SYSTEM) | {"label", "labelled_at"}
"""Names that no feature may have."""


@dataclass(frozen=True, slots=True)
class Feature:
    name: str
    kind: Kind
    nullable: bool = True  # False once the model was seen to fail on null
    edges: tuple[float, ...] = ()  # inner bin edges of a number, ascending
    levels: tuple[str, ...] = ()  # known levels of a category, most frequent first
    other: bool = False  # levels beyond MAX_LEVELS were seen in training
    example: float | str | bool | None = None  # a typical value, for the documentation page

    @property
    def arrow(self) -> pa.DataType:
        return {"number": pa.float64(), "category": pa.string(), "boolean": pa.bool_()}[self.kind]

    def learned_from(self, filled: pd.Series[Any]) -> Feature:
        """The same feature with edges, levels and example of these values, none of them null.

        Edges are the distinct inner quantiles of at most 128 equal shares, the largest value, and
        the next number below the smallest, so that what lies beyond these rows has bins of its own;
        levels the 255 most frequent, ties by name; the example is the median, the first boolean,
        the top level.
        """
        import numpy as np

        if self.kind == "boolean":
            return replace(self, example=bool(filled.iloc[0]) if len(filled) else None)
        if self.kind == "number":
            values = filled.to_numpy(dtype=float)
            values = values[np.isfinite(values)]
            if not len(values):
                return replace(self, edges=(), example=None)
            grid = np.linspace(0, 1, MAX_BINS + 1)[1:-1]
            inner = np.quantile(values, grid, method="inverted_cdf")
            least = max(values.min(), np.nextafter(np.finfo(np.float64).min, 0))
            edges = np.unique([np.nextafter(least, -np.inf), *inner, values.max()])
            middle = float(np.quantile(values, 0.5, method="inverted_cdf"))
            return replace(self, edges=tuple(edges.tolist()), example=middle)
        counts = filled.value_counts().items()
        ranked = [
            str(level) for level, n in sorted(counts, key=lambda item: (-item[1], str(item[0])))
        ]
        return replace(
            self,
            levels=tuple(ranked[:MAX_LEVELS]),
            other=len(ranked) > MAX_LEVELS,
            example=ranked[0] if ranked else None,
        )


@dataclass(frozen=True, slots=True)
class Target:
    name: str
    task: Task
    dtype: Literal["int", "bool", "str", "float"]
    classes: tuple[str, ...] = ()  # as text, ascending in their own type; empty in a regression

    def text(self, value: object) -> str:
        """The journal's text for a label; raises SchemaError when it is none of this target."""
        if self.task == "regression":
            return repr(self._finite(value))
        text = str(value)
        if self.dtype == "bool":
            text = {"1": "true", "0": "false"}.get(text, text.lower())
        elif self.dtype == "int" and isinstance(value, bool | float) and value % 1 == 0:
            text = str(int(value))
        if text not in self.classes:
            raise SchemaError(
                f"the label is not a class of {self.name!r}.",
                hint=f"Classes are {', '.join(self.classes[:20])}.",
            )
        return text

    def _finite(self, value: object) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            with suppress(OverflowError):
                if math.isfinite(value):
                    return float(value)
        raise SchemaError(f"the label of {self.name!r} must be a finite number.")

    def value(self, text: str) -> int | bool | str | float:
        """The inverse of `text`: the label in the target's own type."""
        if self.dtype == "bool":
            return text == "true"
        if self.dtype == "int":
            return int(text)
        return float(text) if self.dtype == "float" else text


@dataclass(frozen=True)
class Schema:
    features: tuple[Feature, ...]
    target: Target

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(feature.name for feature in self.features)

    @cached_property
    def by_name(self) -> Mapping[str, Feature]:
        return {feature.name: feature for feature in self.features}

    @cached_property
    def arrow(self) -> pa.Schema:
        """The features alone, in order."""
        return pa.schema([(feature.name, feature.arrow) for feature in self.features])

    @cached_property
    def journal(self) -> pa.Schema:
        """The system columns and then the features: one row of the journal."""
        return pa.schema([*SYSTEM.items(), *((f.name, f.arrow) for f in self.features)])

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hex digits that change when a column's name, order or kind does."""
        shape = [[feature.name, feature.kind] for feature in self.features]
        return hashlib.sha256(json.dumps(shape).encode()).hexdigest()[:12]

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Schema:
        """Raises SchemaError for a format that this version does not read."""
        raw = json.loads(text)
        if raw.get("format") != FORMAT:
            raise other_format(SchemaError, "the schema", raw.get("format"), FORMAT)
        features = tuple(
            Feature(**{**f, "edges": tuple(f["edges"]), "levels": tuple(f["levels"])})
            for f in raw["features"]
        )
        target = {**raw["target"], "classes": tuple(raw["target"]["classes"])}
        return cls(features, Target(**target))

    def without_nulls_in(self, names: Sequence[str]) -> Schema:
        """The same schema with nulls refused in the named features."""
        return replace(
            self,
            features=tuple(
                replace(f, nullable=False) if f.name in names else f for f in self.features
            ),
        )

    def learned_from(self, rows: pa.Table) -> Schema:
        """The same columns and target, with edges, levels and examples of these rows."""
        learned = (
            feature.learned_from(rows.column(feature.name).drop_null().to_pandas())
            for feature in self.features
        )
        return replace(self, features=tuple(learned))

    def check(self, rows: Sequence[Mapping[str, Json]]) -> dict[str, list[Any]]:
        """Columns of checked values from JSON objects, features only, in the schema's order.

        Keys outside the features must have been taken off before. Raises RowError for the first
        missing, extra, retyped, non-finite or forbidden null value; the message never holds it.
        """
        columns: dict[str, list[Any]] = {}
        for feature in self.features:
            read = _READERS[feature.kind]
            columns[feature.name] = [
                _value(read, feature, row, index) for index, row in enumerate(rows)
            ]
        for index, row in enumerate(rows):
            if len(row) != len(self.features):
                extra = next(name for name in row if name not in self.by_name)
                raise RowError(
                    "unknown_field",
                    f"{extra[:80]!r} is no feature of this model.",
                    field=extra[:80],
                    row=index,
                    hint="GET /model lists the features.",
                )
        return columns

    def unseen(self, columns: Mapping[str, Sequence[Any]]) -> dict[str, int]:
        """How many values of each category are levels that training never saw."""
        return {
            name: sum(value not in known for value in columns[name])
            for name, known in self._levels.items()
            if not known.issuperset(columns[name])
        }

    @cached_property
    def _levels(self) -> Mapping[str, frozenset[str | None]]:
        """The levels, null among them, of each category of which training saw no others."""
        return {
            feature.name: frozenset(feature.levels) | {None}
            for feature in self.features
            if feature.kind == "category" and not feature.other
        }

    def table(self, columns: Mapping[str, Sequence[Any]]) -> pa.Table:
        """The features as an Arrow table from columns of Python values."""
        return pa.table({f.name: pa.array(columns[f.name], f.arrow) for f in self.features})

    def frame(self, table: pa.Table) -> pd.DataFrame:
        """The features of `table` as the model sees them; raises SchemaError if one is missing."""
        import pandas as pd

        missing = [name for name in self.names if name not in table.column_names]
        if missing:
            raise SchemaError(f"the rows lack the columns {', '.join(map(repr, missing))}.")
        columns: dict[str, Any] = {}
        for feature in self.features:
            column = table.column(feature.name)
            if feature.kind == "category":
                columns[feature.name] = pd.array(column.cast(pa.string()).to_pylist(), dtype="str")
            else:
                columns[feature.name] = column.cast(pa.float64()).to_numpy()
        return pd.DataFrame(columns, columns=list(self.names))

    def labels(self, table: pa.Table) -> np.ndarray[Any, Any]:
        """The column `label` in the target's own type, shape (rows,)."""
        import numpy as np

        if self.target.task == "regression":
            return np.asarray(table.column("label").cast(pa.float64()).to_numpy())
        if self.target.dtype == "str":
            return np.asarray(table.column("label").to_pylist(), dtype=object)
        values = {text: self.target.value(text) for text in self.target.classes}
        return np.asarray([values[text] for text in table.column("label").to_pylist()])


def _value(read: Any, feature: Feature, row: Mapping[str, Json], index: int) -> Any:
    try:
        value = row[feature.name]
    except KeyError:
        raise RowError(
            "missing_field",
            f"{feature.name!r} is missing.",
            field=feature.name,
            row=index,
            hint="Send null where the value is unknown." if feature.nullable else "",
        ) from None
    if value is None:
        if feature.nullable:
            return None
        raise RowError(
            "null_not_allowed",
            f"{feature.name!r} must not be null: the model cannot take it.",
            field=feature.name,
            row=index,
        )
    return read(value, feature, index)


def _number(value: Json, feature: Feature, index: int) -> float:
    if type(value) is float or type(value) is int:
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
        raise RowError(
            "not_finite",
            f"{feature.name!r} is beyond the range of a 64-bit number.",
            field=feature.name,
            row=index,
        )
    raise _retyped(feature, index, "a number")


def _category(value: Json, feature: Feature, index: int) -> str:
    if type(value) is str:
        return value
    raise _retyped(feature, index, "a string")


def _boolean(value: Json, feature: Feature, index: int) -> bool:
    if type(value) is bool:
        return value
    raise _retyped(feature, index, "true or false")


def _retyped(feature: Feature, index: int, wanted: str) -> RowError:
    return RowError(
        "wrong_type", f"{feature.name!r} must be {wanted}.", field=feature.name, row=index
    )


_READERS = {"number": _number, "category": _category, "boolean": _boolean}
