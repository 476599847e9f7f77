"""Files in and out of the journal: an export is the same history, and bad files change nothing."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
import pytest
from journal_fixtures import KilledError
from loop_fixtures import LOADED, InProcess, copied, days, make, project, serve, stream, turning

from homeostat.entries import Appended, Labelled
from homeostat.errors import HomeostatError, SchemaError
from homeostat.journal import FileJournal
from homeostat.schema import SYSTEM, TIMESTAMP, Schema
from homeostat.testing import START
from homeostat.transfer import add_labels, export, load

DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def frame():
    return days(stream(), 0, LOADED + 3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, frame):
    """A trained project with three days of traffic without labels."""
    root = make(tmp_path_factory.mktemp("trained"), days(frame, 0, LOADED))
    with turning(root, InProcess(), LOADED) as loop:
        loop.train()
    serve(root, days(frame, LOADED, LOADED + 3), labels=False)
    return root


@pytest.fixture
def here(trained, tmp_path):
    return project(copied(trained, tmp_path / "p"))


@pytest.fixture
def ids(frame):
    return days(frame, LOADED, LOADED + 3)["prediction_id"].tolist()


def labelled(here):
    rows = here.journal.read(labelled=True)
    return dict(zip(*(rows.column(n).to_pylist() for n in ("prediction_id", "label")), strict=True))


def csv(path, **columns):
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


def champion_schema(here):
    return Schema.from_json(here.releases.object(here.releases.champion(), "schema"))


def test_labels_are_added_by_id_and_a_second_time_change_nothing(here, ids, tmp_path):
    file = csv(tmp_path / "l.csv", prediction_id=[*ids[:3], "later"], label=[1, 0, 1, 0])
    before = datetime.now(UTC)
    assert add_labels(here, file) == {"written": 4, "repeated": 0, "changed": 0}
    assert add_labels(here, file) == {"written": 0, "repeated": 4, "changed": 0}
    assert [labelled(here)[i] for i in ids[:3]] == ["1", "0", "1"]
    rows = here.journal.read(labelled=True).to_pylist()
    came = next(row["labelled_at"] for row in rows if row["prediction_id"] == ids[0])
    assert before - DAY < came <= datetime.now(UTC)


def test_a_corrected_label_is_a_new_version_that_counts_once_it_has_come(here, ids, tmp_path):
    times = [(START + 20 * DAY).isoformat(), (START + 30 * DAY).isoformat()]
    before = datetime.now(UTC)
    for label, at in zip((1, 0), times, strict=True):
        file = csv(tmp_path / "l.csv", prediction_id=ids[:1], label=[label], labelled_at=[at])
        done = add_labels(here, file)
    assert done == {"written": 1, "repeated": 0, "changed": 1}
    assert labelled(here)[ids[0]] == "0"
    then = here.journal.read(as_of=before, labelled=True)
    assert ids[0] not in then["prediction_id"].to_pylist()
    now = here.journal.read(as_of=datetime.now(UTC), labelled=True).to_pylist()
    (row,) = (row for row in now if row["prediction_id"] == ids[0])
    assert (row["label"], row["labelled_at"]) == ("0", START + 30 * DAY)


@pytest.mark.parametrize("labels", [[1, 0], [1.0, 0.0], ["1", "0"], [True, False]])
def test_labels_in_parquet_may_have_any_type_that_names_a_class(here, ids, tmp_path, labels):
    pq.write_table(pa.table({"prediction_id": ids[:2], "label": labels}), tmp_path / "l.parquet")
    assert add_labels(here, tmp_path / "l.parquet")["written"] == 2
    assert [labelled(here)[i] for i in ids[:2]] == ["1", "0"]


BAD = {
    "a label that is no class": ({"prediction_id": ["id-1"], "label": ["secret"]}, "not a class"),
    "no label": ({"prediction_id": ["id-1", "id-2"], "label": [1, None]}, "class"),
    "no id": ({"label": [1]}, "no column 'prediction_id'"),
    "a time that is none": (
        {"prediction_id": ["id-1"], "label": [1], "labelled_at": ["secret"]},
        "cannot be read",
    ),
}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("name", BAD)
def test_bad_labels_are_refused_whole_and_without_their_values(here, tmp_path, name, kind):
    columns, message = BAD[name]
    file, before = tmp_path / f"l.{kind}", labelled(here)
    if kind == "csv":
        csv(file, **columns)
    else:
        pq.write_table(pa.table(columns), file)
    with pytest.raises(HomeostatError, match=message) as caught:
        add_labels(here, file)
    assert "secret" not in str(caught.value)
    assert labelled(here) == before


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_an_export_that_is_imported_elsewhere_is_the_same_history(here, tmp_path, kind, trained):
    file = tmp_path / "out" / f"log.{kind}"
    rows = here.journal.read()
    assert export(here, file) == {"rows": rows.num_rows}
    other = copied(trained, tmp_path / "other")
    shutil.rmtree(other / "data" / "logs")
    there = project(other)
    assert there.journal.read().num_rows == 0
    done = load(there, file)
    assert done["rows_written"] == rows.num_rows
    assert done["labels_written"] == rows.num_rows - rows.column("label").null_count
    schema = champion_schema(here)
    assert there.journal.read(schema=schema).equals(here.journal.read(schema=schema))
    again = load(there, file)
    assert (again["rows_written"], again["labels_written"]) == (0, 0)
    assert again["rows_known"] == rows.num_rows


def elsewhere(trained, folder):
    """The same project with an empty journal."""
    shutil.rmtree(copied(trained, folder) / "data" / "logs")
    return project(folder)


@pytest.fixture
def pieces(monkeypatch):
    """Files are read in pieces of some thirty rows."""
    monkeypatch.setattr("homeostat.rowfile.BLOCK", 1 << 13)
    monkeypatch.setattr("homeostat.transfer.ROWS", 30)
    monkeypatch.setattr("homeostat.transfer.CHUNK", 30)


def test_a_moved_journal_tells_which_rows_were_served_and_what_load_gave(here, tmp_path, trained):
    export(here, tmp_path / "log.csv")
    there = elsewhere(trained, tmp_path / "other")
    load(there, tmp_path / "log.csv")
    served = [
        j.read().column("source").to_pylist().count("serve") for j in (here.journal, there.journal)
    ]
    assert served[0] == served[1] > 0
    assert there.journal.newest(source="serve") == here.journal.newest(source="serve")


def test_a_source_that_no_journal_has_is_that_of_an_import(here, tmp_path, trained):
    rows = here.journal.read()
    place = rows.schema.get_field_index("source")
    sources = ["serve", None, "elsewhere", *["load"] * (rows.num_rows - 3)]
    pq.write_table(rows.set_column(place, "source", [sources]), tmp_path / "log.parquet")
    there = elsewhere(trained, tmp_path / "other")
    load(there, tmp_path / "log.parquet")
    found = dict(
        zip(
            *there.journal.read().select(["prediction_id", "source"]).to_pydict().values(),
            strict=True,
        )
    )
    ids = rows.column("prediction_id").to_pylist()
    assert [found[i] for i in ids] == ["serve", *["load"] * (rows.num_rows - 1)]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_an_import_that_is_killed_between_batches_ends_the_same_when_run_again(
    here, tmp_path, trained, kind, pieces, monkeypatch
):
    export(here, tmp_path / f"log.{kind}")
    there = elsewhere(trained, tmp_path / "other")
    original, sizes = FileJournal.load, []

    def dying(self, rows, **options):
        if len(sizes) == 3:
            raise KilledError
        sizes.append(rows.num_rows)
        return original(self, rows, **options)

    with monkeypatch.context() as patch:
        patch.setattr(FileJournal, "load", dying)
        with pytest.raises(KilledError):
            load(there, tmp_path / f"log.{kind}")
    assert 0 < there.journal.read().num_rows == sum(sizes) < here.journal.read().num_rows
    done = load(project(there.root), tmp_path / f"log.{kind}")
    assert done["rows_known"] == sum(sizes)
    schema = champion_schema(here)
    assert there.journal.read(schema=schema).equals(here.journal.read(schema=schema))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("column", "value"),
    [("label", "secret"), ("prediction_id", None), ("occurred_at", None)],
)
def test_one_bad_cell_at_the_end_of_a_file_leaves_nothing_imported(
    here, tmp_path, trained, kind, column, value, pieces
):
    rows = here.journal.read()
    place, kept = rows.schema.get_field_index(column), rows.schema.field(column)
    cells = [*rows.column(column).to_pylist()[:-1], value]
    rows = rows.set_column(place, kept, pa.array(cells, kept.type))
    file = tmp_path / f"log.{kind}"
    if kind == "csv":
        pcsv.write_csv(rows, file, pcsv.WriteOptions(quoting_style="all_valid"))
    else:
        pq.write_table(rows, file)
    there = elsewhere(trained, tmp_path / "other")
    with pytest.raises(HomeostatError) as caught:
        load(there, file)
    assert "secret" not in str(caught.value)
    assert there.journal.read().num_rows == 0


def test_one_bad_label_at_the_end_of_a_file_leaves_none_added(here, ids, tmp_path, pieces):
    before = labelled(here)
    file = csv(tmp_path / "l.csv", prediction_id=[*ids] * 20, label=[1] * (20 * len(ids) - 1) + [7])
    with pytest.raises(SchemaError, match="not a class"):
        add_labels(here, file)
    assert labelled(here) == before


def test_without_a_champion_columns_are_of_the_kind_that_all_their_cells_have(tmp_path, pieces):
    count = 400
    text = pa.array([None] * 50 + ["7"] * (count - 51) + ["seven"])
    rows = pa.table(
        {
            "prediction_id": [f"id-{i:03}" for i in range(count)],
            "occurred_at": pa.array([START] * count, TIMESTAMP),
            "recorded_at": pa.array([START] * count, TIMESTAMP),
            **{name: pa.nulls(count, SYSTEM[name]) for name in list(SYSTEM)[3:]},
            "number": pa.array([None, 1, -2.5, 1e300] * 100),
            "zero": pa.array([0, 1] * 200),
            "flag": pa.array([True, None] * 200),
            "text": text,
            "nothing": pa.nulls(count, pa.float64()),
            "label": pa.nulls(count, pa.string()),
            "labelled_at": pa.nulls(count, TIMESTAMP),
        }
    )
    pcsv.write_csv(rows, tmp_path / "log.csv", pcsv.WriteOptions(quoting_style="all_valid"))
    there = project(make(tmp_path / "p", days(stream(), 0, 1)))
    assert load(there, tmp_path / "log.csv")["rows_written"] == count
    back = there.journal.read()
    kinds = {name: str(back.schema.field(name).type) for name in back.column_names[8:-2]}
    assert kinds == {"number": "double", "zero": "double", "flag": "bool", "text": "string"}
    assert back.column("text").to_pylist() == text.to_pylist()
    assert back.column("number").to_pylist() == rows.column("number").to_pylist()


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_of_a_long_file_only_a_batch_is_held_and_the_share_that_is_done_is_told(
    here, tmp_path, kind, monkeypatch
):
    """Of 300,000 rows no more are held at a time than of 30,000."""
    monkeypatch.setattr("homeostat.transfer.ROWS", 5_000)
    rows = here.journal.read().slice(0, 100)
    taken = []

    class Journal:
        def load(self, rows, **_):
            taken.append((rows.num_rows, pa.total_allocated_bytes()))
            return Appended(rows.num_rows, 0), Labelled(0, 0, 0)

    def peak(count):
        part, file = pa.concat_tables([rows] * 10), tmp_path / f"{count}.{kind}"
        options = pcsv.WriteOptions(quoting_style="all_valid")
        made = pcsv.CSVWriter(file, part.schema, write_options=options)
        if kind == "parquet":
            made.close()
            made = pq.ParquetWriter(file, part.schema)
        with made as writer:
            for _ in range(count // 1_000):
                writer.write_table(part.combine_chunks())
        taken.clear()
        shares, before = [], pa.total_allocated_bytes()
        done = load(there, file, lambda share, _: shares.append(share))
        assert done["rows_written"] == sum(size for size, _ in taken) == count
        assert shares == sorted(shares)
        assert shares[-1] == 1.0
        return max(held for _, held in taken) - before

    there = project(here.root)
    there.__dict__["journal"] = Journal()
    assert peak(300_000) < 1.5 * peak(30_000)


def test_an_import_with_labels_of_no_class_is_refused_whole(here, tmp_path):
    rows = here.journal.read()
    place = rows.schema.get_field_index("label")
    ids = pa.array([f"new-{i}" for i in range(rows.num_rows)])
    rows = rows.set_column(place, "label", [["banana"] * rows.num_rows])
    rows = rows.set_column(rows.schema.get_field_index("prediction_id"), "prediction_id", ids)
    pq.write_table(rows, tmp_path / "log.parquet")
    before = here.journal.read().num_rows
    with pytest.raises(SchemaError, match="not a class"):
        load(here, tmp_path / "log.parquet")
    assert here.journal.read().num_rows == before


def test_files_that_are_none_are_refused(here, tmp_path):
    (tmp_path / "log.parquet").write_bytes(b"no parquet")
    (tmp_path / "log.xls").write_bytes(b"")
    (tmp_path / "empty.csv").write_bytes(b"")
    for name in ("log.parquet", "log.xls", "empty.csv", "missing.csv"):
        for read in (add_labels, load):
            with pytest.raises(HomeostatError, match=name):
                read(here, tmp_path / name)
    with pytest.raises(HomeostatError, match="neither"):
        export(here, tmp_path / "log.xls")
    with pytest.raises(SchemaError, match="lacks the columns"):
        load(here, csv(tmp_path / "x.csv", prediction_id=["a"]))
