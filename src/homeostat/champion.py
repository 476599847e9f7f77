"""The champion of a server: a release, verified and tried before it may answer.

It takes the store of releases and the champion that serves now. It gives the one that the pointer
names, unpickled only after every byte was verified, and only if it answers its golden rows.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace

import cloudpickle
import numpy as np
import pyarrow.parquet as pq

from homeostat.contracts import Releases
from homeostat.errors import ReleaseError, VerificationError
from homeostat.records import Release
from homeostat.schema import Schema
from homeostat.scoring import Calibrator, Scorer, outputs

TOLERANCE = 1e-9  # by which a golden row's output may differ, absolute and relative


@dataclass(frozen=True, slots=True)
class Champion:
    """A verified release that is ready to answer."""

    release: Release
    scorer: Scorer

    @property
    def schema(self) -> Schema:
        return self.scorer.schema


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
    schema = Schema.from_json(releases.object(release, "schema"))
    calibrator = None
    if "calibrator" in release.manifest["objects"]:
        calibrator = Calibrator.from_json(releases.object(release, "calibrator"))
    golden = releases.object(release, "golden")
    model = releases.object(release, "model")
    scorer = Scorer(cloudpickle.loads(model), schema, calibrator)
    _try_golden(scorer, golden)
    return Champion(release, scorer)


def _try_golden(scorer: Scorer, golden: bytes) -> None:
    rows = pq.read_table(io.BytesIO(golden))
    given = outputs(scorer.score(rows), scorer.schema.target)
    wanted = outputs(rows, scorer.schema.target)
    if not rows.num_rows or not np.allclose(given, wanted, rtol=TOLERANCE, atol=TOLERANCE):
        raise ReleaseError(
            "the model does not answer its golden rows as it did when it was fitted.",
            hint="Are the libraries here the versions that the release names?",
        )
