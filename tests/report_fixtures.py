"""Evidence as the monitor gives it: of a calm window, and of columns with names of all kinds."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from homeostat.records import (
    ColumnDrift,
    Evidence,
    Finding,
    Hurts,
    Interval,
    Performance,
    Shape,
    State,
    Window,
)

NOW = datetime(2024, 3, 1, tzinfo=UTC)
NAMES = (
    "</script><img src=x onerror=alert(1)>",
    "\"quoted\" 'twice' & {{7*7}} {% if %}",
    "👩‍🚒 größe",
    "\u202eevil\u2066\x00\ud800",
    "$\\frac{1}{2}$ costs $",
    "x" * 500,
)


def drift(name, distance=0.3, threshold=0.1, windows=20, test="ks, blocks"):
    moved = distance > threshold
    return ColumnDrift(name, test, distance, threshold, 1e-5, 1e-4, moved, threshold, windows)


def shape(name, levels=("a", "b")):
    count = len(levels) + 1
    rising = tuple(2 * (place + 1) / (count * (count + 1)) for place in range(count))
    return Shape(name, (*levels, "null"), rising, rising[::-1])


def calm(**changed):
    """Evidence of a week in which nothing moved and no label came."""
    known = Evidence(
        window=Window(NOW - timedelta(days=7), NOW),
        release="a" * 64,
        state=State.STABLE,
        data_drift=False,
        carried_over=False,
        hurts=Hurts.UNKNOWN,
        reason="Nothing moved.",
        rows=700,
        labelled=0,
        refused=0,
        reference_rows=10_000,
        reference_blocks=100,
        created_at=NOW,
    )
    return replace(known, **changed)


def evidence(names=NAMES, **changed):
    known = calm(
        state=State.DRIFT,
        data_drift=True,
        hurts=Hurts.YES,
        reason=f"{len(names)} of {len(names)} columns drifted, most of all {names[0]!r}.",
        labelled=600,
        refused=3,
        columns=tuple(drift(name, 0.2 + place / 1_000) for place, name in enumerate(names)),
        findings=(Finding("null_spike", "warn", names[0], 0.2, 0.1, f"Nulls of {names[0]!r}."),),
        prediction_drift=drift("prediction", 0.05),
        performance=Performance(
            "log_loss", Interval(0.5, 0.4, 0.6, 500, 7), Interval(0.4, None, None, 900, 9), {}
        ),
        evidently={"dataset_drift": True, "drifted_share": 1.0, "columns": {}},
        shapes=tuple(shape(name, names[:4]) for name in names),
        importance=dict.fromkeys(names, 0.01),
    )
    return replace(known, **changed)
