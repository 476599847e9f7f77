"""Training: the user's `load()` and `fit(frame)` become checked rows and a candidate.

It takes an engine, which runs foreign code in a child under limits, and the user's script.
It gives rows in the journal's form and candidates in bytes; nothing is unpickled in this process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from homeostat import fit, levels, script, twin
from homeostat.blend import Elder
from homeostat.contracts import Engine
from homeostat.entries import Queried
from homeostat.errors import SchemaError, TrainingError, cause
from homeostat.fit import Fitted
from homeostat.infer import infer
from homeostat.objects import Job
from homeostat.order import ordered
from homeostat.records import Candidate, TrainingRows
from homeostat.rowhash import frame_hash
from homeostat.schema import SYSTEM, TIMESTAMP, Schema, Target
from homeostat.settings import Project, Training

__all__ = ["ScriptTrainer", "frame_hash"]

DAY = timedelta(days=1)


class ScriptTrainer:
    """A `Trainer` that runs the script at the path `script`.

    The project's folder is the one that `training.script` is relative to, or the script's own
    where that path is absolute. `block` is the length of the blocks of a candidate's reference,
    which is counted by each level of the columns `segments` as well.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        script: Path,
        project: Project,
        training: Training,
        block: timedelta = DAY,
        segments: Sequence[str] = (),
    ) -> None:
        self._engine = engine
        self._script = script.resolve()
        self._project = project
        self._training = training
        self._block = block
        self._segments = tuple(segments)
        relative = training.script
        depth = 0 if relative.is_absolute() else len(relative.parts) - 1
        self._root = self._script.parents[depth]

    def load(self) -> pa.Table | None:
        """What `load()` returns, checked: features, the target under its own name,
        `prediction_id`, `occurred_at`, `labelled_at`; None without script or function.

        Raises TrainingError or EngineError when the code fails, SchemaError when its frame lacks
        something.
        """
        if not self._script.is_file():
            return None
        return self._engine.run(script.load, self._script, self._root, self._project)

    def schema_of(self, loaded: pa.Table) -> Schema:
        """The columns of what `load` gave, nothing learned of them yet. Raises SchemaError."""
        import pandas as pd

        # Booleans with nulls would come as objects, and be taken for text.
        return infer(
            loaded.to_pandas(types_mapper={pa.bool_(): pd.BooleanDtype()}.get),
            target=self._project.target,
            task=self._project.task,
            exclude=self._project.exclude,
            learned=False,
        )

    def rows_of(self, loaded: pa.Table, schema: Schema, at: datetime) -> pa.Table:
        """What `load` gave as the journal takes it: `Schema.journal`, `label` as text or null,
        `labelled_at`; `at` is when the rows are recorded. Raises SchemaError.
        """
        count = loaded.num_rows
        known = {
            "prediction_id": loaded.column("prediction_id"),
            "occurred_at": loaded.column("occurred_at"),
            "recorded_at": pa.repeat(pa.scalar(at, TIMESTAMP), count),
            "source": pa.repeat(pa.scalar("load"), count),
        }
        columns = {name: known.get(name, pa.nulls(count, kind)) for name, kind in SYSTEM.items()}
        for feature in schema.features:
            columns[feature.name] = _cast(loaded.column(feature.name), feature.arrow, feature.name)
        columns["label"] = _labels(loaded.column(schema.target.name), schema.target)
        columns["labelled_at"] = loaded.column("labelled_at")
        return pa.table(columns)

    def fit(
        self,
        rows: pa.Table,
        schema: Schema,
        *,
        cutoff: datetime,
        as_of: datetime,
        parent: str | None,
        trial: bool = False,
    ) -> Candidate:
        """A candidate fitted on exactly these labelled rows, in the order of time and id.

        A `trial` is only judged, never released: it carries no reference.

        Raises TrainingError when the rows do not suffice or the script yields no estimator that
        can be released, EngineError when the child dies or passes a limit, SchemaError when a
        first release has no feature of a name in `segments`.
        """
        rows = ordered(rows)
        if parent is None:
            # Nothing serves yet, so that a wrong name costs least; later on the monitor tells.
            levels.check(schema.features, self._segments)
        fitted = self.fitted(rows, schema, cutoff=cutoff, trial=trial)
        name = frame_hash(rows, schema)
        return self.candidate(fitted, rows, name, cutoff=cutoff, as_of=as_of, parent=parent)

    def candidate(
        self,
        fitted: Fitted,
        rows: pa.Table,
        frame: str,
        *,
        cutoff: datetime,
        as_of: datetime,
        parent: str | None,
    ) -> Candidate:
        """What `fitted` gave of these rows, in their order; `frame` is their hash."""
        return Candidate(
            kind="first" if parent is None else "retrain",
            parent=parent,
            objects=fitted.objects,
            training=TrainingRows(
                rows=rows.num_rows,
                start=rows.column("occurred_at")[0].as_py(),
                cutoff=cutoff,
                as_of=as_of,
                sha256=frame,
            ),
            seconds=fitted.seconds,
            params=fitted.params,
            versions=fitted.versions,
            seed=self._project.seed,
            log=fitted.log,
        )

    def fitted(self, rows: pa.Table, schema: Schema, *, cutoff: datetime, trial: bool) -> Fitted:
        """What the script makes of rows that are in order, as `fit` checks them; no hash is taken,
        so it is no candidate.
        """
        self._check(rows, schema, cutoff)
        return self._engine.run(fit.fit, self._job(trial=trial), rows, schema)

    def finished(
        self,
        candidate: Candidate,
        rows: pa.Table,
        elder: Elder | None = None,
        *,
        keep: int = 1,
        trial: bool = False,
        twice: bool = False,
    ) -> Candidate:
        """The candidate, blended with the newest models of `elder` to `keep` in all, and with the
        objects that belong to the result; `rows` are those that it was fitted on. With `twice` it
        counts as two.

        The elder's bytes must have been verified: the child unpickles them. Models that cannot
        join are left out, and why stands in `left_out`. Raises TrainingError or EngineError.
        """
        held = candidate.objects
        schema = Schema.from_json(held["schema"])
        why = elder.unlike(schema) if elder else ""
        objects, found = self._engine.run(
            fit.finish,
            self._job(trial=trial),
            ordered(rows),
            schema,
            held["model"],
            elder=None if why else elder,
            keep=keep,
            twice=twice,
        )
        left_out = (*candidate.left_out, *((why,) if why else found.left_out))
        members = (*found.older, *(candidate.members or (candidate.training,)))
        return replace(candidate, objects=objects, members=members, left_out=left_out)

    def score(
        self, model: bytes, rows: pa.Table, schema: Schema, calibrator: bytes | None = None
    ) -> pa.Table:
        """`prediction`, `probability` and `probabilities` of each row, in order.

        `model` must have been verified: the child unpickles it. Raises EngineError or SchemaError.
        """
        return self._engine.run(
            fit.score, model, rows.select(list(schema.names)), schema, calibrator
        )

    def query(self, candidate: Candidate) -> Queried:
        """Ask the candidate's bytes for its golden rows, in the child; see `fit.query`."""
        held = candidate.objects
        return self._engine.run(
            fit.query, held["model"], held["golden"], held["schema"], held.get("calibrator")
        )

    def with_twin(self, candidate: Candidate, rows: pa.Table) -> Candidate:
        """The candidate with the twin of its model where one proved equal to it; see `twin`."""
        held = candidate.objects
        try:
            made = self._engine.run(
                twin.make,
                *(held["model"], held["schema"], held["golden"]),
                rows,
                held.get("calibrator"),
            )
        except Exception as error:  # noqa: BLE001 - fails closed: the model itself serves, and why
            return replace(candidate, twin={"engine": "native", "why": cause(error)})
        if made.content is None:
            return replace(candidate, twin=made.told)
        return replace(
            candidate, twin=made.told, objects={**candidate.objects, "twin": made.content}
        )

    def _job(self, *, trial: bool) -> Job:
        given = self._script, self._root, self._project.seed, self._block
        return Job(*given, trial, self._segments)

    def _check(self, rows: pa.Table, schema: Schema, cutoff: datetime) -> None:
        if not self._script.is_file():
            raise TrainingError(
                f"there is no training script at {self._script}.", hint="Set training.script."
            )
        if rows.num_rows < self._training.min_rows:
            raise TrainingError(
                f"{rows.num_rows} labelled rows are too few to train on; "
                f"training.min_rows is {self._training.min_rows}.",
                hint="Wait for more labels, or lower it.",
            )
        late = pc.sum(pc.greater_equal(rows.column("occurred_at"), pa.scalar(cutoff, TIMESTAMP)))
        if late.as_py():
            raise TrainingError(f"{late} training rows are not older than the cut-off {cutoff}.")
        if rows.column("label").null_count:
            raise TrainingError(f"{rows.column('label').null_count} training rows have no label.")
        if schema.target.task != "regression" and len(rows.column("label").unique()) == 1:
            raise TrainingError(
                f"all {rows.num_rows} training rows have the same {schema.target.name!r}.",
                hint="A classifier needs two classes: wait for rows of another one.",
            )


def _cast(column: pa.ChunkedArray, kind: pa.DataType, name: str) -> pa.ChunkedArray:
    try:
        return column.cast(kind, safe=False)
    except pa.ArrowException as error:
        raise SchemaError(f"the column {name!r} holds {column.type}, not {kind}.") from error


def _labels(column: pa.ChunkedArray, target: Target) -> pa.ChunkedArray:
    """Labels as text, null where there is none; each distinct value is converted once."""
    coded = column.combine_chunks().dictionary_encode()
    texts = [target.text(value) for value in coded.dictionary.to_pylist()]
    return pa.chunked_array([pa.array(texts, pa.string()).take(coded.indices)])
