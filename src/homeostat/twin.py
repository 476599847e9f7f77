"""The twin of a model: made at release time, and used only where it proved equal.

It takes verified model bytes, their schema and rows, in the training's child process. It gives the
ONNX graph as bytes where that answers as the model does, at every split as well as on the rows,
and what was found in any case.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from homeostat.convert import ML, ML_OPSET, OPSET, convert
from homeostat.errors import TwinError, cause
from homeostat.records import Json
from homeostat.schema import UNSEEN, Schema
from homeostat.scoring import Scorer
from homeostat.session import Session
from homeostat.trees import thresholds

if TYPE_CHECKING:
    from homeostat.scoring import Floats

NEAR = 1e-6  # by which an output may differ: of a probability, or of a regression's spread
SHARE = 1e-3  # of the rows may differ by more, as long as their labels are the same
ROWS = 20_000  # of those given, at most; evenly spaced
SPLITS = 5_000  # of the model's, at most; evenly spaced
SINGLE = float(np.finfo(np.float32).max)
LARGEST = float(np.finfo(np.float64).max)
TINIEST = 5e-324
EXTREMES = (0.0, TINIEST, 1e-300, 1.0, 1e16, SINGLE, np.nextafter(SINGLE, np.inf), 1e300, LARGEST)
FAR = 1e200  # beyond this no split is looked for
EACH = 100  # rows for each feature that is null, and for each that is unseen


@dataclass(frozen=True, slots=True)
class Made:
    """What came of it. `told` goes into the manifest: `engine` ("onnx" or "native"), `why` it is
    native, and what was compared.
    """

    content: bytes | None
    told: dict[str, Json]


def make(model: bytes, schema: bytes, golden: bytes, rows: pa.Table) -> Made:
    """A twin of the model in these objects of a candidate, proved on rows with its features.

    A model that cannot become a graph, and a graph that answers otherwise, give no twin and the
    reason; nothing is raised for that.
    """
    import pickle

    told: dict[str, Json] = {"engine": "native", "why": None}
    try:
        own = Schema.from_json(schema)
        scorer = Scorer(pickle.loads(model), own)  # noqa: S301 - the caller made these bytes
        content = convert(scorer.estimator, own)
        told |= {"opsets": {"ai.onnx": OPSET, ML: ML_OPSET}, "versions": _versions()}
        asked = pq.read_table(io.BytesIO(golden)).select(list(own.names))
        told |= prove(scorer, Session(content), rows.select(list(own.names)), asked)
    except Exception as error:  # noqa: BLE001 - fails closed: the model itself serves, and why
        return Made(None, told | {"why": cause(error)})
    return Made(content, told | {"engine": "onnx"})


def prove(scorer: Scorer, session: Session, rows: pa.Table, golden: pa.Table) -> dict[str, Json]:
    """Compare model and twin, before calibration, and give the numbers.

    Compared are the given rows, and rows made from them: with values at and around every split,
    extreme values, nulls where the schema takes them, every level, and unseen ones. Raises
    TwinError where a label differs, where one of the two refuses a row that the other answers,
    where more than `SHARE` of either lot differ by more than `NEAR`, or a golden row does.
    """
    held = _spaced(rows, ROWS)
    splits, made = _made(scorer, held)
    lots = {"rows": held, "probes": made}
    told: dict[str, Json] = {"splits_tried": splits}
    usual = _native(scorer, held)
    finite = usual[np.isfinite(usual)]
    if held.num_rows and not finite.size:
        raise TwinError("the model has no finite answer to any of the rows.")
    spread = (float(finite.std()) if finite.size else 0.0) or 1.0
    for name, lot in lots.items():
        told |= _compared(scorer, session, lot, name, spread)
    # As a server will ask for them, which knows of no spread.
    given, wanted = session.output(_columns(golden)), _native(scorer, golden)
    same = np.allclose(given, wanted, rtol=NEAR, atol=NEAR)
    if not same or _compared(scorer, session, golden, "golden", spread)["golden_share"]:
        raise TwinError("the ONNX graph answers golden rows otherwise than the model.")
    return told


def _compared(
    scorer: Scorer, session: Session, rows: pa.Table, name: str, spread: float
) -> dict[str, Json]:
    if not rows.num_rows:
        return {name: 0, f"{name}_share": 0.0, f"{name}_worst": 0.0}
    native, onnx = _native(scorer, rows), session.output(_columns(rows))
    refused = _by_row(~np.isfinite(native))
    if (refused != _by_row(~np.isfinite(onnx))).any():
        raise TwinError(f"the ONNX graph refuses other {name} than the model.")
    native, onnx = native[~refused], onnx[~refused]
    task = scorer.schema.target.task
    if task == "binary" and ((native > 0.5) != (onnx > 0.5)).any():
        raise TwinError(f"the ONNX graph gives other labels on {name} than the model.")
    if task == "multiclass" and (native.argmax(axis=1) != onnx.argmax(axis=1)).any():
        raise TwinError(f"the ONNX graph gives other labels on {name} than the model.")
    with np.errstate(over="ignore"):  # too far apart for a float is far
        apart = np.abs(native - onnx)
    if task == "regression":
        apart = apart / np.maximum(np.abs(native), spread)
    apart = apart.max(axis=1) if apart.ndim > 1 else apart
    share = float((apart > NEAR).mean()) if len(apart) else 0.0
    worst = float(apart.max()) if len(apart) else 0.0
    if share > SHARE:
        raise TwinError(
            f"the ONNX graph differs from the model by more than {NEAR:g} on {share:.2%} of "
            f"{len(apart)} {name}, by {worst:.2g} at worst."
        )
    return {name: rows.num_rows, f"{name}_share": share, f"{name}_worst": worst}


def _by_row(bad: Any) -> Any:
    return bad.any(axis=1) if bad.ndim > 1 else bad


def _native(scorer: Scorer, rows: pa.Table) -> Floats:
    """The model's output, NaN for a row that it refuses. Rows are asked one by one only where
    all of them together fail.
    """
    try:
        return scorer.output(rows)
    except Exception:  # noqa: BLE001 - any failure is a refusal, and the twin must refuse alike
        if rows.num_rows == 1:
            target = scorer.schema.target
            many = target.task == "multiclass"
            return np.full((1, len(target.classes)) if many else 1, np.nan)
        half = rows.num_rows // 2
        parts = (rows.slice(0, half), rows.slice(half))
        return np.concatenate([_native(scorer, part) for part in parts])


def _columns(rows: pa.Table) -> list[Sequence[Any]]:
    return [column.to_pylist() for column in rows.columns]


def _spaced(rows: pa.Table, size: int) -> pa.Table:
    if rows.num_rows <= size:
        return rows
    return rows.take(np.linspace(0, rows.num_rows - 1, size).astype(np.int64))


# --- rows that try the edges ---


def _made(scorer: Scorer, rows: pa.Table) -> tuple[int, pa.Table]:
    """How many splits there are, and rows that differ from the given ones in few values."""
    if not rows.num_rows:
        raise TwinError("there are no rows to prove a twin on.")
    found, splits = [], 0
    for place, count, values in _at_splits(scorer, rows):
        splits += count
        found.append(_replaced(rows, place, pa.array(values, pa.float64())))
    few = min(EACH, rows.num_rows)
    for place, feature in enumerate(scorer.schema.features):
        if feature.nullable:
            found.append(_replaced(rows, place, pa.nulls(few, feature.arrow)))
        if feature.kind == "category":
            texts = [*feature.levels, *[UNSEEN, "", "\x00", " "] * (few // 4 + 1)]
            found.append(_replaced(rows, place, pa.array(texts, pa.string())))
        if feature.kind == "number":
            signed = [sign * value for value in EXTREMES for sign in (1, -1)]
            found.append(_replaced(rows, place, pa.array(signed, pa.float64())))
    empty = rows.slice(0, 1)
    for place, feature in enumerate(scorer.schema.features):
        if feature.nullable:
            empty = empty.set_column(place, feature.name, pa.nulls(1, feature.arrow))
    return splits, pa.concat_tables([*found, empty])


def _replaced(rows: pa.Table, place: int, values: pa.Array) -> pa.Table:
    """As many rows as values, taken from all over the given ones, with the values in place."""
    step = 7_919  # a prime, so that all rows have their turn
    taken = rows.take(np.arange(len(values), dtype=np.int64) * step % rows.num_rows)
    return taken.set_column(place, rows.column_names[place], values)


def _at_splits(scorer: Scorer, rows: pa.Table) -> Iterator[tuple[int, int, Floats]]:
    """For each number: its place, how many splits see it, and values on both sides of each."""
    steps = getattr(scorer.estimator, "steps", [("model", scorer.estimator)])
    splits = sorted({split for model in _models(steps[-1][1]) for split in thresholds(model)})
    chosen = np.linspace(0, len(splits) - 1, min(SPLITS, len(splits))).astype(int)
    columns = np.array([splits[place][0] for place in chosen], dtype=int)
    values = np.array([splits[place][1] for place in chosen], dtype=float)
    for place, feature in enumerate(scorer.schema.features):
        if feature.kind != "number":
            continue
        edges = np.array(feature.edges, dtype=float)
        crossings = [edges]
        count = 0
        if splits:
            seen = _Seen(scorer, steps[:-1], rows.slice(0, 1), place)
            own = np.isin(columns, seen.columns)
            count = int(own.sum())
            ends = np.array([edges.min(), edges.max()] if len(edges) > 1 else [0.0, 1.0])
            crossings.append(seen.crossings(columns[own], values[own], ends))
        yield place, count, _around(np.concatenate(crossings))


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


def _versions() -> dict[str, Json]:
    return {name: metadata.version(name) for name in ("onnx", "onnxruntime", "skl2onnx")}
