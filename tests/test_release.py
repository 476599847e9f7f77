"""Releases: what is verified, what is atomic, who may promote, and how to get back."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import stat
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_public_key,
)

from homeostat import files
from homeostat.errors import ReleaseError, VerificationError
from homeostat.records import Candidate, TrainingRows, Verdict, Window
from homeostat.release import FileReleases, signing_key
from homeostat.schema import Feature, Schema, Target
from homeostat.signing import VARIABLE

AT = datetime(2013, 2, 1, tzinfo=UTC)
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))
SCHEMA = Schema((Feature("hour", "number"),), Target("late", "binary", "int", ("0", "1")))
VERDICT = Verdict(
    promote=True,
    reason="better",
    metric="log_loss",
    champion=0.5,
    challenger=0.4,
    difference=-0.1,
    low=float("nan"),
    high=-0.05,
    rows=700,
    blocks=7,
    window=Window(AT, AT + timedelta(days=7)),
)


def parquet(table):
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


def candidate(parent=None, model=b"model one", **objects):
    return Candidate(
        kind="first" if parent is None else "retrain",
        parent=parent,
        objects={"model": model, "schema": SCHEMA.to_json().encode(), **objects},
        training=TrainingRows(1000, AT - timedelta(days=31), AT, AT, "0" * 64),
        seconds=1.5,
        params={"depth": "3"},
        versions={"python": "3.11"},
        seed=7,
    )


@pytest.fixture
def models(tmp_path):
    return tmp_path / "models"


@pytest.fixture
def releases(models):
    return FileReleases(models, KEY)


def grow(releases, count):
    """Promote `count` releases one after the other; all of them, oldest first."""
    made = []
    for number in range(count):
        parent = made[-1].id if made else None
        made.append(releases.add(candidate(parent, f"model {number}".encode()), VERDICT, AT))
        releases.promote(made[-1])
    return made


def pointer(models):
    return json.loads((models / "champion.json").read_text())


def rewrite(models, **fields):
    (models / "champion.json").write_text(json.dumps({**pointer(models), **fields}))


def test_an_empty_folder_has_no_champion_and_no_line(releases):
    assert releases.champion() is None
    assert releases.line() == []
    assert releases.mark() is None
    assert releases.verify() == 0


def test_a_promoted_candidate_is_the_champion_that_a_server_without_key_reads(releases, models):
    first = releases.add(candidate(), None, AT)
    assert releases.champion() is None
    releases.promote(first)
    server = FileReleases(models)
    assert server.champion() == first
    assert server.object(first, "model") == b"model one"
    assert first.cutoff == AT
    assert first.manifest["task"] == "binary"
    assert first.manifest["gate"] is None


def test_the_id_is_the_hash_of_the_canonical_manifest(releases, models):
    first, second = grow(releases, 2)
    content = (models / "manifests" / f"{second.id}.json").read_bytes()
    assert hashlib.sha256(content).hexdigest() == second.id
    manifest = json.loads(content)
    assert content.decode() == json.dumps(
        manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    assert manifest["parent"] == first.id
    assert manifest["created_at"] == "2013-02-01T00:00:00+00:00"
    assert manifest["objects"]["model"] == hashlib.sha256(b"model 1").hexdigest()
    assert manifest["gate"]["low"] is None
    assert manifest["gate"]["window"]["end"] == "2013-02-08T00:00:00+00:00"


def test_the_same_candidate_stored_twice_is_the_same_release(releases):
    assert releases.add(candidate(), None, AT) == releases.add(candidate(), None, AT)


def test_a_release_is_found_by_an_unambiguous_prefix(releases):
    first, second = grow(releases, 2)
    assert releases.get(first.short) == first
    assert releases.get(second.id) == second
    for wrong in ("", "zz", "../champion", "0" * 63):
        with pytest.raises(ReleaseError, match="begin"):
            releases.get(wrong)


def test_the_line_goes_from_the_champion_back_to_the_first(releases):
    made = grow(releases, 3)
    assert [release.id for release in releases.line()] == [r.id for r in reversed(made)]
    assert releases.verify() == 3


def test_the_mark_changes_with_every_change_of_champion(releases):
    grow(releases, 2)
    before = releases.mark()
    assert releases.mark() == before
    releases.roll_back()
    assert releases.mark() != before


# --- what is tampered with is not loaded ---


@pytest.mark.parametrize("change", [b"evil", b"", None], ids=["altered", "emptied", "missing"])
def test_an_object_that_is_not_its_hash_is_never_returned(releases, models, change):
    (first,) = grow(releases, 1)
    path = models / "objects" / first.manifest["objects"]["model"]
    path.unlink() if change is None else path.write_bytes(change)
    with pytest.raises(VerificationError, match="object 'model'") as error:
        FileReleases(models).object(first, "model")
    assert error.value.hint
    with pytest.raises(VerificationError):
        releases.verify()


def test_a_manifest_that_is_not_its_id_is_never_read(releases, models):
    (first,) = grow(releases, 1)
    path = models / "manifests" / f"{first.id}.json"
    path.write_bytes(path.read_bytes().replace(b'"seed":7', b'"seed":8'))
    with pytest.raises(VerificationError, match=r"manifest of release .* was altered"):
        FileReleases(models).champion()
    path.unlink()
    with pytest.raises(VerificationError, match=r"manifest of release .* is missing"):
        FileReleases(models).champion()


@pytest.mark.parametrize(
    "fields",
    [
        {"sequence": 1_000},
        {"release": "0" * 64},
        {"previous": None},
        {"signature": base64.b64encode(bytes(64)).decode()},
        {"signature": "AAAA"},
        {"signature": "not base64!"},
        {"signature": None},
        {"sequence": None},
        {"sequence": float("nan")},
        {"sequence": float("inf")},
        {"release": "\ud800"},
        {"release": "../trusted.pub"},
        {"previous": 7},
        {"format": 2},
    ],
    ids=str,
)
def test_a_pointer_that_was_altered_is_refused(releases, models, fields):
    grow(releases, 2)
    rewrite(models, **fields)
    with pytest.raises(VerificationError, match="not to be trusted"):
        FileReleases(models).champion()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000], ids=repr)
def test_a_torn_pointer_is_refused_and_not_read_as_no_champion(releases, models, content):
    grow(releases, 1)
    (models / "champion.json").write_bytes(content)
    with pytest.raises(VerificationError, match="torn or no pointer"):
        FileReleases(models).champion()


def test_every_truncation_of_the_pointer_is_refused(releases, models):
    grow(releases, 2)
    whole = (models / "champion.json").read_bytes()
    for length in range(0, len(whole) - 2, 7):
        (models / "champion.json").write_bytes(whole[:length])
        with pytest.raises(VerificationError):
            FileReleases(models).champion()


def test_a_pointer_signed_by_a_foreign_key_is_refused(releases, models, tmp_path):
    foreign = FileReleases(tmp_path / "foreign", OTHER)
    grow(foreign, 1)
    grow(releases, 1)
    (models / "champion.json").write_bytes((tmp_path / "foreign/champion.json").read_bytes())
    with pytest.raises(VerificationError, match="signature"):
        FileReleases(models).champion()


def test_a_running_process_does_not_come_to_trust_another_key(releases, models, tmp_path):
    foreign = FileReleases(tmp_path / "foreign", OTHER)
    grow(foreign, 1)
    grow(releases, 1)
    server = FileReleases(models)
    assert server.champion() is not None
    for name in ("champion.json", "trusted.pub"):
        (models / name).write_bytes((tmp_path / "foreign" / name).read_bytes())
    with pytest.raises(VerificationError, match="signature"):
        server.champion()


def test_without_the_public_key_nothing_is_loaded(releases, models):
    grow(releases, 1)
    (models / "trusted.pub").unlink()
    with pytest.raises(VerificationError, match=r"trusted\.pub is missing"):
        FileReleases(models).champion()


def test_an_older_pointer_put_back_shows_in_its_sequence(releases, models):
    grow(releases, 1)
    old = (models / "champion.json").read_bytes()
    server = FileReleases(models)
    grown = server.champion().sequence
    releases.promote(releases.add(candidate(releases.champion().id, b"two"), VERDICT, AT))
    assert server.champion().sequence > grown
    (models / "champion.json").write_bytes(old)
    assert server.champion().sequence == grown


# --- a crash between any two writes leaves the champion as it was ---


@pytest.mark.parametrize("survived", range(6))
def test_a_crash_at_any_write_leaves_the_champion_intact(
    releases, models, monkeypatch, survived, tmp_path
):
    (first,) = grow(releases, 1)
    write, left = files.write, [survived]

    def fail(path, content, mode=0o666):
        if not left[0]:
            raise OSError(28, "No space left on device")
        left[0] -= 1
        write(path, content, mode)

    monkeypatch.setattr(files, "write", fail)
    challenger = candidate(first.id, b"two", extra=b"extra")
    if survived < 4:  # two new objects (the schema is known already), manifest, pointer
        with pytest.raises(ReleaseError, match="No space left"):
            releases.promote(releases.add(challenger, VERDICT, AT))
        monkeypatch.undo()
        assert FileReleases(models).champion() == first
        assert releases.verify() == 1
        releases.promote(releases.add(challenger, VERDICT, AT))
    else:
        releases.promote(releases.add(challenger, VERDICT, AT))
    assert FileReleases(models).champion().manifest["parent"] == first.id
    assert not list(models.rglob("*.tmp"))


def test_a_full_disk_leaves_neither_a_half_file_nor_a_temporary_one(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    (tmp_path / "a").write_bytes(b"old")
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write(tmp_path / "a", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_an_object_damaged_on_disk_is_mended_when_it_is_stored_again(releases, models):
    first = releases.add(candidate(), None, AT)
    (models / "objects" / first.manifest["objects"]["model"]).write_bytes(b"damaged")
    with pytest.raises(VerificationError):
        releases.promote(first)
    assert releases.champion() is None
    releases.promote(releases.add(candidate(), None, AT))
    assert releases.verify() == 1


# --- fencing ---


def test_of_two_retrains_at_once_the_second_is_fenced_off(releases, models):
    (first,) = grow(releases, 1)
    one = releases.add(candidate(first.id, b"one"), VERDICT, AT)
    other = FileReleases(models, KEY)
    two = other.add(candidate(first.id, b"two"), VERDICT, AT)
    releases.promote(one)
    with pytest.raises(ReleaseError, match="another change of champion came first"):
        other.promote(two)
    with pytest.raises(ReleaseError, match="another change of champion came first"):
        other.add(candidate(first.id, b"three"), VERDICT, AT)
    assert releases.champion() == one


def test_a_challenger_is_fenced_off_even_when_its_champion_came_back(releases):
    (first,) = grow(releases, 1)
    one = releases.add(candidate(first.id, b"one"), VERDICT, AT)
    two = releases.add(candidate(first.id, b"two"), VERDICT, AT)
    releases.promote(one)
    releases.roll_back()
    assert releases.champion().id == first.id
    with pytest.raises(ReleaseError, match="came back"):
        releases.promote(two)


def test_a_candidate_from_another_copy_of_the_project_is_fenced_off(releases, models, tmp_path):
    (first,) = grow(releases, 1)
    clone = FileReleases(tmp_path / "clone", KEY)
    clone.promote(clone.add(candidate(model=b"another first"), None, AT))
    stray = clone.add(candidate(clone.champion().id, b"two"), VERDICT, AT)
    for path in (tmp_path / "clone").glob("*/*"):
        (models / path.parent.name / path.name).write_bytes(path.read_bytes())
    assert releases.get(stray.id).sequence == first.sequence + 2
    with pytest.raises(ReleaseError, match="the champion is"):
        releases.promote(stray)
    assert releases.champion() == first


def test_a_candidate_without_model_or_readable_schema_is_refused(releases):
    bare = replace(candidate(), objects={"schema": b"{}"})
    with pytest.raises(ReleaseError, match="no model"):
        releases.add(bare, None, AT)
    with pytest.raises(ReleaseError, match="schema"):
        releases.add(candidate(schema=b"no json"), None, AT)
    assert releases.champion() is None


# --- without a key ---


def test_without_a_key_a_candidate_is_stored_but_not_promoted(releases, models):
    (first,) = grow(releases, 1)
    keyless = FileReleases(models)
    stored = keyless.add(candidate(first.id, b"two"), VERDICT, AT)
    assert stored.sequence == first.sequence + 2
    with pytest.raises(ReleaseError, match="unsigned") as error:
        keyless.promote(stored)
    assert str(models / "manifests" / f"{stored.id}.json") in error.value.message
    assert VARIABLE in error.value.hint
    assert keyless.champion() == first
    releases.promote(stored)
    assert keyless.champion() == stored


def test_a_key_that_is_not_trusted_cannot_promote(releases, models):
    (first,) = grow(releases, 1)
    foreign = FileReleases(models, OTHER)
    stored = foreign.add(candidate(first.id, b"two"), VERDICT, AT)
    with pytest.raises(VerificationError, match="does not belong"):
        foreign.promote(stored)
    assert releases.champion() == first


# --- rolling back ---


@pytest.mark.parametrize("key", [KEY, None], ids=["key", "no key"])
def test_a_rollback_beats_what_it_undoes_and_the_next_promotion_beats_both(models, releases, key):
    first, second = grow(releases, 2)
    back = FileReleases(models, key).roll_back()
    assert back.id == first.id
    assert back.sequence > second.sequence
    assert FileReleases(models).champion() == back
    third = releases.add(candidate(first.id, b"three"), VERDICT, AT)
    releases.promote(third)
    assert releases.champion().sequence > back.sequence
    assert [release.id for release in releases.line()] == [third.id, first.id]


def test_without_a_key_only_the_predecessor_is_reached_and_only_once(releases, models):
    first, second, _ = grow(releases, 3)
    server = FileReleases(models)
    with pytest.raises(ReleaseError, match="needs the signing key"):
        server.roll_back(first.id)
    assert server.roll_back().id == second.id
    with pytest.raises(ReleaseError, match="needs the signing key"):
        server.roll_back()
    assert server.champion().id == second.id
    assert releases.roll_back().id == first.id


def test_with_a_key_any_earlier_champion_of_the_line_is_reached(releases):
    first, *_ = grow(releases, 3)
    assert releases.roll_back(first.short).id == first.id
    assert [release.id for release in releases.line()] == [first.id]
    with pytest.raises(ReleaseError, match="no earlier release"):
        releases.roll_back()


def test_a_release_that_is_no_earlier_champion_of_the_line_is_not_reached(releases):
    first, second = grow(releases, 2)
    releases.roll_back()
    third = releases.add(candidate(first.id, b"three"), VERDICT, AT)
    releases.promote(third)
    for other in (second, third):
        with pytest.raises(ReleaseError, match="not an earlier champion"):
            releases.roll_back(other.id)
    assert releases.champion() == third


def test_a_rollback_after_a_rollback_goes_further_back_and_not_to_and_fro(releases, models):
    first, second, _ = grow(releases, 3)
    assert releases.roll_back().id == second.id
    assert FileReleases(models).roll_back().id == first.id


def test_there_is_no_way_back_from_nothing_or_from_the_first(releases):
    with pytest.raises(ReleaseError, match="no earlier release"):
        releases.roll_back()
    grow(releases, 1)
    with pytest.raises(ReleaseError, match="no earlier release"):
        releases.roll_back()


def test_a_rollback_to_a_damaged_release_is_refused(releases, models):
    first, second = grow(releases, 2)
    (models / "objects" / first.manifest["objects"]["model"]).write_bytes(b"damaged")
    with pytest.raises(VerificationError, match="was altered"):
        FileReleases(models).roll_back()
    assert releases.champion() == second


def test_a_presigned_rollback_of_another_pointer_is_refused(releases, models):
    grow(releases, 2)
    stale = pointer(models)["rollback"]
    champion = releases.champion().id
    releases.promote(releases.add(candidate(champion, b"next"), VERDICT, AT))
    server = FileReleases(models)
    for back in (stale, {**pointer(models)["rollback"], "sequence": 99}):
        rewrite(models, rollback=back)
        with pytest.raises(VerificationError, match="another pointer"):
            server.roll_back()
        with pytest.raises(VerificationError, match="another pointer"):
            server.verify()
    assert server.champion() is not None


def test_a_presigned_rollback_without_the_right_signature_is_refused(releases, models):
    _, second = grow(releases, 2)
    back = {**pointer(models)["rollback"], "signature": pointer(models)["signature"]}
    rewrite(models, rollback=back)
    with pytest.raises(VerificationError, match="signature"):
        FileReleases(models).roll_back()
    assert FileReleases(models).champion() == second


# --- copies for people ---


def test_copies_are_made_when_missing_or_different_and_left_alone_otherwise(releases, tmp_path):
    model, reference = tmp_path / "m" / "model.pkl", tmp_path / "d" / "reference.csv"
    assert releases.copies(model, reference) == []
    table = pa.table({"hour": [1.5, None], "carrier": ['a,\n"b', ""]})
    releases.promote(releases.add(candidate(reference_sample=parquet(table)), None, AT))
    assert releases.copies(model, reference) == [model, reference]
    assert model.read_bytes() == b"model one"
    with reference.open(newline="") as file:
        assert list(csv.reader(file)) == [["hour", "carrier"], ["1.5", 'a,\n"b'], ["", ""]]
    assert releases.copies(model, reference) == []
    model.write_bytes(b"edited by hand")
    assert releases.copies(model, reference) == [model]
    reference.unlink()
    assert releases.copies(model, reference) == [reference]


def test_a_release_without_a_sample_yields_only_the_model(releases, tmp_path):
    grow(releases, 1)
    assert releases.copies(tmp_path / "model.pkl", tmp_path / "reference.csv") == [
        tmp_path / "model.pkl"
    ]


# --- keys ---


def pem(key):
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def raw(key):
    return base64.b64encode(key.private_bytes_raw()).decode()


def test_the_first_call_makes_a_key_that_only_the_owner_can_read(tmp_path, models):
    key = signing_key(tmp_path / ".homeostat", models, {})
    path = tmp_path / ".homeostat" / "signing.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    trusted = load_pem_public_key((models / "trusted.pub").read_bytes())
    assert trusted.public_bytes_raw() == key.public_key().public_bytes_raw()
    again = signing_key(tmp_path / ".homeostat", models, {})
    assert again.private_bytes_raw() == key.private_bytes_raw()


def test_no_key_is_made_where_that_is_not_allowed_or_another_is_trusted(tmp_path, models):
    assert signing_key(tmp_path, models, {}, make=False) is None
    assert not (tmp_path / "signing.key").exists()
    assert not models.exists()
    signing_key(tmp_path, models, {VARIABLE: raw(KEY)})
    assert signing_key(tmp_path, models, {}) is None
    assert not (tmp_path / "signing.key").exists()


@pytest.mark.parametrize("form", [pem, raw], ids=["pem", "raw"])
def test_the_variable_beats_the_file_and_is_trusted_from_then_on(tmp_path, models, form):
    key = signing_key(tmp_path, models, {VARIABLE: form(KEY)})
    assert key.private_bytes_raw() == KEY.private_bytes_raw()
    assert (models / "trusted.pub").exists()
    (tmp_path / "signing.key").write_text("no key")
    assert signing_key(tmp_path, models, {VARIABLE: form(KEY)}) is not None


def test_a_key_that_does_not_belong_to_the_trusted_one_is_refused(tmp_path, models):
    signing_key(tmp_path, models, {VARIABLE: raw(KEY)})
    with pytest.raises(VerificationError, match="does not belong"):
        signing_key(tmp_path, models, {VARIABLE: raw(OTHER)})


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_key_that_others_can_read_is_not_used(tmp_path, models, mode):
    signing_key(tmp_path, models, {})
    (tmp_path / "signing.key").chmod(mode)
    with pytest.raises(ReleaseError, match="chmod 600"):
        signing_key(tmp_path, models, {})


@pytest.mark.parametrize(
    "text", ["hunter2", "-----BEGIN PRIVATE KEY-----\nhunter2", "aHVudGVyMg=="]
)
def test_an_unusable_key_is_refused_without_being_quoted(tmp_path, models, text):
    with pytest.raises(ReleaseError) as error:
        signing_key(tmp_path, models, {VARIABLE: text})
    assert VARIABLE in str(error.value)
    assert "hunter" not in str(error.value)
    assert "aHVud" not in str(error.value)
    assert error.value.__cause__ is None
    assert not (models / "trusted.pub").exists()


def test_a_damaged_key_file_is_refused_and_not_replaced(tmp_path, models):
    (tmp_path / "signing.key").touch(mode=0o600)
    with pytest.raises(ReleaseError, match="no unencrypted Ed25519 key"):
        signing_key(tmp_path, models, {})
    assert (tmp_path / "signing.key").read_bytes() == b""
