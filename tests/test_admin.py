"""A rollback asked for over HTTP: at once, by an admin alone, and told in the audit chain."""

from __future__ import annotations

import errno
import hashlib
import json

import pytest
from loop_fixtures import InProcess, project
from serving_fixtures import ROW, objects, promote, serving, until

from homeostat import build, files, settings
from homeostat.notes import Note, requests
from homeostat.release import FileReleases
from homeostat.web import admin

PATH = "/admin/rollback"
KEYS = {role: f"{role}-secret" for role in ("predict", "feedback", "admin")}


def keyed(root):
    lines = []
    for role, secret in KEYS.items():
        digest = hashlib.sha256(secret.encode()).hexdigest()
        lines += ["[[serving.keys]]", f'name = "{role}r"', f'role = "{role}"']
        lines.append(f'sha256 = "{digest}"')
    (root / settings.FILE).write_text("\n".join(["[tracking]", "enabled = false", *lines]))


def as_role(role):
    return {"Authorization": f"Bearer {KEYS[role]}", "Content-Type": "application/json"}


@pytest.fixture
def root(tmp_path):
    """A project of two releases and keys; nobody needs the signing key from then on."""
    for seed in (0, 1):
        promote(tmp_path, objects(seed))
    keyed(tmp_path)
    (tmp_path / ".homeostat" / "signing.key").rename(tmp_path / "away.key")
    return tmp_path


def notes(root):
    return requests(root / ".homeostat")


@pytest.fixture
def loop(monkeypatch):
    """One turn's beginning, in which what a server did is recorded."""
    monkeypatch.setattr(build, "LocalEngine", lambda **_: InProcess())

    def begin(root):
        with project(root).loop():
            return list(project(root).audit.lines())

    return begin


def test_an_admin_goes_back_and_the_next_answer_is_the_predecessors(root, loop):
    new, old = FileReleases(root / "models").line()
    with serving(root) as server, server.client() as http:
        row = {"json": ROW, "headers": as_role("admin")}
        assert http.post("/predict", **row).json()["model_version"] == new.id
        gone = http.post(PATH, headers=as_role("admin"))
        assert gone.status_code == 200, gone.text
        assert gone.json() == {
            "model_version": old.id,
            "sequence": 5,
            "previous": new.id,
            "serving": old.id,
        }
        assert http.post("/predict", **row).json()["model_version"] == old.id
        again = http.post(PATH, headers=as_role("admin"), content=b"{}")
        assert (again.status_code, again.json()["error"]["code"]) == (409, "no_way_back")
        line = until(lambda: [t for t in server.log.splitlines() if "rolled back" in t])[0]
        assert json.loads(line)["by"] == "adminr"
    assert FileReleases(root / "models").champion().id == old.id
    (note,) = notes(root).found().values()
    assert (note.old, note.release, note.by) == (new.id, old.id, "adminr")
    told = loop(root)[-1]
    assert told["kind"] == "rolled_back"
    assert told["body"] == {"from": new.id, "release": old.id, "by": "adminr", "asked": note.at}
    assert notes(root).found() == {}
    assert len(loop(root)) == len(loop(root))  # recorded once


@pytest.mark.parametrize("role", ["predict", "feedback", None])
def test_nobody_else_goes_back(root, role):
    headers = as_role(role) if role else {"Content-Type": "application/json"}
    with serving(root) as server, server.client() as http:
        refused = http.post(PATH, headers=headers)
        assert refused.status_code == (403 if role else 401)
        assert http.get(PATH, headers=as_role("admin")).status_code == 405
    assert FileReleases(root / "models").champion().sequence == 4
    assert notes(root).found() == {}


def test_arguments_are_refused_and_change_nothing(root):
    with serving(root) as server, server.client() as http:
        for body in (b'{"release": "abc"}', b"[]", b"{"):
            answer = http.post(PATH, headers=as_role("admin"), content=body)
            assert answer.status_code in (400, 422)
            assert answer.json()["error"]["code"]
    assert FileReleases(root / "models").champion().sequence == 4


def test_a_first_release_has_no_way_back(tmp_path):
    promote(tmp_path, objects())
    with serving(tmp_path) as server, server.client() as http:
        answer = http.post(PATH, json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "no_way_back")
    assert notes(tmp_path).found() == {}


def test_what_cannot_be_recorded_is_not_done(root):
    (root / ".homeostat" / "requests").write_text("no folder")
    with serving(root) as server, server.client() as http:
        answer = http.post(PATH, headers=as_role("admin"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "cannot_record")
    assert FileReleases(root / "models").champion().sequence == 4


@pytest.fixture
def desk(root):
    """What the endpoint works with: the store, the notes, and a predictor that serves."""
    made = build.predictor(settings.read(root))
    made.refresh()
    return FileReleases(root / "models"), notes(root), made


def code_of(response):
    return response.status_code, json.loads(response.body)["error"]["code"]


@pytest.mark.parametrize("fault", ["no pickle", "other answers"])
def test_a_predecessor_that_does_not_load_here_is_not_gone_back_to(tmp_path, fault):
    bad = objects(0)
    bad |= {"model": b"no pickle"} if fault == "no pickle" else {"golden": objects(1)["golden"]}
    promote(tmp_path, bad)
    good = promote(tmp_path, objects(1))
    keyed(tmp_path)
    with serving(tmp_path) as server, server.client() as http:
        answer = http.post(PATH, headers=as_role("admin"))
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "not_servable")
        row = {"json": ROW, "headers": as_role("admin")}
        assert http.post("/predict", **row).json()["model_version"] == good.id
        assert "rollback refused" in server.log
    assert FileReleases(tmp_path / "models").champion().sequence == 4
    assert notes(tmp_path).found() == {}


def test_a_predecessor_that_was_tampered_with_is_not_gone_back_to(root, desk):
    _, old = FileReleases(root / "models").line()
    file = root / "models" / "objects" / old.manifest["objects"]["model"]
    file.chmod(0o644)
    file.write_bytes(b"other")
    answer = admin.roll_back(*desk, by="")
    assert code_of(answer) == (503, "not_trusted")
    assert FileReleases(root / "models").champion().sequence == 4


def test_where_the_pointer_cannot_be_written_the_answer_is_503_without_a_path(
    root, desk, monkeypatch
):
    write = files.write

    def full(path, content):
        if path.name == "champion.json":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, content)

    monkeypatch.setattr(files, "write", full)
    answer = admin.roll_back(*desk, by="")
    assert code_of(answer) == (503, "cannot_record")
    assert answer.headers["retry-after"]
    assert b"/" not in answer.body
    assert FileReleases(root / "models").champion().sequence == 4
    assert notes(root).found() == {}


def test_what_serves_after_a_rollback_is_told_even_where_this_server_did_not_follow(
    root, desk, monkeypatch
):
    new, old = FileReleases(root / "models").line()
    monkeypatch.setattr(desk[2], "refresh", lambda: False)
    told = json.loads(admin.roll_back(*desk, by="").body)
    assert (told["model_version"], told["serving"]) == (old.id, new.id)


def test_a_note_alone_is_believed_in_nothing(root, loop):
    new, old = FileReleases(root / "models").line()
    loop(root)
    before = len(loop(root))
    kept = notes(root)
    kept.leave(Note(new.id, old.id, "nobody", "2025-01-01T00:00:00+00:00"))
    for name, text in {
        "torn": "{",
        "list": "[]",
        "large": " " * 20_000,
        "odd": '{"format": 1}',
    }.items():
        (root / ".homeostat" / "requests" / f"{name}.json").write_text(text)
    (root / ".homeostat" / "requests" / "numbers.json").write_text(
        '{"format": 1, "old": 1, "release": 2, "by": 3, "at": 4}'
    )
    assert sum(note is not None for note in kept.found().values()) == 1
    assert len(loop(root)) == before
    assert kept.found() == {}
    assert FileReleases(root / "models").champion().id == new.id
