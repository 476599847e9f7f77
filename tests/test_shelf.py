"""Rows of the tail as a process reads them: piece by piece, and no more of them than fit."""

from __future__ import annotations

import fcntl
import itertools
import tracemalloc
from datetime import timedelta

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from journal_fixtures import opened

from homeostat.journal import FileJournal, shelf, tail
from homeostat.records import Window
from homeostat.testing import START, FakeClock, drifting_stream, label_rows, schema_of, served_rows

DAY = timedelta(days=1)
FRAME = drifting_stream(600, seed=4, length=timedelta(days=6))
SCHEMA = schema_of(FRAME)
ROWS = served_rows(FRAME, SCHEMA)


def shuffled(rows, step=7):
    """The rows in another order; `step` has no divisor with their number in common."""
    return rows.take(pa.array([step * place % rows.num_rows for place in range(rows.num_rows)]))


@pytest.fixture
def folder(tmp_path):
    """Rows out of order, with labels, in two files of different columns."""
    folder = tmp_path / "logs"
    journal = opened(folder)
    journal.append(shuffled(ROWS.slice(0, 400)))
    journal.append(shuffled(ROWS.slice(400).drop_columns("member"), step=3))
    names = ROWS.column("prediction_id").to_pylist()
    journal.label(label_rows(names[::2], ["0", "1"] * 150, START))
    journal.label(label_rows(names[::4], ["1"] * 150, START + DAY))
    return folder


@pytest.fixture
def little(monkeypatch):
    """A memory of next to nothing, and pieces of a few rows."""
    monkeypatch.setattr(shelf, "LOOSE", 5_000)
    monkeypatch.setattr(shelf, "SLICE", 160)
    monkeypatch.setattr(tail, "_CHUNK", 3_000)
    monkeypatch.setattr("homeostat.journal.snapshot.SLICE", 90)


def test_rows_that_do_not_fit_into_memory_read_the_same(folder, little, monkeypatch):
    lean = opened(folder)
    window = Window(START + DAY, START + 3 * DAY)
    asked = [{}, {"labelled": True}, {"window": window}, {"as_of": START}, {"schema": SCHEMA}]
    pieces = list(lean.scan())
    told = [lean.read(**how) for how in asked]
    newest = lean.newest(source="serve")
    monkeypatch.undo()
    rich = opened(folder)
    assert [rich.read(**how).equals(one) for how, one in zip(asked, told, strict=True)] == [
        True
    ] * 5
    assert rich.newest(source="serve") == newest
    assert len(pieces) > 4
    assert max(piece.num_rows for piece in pieces) < 200


def test_what_was_put_aside_has_no_name_and_is_gone_with_its_reader(folder, little):
    before = set(folder.rglob("*"))
    lean = opened(folder)
    rows = lean.scan()
    next(rows)
    assert set(folder.rglob("*")) == before


def test_a_reader_that_began_before_a_seal_ends_with_the_rows_of_its_beginning(folder, little):
    lean, other = opened(folder), opened(folder)
    before = lean.read()
    scan = lean.scan()
    first = next(scan)
    assert other.seal(START + 60 * DAY).rows == 600
    lean.append(ROWS.slice(0, 1).set_column(0, "prediction_id", pa.array(["late"])))
    assert lean.read().num_rows == 601
    assert pa.concat_tables([first, *scan]).equals(before)
    assert opened(folder).read().num_rows == 601


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(steps=st.lists(st.sampled_from(["append", "seal", "read", "erase"]), max_size=8))
def test_no_order_of_events_makes_a_lean_reader_see_other_rows(
    tmp_path_factory, little, monkeypatch, steps
):
    home = tmp_path_factory.mktemp("events")
    writer, lean, count = opened(home), opened(home), itertools.count(1)
    for step in steps:
        number = next(count)
        if step == "append":
            rows = shuffled(ROWS.slice(40 * number, 40))
            writer.append(rows)
            writer.label(label_rows(rows.column(0).to_pylist()[:9], ["1"] * 9, START))
        elif step == "seal":
            writer.seal(START + DAY * (8 + number))
        elif step == "erase":
            writer.erase(START, ids=[f"id-{40 * number - 39}", "id-81"])
        else:
            with monkeypatch.context() as rich:
                rich.setattr(shelf, "LOOSE", 1 << 30)
                assert opened(home).read().equals(lean.read())


def test_who_reads_a_long_tail_for_the_first_time_keeps_nobody_waiting(folder, little, monkeypatch):
    """While rows are parsed the lock is free, both for a reader and for a worker that begins."""
    free = []

    def asked(path):
        with path.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free.append(path.name)

    decode = shelf.lines.decode
    with monkeypatch.context() as watched:

        def watching(data, schema):
            name = "labels" if schema.names[1] == "label" else "predictions"
            asked(folder / f"{name}.lock")
            return decode(data, schema)

        watched.setattr(shelf.lines, "decode", watching)
        opened(folder).read()
    assert (free.count("predictions.lock") > 10, free.count("labels.lock") > 5) == (True, True)
    free.clear()
    monkeypatch.setattr(tail.time, "sleep", lambda _: asked(folder / "predictions.lock"))
    opened(folder).append(ROWS.slice(0, 1))
    assert len(free) > 10


def test_memory_does_not_grow_with_the_tail(tmp_path, monkeypatch):
    """Of a tail of 40,000 rows a scan holds no more at a time than of one of 8,000."""
    monkeypatch.setattr(shelf, "LOOSE", 1 << 19)
    monkeypatch.setattr(shelf, "SLICE", 2_000)
    monkeypatch.setattr(tail, "_CHUNK", 1 << 17)
    monkeypatch.setattr("homeostat.journal.snapshot.SLICE", 2_000)
    frame = drifting_stream(40_000, seed=1, length=timedelta(days=60))
    rows = served_rows(frame, schema_of(frame))

    def peak(count):
        folder = tmp_path / str(count)
        journal = FileJournal(folder, clock=FakeClock(START), ack="write")
        journal.append(rows.slice(0, count))
        names = rows.column("prediction_id").to_pylist()[:count]
        journal.label(label_rows(names, ["1"] * count, START))
        journal = opened(folder)
        tracemalloc.start()
        before, most, seen = pa.total_allocated_bytes(), 0, 0
        for piece in journal.scan(schema=SCHEMA):
            seen += piece.num_rows
            most = max(most, pa.total_allocated_bytes() - before)
        _, held = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert seen == count
        return held + most

    assert peak(40_000) < 1.5 * peak(8_000)
