"""What a model, or its line, answers on rows that the answering model has not seen.

Takes the stores and a model: a release, or a candidate that may become one. Gives labelled rows
with bare outputs, each by the newest model of the line that was not fitted on it, so that a map
for a model can be fitted on rows which that model itself was fitted on.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from homeostat import lineage, quarantine
from homeostat.binning import micro, moments
from homeostat.contracts import Releases
from homeostat.errors import ReleaseError
from homeostat.recalibrate import RIDGE, fitted
from homeostat.records import Candidate, Release, Window
from homeostat.schema import Schema
from homeostat.scoring import Calibrator, outputs
from homeostat.stats import block_keys
from homeostat.stores import Stores

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]
    Mask: TypeAlias = NDArray[np.bool_]

JUDGED = "judged"
"""The object of a release that holds what its sibling answered to the rows that judged it."""


@dataclass(frozen=True)
class Unseen:
    """Labelled rows of classes that the model knows, in order of time, and bare outputs."""

    rows: pa.Table
    raw: Floats  # shape (rows,), or (rows, classes) of a multiclass model
    labels: NDArray[Any]
    schema: Schema

    def within(self, window: Window) -> Unseen:
        """Those of `window`."""
        times = moments(self.rows)
        first, last = np.searchsorted(times, [micro(window.start), micro(window.end)])
        rows = self.rows.slice(int(first), int(last - first))
        return Unseen(rows, self.raw[first:last], self.labels[first:last], self.schema)

    def fit(self, block: timedelta, ridge: float = RIDGE) -> Calibrator:
        """The map of least penalised loss; the ridge is `ridge` blocks' worth of rows."""
        keys = block_keys(moments(self.rows), block)
        return fitted(self.raw, self.labels, keys, self.schema.target, ridge=ridge)


@dataclass(frozen=True)
class Model:
    """A model and where it comes from."""

    held: Callable[[str], bytes | None]  # its objects by name
    cutoff: datetime  # it was fitted on rows before
    parent: str | None  # release whose model it replaced, or is to replace

    @classmethod
    def of(cls, releases: Releases, release: Release) -> Model:
        """That of a release, whatever maps are over it."""
        *_, base = lineage.kin(releases, release)

        def held(name: str) -> bytes | None:
            return releases.object(base, name) if name in base.manifest["objects"] else None

        return cls(held, base.cutoff, base.manifest["parent"])

    @classmethod
    def made(cls, candidate: Candidate) -> Model:
        """That of a candidate."""
        return cls(candidate.objects.get, candidate.training.cutoff, candidate.parent)


def unseen(
    by: Stores, model: Model, window: Window, now: datetime, *, as_of: datetime | None = None
) -> Unseen:
    """The labelled rows of `window`, each as answered by the newest model that has not seen it:
    `model` itself for rows since its cut-off, its sibling for the rows that judged it, and for all
    others the model that it replaced, by the same rule. Rows that all have seen are left out.

    With `as_of`, earlier than `now`, labels that came after it are not known.
    """
    schema = _schema(model)
    rows = labelled(by, schema, window, as_of or now)
    if schema.target.task != "regression":
        rows = rows.filter(pc.is_in(rows.column("label"), pa.array(schema.target.classes)))
    target, times, features = schema.target, moments(rows), rows
    classes = (len(target.classes),) if target.task == "multiclass" else ()
    raw = np.full((rows.num_rows, *classes), np.nan)
    missing, own = np.ones(rows.num_rows, dtype=bool), schema
    while missing.any() and own.target == target:
        chosen = missing & (times >= micro(model.cutoff)) & _there(features)
        if chosen.any():
            scores = by.trainer.score(_held(model, "model"), _only(features, chosen), own, None)
            raw[chosen] = outputs(scores, target)
        missing &= ~chosen
        missing &= ~_recalled(model, rows, missing, raw, target)
        if model.parent is None:
            break
        model = Model.of(by.releases, by.releases.get(model.parent))
        own = _schema(model)
        if own.journal != schema.journal:
            features = _beside(rows, labelled(by, own, window, as_of or now))
        else:
            features = rows
    rows = _only(rows, ~missing)
    return Unseen(rows, raw[~missing], schema.labels(rows), schema)


def labelled(by: Stores, schema: Schema, window: Window, as_of: datetime) -> pa.Table:
    """The rows whose labels had come, but for those in quarantine."""
    rows = by.journal.read(window, as_of=as_of, labelled=True, schema=schema)
    return quarantine.sound(rows, by.audit, schema)


def judged(rows: pa.Table, scores: pa.Table) -> bytes:
    """The object `JUDGED`: Parquet with a hash of each row's id, and the columns of `scores`."""
    out = io.BytesIO()
    pq.write_table(scores.add_column(0, "row", _marks(rows)), out)
    return out.getvalue()


def _recalled(model: Model, rows: pa.Table, missing: Mask, raw: Floats, target: Any) -> Mask:
    """Puts into `raw` what the model's sibling answered to the rows that are `missing`; which."""
    found, held = np.zeros(len(missing), dtype=bool), model.held(JUDGED)
    if held is None or not missing.any():
        return found
    kept = pq.read_table(io.BytesIO(held))
    places = pc.index_in(_marks(_only(rows, missing)), kept.column("row").combine_chunks())
    known = np.asarray(pc.is_valid(places))
    found[np.flatnonzero(missing)[known]] = True
    raw[found] = outputs(kept.take(places.drop_null()), target)
    return found


def _marks(rows: pa.Table) -> pa.Array:
    """A hash of each row's id: 64 bits suffice to tell the rows of one gate apart."""
    ids = rows.column("prediction_id").to_pylist()
    marks = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids]
    return pa.array(marks, pa.binary(8))


def _beside(rows: pa.Table, others: pa.Table) -> pa.Table:
    """The rows of `others` in the order of `rows`, null where there is none of that id."""
    ids = others.column("prediction_id").combine_chunks()
    return others.take(pc.index_in(rows.column("prediction_id").combine_chunks(), ids))


def _there(rows: pa.Table) -> Mask:
    return np.asarray(pc.is_valid(rows.column("prediction_id")))


def _only(rows: pa.Table, which: Mask) -> pa.Table:
    return rows.filter(pa.array(which))


def _held(model: Model, name: str) -> bytes:
    content = model.held(name)
    if content is None:
        raise ReleaseError(f"the model has no object {name!r}.")
    return content


def _schema(model: Model) -> Schema:
    return Schema.from_json(_held(model, "schema"))
