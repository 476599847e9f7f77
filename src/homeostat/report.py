"""Reports for people and programs: Evidently's HTML and our own, the status file, a summary.

Takes evidence, and bounded samples of the rows behind it. Gives files that are whole or not there,
and texts in which no name of a column, level or class can act as HTML or Markdown.
"""

from __future__ import annotations

import html
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from homeostat import files, looks
from homeostat.contracts import Engine
from homeostat.draw import draw
from homeostat.errors import cause
from homeostat.findings import findings
from homeostat.page import page, shown
from homeostat.past import PROBATION
from homeostat.plot import can_draw, plot
from homeostat.records import (
    Action,
    ColumnDrift,
    Decision,
    Evidence,
    Json,
    Outcome,
    Segment,
    Verdict,
)
from homeostat.schema import Schema
from homeostat.settings import Monitor
from homeostat.status import from_status, to_shapes, to_status

LOGGER = logging.getLogger(__name__)
HTML = "drift_report.html"
STATUS = "drift_status.json"
PAGE = "monitor_report.html"
PICTURE = "monitor_report.png"
SHAPES = "drift_shapes.json"


class FileReporter:
    """A `Reporter` that writes into one folder; Evidently and matplotlib run in the engine's child.

    Evidently is handed at most `sample` rows of the reference and of the window, drawn with
    `seed`: its cost does not depend on the traffic. `lines` gives the audit chain, for the looks
    of before, and `rules` are what the page says that the verdict rests on.
    """

    def __init__(
        self,
        folder: Path,
        engine: Engine,
        *,
        sample: int,
        seed: int,
        rules: Monitor | None = None,
        lines: Callable[[], Sequence[Mapping[str, Json]]] = tuple,
    ) -> None:
        self._folder = folder
        self._engine = engine
        self._sample = sample
        self._seed = seed
        self._rules = rules or Monitor()
        self._lines = lines

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
        self._say(HTML, title, text)

    def _say(self, name: str, title: str, text: str) -> None:
        said = _PAGE.format(title=html.escape(title), text=html.escape(text))
        files.write(self._folder / name, said.encode("utf-8", "replace"))

    def status(self, evidence: Evidence) -> None:
        """Write the status file, and our own report beside it; where Evidently was not asked, its
        HTML says why. A report that cannot be drawn says so and goes no further.
        """
        if not evidence.evidently:
            self.placeholder("No drift report", evidence.reason)
        content = to_status(evidence)
        text = json.dumps(content, indent=1, allow_nan=False)
        files.write(self._folder / STATUS, text.encode() + b"\n")
        shapes = to_shapes(evidence)
        files.write(self._folder / SHAPES, shapes)
        try:
            self._report(evidence, content)
        except Exception as error:  # noqa: BLE001 - fails closed: the status stands, the page tells
            reason = cause(error)
            LOGGER.warning("No %s: %s.", PAGE, reason)
            with suppress(OSError):
                (self._folder / PICTURE).unlink(missing_ok=True)
                self._say(PAGE, "The report could not be drawn", reason)
        self._keep(evidence, shapes)

    def _keep(self, evidence: Evidence, shapes: bytes) -> None:
        """For the page, which shows older looks as well, where they are kept."""
        look = (self._folder, evidence.window.end, evidence.release)
        try:
            if evidence.shapes:
                looks.keep(*look, "shapes.json", shapes)
            if evidence.evidently.get("report"):
                looks.keep(*look, "report.html", (self._folder / HTML).read_bytes())
        except OSError as error:
            LOGGER.warning("What people may want of this look is not kept: %s.", cause(error))

    def _report(self, evidence: Evidence, content: Mapping[str, Json]) -> None:
        found = findings(content, evidence.shapes, evidence.importance, self._lines(), self._rules)
        told = self._picture(evidence, found)
        made = page(found, picture=told, drift_report=HTML)
        files.write(self._folder / PAGE, made)

    def _picture(self, evidence: Evidence, found: Mapping[str, Json]) -> str:
        """Draw the PNG where there is something to draw; what the page says about it."""
        if "skipped" in evidence.evidently:
            return "The picture beside this page was left as it was in this look."
        try:
            if not evidence.shapes or not evidence.columns:
                return self._no_picture("there is nothing to draw")
            if not can_draw():
                return self._no_picture("it needs matplotlib, which homeostat[demo] brings")
            files.write(self._folder / PICTURE, self._engine.run(plot, found))
        except Exception as error:  # noqa: BLE001 - the page has all that the picture would have
            return self._no_picture(cause(error))
        return f"The same in one picture: {PICTURE}."

    def _no_picture(self, why: str) -> str:
        (self._folder / PICTURE).unlink(missing_ok=True)
        return f"No picture was drawn beside this page: {why.rstrip('.')}."

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


FAILED = ("held", "training_failed", "calibration_failed", "rollback_failed", "not_promoted")
"""Kinds of line after which a turn held, whatever was decided."""


def newest_turn(lines: Sequence[Mapping[str, Json]], evidence: Evidence | None) -> Outcome | None:
    """The newest decision in the audit chain and what came of it; None before the first."""
    begins = [place for place, line in enumerate(lines) if line["kind"] == "decided"]
    if not begins:
        return None
    turn = lines[begins[-1] :]
    decided = {**turn[0]["body"]["decision"]}
    for line in turn:
        if line["kind"] in FAILED:
            decided |= {"action": "hold", "trigger": line["kind"], "reason": line["body"]["reason"]}
        elif _went_back(line):
            decided |= {"action": "roll_back", "reason": line["body"]["reason"]}
    decided["action"] = Action(decided["action"])
    judged = ("gate", "calibration_gate")
    gates = [{**line["body"]} for line in turn if line["kind"] in judged]
    return Outcome(
        at=datetime.fromisoformat(turn[0]["at"]),
        decision=Decision(**decided),
        evidence=evidence,
        verdict=Verdict.of(gates[0]) if gates else None,
        promoted=any(line["kind"] == "promoted" or _went_back(line) for line in turn),
    )


def _went_back(line: Mapping[str, Json]) -> bool:
    """Whether the loop itself made an earlier release serve again, perhaps instead of a map."""
    return bool(line["kind"] == "rolled_back" and line["body"].get("by") == PROBATION)


def summary(of: Outcome | Evidence) -> str:
    """Markdown for a job summary: the verdict, the drift of each column, of all together and of
    each segment, the gate.
    """
    evidence = of if isinstance(of, Evidence) else of.evidence
    parts = []
    if evidence is not None:
        parts += [
            f"## Drift: {evidence.state.value}",
            _text(evidence.reason),
            _drift_table(evidence),
            *_segments(evidence),
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
        rows.append((_text(name), *_numbers(drift), quality))
    together = evidence.joint_drift
    if together is not None:
        rows.append((f"together: {_text(together.test)}", *_numbers(together), ""))
    return _table(head, rows) if rows else ""


def _numbers(drift: ColumnDrift) -> tuple[str, str, str, str]:
    """Distance, threshold, adjusted p, and whether it drifted."""
    numbers = (drift.distance, drift.threshold, drift.adjusted_p_value)
    distance, threshold, adjusted = (f"{number:.3g}" for number in numbers)
    return distance, threshold, adjusted, "**yes**" if drift.drifted else "no"


def _segments(evidence: Evidence) -> Iterator[str]:
    """A table of those that were judged, and a line for each that was not."""
    if not evidence.segments:
        return
    yield "### Segments"
    head = ("segment", "rows", "furthest", "distance", "threshold", "adjusted p", "drifted")
    rows = []
    for segment in evidence.segments:
        furthest = segment.furthest
        if furthest is not None:
            where = f"{_text(shown(furthest.column))}: {_text(shown(furthest.test))}"
            rows.append((_segment(segment), f"{segment.rows}", where, *_numbers(furthest)))
    if rows:
        yield _table(head, rows)
    left = [segment for segment in evidence.segments if segment.furthest is None]
    if left:
        yield "\n".join(f"- {_segment(one)}: {_text(one.reason)}" for one in left)


def _segment(segment: Segment) -> str:
    level = "" if segment.level is None else f" = {_text(shown(segment.level))}"
    return f"{_text(shown(segment.column))}{level}"


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
