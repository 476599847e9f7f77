"""The long memory of the journal: Delta tables by day, read in pieces of bounded size."""

from __future__ import annotations

import json
from datetime import timedelta
from itertools import pairwise

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st
from journal_fixtures import replaced, to_load

from homeostat.entries import Appended, Labelled
from homeostat.errors import JournalError
from homeostat.journal import FileJournal, history, snapshot
from homeostat.memory import MemoryJournal
from homeostat.records import Window
from homeostat.schema import TIMESTAMP
from homeostat.testing import (
    START,
    FakeClock,
    drifting_stream,
    label_rows,
    schema_of,
    served_rows,
)

DAY = timedelta(days=1)
FRAME = drifting_stream(400, seed=5)
SCHEMA = schema_of(FRAME)
ROWS = served_rows(FRAME, SCHEMA)


@pytest.fixture
def clock():
    return FakeClock(START)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "logs"


@pytest.fixture
def journal(folder, clock):
    return FileJournal(folder, clock=clock, tail=timedelta(0))


@pytest.fixture
def small(monkeypatch):
    """Pieces, files and row groups of a few rows."""
    monkeypatch.setattr(snapshot, "SLICE", 50)
    monkeypatch.setattr("homeostat.journal.shelf.SLICE", 50)
    monkeypatch.setattr(history, "SLICE", 50)
    monkeypatch.setattr(history, "_SMALL", 12)
    monkeypatch.setattr(history, "GROUP", 7)
    monkeypatch.setattr(snapshot, "HELD", 0)


def files(folder, table="predictions"):
    paths = DeltaTable(folder / "history" / table).file_uris()
    return [path.split(f"/{table}/")[1] for path in paths]


def test_history_lies_in_compressed_files_by_day_sorted_by_time_and_id(journal, folder):
    journal.load(to_load(ROWS.take(pa.array(range(399, -1, -1))), "1"))
    names = files(folder)
    assert len(names) == 28
    table = folder / "history" / "predictions"
    for name in names:
        part = pq.read_table(table / name, partitioning=None)
        assert part.schema.equals(ROWS.schema, check_metadata=False)
        days = set(part["occurred_at"].cast(pa.date32()).to_pylist())
        assert [f"day={day}" for day in days] == [name.split("/")[0]]
        keys = list(
            zip(part["occurred_at"].to_pylist(), part["prediction_id"].to_pylist(), strict=True)
        )
        assert keys == sorted(keys)
        about = pq.read_metadata(table / name)
        assert about.row_group(0).column(0).compression == "ZSTD"


def test_duckdb_and_polars_read_the_tables_and_get_what_the_journal_gives(journal, folder, clock):
    journal.append(ROWS.slice(0, 200))
    journal.load(to_load(ROWS.slice(200), "1"))
    journal.label(label_rows(["id-0", "id-1"], ["0", "1"], START + DAY))
    journal.seal(clock.advance(90 * DAY))
    mine = journal.read(schema=SCHEMA)
    names = ROWS.column_names
    order = [("occurred_at", "ascending"), ("prediction_id", "ascending")]
    rows, labels = (folder / "history" / name for name in ("predictions", "labels"))
    polars = pl.read_delta(str(rows)).select(names).to_arrow().cast(ROWS.schema).sort_by(order)
    assert polars.equals(mine.select(names).combine_chunks())
    listed = ", ".join(f"'{uri}'" for uri in DeltaTable(rows).file_uris())
    known = ", ".join(f"'{uri}'" for uri in DeltaTable(labels).file_uris())
    duck = duckdb.sql(
        f"SELECT r.*, l.label FROM read_parquet([{listed}]) r LEFT JOIN read_parquet([{known}]) l "
        "USING (prediction_id) ORDER BY r.occurred_at, r.prediction_id"
    ).to_arrow_table()
    assert duck.column("amount").to_pylist() == mine.column("amount").to_pylist()
    assert duck.column("city").to_pylist() == mine.column("city").to_pylist()
    assert duck.column("label").to_pylist() == mine.column("label").to_pylist()


def test_a_scan_in_small_pieces_gives_what_one_read_gives(journal, folder, clock, small):
    journal.load(to_load(ROWS.slice(0, 250), "1"))
    journal.append(ROWS.slice(250, 100))
    journal.seal(clock.advance(90 * DAY))
    journal.append(ROWS.slice(350))
    journal.label(label_rows(["id-3", "id-399"], ["0", "0"], clock.now()))
    window = Window(START + 2 * DAY, START + 27 * DAY)
    pieces = list(journal.scan(window, schema=SCHEMA))
    assert len(pieces) > 4
    assert max(piece.num_rows for piece in pieces) <= 100
    memory = MemoryJournal()
    memory.append(ROWS)
    whole = pa.concat_tables(pieces)
    wanted = memory.read(window, schema=SCHEMA)
    assert whole.select(["prediction_id", "amount"]).equals(
        wanted.select(["prediction_id", "amount"])
    )
    told = dict(zip(whole["prediction_id"].to_pylist(), whole["label"].to_pylist(), strict=True))
    ids = {name for name in told if int(name[3:]) < 250}
    assert all(told[name] == "1" for name in ids)
    assert all(told[name] is None for name in told.keys() - ids)


def test_rows_of_one_single_time_come_in_pieces_by_id(journal, small):
    journal.load(to_load(replaced(ROWS, "occurred_at", START), "1"))
    pieces = list(journal.scan(schema=SCHEMA))
    assert max(piece.num_rows for piece in pieces) <= 100
    ids = pa.concat_tables(pieces).column("prediction_id").to_pylist()
    assert ids == sorted(ROWS.column("prediction_id").to_pylist())


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 60)), max_size=20),
    st.none() | st.integers(0, 20),
    st.none() | st.integers(0, 20),
)
def test_pieces_follow_one_another_without_gap_or_overlap(grains, low, high):
    places = [((START + hour * DAY, ""), rows) for hour, rows in grains]
    start, end = (None if day is None else (START + day * DAY, "") for day in (low, high))
    cuts = snapshot.cuts(places, start, end)
    assert (cuts[0][0], cuts[-1][1]) == (start, end)
    assert all(one[1] == other[0] for one, other in pairwise(cuts))
    inner = [cut[0] for cut in cuts[1:]]
    assert inner == sorted(set(inner))


def test_a_window_reads_only_the_files_of_its_days(journal, folder):
    journal.load(to_load(ROWS, "1"))
    for day in (5, 20):
        for name in files(folder):
            if name.startswith(f"day={(START + day * DAY).date()}"):
                (folder / "history" / "predictions" / name).write_bytes(b"no Parquet")
    fresh = FileJournal(folder)
    assert fresh.read(Window(START + 6 * DAY, START + 9 * DAY)).num_rows == 43
    with pytest.raises(JournalError, match="could not read the history"):
        fresh.read(Window(START + 5 * DAY, START + 9 * DAY))


def test_new_columns_are_merged_and_those_of_another_kind_lie_beside(journal, folder):
    journal.load(to_load(ROWS.drop_columns(["gap"]).slice(0, 10), "1"))
    journal.load(to_load(ROWS.slice(10, 10), "1"))
    place = ROWS.schema.get_field_index("amount")
    retyped = ROWS.set_column(place, "amount", pa.repeat("many", 400))
    journal.load(to_load(retyped.slice(20, 10), "1"))
    for reader in (journal, FileJournal(folder)):
        back = reader.read()
        assert back.column("gap").slice(0, 10).null_count == 10
        assert back.column("amount").to_pylist() == [None] * 20 + ["many"] * 10
        numbers = reader.read(schema=SCHEMA).column("amount").to_pylist()
        assert numbers == [*ROWS.slice(0, 20).column("amount").to_pylist(), *[None] * 10]


def test_features_named_like_the_partition_or_alike_but_for_case_come_back(journal):
    columns = {"day": "amount", "Day": "gap", "City": "city", "city": "city"}
    rows = ROWS.select(ROWS.column_names[:8])
    for name, source in columns.items():
        rows = rows.append_column(name, ROWS.column(source))
    rows = rows.set_column(9, "Day", ROWS.column("member"))
    journal.load(to_load(rows, "1"))
    back = journal.read()
    for name in columns:
        assert back.column(name).to_pylist() == rows.column(name).to_pylist(), name


def test_many_small_files_of_a_day_become_one_and_nothing_changes(journal, folder, clock):
    late = clock.now() + 90 * DAY
    one_day = ROWS.slice(0, 14)
    for row in range(14):
        journal.append(one_day.slice(row, 1))
        journal.label(label_rows([f"id-{row}"], ["1"], START + DAY))
        journal.seal(late)
        assert len(files(folder)) <= history.FEW
        assert len(files(folder, "labels")) <= history.FEW
    back = FileJournal(folder).read(schema=SCHEMA)
    assert back.select(ROWS.column_names).equals(one_day)
    assert back.column("label").to_pylist() == ["1"] * 14


def test_the_log_is_checkpointed(journal, folder, clock):
    late = clock.advance(90 * DAY)
    for row in range(12):
        journal.append(ROWS.slice(row * 20, 1))
        journal.seal(late)
    log = folder / "history" / "predictions" / "_delta_log"
    assert list(log.glob("*.checkpoint.parquet"))


def test_history_forgets_what_is_older_than_it_should_keep_and_no_other_row(folder, clock):
    journal = FileJournal(folder, clock=clock, tail=timedelta(0), keep=10 * DAY)
    journal.append(ROWS)
    journal.label(label_rows(ROWS.column("prediction_id").to_pylist(), ["1"] * 400, START))
    done = journal.seal(START + 28 * DAY)
    assert done.rows == 400
    back = journal.read(schema=SCHEMA)
    assert back.column("occurred_at")[0].as_py() >= START + 18 * DAY
    kept = sum(at.as_py() >= START + 18 * DAY for at in ROWS.column("occurred_at"))
    assert back.num_rows == 400 - done.expired == kept
    assert back.column("label").null_count == 0
    assert journal.seal(START + 28 * DAY).expired == 0


def test_a_label_dated_back_does_not_show_in_a_past_that_did_not_know_it(journal, clock):
    journal.append(ROWS.slice(0, 2))
    journal.label(label_rows(["id-0"], ["0"], START + DAY))
    clock.advance(10 * DAY)
    journal.label(label_rows(["id-0", "id-1"], ["1", "1"], START + DAY))
    for _ in range(2):  # in the tail, and in history
        then = journal.read(as_of=START + 5 * DAY)
        assert then.column("label").to_pylist() == ["0", None]
        assert journal.read(as_of=START + 10 * DAY).column("label").to_pylist() == ["1", "1"]
        journal.seal(clock.advance(30 * DAY))


def test_of_rows_that_came_later_the_labels_count_from_their_own_time(journal, clock):
    """Imports and streams in event time are recorded long after they happened."""
    recorded = pa.repeat(pa.scalar(START + 300 * DAY, TIMESTAMP), 400)
    rows = ROWS.set_column(2, "recorded_at", recorded)
    clock.advance(300 * DAY)
    journal.append(rows.slice(0, 10))
    journal.label(label_rows(["id-0"], ["1"], START + 2 * DAY))
    journal.load(to_load(rows.slice(10, 10), "1"))
    for _ in range(2):
        then = journal.read(as_of=START + 3 * DAY).column("label").to_pylist()
        assert then == ["1", *[None] * 9, *["1"] * 10]
        assert journal.read(as_of=START + 1.5 * DAY, labelled=True).num_rows == 10
        journal.seal(clock.advance(30 * DAY))


@pytest.mark.parametrize("sealed", [False, True])
def test_the_last_label_wins_when_the_clock_was_set_back_between_import_and_feedback(
    journal, clock, sealed
):
    def says():
        if sealed:
            journal.seal(START + 30 * DAY)
        return journal.read().column("label").to_pylist()

    def loaded(label):
        at = pa.repeat(pa.scalar(clock.now(), TIMESTAMP), 2)
        place = ROWS.schema.get_field_index("recorded_at")
        rows = ROWS.slice(0, 2).set_column(place, ROWS.schema.field(place), at)
        journal.load(to_load(rows, label))

    hour = timedelta(hours=1)
    clock.advance(10 * DAY)
    loaded("0")
    clock.advance(-hour)
    journal.label(label_rows(["id-0"], ["1"], START))
    assert says() == ["1", "0"]
    clock.advance(-hour)
    loaded("2")
    assert says() == ["2", "2"]
    clock.advance(-hour)
    journal.label(label_rows(["id-0"], ["3"], START))
    assert says() == ["3", "2"]
    # What is known now is no less for that the clock has been ahead.
    assert journal.read(as_of=clock.now()).column("label").to_pylist()[0] == "3"


def test_one_clock_that_was_years_ahead_hides_no_later_label(journal, clock):
    journal.append(ROWS.slice(0, 2))
    clock.advance(9_000 * DAY)
    journal.label(label_rows(["id-0"], ["0"], START))
    clock.advance(-9_000 * DAY)
    journal.label(label_rows(["id-0", "id-1"], ["1", "1"], START))
    assert journal.read(as_of=START + DAY).column("label").to_pylist() == ["1", "1"]
    assert journal.read().column("label").to_pylist() == ["1", "1"]


def test_loading_again_what_feedback_corrected_and_history_sealed_undoes_nothing(journal, clock):
    old = to_load(ROWS.slice(0, 40), "0")
    journal.load(old)
    clock.advance(DAY)
    journal.label(label_rows(["id-0"], ["1"], START))
    journal.seal(clock.advance(90 * DAY))
    assert journal.load(old) == (Appended(0, 40), Labelled(0, 40, 0))
    assert journal.read().column("label").to_pylist() == ["1"] + ["0"] * 39


LABELS_1 = pa.schema(
    [
        ("prediction_id", pa.string()),
        ("label", pa.string()),
        ("labelled_at", TIMESTAMP),
        ("recorded_at", TIMESTAMP),
        ("commit", pa.int64()),
    ]
)


def test_a_history_without_partitions_is_read_and_the_next_import_partitions_it(journal, folder):
    times = [START + day * DAY for day in (1, 2)]
    labels = pa.table([["id-0", "id-0"], ["0", "1"], times, times, [0, 1]], schema=LABELS_1)
    write_deltalake(folder / "history" / "predictions", ROWS.slice(0, 30))
    write_deltalake(folder / "history" / "labels", labels)
    before = journal.read(schema=SCHEMA)
    assert before.select(ROWS.column_names).equals(ROWS.slice(0, 30))
    assert before.column("label").to_pylist() == ["1"] + [None] * 29
    journal.load(to_load(ROWS.slice(30, 30), "1"))
    assert all(name.startswith("day=") for name in files(folder) + files(folder, "labels"))
    after = FileJournal(folder).read(schema=SCHEMA)
    assert after.slice(0, 30).equals(before)
    assert after.num_rows == 60


def test_an_id_that_stands_on_two_days_counts_once(journal, clock):
    journal.load(to_load(ROWS.slice(0, 10), "1"))
    place = ROWS.schema.get_field_index("occurred_at")
    moved = pa.repeat(pa.scalar(START + 20 * DAY, TIMESTAMP), 400)
    journal.append(ROWS.set_column(place, ROWS.schema.field(place), moved).slice(3, 1))
    for _ in range(2):
        back = journal.read()
        assert back.num_rows == 10
        assert back.column("occurred_at")[3].as_py() < START + DAY
        assert journal.read(Window(START + 20 * DAY, START + 21 * DAY)).num_rows == 0
        journal.seal(clock.advance(90 * DAY))
    assert journal.sealed.conflicts == 1


def test_the_newest_row_of_a_source_is_found_wherever_it_lies(journal, clock, small):
    assert journal.newest(source="live") is None
    journal.load(to_load(ROWS.slice(0, 300), "1"))
    assert journal.newest(source="live") is None
    journal.append(ROWS.slice(300, 20))
    newest = ROWS.column("occurred_at")[319].as_py()
    for _ in range(2):
        assert journal.newest(source="live") == newest == journal.newest()
        assert journal.newest(source="load") == ROWS.column("occurred_at")[299].as_py()
        journal.seal(clock.advance(90 * DAY))


def test_what_the_log_tells_of_files_is_what_they_hold(journal, folder):
    journal.load(to_load(ROWS, "1"))
    log = folder / "history" / "predictions" / "_delta_log"
    told = [
        json.loads(line) for path in log.glob("*.json") for line in path.read_text().splitlines()
    ]
    adds = [json.loads(line["add"]["stats"]) for line in told if "add" in line]
    assert sum(add["numRecords"] for add in adds) == 400
    assert {name for add in adds for name in add["minValues"]} == {
        "prediction_id", "occurred_at", "source",
    }  # fmt: skip
