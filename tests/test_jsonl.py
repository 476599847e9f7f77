"""Lines of facts: a torn one never blocks, an edited one is told, and many become few uncounted."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from journal_fixtures import KilledError

from homeostat.entries import Refusal, Sealed
from homeostat.errors import JournalError
from homeostat.journal import FileJournal, jsonl
from homeostat.journal.disk import Disk
from homeostat.journal.jsonl import JsonLines
from homeostat.records import Window
from homeostat.testing import START, FakeClock, drifting_stream, schema_of, served_rows

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
NOW = START + 3 * DAY
FACTS = [
    {"at": "2025-01-01", "releases": {"a{": 2, 'b"}': 3}, "field": "x\\"},
    {"at": "2025-01-02", "code": "not_json", "field": None, "count": 1},
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "facts.jsonl"


def lines(path):
    return JsonLines(path, Disk())


def test_a_line_torn_at_any_byte_is_cut_off_by_the_next_writer(path):
    for fact in FACTS:
        whole = json.dumps(fact).encode() + b"\n"
        for size in range(len(whole)):
            path.write_bytes(whole + whole[:size])
            assert list(lines(path)) == [fact]
            lines(path).add(FACTS[1:])
            assert list(lines(path)) == [fact, FACTS[1]]
            assert path.read_bytes().count(b"\n") == 2


def test_a_line_torn_at_any_byte_behind_which_an_earlier_version_went_on_does_not_block(path):
    for fact in FACTS:
        whole = json.dumps(fact).encode()
        for size in range(1, len(whole)):
            path.write_bytes(whole + b"\n" + whole[:size] + b"\n" + whole + b"\n")
            assert list(lines(path)) == [fact, fact], whole[:size]


@pytest.mark.parametrize("edited", [b'{"at": 1,}', b"what", b'{"at": "x"}}', b"[1]", b""])
def test_a_line_that_no_writer_left_is_told_by_its_file(path, edited):
    path.write_bytes(b"{}\n" + edited + b"\n{}\n")
    with pytest.raises(JournalError, match=r"facts\.jsonl holds a line that is no JSON"):
        list(lines(path))


def test_who_reads_sees_the_facts_of_one_moment(path):
    facts = lines(path)
    facts.add(FACTS)
    seen = iter(facts)
    assert next(seen) == FACTS[0]
    facts.add(FACTS)
    assert list(seen) == FACTS[1:]


def test_a_line_longer_than_one_look_back_is_found_whole(path):
    long = {"releases": {f"release-{i}": i for i in range(20_000)}}
    path.write_bytes(json.dumps(long).encode() + b"\n" + json.dumps(long).encode()[:-5])
    lines(path).add(FACTS[1:])
    assert list(lines(path)) == [long, FACTS[1]]


# --- folded ---


def refused(folder):
    """A journal with three days of refusals, two of them each minute."""
    journal = FileJournal(folder, clock=FakeClock(NOW))
    for minute in range(0, 3 * 24 * 60, 7):
        at = START + minute * MINUTE + timedelta(seconds=minute % 50)
        journal.reject([Refusal("wrong_type", "amount"), Refusal("not_json", None)], at)
        journal.reject([Refusal("wrong_type", "amount")], at)
    return journal


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(jsonl, "LARGE", 100)


def windows(journal):
    """What was refused in each hour, in each minute of the last day, and in all."""
    hours = [Window(START + n * HOUR, START + (n + 1) * HOUR) for n in range(72)]
    minutes = [Window(NOW - (n + 1) * MINUTE, NOW - n * MINUTE) for n in range(0, 1440, 60)]
    moment = Window(NOW - 20 * MINUTE, NOW - 20 * MINUTE + timedelta(seconds=30))
    whole = Window(START - DAY, NOW + DAY)
    return [dict(journal.refused(window)) for window in (*hours, *minutes, moment, whole)]


def test_refusals_are_summed_by_a_seal_and_counted_as_before(tmp_path, small):
    journal = refused(tmp_path)
    before, size = windows(journal), (tmp_path / "rejected.jsonl").stat().st_size
    other = FileJournal(tmp_path)
    other.reject([], NOW)
    for _ in range(2):
        journal.seal(NOW)
        assert windows(journal) == windows(FileJournal(tmp_path)) == before
    assert (tmp_path / "rejected.jsonl").stat().st_size < size / 2
    other.reject([Refusal("not_json", None)], NOW)
    assert journal.refused(Window(NOW, NOW + HOUR)) == {"not_json": 1}


def test_refusals_that_others_count_meanwhile_are_all_kept(tmp_path, small):
    refused(tmp_path)
    whole = Window(START - DAY, NOW + DAY)
    before = sum(FileJournal(tmp_path).refused(whole).values())

    def rejecting(_):
        journal = FileJournal(tmp_path)
        for second in range(50):
            journal.reject([Refusal("not_json", None)], NOW + timedelta(seconds=second))
            assert sum(journal.refused(whole).values()) > before

    with ThreadPoolExecutor(3) as threads:
        done = threads.map(rejecting, range(3))
        for _ in range(10):
            FileJournal(tmp_path).seal(NOW)
        assert list(done) == [None] * 3
    assert sum(FileJournal(tmp_path).refused(whole).values()) == before + 150


def test_a_small_file_of_refusals_is_left_as_it_is(tmp_path):
    journal = refused(tmp_path)
    before = (tmp_path / "rejected.jsonl").read_bytes()
    journal.seal(NOW)
    assert (tmp_path / "rejected.jsonl").read_bytes() == before


@pytest.mark.parametrize("step", ["write", "flush", "move", "sync_folder"])
@pytest.mark.parametrize("after", [False, True])
def test_killed_while_it_is_summed_no_count_is_lost_or_doubled(
    tmp_path, monkeypatch, small, step, after
):
    journal = refused(tmp_path)
    before, original = windows(journal), getattr(Disk, step)

    def killed(*args, **kwargs):
        if after:
            original(*args, **kwargs)
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Disk, step, killed)
        with pytest.raises(KilledError):
            journal.seal(NOW)
    assert windows(FileJournal(tmp_path)) == before
    FileJournal(tmp_path).seal(NOW)
    assert windows(FileJournal(tmp_path)) == before


def test_what_seals_came_to_becomes_one_line_that_says_the_same(tmp_path, small, monkeypatch):
    frame = drifting_stream(60, seed=2, length=timedelta(days=3))
    rows = served_rows(frame, schema_of(frame))
    journal = FileJournal(tmp_path, clock=FakeClock(START))
    intents, fold = [], jsonl.JsonLines.fold

    def seen(self, folded):
        intents.append((tmp_path / "seal.json").exists())
        fold(self, folded)

    monkeypatch.setattr(jsonl.JsonLines, "fold", seen)
    for start in range(0, 60, 20):
        journal.append(rows.slice(start, 20))
        journal.seal(START + 60 * DAY)
    assert journal.sealed == FileJournal(tmp_path).sealed == Sealed(rows=60)
    assert len((tmp_path / "sealed.jsonl").read_text().splitlines()) == 1
    assert Counter(intents) == {False: 6}


def test_an_intent_that_a_power_cut_brought_back_counts_once(tmp_path, small, monkeypatch):
    frame = drifting_stream(20, seed=2)
    journal = FileJournal(tmp_path, clock=FakeClock(START))
    kept = []
    finish = type(journal._sealer)._finish

    def keeping(self, intent):
        kept.append((tmp_path / "seal.json").read_bytes())
        return finish(self, intent)

    monkeypatch.setattr(type(journal._sealer), "_finish", keeping)
    for start in (0, 10):
        journal.append(served_rows(frame, schema_of(frame)).slice(start, 10))
        journal.seal(START + 60 * DAY)
    (tmp_path / "seal.json").write_bytes(kept[-1])
    FileJournal(tmp_path).seal(START + 60 * DAY)
    assert FileJournal(tmp_path).sealed == Sealed(rows=20)
