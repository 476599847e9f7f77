"""Profiles of days are kept as long as their rows are what they were, and never longer."""

from __future__ import annotations

from datetime import timedelta

import pyarrow.compute as pc
import pytest
from journal_fixtures import replaced, to_load

from homeostat import blocks
from homeostat.blocks import Kept
from homeostat.journal import FileJournal
from homeostat.profile import Profile
from homeostat.records import Window
from homeostat.settings import Monitor
from homeostat.testing import (
    START,
    FakeClock,
    drifting_stream,
    label_rows,
    schema_of,
    served_rows,
)

DAY = timedelta(days=1)
DAYS = 6
FRAME = drifting_stream(60, seed=2, length=timedelta(days=DAYS))
SCHEMA = schema_of(FRAME)
WINDOW = Window(START, START + DAYS * DAY)
LAST = START + (DAYS - 1) * DAY


ROWS = served_rows(FRAME, SCHEMA)
ROWS = replaced(ROWS, "source", "serve")
ROWS = replaced(ROWS, "model_version", ["old"] * 20 + ["new"] * 40)
ROWS = replaced(ROWS, "recorded_at", ROWS["occurred_at"].to_pylist())


class Watched(FileJournal):
    """A journal that tells which days were scanned."""

    def __init__(self, folder, **options):
        super().__init__(folder, clock=FakeClock(START), **options)
        self.scanned = []
        self.meanwhile = None

    def scan(self, window=None, **options):
        self.scanned.append((window.start - START) // DAY)
        if self.meanwhile is not None:
            late, self.meanwhile = self.meanwhile, None
            self.append(late)
        yield from super().scan(window, **options)


@pytest.fixture
def journal(tmp_path):
    """Four days sealed, two in the tail."""
    journal = Watched(tmp_path / "logs", tail=2 * DAY)
    journal.append(ROWS)
    journal.seal(WINDOW.end)
    return journal


@pytest.fixture
def look(journal, tmp_path):
    """Look at the window: the profiles, and which days were scanned for them."""

    def look(window=WINDOW, model="new", folder=tmp_path / "kept", block=DAY):
        journal.scanned = []
        kept = Kept(journal, folder)
        found = kept.profiles(window, SCHEMA, block=block, model=model)
        rows = journal.read(window, schema=SCHEMA)
        served = rows.filter(pc.not_equal(rows["source"], "load"))
        own = served.filter(pc.equal(served["model_version"], model))
        expected = [Profile.of(some, SCHEMA, block=block) for some in (served, own)]
        assert [one.to_bytes() for one in found] == [one.to_bytes() for one in expected]
        return journal.scanned

    return look


def test_a_second_look_scans_no_day_again(look):
    assert look() == [*range(DAYS)]
    assert look() == []


def test_a_new_day_is_all_that_is_scanned(look):
    look(Window(START, LAST))
    assert look(Window(START + DAY, WINDOW.end)) == [DAYS - 1]


def test_a_row_that_comes_late_has_its_day_counted_again(journal, look):
    late = ROWS.slice(0, 1)
    late = replaced(replaced(late, "prediction_id", "late"), "recorded_at", WINDOW.end)
    look()
    journal.append(late)
    assert look() == [0]
    assert look() == []
    journal.seal(WINDOW.end + 3 * DAY)
    assert 0 in look()
    assert look() == []


def test_an_import_has_its_days_counted_again(journal, look):
    look()
    new = replaced(ROWS.slice(30, 1), "prediction_id", "brought")
    journal.load(to_load(new, None), exported=True)
    assert look() == [3]


def test_an_erasure_has_its_days_counted_again_and_the_old_counts_are_gone(journal, look, tmp_path):
    look()
    before = {path.name for path in (tmp_path / "kept").rglob("*.profile")}
    ids = [ROWS["prediction_id"][i].as_py() for i in (15, 55)]
    journal.erase(WINDOW.end, ids=ids)
    assert look() == [1, 5]
    after = {path.name for path in (tmp_path / "kept").rglob("*.profile")}
    assert {name[:10] for name in before - after} == {
        str((START + day * DAY).date()) for day in (1, 5)
    }
    assert len(after) == DAYS


def test_labels_have_nothing_counted_again(journal, look):
    look()
    journal.label(label_rows(ROWS["prediction_id"].to_pylist(), ["1"] * 60, WINDOW.end))
    assert look() == []


def test_what_comes_before_a_scan_is_not_kept_as_what_was_there_before(journal, look, tmp_path):
    """Once it is erased the day is as it was, and so is the day's mark."""
    late = replaced(ROWS.slice(0, 1), "prediction_id", "meanwhile")
    journal.meanwhile = replaced(late, "recorded_at", WINDOW.end)
    kept = Kept(journal, tmp_path / "kept")
    served, _ = kept.profiles(WINDOW, SCHEMA, block=DAY, model="new")
    assert served.rows == 61
    journal.erase(WINDOW.end, ids=["meanwhile"])
    assert look() == [0]


@pytest.mark.parametrize(
    "harm",
    [
        lambda path, other: path.unlink(),
        lambda path, other: path.write_bytes(b""),
        lambda path, other: path.write_bytes(path.read_bytes()[:-1]),
        lambda path, other: path.write_bytes(path.read_bytes()[:-9] + b"otherwise"),
        lambda path, other: path.write_bytes(other.read_bytes()),
    ],
)
def test_a_kept_profile_that_is_missing_torn_or_of_another_day_is_made_again(look, tmp_path, harm):
    look()
    first, second, *_ = sorted((tmp_path / "kept").rglob("*.profile"))
    harm(first, second)
    assert look() == [0]
    assert look() == []


def test_another_release_or_length_of_block_is_counted_for_itself_and_the_former_removed(
    look, tmp_path
):
    look()
    assert look(model="old") == [*range(DAYS)]
    assert look(block=timedelta(hours=12)) == [*range(DAYS)]
    assert len([*(tmp_path / "kept").iterdir()]) == 1
    assert len([*(tmp_path / "kept").rglob("*.profile")]) == DAYS


@pytest.mark.parametrize("hours", [5, 7, 36])
def test_blocks_that_lie_across_midnight_are_whole(look, hours):
    block = timedelta(hours=hours)
    chosen = Monitor(block=block, window=8 * block)
    late = blocks.window(WINDOW.end, None, chosen)
    early = blocks.window(WINDOW.end, late.end - 2 * block, chosen)
    for window in (late, early, early, late):
        look(window, block=block)
    assert not set(look(late, block=block)) & {*range(DAYS)}


def test_a_folder_that_cannot_be_written_costs_time_and_nothing_else(look, tmp_path):
    (tmp_path / "file").write_text("")
    for _ in range(2):
        assert look(folder=tmp_path / "file") == [*range(DAYS)]


def test_the_window_is_of_whole_blocks_up_to_the_newest_row():
    chosen = Monitor(block=DAY, window=2 * DAY)
    hour = timedelta(hours=1)
    assert blocks.window(LAST + hour, None, chosen) == Window(LAST - DAY, LAST + DAY)
    assert blocks.window(LAST, LAST - 3 * DAY, chosen) == Window(LAST - 4 * DAY, LAST - 2 * DAY)
    assert blocks.window(LAST, LAST + hour, chosen) == Window(LAST - 2 * DAY, LAST)
