"""A small project of drifting rides, and the loop over its real parts with one warm child."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import cloudpickle
import pandas as pd
import pyarrow.compute as pc

from homeostat import gate, settings
from homeostat.build import Project
from homeostat.draw import draw
from homeostat.engines import LocalEngine
from homeostat.entries import Sent
from homeostat.journal import FileJournal
from homeostat.loop import Loop
from homeostat.records import MICROSECOND, Candidate, Release, Verdict, Window
from homeostat.report import FileReporter
from homeostat.schema import Schema
from homeostat.scoring import Scorer
from homeostat.testing import START, FakeClock, drifting_stream, label_rows, served_rows

DAY = timedelta(days=1)
DAYS = 70
LOADED = 14
"""Days of the stream that `load()` returns; drift sets in after them."""

SETTINGS = """
[project]
name = "rides"
target = "target"
time = "occurred_at"

[training]
min_rows = 100
recent = 0
timeout = "2m"

[gate]
window = "7d"
min_rows = 50

[tracking]
enabled = false

[decide]
recalibrate = false
"""

TRAIN = """
from pathlib import Path
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

def load():
    return pd.read_parquet("rows.parquet")

def fit(frame):
    target = frame.pop("target")
    encode = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    columns = make_column_transformer((encode, ["city"]), ("passthrough", ["amount", "member"]))
    return make_pipeline(columns, LogisticRegression()).fit(frame, target)
"""

SABOTAGED = TRAIN.replace(
    'target = frame.pop("target")', 'target = frame.pop("target").sample(frac=1, random_state=0)'
).replace(".fit(frame, target)", ".fit(frame, target.to_numpy())")


class Heard:
    """Keeps what people would have been told."""

    def __init__(self):
        self.said = []

    def send(self, title, body):
        self.said.append((title, body))
        return Sent(1)


class InProcess:
    """An engine without a child, for what needs none and for processes that are killed."""

    def run(self, function, *args, **kwargs):
        return function(*args, **kwargs)

    def close(self):
        pass


class CountingEngine(InProcess):
    """Stands in for the child in which reports are drawn, and counts those of Evidently."""

    def __init__(self):
        self.drawn = 0

    def run(self, function, *args, **kwargs):
        if function is not draw:
            return b"a picture"
        self.drawn += 1
        return b"<html></html>", {"drifted_share": 0.0, "dataset_drift": False}


def stream(**options):
    """28 labelled rows a day for ten weeks, ids in order of time."""
    options = {"seed": 5, "length": DAYS * DAY, "drift_at": LOADED / DAYS, **options}
    frame = drifting_stream(28 * DAYS, **options)
    frame["prediction_id"] = [f"id-{i}" for i in frame.index]
    return frame


def days(frame, first, last):
    times = frame["occurred_at"]
    return frame[(times >= START + first * DAY) & (times < START + last * DAY)]


def make(root: Path, frame: pd.DataFrame, code: str = TRAIN, more: str = "") -> Path:
    """A project whose `load()` returns `frame`."""
    script = root / "src" / "training" / "train.py"
    script.parent.mkdir(parents=True)
    script.write_text(code)
    (root / settings.FILE).write_text(SETTINGS + more)
    frame.to_parquet(root / "rows.parquet")
    return root


def rewrite(root: Path, code: str) -> None:
    (root / "src" / "training" / "train.py").write_text(code)


def wrapped(name: str, code: str) -> str:
    """The usual training script, its estimator wrapped in what `code` defines as `name`."""
    return (
        TRAIN.replace("return make_pipeline(", f"return {name}(make_pipeline(").replace(
            ".fit(frame, target)", ".fit(frame, target))"
        )
        + code
    )


def trained(root: Path, engine: LocalEngine, frame: pd.DataFrame, until: int) -> Path:
    """A project with its first model, and labelled traffic up to that day."""
    make(root, days(frame, 0, LOADED))
    with turning(root, engine, LOADED) as loop:
        loop.train()
    serve(root, days(frame, LOADED, until))
    return root


def bodies(root: Path, kind: str) -> list:
    """The bodies of the audit chain's lines of this kind."""
    return [line["body"] for line in project(root).audit.lines() if line["kind"] == kind]


def copied(root: Path, to: Path) -> Path:
    shutil.copytree(root, to)
    return to


def project(root: Path, **overrides) -> Project:
    # Tests compare the journal's files, so what was served stays in them.
    return Project(settings.read(root, **{"journal": {"tail": "365d"}, **overrides}))


@contextmanager
def turning(root: Path, engine: LocalEngine | InProcess, day: float, **overrides):
    """The project's loop at the end of `day`, its fits in `engine`, Evidently only counted."""
    here = project(root, **overrides)
    chosen = here.settings
    with here.loop(clock=FakeClock(START + day * DAY)) as loop:
        trainer = here.trainer(engine)
        reporter = FileReporter(chosen.path("reports"), CountingEngine(), sample=2_000, seed=0)
        yield replace(loop, trainer=trainer, reporter=reporter)


def champion_scorer(here: Project) -> Scorer:
    release = here.releases.champion()
    schema = Schema.from_json(here.releases.object(release, "schema"))
    return Scorer(cloudpickle.loads(here.releases.object(release, "model")), schema)


def serve(root: Path, frame: pd.DataFrame, *, labels: bool = True) -> None:
    """Journal `frame` as the champion would have answered it; labels come an hour later."""
    here = project(root)
    scorer, release = champion_scorer(here), here.releases.champion()
    rows = served_rows(frame, scorer.schema)
    told = scorer.score(rows)
    known = {"source": ["serve"] * len(frame), "model_version": [release.id] * len(frame)}
    known |= {name: told.column(name) for name in told.column_names}
    for name, values in known.items():
        place = rows.schema.get_field_index(name)
        rows = rows.set_column(place, rows.schema.field(place), [values])
    here.journal.append(rows)
    if labels:
        times = (frame["occurred_at"] + timedelta(hours=1)).dt.to_pydatetime()
        # The server's clock, too, stood where the rows say.
        FileJournal(here.settings.path("data", "logs"), clock=FakeClock(START)).label(
            label_rows(
                rows.column("prediction_id").to_pylist(), [*frame["target"].astype(str)], [*times]
            )
        )


def unjudged(loop: Loop) -> tuple[Candidate, Verdict]:
    """A model of every labelled row, which no gate has judged, for what a gate would keep out."""
    by, champion, now = loop._challenger, loop.releases.champion(), loop.clock.now()
    schema = by._import(now, champion)
    rows = by._labelled(now, schema)
    end = pc.max(rows.column("occurred_at")).as_py() + MICROSECOND
    candidate = by._fit(rows, schema, end, now, champion.id)
    verdict = replace(gate.unjudged("No gate.", Window(end, end)), promote=True)
    return loop.trainer.with_twin(candidate, rows), verdict


def promoted_unjudged(loop: Loop) -> Release:
    """The release of an `unjudged` model, which serves now."""
    candidate, verdict = unjudged(loop)
    return loop._promote(candidate, verdict, loop.clock.now())


def contents(root: Path, *parts: str) -> dict[str, bytes]:
    """Every file under these parts of the project."""
    found = {}
    for part in parts:
        place = root / part
        files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
        found |= {str(file.relative_to(root)): file.read_bytes() for file in files}
    return found
