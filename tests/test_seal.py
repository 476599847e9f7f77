"""The tail moves into history once, whenever the sealer is killed and whoever reads meanwhile."""

from __future__ import annotations

import json
import shutil
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from journal_fixtures import Steps, ids, opened, replaced, to_load

from homeostat import files
from homeostat.entries import Sealed
from homeostat.errors import JournalError
from homeostat.journal import FileJournal
from homeostat.journal.history import DeltaLog
from homeostat.journal.jsonl import JsonLines
from homeostat.journal.labels import Labels
from homeostat.journal.predictions import Predictions
from homeostat.journal.scan import View
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
FRAME = drifting_stream(60, seed=2, length=timedelta(days=3))
SCHEMA = schema_of(FRAME)
ROWS = served_rows(FRAME, SCHEMA)
NOW = START + 60 * DAY


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "logs"


@pytest.fixture
def journal(folder):
    return opened(folder)


def tails(folder):
    """How many lines of rows and of labels the tail has."""
    names = (*folder.glob("predictions*.csv"), folder / "labels.csv")
    return [len(path.read_bytes().splitlines()) - 1 for path in names]


def test_what_was_recorded_long_enough_ago_moves_and_reads_stay_the_same(journal, folder):
    journal.append(ROWS)
    journal.label(label_rows(ids(ROWS)[::2], ["1"] * 30, START + DAY))
    before = journal.read(schema=SCHEMA)
    young = ROWS.column("recorded_at")[40].as_py()
    assert journal.seal(young + 7 * DAY) == Sealed(rows=40, labels=30)
    assert tails(folder) == [20, 0]
    assert journal.read(schema=SCHEMA).equals(before)
    assert opened(folder).read(schema=SCHEMA).equals(before)
    assert journal.seal(young + 7 * DAY) == Sealed()
    assert journal.sealed == Sealed(rows=40, labels=30)


def test_a_row_stamped_by_a_clock_far_ahead_holds_back_none_behind_it(journal, folder):
    ahead = pa.repeat(pa.scalar(START + 9_000 * DAY, TIMESTAMP), 3)
    place = ROWS.schema.get_field_index("recorded_at")
    for start, wrong in ((0, False), (10, True), (13, False), (57, True)):
        rows = ROWS.slice(start, 3 if wrong else 10)
        journal.append(rows.set_column(place, ROWS.schema.field(place), ahead) if wrong else rows)
    before = journal.read(schema=SCHEMA)
    assert journal.seal(NOW) == Sealed(rows=23)
    assert len((folder / "predictions.csv").read_bytes().splitlines()) == 1 + 3
    assert journal.read(schema=SCHEMA).equals(before)


def test_rows_that_history_has_are_dropped_and_conflicts_counted_for_good(journal, folder):
    journal.append(ROWS.slice(0, 20))
    journal.seal(NOW)
    other = replaced(ROWS.slice(5, 2), "amount", 7.25)
    journal.append(pa.concat_tables([ROWS.slice(0, 5), other, ROWS.slice(20)]))
    assert journal.read(schema=SCHEMA).select(ROWS.column_names).equals(ROWS)
    done = journal.seal(NOW)
    assert done == Sealed(rows=40, repeated=5, conflicts=2)
    assert opened(folder).sealed == Sealed(rows=60, repeated=5, conflicts=2)
    assert journal.read(schema=SCHEMA).select(ROWS.column_names).equals(ROWS)


def test_a_label_that_comes_long_after_its_row_was_sealed_finds_its_day(journal, folder):
    journal.append(ROWS)
    journal.seal(NOW)
    journal.label(label_rows(["id-59", "id-0", "id-0"], ["1", "0", "1"], START))
    assert journal.seal(NOW).labels == 3
    days = {path.parent.name for path in (folder / "history" / "labels").glob("day=*/*")}
    assert days == {"day=2025-01-01", "day=2025-01-03"}
    window = journal.read(Window(START, START + DAY), labelled=True)
    assert window.select(["prediction_id", "label"]).to_pylist() == [
        {"prediction_id": "id-0", "label": "1"}
    ]


def test_labels_without_a_prediction_wait_and_are_dropped_and_counted_in_the_end(journal, folder):
    journal.append(ROWS.slice(0, 10))
    journal.label(label_rows(["id-20", "nobody", "id-3"], ["0", "1", "1"], START))
    assert journal.seal(START + 30 * DAY) == Sealed(rows=10, labels=1)
    assert tails(folder) == [0, 2]
    journal.append(ROWS.slice(20, 1))
    assert journal.read(labelled=True).num_rows == 2
    assert journal.seal(START + 31 * DAY) == Sealed(rows=1, labels=1)
    assert journal.seal(START + 89 * DAY) == Sealed()
    assert journal.seal(START + 91 * DAY) == Sealed(orphans=1)
    assert tails(folder) == [0, 0]
    assert journal.read(labelled=True).num_rows == 2


def test_versions_keep_their_order_in_history_when_the_clock_was_set_back(folder):
    clock = FakeClock(START + DAY)
    journal = FileJournal(folder, clock=clock)
    journal.append(ROWS.slice(0, 2))
    for label, step in (("0", -DAY), ("1", DAY / 2), ("0", DAY), ("1", DAY)):
        journal.label(label_rows(["id-0", "id-1"], [label, "0"], START))
        clock.advance(step)
    for _ in range(3):
        assert journal.read().column("label").to_pylist() == ["1", "0"]
        journal.seal(NOW)
    journal.label(label_rows(["id-0"], ["0"], START))
    assert journal.read().column("label").to_pylist() == ["0", "0"]


def test_rows_of_several_schemas_are_sealed_into_one_table(journal, folder):
    narrow = ROWS.drop_columns(["gap"])
    journal.append(ROWS.slice(0, 20))
    journal.append(narrow.slice(20, 20))
    place = ROWS.schema.get_field_index("member")
    retyped = ROWS.set_column(place, "member", pa.repeat("yes", 60))
    journal.append(retyped.slice(40))
    before = journal.read()
    assert journal.seal(NOW).rows == 60
    after = journal.read()
    assert after.select(before.column_names).equals(before)
    assert opened(folder).read(schema=SCHEMA).column("member").null_count == 40 - 20


# --- killed, and read meanwhile ---


STEPS = [
    (files, "write"),
    (files, "sync"),
    (DeltaLog, "_ready"),
    (DeltaLog, "_commit"),
    (Predictions, "cut"),
    (Labels, "cut"),
    (JsonLines, "add"),
    (Path, "unlink"),
]


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A journal with something of all kinds in its tail, and the history that it conflicts with."""
    folder = tmp_path_factory.mktemp("full") / "logs"
    journal = opened(folder)
    journal.load(to_load(ROWS.slice(0, 10), None))
    journal.append(ROWS.slice(10, 10))
    journal.seal(NOW)
    other = replaced(ROWS.slice(11, 1), "amount", 7.25)
    journal.append(pa.concat_tables([ROWS.slice(10, 1), other]))
    journal.append(ROWS.slice(20, 20))
    journal.label(label_rows([*ids(ROWS)[::3], "nobody"], ["1"] * 21, START))
    return folder


@pytest.fixture
def steps(monkeypatch):
    return Steps(monkeypatch, STEPS)


def test_a_sealer_killed_at_any_step_loses_and_doubles_nothing(full, tmp_path, steps):
    wanted = opened(full).read(schema=SCHEMA)
    before, killed = opened(full).sealed, 0
    for last, folder in steps.killed_at_each(lambda at: opened(at).seal(NOW), full, tmp_path):
        killed += 1
        counts = opened(tmp_path / "whole").sealed
        assert opened(folder).read(schema=SCHEMA).equals(wanted), last
        opened(folder).seal(NOW)
        assert opened(folder).read(schema=SCHEMA).equals(wanted), last
        assert tails(folder) == [0, 7], last  # labels that wait for their predictions
        assert opened(folder).sealed == counts, last
    assert killed > 30
    assert (counts.conflicts, counts.repeated) == (before.conflicts + 1, before.repeated + 1)


def test_a_load_that_comes_after_a_killed_seal_finishes_it_first(full, tmp_path, steps):
    shutil.copytree(full, tmp_path / "logs")
    cut = "before cut"
    steps.killed_at(lambda t: t[-1] == cut, lambda at: opened(at).seal(NOW), tmp_path / "logs")
    journal = opened(tmp_path / "logs")
    assert (tmp_path / "logs" / "seal.json").exists()
    journal.load(to_load(ROWS.slice(40), None))
    assert not (tmp_path / "logs" / "seal.json").exists()
    assert tails(tmp_path / "logs")[0] == 0
    assert journal.read(schema=SCHEMA).select(ROWS.column_names).num_rows == 60


def test_who_read_the_tail_at_any_step_and_history_at_any_later_one_misses_nothing(
    full, tmp_path, steps
):
    wanted = opened(full).read(schema=SCHEMA)
    folder = tmp_path / "logs"
    shutil.copytree(full, folder)
    reader, seen = opened(folder), []

    def look():
        steps.hook = lambda: None  # what reading does is no step of the sealer
        seen.append(
            (
                tuple(reader._predictions.shelved()),
                reader._labels.shelved(),
                reader._history.snapshot(),
            )
        )
        for tail, sent, _ in seen:
            view = View(tail, sent, reader._history.snapshot(), reader._filed.snapshot())
            parts = view.scan(None, as_of=None, labelled=None, schema=SCHEMA)
            assert pa.concat_tables(parts).equals(wanted)
        steps.hook = look

    steps.hook = look
    opened(folder).seal(NOW)
    assert len(seen) > 30


def test_a_commit_that_was_not_on_the_disk_when_the_machine_stopped_is_made_again(journal, folder):
    journal.append(ROWS.slice(0, 20))
    journal.seal(NOW)
    journal.append(ROWS.slice(20))
    before = journal.read(schema=SCHEMA)
    log = folder / "history" / "predictions" / "_delta_log"
    empty = log / f"{max(int(path.stem) for path in log.glob('*.json')) + 1:020}.json"
    empty.touch()
    assert opened(folder).read(schema=SCHEMA).equals(before)
    assert opened(folder).seal(NOW).rows == 40
    assert opened(folder).read(schema=SCHEMA).equals(before)


def test_an_intent_of_an_unknown_format_or_without_sense_stops_the_sealer(journal, folder):
    journal.append(ROWS)
    for text in (json.dumps({"format": 2}), "{"):
        (folder / "seal.json").write_text(text)
        with pytest.raises(JournalError, match=r"seal\.json"):
            journal.seal(NOW)
    assert journal.read().num_rows == 60


events = st.lists(
    st.tuples(
        st.sampled_from(["append", "label", "seal", "load", "reopen"]),
        st.integers(0, 59),
        st.integers(1, 15),
        st.sampled_from("01"),
    ),
    max_size=10,
)


@settings(max_examples=12, deadline=None)
@given(events)
def test_no_order_of_events_tells_a_sealed_journal_from_one_in_memory(
    tmp_path_factory, given_events
):
    folder = tmp_path_factory.mktemp("journal")
    memory, sealed = MemoryJournal(), opened(folder)
    for what, first, count, label in given_events:
        part = ROWS.slice(first, count)
        if what == "seal":
            sealed.seal(NOW)
        elif what == "reopen":
            sealed = opened(folder)
        for journal in (memory, sealed):
            if what == "append":
                journal.append(part)
            elif what == "label":
                journal.label(label_rows(ids(part), [label] * part.num_rows, START))
            elif what == "load":
                journal.load(to_load(part, label))
        columns = ["prediction_id", "source", "amount", "city", "label"]
        mine, its = (j.read(schema=SCHEMA).select(columns) for j in (sealed, memory))
        assert mine.drop_columns("label").equals(its.drop_columns("label"))
    assert sealed.sealed.conflicts == 0


def test_a_commit_that_could_not_be_flushed_is_not_built_upon(journal, folder, monkeypatch):
    journal.append(ROWS)
    tail = folder / "predictions.csv"
    before = tail.read_bytes()
    flush, broken = files.sync, [True]

    def sync(path):
        if broken and path.name == "_delta_log":
            raise OSError(5, "Input/output error")
        flush(path)

    monkeypatch.setattr(files, "sync", sync)
    with pytest.raises(JournalError):
        journal.seal(NOW)
    broken.clear()
    # A second flush in this process would report success for pages that may be gone.
    with pytest.raises(JournalError, match="could not be flushed"):
        journal.seal(NOW)
    assert tail.read_bytes() == before

    fresh, synced = opened(folder), []
    monkeypatch.setattr(files, "sync", lambda path: (synced.append(path.name), flush(path)))
    fresh.seal(NOW)
    assert "_delta_log" in synced
    assert sorted(ids(fresh.read())) == sorted(ids(ROWS))
