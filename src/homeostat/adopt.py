"""Adoption: a model that was fitted elsewhere becomes the first release of a project.

It takes the model's file, which the user vouches for, and a file of labelled rows like those that
it was fitted on. It gives the outcome of the loop: the rows are the release's reference and the
journal's history, and the estimator was read, tried and pickled again in the child process alone.
"""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from homeostat import files, fit, levels, settings
from homeostat.build import Project
from homeostat.draft import read_file
from homeostat.engines.local import LocalEngine
from homeostat.errors import HomeostatError, ProjectError, ReleaseError, SchemaError
from homeostat.objects import Job
from homeostat.project import settings_toml
from homeostat.records import MICROSECOND, Candidate, Outcome, TrainingRows
from homeostat.rowhash import frame_hash
from homeostat.schema import Schema
from homeostat.script import GIVEN, table_of
from homeostat.settings import Settings

if TYPE_CHECKING:
    import pandas as pd


def adopt(
    folder: Path,
    model: Path,
    data: Path,
    *,
    target: str | None = None,
    time: str | None = None,
) -> tuple[Project, Outcome]:
    """Release the estimator in `model`, a pickle or joblib file, with the rows of `data`.

    A folder without settings gets a `homeostat.toml` that names `target` and `time`. Raises
    ReleaseError where a champion serves, ProjectError, SchemaError or TrainingError for what does
    not fit; then nothing was released.
    """
    chosen = _settings(folder, target, time)
    project = Project(chosen)
    if project.releases.champion() is not None:
        raise ReleaseError(
            "there is a champion already; it would be gone with its reference unjudged.",
            hint="Let load() return rows and let `homeostat retrain --force` train a challenger "
            "that the gate judges, or adopt into a project of its own.",
        )
    content = _content(model)
    frame = read_file(data)
    with closing(_engine(chosen)) as engine:
        candidate, rows = _tried(engine, content, frame, project)
    path = chosen.path(settings.FILE)
    if not path.is_file():
        named = {"target": chosen.project.target, "time": chosen.project.time}
        files.write(path, settings_toml({"project": named}).encode())
    with project.loop() as loop:
        return project, loop.adopt(candidate, rows)


def _settings(folder: Path, target: str | None, time: str | None) -> Settings:
    """Those of the project; `target` and `time` count where it has none yet."""
    if not folder.is_dir():
        raise ProjectError(
            f"there is no folder {folder}.", hint="`homeostat init` makes a project."
        )
    given = {name: text for name, text in (("target", target), ("time", time)) if text}
    if not (folder / settings.FILE).is_file():
        if len(given) < 2:
            raise ProjectError(
                f"{folder} has no {settings.FILE}, so target and time are not known.",
                hint="Add --target COLUMN and --time COLUMN.",
            )
        return settings.read(folder, project=given)
    chosen = settings.read(folder)
    for name, text in given.items():
        known = getattr(chosen.project, name)
        if text != known:
            raise ProjectError(
                f"project.{name} is {known!r} here, not {text!r}.",
                hint=f"Leave --{name} out, or change {settings.FILE}.",
            )
    return chosen


def _content(model: Path) -> bytes:
    try:
        return model.read_bytes()
    except OSError as error:
        raise HomeostatError(
            f"{model} cannot be read: {error.strerror}.", hint="Give a pickle or joblib file."
        ) from error


def _engine(chosen: Settings) -> LocalEngine:
    limits = chosen.training
    return LocalEngine(timeout=limits.timeout, memory=limits.memory, threads=limits.threads)


def _tried(
    engine: LocalEngine, content: bytes, frame: pd.DataFrame, project: Project
) -> tuple[Candidate, pa.Table]:
    """The candidate, and the rows of its reference as the journal takes them."""
    now, chosen = datetime.now(UTC), project.settings
    about, trainer = chosen.project, project.trainer(engine)
    loaded = table_of(_wanted(frame, engine.run(fit.features_of, content), about), about)
    schema = trainer.schema_of(loaded)
    journalled = trainer.rows_of(loaded, schema, now)
    rows = _labelled(journalled, schema).sort_by(
        [("occurred_at", "ascending"), ("prediction_id", "ascending")]
    )
    schema = schema.learned_from(rows)
    named = chosen.monitor.segments
    levels.check(schema.features, named)
    block = chosen.monitor.block
    job = Job(chosen.script, chosen.root, about.seed, block, segments=named)
    fitted = engine.run(fit.adopt, job, content, rows, schema)
    times = rows.column("occurred_at")
    candidate = Candidate(
        kind="adopt",
        parent=None,
        objects=fitted.objects,
        # It may have seen any row up to now, so only later ones can ever judge beside it.
        training=TrainingRows(
            rows=rows.num_rows,
            start=times[0].as_py(),
            cutoff=max(now, times[-1].as_py() + MICROSECOND),
            as_of=now,
            sha256=frame_hash(rows, schema),
        ),
        seconds=fitted.seconds,
        params=fitted.params,
        versions=fitted.versions,
        seed=about.seed,
        log=fitted.log,
    )
    return trainer.with_twin(candidate, rows), journalled


def _wanted(
    frame: pd.DataFrame, names: tuple[str, ...] | None, about: settings.Project
) -> pd.DataFrame:
    """The columns that the model was fitted with, in its order, and those that rows need."""
    if names is None:
        return frame
    missing = [name for name in names if name not in frame.columns]
    if missing:
        raise SchemaError(
            f"the model was fitted with {', '.join(map(repr, missing[:20]))}, "
            "which the data has not.",
            hint="Bring the rows with the columns that the model takes.",
        )
    beside = [name for name in {*GIVEN, about.target, about.time} if name in frame.columns]
    return frame[[*names, *sorted(set(beside) - set(names))]]


def _labelled(rows: pa.Table, schema: Schema) -> pa.Table:
    """The labelled rows as reading the journal gives them: a regression's labels as numbers."""
    rows = rows.filter(pc.is_valid(rows.column("label")))
    if schema.target.task != "regression":
        return rows
    place = rows.schema.get_field_index("label")
    return rows.set_column(place, "label", rows.column("label").cast(pa.float64()))
