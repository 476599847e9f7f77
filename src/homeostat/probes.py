"""Rows that try a model and its twin where they are most likely to differ.

It takes a scorer, the levels that its twin knows, and rows as they come. It gives rows made from
them, each with one value replaced, in lots: each feature's thresholds, extremes, levels, truth
values and nulls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from homeostat.blend import Blend
from homeostat.errors import TwinError
from homeostat.schema import UNSEEN, Feature
from homeostat.scoring import Scorer
from homeostat.trees import thresholds

if TYPE_CHECKING:
    from homeostat.scoring import Floats

SPLITS = 5_000  # of a model's, or of each one's in a blend, at most; evenly spaced
SINGLE = float(np.finfo(np.float32).max)
LARGEST = float(np.finfo(np.float64).max)
TINIEST = 5e-324
EXTREMES = (0.0, TINIEST, 1e-300, 1.0, 1e16, SINGLE, np.nextafter(SINGLE, np.inf), 1e300, LARGEST)
FAR = 1e200  # beyond this no split is looked for
EACH = 100  # rows for each feature that is null, and for each that is true or false
LEVEL, LEVELS = 10, 5_000  # rows for each level, and for all of a feature; but at least
SOME = 3  # for each level, of however many


@dataclass(frozen=True, slots=True)
class Probes:
    """Rows, and what each stretch of them tries, with its length, in order."""

    rows: pa.Table
    lots: tuple[tuple[str, int], ...]
    splits: int  # how many splits are tried


def probes(scorer: Scorer, levels: Sequence[Sequence[str] | None], rows: pa.Table) -> Probes:
    """Rows that differ from the given ones in few values; `levels` has one entry per feature,
    None for what is no category. Raises TwinError where no rows are given.
    """
    if not rows.num_rows:
        raise TwinError("there are no rows to prove a twin on.")
    lots: list[tuple[str, pa.Table]] = []
    splits = 0
    for place, count, values in _at_splits(scorer, rows):
        splits += count
        name = f"thresholds of {rows.column_names[place]!r}"
        lots.append((name, _replaced(rows, place, pa.array(values, pa.float64()))))
    empty = rows.slice(0, 1)
    for place, feature in enumerate(scorer.schema.features):
        for kind, values in _values(feature, levels[place], min(EACH, rows.num_rows)):
            lots.append((f"{kind} of {feature.name!r}", _replaced(rows, place, values)))
        if feature.nullable:
            empty = empty.set_column(place, feature.name, pa.nulls(1, feature.arrow))
    lots.append(("nulls of all features", empty))
    counts = tuple((name, lot.num_rows) for name, lot in lots)
    return Probes(pa.concat_tables([lot for _, lot in lots]), counts, splits)


def _values(
    feature: Feature, levels: Sequence[str] | None, few: int
) -> Iterator[tuple[str, pa.Array]]:
    """What a feature is tried with, apart from thresholds."""
    if feature.nullable:
        yield "nulls", pa.nulls(few, feature.arrow)
    if feature.kind == "boolean":
        yield "truth values", pa.array([True, False] * few, pa.bool_())
    elif feature.kind == "number":
        signed = [sign * value for value in EXTREMES for sign in (1, -1)]
        yield "extremes", pa.array(signed, pa.float64())
    else:
        every = list(dict.fromkeys([*feature.levels, *(levels or ())]))
        each = max(SOME, min(LEVEL, LEVELS // max(len(every), 1)))
        yield "levels", pa.array([level for level in every for _ in range(each)], pa.string())
        unseen = [UNSEEN, "", "\x00", " "] * (few // 4 + 1)
        yield "unseen levels", pa.array(unseen, pa.string())


def _replaced(rows: pa.Table, place: int, values: pa.Array) -> pa.Table:
    """As many rows as values, taken from all over the given ones, with the values in place."""
    step = 7_919  # a prime, so that all rows have their turn
    taken = rows.take(np.arange(len(values), dtype=np.int64) * step % rows.num_rows)
    return taken.set_column(place, rows.column_names[place], values)


def _at_splits(scorer: Scorer, rows: pa.Table) -> Iterator[tuple[int, int, Floats]]:
    """For each number: its place, how many splits see it, and values on both sides of each."""
    own = scorer.estimator
    members = [_split(each) for each in (own.estimators if isinstance(own, Blend) else [own])]
    for place, feature in enumerate(scorer.schema.features):
        if feature.kind != "number":
            continue
        edges = np.array(feature.edges, dtype=float)
        crossings = [edges]
        ends = np.array([edges.min(), edges.max()] if len(edges) > 1 else [0.0, 1.0])
        count = 0
        for steps, columns, values in members:
            if not len(values):
                continue
            seen = _Seen(scorer, steps, rows.slice(0, 1), place)
            here = np.isin(columns, seen.columns)
            count += int(here.sum())
            crossings.append(seen.crossings(columns[here], values[here], ends))
        yield place, count, _around(np.concatenate(crossings))


def _split(estimator: Any) -> tuple[Sequence[tuple[str, Any]], Any, Floats]:
    """The steps before its model, and the column and the value of each split of that."""
    steps = getattr(estimator, "steps", [("model", estimator)])
    splits = sorted({split for model in _models(steps[-1][1]) for split in thresholds(model)})
    chosen = np.linspace(0, len(splits) - 1, min(SPLITS, len(splits))).astype(int)
    columns = np.array([splits[place][0] for place in chosen], dtype=int)
    return steps[:-1], columns, np.array([splits[place][1] for place in chosen], dtype=float)


def _models(model: Any) -> Iterator[Any]:
    """The models of trees in a model, itself or what it votes, stacks or calibrates."""
    try:
        next(thresholds(model), None)
        yield model
    except TwinError:
        held = getattr(model, "estimators_", getattr(model, "calibrated_classifiers_", ()))
        held = [*np.ravel(held), getattr(model, "estimator", None)]
        for part in held:
            if part is not None and not isinstance(part, str):
                yield from _models(part)


@dataclass(frozen=True)
class _Seen:
    """How the model, behind the steps before it, sees one feature of one row."""

    scorer: Scorer
    steps: Sequence[tuple[str, Any]]
    row: pa.Table
    place: int

    def __call__(self, values: Floats) -> Floats:
        rows = _replaced(self.row, self.place, pa.array(values, pa.float64()))
        seen: Any = self.scorer.schema.frame(rows)
        for _, step in self.steps:
            if not isinstance(step, str) and step is not None:
                seen = step.transform(seen)
        seen = seen.toarray() if hasattr(seen, "toarray") else np.asarray(seen)
        return np.asarray(seen, dtype=float) if seen.dtype.kind in "fiub" else _numbers(seen)

    @property
    def columns(self) -> Any:
        """The model's columns that depend on the feature."""
        seen = np.nan_to_num(self(np.array([-1e6, 0.0, 1e6])))  # of other features may be null
        return np.flatnonzero((seen != seen[0]).any(axis=0))

    def crossings(self, columns: Any, splits: Floats, ends: Floats) -> Floats:
        """The largest values of the feature that the model sees on one side of each split: by
        bisection of the floats themselves, since steps before the model round. `ends` are two
        usual values of the feature: near the line through them lies most often what is sought.
        """
        if not len(splits):
            return np.empty(0)
        lines = np.arange(len(splits))
        if (self(splits)[lines, columns] == splits).all():  # the model sees the values themselves
            return splits
        first, last = self(ends)[:, columns]
        with np.errstate(all="ignore"):
            line = ends[0] + (splits - first) * ((ends[1] - ends[0]) / (last - first))
            slack = 1e-10 * (np.abs(line) + np.ptp(ends))
            guess = np.stack([line - slack, line + slack])
        bounds = np.where(np.abs(guess) < FAR, guess, [[-FAR], [FAR]])
        below = [self(bound)[lines, columns] <= splits for bound in bounds]
        lost = below[0] == below[1]
        bounds[:, lost] = [[-FAR], [FAR]]
        low, high = _ordinal(bounds[0]), _ordinal(bounds[1])
        start = np.where(lost, self(bounds[0])[lines, columns] <= splits, below[0])
        for _ in range(64):
            middle = (low >> 1) + (high >> 1) + (low & high & 1)  # their sum would overflow
            moving = middle > low
            if not moving.any():
                break
            same = (self(_float(middle))[lines, columns] <= splits) == start
            low, high = np.where(same & moving, middle, low), np.where(same, high, middle)
        return _float(low)


def _numbers(seen: Any) -> Floats:
    """A frame of texts and numbers as numbers alone; the texts are none of the feature's."""
    made = np.full(seen.shape, np.nan)
    for column in range(seen.shape[1]):
        if not any(isinstance(value, str) for value in seen[:, column]):
            made[:, column] = seen[:, column].astype(float)
    return made


def _around(values: Floats) -> Floats:
    """Each value with its neighbours in 64 and in 32 bits."""
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    up, down = np.float32(np.inf), np.float32(-np.inf)
    near = [values, np.nextafter(values, np.inf), np.nextafter(values, -np.inf)]
    near.append(np.nextafter(near[1], np.inf))
    near += [single, np.nextafter(single, up), np.nextafter(single, down)]
    found = np.unique(np.concatenate(near).astype(float))
    return np.asarray(found[np.isfinite(found)])


def _ordinal(values: Floats) -> Any:
    """Whole numbers in the order of the floats, one for each."""
    bits = values.view(np.int64)
    return np.where(bits < 0, np.int64(-(2**63)) - bits, bits)


def _float(ordinals: Any) -> Floats:
    bits = np.where(ordinals < 0, np.int64(-(2**63)) - ordinals, ordinals)
    return np.asarray(bits.astype(np.int64).view(np.float64))
