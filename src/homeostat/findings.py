"""What a look at a window found, ordered and put into words for the report.

Takes the content of the status file, the shapes and importances behind it, and the looks before it
from the audit chain. Gives plain values that the page and the picture are drawn from; pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias

from homeostat.records import Json, Shape
from homeostat.settings import Monitor

Status: TypeAlias = Mapping[str, Json]
Line: TypeAlias = Mapping[str, Json]

LOOKS = 60  # most looks back that are drawn
KINDS = ("decided", "monitored")

VERDICTS = {
    "stable": "Nothing drifted",
    "drift": "The data drifted",
    "broken_data": "The data is broken",
    "insufficient_data": "Too little data to tell",
    "failed": "The look failed",
}


def findings(
    status: Status,
    shapes: Sequence[Shape],
    importance: Mapping[str, float],
    lines: Sequence[Line],
    rules: Monitor,
) -> dict[str, Any]:
    """All that the report shows: `title`, `state`, `reason`, `features` (ranked), `heat`,
    `segments`, `performance`, and the sentences `found`, `sure` and `untested`.

    `lines` are those of the audit chain; the look that `status` tells of need not be there yet.
    """
    features = ranked(status["features"], shapes, importance)
    return {
        "title": VERDICTS[status["verdict"]],
        "state": status["verdict"],
        "reason": status["reason"],
        "created": status["created_at"][:16].replace("T", " "),
        "release": status["reference"]["release"][:12],
        "features": features,
        "by_importance": bool(importance),
        "heat": heat(status, lines, [feature["name"] for feature in features]),
        "segments": segments(status.get("segments", ())),
        "performance": performance(status.get("performance")),
        "hurts": status["hurts"],
        "found": [*_found(status, features)],
        "sure": [*_sure(status, rules), *_of_segments(status.get("segments", ()), rules)],
        "untested": [*_untested(status, features)],
    }


def ranked(
    told: Mapping[str, Json], shapes: Sequence[Shape], importance: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Each column with its numbers and shape, first those whose drift does most to the model.

    That is distance × importance, an importance below 0 counting as 0; without importances, and
    among equals, the distance. Columns that were not tested come last.
    """
    drawn = {shape.column: shape for shape in shapes}
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys([*told, *drawn]):
        body = told.get(name, {})
        distance, threshold = body.get("distance"), body.get("threshold")
        weight = max(0.0, importance.get(name, 0.0)) if importance else None
        tested = distance is not None and threshold is not None
        rows.append(
            {
                "name": name,
                "tested": tested,
                "distance": distance,
                "threshold": threshold,
                "ratio": _ratio(distance, threshold),
                "p": body.get("adjusted_p_value"),
                "least": body.get("minimum_detectable_shift"),
                "drifted": bool(body.get("drifted", False)),
                "importance": weight,
                "impact": distance * (1.0 if weight is None else weight) if tested else None,
                "quality": [item["message"] for item in body.get("quality", [])],
                "shape": drawn.get(name),
            }
        )
    rows.sort(key=lambda row: (not row["tested"], -(row["impact"] or 0), -(row["distance"] or 0)))
    return rows


def heat(status: Status, lines: Sequence[Line], names: Sequence[str]) -> dict[str, Any]:
    """Distance ÷ threshold of each column in each look, oldest first; None where untested.

    Of several looks at one window for one release the last counts. `begins` are the places at
    which another release was the champion than in the look before.
    """
    looks: dict[tuple[str, str], dict[str, Any]] = {}
    for line in lines:
        body = line["body"] if line["kind"] in KINDS else None
        about = body.get("evidence") if body and line["kind"] == "decided" else body
        if about and about.get("window"):
            looks[about["window"]["end"], about["release"]] = about.get("distances") or {}
    present = (status["window"]["end"], status["reference"]["release"])
    looks[present] = {
        name: [body["distance"], body["threshold"]]
        for name, body in status["features"].items()
        if "distance" in body
    }
    kept = sorted(looks.items(), key=lambda item: item[0][0])[-LOOKS:]
    releases = [release for (_, release), _ in kept]
    return {
        "ends": [end[:10] for (end, _), _ in kept],
        "begins": [i for i in range(1, len(kept)) if releases[i] != releases[i - 1]],
        "rows": [
            {"name": name, "cells": [_ratio(*told.get(name, (None, None))) for _, told in kept]}
            for name in names
            if any(name in told for _, told in kept)
        ],
    }


def performance(told: Mapping[str, Json] | None) -> dict[str, Any] | None:
    """The metric, and each value of it that has an interval, in the status file's order."""
    if not told:
        return None
    rows = [
        {"name": name.replace("_", " "), **{key: body.get(key) for key in ("value", "low", "high")}}
        | {"rows": body.get("rows")}
        for name, body in told.items()
        if isinstance(body, Mapping) and body.get("value") is not None
    ]
    return {"metric": told["metric"].replace("_", " "), "rows": rows} if rows else None


def segments(told: Sequence[Mapping[str, Json]]) -> list[Mapping[str, Json]]:
    """What the status tells of each segment, first those that drifted, last those not judged."""
    order = {"drift": 0, "stable": 1}
    return sorted(told, key=lambda segment: order.get(segment["verdict"], 2))


def _ratio(distance: float | None, threshold: float | None) -> float | None:
    if distance is None or threshold is None:
        return None
    return round(distance / threshold, 4) if threshold > 0 else (2.0 if distance > 0 else 0.0)


def _found(status: Status, features: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield status["reason"]
    if status["carried_over"]:
        flag = "true" if status["data_drift"] else "false"
        yield f"Nothing could be tested, so data_drift keeps its last value, {flag}."
    drifted = [row for row in features if row["drifted"]]
    if drifted and all(row["importance"] is not None for row in drifted):
        first = drifted[0]
        if first["impact"]:
            yield (
                f"What matters most to this model is the drift of {first['name']!r}: up to "
                f"{first['distance']:.0%} of the rows lie elsewhere."
            )
        idle = sum(not row["importance"] for row in drifted)
        if idle:
            yield f"{idle} of the drifted columns hardly move this model's predictions at all."
    yield {
        "yes": "The predictions got worse, as far as labels tell.",
        "no": "The predictions are as good as at the release, as far as labels tell.",
        "unknown": "Whether the predictions got worse is not known.",
    }[status["hurts"]]
    for key, what in (("prediction_drift", "The predictions"), ("joint_drift", "All together")):
        body = status.get(key)
        if body and {"test", "distance", "threshold", "drifted"} <= set(body):
            moved = "drifted" if body["drifted"] else "did not drift"
            yield (
                f"{what} {moved} ({body['test']}): distance {_number(body['distance'])}, threshold "
                f"{_number(body['threshold'])}, adjusted p {_number(body.get('adjusted_p_value'))}."
            )


def _sure(status: Status, rules: Monitor) -> Iterator[str]:
    window, reference = status["window"], status["reference"]
    yield (
        f"The window runs from {_moment(window['start'])} to {_moment(window['end'])}: "
        f"{window['rows']:,} rows, {window['labelled']:,} of them labelled; "
        f"{window['refused']:,} more were refused."
    )
    yield (
        f"It was compared with the {reference['rows']:,} rows in {reference['blocks']:,} blocks of "
        f"time that release {reference['release'][:12]} was fitted on."
    )
    tested = [body for body in status["features"].values() if body.get("threshold") is not None]
    if not tested:
        return
    if rules.detector == "evidently":
        yield (
            "Evidently decides here (monitor.detector), on a sample of at most "
            f"{rules.sample:,} rows of each; its false alarms are not calibrated."
        )
    effect = sum(body["threshold"] <= rules.min_effect for body in tested)
    yield (
        f"A threshold is the larger of the minimum effect ({rules.min_effect:g}, "
        "monitor.min_effect) and the distance that chance alone passes in at most "
        f"{100 * rules.alpha:.3g} % of such windows, all columns together (monitor.alpha). "
        f"The minimum effect is the larger for {effect} of {len(tested)} columns."
    )
    yield _calibration(tested)
    least = sorted(
        body["minimum_detectable_shift"]
        for body in tested
        if body["minimum_detectable_shift"] is not None
    )
    if least:
        ends = dict.fromkeys(_number(shift) for shift in (least[0], least[-1]))
        yield (
            f"The smallest distance that would have been called drift is {' to '.join(ends)}, "
            "depending on the column: smaller shifts may be there unseen."
        )
    blind = sum(shift >= 1 for shift in least)
    if blind:
        yield (
            f"In {blind} columns nothing could have been called drift: this stream varies so much, "
            "or is known for so short a time, that the threshold is 1, the largest distance there "
            "is, or more."
        )


def _of_segments(told: Sequence[Mapping[str, Json]], rules: Monitor) -> Iterator[str]:
    judged = [segment for segment in told if segment["furthest"] is not None]
    if not judged:
        return
    yield (
        f"{len(judged)} segments were judged, each at {100 * rules.alpha / len(judged):.3g} %, so "
        f"that all of them together alarm by chance in at most {100 * rules.alpha:.3g} % of such "
        "windows. They inform: data_drift is that of all rows together."
    )
    bare = sum(not segment["calibrated"] for segment in judged)
    if bare:
        yield (
            f"{bare} of the segments are not calibrated: their part of the reference is not ten "
            "times as long as their part of the window, and they may alarm more often."
        )


def _calibration(tested: Sequence[Mapping[str, Json]]) -> str:
    windows = [body["windows"] for body in tested if body.get("windows")]
    bare = len(tested) - len(windows)
    assumed = (
        "rows were taken as independent, which alarms too often where rows of one time are alike"
    )
    shorter = (
        "shorter stretches of it stood for such windows, and a season that goes on may be called "
        "drift"
    )
    if not windows or any(body["test"].endswith(", shorter stretches") for body in tested):
        return (
            "Not calibrated on this stream: the reference is not ten times as long as the window, "
            f"so {shorter if windows else assumed}."
        )
    few, many = min(windows), max(windows)
    count = f"{few}" if few == many else f"{few} to {many}"
    text = f"What chance does was measured on {count} stretches of the reference as long as this."
    return text if not bare else f"{text} For {bare} of the columns it was not, and {assumed}."


def _untested(status: Status, features: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    untested = [row for row in features if not row["tested"]]
    told = [row for row in untested if row["quality"]]
    for row in told[:20]:
        yield f"{row['name']!r}: {row['quality'][0]}"
    rest = len(untested) - len(told[:20])
    if rest:
        why = {
            "failed": "the look failed",
            "insufficient_data": "there is too little data",
        }.get(status["verdict"], "they have no rows to compare, or are broken")
        yield f"{rest} {'more ' if told else ''}columns were not compared: {why}."
    left = status["evidently"].get("left_out")
    if left:
        yield f"Evidently could not take {len(left)} columns; the status file names them."
    judged = status.get("performance") or {}
    realised = judged.get("realised")
    if not realised:
        yield "Performance: no labelled rows of this champion that are old enough."
    elif realised.get("low") is None:
        yield "The interval of the performance: it needs rows in five blocks of time."
    if judged and not judged.get("baseline"):
        yield "Against the release: nothing was measured when it was released."
    if not status.get("prediction_drift"):
        yield "The drift of the predictions: too few rows that this champion answered."


def _number(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.3g}"


def _moment(text: str) -> str:
    return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M} UTC"
