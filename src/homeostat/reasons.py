"""Reasons: what a decision says of one window, in a sentence a human reads, and its numbers.

Takes Evidence and gives text and figures; what is not known is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from homeostat.records import ColumnDrift, Evidence, Hurts, State

NAMED = 3  # columns or findings that a reason names; the rest are counted


def numbers(evidence: Evidence) -> Mapping[str, float]:
    """The figures of a decision; what is not known or not finite is left out."""
    found: dict[str, float] = {
        "rows": evidence.rows,
        "labelled": evidence.labelled,
        "refused": evidence.refused,
        "columns": len(evidence.columns),
        "drifted": sum(column.drifted for column in evidence.columns),
        "blocking": sum(finding.severity == "block" for finding in evidence.findings),
    }
    if evidence.performance is not None:
        for name in ("realised", "estimated", "baseline"):
            interval = getattr(evidence.performance, name)
            if interval is not None:
                found[name] = interval.value
    return {name: value for name, value in found.items() if math.isfinite(value)}


def broken(evidence: Evidence) -> str:
    findings = [finding for finding in evidence.findings if finding.severity == "block"]
    if not findings:
        return f"The data is broken, so no model may learn from it: {sentence(evidence)}"
    named = [
        f"{finding.check} in {finding.column[:40]}" if finding.column else finding.check
        for finding in findings[:NAMED]
    ]
    return f"The data is broken, so no model may learn from it: {_listed(named, len(findings))}."


def harm(evidence: Evidence) -> str:
    performance = evidence.performance
    if performance is None or performance.baseline is None:
        return f"The champion's predictions got worse: {sentence(evidence)}"
    now, told = performance.realised, performance.estimated
    name = performance.metric.replace("_", " ")
    if performance.harm_by == "estimate" and told is not None:
        return (
            f"The champion's {name} is estimated at {told.value:.4g} on {told.rows:,} rows that "
            f"have no label yet, against {performance.baseline.value:.4g} at its release."
        )
    if now is None:
        return f"The champion's predictions got worse: {sentence(evidence)}"
    spread = "" if now.low is None or now.high is None else f" ({now.low:.4g} to {now.high:.4g})"
    return (
        f"The champion's {name} is {now.value:.4g}{spread} on "
        f"{now.rows:,} labelled rows, against {performance.baseline.value:.4g} at its release."
    )


def drift(evidence: Evidence) -> str:
    drifted = sorted((c for c in evidence.columns if c.drifted), key=_rank)
    prediction, joint = evidence.prediction_drift, evidence.joint_drift
    shifted = prediction is not None and prediction.drifted
    together = joint is not None and joint.drifted
    nothing = not (drifted or shifted or together)
    if nothing or any(c.distance <= c.threshold for c in drifted):
        # Where Evidently decides, ours are not the numbers that did.
        return f"The window drifted: {sentence(evidence)}"
    parts = []
    if drifted:
        named = [f"{c.column[:40]} {c.distance:.2f} > {c.threshold:.2f}" for c in drifted[:NAMED]]
        total = len(evidence.columns)
        parts.append(f"{len(drifted)} of {total} columns drifted ({_listed(named, len(drifted))})")
    if joint is not None and together:
        measured = f"{joint.test[:80]}, {joint.distance:.2f} > {joint.threshold:.2f}"
        parts.append(f"the columns drifted together ({measured})")
    if prediction is not None and shifted:
        measured = f"{prediction.distance:.2f} > {prediction.threshold:.2f}"
        parts.append(f"the predictions drifted ({measured})")
    text = " and ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def calm(evidence: Evidence) -> str:
    if evidence.state == State.DRIFT:
        return "Nothing could be tested in this window: the drift flag is carried over."
    worse = {
        Hurts.NO: "and the champion's loss is as it was",
        Hurts.UNKNOWN: "and labels do not say that the champion got worse",
    }
    total = len(evidence.columns)
    return f"None of {total} columns calls for action {worse[Hurts(evidence.hurts)]}."


def _rank(column: ColumnDrift) -> tuple[float, str]:
    excess = column.distance - column.threshold
    return (-excess if math.isfinite(excess) else 0.0, column.column)


def _listed(named: list[str], total: int) -> str:
    rest = total - len(named)
    return ", ".join(named) + (f" and {rest} more" if rest > 0 else "")


def sentence(evidence: Evidence) -> str:
    text = evidence.reason.strip() or f"the monitor says {State(evidence.state).value}"
    return text if text.endswith((".", "!", "?")) else f"{text}."
