"""Scoring a file: the server's own answers, journalled once, in bounded memory."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from serving_fixtures import objects, promote

from homeostat import batch, build, cli, settings
from homeostat.errors import ConflictError, HomeostatError, RowError
from homeostat.journal import FileJournal
from homeostat.rowfile import ROWS, RowFile
from homeostat.schema import Schema
from homeostat.testing import drifting_stream

SCHEMA = Schema.from_json(objects()["schema"])
FEATURES = ["amount", "gap", "city", "member"]


@pytest.fixture
def root(tmp_path):
    path = tmp_path / "project"
    path.mkdir()
    promote(path, objects())
    return path


def frame(rows=300, **columns):
    made = drifting_stream(rows, seed=3).drop(columns=["target", "occurred_at"])
    return made.assign(prediction_id=[f"id-{i}" for i in range(rows)], **columns)


def written(made, path):
    made.to_parquet(path) if path.suffix == ".parquet" else made.to_csv(path, index=False)
    return path


def score(root, file, **options):
    return batch.score(settings.read(root), file, **options)


def read(path):
    return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)


def journalled(root):
    return FileJournal(root / "data" / "logs").read()


def as_served(root, made):
    """What the predictor answers to the same rows as a client would send them."""
    predictor = build.predictor(settings.read(root))
    predictor.refresh()
    rows = made.astype(object).where(made.notna(), None).to_dict("records")
    return predictor.predict(rows)


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_file_is_answered_and_journalled_as_if_it_had_been_served(root, tmp_path, ending):
    made = frame()
    report = score(root, written(made, tmp_path / f"rows{ending}"))
    assert (report.rows, report.answered, report.repeated) == (300, 300, 0)
    told = read(tmp_path / f"rows.scored{ending}")
    assert told["row"].tolist() == [*range(300)]
    rows = journalled(root)
    assert rows.num_rows == 300
    assert set(rows.column("source").to_pylist()) == {"serve"}
    answers = as_served(root, made)  # of known ids, so this is what was journalled
    assert told["prediction_id"].tolist() == [a["prediction_id"] for a in answers]
    assert told["prediction"].tolist() == [a["prediction"] for a in answers]
    assert told["probability"].tolist() == pytest.approx([a["probability"] for a in answers])
    assert set(told["model_version"]) == {report.model_version}


def test_the_same_file_again_is_answered_alike_and_journalled_once(root, tmp_path):
    file = written(frame(), tmp_path / "rows.parquet")
    score(root, file)
    first = (tmp_path / "rows.scored.parquet").read_bytes()
    again = score(root, file)
    assert (again.answered, again.repeated) == (300, 300)
    assert (tmp_path / "rows.scored.parquet").read_bytes() == first
    assert journalled(root).num_rows == 300


def test_without_ids_each_row_gets_one_of_its_own(root, tmp_path):
    file = written(frame().drop(columns="prediction_id"), tmp_path / "rows.csv")
    score(root, file)
    assert read(tmp_path / "rows.scored.csv")["prediction_id"].nunique() == 300
    score(root, file)
    assert journalled(root).num_rows == 600


def test_ids_and_times_may_have_other_names_and_other_types(root, tmp_path):
    times = pd.date_range("2020-01-01", periods=300, freq="h", tz="Europe/Oslo")
    made = frame().assign(ride=range(1000, 1300), at=times, note="x").drop(columns="prediction_id")
    columns = {"prediction_id": "ride", "occurred_at": "at"}
    report = score(root, written(made, tmp_path / "rows.parquet"), columns=columns)
    assert report.ignored == ["note"]
    rows = journalled(root)
    assert rows.column("prediction_id").to_pylist() == [str(n) for n in range(1000, 1300)]
    assert rows.column("occurred_at").to_pylist() == [*times.tz_convert("UTC").to_pydatetime()]
    again = score(root, written(made, tmp_path / "rows.csv"), columns=columns)
    assert again.repeated == 300  # a CSV says the same


def test_times_without_a_zone_are_read_in_that_of_the_project_or_refused(root, tmp_path):
    times = pd.date_range("2024-07-01", periods=20, freq="h")
    for ending in (".csv", ".parquet"):
        file = written(frame(20, occurred_at=times), tmp_path / f"rows{ending}")
        with pytest.raises(RowError, match=r"row 0: occurred_at has no time zone"):
            score(root, file)
    (root / settings.FILE).write_text('[project]\ntimezone = "Europe/Oslo"\n')
    for ending in (".csv", ".parquet"):
        score(root, tmp_path / f"rows{ending}")
    utc = times.tz_localize("Europe/Oslo").tz_convert("UTC").to_pydatetime()
    assert journalled(root).column("occurred_at").to_pylist() == [*utc]


BAD = {
    5: ("amount", "much", "wrong_type"),
    9: ("member", "perhaps", "wrong_type"),
    11: ("amount", "inf", "not_finite"),
    2_500: ("prediction_id", "x" * 200, "bad_id"),
    2_501: ("prediction_id", "id-7", "conflict"),
}


@pytest.fixture
def broken(tmp_path):
    made = frame(4_100).astype(object)
    for row, (column, value, _) in BAD.items():
        made.loc[row, column] = value
    return written(made, tmp_path / "rows.csv")


def test_a_row_that_is_refused_ends_it_with_its_number_and_never_with_its_value(root, broken):
    with pytest.raises(RowError, match=r"^row 5: 'amount' must be a number. .*--on-error skip"):
        score(root, broken)
    with pytest.raises(HomeostatError) as caught:
        score(root, broken)
    assert "much" not in str(caught.value)
    assert journalled(root).num_rows == 0


def test_what_was_answered_before_the_end_is_in_the_output_and_in_the_journal(root, tmp_path):
    made = frame(3 * ROWS).astype(object)
    made.loc[2 * ROWS + 7, "amount"] = "much"
    with pytest.raises(RowError, match=f"row {2 * ROWS + 7}"):
        score(root, written(made, tmp_path / "rows.csv"))
    told = read(tmp_path / "rows.scored.csv")
    assert set(told["prediction_id"]) == set(journalled(root).column("prediction_id").to_pylist())
    assert 0 < len(told) <= 2 * ROWS + 7
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []


def test_rows_that_are_refused_can_be_left_out_and_are_counted_once(root, broken):
    report = score(root, broken, on_error="skip")
    assert report.refused == Counter(code for *_, code in BAD.values())
    assert (report.rows, report.answered) == (4_100, 4_100 - len(BAD))
    assert {(each["row"], each["code"]) for each in report.refusals} == {
        (row, code) for row, (*_, code) in BAD.items()
    }
    assert journalled(root).num_rows == report.answered
    lines = (root / "data" / "logs" / "rejected.jsonl").read_text().splitlines()
    kept = Counter()
    for line in map(json.loads, lines):
        kept[line["code"]] += line["count"]
    assert kept == report.refused
    told = read(broken.with_name("rows.scored.csv"))
    assert not set(told["row"]) & set(BAD)


def test_the_same_ids_with_other_content_are_conflicts_each_counted_once(root, tmp_path):
    score(root, written(frame(), tmp_path / "rows.csv"))
    changed = written(frame().assign(amount=0.125), tmp_path / "changed.csv")
    with pytest.raises(ConflictError, match=r"^row 0: "):
        score(root, changed)
    report = score(root, changed, on_error="skip")
    assert report.refused == {"conflict": 300}
    assert (report.answered, journalled(root).num_rows) == (0, 300)


def test_a_file_that_cannot_be_scored_is_refused_before_anything_is_done(root, tmp_path):
    def refused(file, match, **options):
        with pytest.raises(HomeostatError, match=match):
            score(root, file, **options)

    file = written(frame(), tmp_path / "rows.csv")
    refused(tmp_path / "none.csv", "does not exist")
    refused(written(frame(), tmp_path / "rows.json"), "neither .csv nor .parquet")
    refused(written(frame().drop(columns="city"), tmp_path / "less.csv"), "lacks 'city'")
    refused(file, "lacks 'ride'", columns={"prediction_id": "ride"})
    refused(file, "is the file to be scored", out=file)
    refused(file, "neither .csv nor .parquet", out=tmp_path / "out.txt")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 torn")
    refused(tmp_path / "torn.parquet", "cannot be read")
    (tmp_path / "ragged.csv").write_text("amount,gap,city,member\n1,2,secret\n")
    refused(tmp_path / "ragged.csv", "cannot be read")
    assert journalled(root).num_rows == 0
    assert written(frame(), tmp_path / "rows.csv").read_text() == file.read_text()


def test_without_a_champion_there_is_nothing_to_score_with(tmp_path):
    file = written(frame(), tmp_path / "rows.csv")
    with pytest.raises(HomeostatError, match="no released model yet"):
        score(tmp_path, file)


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_other_tasks_have_the_columns_of_their_answers(tmp_path, task):
    promote(tmp_path, objects(task=task))
    score(tmp_path, written(frame(50), tmp_path / "rows.parquet"))
    told = pd.read_parquet(tmp_path / "rows.scored.parquet")
    if task == "regression":
        assert told["prediction"].dtype == float
        assert "probability" not in told
    else:
        shares = told[["probability_a", "probability_b", "probability_c"]]
        assert shares.sum(axis=1).to_numpy() == pytest.approx(np.ones(50))
        assert shares.idxmax(axis=1).str[-1].tolist() == told["prediction"].tolist()


def test_nulls_of_every_spelling_are_null(root, tmp_path):
    text = 'amount,gap,city,member\n1,,,\nnan,2,"",TRUE\n3,NaN,"a\nb",false\n'
    (tmp_path / "rows.csv").write_text(text)
    rows = [row for part in RowFile(tmp_path / "rows.csv", SCHEMA, {}, None).rows() for row in part]
    assert rows == [
        {"amount": 1.0, "gap": None, "city": None, "member": None},
        {"amount": None, "gap": 2.0, "city": "", "member": True},
        {"amount": 3.0, "gap": None, "city": "a\nb", "member": False},
    ]


ROWS_OF_ANY_KIND = st.lists(
    st.fixed_dictionaries(
        {
            "amount": st.none() | st.floats(allow_nan=False, allow_infinity=False),
            "gap": st.none() | st.integers(-(2**40), 2**40).map(float),
            "city": st.none() | st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8),
            "member": st.none() | st.booleans(),
        }
    ),
    min_size=1,
    max_size=8,
)


@hypothesis(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(ROWS_OF_ANY_KIND)
def test_a_file_gives_the_rows_that_were_written_to_it(tmp_path, rows):
    import pyarrow.csv as pcsv

    table = pa.Table.from_pylist(rows, SCHEMA.arrow)
    pq.write_table(table, tmp_path / "rows.parquet")
    pcsv.write_csv(table, tmp_path / "rows.csv", pcsv.WriteOptions(quoting_style="needed"))
    for name in ("rows.parquet", "rows.csv"):
        read_back = [r for part in RowFile(tmp_path / name, SCHEMA, {}, None).rows() for r in part]
        assert read_back == rows


def test_memory_does_not_grow_with_the_file(root, tmp_path):
    """Of a file of 300,000 rows no more is held at a time than of one of 30,000."""

    def peak(rows):
        file = tmp_path / f"{rows}.parquet"
        part = pa.Table.from_pandas(frame(1_000).drop(columns="prediction_id"))
        with pq.ParquetWriter(file, part.schema) as writer:
            for _ in range(rows // 10_000):
                writer.write_table(pa.concat_tables([part] * 10))
        source = RowFile(file, SCHEMA, {}, None)
        tracemalloc.start()
        before, most, seen = pa.total_allocated_bytes(), 0, 0
        for part in source.rows():
            seen += len(part)
            most = max(most, pa.total_allocated_bytes() - before)
        _, held = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert seen == rows
        return held + most

    assert peak(300_000) < 1.5 * peak(30_000)


# --- the verb ---


def run(capfd, *words):
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    told = capfd.readouterr()
    return ended.value.code or 0, told.out, told.err


def test_the_verb_reports_as_a_document_and_for_people(root, tmp_path, broken, capfd):
    words = ["score", broken, "-p", root, "--on-error", "skip"]
    code, out, _ = run(capfd, *words, "--json")
    report = json.loads(out)
    assert code == 0
    assert report["refused"] == {"wrong_type": 2, "not_finite": 1, "bad_id": 1, "conflict": 1}
    assert report["rows_per_second"] > 0
    code, out, _ = run(capfd, *words, "--out", tmp_path / "answers.parquet")
    assert code == 0
    assert "4,095 of 4,100 rows answered, 4,095 of them as before, 5 refused" in out
    assert "answers.parquet" in out
    code, out, err = run(capfd, *words[:-2])
    assert (code, out) == (1, "")
    assert err.startswith("error row 5:")
    assert "Traceback" not in err


def test_rows_of_long_ago_are_taken_though_the_server_would_not(root, tmp_path):
    long_ago = (datetime.now(UTC) - timedelta(days=900)).isoformat()
    report = score(root, written(frame(20, occurred_at=long_ago), tmp_path / "rows.csv"))
    assert report.answered == 20
