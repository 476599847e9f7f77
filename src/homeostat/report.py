"""Reports for people and programs: Evidently's HTML, `drift_status.json`, a Markdown summary.

Takes evidence, and bounded samples of the rows behind it. Gives files that are whole or not there,
and texts in which no name of a column, level or class can act as HTML or Markdown.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pyarrow as pa

from homeostat import files
from homeostat.audit import jsonable
from homeostat.contracts import Engine
from homeostat.draw import draw
from homeostat.errors import cause
from homeostat.records import (
    Action,
    ColumnDrift,
    Decision,
    Evidence,
    Finding,
    Hurts,
    Interval,
    Json,
    Outcome,
    Performance,
    Quarantine,
    State,
    Verdict,
    Window,
)
from homeostat.schema import Schema

SCHEMA_VERSION = 1
HTML = "drift_report.html"
STATUS = "drift_status.json"


class FileReporter:
    """A `Reporter` that writes into one folder; Evidently runs in the engine's child.

    Evidently is handed at most `sample` rows of the reference and of the window, drawn with
    `seed`: its cost does not depend on the traffic.
    """

    def __init__(self, folder: Path, engine: Engine, *, sample: int, seed: int) -> None:
        self._folder = folder
        self._engine = engine
        self._sample = sample
        self._seed = seed

    def evidently(
        self, reference: pa.Table, current: pa.Table, schema: Schema
    ) -> Mapping[str, Json]:
        """Write the HTML report and return what Evidently makes of each column.

        `drifted_share`, `dataset_drift`, `columns` {name: method, value, threshold, drifted},
        `left_out` (columns Evidently cannot take), `rows` and `report`, the file beside the
        status. On failure `{"error": …}`, and the HTML says so; never raises.
        """
        try:
            before, after = self._bounded(reference, schema), self._bounded(current, schema)
            page, numbers = self._engine.run(draw, before, after, schema)
            files.write(self._folder / HTML, page)
        except Exception as error:  # noqa: BLE001 - fails closed: the error is the answer
            reason = cause(error)
            try:
                self.placeholder("Evidently's report could not be drawn", reason)
            except OSError as full:
                reason = f"{reason}; nor could it be said in {HTML}: {cause(full)}"
            return {"error": reason}
        return {**numbers, "report": HTML}

    def placeholder(self, title: str, text: str) -> None:
        """Write the HTML where there is nothing to draw, and say why."""
        page = _PAGE.format(title=html.escape(title), text=html.escape(text))
        files.write(self._folder / HTML, page.encode("utf-8", "replace"))

    def status(self, evidence: Evidence) -> None:
        """Write the status file; where Evidently was not asked, the HTML says why."""
        if not evidence.evidently:
            self.placeholder("No drift report", evidence.reason)
        text = json.dumps(to_status(evidence), indent=1, allow_nan=False)
        files.write(self._folder / STATUS, text.encode() + b"\n")

    def last(self) -> Evidence | None:
        """The evidence of the last status; None when there is none that can be read."""
        return read(self._folder)

    def _bounded(self, rows: pa.Table, schema: Schema) -> pa.Table:
        rows = rows.select([name for name in schema.names if name in rows.column_names])
        if rows.num_rows <= self._sample:
            return rows
        drawn = np.random.default_rng(self._seed).choice(rows.num_rows, self._sample, replace=False)
        return rows.take(np.sort(drawn))


def read(folder: Path) -> Evidence | None:
    """The evidence of the status in `folder`; None when there is none that can be read."""
    try:
        return from_status(json.loads((folder / STATUS).read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title>
<style>body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: 4rem auto; }}</style>
</head>
<body><h1>{title}</h1><p>{text}</p></body>
</html>
"""


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
        "performance": evidence.performance and asdict(evidence.performance),
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
    predicted = content["prediction_drift"]
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
        performance=_performance(content["performance"]),
        evidently=content["evidently"],
        created_at=_time(content["created_at"]),
        quarantined=tuple(Quarantine.of(body) for body in content.get("quarantined", ())),
    )


def _drift_json(drift: ColumnDrift) -> dict[str, Json]:
    return {key: value for key, value in asdict(drift).items() if key != "column"}


def _drift(name: str, body: Mapping[str, Json]) -> ColumnDrift:
    return ColumnDrift(column=name, **{k: v for k, v in body.items() if k != "quality"})


def _findings(content: Mapping[str, Json]) -> Iterator[Finding]:
    for body in content["quality"]:
        yield Finding(column=None, **body)
    for name, feature in content["features"].items():
        for body in feature["quality"]:
            yield Finding(column=name, **body)


def _performance(body: Mapping[str, Json] | None) -> Performance | None:
    if body is None:
        return None
    realised, baseline = (
        Interval(**body[key]) if body[key] else None for key in ("realised", "baseline")
    )
    return Performance(body["metric"], realised, baseline, body["extra"])


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


def newest_turn(lines: Sequence[Mapping[str, Json]], evidence: Evidence | None) -> Outcome | None:
    """The newest decision in the audit chain and what came of it; None before the first."""
    begins = [place for place, line in enumerate(lines) if line["kind"] == "decided"]
    if not begins:
        return None
    turn = lines[begins[-1] :]
    decided = {**turn[0]["body"]["decision"]}
    for line in turn:
        if line["kind"] in ("held", "training_failed", "not_promoted"):
            decided |= {"action": "hold", "trigger": line["kind"], "reason": line["body"]["reason"]}
    decided["action"] = Action(decided["action"])
    gates = [{**line["body"]} for line in turn if line["kind"] == "gate"]
    return Outcome(
        at=_time(turn[0]["at"]),
        decision=Decision(**decided),
        evidence=evidence,
        verdict=_verdict(gates[0]) if gates else None,
        promoted=any(line["kind"] == "promoted" for line in turn),
    )


def _verdict(body: dict[str, Json]) -> Verdict:
    window = body["window"]
    body["window"] = window and Window(_time(window["start"]), _time(window["end"]))
    return Verdict(**body)


def summary(of: Outcome | Evidence) -> str:
    """Markdown for a job summary: the verdict, the drift of each column, the gate."""
    evidence = of if isinstance(of, Evidence) else of.evidence
    parts = []
    if evidence is not None:
        parts += [
            f"## Drift: {evidence.state.value}",
            _text(evidence.reason),
            _drift_table(evidence),
        ]
    if isinstance(of, Outcome):
        action = of.decision.action.value.replace("_", " ")
        parts += [f"## Decision: {action}", _text(of.decision.reason)]
        if of.verdict is not None:
            parts += [f"## Gate: {'promoted' if of.promoted else 'champion kept'}"]
            parts += [_text(of.verdict.reason), _gate_table(of.verdict)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _drift_table(evidence: Evidence) -> str:
    tested = {drift.column: drift for drift in evidence.columns}
    if evidence.prediction_drift is not None:
        tested[evidence.prediction_drift.column] = evidence.prediction_drift
    names = [*tested, *(f.column for f in evidence.findings if f.column is not None)]
    head = ("column", "distance", "threshold", "adjusted p", "drifted", "quality")
    rows: list[tuple[str, ...]] = []
    for name in dict.fromkeys(names):
        drift = tested.get(name)
        found = [f"{f.severity}: {f.check}" for f in evidence.findings if f.column == name]
        quality = _text(", ".join(found))
        if drift is None:
            rows.append((_text(name), "", "", "", "", quality))
            continue
        numbers = (drift.distance, drift.threshold, drift.adjusted_p_value)
        said = "**yes**" if drift.drifted else "no"
        rows.append((_text(name), *(f"{number:.3g}" for number in numbers), said, quality))
    return _table(head, rows) if rows else ""


def _gate_table(verdict: Verdict) -> str:
    head = ("metric", "champion", "challenger", "difference", "95 % interval", "rows", "blocks")
    bounds = f"{_number(verdict.low)} to {_number(verdict.high)}"
    losses = (verdict.champion, verdict.challenger, verdict.difference)
    row = (_text(verdict.metric), *map(_number, losses), bounds, verdict.rows, verdict.blocks)
    return _table(head, [tuple(map(str, row))])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _text(text: str) -> str:
    """`text` as Markdown that shows it as it is: whatever could act becomes a character code."""
    flat = " ".join(text.split())
    return re.sub(r"[^\w\s,.%-]|_|\.(?=[^\W\d])", lambda match: f"&#{ord(match[0])};", flat)
