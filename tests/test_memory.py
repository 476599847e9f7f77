"""The stores in memory keep the same contracts as those in files, and tell the same."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeostat.audit import ChainAudit
from homeostat.errors import JournalError, ReleaseError
from homeostat.gate import unjudged
from homeostat.journal import FileJournal
from homeostat.memory import MemoryAudit, MemoryJournal, MemoryReleases
from homeostat.records import Candidate, TrainingRows, Window
from homeostat.release import FileReleases
from homeostat.signing import signing_key
from homeostat.testing import (
    START,
    FakeClock,
    JournalContract,
    drifting_stream,
    label_rows,
    schema_of,
    served_rows,
)

DAY = timedelta(days=1)
AT = datetime(2025, 2, 1, tzinfo=UTC)


def candidate(parent=None):
    schema = schema_of(drifting_stream(40, seed=3))
    return Candidate(
        kind="first" if parent is None else "retrain",
        parent=parent,
        objects={"model": b"a model", "schema": schema.to_json().encode()},
        training=TrainingRows(40, START, AT, AT, "0" * 64),
        seconds=0.5,
        params={"trees": "3"},
        versions={},
        seed=0,
    )


class TestMemoryJournalKeepsTheContract(JournalContract):
    @pytest.fixture
    def journal(self):
        return MemoryJournal()


steps = st.lists(
    st.tuples(
        st.sampled_from(["append", "label"]),
        st.integers(0, 39),
        st.integers(1, 10),
        st.sampled_from("01"),
        st.integers(0, 5),
    ),
    max_size=8,
)


@settings(max_examples=8, deadline=None)
@given(steps)
def test_the_journal_in_memory_reads_as_the_one_in_files(tmp_path_factory, given_steps):
    frame = drifting_stream(40, seed=3)
    schema = schema_of(frame)
    rows = served_rows(frame, schema)
    folder = tmp_path_factory.mktemp("journal")
    memory, files = MemoryJournal(), FileJournal(folder, clock=FakeClock(START))
    for what, first, count, label, day in given_steps:
        part, when = rows.slice(first, count), START + day * DAY
        ids = part.column("prediction_id").to_pylist()
        for journal in (memory, files):
            if what == "append":
                journal.append(part)
            else:
                journal.label(label_rows(ids, [label] * len(ids), when))
        for as_of in (None, START, START + 2 * DAY):
            for days in (None, (0, 10), (1, 2)):
                window = days and Window(START + days[0] * DAY, START + days[1] * DAY)
                mine = memory.read(window, as_of=as_of, schema=schema)
                assert mine.equals(files.read(window, as_of=as_of, schema=schema))


def test_a_label_without_a_time_of_arrival_is_refused():
    with pytest.raises(JournalError, match="time of arrival"):
        MemoryJournal().label(label_rows(["id-0"], ["1"], [None]))


def test_a_release_has_the_id_that_the_store_on_disk_gives_it(tmp_path):
    disk = FileReleases(tmp_path, signing_key(tmp_path / "key", tmp_path, {}))
    memory, parent = MemoryReleases(), None
    for day in range(3):
        challenger = candidate(parent=parent)
        ids = set()
        for store in (memory, disk):
            release = store.add(challenger, unjudged("None.", None), AT + day * DAY)
            store.promote(release)
            ids.add(release.id)
        assert len(ids) == 1
        parent = release.id
    assert [r.id for r in memory.line()] == [r.id for r in disk.line()]
    assert memory.champion().sequence == disk.champion().sequence
    assert memory.roll_back().id == disk.roll_back().id
    champion = memory.champion()
    assert memory.object(champion, "model") == disk.object(disk.champion(), "model")


def test_a_candidate_that_challenges_another_release_is_refused():
    store = MemoryReleases()
    first, second = (store.add(candidate(), unjudged("None.", None), AT + i * DAY) for i in (0, 1))
    store.promote(first)
    with pytest.raises(ReleaseError):
        store.promote(second)
    with pytest.raises(ReleaseError):
        store.add(candidate(), unjudged("None.", None), AT)
    with pytest.raises(ReleaseError):
        store.roll_back()


lines = st.lists(
    st.tuples(
        st.sampled_from(["first", "trained", "training_failed", "gate", "promoted", "decided"]),
        st.integers(0, 30),
        st.booleans(),
    ),
    max_size=8,
)


@settings(max_examples=25, deadline=None)
@given(lines)
def test_the_audit_in_memory_tells_the_same_past_as_the_chain(tmp_path_factory, given_lines):
    memory, chain = MemoryAudit(), ChainAudit(tmp_path_factory.mktemp("audit") / "decisions.jsonl")
    for kind, day, windowed in given_lines:
        window = Window(START, START + day * DAY) if windowed else None
        for audit in (memory, chain):
            body = {"window": window, "level": day / 300 or None, "promote": windowed}
            audit.write(kind, START + day * DAY, body)
    assert memory.past() == chain.past()
    assert [line["kind"] for line in memory.lines()] == [line["kind"] for line in chain.lines()]
