"""The journal when things go wrong: killed writers, many writers, full and failing disks."""

from __future__ import annotations

import errno
import gc
import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress

import pyarrow as pa
import pytest

from homeostat.entries import Appended, Labelled, Refusal
from homeostat.errors import JournalError
from homeostat.journal import FileJournal
from homeostat.journal import disk as disk_module
from homeostat.records import Window
from homeostat.testing import START, drifting_stream, label_rows, schema_of, served_rows

WRITER = """
import sys
from pathlib import Path
from homeostat.journal import FileJournal
from homeostat.testing import START, drifting_stream, label_rows, schema_of, served_rows

folder, name, count, batch = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
frame = drifting_stream(batch, seed=3)
schema = schema_of(drifting_stream(40, seed=3))
journal = FileJournal(folder)
for number in range(count):
    rows = served_rows(frame, schema, prefix=f"{name}-{number}")
    if name == "narrow":
        rows = rows.drop_columns(["gap"])
    journal.append(rows)
    journal.label(label_rows(rows.column("prediction_id").to_pylist(), ["1"] * batch, START))
    print(number, flush=True)
"""


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "logs"


@pytest.fixture
def journal(folder):
    return FileJournal(folder)


@pytest.fixture
def rows():
    frame = drifting_stream(40, seed=3)
    return served_rows(frame, schema_of(frame))


def start_writer(folder, name, count, batch=3):
    command = [sys.executable, "-c", WRITER, str(folder), name, str(count), str(batch)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def city(rows, value):
    place = rows.column_names.index("city")
    return rows.set_column(place, "city", pa.repeat(value, rows.num_rows))


def test_several_processes_and_schemas_lose_and_mix_nothing(folder):
    names = ("one", "two", "narrow")
    writers = [start_writer(folder, name, 15) for name in names]
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    back = FileJournal(folder).read(labelled=True)
    expected = {f"{name}-{n}-{i}" for name in names for n in range(15) for i in range(3)}
    assert set(back.column("prediction_id").to_pylist()) == expected
    assert back.num_rows == len(expected)
    assert len((folder / "labels.csv").read_text().splitlines()) == 1 + len(expected)
    assert not (folder / "repairs.jsonl").exists()
    assert len(list(folder.glob("predictions*.csv"))) == 2


def test_threads_of_one_process_write_each_row_once(journal, folder, rows):
    results = []

    def append():
        results.extend(journal.append(rows.slice(i, 4)) for i in range(0, 40, 4))
        journal.read()

    threads = [threading.Thread(target=append) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(result.written for result in results) == 40
    assert sum(result.repeated for result in results) == 120
    assert FileJournal(folder).read().num_rows == 40


def test_what_was_acknowledged_before_kill_9_is_there_after_it(folder, rows):
    with start_writer(folder, "killed", 100_000, batch=200) as writer:
        for line in writer.stdout:
            if int(line) >= 5:
                break
        writer.kill()
        acknowledged = int([line, *writer.stdout.readlines()][-1])
    back = FileJournal(folder).read(labelled=True)
    ids = set(back.column("prediction_id").to_pylist())
    assert {f"killed-{n}-{i}" for n in range(acknowledged + 1) for i in range(200)} <= ids
    assert FileJournal(folder).append(rows) == Appended(40, 0)


def test_a_record_torn_at_any_byte_is_ignored_then_cut_off_and_counted(journal, folder, rows):
    file = folder / "predictions.csv"
    journal.append(rows.slice(0, 2))
    whole = file.stat().st_size
    journal.append(city(rows.slice(2, 1), 'a "quoted"\nnewline, and "more"\n'))
    content = file.read_bytes()
    for size in range(whole + 1, len(content)):
        file.write_bytes(content[:size])
        assert FileJournal(folder).read().num_rows == 2
    mended = FileJournal(folder)
    assert mended.append(rows.slice(2, 1)) == Appended(1, 0)
    assert mended.torn == 1
    assert mended.read().select(rows.column_names).equals(rows.slice(0, 3))
    (line,) = (folder / "repairs.jsonl").read_text().splitlines()
    fact = json.loads(line)
    assert (fact["file"], fact["bytes"]) == ("predictions.csv", len(content) - 1 - whole)


def test_a_torn_label_is_cut_off_by_a_process_that_was_there_before(journal, folder):
    journal.label(label_rows(["a"], ["0"], START))
    with (folder / "labels.csv").open("ab") as file:
        file.write(b'"b","tor\n')
    assert journal.label(label_rows(["b"], ["1"], START)) == Labelled(1, 0, 0)
    assert journal.torn == 1
    assert (folder / "labels.csv").read_text().count("\n") == 3


def test_a_torn_line_of_refusals_is_left_out(journal, folder):
    journal.reject([Refusal("not_json", None)], START)
    with (folder / "rejected.jsonl").open("ab") as file:
        file.write(b'{"at": "2025-01-')
    window = Window(START, START.replace(day=2))
    assert dict(journal.refused(window)) == {"not_json": 1}
    journal.reject([Refusal("not_json", None)], START)
    assert dict(journal.refused(window)) == {"not_json": 2}


def test_rows_appended_by_another_process_are_known_at_once(journal, folder, rows):
    other = FileJournal(folder)
    journal.append(rows.slice(0, 10))
    assert other.append(rows.slice(5, 10)) == Appended(5, 5)
    assert journal.append(rows.slice(0, 15)) == Appended(0, 15)
    assert journal.known(["id-12"]).num_rows == 1


def test_a_file_that_was_taken_away_is_begun_anew(journal, folder, rows):
    journal.append(rows)
    journal.read()
    (folder / "predictions.csv").rename(folder.parent / "kept.csv")
    assert journal.append(rows.slice(0, 3)) == Appended(3, 0)
    assert journal.read().num_rows == 3


@pytest.mark.parametrize("step", ["schema copied", "file moved", "schema replaced"])
def test_a_change_of_schema_may_be_cut_off_at_any_step(journal, folder, rows, step):
    journal.append(rows.slice(0, 20))
    fingerprint = json.loads((folder / "predictions.schema.json").read_text())["fingerprint"]
    narrow = rows.drop_columns(["gap"])
    elsewhere = FileJournal(folder.parent / "elsewhere")
    elsewhere.append(narrow)
    aside = folder / f"predictions.{fingerprint}.schema.json"
    aside.write_bytes((folder / "predictions.schema.json").read_bytes())
    if step != "schema copied":
        (folder / "predictions.csv").rename(folder / f"predictions.{fingerprint}.csv")
    if step == "schema replaced":
        new = folder.parent / "elsewhere" / "predictions.schema.json"
        (folder / "predictions.schema.json").write_bytes(new.read_bytes())
    for opened in (journal, FileJournal(folder)):
        assert opened.read().num_rows == 20
        opened.append(narrow.slice(20))
        opened.append(rows.slice(0, 20))
        assert opened.read().num_rows == 40
        (folder / "predictions.csv").unlink()
        assert opened.read().num_rows == 20


def test_an_edited_file_is_refused_and_not_misread(journal, folder, rows):
    journal.append(rows)
    file = folder / "predictions.csv"
    content = file.read_text()
    file.write_text(content.replace('"amount"', '"amounts"', 1))
    with pytest.raises(JournalError, match="header"):
        FileJournal(folder).read()
    file.write_text(content.replace('"live"', '"live","secret"', 1))
    with pytest.raises(JournalError, match="does not fit its columns") as caught:
        FileJournal(folder).append(rows)
    assert "secret" not in str(caught.value)


def test_after_a_failed_flush_nothing_more_is_written(journal, folder, rows, monkeypatch):
    journal.append(rows.slice(0, 5))
    calls = []

    def fail(file):
        calls.append(file)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(disk_module.os, "fsync", fail)
    with pytest.raises(JournalError, match="could not flush"):
        journal.append(rows.slice(5, 5))
    monkeypatch.undo()
    assert len(calls) == 1
    for write in (
        lambda: journal.append(rows.slice(5, 5)),
        lambda: journal.label(label_rows(["a"], ["0"], START)),
        lambda: journal.reject([Refusal("not_json", None)], START),
    ):
        with pytest.raises(JournalError, match="nothing more is written"):
            write()
    assert FileJournal(folder).append(rows) == Appended(30, 10)


def test_short_writes_are_completed(journal, rows, monkeypatch):
    write = os.write
    monkeypatch.setattr(disk_module.os, "write", lambda file, data: write(file, data[:7]))
    journal.append(rows)
    assert journal.read().select(rows.column_names).equals(rows)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_write_that_fails_midway_is_taken_back(journal, folder, rows, monkeypatch, code):
    journal.append(rows.slice(0, 5))
    before = (folder / "predictions.csv").read_bytes()
    write = os.write

    def fail(file, data):
        if len(data) < 500:
            raise OSError(code, os.strerror(code))
        return write(file, data[:300])

    monkeypatch.setattr(disk_module.os, "write", fail)
    with pytest.raises(JournalError, match="could not append"):
        journal.append(rows.slice(5))
    monkeypatch.undo()
    assert (folder / "predictions.csv").read_bytes() == before
    assert journal.append(rows) == Appended(35, 5)
    assert journal.torn == 0


@contextmanager
def small_disk(folder, size):
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no `mount` here")
    if done.returncode:
        pytest.skip("a small disk can only be mounted by root of a Linux machine")
    try:
        yield
    finally:
        gc.collect()  # a journal keeps its files open
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_refuses_rows_and_goes_on_once_there_is_space(folder, rows):
    with small_disk(folder, "256k"):
        journal = FileJournal(folder)
        journal.append(rows)
        ballast = folder / "ballast"
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1024))
        big = city(rows, "x" * 2_000)
        place = big.column_names.index("prediction_id")
        big = big.set_column(place, "prediction_id", pa.array([f"big-{i}" for i in range(40)]))
        with pytest.raises(JournalError, match=r"No space left on device.*Free some space"):
            journal.append(big)
        assert journal.read().num_rows == 40
        ballast.unlink()
        assert journal.append(big) == Appended(40, 0)
        assert journal.read().num_rows == 80
        assert FileJournal(folder).append(rows) == Appended(0, 40)
        del journal


def test_a_read_only_disk_can_be_read_and_refuses_rows(folder, rows):
    with small_disk(folder, "1m"):
        FileJournal(folder).append(rows)
        gc.collect()
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        journal = FileJournal(folder)
        with pytest.raises(JournalError, match="Read-only file system"):
            journal.append(rows)
        with pytest.raises(JournalError, match="Read-only file system"):
            journal.reject([Refusal("not_json", None)], START)
        assert journal.read().num_rows == 40
        del journal


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_refuses_rows(folder, rows):
    folder.mkdir(mode=0o555)
    with pytest.raises(JournalError, match="Permission denied"):
        FileJournal(folder).append(rows)


def test_readers_never_fail_while_writers_append(folder):
    writer = start_writer(folder, "busy", 15, batch=20)
    journal = FileJournal(folder)
    seen = 0
    while writer.poll() is None:
        count = journal.read().num_rows
        assert count >= seen
        assert count % 20 == 0
        seen = count
    writer.communicate()
    assert writer.returncode == 0
    assert journal.read().num_rows == 300
