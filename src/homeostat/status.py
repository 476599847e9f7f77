"""The content of `drift_status.json`: evidence as a document that programs read, and back.

Takes evidence and gives plain JSON of schema version 1, or the other way round; what is no such
document raises, so that a flag that cannot be read is never taken for "no drift".
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from datetime import datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from homeostat.audit import jsonable
from homeostat.records import (
    ColumnDrift,
    Evidence,
    Finding,
    Hurts,
    Interval,
    Json,
    Performance,
    Quarantine,
    Segment,
    Staleness,
    State,
    Window,
)

SCHEMA_VERSION = 1
_NUMBERS = tuple(field.name for field in fields(ColumnDrift) if field.name != "column")


def to_status(evidence: Evidence) -> dict[str, Json]:
    """The content of `drift_status.json`; a number that is not finite becomes null."""
    quality: dict[str | None, list[Json]] = {}
    for finding in evidence.findings:
        body = asdict(finding)
        quality.setdefault(body.pop("column"), []).append(body)
    tested = {drift.column: _drift_json(drift) for drift in evidence.columns}
    names = [*tested, *(n for n in quality if n is not None and n not in tested)]
    window = evidence.window
    content = {
        "data_drift": evidence.data_drift,
        "carried_over": evidence.carried_over,
        "schema_version": SCHEMA_VERSION,
        "verdict": evidence.state.value,
        "hurts": evidence.hurts.value,
        "reason": evidence.reason,
        "window": {
            "start": window.start.isoformat(),
            "end": window.end.isoformat(),
            "rows": evidence.rows,
            "labelled": evidence.labelled,
            "refused": evidence.refused,
        },
        "reference": {
            "release": evidence.release,
            "rows": evidence.reference_rows,
            "blocks": evidence.reference_blocks,
        },
        "quality": quality.get(None, []),
        "features": {n: {**tested.get(n, {}), "quality": quality.get(n, [])} for n in names},
        "prediction_drift": evidence.prediction_drift and _drift_json(evidence.prediction_drift),
        "joint_drift": evidence.joint_drift and _drift_json(evidence.joint_drift),
        "false_alarms_per_year": evidence.false_alarms_per_year,
        "performance": evidence.performance and asdict(evidence.performance),
        "staleness": evidence.staleness and asdict(evidence.staleness),
        "segments": [_segment_json(segment) for segment in evidence.segments],
        "evidently": dict(evidence.evidently),
        "versions": dict(_versions()),
        "created_at": evidence.created_at.isoformat(),
        "quarantined": jsonable(evidence.quarantined),
    }
    return {key: _finite(value) for key, value in content.items()}


def from_status(content: Mapping[str, Json]) -> Evidence:
    """The inverse of `to_status`. Raises ValueError, KeyError or TypeError for anything else."""
    if content["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"schema_version {content['schema_version']!r} is not {SCHEMA_VERSION}")
    window, reference = content["window"], content["reference"]
    predicted, together = content["prediction_drift"], content.get("joint_drift")
    return Evidence(
        window=Window(_time(window["start"]), _time(window["end"])),
        release=reference["release"],
        state=State(content["verdict"]),
        data_drift=_flag(content["data_drift"]),
        carried_over=_flag(content["carried_over"]),
        hurts=Hurts(content["hurts"]),
        reason=content["reason"],
        rows=window["rows"],
        labelled=window["labelled"],
        refused=window["refused"],
        reference_rows=reference["rows"],
        reference_blocks=reference["blocks"],
        columns=tuple(
            _drift(name, body) for name, body in content["features"].items() if "distance" in body
        ),
        findings=tuple(_findings(content)),
        prediction_drift=_drift("prediction", predicted) if predicted else None,
        joint_drift=_drift("joint", together) if together else None,
        false_alarms_per_year=content.get("false_alarms_per_year"),
        performance=_performance(content["performance"]),
        evidently=content["evidently"],
        created_at=_time(content["created_at"]),
        staleness=Staleness(**content["staleness"]) if content.get("staleness") else None,
        segments=tuple(_segment(body) for body in content.get("segments", ())),
        quarantined=tuple(Quarantine.of(body) for body in content.get("quarantined", ())),
    )


def to_shapes(evidence: Evidence) -> bytes:
    """The content of `drift_shapes.json`: how each column is distributed, and its importance.

    `columns` {name → {labels, reference, current}}, shares of the rows by bin, null last.
    """
    content = {
        "schema_version": SCHEMA_VERSION,
        "release": evidence.release,
        "window": jsonable(evidence.window),
        "importance": jsonable(evidence.importance),
        "columns": {
            jsonable(shape.column): {
                "labels": jsonable(shape.labels),
                "reference": [round(share, 5) for share in shape.reference],
                "current": [round(share, 5) for share in shape.current],
            }
            for shape in evidence.shapes
        },
    }
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _drift_json(drift: ColumnDrift) -> dict[str, Json]:
    return {key: value for key, value in asdict(drift).items() if key != "column"}


def _drift(name: str, body: Mapping[str, Json]) -> ColumnDrift:
    return ColumnDrift(column=name, **{k: v for k, v in body.items() if k != "quality"})


def _segment_json(segment: Segment) -> dict[str, Json]:
    """Flat: `furthest` is the name of the column, beside its numbers, which are null without it."""
    told = {**asdict(segment), "furthest": segment.furthest and segment.furthest.column}
    return told | {name: getattr(segment.furthest, name, None) for name in _NUMBERS}


def _segment(body: Mapping[str, Json]) -> Segment:
    rest = {key: value for key, value in body.items() if key not in _NUMBERS}
    furthest = None
    if body["furthest"] is not None:
        furthest = ColumnDrift(body["furthest"], **{name: body[name] for name in _NUMBERS})
    return Segment(**rest | {"verdict": State(body["verdict"]), "furthest": furthest})


def _findings(content: Mapping[str, Json]) -> Iterator[Finding]:
    for body in content["quality"]:
        yield Finding(column=None, **body)
    for name, feature in content["features"].items():
        for body in feature["quality"]:
            yield Finding(column=name, **body)


def _performance(body: Mapping[str, Json] | None) -> Performance | None:
    if body is None:
        return None
    held = {key: body.get(key) for key in ("realised", "baseline", "estimated", "first_release")}
    lists = {key: body.get(key, {}) for key in ("measures", "estimates")}
    share = {"labelled_by_score": tuple(body.get("labelled_by_score", ()))}
    return Performance(
        **{**body, **share, **{key: one and Interval(**one) for key, one in held.items()}}
        | {key: {n: Interval(**one) for n, one in of.items()} for key, of in lists.items()}
    )


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _flag(value: Json) -> bool:
    # A flag that is not one must not be read as "no drift".
    if not isinstance(value, bool):
        raise TypeError(f"a flag must be true or false, not {type(value).__name__}")
    return value


def _finite(value: Json) -> Json:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


@lru_cache(maxsize=1)
def _versions() -> tuple[tuple[str, str], ...]:
    found = []
    for name in ("homeostat", "evidently", "numpy", "pyarrow", "scipy"):
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            continue  # run from its source, or left out on purpose
    return tuple(found)
