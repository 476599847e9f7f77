"""Rows that are erased are gone from every file, and that they are is known."""

from __future__ import annotations

import json
import shutil
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
import pytest
from journal_fixtures import KilledError, Steps, ids, opened
from loop_fixtures import project

from homeostat import cli, files
from homeostat.doctor import examine
from homeostat.entries import Erased
from homeostat.errors import JournalError
from homeostat.gate import unjudged
from homeostat.journal.history import DeltaLog
from homeostat.journal.jsonl import JsonLines
from homeostat.journal.labels import Labels
from homeostat.journal.portion import Cut
from homeostat.journal.predictions import Predictions
from homeostat.records import Candidate, TrainingRows
from homeostat.release import FileReleases
from homeostat.signing import signing_key
from homeostat.testing import (
    START,
    drifting_stream,
    label_rows,
    schema_of,
    served_rows,
)

DAY = timedelta(days=1)
FRAME = drifting_stream(60, seed=2, length=timedelta(days=3))
SCHEMA = schema_of(FRAME)
ROWS = served_rows(FRAME, SCHEMA, prefix="someone")
NOW = START + 60 * DAY
GONE = ["someone-3", "someone-17", "someone-45", "someone-59"]
EARLY = TrainingRows(10, START, START + DAY, START + 90 * DAY, "0" * 64)
LATE = TrainingRows(10, START + 2.5 * DAY, START + 3 * DAY, START + 90 * DAY, "0" * 64)
UNSEEN = TrainingRows(10, START, START + 3 * DAY, START - DAY, "0" * 64)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """Forty rows in history, twenty in the tail; labels of every second one in both."""
    folder = tmp_path_factory.mktemp("filled") / "logs"
    journal = opened(folder)
    names = ids(ROWS)
    journal.append(ROWS.slice(0, 40))
    journal.label(label_rows(names[1:40:2], ["0"] * 20, START))
    journal.seal(NOW)
    journal.append(ROWS.slice(40))
    journal.label(label_rows(names[1::2], ["1"] * 30, START))
    return folder


@pytest.fixture
def folder(filled, tmp_path):
    return Path(shutil.copytree(filled, tmp_path / "logs"))


def holding(folder, text):
    """The files under the folder in which the text stands, whole or in compressed Parquet."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file():
            raw = path.read_bytes()
            if path.suffix == ".parquet" and "_delta_log" not in path.parts:
                raw += str(pa.parquet.read_table(path, partitioning=None).to_pydict()).encode()
            if text.encode() in raw:
                found.append(path.name)
    return found


def kept():
    gone = pa.array(GONE)
    return ROWS.filter(pa.compute.invert(pa.compute.is_in(ROWS["prediction_id"], gone)))


def test_rows_by_id_are_gone_from_every_file_with_their_labels(folder):
    journal = opened(folder)
    before = journal.read(schema=SCHEMA)
    assert holding(folder, "someone-45")
    done = journal.erase(NOW, ids=[*GONE, "nobody"])
    assert done == Erased(rows=4, labels=6)
    for name in GONE:
        assert holding(folder, f'"{name}"') + holding(folder, f"'{name}'") == []
    back = opened(folder).read(schema=SCHEMA)
    assert back.select(ROWS.column_names).equals(kept())
    others = before.filter(
        pa.compute.invert(pa.compute.is_in(before["prediction_id"], pa.array(GONE)))
    )
    assert back.equals(others)
    assert journal.read(schema=SCHEMA).equals(others)


def test_the_log_of_the_tables_tells_nothing_of_what_was_erased(folder):
    """Statistics of files that are gone would tell the ids at their ends."""
    journal = opened(folder)
    journal.erase(NOW, ids=["someone-0", "someone-39"])
    assert holding(folder, "someone-0") == []
    assert holding(folder, "someone-39") == []
    assert DeltaLog(folder / "history" / "predictions", SCHEMA.journal).snapshot().rows == 38


@pytest.mark.parametrize(
    ("where", "chosen"),
    [
        ("amount > 1.0", lambda row: row["amount"] > 1.0),
        ("city = 'Rome' AND NOT member", lambda row: row["city"] == "Rome" and not row["member"]),
        ("gap IS NULL", lambda row: row["gap"] is None),
        ("occurred_at >= '2025-01-03T12:00:00Z'", lambda r: r["occurred_at"] >= START + 2.5 * DAY),
        ("prediction_id LIKE 'someone-1%'", lambda r: r["prediction_id"].startswith("someone-1")),
        ("false", lambda _: False),
    ],
)
def test_rows_are_found_by_a_condition_in_tail_and_history(folder, where, chosen):
    journal = opened(folder)
    wanted = [row["prediction_id"] for row in ROWS.to_pylist() if not chosen(row)]
    assert journal.erase(NOW, where=where).rows == 60 - len(wanted)
    assert ids(journal.read()) == wanted
    assert not list(folder.glob(".where-*"))


@pytest.mark.parametrize("sealed", [0, 3, 6])
def test_features_that_differ_only_in_case_are_each_found_by_their_own_name(tmp_path, sealed):
    count = [pa.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), pa.array([6.0, 5.0, 4.0, 3.0, 2.0, 1.0])]
    rows = ROWS.slice(0, 6).append_column("Amount", count[0]).append_column("GAP", count[1])
    rows = rows.append_column("Source", pa.array(["x", "y"] * 3))
    journal = opened(tmp_path)
    journal.append(rows.slice(0, sealed))
    journal.seal(NOW)
    journal.append(rows.slice(sealed))
    names = ids(rows)
    assert journal.erase(NOW, where="Amount = 1 OR GAP = 2").rows == 2
    assert ids(journal.read()) == names[1:4] + names[5:]
    assert journal.erase(NOW, where="amount > -100 AND \"Source\" = 'x'").rows == 1
    assert ids(journal.read()) == names[1:6:2]
    assert journal.erase(NOW, where="Source = 'x' OR source <> 'live'").rows == 0


@pytest.mark.parametrize(
    "where",
    ["", "nothing = 1", "amount >", "1=1) UNION SELECT 'x' --", "amount; DROP TABLE history"],
)
def test_a_condition_that_is_none_erases_nothing_and_names_the_columns(folder, where):
    journal = opened(folder)
    with pytest.raises(JournalError, match=r"SQL over the columns prediction_id, .*amount"):
        journal.erase(NOW, where=where)
    assert journal.read().num_rows == 60
    assert not (folder / "erasures.jsonl").exists()


def test_it_is_kept_when_how_much_and_of_which_releases_but_never_what(folder):
    journal = opened(folder)
    trainings = {"early": EARLY, "late": LATE, "unseen": UNSEEN}
    done = journal.erase(NOW, ids=GONE, trainings=trainings)
    assert done.releases == {"early": 2, "late": 1}
    lines = [json.loads(line) for line in (folder / "erasures.jsonl").read_text().splitlines()]
    assert {key: lines[0][key] for key in ("at", "rows", "labels", "releases")} == {
        "at": NOW.isoformat(), "rows": 4, "labels": 6, "releases": {"early": 2, "late": 1},
    }  # fmt: skip
    assert lines[1]["done"] is True
    assert "someone" not in (folder / "erasures.jsonl").read_text()
    assert opened(folder).erased() == {"early": NOW, "late": NOW}


def test_what_nobody_agreed_to_changes_no_file(folder):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    seen = []
    opened(folder).erase(NOW, ids=GONE, sure=lambda erased: bool(seen.append(erased)))
    assert seen == [Erased(rows=4, labels=6)]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


STEPS = [
    (files, "write"),
    (DeltaLog, "_commit"),
    (DeltaLog, "clean"),
    (DeltaLog, "_forget"),
    (Predictions, "erase"),
    (Labels, "erase"),
    (Cut, "replace"),
    (JsonLines, "add"),
]


@pytest.mark.parametrize("asked", [{"ids": GONE}, {"where": f"prediction_id IN {tuple(GONE)}"}])
def test_killed_at_any_step_the_same_call_finishes_it(filled, tmp_path, monkeypatch, asked):
    steps, trainings, killed = Steps(monkeypatch, STEPS), {"early": EARLY}, 0

    def erase(folder):
        opened(folder).erase(NOW, **asked, trainings=trainings)

    for last, folder in steps.killed_at_each(erase, filled, tmp_path):
        killed += 1
        begun = opened(folder).unfinished()
        finish = begun[0].id if begun else None  # it may not have come to the note of its begin
        opened(folder).erase(NOW, **asked, trainings=trainings, finish=finish)
        journal = opened(folder)
        assert journal.read(schema=SCHEMA).select(ROWS.column_names).equals(kept()), last
        assert holding(folder, "'someone-45'") == [], last
        assert journal.erased() == {"early": NOW}, last
        assert journal.unfinished() == [], last
    assert killed > 20


@pytest.fixture
def killed(folder, monkeypatch):
    """A journal in which an erasure was begun and nothing of it done."""

    def kill(*_, **__):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Labels, "erase", kill)
        with pytest.raises(KilledError):
            opened(folder).erase(NOW, ids=GONE)
    return opened(folder)


def test_an_erasure_of_others_leaves_an_unfinished_one_unfinished(killed):
    killed.erase(NOW + DAY, ids=["someone-1"])
    (left,) = killed.unfinished()
    assert (left.at, left.rows, left.labels) == (NOW, 4, 6)
    assert killed.read().num_rows == 59
    killed.erase(NOW + DAY, ids=GONE, finish=left.id[:8])
    assert killed.unfinished() == []
    assert killed.read().num_rows == 55


def test_finishing_that_is_killed_itself_is_still_the_one_erasure(killed, folder, monkeypatch):
    (left,) = killed.unfinished()
    with monkeypatch.context() as patch:
        patch.setattr(DeltaLog, "clean", lambda *_, **__: (_ for _ in ()).throw(KilledError))
        with pytest.raises(KilledError):
            opened(folder).erase(NOW + DAY, ids=GONE, finish=left.id)
    assert opened(folder).unfinished() == [left]
    opened(folder).erase(NOW + DAY, ids=GONE, finish=left.id)
    assert opened(folder).unfinished() == []


@pytest.mark.parametrize("name", ["", "nobody"])
def test_to_finish_what_was_not_begun_erases_nothing_and_names_what_was(killed, name):
    (left,) = killed.unfinished()
    with pytest.raises(JournalError, match=left.id[:8]):
        killed.erase(NOW, ids=GONE, finish=name)
    assert killed.read().num_rows == 60


ERASURES_1 = """\
{"id": "aa", "at": "2025-01-01T00:00:00+00:00", "rows": 1, "labels": 0, "releases": {}}
{"id": "bb", "at": "2025-01-02T00:00:00+00:00", "rows": 2, "labels": 3, "releases": {"r{": 1}
{"id": "cc", "at": "2025-01-03T00:00:00+00:00", "rows": 4, "labels": 5, "releases": {"r": 4}}
{"id": "aa", "at": "2025-01-03T00:00:00+00:00", "done": true}
"""


def test_a_record_of_erasures_by_an_earlier_version_with_a_torn_line_is_read(folder):
    (folder / "erasures.jsonl").write_text(ERASURES_1)
    journal = opened(folder)
    assert [left.id for left in journal.unfinished()] == ["cc"]
    assert journal.erased() == {"r": START + 2 * DAY}


# --- the verb ---


def candidate(training):
    return Candidate(
        kind="first",
        parent=None,
        objects={"model": b"a model", "schema": SCHEMA.to_json().encode()},
        training=training,
        seconds=0.5,
        params={},
        versions={},
        seed=0,
    )


@pytest.fixture
def root(filled, tmp_path):
    shutil.copytree(filled, tmp_path / "data" / "logs")
    models = tmp_path / "models"
    store = FileReleases(models, signing_key(tmp_path / ".homeostat", models, {}))
    store.promote(store.add(candidate(EARLY), unjudged("None.", None), NOW))
    return tmp_path


def said(capsys, *words):
    try:
        cli.main(["log", "erase", *words])
    except SystemExit as end:
        return end.code, capsys.readouterr()
    return 0, capsys.readouterr()


def test_the_verb_counts_asks_and_erases(root, capsys, monkeypatch):
    place = ("--project", str(root), "--json")
    named = [word for name in GONE for word in ("--id", name)]
    code, out = said(capsys, *named, "--dry-run", *place)
    assert code == 0
    assert json.loads(out.out) == {
        "rows": 4, "labels": 6, "releases": 1, "erased": 0, "unfinished": 0,
    }  # fmt: skip
    monkeypatch.setattr("typer.confirm", lambda *_, **__: False)
    assert json.loads(said(capsys, *named, *place)[1].out)["erased"] == 0
    assert project(root).journal.read().num_rows == 60
    code, out = said(capsys, *named, "--yes", *place)
    assert json.loads(out.out)["erased"] == 1
    assert project(root).journal.read().num_rows == 56


def test_verify_says_of_which_release_training_rows_were_erased(root, capsys):
    said(capsys, "--where", "amount > 0", "--yes", "--project", str(root))
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main(["verify", "--project", str(root)])
    assert end.value.code == 0
    out = capsys.readouterr().out
    champion = project(root).releases.champion()
    assert "verified" in out
    assert f"{champion.short} was trained on rows that were erased" in " ".join(out.split())


def test_the_verb_wants_to_be_told_what(root, capsys):
    code, out = said(capsys, "--project", str(root))
    assert code == 1
    assert "Give --id or --where" in " ".join(out.err.split())


def test_an_unfinished_erasure_is_told_until_the_same_one_finishes_it(root, capsys, monkeypatch):
    named = [word for name in GONE for word in ("--id", name)]
    place = ("--yes", "--project", str(root))

    def kill(*_, **__):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Labels, "erase", kill)
        with pytest.raises(KilledError):
            said(capsys, *named, *place)
    (left,) = project(root).journal.unfinished()
    command = f"erase the same again, with --finish {left.id[:8]}"
    (check,) = (check for check in examine(root) if check.name == "erasures")
    assert (check.result, command in check.message) == ("note", True)
    code, out = said(capsys, "--id", "someone-1", *place, "--json")
    assert (code, json.loads(out.out)["unfinished"]) == (0, 1)
    assert command in " ".join(out.err.split())
    code, out = said(capsys, *named, *place, "--finish", left.id[:8])
    assert (code, "note" in out.err) == (0, False)
    (check,) = (check for check in examine(root) if check.name == "erasures")
    assert check.result == "well"
