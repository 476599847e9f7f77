"""Steps over categories become tables of their answers to each level.

It takes a fitted pipeline and the features that it is given. It gives the pipeline as one of
numbers only, to which each level is its place, null their count and the unseen one more, and the
levels; so that no text is left for the graph to compare.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from homeostat.blend import Blend
from homeostat.errors import TwinError
from homeostat.schema import UNSEEN, Feature, Schema
from homeostat.trees import extreme_booster

if TYPE_CHECKING:
    from homeostat.operators import Columns, Tables
    from homeostat.scoring import Floats

CODED = ("OneHotEncoder", "OrdinalEncoder", "TargetEncoder")
"""Steps whose outputs depend on one column each, so that tables can stand for them."""
Levels: TypeAlias = dict[str, list[str]]
BOOSTERS = {"LGBMModel", "XGBModel"}  # which take columns of pandas' type `category`
TRIES = 4  # rows in which each level is tried beside other values


def known_levels(estimator: Any, schema: Schema) -> Levels:
    """All levels of each category that the estimator may tell apart."""
    known = {f.name: list(f.levels) for f in schema.features if f.kind == "category"}
    short = [f for f in schema.features if f.kind == "category" and (f.other or not f.levels)]
    if short:  # the schema does not list them all, but encoders and models do
        found = _texts(estimator)
        for feature in short:
            known[feature.name] += sorted(found - set(feature.levels))
    return known


def _texts(step: Any) -> set[str]:
    """The levels that encoders and models in a pipeline tell apart, at any depth."""
    if isinstance(step, Blend):
        return {text for member in step.estimators for text in _texts(member)}
    if _kind(step) in CODED:
        return {v for values in step.categories_ for v in values.tolist() if isinstance(v, str)}
    if _names(step) & BOOSTERS:
        return {v for values in _listed(step) for v in values if isinstance(v, str)}
    held = getattr(step, "transformers_", getattr(step, "steps", ()))
    held = [*held, *getattr(step, "transformer_list", ())]
    return {text for entry in held for text in _texts(entry[1])}


def _kind(step: Any) -> str:
    """The name of scikit-learn's class; nothing for one's own, which may do anything."""
    kind = type(step)
    return kind.__name__ if kind.__module__.startswith("sklearn.") else ""


def numeric(step: Any, features: tuple[Feature, ...], levels: Levels) -> Any:
    """The step as one of numbers only: categories come as their codes."""
    kinds = {feature.kind for feature in features}
    name = _kind(step)
    if name == "Pipeline":
        return _chained(step, features, levels)
    if name == "ColumnTransformer":
        kept = []
        for label, part, columns in step.transformers_:
            places = step._transformer_to_input_indices.get(label, ())
            seen = tuple(features[place] for place in places)
            if isinstance(part, str) or not seen:
                continue
            if isinstance(columns, str | int) and any(f.kind == "category" for f in seen):
                raise _unknown(part)
            kept.append((label, numeric(part, seen, levels), [int(place) for place in places]))
        step.transformers_ = kept
        return step
    if name == "FeatureUnion":
        step.transformer_list = [
            (label, numeric(part, features, levels)) for label, part in step.transformer_list
        ]
        return step
    coded = name in CODED
    if "category" not in kinds and not (coded and kinds == {"boolean"}):
        return step
    if coded and "number" not in kinds:
        return _tables(step, features, levels)
    raise _unknown(step)


def _chained(pipeline: Any, features: tuple[Feature, ...], levels: Levels) -> Any:
    """The pipeline with what stands before its model, or its first step, as one of numbers."""
    kinds, steps = {feature.kind for feature in features}, pipeline.steps
    if len(steps) > 1 and "category" in kinds and _names(steps[-1][1]) & BOOSTERS:
        typed = _typed(pipeline[:-1], steps[-1][1], features, levels)
        if typed is not None:
            pipeline.steps = [("columns", typed), steps[-1]]
            return pipeline
    place = _coded_until(steps)
    if "category" in kinds and kinds <= {"category", "boolean"} and place:
        pipeline.steps = [("tables", _tables(pipeline[:place], features, levels)), *steps[place:]]
    else:
        steps[0] = steps[0][0], numeric(steps[0][1], features, levels)
    return pipeline


def _coded_until(steps: list[tuple[str, Any]]) -> int:
    """How many of the first steps are encoders and imputers, up to the last encoder; 0 if others
    come before it.
    """
    names = [_kind(step) for _, step in steps]
    last = max((place for place, name in enumerate(names, start=1) if name in CODED), default=0)
    return last if all(name in (*CODED, "SimpleImputer") for name in names[:last]) else 0


def _names(model: Any) -> set[str]:
    return {kind.__name__ for kind in type(model).__mro__}


def _unknown(step: Any) -> TwinError:
    name = type(step).__name__
    return TwinError(f"{name} takes categories in a way that is not understood.")


def _tables(step: Any, features: tuple[Feature, ...], levels: Levels) -> Tables:
    """What the fitted step answers to each level of each column, to null and to the unseen."""
    from homeostat.operators import Tables

    values = [[*levels.get(f.name, (False, True)), None] for f in features]
    for column, feature in zip(values, features, strict=True):
        if feature.kind == "category":
            column.append(UNSEEN)
    base = _answers(step, features, [[column[0]] for column in values])[0]
    made, owned = [], np.zeros(len(base), dtype=bool)
    for place, column in enumerate(values):
        rows = [
            [given] if other == place else [values[other][0]]
            for given in column
            for other in range(len(values))
        ]
        table = _varied(step, features, rows, len(values))
        own = np.array([(table[:, i] != base[i]).any() for i in range(len(base))])
        if (own & owned).any():
            raise TwinError(f"{type(step).__name__} mixes its columns.")
        made.append(np.where(own, table, 0.0))
        owned |= own
    made[0] += np.where(owned, 0.0, base)  # outputs that depend on nothing
    return Tables(made)


def _varied(step: Any, features: tuple[Feature, ...], cells: list[list[Any]], width: int) -> Floats:
    """Answers to the rows whose cells are listed one row after the other. A null that the step
    refuses has no answer, NaN: the schema lets none through.
    """
    rows = [[cell[0] for cell in cells[at : at + width]] for at in range(0, len(cells), width)]
    columns = [list(column) for column in zip(*rows, strict=True)]
    try:
        return _answers(step, features, columns)
    except Exception:
        if all(feature.nullable for feature in features):
            raise
        filled = [[v if v is not None else column[0] for v in column] for column in columns]
        table = _answers(step, features, filled)
        table[[None in row for row in rows]] = np.nan
        return table


def _answers(step: Any, features: tuple[Feature, ...], columns: list[list[Any]]) -> Floats:
    made = _transformed(step, features, columns)
    made = made.toarray() if hasattr(made, "toarray") else made
    return np.array(made, dtype=float)


def _transformed(step: Any, features: tuple[Feature, ...], columns: list[list[Any]]) -> Any:
    import pandas as pd

    frame = pd.DataFrame(
        {
            f.name: pd.array(column, dtype="str" if f.kind == "category" else "Float64")
            for f, column in zip(features, columns, strict=True)
        }
    )
    plain = {f.name: "float64" for f in features if f.kind != "category"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return step.transform(frame.astype(plain))


# --- pandas' own categories ---


def _typed(steps: Any, model: Any, features: tuple[Feature, ...], levels: Levels) -> Columns | None:
    """What the steps do that only pass columns on, some of them as pandas' type `category`, whose
    codes are the model's; None where they yield no such column.

    All rows are tried at once: one level of each category and one number of each feature in each.
    Raises TwinError for a column that is neither a number as it was given nor the same for the
    same level.
    """
    from homeostat.operators import Columns

    columns = _mixed(features, levels)
    made = _transformed(steps, features, columns)
    kinds = [str(kind) for kind in getattr(made, "dtypes", ())]
    places = [place for place, kind in enumerate(kinds) if kind == "category"]
    if not places:
        return None
    codes = _codes(model, places)
    sources, tables = [], {}
    for place in range(len(kinds)):
        column = made.iloc[:, place]
        if place in codes:
            numbers = {level: number for number, level in enumerate(codes[place])}
            given = np.array([numbers.get(value, np.nan) for value in column.tolist()])
            source, tables[place] = _by_level(given, features, columns, levels)
        else:
            source = _same(column, features, columns)
        if source is None:
            raise TwinError("steps of your own that do more than set pandas' types have no graph.")
        sources.append(source)
    return Columns(sources, tables)


def _mixed(features: tuple[Feature, ...], levels: Levels) -> list[list[Any]]:
    """Columns of rows in which every level, null and the unseen stand beside changing values."""
    draw = np.random.default_rng(0)
    texts = [levels.get(feature.name, []) for feature in features]
    size = TRIES * (max(map(len, texts)) + 2)
    columns: list[list[Any]] = []
    for feature, known in zip(features, texts, strict=True):
        if feature.kind == "category":
            every = [*known, UNSEEN, *[None] * feature.nullable]
            drawn = draw.permutation(np.arange(size) % len(every))
            columns.append([every[place] for place in drawn])
        else:
            whole = feature.kind == "boolean"
            values = draw.integers(0, 2, size) if whole else draw.normal(size=size) * 1e3
            empty = (draw.random(size) < 0.1) & feature.nullable
            columns.append([None if e else float(v) for e, v in zip(empty, values, strict=True)])
    return columns


def _by_level(
    given: Floats, features: tuple[Feature, ...], columns: list[list[Any]], levels: Levels
) -> tuple[int | None, Floats]:
    """The category on which alone the codes depend, and the code for each of its levels, null
    and the unseen: NaN where the model is told of none.
    """
    for place, feature in enumerate(features):
        if feature.kind != "category" or np.isnan(given).all():  # the model knows none of them
            continue
        found: dict[Any, float] = {}
        same = all(
            np.array_equal(found.setdefault(level, code), code, equal_nan=True)
            for level, code in zip(columns[place], given.tolist(), strict=True)
        )
        if same:
            every = [*levels[feature.name], None, UNSEEN]
            return place, np.array([found.get(level, np.nan) for level in every])
    return None, np.empty(0)


def _same(column: Any, features: tuple[Feature, ...], columns: list[list[Any]]) -> int | None:
    """The number that the column passes on as it was given."""
    if column.dtype.kind not in "fiub":
        return None
    given = column.to_numpy(dtype=float)
    for place, feature in enumerate(features):
        if feature.kind != "category":
            wanted = np.array(columns[place], dtype=float)
            if np.array_equal(given, wanted, equal_nan=True):
                return place
    return None


def _codes(model: Any, places: Sequence[int]) -> dict[int, list[Any]]:
    """What the codes of the columns at `places` stand for, in order: of all columns of pandas'
    type `category` in a frame that the model takes. Raises TwinError where it does not tell.
    """
    listed = _listed(model)
    if "LGBMModel" in _names(model) and len(listed) == len(places):
        return dict(zip(places, listed, strict=True))
    if "XGBModel" in _names(model) and all(any(listed[place : place + 1]) for place in places):
        return {place: listed[place] for place in places}
    raise TwinError(f"{type(model).__name__} does not tell what its categories stand for.")


def _listed(model: Any) -> list[list[Any]]:
    """The values that a model's own categories stand for: LightGBM lists them of each column of
    pandas' type `category`, XGBoost of every column, as bytes end to end.
    """
    if "LGBMModel" in _names(model):
        return list(model.booster_.pandas_categorical or ())
    listed = []
    for held in extreme_booster(model)[1].get("cats", {}).get("enc", ()):
        values = held["values"] if "offsets" in held else []
        if any(not 0 <= value < 128 for value in values):
            # XGBoost 3.2 counts characters where it cuts bytes.
            raise TwinError("XGBoost does not keep the names of levels that are not ASCII.")
        text = bytes(values).decode()
        listed.append([text[a:b] for a, b in pairwise(held.get("offsets", ()))])
    return listed
