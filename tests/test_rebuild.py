"""Training frames are rebuilt from the journal to the very hash that a release names."""

from __future__ import annotations

import json
from datetime import timedelta

import pandas as pd
import pyarrow as pa
import pytest
from loop_fixtures import LOADED, InProcess, copied, days, make, project, serve, stream, turning

from homeostat import cli
from homeostat.audit import ChainAudit
from homeostat.rebuild import frames
from homeostat.records import Quarantine, Window
from homeostat.testing import START

DAY = timedelta(days=1)
END = 28


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """Two releases: of loaded rows, and of the newest of all but those in quarantine."""
    frame = stream()
    root = make(tmp_path_factory.mktemp("released") / "p", days(frame, 0, LOADED))
    with turning(root, InProcess(), LOADED) as loop:
        loop.train()
    serve(root, days(frame, LOADED, END))
    training = {"recent": 0.5, "blend": 1, "min_rows": 100}
    with turning(root, InProcess(), END, training=training, journal={"tail": "7d"}) as loop:
        window = Window(START + 16 * DAY, START + 17 * DAY)
        broken = Quarantine("0badcafe", window, (), "It was broken.", START + 17 * DAY)
        loop.audit.write("quarantined", START + 17 * DAY, vars_of(broken))
        assert loop.retrain(force=True).promoted
    return root


def vars_of(broken):
    return {name: getattr(broken, name) for name in broken.__dataclass_fields__}


@pytest.fixture
def root(released, tmp_path):
    return copied(released, tmp_path / "p")


def found(root):
    here = project(root)
    return frames(here.releases.trainings(), here.journal, here.releases, here.audit)


def verify(root, capsys):
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main(["verify", "--project", str(root), "--json"])
    return end.value.code, json.loads(capsys.readouterr().out)


def test_every_frame_comes_back_over_sealing_windows_and_quarantine(released, capsys):
    told = found(released)
    assert [frame.result for frame in told] == ["same", "same"]
    assert [frame.named for frame in told] == [frame.found for frame in told]
    manifest = project(released).releases.champion().manifest
    assert manifest["training"]["start"] >= (START + 13 * DAY).isoformat()
    code, document = verify(released, capsys)
    assert (code, document["frames"]) == (0, 2)


class Later:
    """A journal into which a row came after every training, dated back with its label."""

    def __init__(self, journal, recorded_at):
        self._journal, self._at = journal, recorded_at

    def read(self, *window, **options):
        rows = self._journal.read(*window, **options)
        late, place = rows.slice(0, 1), rows.schema.get_field_index("recorded_at")
        times = pa.array([self._at], rows.schema.field(place).type)
        late = late.set_column(place, rows.schema.field(place), times)
        named = late.set_column(0, rows.schema.field(0), pa.array(["late"]))
        return pa.concat_tables([rows, named])


@pytest.mark.parametrize(("day", "result"), [(90, "same"), (1, "other")])
def test_a_row_that_was_recorded_after_a_training_is_not_of_its_frame(released, day, result):
    here = project(released)
    journal = Later(here.journal, START + day * DAY)
    told = frames(here.releases.trainings(), journal, here.releases, here.audit)
    assert {frame.result for frame in told} == {result}


def test_a_quarantine_that_was_released_later_does_not_change_an_earlier_frame(root):
    audit = ChainAudit(root / "reports" / "decisions.jsonl")
    audit.write("quarantine_released", START + 60 * DAY, {"id": "0badcafe"})
    assert [frame.result for frame in found(root)] == ["same", "same"]


def test_erased_rows_are_told_as_such_and_are_no_failure(root, capsys):
    with pytest.raises(SystemExit):
        cli.main(["log", "erase", "--id", "id-600", "--yes", "--project", str(root)])
    champion = project(root).releases.champion()
    frame = next(frame for frame in found(root) if frame.release == champion.id)
    assert (frame.result, frame.named - frame.found) == ("fewer", 1)
    code, document = verify(root, capsys)
    assert code == 0
    assert list(document["erased"]) == [champion.id]
    assert document["frames"] == 1


def test_a_row_that_was_altered_or_is_gone_without_an_erasure_fails(root, capsys):
    file = root / "data" / "logs" / "predictions.csv"
    rows = pd.read_csv(file, dtype=str, keep_default_na=False)
    place = rows.index[rows["prediction_id"] == "id-760"][0]
    text = file.read_text()
    line = next(one for one in text.splitlines() if "id-760" in one)
    amount = rows.loc[place, "amount"]
    assert line.count(amount) == 1
    file.write_text(text.replace(line, line.replace(amount, "9.75")))
    code, document = verify(root, capsys)
    (other,) = document["other_frames"]
    assert (code, other["result"], document["frames"]) == (1, "other", 1)
    assert other["release"] == project(root).releases.champion().id
    file.write_text(text.replace(line + "\n", ""))
    code, document = verify(root, capsys)
    assert (code, document["other_frames"][0]["result"]) == (1, "fewer")
