from datetime import UTC, datetime, timedelta
from unittest import mock

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from homeostat import rowstream
from homeostat.errors import HomeostatError, SchemaError
from homeostat.profile import Profile
from homeostat.schema import TIMESTAMP, Feature, Schema, Target

DAY = timedelta(days=1)
START = datetime(2024, 1, 1, tzinfo=UTC)
SCHEMA = Schema(
    (
        Feature("height", "number", edges=tuple(np.linspace(-2, 2, 40))),
        Feature("site", "category", levels=("a", "b")),
        Feature("open", "boolean"),
    ),
    Target("y", "binary", "bool", ("false", "true")),
)


def table(count, seed=0):
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "unused": rng.normal(size=count),
            "occurred_at": pa.array([START + i * DAY / 70 for i in range(count)], TIMESTAMP),
            "height": pa.array(rng.normal(size=count), mask=rng.random(count) < 0.1),
            "site": pa.array(rng.choice(["a", "b", "c", ""], count), mask=rng.random(count) < 0.1),
            "open": pa.array(rng.random(count) < 0.3, mask=rng.random(count) < 0.1),
            "probability": rng.random(count),
        }
    )


ROWS = table(1_000)
WHOLE = Profile.of(ROWS, SCHEMA)


def forms(rows, folder):
    """The same rows in each form that they may have."""
    parquet, csv = folder / "rows.parquet", folder / "rows.csv"
    pq.write_table(rows, parquet, row_group_size=300)
    pcsv.write_csv(rows, csv)
    frame = pl.from_arrow(rows)
    return {
        "table": rows,
        "batch": rows.combine_chunks().to_batches()[0],
        "reader": rows.to_reader(max_chunksize=70),
        "batches": iter(rows.to_batches(max_chunksize=90)),
        "parts": [rows.slice(0, 400), rows.slice(400).to_pandas()],
        "pandas": rows.to_pandas(),
        "pandas of Arrow": rows.to_pandas(types_mapper=pd.ArrowDtype),
        "categories": rows.to_pandas().astype({"site": "category"}),
        "polars": frame,
        "polars, categories": frame.with_columns(pl.col("site").cast(pl.Categorical)),
        "Parquet": parquet,
        "CSV": str(csv),
    }


def test_every_form_of_the_rows_gives_the_same_bits(tmp_path):
    with mock.patch.object(rowstream, "ROWS", 64):
        for name, data in forms(ROWS, tmp_path).items():
            assert Profile.of(data, SCHEMA).to_bytes() == WHOLE.to_bytes(), name


@given(
    order=st.none() | st.integers(0, 9),
    size=st.integers(1, 400),
    workers=st.integers(1, 4),
    most=st.sampled_from([1, 7, 64, 1 << 15]),
    form=st.sampled_from(["table", "reader", "Parquet"]),
)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_order_partition_or_number_of_workers_changes_a_bit(
    tmp_path, order, size, workers, most, form
):
    rows = ROWS.slice(0, 300)
    mixed = rows
    if order is not None:
        mixed = rows.take(pa.array(np.random.default_rng(order).permutation(rows.num_rows)))
    if form == "reader":
        data = mixed.to_reader(max_chunksize=size)
    elif form == "Parquet":
        data = tmp_path / "mixed.parquet"
        pq.write_table(mixed, data, row_group_size=size)
    else:
        data = mixed
    with mock.patch.object(rowstream, "ROWS", most):
        found = Profile.of(data, SCHEMA, workers=workers)
    assert found.to_bytes() == Profile.of(rows, SCHEMA, workers=1).to_bytes()


def test_batches_are_asked_for_as_they_are_counted():
    """However many there are, only a few wait."""
    made, most = [], 0
    counted = 0

    def batches():
        for number in range(60):
            made.append(number)
            yield ROWS.slice(number, 1).to_batches()[0]

    real = Profile.of.__globals__["_Sums"].add

    def add(self, blocks, lines):
        nonlocal counted, most
        most = max(most, len(made) - counted)
        counted += 1
        real(self, blocks, lines)

    with mock.patch.object(Profile.of.__globals__["_Sums"], "add", add):
        assert Profile.of(batches(), SCHEMA, workers=2).rows == 60
    assert most <= 6


def test_nothing_is_a_profile_of_no_rows_in_every_form(tmp_path):
    for name, data in forms(ROWS.slice(0, 1), tmp_path).items():
        assert Profile.of(data, SCHEMA).rows == 1, name
    empty = ROWS.slice(0, 0)
    pq.write_table(empty, tmp_path / "empty.parquet")
    for data in (empty, [], empty.to_pandas(), pl.from_arrow(empty), tmp_path / "empty.parquet"):
        profile = Profile.of(data, SCHEMA)
        assert profile.rows == 0
        assert profile + WHOLE == WHOLE


@pytest.mark.parametrize("values", [[1.0, "a"], [{"a": 1}, 2], [START, 1.5]])
@pytest.mark.parametrize("name", ["height", "site", "open"])
def test_a_column_of_mixed_types_is_named_and_its_values_are_not(name, values):
    frame = pd.DataFrame({"occurred_at": [START] * 2, name: pd.Series(values, dtype=object)})
    with pytest.raises(SchemaError, match=f"{name!r} holds"):
        Profile.of(frame, SCHEMA)


def test_times_with_and_without_a_zone_are_not_mixed():
    times = pd.Series([START, START.replace(tzinfo=None)], dtype=object)
    with pytest.raises(SchemaError, match="occurred_at holds times without a zone"):
        Profile.of(pd.DataFrame({"occurred_at": times}), SCHEMA)


def test_a_cell_of_a_file_that_is_no_number_names_its_column_and_not_itself(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("occurred_at,height\n2024-01-01T00:00:00Z,1\n2024-01-01T00:00:00Z,tall\n")
    with pytest.raises(SchemaError, match="'height' holds string, not double") as error:
        Profile.of(file, SCHEMA)
    assert "tall" not in str(error.value)


def test_what_holds_no_rows_is_refused(tmp_path):
    for data in (7, {"height": [1.0]}, b"height"):
        with pytest.raises(SchemaError, match="rows cannot be read from a"):
            Profile.of(data, SCHEMA)
    with pytest.raises(HomeostatError, match="does not exist"):
        Profile.of(tmp_path / "none.parquet", SCHEMA)
    torn = tmp_path / "torn.parquet"
    torn.write_bytes(b"PAR1")
    with pytest.raises(HomeostatError, match="cannot be read"):
        Profile.of(torn, SCHEMA)
