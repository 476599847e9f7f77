"""The doctor says what is in place and what is not, and changes nothing."""

from __future__ import annotations

import pytest
from loop_fixtures import LOADED, InProcess, contents, days, make, project, stream, turning

from homeostat import doctor, settings
from homeostat.doctor import examine


@pytest.fixture
def root(tmp_path):
    return make(tmp_path, days(stream(), 0, LOADED))


@pytest.fixture
def trained(root):
    with turning(root, InProcess(), LOADED) as loop:
        loop.train()
    return root


def results(root):
    return {check.name: check for check in examine(root)}


def test_a_project_before_its_first_training_is_well(root):
    before = contents(root, ".")
    found = results(root)
    assert not [check for check in found.values() if check.result == "wrong"]
    assert "homeostat train" in found["champion"].message
    assert "first training makes one" in found["signing key"].message
    assert contents(root, ".") == before


def test_a_trained_project_has_champion_chain_and_key_verified(trained):
    before = contents(trained, ".")
    found = results(trained)
    assert project(trained).releases.champion().short in found["champion"].message
    assert found["audit chain"].message == "2 lines"
    assert found["signing key"].message == "present and trusted"
    assert {check.result for check in found.values()} <= {"well", "note"}
    assert contents(trained, ".") == before


def test_a_look_at_a_project_with_a_key_but_no_trust_yet_does_not_begin_to_trust(trained):
    (trained / "models" / "trusted.pub").unlink()
    found = results(trained)
    assert found["champion"].result == "wrong"
    assert not (trained / "models" / "trusted.pub").exists()


def test_settings_that_do_not_hold_end_the_look(root):
    (root / settings.FILE).write_text("[serving]\nport = 'high'\n")
    (check,) = examine(root)
    assert (check.name, check.result) == ("settings", "wrong")
    assert "serving.port" in check.message


def test_a_folder_that_is_not_there_is_wrong(tmp_path):
    (check,) = examine(tmp_path / "nowhere")
    assert check.result == "wrong"
    assert not (tmp_path / "nowhere").exists()


def test_each_thing_that_would_make_a_verb_refuse_is_wrong(trained):
    (trained / "src" / "training" / "train.py").unlink()
    champion = project(trained).releases.champion()
    (trained / "models" / "objects" / champion.manifest["objects"]["golden"]).write_bytes(b"?")
    chain = trained / "reports" / "decisions.jsonl"
    chain.write_text(chain.read_text().replace("first", "worst"))
    (trained / ".homeostat" / "signing.key").chmod(0o644)
    wrong = {check.name for check in examine(trained) if check.result == "wrong"}
    assert wrong == {"training script", "champion", "audit chain", "signing key"}


def test_a_disk_that_is_nearly_full_is_noted(root, monkeypatch):
    monkeypatch.setattr(doctor, "ROOM", 2**70)
    assert results(root)["disk"].result == "note"
