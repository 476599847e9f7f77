"""The tail of the journal: group commits, what is written, and portions that are cut off."""

from __future__ import annotations

import csv
import fcntl
import json
import math
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from homeostat.entries import Committed, Entry, Labelled
from homeostat.errors import ConflictError, JournalError
from homeostat.journal import FileJournal, lines
from homeostat.journal import disk as disk_module
from homeostat.journal.disk import Disk
from homeostat.journal.labels import Labels
from homeostat.journal.predictions import Predictions
from homeostat.schema import SYSTEM
from homeostat.testing import START, FakeClock, label_rows

COLUMNS = pa.schema([*SYSTEM.items(), ("n", pa.float64()), ("c", pa.string()), ("b", pa.bool_())])
NARROW = pa.schema([*SYSTEM.items(), ("n", pa.float64())])
FAR = datetime(2100, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def row(name, n=1.5, *, at=START, recorded=START, version="m1", columns=COLUMNS):
    times = [f"{moment:%Y-%m-%d %H:%M:%S.%fZ}" for moment in (at, recorded)]
    features = [n] if columns is NARROW else [n, "Wien", True]
    return [name, *times, version, "serve", "1", 0.25, None, *features]


def entry(*names, untimed=(), made=False, **about):
    return Entry(names, [row(name, **about) for name in names], frozenset(untimed), made)


def ids(table):
    return table.column("prediction_id").to_pylist()


def all_ids(tail):
    return [name for shelf in tail.shelved() for name in held(shelf)]


def held(shelf):
    """The ids in the order of the file."""
    rows = pa.concat_tables([shelf.schema.empty_table(), *shelf.pieces()])
    return ids(rows.sort_by(rows.column_names[-1]))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "logs"


@pytest.fixture
def journal(folder):
    return FileJournal(folder)


def tail_of(folder, ack="fsync", torn=None):
    return Predictions(folder, Disk(ack), torn or (lambda path, size: None))


# --- what is written ---

FLOATS = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(
    [0.0, -0.0, 5e-324, -5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, 1e16, 1e22, 0.1]
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.text(
    st.sampled_from(",\"\n\r\0\\\t\x1f\x7f\u2028\ufeff;'nul"), max_size=12
)


def bits(value):
    return None if value is None else struct.pack(">d", value)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(TEXTS, st.none() | FLOATS, st.none() | TEXTS, st.none() | st.booleans()),
        min_size=1,
        max_size=6,
    )
)
def test_arrow_reads_back_exactly_what_was_written(values):
    schema = pa.schema(
        [("id", pa.string()), ("n", pa.float64()), ("c", pa.string()), ("b", pa.bool_())]
    )
    encoder = lines.Encoder(schema)
    records = encoder.records(values)
    data = b"".join(records)
    back = lines.decode(data, schema).to_pydict()
    for place, name in enumerate(("id", "c", "b"), start=0):
        assert back[name] == [value[(0, 2, 3)[place]] for value in values]
    assert [bits(n) for n in back["n"]] == [bits(value[1]) for value in values]
    ends = lines.ends(data)
    assert ends.tolist() == [len(b"".join(records[: i + 1])) for i in range(len(records))]
    assert lines.keys(data, ends) == [lines.key_of(value[0]) for value in values]
    assert [lines.key(record) for record in records] == [lines.key_of(v[0]) for v in values]
    for cut in (1, len(records[-1]) // 2, len(records[-1]) - 1):
        assert len(lines.ends(data[: len(data) - cut])) == len(records) - 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.none() | st.floats(), min_size=1, max_size=5))
def test_a_table_may_hold_numbers_that_json_has_not(values):
    schema = pa.schema([("id", pa.string()), ("n", pa.float64())])
    table = pa.table([["a"] * len(values), pa.array(values, pa.float64())], schema=schema)
    back = lines.decode(lines.encode(table), schema).column("n").to_pylist()
    for one, other in zip(values, back, strict=True):
        assert one == other or (math.isnan(one) and math.isnan(other))


@pytest.mark.parametrize(
    "values",
    [
        {8: "text"}, {8: True}, {9: 1.0}, {10: 1}, {0: None}, {0: 5}, {1: None}, {1: "2025-01-01"},
        {9: "\ud800"}, {8: 1},
    ],
)  # fmt: skip
def test_a_value_that_its_column_cannot_hold_is_refused_before_anything_is_written(
    journal, folder, values
):
    journal.commit(COLUMNS, [entry("a")])
    before = (folder / "predictions.csv").read_bytes()
    bad = row("b")
    for place, value in values.items():
        bad[place] = value
    with pytest.raises(JournalError, match="does not have the values"):
        journal.commit(COLUMNS, [entry("c"), Entry(["b"], [bad])])
    with pytest.raises(JournalError, match="does not have the values"):
        journal.commit(COLUMNS, [Entry(["b"], [row("b")[:-1]])])
    assert (folder / "predictions.csv").read_bytes() == before
    with pytest.raises(JournalError, match="not the columns of a journal"):
        journal.commit(pa.schema([*SYSTEM.items()]), [])


def test_rows_of_earlier_versions_with_every_value_in_quotes_are_known(journal, folder):
    journal.commit(COLUMNS, [entry("a", "b")])
    file = folder / "predictions.csv"
    old = file.read_text().replace(",0.25,,1.5,", ',"0.25",,"1.5",').replace("true", '"true"')
    assert old != file.read_text()
    file.write_text(old)
    again = FileJournal(folder)
    first, second = again.commit(COLUMNS, [entry("a", "c"), entry("b", n=2.0)])
    assert (first.written, first.repeated, ids(first.recorded)) == (1, 1, ["a"])
    assert isinstance(second, ConflictError)
    assert again.read().column("n").to_pylist() == [1.5] * 3


# --- group commits ---


def test_all_requests_of_a_call_share_one_write_and_one_flush(journal, monkeypatch):
    journal.commit(COLUMNS, [entry("a")])
    calls = []
    write, fsync = os.write, os.fsync
    monkeypatch.setattr(os, "write", lambda *args: calls.append("write") or write(*args))
    monkeypatch.setattr(os, "fsync", lambda file: calls.append("fsync") or fsync(file))
    done = journal.commit(COLUMNS, [entry("b", "c"), entry("d"), entry("e")])
    assert done == [Committed(2, 0), Committed(1, 0), Committed(1, 0)]
    assert calls == ["write", "fsync"]


def test_a_conflict_keeps_out_its_own_request_and_no_other(journal):
    journal.commit(COLUMNS, [entry("a")])
    first, second, third, fourth = journal.commit(
        COLUMNS, [entry("b"), Entry(["c", "a"], [row("c"), row("a", 9.0)]), entry("c"), entry("d")]
    )
    assert (first, third, fourth) == (Committed(1, 0),) * 3
    assert isinstance(second, ConflictError)
    assert second.row == 1
    assert sorted(ids(journal.read())) == ["a", "b", "c", "d"]


def test_requests_of_one_call_know_of_one_another(journal):
    same, other = entry("a", version="m2"), entry("a", n=2.0)
    first, second, third = journal.commit(COLUMNS, [entry("a", "a"), same, other])
    assert (first.written, first.repeated) == (1, 1)
    assert (second.written, second.repeated) == (0, 1)
    assert second.recorded.column("model_version").to_pylist() == ["m1"]
    assert isinstance(third, ConflictError)
    assert journal.read().num_rows == 1


def test_a_request_that_comes_again_gets_the_rows_as_they_were_recorded(journal, folder):
    other = FileJournal(folder)
    other.commit(COLUMNS, [entry('a "quoted", id', "b")])
    (done,) = journal.commit(COLUMNS, [entry("b", "c", 'a "quoted", id', version="m2")])
    assert (done.written, done.repeated) == (1, 2)
    assert ids(done.recorded) == ["b", 'a "quoted", id']
    assert done.recorded.schema.equals(COLUMNS)
    assert done.recorded.column("model_version").to_pylist() == ["m1", "m1"]


def test_an_earlier_time_is_no_conflict_for_who_gave_none(journal):
    journal.commit(COLUMNS, [entry("a", "b")])
    later = START + HOUR
    asked = [
        entry("a", at=later, untimed=["a"]),
        entry("b", at=later),
        entry("b", n=2.0, untimed="b"),
    ]
    first, second, third = journal.commit(COLUMNS, asked)
    assert first.recorded.column("occurred_at").to_pylist() == [START]
    assert isinstance(second, ConflictError)
    assert isinstance(third, ConflictError)


def test_the_same_id_with_the_columns_of_another_schema_is_a_conflict(journal):
    journal.commit(COLUMNS, [entry("a")])
    (done, fine) = journal.commit(NARROW, [entry("a", columns=NARROW), entry("b", columns=NARROW)])
    assert isinstance(done, ConflictError)
    assert fine == Committed(1, 0)
    assert journal.commit(COLUMNS, [entry("a")])[0].repeated == 1


def test_ids_that_a_server_made_are_looked_at_only_when_somebody_asks(folder, monkeypatch):
    monkeypatch.setattr("homeostat.journal.index._PIECE", 200)
    writer, other = tail_of(folder), tail_of(folder)
    looked, key, keys = [], lines.key, lines.keys
    monkeypatch.setattr(lines, "key", lambda *args: looked.append(1) or key(*args))
    monkeypatch.setattr(lines, "keys", lambda *args: looked.append(1) or keys(*args))
    for start in range(0, 40, 4):
        names = [f"m{start + i}" for i in range(4)]
        assert writer.commit(COLUMNS, [entry(*names, made=True)]) == [Committed(4, 0)]
        other.catch_up()
    assert looked == []
    for turn, worker in enumerate((writer, other, tail_of(folder))):
        again, changed, new = worker.commit(
            COLUMNS, [entry("m0", "m39"), entry("m17", n=7.0), entry(f"new {turn}")]
        )
        assert (again.repeated, ids(again.recorded), new) == (2, ["m0", "m39"], Committed(1, 0))
        assert isinstance(changed, ConflictError)
        last = f"last {turn}"
        assert worker.commit(COLUMNS, [entry(last, made=True)]) == [Committed(1, 0)]
        assert ids(worker.known([last, "m20"])) == [last, "m20"]
        (portion,) = worker.portions(FAR, FAR, limit=1)
        assert worker.cut(portion)
        writer.commit(COLUMNS, [entry("m0", "m39")])


def test_nothing_is_written_for_no_rows(journal, folder):
    assert journal.commit(COLUMNS, []) == []
    assert journal.commit(COLUMNS, [Entry([], [])]) == [Committed(0, 0)]
    assert not (folder / "predictions.csv").exists()


def test_files_stay_open_and_the_folder_is_not_read_again(folder, monkeypatch):
    one, other = tail_of(folder), tail_of(folder)
    for tail in (one, other):
        tail.commit(COLUMNS, [entry("a")])
    for name in ("open", "scandir"):
        monkeypatch.setattr(os, name, lambda *args: pytest.fail("looked again"))
    for number in range(3):
        for tail, name in ((one, "one"), (other, "other")):
            assert tail.commit(COLUMNS, [entry(f"{name}-{number}")]) == [Committed(1, 0)]
    assert other.commit(COLUMNS, [entry("one-2")])[0].repeated == 1


def test_where_a_file_system_has_no_full_flush_a_plain_one_does(journal, folder, monkeypatch):
    unknown = 99_999  # what fcntl refuses, as it does where macOS cannot flush the drive
    monkeypatch.setattr(disk_module.fcntl, "F_FULLFSYNC", unknown, raising=False)
    flushed = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: flushed.append(file) or fsync(file))
    assert journal.commit(COLUMNS, [entry("a")]) == [Committed(1, 0)]
    assert flushed


def test_with_ack_write_rows_are_in_the_file_and_nothing_is_flushed(folder, monkeypatch):
    journal = FileJournal(folder, ack="write")
    journal.commit(COLUMNS, [entry("a")])
    monkeypatch.setattr(os, "fsync", lambda file: pytest.fail("flushed"))
    assert journal.commit(COLUMNS, [entry("b"), entry("a")])[1].repeated == 1
    assert sorted(ids(FileJournal(folder).read())) == ["a", "b"]


def test_what_another_worker_wrote_is_flushed_before_it_is_answered_as_repeated(
    folder, monkeypatch
):
    careless, careful = FileJournal(folder, ack="write"), FileJournal(folder)
    careless.commit(COLUMNS, [entry("a"), entry("b")])
    careful.catch_up()
    careless.commit(COLUMNS, [entry("c")])
    flushed = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: flushed.append(file) or fsync(file))
    assert careful.commit(COLUMNS, [entry("a"), entry("c")])[1].repeated == 1
    assert len(flushed) == 1
    careful.commit(COLUMNS, [entry("c")])
    assert len(flushed) == 1  # by the first one
    careless.label(label_rows(["a"], ["1"], START))
    flushed.clear()
    assert careful.label(label_rows(["a"], ["1"], START)) == Labelled(0, 1, 0)
    assert len(flushed) == 1


def test_a_failed_flush_fails_all_that_wait_for_one(journal, folder, monkeypatch):
    """The second thread's rows are in the file, too, and the kernel tells of the failure once."""
    journal.commit(COLUMNS, [entry("a")])
    begun, go = threading.Event(), threading.Event()
    flushes, results = [], []

    def fail(file):
        flushes.append(file)
        begun.set()
        go.wait(20)
        raise OSError(5, "Input/output error")

    def commit(name):
        try:
            results.append(journal.commit(COLUMNS, [entry(name)]))
        except JournalError as error:
            results.append(error)

    monkeypatch.setattr(disk_module.os, "fsync", fail)
    threads = [threading.Thread(target=commit, args=[name]) for name in "bc"]
    threads[0].start()
    assert begun.wait(20)
    threads[1].start()
    while b'"c"' not in (folder / "predictions.csv").read_bytes():
        assert threads[1].is_alive()
    go.set()
    for thread in threads:
        thread.join(20)
    monkeypatch.undo()
    assert len(flushes) == 1
    assert all(isinstance(result, JournalError) for result in results)
    with pytest.raises(JournalError, match="nothing more is written"):
        journal.commit(COLUMNS, [entry("a")])
    with pytest.raises(JournalError, match="nothing more is written"):
        journal.catch_up()


REFUSED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_journal_tail import COLUMNS, entry
from homeostat.errors import JournalError
from homeostat.journal import FileJournal

journal = FileJournal(Path(sys.argv[1]))
for name in "abcd":
    try:
        journal.commit(COLUMNS, [entry(name)])
        print("done")
    except JournalError as error:
        print(error)
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="there is no strace here")
def test_a_flush_that_the_system_refuses_is_not_tried_again(folder):
    """The third one would be granted, and would be a lie."""
    FileJournal(folder).commit(COLUMNS, [entry("first")])
    log = folder.parent / "strace"
    command = [
        *("strace", "-f", "-qq", "-o", str(log), "-e", "trace=fsync"),
        *("-P", str(folder / "predictions.csv"), "-e", "inject=fsync:error=EIO:when=2"),
        *(sys.executable, "-B", "-c", REFUSED, str(folder), str(Path(__file__).parent)),
    ]
    done = subprocess.run(command, check=False, timeout=60, capture_output=True, text=True)
    if "ptrace" in done.stderr:
        pytest.skip("strace may not be used here")
    first, second, *others = done.stdout.splitlines()
    assert first == "done", done.stderr
    assert "could not flush" in second
    assert len(others) == 2
    assert all("nothing more is written" in line for line in others)
    assert log.read_text().count("fsync(") == 2
    assert ids(FileJournal(folder).read())[:2] == ["a", "b"]


# --- other processes ---


BUSY = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_journal_tail import COLUMNS, NARROW, entry, tail_of

tail = tail_of(Path(sys.argv[1]))
for number in range(120):
    columns = NARROW if number % 40 == 20 else COLUMNS
    names = [f"{sys.argv[2]}-{number}-{i}" for i in range(3)]
    print(*names, flush=True)
    for _ in range(2):
        (done,) = tail.commit(columns, [entry(*names, columns=columns)])
    assert done.written + done.repeated == 3
"""


def test_every_row_of_busy_workers_is_cut_off_once_or_still_there(folder):
    """A row that came again after it was cut off is one more row, which history leaves out."""
    here = str(Path(__file__).parent)
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", BUSY, str(folder), name, here], stdout=subprocess.PIPE, text=True
        )
        for name in ("one", "two")
    ]
    tail, gone = tail_of(folder), []
    while any(worker.poll() is None for worker in workers):
        for portion in tail.portions(FAR, FAR, limit=50):
            assert tail.cut(portion)
            gone += ids(portion.table)
        present = all_ids(tail)
        assert len(set(present)) == len(present)
    asked = {name for worker in workers for name in worker.communicate()[0].split()}
    assert [worker.returncode for worker in workers] == [0, 0]
    assert len(asked) == 720
    assert set(gone) | set(all_ids(tail)) == asked


@pytest.mark.parametrize("in_place", [True, False])
def test_an_older_copy_that_was_put_back_is_read_from_its_beginning(folder, in_place):
    tail = tail_of(folder)
    tail.commit(COLUMNS, [entry("a")])
    file = folder / "predictions.csv"
    old = file.read_bytes()
    tail.commit(COLUMNS, [entry("b"), entry("c")])
    if in_place:
        file.write_bytes(old)
    else:
        (folder / "copy").write_bytes(old)
        (folder / "copy").replace(file)
    done = tail.commit(COLUMNS, [entry("a"), entry("b")])
    assert [result.repeated for result in done] == [1, 0]
    assert all_ids(tail) == ["a", "b"]


def test_a_portion_of_an_edited_file_is_refused_without_its_values(folder):
    tail = tail_of(folder)
    tail.commit(COLUMNS, [entry("a")])
    file = folder / "predictions.csv"
    file.write_text(file.read_text().replace(",1.5,", ",secret,"))
    with pytest.raises(JournalError, match="does not fit its columns") as caught:
        tail_of(folder).portions(FAR, FAR)
    assert "secret" not in str(caught.value)


def test_a_lock_file_that_was_taken_away_leaves_no_worker_alone_with_the_old_one(folder):
    one, other = FileJournal(folder), FileJournal(folder)
    one.commit(COLUMNS, [entry("a")])
    (folder / "predictions.lock").unlink()
    other.commit(COLUMNS, [entry("b")])
    taken = []
    with one._predictions._lock.held():
        thread = threading.Thread(target=lambda: taken.append(other.commit(COLUMNS, [entry("c")])))
        thread.start()
        thread.join(0.2)
        assert not taken
    thread.join(20)
    assert taken == [[Committed(1, 0)]]


FORKED = """
import os, sys, threading
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_journal_tail import COLUMNS, entry
from homeostat.journal import FileJournal

journal = FileJournal(Path(sys.argv[1]))
journal.commit(COLUMNS, [entry("before")])
held, done = threading.Event(), threading.Event()

def hold():
    with journal._predictions._lock.held():
        held.set()
        done.wait()

thread = threading.Thread(target=hold)
thread.start()
held.wait()
child = os.fork()  # while another thread holds the lock
if child:
    done.set()
    thread.join()
name = "parent" if child else "child"
for number in range(40):
    journal.commit(COLUMNS, [entry(f"{name}-{number}"), entry("before")])
if child:
    sys.exit(os.waitpid(child, 0)[1])
os._exit(0)
"""


def test_parent_and_forked_child_both_go_on(folder):
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        FORKED,
        str(folder),
        str(Path(__file__).parent),
    ]
    subprocess.run(command, check=True, timeout=60)
    names = {f"{name}-{number}" for name in ("parent", "child") for number in range(40)}
    back = ids(FileJournal(folder).read())
    assert sorted(back) == sorted(names | {"before"})


# --- portions ---


def test_a_portion_is_the_longest_start_of_rows_recorded_before(folder):
    """A clock that was set back leaves rows behind; they wait for those in front of them."""
    tail = tail_of(folder)
    hours = [0, 1, 5, 2, 3]
    for number, hour in enumerate(hours):
        tail.commit(COLUMNS, [entry(f"r{number}", recorded=START + hour * HOUR)])
    tail.commit(NARROW, [entry("n", recorded=START, columns=NARROW)])
    wide, narrow = tail.portions(START + 4 * HOUR, FAR)
    assert (ids(wide.table), ids(narrow.table)) == (["r0", "r1"], ["n"])
    assert [ids(p.table) for p in tail.portions(FAR, FAR, limit=3)] == [["r0", "r1", "r2"], ["n"]]
    assert tail.portions(START, FAR) == []
    assert tail_of(folder.parent / "empty").portions(FAR, FAR) == []


def test_a_portion_is_cut_off_once(folder):
    tail, other = tail_of(folder), tail_of(folder)
    tail.commit(COLUMNS, [entry(*"abc")])
    (portion,) = other.portions(FAR, FAR, limit=2)
    tail.commit(COLUMNS, [entry("d")])
    assert tail.cut(portion)
    assert not tail.cut(portion)
    assert not other.cut(portion)
    assert all_ids(tail) == all_ids(other) == all_ids(tail_of(folder)) == ["c", "d"]
    assert not list(folder.glob("*.cut")) + list(folder.glob("*.new"))


def test_who_followed_the_file_goes_on_behind_a_cut_without_reading_it_again(folder, monkeypatch):
    writer, asleep, sealer = (tail_of(folder) for _ in range(3))
    writer.commit(COLUMNS, [entry(*(f"r{i}" for i in range(100)))])
    assert asleep.commit(COLUMNS, [entry("r0")])[0].repeated == 1
    for names in (["x", "y"], ["z"]):
        (portion,) = sealer.portions(FAR, FAR, limit=20)
        assert sealer.cut(portion)
        writer.commit(COLUMNS, [entry(*names)])
    seen = []
    keys = lines.keys
    monkeypatch.setattr(lines, "keys", lambda *args: (found := keys(*args), seen.extend(found))[0])
    done = asleep.commit(COLUMNS, [entry(name) for name in ("r0", "r39", "r40", "r99", "z")])
    assert [result.repeated for result in done] == [0, 0, 1, 1, 1]
    assert seen == [b"x", b"y", b"z"]
    assert ids(done[2].recorded) == ["r40"]
    assert all_ids(asleep) == [*(f"r{i}" for i in range(40, 100)), "x", "y", "z", "r0", "r39"]


@pytest.mark.parametrize("note", ["none", "garbage", "of another file"])
def test_without_a_true_note_of_the_cut_the_file_is_read_again(folder, note):
    writer, sealer = tail_of(folder), tail_of(folder)
    writer.commit(COLUMNS, [entry(*(f"r{i}" for i in range(50)))])
    (portion,) = sealer.portions(FAR, FAR, limit=20)
    sealer.cut(portion)
    (noted,) = folder.glob("predictions.*.cuts.json")
    if note == "none":
        noted.unlink()
    elif note == "garbage":
        noted.write_bytes(b"\xff{")
    else:
        text = noted.read_text()
        noted.write_text(text.replace(str(portion.length), "77"))
        assert noted.read_text() != text
    done = writer.commit(COLUMNS, [entry("r19"), entry("r20"), entry("r49")])
    assert [result.repeated for result in done] == [0, 1, 1]


def test_rows_may_take_the_place_of_a_portion(folder):
    tail, other = tail_of(folder), tail_of(folder)
    tail.commit(COLUMNS, [entry(*"abcd")])
    other.catch_up()
    (portion,) = tail.portions(FAR, FAR, limit=3)
    with pytest.raises(JournalError, match="columns and types"):
        tail.cut(portion, keep=portion.table.drop_columns(["n"]))
    mixed = portion.table.select(sorted(COLUMNS.names)).take([1])
    assert tail.cut(portion, keep=mixed)
    assert all_ids(tail) == all_ids(other) == ["b", "d"]
    done = other.commit(COLUMNS, [entry(name) for name in "abcd"])
    assert [result.repeated for result in done] == [0, 1, 0, 1]


def test_a_file_set_aside_goes_with_its_last_row(folder):
    tail, other = tail_of(folder), tail_of(folder)
    tail.commit(COLUMNS, [entry("a", "b")])
    tail.commit(NARROW, [entry("n", columns=NARROW)])
    other.catch_up()
    for portion in tail.portions(FAR, FAR):
        assert tail.cut(portion)
    assert sorted(path.name for path in folder.glob("predictions*.csv")) == ["predictions.csv"]
    assert len(list(folder.glob("*.schema.json"))) == 1
    assert other.commit(COLUMNS, [entry("a")]) == [Committed(1, 0)]
    assert other.commit(NARROW, [entry("m", columns=NARROW)]) == [Committed(1, 0)]
    assert all_ids(tail) == ["m", "a"] or all_ids(tail) == ["a", "m"]


def test_a_record_torn_by_a_dead_writer_does_not_outlive_a_cut(folder):
    torn = []
    tail = tail_of(folder, torn=lambda path, size: torn.append((path.name, size)))
    tail.commit(COLUMNS, [entry("a", "b")])
    with (folder / "predictions.csv").open("ab") as file:
        file.write(b'"c","tor\n')
    (portion,) = tail.portions(FAR, FAR, limit=1)
    assert tail.cut(portion)
    assert torn == [("predictions.csv", 9)]
    assert all_ids(tail_of(folder)) == ["b"]


def test_a_cut_that_finds_no_space_leaves_the_file_as_it_was(folder, monkeypatch):
    tail = tail_of(folder)
    tail.commit(COLUMNS, [entry("a", "b")])
    (portion,) = tail.portions(FAR, FAR, limit=1)

    def full(file, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk_module.os, "write", full)
    with pytest.raises(JournalError, match="Free some space"):
        tail.cut(portion)
    monkeypatch.undo()
    assert not list(folder.glob("*.cut"))
    assert all_ids(tail) == ["a", "b"]
    assert tail.cut(portion)


def test_rows_that_arrive_while_the_rest_is_copied_are_kept(folder, monkeypatch):
    tail, other = tail_of(folder), tail_of(folder, ack="write")
    tail.commit(COLUMNS, [entry(*"abc")])
    (portion,) = tail.portions(FAR, FAR, limit=2)
    fsync = os.fsync
    late = iter([entry("late")])

    def busy(file):
        for one in late:
            other.commit(COLUMNS, [one])
        fsync(file)

    monkeypatch.setattr(os, "fsync", busy)
    assert tail.cut(portion)
    assert all_ids(tail) == all_ids(other) == ["c", "late"]


@pytest.mark.parametrize("first", [True, False])
def test_labels_that_are_being_written_as_text_hold_up_nobody_and_count_from_when_they_are_filed(
    folder, monkeypatch, first
):
    """While one worker makes its records, one whose clock is an hour ahead files its own."""
    one, ahead = FileJournal(folder, clock=FakeClock(START)), FakeClock(START + HOUR)
    other = FileJournal(folder, clock=ahead)
    if not first:
        one.label(label_rows(["before"], ["0"], START))
    records, wait = lines.Encoder.records, [True]

    def slow(self, rows):
        made = records(self, rows)
        if wait and any("x" in row for row in rows):
            wait.clear()
            if (folder / "labels.lock").exists():
                with (folder / "labels.lock").open() as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where it is held
            assert other.label(label_rows(["x"], ["0"], START)) == Labelled(1, 0, 0)
        return made

    monkeypatch.setattr(lines.Encoder, "records", slow)
    assert one.label(label_rows(["x", "y"], ["1", "1"], START)) == Labelled(2, 0, 1)
    with (folder / "labels.csv").open() as file:
        filed = [row for row in csv.DictReader(file) if row["prediction_id"] != "before"]
    assert [(row["prediction_id"], row["label"]) for row in filed] == [
        ("x", "0"), ("x", "1"), ("y", "1"),
    ]  # fmt: skip
    assert [row["arrived_at"][11:13] for row in filed] == ["01", "01", "01"]
    assert [row["recorded_at"][11:13] for row in filed] == ["01", "00", "00"]
    assert FileJournal(folder).label(label_rows(["x"], ["1"], START)) == Labelled(0, 1, 0)


AWKWARD = ['a "b", c', "null", "\\", "\n", "größe", "x\u2028", ""]


def test_labels_of_any_text_are_filed_as_they_came_and_known_again(folder):
    journal = FileJournal(folder, clock=FakeClock(START))
    names = [f"id {text}" for text in AWKWARD]
    journal.label(label_rows(names, AWKWARD, START))
    fresh = FileJournal(folder, clock=FakeClock(START))
    assert fresh.label(label_rows(names, AWKWARD, START)) == Labelled(0, len(AWKWARD), 0)
    with (folder / "labels.csv").open(newline="") as file:
        filed = [(row["prediction_id"], row["label"]) for row in csv.DictReader(file)]
    assert filed == list(zip(names, AWKWARD, strict=True))


def test_labels_have_portions_too(folder):
    clock = FakeClock()
    one, other = (Labels(folder, Disk(), clock, lambda path, size: None) for _ in range(2))
    one.append(label_rows(["a", "b"], ["0", "0"], START))
    other.catch_up()
    clock.advance(HOUR)
    one.append(label_rows(["b", "c"], ["1", "0"], START))
    assert one.portions(START, FAR) == []
    (portion,) = one.portions(START + HOUR, FAR)
    assert (portion.fingerprint, ids(portion.table)) == ("labels", ["a", "b"])
    assert one.cut(portion)
    assert not other.cut(portion)
    assert held(other.shelved()) == held(one.shelved()) == ["b", "c"]
    assert other.append(label_rows(["b"], ["1"], START)) == Labelled(0, 1, 0)
    assert other.append(label_rows(["a"], ["0"], START)) == Labelled(1, 0, 0)


CUTTER = """
import sys
from pathlib import Path
from datetime import UTC, datetime
from homeostat.journal.disk import Disk
from homeostat.journal.predictions import Predictions
tail = Predictions(Path(sys.argv[1]), Disk(), lambda path, size: None)
tail.cut(tail.portions(*[datetime(2100, 1, 1, tzinfo=UTC)] * 2, limit=5)[0])
"""
# The new file's second part; the new file and the folder; the new file and the note of the cut.
KILLS = [("write", 2), ("fsync", 1), ("fsync", 2), ("rename", 1), ("rename", 2)]


@pytest.mark.skipif(shutil.which("strace") is None, reason="there is no strace here")
@pytest.mark.parametrize(("call", "when"), KILLS)
def test_a_cut_that_is_killed_loses_nothing_and_can_be_done_again(folder, call, when):
    names = [f"r{i}" for i in range(12)]
    tail = tail_of(folder)
    tail.commit(COLUMNS, [entry(*names)])
    (portion,) = tail.portions(FAR, FAR, limit=5)
    touched = [folder, folder / "predictions.csv.cut", *folder.glob("*.json")]
    (schema,) = {json.loads(path.read_text())["fingerprint"] for path in folder.glob("*.json")}
    touched.append(folder / f"predictions.{schema}.cuts.json.new")
    command = [
        *("strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}"),
        *(word for path in touched for word in ("-P", str(path))),
        *("-e", f"inject={call}:signal=KILL:when={when}"),
        *(sys.executable, "-B", "-c", CUTTER, str(folder)),
    ]
    done = subprocess.run(command, check=False, timeout=60, capture_output=True)
    if b"ptrace" in done.stderr:
        pytest.skip("strace may not be used here")
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = all_ids(tail_of(folder))
    assert left in (names, names[5:])
    assert tail.cut(portion) == (left == names)
    assert tail.commit(COLUMNS, [entry("new")]) == [Committed(1, 0)]
    assert all_ids(tail) == [*names[5:], "new"]


class Interleaved(RuleBasedStateMachine):
    """Workers of one folder that write, cut and are opened anew: each row is read once."""

    @initialize()
    def begin(self):
        self.home = TemporaryDirectory()
        self.folder = Path(self.home.name) / "logs"
        self.workers = [tail_of(self.folder, ack="write") for _ in range(3)]
        self.tail, self.gone, self.count, self.waiting = {}, {}, 0, []

    def teardown(self):
        if hasattr(self, "home"):
            self.home.cleanup()

    @rule(
        worker=st.integers(0, 2),
        sizes=st.lists(st.integers(1, 3), min_size=1, max_size=3),
        columns=st.sampled_from([COLUMNS, COLUMNS, NARROW]),
        text=TEXTS,
        made=st.booleans(),
    )
    def commit(self, worker, sizes, columns, text, made):
        entries = []
        for size in sizes:
            names = [f"{text}{self.count + i}" for i in range(size)]
            self.count += size
            entries.append(entry(*names, columns=columns, made=made))
            self.tail |= dict.fromkeys(names, columns)
        done = self.workers[worker].commit(columns, entries)
        assert done == [Committed(size, 0) for size in sizes]

    @rule(worker=st.integers(0, 2), data=st.data())
    def come_again(self, worker, data):
        if self.tail:
            name = data.draw(st.sampled_from(sorted(self.tail)))
            columns = self.tail[name]
            same, other = entry(name, columns=columns), entry(name, n=7.0, columns=columns)
            done = self.workers[worker].commit(columns, [same, other])
            assert (done[0].written, ids(done[0].recorded)) == (0, [name])
            assert isinstance(done[1], ConflictError)

    @rule(worker=st.integers(0, 2), limit=st.integers(1, 6))
    def look(self, worker, limit):
        self.waiting += self.workers[worker].portions(FAR, FAR, limit)

    @rule(worker=st.integers(0, 2), data=st.data())
    def cut(self, worker, data):
        if self.waiting:
            place = data.draw(st.integers(0, len(self.waiting) - 1))
            portion = self.waiting.pop(place)
            names = ids(portion.table)
            if self.workers[worker].cut(portion):
                self.gone |= {name: self.tail.pop(name) for name in names}
            else:
                assert (
                    not set(names) <= self.tail.keys()
                    or names != all_ids(self.workers[worker])[: len(names)]
                )

    @rule(worker=st.integers(0, 2))
    def reopen(self, worker):
        self.workers[worker] = tail_of(self.folder, ack="write")

    @rule(worker=st.integers(0, 2), size=st.integers(1, 30))
    def die_while_writing(self, worker, size):
        file = self.folder / "predictions.csv"
        if file.exists():
            with file.open("ab") as stream:
                stream.write(b'"torn","2025-01-01 00:00:00.000000Z"'[:size])

    @rule(worker=st.integers(0, 2))
    def read(self, worker):
        assert sorted(all_ids(self.workers[worker])) == sorted(self.tail)

    @invariant()
    def each_row_is_there_once(self):
        if hasattr(self, "workers") and self.count % 3 == 0:
            assert sorted(all_ids(tail_of(self.folder))) == sorted(self.tail)


TestInterleaved = Interleaved.TestCase
TestInterleaved.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
