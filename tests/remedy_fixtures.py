"""The loop over stores in memory, on small seeded streams whose right remedy is known."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
from loop_fixtures import InProcess

from homeostat import decide
from homeostat.alerts import NoAlerts
from homeostat.loop import Loop
from homeostat.memory import (
    CountingReporter,
    MemoryAudit,
    MemoryJournal,
    MemoryReleases,
    SimulatedClock,
)
from homeostat.records import Outcome
from homeostat.schema import Schema
from homeostat.scoring import Calibrator, Scorer
from homeostat.settings import Settings
from homeostat.testing import START, label_rows, served_rows
from homeostat.tracking import NoTracker
from homeostat.train import ScriptTrainer

WEEK = timedelta(days=7)
FIRST = 8  # weeks that train the first model
A_WEEK = 210

FIT = """
from sklearn.linear_model import LogisticRegression, LinearRegression
from pathlib import Path
import pandas as pd

def load():
    return pd.read_parquet({data!r})

def fit(frame):
    target = frame.pop("target")
    model = LinearRegression() if target.dtype.kind == "f" else LogisticRegression()
    return model.fit(frame, target)
"""

Truth = Callable[[np.ndarray, np.random.Generator, int], np.ndarray]


def week(number: int, truth: Truth, shift: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """One week of rows with two features; `truth` gives their targets."""
    draw = np.random.default_rng([seed, number])
    x = draw.normal(size=(A_WEEK, 2)) + shift
    at = START + number * WEEK + WEEK * np.sort(draw.random(A_WEEK))
    names = [f"w{number}-{i}" for i in range(A_WEEK)]
    return pd.DataFrame(
        {
            "occurred_at": at,
            "prediction_id": names,
            "u": x[:, 0],
            "v": x[:, 1],
            "target": truth(x, draw, number),
        }
    )


def binary(weights: tuple[float, float] = (2.0, -1.0), bias: float = 0.0) -> Truth:
    def truth(x: np.ndarray, draw: np.random.Generator, number: int) -> np.ndarray:
        return (draw.random(len(x)) < 1 / (1 + np.exp(-(x @ weights + bias)))).astype(int)

    return truth


def changed(before: Truth, after: Truth, at: int) -> Truth:
    """`before`, and from week `at` on `after`."""
    return lambda x, draw, number: (after if number >= at else before)(x, draw, number)


@dataclass
class Stage:
    """A loop in memory, and the weeks that it goes through."""

    root: Path
    truth: Truth
    shift: Callable[[int], float] = lambda _: 0.0
    settings: dict[str, dict[str, object]] = field(default_factory=dict)
    seed: int = 0
    number: int = FIRST  # of the week that is served next

    def __post_init__(self) -> None:
        first = pd.concat([self._week(number) for number in range(FIRST)], ignore_index=True)
        data = self.root / "rows.parquet"
        first.to_parquet(data)
        self.script = self.root / "train.py"
        self.script.write_text(FIT.format(data=str(data)))
        sections = {
            "project": {"target": "target", "time": "occurred_at"},
            "training": {"script": str(self.script), "min_rows": 100},
            "monitor": {"staleness": False},
            **self.settings,
            "decide": {"recalibrate": True, "max_age": "none", **self.settings.get("decide", {})},
        }
        self.chosen = Settings(**sections)
        self.clock = SimulatedClock(START + FIRST * WEEK)
        self.audit, self.releases = MemoryAudit(), MemoryReleases()
        self.journal = MemoryJournal()
        self.trainer = ScriptTrainer(
            InProcess(),
            script=self.script,
            project=self.chosen.project,
            training=self.chosen.training,
        )
        self.loop = self.turning()
        self.loop.train()

    def turning(self, **more: object) -> Loop:
        parts = {
            "settings": self.chosen,
            "clock": self.clock,
            "journal": self.journal,
            "releases": self.releases,
            "audit": self.audit,
            "trainer": self.trainer,
            "reporter": CountingReporter(),
            "tracker": NoTracker(),
            "alerts": NoAlerts(),
            "policy": decide.policy(self.chosen.decide),
            "copy": lambda: None,
            "watch": lambda outcome: None,
        }
        return Loop(**{**parts, **more})

    def _week(self, number: int) -> pd.DataFrame:
        return week(number, self.truth, self.shift(number), self.seed)

    def served(self, frame: pd.DataFrame) -> np.ndarray:
        """The champion's outputs."""
        release = self.releases.champion()
        held = {n: self.releases.object(release, n) for n in release.manifest["objects"]}
        schema = Schema.from_json(held["schema"])
        own = held.get("calibrator")
        scorer = Scorer(
            pickle.loads(held["model"]), schema, Calibrator.from_json(own) if own else None
        )
        return scorer.output(served_rows(frame, schema))

    def serve(self) -> None:
        """A week of traffic, whose labels come at once."""
        frame = self._week(self.number)
        release = self.releases.champion()
        schema = Schema.from_json(self.releases.object(release, "schema"))
        rows = served_rows(frame, schema)
        told = self.trainer.score(
            self.releases.object(release, "model"),
            rows,
            schema,
            self.releases.object(release, "calibrator")
            if "calibrator" in release.manifest["objects"]
            else None,
        )
        count = len(frame)
        known = {"source": ["serve"] * count, "model_version": [release.id] * count}
        known |= {"prediction_id": frame["prediction_id"].tolist()}
        known |= {name: told.column(name) for name in told.column_names}
        for name, values in known.items():
            place = rows.schema.get_field_index(name)
            rows = rows.set_column(place, rows.schema.field(place), [values])
        self.journal.append(rows)
        labels = [schema.target.text(value) for value in frame["target"].tolist()]
        times = frame["occurred_at"].dt.to_pydatetime().tolist()
        self.journal.label(label_rows(frame["prediction_id"].tolist(), labels, times))
        self.number += 1
        self.clock.time = START + self.number * WEEK

    def turn(self, weeks: int = 1) -> list[Outcome]:
        """So many weeks, the loop stepping at the end of each."""
        found = []
        for _ in range(weeks):
            self.serve()
            found.append(self.loop.step())
        return found

    def bodies(self, kind: str) -> list[dict]:
        return [line["body"] for line in self.audit.lines() if line["kind"] == kind]

    @property
    def actions(self) -> list[str]:
        return [body["decision"]["action"] for body in self.bodies("decided")]
