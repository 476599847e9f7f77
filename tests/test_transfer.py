"""Files in and out of the journal: an export is the same history, and bad files change nothing."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from loop_fixtures import LOADED, InProcess, copied, days, make, project, serve, stream, turning

from homeostat.errors import HomeostatError, SchemaError
from homeostat.schema import Schema
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
    back = there.journal.read(schema=schema).drop_columns(["source", "labelled_at"])
    assert back.equals(here.journal.read(schema=schema).drop_columns(["source", "labelled_at"]))
    again = load(there, file)
    assert (again["rows_written"], again["labels_written"]) == (0, 0)
    assert again["rows_known"] == rows.num_rows


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
