"""The journal's files: what is read back, what is counted, what the files look like."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from journal_fixtures import replaced, to_load

from homeostat.entries import Appended, Labelled, Refusal
from homeostat.errors import ConflictError, JournalError
from homeostat.journal import FileJournal, tail
from homeostat.schema import Feature, Schema, Target
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


@pytest.fixture
def clock():
    return FakeClock(START)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data" / "logs"


@pytest.fixture
def journal(folder, clock):
    return FileJournal(folder, clock=clock)


@pytest.fixture
def schema():
    return schema_of(drifting_stream(40, seed=3))


@pytest.fixture
def rows(schema):
    return served_rows(drifting_stream(40, seed=3), schema)


class TestFileJournalKeepsTheContract(JournalContract):
    pass


numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False)
texts = st.none() | st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from(',"\n\r\0 \t;'), max_size=12
)
booleans = st.none() | st.booleans()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(numbers, texts, booleans), min_size=1, max_size=8),
    texts.filter(lambda name: name is not None and name not in ("n", "b")),
)
def test_any_value_survives_the_round_trip(values, name):
    """Nulls, empty strings, separators, quotes, newlines and the extremes of floats."""
    features = (Feature("n", "number"), Feature(f"c{name}", "category"), Feature("b", "boolean"))
    schema = Schema(features, Target("t", "binary", "int", ("0", "1")))
    count = len(values)
    system = served_rows(drifting_stream(count), schema_of(drifting_stream(40))).select(range(8))
    columns = [
        pa.array([row[place] for row in values], feature.arrow)
        for place, feature in enumerate(features)
    ]
    table = pa.table([*system.columns, *columns], schema=schema.journal)
    with TemporaryDirectory() as folder:
        journal = FileJournal(Path(folder))
        journal.append(table)
        assert journal.append(table) == Appended(0, count)
        back = FileJournal(Path(folder)).read(schema=schema)
        assert back.select(table.column_names).equals(table)
        other = FileJournal(Path(folder))
        assert other.append(table) == Appended(0, count)


def test_the_first_line_names_the_columns_and_null_differs_from_empty(journal, folder, rows):
    row = replaced(replaced(rows.slice(0, 1), "city", ""), "gap", None)
    journal.append(row)
    header, line = (folder / "predictions.csv").read_text().splitlines()
    assert header.split(",")[:3] == ['"prediction_id"', '"occurred_at"', '"recorded_at"']
    amount, gap, city, member = line.split(",")[-4:]
    assert gap == ""
    assert city == '""'
    assert member in ("true", "false")
    assert float(amount) == row.column("amount")[0].as_py()


def test_files_are_named_by_the_schemas_own_fingerprint(journal, folder, schema, rows):
    journal.append(rows.slice(0, 20))
    journal.append(rows.drop_columns(["gap"]).slice(20))
    assert (folder / f"predictions.{schema.fingerprint}.csv").is_file()
    assert (folder / f"predictions.{schema.fingerprint}.schema.json").is_file()
    header = (folder / "predictions.csv").read_text().splitlines()[0]
    assert "gap" not in header


def test_a_schema_that_was_set_aside_goes_on_in_its_own_file(journal, folder, rows):
    narrow = rows.drop_columns(["gap"])
    journal.append(rows.slice(0, 10))
    journal.append(narrow.slice(10, 10))
    journal.append(rows.slice(20, 10))
    other = FileJournal(folder)
    other.append(narrow.slice(30, 10))
    assert other.append(rows.slice(0, 10)) == Appended(0, 10)
    assert len(list(folder.glob("predictions*.csv"))) == 2
    back = journal.read()
    assert back.num_rows == 40
    assert back.column("gap").slice(10, 10).null_count == 10


def test_an_id_conflicts_with_one_in_a_file_set_aside(journal, rows):
    journal.append(rows)
    with pytest.raises(ConflictError) as caught:
        journal.append(rows.drop_columns(["gap"]).slice(5, 2))
    assert caught.value.row == 0


def test_a_column_that_changed_its_kind_reads_as_null_where_it_was_another(journal, rows):
    journal.append(rows.slice(0, 10))
    place = rows.column_names.index("member")
    retyped = rows.set_column(place, "member", pa.repeat("yes", 40))
    journal.append(retyped.slice(10))
    back = journal.read()
    assert back.column("member").to_pylist() == [None] * 10 + ["yes"] * 30


def test_one_call_may_repeat_an_id_but_not_with_other_content(journal, rows):
    twice = pa.concat_tables([rows.slice(0, 3), rows.slice(1, 1)])
    assert journal.append(twice) == Appended(written=3, repeated=1)
    differing = pa.concat_tables([rows.slice(7, 1), replaced(rows.slice(7, 1), "amount", 9.5)])
    with pytest.raises(ConflictError):
        journal.append(differing)
    assert journal.read().num_rows == 3


def test_another_prediction_for_the_same_features_is_a_repetition(journal, rows):
    """A client that asks again after a hot swap is no liar."""
    journal.append(rows)
    again = replaced(replaced(rows, "model_version", "m2"), "prediction", "0")
    assert journal.append(again) == Appended(0, 40)
    assert set(journal.read().column("model_version").to_pylist()) == {"m1"}


def test_the_same_features_at_another_time_are_a_conflict(journal, rows):
    journal.append(rows)
    with pytest.raises(ConflictError):
        journal.append(replaced(rows, "occurred_at", START - DAY))


def test_known_rows_are_found_in_the_order_asked_for(journal, folder, rows):
    FileJournal(folder).append(rows.slice(0, 20))
    FileJournal(folder).append(rows.drop_columns(["gap"]).slice(20))
    found = journal.known(["id-33", "nobody", "\ud800", "id-2", "id-33"])
    assert found.column("prediction_id").to_pylist() == ["id-33", "id-2"]
    assert found.column("prediction").to_pylist() == ["1", "1"]
    assert found.slice(1).select(rows.column_names).equals(rows.slice(2, 1))


def test_a_copy_that_somebody_left_in_the_folder_disturbs_nothing(journal, folder, rows):
    journal.append(rows)
    (folder / "predictions.backup.csv").write_bytes((folder / "predictions.csv").read_bytes())
    assert journal.append(rows) == Appended(0, 40)
    assert journal.read().num_rows == 40


def test_rows_in_pieces_some_of_them_empty_are_written_as_they_are(journal, rows):
    nothing = rows.schema.empty_table()
    assert journal.append(nothing) == Appended(0, 0)
    pieces = [nothing, rows.slice(0, 7), nothing, rows.slice(7, 1), rows.slice(8), nothing]
    assert journal.append(pa.concat_tables(pieces)) == Appended(40, 0)
    labels = label_rows(["id-0"], ["1"], START)
    assert journal.label(pa.concat_tables([labels.slice(1), labels])) == Labelled(1, 0, 0)
    back = journal.read()
    assert back.select(rows.column_names).equals(rows)
    assert back.column("label").null_count == 39


def test_long_values_and_long_files_are_read_in_pieces(journal, folder, rows, monkeypatch):
    long = replaced(rows.slice(0, 3), "city", 'long, "and"\nwide' * 400_000)
    journal.append(rows.slice(3))
    journal.append(long)
    monkeypatch.setattr(tail, "_CHUNK", 1_000)
    other = FileJournal(folder)
    assert other.append(pa.concat_tables([long, rows.slice(3)])) == Appended(0, 40)
    assert other.read().select(rows.column_names).equals(pa.concat_tables([long, rows.slice(3)]))


def test_rows_that_the_journal_cannot_hold_are_refused(journal, rows):
    with pytest.raises(JournalError, match="'prediction_id' must be given"):
        journal.append(replaced(rows, "prediction_id", None))
    with pytest.raises(JournalError, match="lack the columns 'source'"):
        journal.append(rows.drop_columns(["source"]))
    with pytest.raises(JournalError, match="'when' is neither"):
        journal.append(rows.append_column("when", rows.column("occurred_at")))
    assert journal.read().num_rows == 0


def test_labels_of_a_regression_read_as_numbers(journal, rows, schema):
    journal.append(rows)
    journal.label(label_rows(["id-0", "id-1"], ["1.5", "1e+300"], START))
    regression = Schema(schema.features, Target("t", "regression", "float"))
    back = journal.read(schema=regression, labelled=True)
    assert back.schema.field("label").type == pa.float64()
    assert back.column("label").to_pylist() == [1.5, 1e300]


def test_a_label_without_time_gets_that_of_its_arrival(journal, rows, clock):
    journal.append(rows)
    journal.label(label_rows(["id-0"], ["1"], [None]))
    assert journal.read(labelled=True).column("labelled_at")[0].as_py() == clock.now()


def test_every_version_of_a_label_is_kept_in_the_file(journal, folder):
    for label in ("0", "1", "1", "0"):
        journal.label(label_rows(["id-0"], [label], START))
    lines = (folder / "labels.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in lines] == ['"label"', '"0"', '"1"', '"0"']


def test_versions_within_one_call_follow_one_another(journal):
    result = journal.label(label_rows(["a", "a", "b", "a"], ["0", "1", "0", "1"], START))
    assert result == Labelled(written=3, repeated=1, changed=1)


def test_labels_must_be_text_and_complete(journal):
    numeric = label_rows(["a"], ["1"], START).set_column(1, "label", pa.array([1.0]))
    with pytest.raises(JournalError, match="text"):
        journal.label(numeric)
    with pytest.raises(JournalError, match="'label' must be given"):
        journal.label(label_rows(["a"], [None], START))


def test_the_last_label_wins_even_when_the_clock_was_set_back(journal, rows, clock):
    journal.append(rows)
    journal.label(label_rows(["id-0"], ["0"], START))
    clock.advance(-DAY)
    journal.label(label_rows(["id-0"], ["1"], START))
    assert journal.read(labelled=True).column("label").to_pylist() == ["1"]


def test_a_correction_by_feedback_is_not_undone_by_loading_the_old_label_again(
    journal, rows, clock
):
    old = to_load(rows, "0", None)
    journal.load(old)
    journal.label(label_rows(["id-0"], ["1"], START))
    journal.load(replaced(old, "recorded_at", clock.advance(DAY)))
    assert journal.read().column("label").to_pylist() == ["1"] + ["0"] * 39


def test_a_load_that_brings_another_label_adds_a_version(journal, rows, clock):
    journal.load(to_load(rows, "0", START))
    newer = to_load(replaced(rows, "recorded_at", clock.now()), ["1"] + ["0"] * 39, START + DAY)
    assert journal.load(newer) == (Appended(0, 40), Labelled(1, 39, 1))
    assert journal.load(newer) == (Appended(0, 40), Labelled(0, 40, 0))
    assert journal.read().column("label").to_pylist() == ["1"] + ["0"] * 39
    assert set(journal.read(as_of=START).column("label").to_pylist()) == {"0"}


def test_a_load_cut_off_between_rows_and_labels_ends_the_same_when_run_again(journal, folder, rows):
    table = to_load(rows, "1", None)
    obstacle = folder / "history" / "labels"
    obstacle.parent.mkdir(parents=True)
    obstacle.write_text("a file where a folder belongs")
    with pytest.raises(JournalError):
        journal.load(table)
    assert journal.read().num_rows == 40
    obstacle.unlink()
    assert FileJournal(folder).load(table) == (Appended(0, 40), Labelled(40, 0, 0))
    back = journal.read(labelled=True)
    assert back.num_rows == 40
    assert back.column("source").to_pylist() == ["load"] * 40


def test_refusals_are_counted_in_the_file_without_values(journal, folder):
    journal.reject([Refusal("wrong_type", "amount")] * 3, START)
    (line,) = (folder / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "at": "2025-01-01T00:00:00+00:00",
        "code": "wrong_type",
        "field": "amount",
        "count": 3,
    }


SCHEMA_1 = """{"format": 1, "fingerprint": "c17df08e32b8", "columns": [
["prediction_id", "string"], ["occurred_at", "timestamp[us, tz=UTC]"],
["recorded_at", "timestamp[us, tz=UTC]"], ["model_version", "string"], ["source", "string"],
["prediction", "string"], ["probability", "double"], ["probabilities", "string"],
["amount", "double"], ["city", "string"], ["member", "bool"]]}"""
PREDICTIONS_1 = """"prediction_id","occurred_at","recorded_at","model_version","source",\
"prediction","probability","probabilities","amount","city","member"
"a","2025-01-01 00:00:00.000000Z","2025-01-01 00:00:01.500000Z","m1","live",\
"1","0.25",,"-1e-300","Wien, ""AT""\nx","true"
"b","2025-01-02 00:00:00.000000Z","2025-01-02 00:00:00.000000Z","m1","live","0",,,,"",
"""
LABELS_1 = """"prediction_id","label","labelled_at","recorded_at"
"a","0","2025-01-03 00:00:00.000000Z","2025-01-03 00:00:00.000000Z"
"a","1","2025-01-04 00:00:00.000000Z","2025-01-04 00:00:00.000000Z"
"""


def test_files_of_format_1_are_read(journal, folder):
    folder.mkdir(parents=True)
    (folder / "predictions.schema.json").write_text(SCHEMA_1)
    (folder / "predictions.csv").write_text(PREDICTIONS_1)
    (folder / "labels.csv").write_text(LABELS_1)
    back = journal.read().select(["prediction_id", "amount", "city", "member", "label"])
    assert back.to_pylist() == [
        {"prediction_id": "a", "amount": -1e-300, "city": 'Wien, "AT"\nx', "member": True,
         "label": "1"},
        {"prediction_id": "b", "amount": None, "city": "", "member": None, "label": None},
    ]  # fmt: skip


def test_a_schema_file_of_an_unknown_format_is_refused_by_name(journal, folder, rows):
    journal.append(rows)
    file = folder / "predictions.schema.json"
    file.write_text(file.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(JournalError, match="format 2, this version reads 1"):
        FileJournal(folder).read()
    with pytest.raises(JournalError, match=r"predictions\.schema\.json"):
        FileJournal(folder).append(rows)
