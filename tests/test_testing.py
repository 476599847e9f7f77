"""The stream and the clock that other tests stand on."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta

import pandas as pd

from homeostat.testing import START, FakeClock, drifting_stream, schema_of, served_rows


def test_the_same_seed_gives_the_same_stream_and_another_one_another():
    pd.testing.assert_frame_equal(drifting_stream(50, seed=1), drifting_stream(50, seed=1))
    assert not drifting_stream(50, seed=1).equals(drifting_stream(50, seed=2))


def test_the_stream_changes_where_it_is_told_to():
    frame = drifting_stream(4_000, seed=0, drift_at=0.5, shift=1.0)
    early, late = frame.iloc[:2_000], frame.iloc[2_000:]
    assert abs(early["amount"].mean()) < 0.1
    assert abs(late["amount"].mean() - 1) < 0.1
    assert early["amount"].corr(early["target"]) > 0.4
    assert abs(late["amount"].corr(late["target"])) < 0.1
    calm = drifting_stream(4_000, seed=0, shift=0.0)
    assert abs(calm["amount"].iloc[2_000:].mean()) < 0.1
    assert calm.iloc[2_000:]["amount"].corr(calm.iloc[2_000:]["target"]) > 0.4


def test_the_stream_has_columns_of_each_kind_and_a_schema():
    frame = drifting_stream(200)
    schema = schema_of(frame)
    assert {f.name: f.kind for f in schema.features} == {
        "amount": "number",
        "gap": "number",
        "city": "category",
        "member": "boolean",
    }
    rows = served_rows(frame, schema)
    assert rows.schema.equals(schema.journal)
    assert rows.column("gap").null_count > 0
    assert rows.column("occurred_at")[0].as_py() == START


def test_the_clock_moves_only_when_it_is_moved():
    clock = FakeClock()
    assert clock.now() == clock.now() == START
    assert clock.advance(timedelta(hours=1)) == START + timedelta(hours=1)
    clock.set(START)
    assert clock.now() == START


def test_the_module_imports_without_pytest():
    code = "import sys; import homeostat.testing; assert 'pytest' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
