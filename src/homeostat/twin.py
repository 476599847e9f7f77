"""The twin of a model: made at release time, and used only where it proved equal.

It takes verified model bytes, their schema and rows, in the training's child process. It gives the
ONNX graph as bytes where that answers as the model does, at every split as well as on the rows,
and what was found in any case.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from homeostat.convert import ML, ML_OPSET, OPSET, convert
from homeostat.errors import TwinError, cause
from homeostat.probes import probes
from homeostat.records import Json
from homeostat.schema import Schema
from homeostat.scoring import Calibrator, Scorer, calibrated
from homeostat.session import Session

if TYPE_CHECKING:
    from homeostat.scoring import Floats

Lots: TypeAlias = Sequence[tuple[str, int]]

NEAR = 1e-6  # by which an output may differ: of a probability, or of a regression's spread
SHARE = 1e-3  # of the given rows may differ by more, as long as their labels are the same
ROWS = 20_000  # of those given, at most; evenly spaced


@dataclass(frozen=True, slots=True)
class Made:
    """What came of it. `told` goes into the manifest: `engine` ("onnx" or "native"), `why` it is
    native, and what was compared.
    """

    content: bytes | None
    told: dict[str, Json]


def make(
    model: bytes, schema: bytes, golden: bytes, rows: pa.Table, calibrator: bytes | None = None
) -> Made:
    """A twin of the model in these objects of a candidate, proved on rows with its features.

    A model that cannot become a graph, and a graph that answers otherwise, give no twin and the
    reason; nothing is raised for that.
    """
    import pickle

    told: dict[str, Json] = {"engine": "native", "why": None}
    try:
        own = Schema.from_json(schema)
        chosen = None if calibrator is None else Calibrator.from_json(calibrator)
        scorer = Scorer(pickle.loads(model), own, chosen)  # noqa: S301 - the caller made these bytes
        content = convert(scorer.estimator, own)
        told |= {"opsets": {"ai.onnx": OPSET, ML: ML_OPSET}, "versions": _versions()}
        asked = pq.read_table(io.BytesIO(golden)).select(list(own.names))
        told |= prove(scorer, Session(content), rows.select(list(own.names)), asked)
    except Exception as error:  # noqa: BLE001 - fails closed: the model itself serves, and why
        return Made(None, told | {"why": cause(error)})
    return Made(content, told | {"engine": "onnx"})


def prove(scorer: Scorer, session: Session, rows: pa.Table, golden: pa.Table) -> dict[str, Json]:
    """Compare model and twin, before calibration and after it, and give the numbers.

    Compared are the given rows, and `probes` made from them. Raises TwinError where a label
    differs, where one of the two refuses a row that the other answers, where more than `SHARE` of
    the given rows differ by more than `NEAR`, or any probe or golden row does.
    """
    held, raw = _spaced(rows, ROWS), replace(scorer, calibrator=None)
    made = probes(scorer, session.levels, held)
    usual = _native(raw, held)
    finite = usual[np.isfinite(usual)]
    if not finite.size:
        raise TwinError("the model has no finite answer to any of the rows.")
    pair = _Pair(raw, session, scorer.calibrator, float(finite.std()) or 1.0)
    apart = pair.apart(held, [("rows", held.num_rows)])
    share, worst = float((apart > NEAR).mean()), float(apart.max())
    if share > SHARE:
        raise TwinError(
            f"the ONNX graph differs from the model by more than {NEAR:g} on {share:.2%} of "
            f"{len(apart)} rows, by {worst:.2g} at worst."
        )
    tried = _exact(pair.apart(made.rows, made.lots), made.lots)
    lots = [("golden rows", golden.num_rows)]
    _exact(pair.apart(golden, lots), lots)
    # As a server will ask for them, which knows of no spread.
    given, wanted = session.output(_columns(golden)), _native(raw, golden)
    target, calibrator = scorer.schema.target, scorer.calibrator
    given, wanted = (calibrated(output, target, calibrator) for output in (given, wanted))
    if not np.allclose(given, wanted, rtol=NEAR, atol=NEAR):
        raise TwinError("the ONNX graph answers golden rows otherwise than the model.")
    return {
        "rows": len(apart),
        "rows_share": share,
        "rows_worst": worst,
        "probes": made.rows.num_rows,
        "probes_worst": tried,
        "splits_tried": made.splits,
    }


def _exact(apart: Floats, lots: Lots) -> float:
    """The largest difference; raises TwinError where one is larger than `NEAR`."""
    if (apart > NEAR).any():
        raise TwinError(
            f"the ONNX graph differs from the model by more than {NEAR:g} on "
            f"{_lot(apart > NEAR, lots)}, by {apart.max():.2g} at worst."
        )
    return float(apart.max(initial=0.0))


def _lot(wrong: Any, lots: Lots) -> str:
    """What the first of the wrong rows tries."""
    ends = np.cumsum([count for _, count in lots])
    return lots[int(np.searchsorted(ends, np.flatnonzero(wrong)[0], side="right"))][0]


@dataclass(frozen=True, slots=True)
class _Pair:
    """A model and what may become its twin, asked the same rows."""

    scorer: Scorer  # before calibration
    session: Session
    calibrator: Calibrator | None
    spread: float  # of a regression's outputs

    def apart(self, rows: pa.Table, lots: Lots) -> Floats:
        """By how much they differ in each row, before or after calibration, whichever is more;
        0 where both refuse. Raises TwinError where one refuses or the labels differ.
        """
        native, onnx = _native(self.scorer, rows), self.session.output(_columns(rows))
        refused = _by_row(~np.isfinite(native))
        wrong = refused != _by_row(~np.isfinite(onnx))
        if wrong.any():
            raise TwinError(f"the ONNX graph refuses other {_lot(wrong, lots)} than the model.")
        answered = np.flatnonzero(~refused)
        found = np.zeros(rows.num_rows)
        for one, other, spread in self._stages(native[answered], onnx[answered]):
            wrong = answered[self._labels(one) != self._labels(other)]
            if len(wrong):
                place = np.isin(np.arange(rows.num_rows), wrong)
                raise TwinError(
                    f"the ONNX graph gives other labels on {_lot(place, lots)} than the model."
                )
            with np.errstate(all="ignore"):  # too far apart for a float is far
                apart = np.where(one == other, 0.0, np.abs(one - other))
                if self.scorer.schema.target.task == "regression":
                    apart = apart / np.maximum(np.abs(one), spread)
            apart = np.where(np.isnan(apart), np.inf, apart)
            apart = apart.max(axis=1) if apart.ndim > 1 else apart
            found[answered] = np.maximum(found[answered], apart)
        return found

    def _stages(self, native: Floats, onnx: Floats) -> Iterator[tuple[Floats, Floats, float]]:
        """What is compared: outputs, and what a client gets of them; with their spread."""
        yield native, onnx, self.spread
        if self.calibrator is not None:
            target = self.scorer.schema.target
            with np.errstate(all="ignore"):
                one, other = (self.calibrator.apply(o, target) for o in (native, onnx))
            yield one, other, abs(self.calibrator.scale) * self.spread or 1.0

    def _labels(self, output: Floats) -> Any:
        """The label of each row as a number; the same for all in a regression."""
        task = self.scorer.schema.target.task
        if task == "regression":
            return np.zeros(len(output))
        return output > 0.5 if task == "binary" else output.argmax(axis=1)


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


def _versions() -> dict[str, Json]:
    return {name: metadata.version(name) for name in ("onnx", "onnxruntime", "skl2onnx")}
