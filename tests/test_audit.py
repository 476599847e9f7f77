"""The audit chain: what it keeps, what it survives, and that no change to it goes unseen."""

from __future__ import annotations

import hashlib
import json
import os
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeostat import audit as audit_module
from homeostat.audit import GENESIS, ChainAudit, canonical, jsonable
from homeostat.errors import AuditError
from homeostat.past import Look
from homeostat.records import Action, Decision, Interval, Performance, Window

AT = datetime(2013, 2, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "reports" / "decisions.jsonl"


@pytest.fixture
def audit(file):
    return ChainAudit(file)


def fill(audit, count=5):
    for number in range(count):
        audit.write(
            "decided", AT + number * DAY, {"number": number, "reason": f"Because {number}."}
        )


def gate(end):
    return {"window": jsonable(Window(end - 7 * DAY, end)), "promote": False}


def test_without_a_file_there_is_no_past(audit):
    assert list(audit.lines()) == []
    assert audit.past().last_training is None
    assert audit.past().looked_until is None
    assert audit.verify() == 0


def test_each_line_carries_the_hash_of_the_one_before(audit, file):
    fill(audit, 3)
    lines = [json.loads(text) for text in file.read_text().splitlines()]
    assert [line["seq"] for line in lines] == [1, 2, 3]
    assert [line["previous"] for line in lines] == [GENESIS, lines[0]["hash"], lines[1]["hash"]]
    for line in lines:
        digest = line.pop("hash")
        text = json.dumps(line, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert digest == hashlib.sha256(text.encode()).hexdigest()
    assert lines[1]["at"] == "2013-02-02T00:00:00+00:00"
    assert audit.verify() == 3


def test_the_chain_goes_on_in_another_process(audit, file):
    fill(audit, 2)
    fill(ChainAudit(file), 2)
    assert audit.verify() == 4
    assert [line["seq"] for line in audit.lines()] == [1, 2, 3, 4]


def test_the_past_knows_the_last_training_whether_it_came_to_something_or_not(audit):
    audit.write("first", AT, {})
    assert audit.past().last_training is None
    audit.write("trained", AT + DAY, {})
    assert audit.past().last_training == AT + DAY
    audit.write("training_failed", AT + 2 * DAY, {"reason": "It raised."})
    audit.write("decided", AT + 3 * DAY, {})
    assert audit.past().last_training == AT + 2 * DAY


def test_the_past_knows_up_to_where_a_gate_has_looked(audit, file):
    audit.write("gate", AT, gate(AT + 9 * DAY))
    audit.write("gate", AT, gate(AT + 2 * DAY))
    audit.write("gate", AT, {"window": None})
    audit.write("monitored", AT, gate(AT + 99 * DAY))
    assert audit.past().looked_until == AT + 9 * DAY
    assert ChainAudit(file).past().looked_until == AT + 9 * DAY


def test_the_past_knows_the_levels_of_the_gate_s_looks_and_leaves_out_what_tested_nothing(audit):
    audit.write("gate", AT, gate(AT))
    audit.write("gate", AT, {"window": None, "level": None, "promote": False})
    audit.write("gate", AT + DAY, {"window": None, "level": 0.025, "promote": True})
    audit.write("decided", AT, {"level": 0.5, "promote": True})
    assert audit.past().looks == (Look(AT + DAY, 0.025, promoted=True),)


def test_the_file_is_not_read_again_unless_it_changed(audit, file):
    fill(audit)
    assert audit.lines() is audit.lines()
    ChainAudit(file).write("decided", AT, {})
    assert len(audit.lines()) == 6


# --- a crash ---


@pytest.mark.parametrize("left", [b'{"at":"2013', b"\x00\x00\x00", b"x"])
def test_a_torn_last_line_is_ignored_then_cut_and_the_cut_is_recorded(audit, file, left):
    fill(audit, 2)
    with file.open("ab") as torn:
        torn.write(left)
    survivor = ChainAudit(file)
    assert len(survivor.lines()) == 2
    assert survivor.verify() == 2
    survivor.write("decided", AT, {"number": 9})
    kinds = [(line["kind"], line["body"]) for line in survivor.lines()[2:]]
    assert kinds == [("repaired", {"bytes": len(left)}), ("decided", {"number": 9})]
    assert ChainAudit(file).verify() == 4


def test_every_place_to_be_killed_at_leaves_a_chain_that_goes_on(audit, file, tmp_path):
    fill(audit, 2)
    whole = file.read_bytes()
    for length in range(0, len(whole) + 1, 11):
        (tmp_path / "copy").write_bytes(whole[:length])
        copy = ChainAudit(tmp_path / "copy")
        copy.write("decided", AT, {})
        assert copy.verify() == len(copy.lines())


def test_a_disk_that_will_not_sync_leaves_no_line_behind(audit, file, monkeypatch):
    fill(audit, 2)
    before = file.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AuditError, match="No space left"):
        audit.write("decided", AT, {})
    monkeypatch.undo()
    assert file.read_bytes() == before
    audit.write("decided", AT, {})
    assert audit.verify() == 3


# --- tampering ---


def swapped(lines):
    return [lines[0], lines[2], lines[1], *lines[3:]]


def altered(lines):
    return [*lines[:2], lines[2].replace(b"Because 2", b"Because 7"), *lines[3:]]


def forged(lines):
    """An altered line whose own hash was made to fit again."""
    line = json.loads(altered(lines)[2])
    del line["hash"]
    line["hash"] = hashlib.sha256(canonical(line)).hexdigest()
    return [*lines[:2], canonical(line), *lines[3:]]


@pytest.mark.parametrize(
    ("change", "line", "said"),
    [
        (altered, 3, "altered"),
        (forged, 4, "removed, inserted or moved"),
        (swapped, 2, "removed, inserted or moved"),
        (lambda lines: lines[1:], 1, "removed, inserted or moved"),
        (lambda lines: [*lines[:2], *lines[3:]], 3, "removed, inserted or moved"),
        (lambda lines: [*lines[:2], lines[1], *lines[2:]], 3, "removed, inserted or moved"),
        (lambda lines: [*lines[:2], b"", *lines[2:]], 3, "not a line"),
        (lambda lines: [*lines[:2], b"{}", *lines[2:]], 3, "not a line"),
        (lambda lines: [lines[0].replace(b":", b": ", 1), *lines[1:]], 1, "canonical"),
        (lambda lines: [lines[0].replace(b'"seq":1', b'"seq":1,"seq":1'), *lines[1:]], 1, "form"),
        (lambda lines: [lines[0].replace(b'"number":0', b'"number":NaN')], 1, "canonical"),
        (lambda lines: [lines[0].replace(b"Because", b"\xff"), *lines[1:]], 1, "not a line"),
    ],
)
def test_the_first_line_that_was_changed_is_named(audit, file, change, line, said):
    fill(audit)
    lines = file.read_bytes().splitlines()
    file.write_bytes(b"".join(text + b"\n" for text in change(lines)))
    with pytest.raises(AuditError, match=f"line {line}, .*{said}"):
        audit.verify()


def test_nothing_is_appended_to_a_file_that_is_no_chain(audit, file):
    file.parent.mkdir()
    file.write_bytes(b"something else\n")
    with pytest.raises(AuditError, match="line 1"):
        audit.write("decided", AT, {})
    assert file.read_bytes() == b"something else\n"


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_no_changed_byte_goes_unseen(tmp_path_factory, data):
    file = tmp_path_factory.mktemp("chain") / "decisions.jsonl"
    audit = ChainAudit(file)
    fill(audit, 2)
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 2))  # the last newline is a torn line
    content[place] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    with pytest.raises(AuditError):
        audit.verify()


# --- the codec ---


def test_values_that_travel_become_plain_json():
    decision = Decision(Action.CALL, "drift", "Because.", {"a": float("nan"), "b": np.float64(2.5)})
    assert jsonable(decision) == {
        "action": "stop_and_call",
        "trigger": "drift",
        "reason": "Because.",
        "numbers": {"a": None, "b": 2.5},
    }
    east = timezone(timedelta(hours=2))
    assert jsonable(datetime(2013, 1, 1, 2, tzinfo=east)) == "2013-01-01T00:00:00+00:00"
    assert jsonable((np.int64(3), np.bool_(True), np.array([1.0, np.inf]), timedelta(hours=1))) == [
        3,
        True,
        [1.0, None],
        3600.0,
    ]
    assert jsonable({Action.HOLD: {"b", "a"}}) == {"hold": ["a", "b"]}
    assert jsonable(Interval(1.0, None, -np.inf, 3, 1))["high"] is None
    assert jsonable("lone \ud800") == "lone ?"


@pytest.mark.parametrize("value", [b"bytes", object(), Interval])
def test_a_value_without_a_json_form_is_named_by_its_type(value):
    with pytest.raises(TypeError, match=type(value).__name__):
        jsonable(value)


def test_a_time_without_zone_is_refused(audit, file):
    with pytest.raises(ValueError, match="time zone"):
        jsonable(datetime(2013, 1, 1))  # noqa: DTZ001 - a naive time is what is refused
    with pytest.raises(ValueError, match="time zone"):
        audit.write("decided", datetime(2013, 1, 1), {})  # noqa: DTZ001 - as above
    assert not file.exists()


trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), trees, max_size=4))
@settings(max_examples=100, deadline=None)
def test_whatever_is_written_is_read_back_and_verifies(tmp_path_factory, body):
    file = tmp_path_factory.mktemp("chain") / "decisions.jsonl"
    ChainAudit(file).write("decided", AT, body)
    audit = ChainAudit(file)
    assert audit.verify() == 1
    assert audit.lines()[0]["body"] == jsonable(body)


def test_of_a_chain_that_grew_only_the_new_lines_are_read(file, audit, monkeypatch):
    fill(audit, 3)
    reader = ChainAudit(file)
    reader.lines()
    parsed, read = audit_module._parsed, []

    def counted(at, content, before):
        read.append(len(content.splitlines()))
        return parsed(at, content, before)

    monkeypatch.setattr(audit_module, "_parsed", counted)
    audit.write("held", AT, {"reason": "Because."})
    assert [line["kind"] for line in reader.lines()] == ["decided"] * 3 + ["held"]
    assert len(reader.lines()) == 4
    assert read == [1]


def test_a_chain_that_was_written_anew_in_place_is_read_anew(file, audit, tmp_path):
    fill(audit, 3)
    reader = ChainAudit(file)
    reader.lines()
    other = ChainAudit(tmp_path / "other.jsonl")
    for number in range(9):
        other.write("held", AT, {"number": number})
    with file.open("r+b") as opened:  # the file stays the same one, and grows
        opened.write((tmp_path / "other.jsonl").read_bytes())
        opened.truncate()
    assert [line["kind"] for line in reader.lines()] == ["held"] * 9
    assert reader.verify() == 9


def test_the_chain_keeps_the_intervals_of_the_performance():
    told = Performance(
        "log_loss", Interval(0.51234567, 0.5, None, 90, 3), None,
        first_release=Interval(0.6, 0.55, 0.65, 90, 9), lag_days=7.0,
    )  # fmt: skip
    kept = audit_module._performed(told)
    assert kept == {
        "metric": "log_loss", "lag_days": 7.0, "greater_is_better": False,
        "realised": [0.5123, 0.5, None, 90], "first_release": [0.6, 0.55, 0.65, 90],
    }  # fmt: skip
