"""Estimates of performance without labels, beside NannyML's: `python benchmarks/estimated.py`.

It takes a folder of labelled streams (`--streams DIR`) and the flights. On each a default model is
trained on the first part and asked about the rest; for every later window the metric is estimated
by Homeostat, as a look would, from rows whose labels had come by then, and by NannyML from a
labelled reference, on the very same predictions. It gives the mean absolute error of both, and how
often the truth lay in Homeostat's interval.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from environments import made, run
from load import BenchmarkError
from rich.console import Console
from rich.table import Table
from streams import Source, features, real

from homeostat.infer import infer
from homeostat.monitor.metrics import Scores, metrics_of
from homeostat.monitor.performance import Scope, performance
from homeostat.monitor.small import encoded
from homeostat.records import Interval, Window
from homeostat.schema import TIMESTAMP, Schema
from homeostat.scoring import outputs, tabulate
from homeostat.stats import BlockMean

ENVIRONMENTS = Path("~/.cache/homeostat-bench")
PEER = Path(__file__).parent / "peers" / "cbpe.py"
DAY = timedelta(days=1)
TRAINED, REFERENCE = 0.3, 0.5  # shares of the rows, by time, before which they are that
MATURE = 0.95  # share of the labels that has come at the delay
LEAST = 30  # rows of a window
WIDTH = 120  # below which the table folds


COLUMNS = {"binary": ("log_loss", "accuracy", "auc", "f1"), "regression": ("rmse", "mae")}


@dataclass(frozen=True)
class Scene:
    """One stream, scored: rows in order of time, as the journal gives them."""

    schema: Schema
    rows: pa.Table
    arrived: Any  # datetime64[us] of each label
    delay: timedelta
    reference: Window  # labelled, unseen by the model
    windows: tuple[Window, ...]

    def between(self, window: Window) -> slice:
        times = self.rows.column("occurred_at").to_numpy()
        bounds = (np.datetime64(m.replace(tzinfo=None), "us") for m in (window.start, window.end))
        return slice(*np.searchsorted(times, [*bounds]))

    def part(self, window: Window) -> pa.Table:
        chosen = self.between(window)
        return self.rows.slice(chosen.start, chosen.stop - chosen.start)

    def known(self, window: Window, at: Any) -> pa.Table:
        """The rows of a window with the labels that had come by `at`."""
        rows, chosen = self.part(window), self.between(window)
        come = pa.array(self.arrived[chosen] <= np.datetime64(at.replace(tzinfo=None), "us"))
        labels = rows.column("label")
        labels = pc.if_else(come, labels, pa.scalar(None, labels.type))
        return rows.set_column(rows.column_names.index("label"), "label", labels)


def prepared(
    source: Source, frame: pd.DataFrame, length: timedelta, above: float | None = None
) -> Scene:
    """With `above`, the target is whether it lies above that number."""
    if above is not None:
        frame = frame.assign(**{source.target: (frame[source.target] > above).astype(int)})
    times = pd.to_datetime(frame["occurred_at"], utc=True)
    known = "labelled_at" in frame
    arrived = pd.to_datetime(frame["labelled_at"], utc=True) if known else times + DAY
    first, second = int(len(frame) * TRAINED), int(len(frame) * REFERENCE)
    schema = infer(frame.iloc[:first], target=source.target)
    columns, labels = features(frame, schema), frame[source.target]
    output = _answers(pa.table(columns), labels, first, schema)
    numbers = schema.target.task == "regression"
    text = labels.astype(float) if numbers else [schema.target.text(v) for v in labels.tolist()]
    scores = tabulate(output, schema.target)
    rows = pa.table(
        {
            "occurred_at": pa.array(times.dt.tz_localize(None), pa.timestamp("us")).cast(TIMESTAMP),
            "model_version": pa.array(["model"] * len(frame)),
            **columns,
            **{name: scores.column(name) for name in scores.column_names},
            "label": pa.array(text),
        }
    )
    late = (arrived - times)[first:second].quantile(MATURE)
    moments = [times[i].floor("D").to_pydatetime() for i in (first, second, len(frame) - 1)]
    count = (moments[2] - moments[1]) // length
    windows = [Window(moments[1] + i * length, moments[1] + (i + 1) * length) for i in range(count)]
    stamps = arrived.dt.tz_localize(None).to_numpy().astype("datetime64[us]")
    delay = max(late.ceil("D").to_pytimedelta(), DAY)
    return Scene(schema, rows, stamps, delay, Window(moments[0], moments[1]), tuple(windows))


def _answers(columns: pa.Table, labels: pd.Series, first: int, schema: Schema) -> Any:
    """What boosted trees with their defaults, fitted on the first rows, say of all rows."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from threadpoolctl import threadpool_limits

    numbers, form = encoded(columns, schema), {"random_state": 0}
    with threadpool_limits(1):
        if schema.target.task == "regression":
            model = HistGradientBoostingRegressor(**form)
            return model.fit(numbers[:first], labels[:first]).predict(numbers)
        places = np.asarray([schema.target.text(v) for v in labels]) == schema.target.classes[1]
        model = HistGradientBoostingClassifier(**form).fit(numbers[:first], places[:first])
        return model.predict_proba(numbers)[:, 1]


def realised(scene: Scene, window: Window) -> dict[str, float]:
    rows = scene.part(window)
    output, target = outputs(rows, scene.schema.target), scene.schema.target
    blocks = np.zeros(len(output), np.int64)
    scores = Scores.of(output, scene.schema.labels(rows), blocks, target)
    found = {name: m.value(scores) for name, m in metrics_of(target.task).items()}
    return {name: value for name, value in found.items() if value is not None}


def ours(scene: Scene, window: Window) -> dict[str, Interval]:
    """What a look at the window's end says, without any label of the window."""
    found: dict[str, Interval] = {}
    for metric in ("rmse", "mae") if scene.schema.target.task == "regression" else ("loss",):
        scope = Scope(
            release="model",
            mature_until=window.end - scene.delay,
            block=DAY,
            baseline=None,
            metric=metric,
            window=window,
            past=lambda asked, _: [scene.known(asked, window.end)],
            since=scene.reference.start,
        )
        found |= performance(scene.known(window, window.end), scene.schema, scope).estimates
    return found


def theirs(scene: Scene, kept: Path) -> dict[int, dict[str, float]]:
    """NannyML's estimates by window. Raises BenchmarkError where it cannot be had."""
    here = made("nannyml", kept)
    target, parts = scene.schema.target, []
    for number, window in [(-1, scene.reference), *enumerate(scene.windows)]:
        rows = scene.part(window)
        output, labels = outputs(rows, target), scene.schema.labels(rows)
        if target.task == "binary":
            truth = (labels == target.value(target.classes[1])).astype(int)
            part = {"probability": output, "said": (output > 0.5).astype(int), "truth": truth}
        else:
            part = {"said": output, "truth": labels}
            matrix = encoded(rows, scene.schema)
            part |= {f"feature{i}": matrix[:, i] for i in range(matrix.shape[1])}
        parts.append(pd.DataFrame(part | {"window": number}))
    with tempfile.TemporaryDirectory() as folder:
        source, told = Path(folder, "in.parquet"), Path(folder, "out.json")
        pd.concat(parts).to_parquet(source)
        run(str(here.python), str(PEER), str(source), str(told))
        return {int(number): found for number, found in json.loads(told.read_text()).items()}


def compared(name: str, scene: Scene, peer: dict[int, dict[str, float]]) -> Iterator[dict]:
    """One row a metric: mean absolute errors over the windows that all can be told of, and in
    which share of those with an interval the truth lay in it.
    """
    errors: dict[str, list[tuple[float, float, float]]] = {}
    covered: dict[str, list[bool]] = {}
    before = realised(scene, scene.reference)
    for number, window in enumerate(scene.windows):
        if scene.part(window).num_rows < LEAST:
            continue
        came, told = realised(scene, window), ours(scene, window)
        for metric in set(came) & set(told):
            truth, found = came[metric], told[metric]
            other = peer.get(number, {}).get(metric, float("nan"))
            row = (found.value - truth, other - truth, before[metric] - truth)
            errors.setdefault(metric, []).append(row)
            if found.low is not None:
                covered.setdefault(metric, []).append(found.low <= truth <= found.high)
    for metric in COLUMNS[scene.schema.target.task]:
        rows = errors.get(metric, [])
        if not rows:
            continue
        away = np.abs(np.asarray(rows))
        means = away.mean(axis=0)
        gap = BlockMean.of(away[:, 0] - away[:, 1], np.arange(len(rows))).interval()
        theirs_known = bool(np.isfinite(means[1]))
        yield {
            "stream": name,
            "metric": metric,
            "windows": len(rows),
            "homeostat": round(float(means[0]), 5),
            "nannyml": round(float(means[1]), 5) if theirs_known else None,
            "reference": round(float(means[2]), 5),
            "difference": [round(v, 5) for v in (gap.low, gap.high)]
            if theirs_known and gap.low is not None
            else None,
            "covered": round(float(np.mean(covered[metric])), 3) if metric in covered else None,
        }


def nearer(row: dict) -> str:
    if row["nannyml"] is None:
        return "no peer"
    best = "homeostat" if row["homeostat"] < row["nannyml"] else "nannyml"
    clear = row["difference"] and (row["difference"][0] > 0 or row["difference"][1] < 0)
    return best if clear else f"{best}, not clearly"


def show(rows: Sequence[dict], console: Console) -> None:
    table = Table(title="Mean absolute error of the estimate, per window")
    names = (
        "stream",
        "metric",
        "windows",
        "homeostat",
        "nannyml",
        "as before",
        "nearer",
        "covered",
    )
    for name in names:
        table.add_column(name, justify="left" if name in ("stream", "metric") else "right")
    for row in rows:
        other = "–" if row["nannyml"] is None else f"{row['nannyml']:.4f}"
        covered = "–" if row["covered"] is None else f"{row['covered']:.2f}"
        cells = (f"{row['homeostat']:.4f}", other, f"{row['reference']:.4f}", nearer(row), covered)
        table.add_row(row["stream"], row["metric"], str(row["windows"]), *cells)
    console.width = max(console.width, WIDTH)
    console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=Path, help="folder of the streams, as Parquet")
    parser.add_argument("--only", action="append", help="streams to take; may be repeated")
    parser.add_argument("--window", type=int, default=14, help="days of a window")
    parser.add_argument("--envs", type=Path, default=ENVIRONMENTS, help="NannyML's environment")
    parser.add_argument("--json", type=Path, help="file for the figures")
    chosen = parser.parse_args(argv)
    console, rows = Console(), []
    for source, frame in real(chosen.streams, chosen.only):
        for above in dict.fromkeys((None, source.above)):
            name = source.name if above is None else f"{source.name} > {above:g}"
            scene = prepared(source, frame, chosen.window * DAY, above)
            try:
                peer = theirs(scene, chosen.envs.expanduser())
            except BenchmarkError as error:
                console.print(f"{name}: without NannyML: {error}", markup=False)
                peer = {}
            rows += compared(name, scene, peer)
    show(rows, console)
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
