"""The champion of a server: a release, verified and tried before it may answer.

It takes the store of releases and the champion that serves now. It gives the one that the pointer
names, opened only after every byte was verified, and only if it answers its golden rows. Where the
release has a twin, that serves, and the model itself is never unpickled.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow.parquet as pq

from homeostat.contracts import Releases
from homeostat.errors import ReleaseError, VerificationError
from homeostat.records import Release
from homeostat.schema import Schema
from homeostat.scoring import Calibrator, Scorer, calibrated, outputs
from homeostat.session import Session

if TYPE_CHECKING:
    from homeostat.scoring import Floats

TOLERANCES = {"native": 1e-9, "onnx": 1e-6}
"""By which a golden row's output may differ, absolute and relative, for each engine."""


@dataclass(frozen=True, slots=True)
class Champion:
    """A verified release that is ready to answer."""

    release: Release
    schema: Schema
    calibrator: Calibrator | None
    engine: Literal["onnx", "native"]
    why: str | None  # the model itself serves and not its twin; None where the twin does
    _raw: Callable[[Sequence[Sequence[Any]]], Floats] = field(repr=False)

    def output(self, columns: Sequence[Sequence[Any]]) -> Floats:
        """The calibrated output for each row, as `Scorer.output` gives it.

        `columns` holds one sequence of checked values per feature, in the schema's order, None
        for null. A row's output does not depend on the rows beside it. Raises SchemaError when
        the model yields anything not finite.
        """
        return calibrated(self._raw(columns), self.schema.target, self.calibrator)


def load(releases: Releases, present: Champion | None) -> Champion | None:
    """The champion that the pointer names; None before the first, `present` if it is the same.

    Raises VerificationError for bytes that nobody vouches for and for a pointer older than that of
    `present`, ReleaseError for a model that does not answer as it should, and whatever unpickling
    or the model itself raises.
    """
    release = releases.champion()
    if release is None:
        if present is not None:
            raise ReleaseError(f"the pointer is gone; {present.release.short} serves on.")
        return None
    if present is not None:
        now, then = release.sequence, present.release.sequence
        if release.id == present.release.id and now >= then:
            return replace(present, release=release)
        if now <= then:
            raise VerificationError(
                f"the pointer went back from {then} to {now}; {present.release.short} serves on.",
                hint="Use `homeostat rollback`, not an older copy of the file.",
            )
    return opened(releases, release)


def opened(releases: Releases, release: Release) -> Champion:
    """A release, opened once its bytes are verified, and tried on its golden rows.

    Raises as `load` does.
    """
    schema = Schema.from_json(releases.object(release, "schema"))
    calibrator = None
    if "calibrator" in release.manifest["objects"]:
        calibrator = Calibrator.from_json(releases.object(release, "calibrator"))
    golden = releases.object(release, "golden")
    champion = _ready(releases, release, schema, calibrator)
    _try_golden(champion, golden)
    return champion


def _ready(
    releases: Releases, release: Release, schema: Schema, calibrator: Calibrator | None
) -> Champion:
    """The twin where the release has one, else the unpickled model, and why it is that."""
    if "twin" in release.manifest["objects"]:
        session = Session(releases.object(release, "twin"))
        return Champion(release, schema, calibrator, "onnx", None, session.output)
    import cloudpickle

    told = release.manifest.get("twin")
    why = told["why"] if told else "No twin was made when this was released."
    scorer = Scorer(cloudpickle.loads(releases.object(release, "model")), schema)

    def raw(columns: Sequence[Sequence[Any]]) -> Floats:
        return scorer.output(schema.table(dict(zip(schema.names, columns, strict=True))))

    return Champion(release, schema, calibrator, "native", why, raw)


def _try_golden(champion: Champion, golden: bytes) -> None:
    rows = pq.ParquetFile(io.BytesIO(golden)).read()  # `read_table` would import pandas
    given = champion.output([rows.column(name).to_pylist() for name in champion.schema.names])
    wanted = outputs(rows, champion.schema.target)
    near = TOLERANCES[champion.engine]
    if not rows.num_rows or not np.allclose(given, wanted, rtol=near, atol=near):
        raise ReleaseError(
            "the model does not answer its golden rows as it did when it was fitted.",
            hint="Are the libraries here the versions that the release names?",
        )
