"""What tests of a project or of a new part need: a clock, a drifting stream, contract tests.

It takes seeds and sizes. It gives frames and journal rows that are the same for the same
arguments, and test classes for pytest that every implementation of a contract must pass.
"""
# ruff: noqa: S101 - pytest rewrites the assertions of the contract tests

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from homeostat.entries import Appended, Labelled, Refusal
from homeostat.errors import ConflictError, EngineError, SchemaError
from homeostat.infer import infer
from homeostat.records import Window, utc
from homeostat.schema import SYSTEM, TIMESTAMP, Schema

if TYPE_CHECKING:
    import pandas as pd

    from homeostat.contracts import Engine, Journal

START = datetime(2025, 1, 1, tzinfo=UTC)


class FakeClock:
    """A clock that stands still until it is moved."""

    def __init__(self, start: datetime = START) -> None:
        self._now = utc(start)

    def now(self) -> datetime:
        return self._now

    def set(self, moment: datetime) -> None:
        self._now = utc(moment)

    def advance(self, by: timedelta) -> datetime:
        self._now += by
        return self._now


def drifting_stream(
    rows: int = 1_000,
    *,
    seed: int = 0,
    start: datetime = START,
    length: timedelta = timedelta(days=28),
    drift_at: float = 0.5,
    shift: float = 1.0,
) -> pd.DataFrame:
    """Labelled rows in order of time that change after the share `drift_at` of them.

    Columns: `amount` (number, normal), `gap` (number with nulls), `city` (category with nulls),
    `member` (boolean), `occurred_at` (UTC, evenly spaced over `length`), `target` (0 or 1).
    After the change `amount` has its mean moved by `shift` standard deviations, and the target
    depends on `city` instead of `amount`. `shift=0` gives a stream that stays as it is.
    """
    import numpy as np
    import pandas as pd

    random = np.random.default_rng(seed)
    late = np.arange(rows) >= drift_at * rows
    moved = late & (shift != 0)
    amount = random.normal(size=rows) + shift * late
    gap = np.where(random.random(rows) < 0.1, np.nan, random.exponential(size=rows))
    city = random.choice(["Oslo", "Rome", "Wien, AT"], size=rows, p=[0.5, 0.3, 0.2])
    member = random.random(rows) < 0.4
    score = np.where(moved, 2.0 * (city == "Rome") - 0.6, 1.5 * amount) + 0.5 * member
    target = (random.random(rows) < 1 / (1 + np.exp(-score))).astype(int)
    times = pd.Timestamp(start) + pd.to_timedelta(
        np.arange(rows) * (length / max(rows, 1)).total_seconds(), unit="s"
    )
    texts = pd.Series(city, dtype="str").mask(random.random(rows) < 0.02)
    return pd.DataFrame(
        {
            "amount": amount,
            "gap": gap,
            "city": texts,
            "member": member,
            "occurred_at": times.as_unit("us"),
            "target": target,
        }
    )


def schema_of(frame: pd.DataFrame, **options: Any) -> Schema:
    """The schema of a `drifting_stream`."""
    return infer(frame, target="target", **options)


def served_rows(frame: pd.DataFrame, schema: Schema, *, prefix: str = "id") -> pa.Table:
    """The rows of `frame` as a server would journal them, with ids `<prefix>-0` and on."""
    count = len(frame)
    times = pa.array(frame["occurred_at"], TIMESTAMP, from_pandas=True)
    system = {
        "prediction_id": pa.array([f"{prefix}-{i}" for i in frame.index], pa.string()),
        "occurred_at": times,
        "recorded_at": times,
        "model_version": pa.repeat("m1", count),
        "source": pa.repeat("live", count),
        "prediction": pa.repeat("1", count),
        "probability": pa.repeat(0.75, count),
        "probabilities": pa.nulls(count, SYSTEM["probabilities"]),
    }
    features = {
        feature.name: pa.array(frame[feature.name], feature.arrow, from_pandas=True)
        for feature in schema.features
    }
    return pa.table({**system, **features}, schema=schema.journal)


def label_rows(
    ids: Sequence[str], labels: Sequence[str], at: datetime | Sequence[datetime | None]
) -> pa.Table:
    """Labels as `Journal.label` takes them."""
    times = [at] * len(ids) if isinstance(at, datetime) else list(at)
    return pa.table(
        {
            "prediction_id": pa.array(ids, pa.string()),
            "label": pa.array(labels, pa.string()),
            "labelled_at": pa.array(times, TIMESTAMP),
        }
    )


class JournalContract:
    """Subclass it with a fixture `journal` that gives an empty journal; pytest does the rest."""

    def rows(self) -> tuple[Schema, pa.Table]:
        """Forty rows with ids `id-0` to `id-39`, in order of time, and their schema."""
        frame = drifting_stream(40, seed=3)
        schema = schema_of(frame)
        return schema, served_rows(frame, schema)

    def test_what_was_appended_is_read_back(self, journal: Journal) -> None:
        schema, rows = self.rows()
        assert journal.append(rows) == Appended(written=40, repeated=0)
        back = journal.read(schema=schema)
        assert back.select(rows.column_names).equals(rows)
        assert back.column_names == [*schema.journal.names, "label", "labelled_at"]
        assert back.column("label").null_count == 40

    def test_an_empty_journal_reads_as_no_rows(self, journal: Journal) -> None:
        schema, _ = self.rows()
        assert journal.read(schema=schema).num_rows == 0
        assert journal.newest() is None
        assert dict(journal.refused(Window(START, START + timedelta(days=9)))) == {}

    def test_the_same_row_again_is_not_written_again(self, journal: Journal) -> None:
        _, rows = self.rows()
        journal.append(rows.slice(0, 10))
        later = rows.set_column(
            2, "recorded_at", pa.repeat(pa.scalar(START + timedelta(days=99), TIMESTAMP), 40)
        )
        assert journal.append(later) == Appended(written=30, repeated=10)
        assert journal.append(later) == Appended(written=0, repeated=40)
        assert journal.read().num_rows == 40

    def test_an_id_with_other_content_is_refused_and_nothing_of_the_call_written(
        self, journal: Journal
    ) -> None:
        _, rows = self.rows()
        journal.append(rows.slice(0, 1))
        other = rows.set_column(
            rows.column_names.index("amount"), "amount", pa.repeat(pa.scalar(7.5), 40)
        )
        import pytest

        with pytest.raises(ConflictError) as caught:
            journal.append(pa.concat_tables([other.slice(1, 3), other.slice(0, 1)]))
        assert caught.value.row == 3
        assert journal.read().num_rows == 1

    def test_rows_come_in_order_of_event_time_and_then_id(self, journal: Journal) -> None:
        _, rows = self.rows()
        same = rows.set_column(1, "occurred_at", pa.repeat(pa.scalar(START, TIMESTAMP), 40))
        journal.append(same.slice(20, 20))
        journal.append(same.slice(0, 20))
        ids = journal.read().column("prediction_id").to_pylist()
        assert ids == sorted(ids)

    def test_a_window_holds_its_start_and_not_its_end(self, journal: Journal) -> None:
        _, rows = self.rows()
        journal.append(rows)
        times = rows.column("occurred_at").to_pylist()
        back = journal.read(Window(times[5], times[9]))
        assert back.column("occurred_at").to_pylist() == times[5:9]

    def test_the_last_label_wins_and_labels_after_as_of_are_hidden(self, journal: Journal) -> None:
        _, rows = self.rows()
        journal.append(rows)
        day = timedelta(days=1)
        first = label_rows(["id-0", "id-1"], ["0", "1"], START + day)
        assert journal.label(first) == Labelled(written=2, repeated=0, changed=0)
        again = label_rows(["id-0", "id-1"], ["1", "1"], START + 2 * day)
        assert journal.label(again) == Labelled(written=1, repeated=1, changed=1)
        now = journal.read(labelled=True)
        assert now.column("label").to_pylist() == ["1", "1"]
        then = journal.read(labelled=True, as_of=START + day)
        assert then.column("label").to_pylist() == ["0", "1"]
        assert journal.read(labelled=True, as_of=START).num_rows == 0
        assert journal.read(labelled=False).num_rows == 38

    def test_a_label_may_come_before_its_prediction(self, journal: Journal) -> None:
        _, rows = self.rows()
        journal.label(label_rows(["id-3"], ["1"], START))
        journal.append(rows)
        back = journal.read(labelled=True)
        assert back.column("prediction_id").to_pylist() == ["id-3"]

    def test_loaded_rows_are_imported_once_and_known_ones_bring_their_label(
        self, journal: Journal
    ) -> None:
        _, rows = self.rows()
        journal.append(rows.slice(0, 10))
        loaded = rows.append_column("label", pa.array(["1"] * 39 + [None], pa.string()))
        loaded = loaded.append_column("labelled_at", rows.column("occurred_at"))
        assert journal.load(loaded) == (Appended(30, 10), Labelled(39, 0, 0))
        assert journal.load(loaded) == (Appended(0, 40), Labelled(0, 39, 0))
        back = journal.read()
        assert back.column("source").to_pylist() == ["live"] * 10 + ["load"] * 30
        assert back.column("label").to_pylist() == ["1"] * 39 + [None]
        assert journal.newest(source="live") == rows.column("occurred_at")[9].as_py()
        assert journal.newest() == rows.column("occurred_at")[39].as_py()

    def test_a_scan_gives_in_pieces_what_a_read_gives(self, journal: Journal) -> None:
        schema, rows = self.rows()
        assert [piece.num_rows for piece in journal.scan(schema=schema)] == [0]
        journal.append(rows)
        journal.label(label_rows(["id-3"], ["1"], START))
        window = Window(START + timedelta(days=1), START + timedelta(days=20))
        for labelled in (None, True, False):
            pieces = list(journal.scan(window, labelled=labelled, schema=schema))
            whole = journal.read(window, labelled=labelled, schema=schema)
            assert pa.concat_tables(pieces).equals(whole)

    def test_sealing_changes_nothing_that_is_read(self, journal: Journal) -> None:
        schema, rows = self.rows()
        journal.append(rows)
        journal.label(label_rows(["id-0", "id-39", "nobody"], ["1", "0", "1"], START))
        before = journal.read(schema=schema), journal.read(labelled=True), journal.newest()
        for day in (10, 20, 400):
            journal.seal(START + timedelta(days=day))
            now = journal.read(schema=schema), journal.read(labelled=True), journal.newest()
            assert now == before
        journal.append(rows)
        assert journal.read().num_rows == 40

    def test_refused_rows_are_counted_by_code_and_column(self, journal: Journal) -> None:
        refusals = [Refusal("wrong_type", "amount")] * 3 + [Refusal("not_json", None)]
        journal.reject(refusals, START)
        journal.reject(refusals[:1], START + timedelta(hours=1))
        hour = Window(START, START + timedelta(hours=1))
        assert dict(journal.refused(hour)) == {"wrong_type:amount": 3, "not_json": 1}

    def test_columns_that_older_rows_never_had_read_as_null(self, journal: Journal) -> None:
        schema, rows = self.rows()
        older = rows.drop_columns(["gap"])
        journal.append(older.slice(0, 20))
        journal.append(rows.slice(20, 20))
        back = journal.read(schema=schema)
        assert back.column("gap").slice(0, 20).null_count == 20
        assert back.slice(20).select(rows.column_names).equals(rows.slice(20))


class EngineContract:
    """Subclass it with a fixture `engine` that gives an engine; pytest does the rest."""

    def test_a_result_comes_back_with_its_arguments_in_place(self, engine: Engine) -> None:
        assert engine.run(divmod, 17, 5) == (3, 2)
        assert engine.run(sorted, [3, 1, 2], reverse=True) == [3, 2, 1]

    def test_a_function_that_raises_is_an_error_that_names_what_it_raised(
        self, engine: Engine
    ) -> None:
        import pytest

        with pytest.raises(EngineError, match="ValueError"):
            engine.run(int, "no number")
        assert engine.run(int, "7") == 7

    def test_an_error_of_the_house_passes_through_unchanged(self, engine: Engine) -> None:
        import pytest

        with pytest.raises(SchemaError, match="has format None"):
            engine.run(Schema.from_json, "{}")

    def test_a_child_that_dies_is_an_error_and_the_next_call_gets_a_fresh_one(
        self, engine: Engine
    ) -> None:
        import pytest

        with pytest.raises(EngineError):
            engine.run(os._exit, 9)
        assert engine.run(int, "7") == 7
