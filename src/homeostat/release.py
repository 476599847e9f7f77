"""Releases: sign, verify, promote and roll back, in files that a server can trust.

It takes candidates with the gate's verdict and stores their bytes by hash, their manifest by its
own hash, and the champion as a pointer signed with Ed25519 that is replaced atomically. It gives
back nothing that was not verified: the very bytes that were hashed are the ones returned.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from homeostat import files
from homeostat.audit import canonical, jsonable
from homeostat.errors import ReleaseError, VerificationError, other_format
from homeostat.records import Candidate, Release, TrainingRows, Verdict, utc
from homeostat.schema import Schema
from homeostat.signing import GET_A_KEY, Pointer, Signed, public_key, signing_key, trust

__all__ = ["FORMAT", "FileReleases", "signing_key"]

FORMAT = 1
"""Of the manifest."""

_ID = re.compile(r"[0-9a-f]{64}")


class FileReleases:
    """Releases in the folder `models`; implements `contracts.Releases`.

    Without `key` it reads, stores candidates, and follows the pre-signed rollback, but cannot
    promote. The public key in `models/trusted.pub` is read once and then kept, so a process never
    starts to trust another one. Errors are VerificationError for whatever is not vouched for, and
    ReleaseError for what cannot be done; in both cases the champion stays as it was.
    """

    def __init__(self, models: Path, key: Ed25519PrivateKey | None = None) -> None:
        self._models = models
        self._key = key
        self._trusted: Ed25519PublicKey | None = None

    def mark(self) -> object:
        """A token that changes when the pointer may have changed; costs one `stat`."""
        try:
            state = self._pointer.stat()
        except OSError:
            return None
        return state.st_ino, state.st_size, state.st_mtime_ns

    def champion(self) -> Release | None:
        """The verified champion with the pointer's sequence; None before the first.

        A pointer put back from an older copy verifies, with a lower sequence: whoever holds a
        release compares the sequences and refuses to go down.
        """
        signed = self._read_pointer()
        if signed is None:
            return None
        release = self.get(signed.pointer.release)
        return Release(release.id, signed.pointer.sequence, release.manifest)

    def get(self, release: str) -> Release:
        """A release by id or unambiguous prefix, verified, with the sequence it was stored for."""
        identity = release if _ID.fullmatch(release) else self._complete(release)
        path = self._manifest(identity)
        content = _verified(path, identity, f"the manifest of release {identity[:12]}")
        manifest = json.loads(content)
        if manifest.get("format") != FORMAT:
            raise other_format(
                ReleaseError, f"release {identity[:12]}", manifest.get("format"), FORMAT
            )
        return Release(identity, manifest["sequence"], manifest)

    def object(self, release: Release, name: str) -> bytes:
        """The verified bytes of one object of a release."""
        digest = release.manifest["objects"].get(name)
        if digest is None:
            raise ReleaseError(
                f"release {release.short} has no object {name!r}.",
                hint=f"It has {', '.join(sorted(release.manifest['objects']))}.",
            )
        what = f"the object {name!r} of release {release.short}"
        return _verified(self._models / "objects" / digest, digest, what)

    def add(self, candidate: Candidate, verdict: Verdict | None, at: datetime) -> Release:
        """Store a candidate with the evidence for it; the pointer does not move.

        Objects come first and the manifest last, so a manifest never names what is not there.
        Raises ReleaseError when `candidate.parent` is not the present champion.
        """
        signed = self._read_pointer()
        self._fence(signed, candidate.parent)
        made = released(candidate, verdict, at, _next(signed))
        for name, digest in made.manifest["objects"].items():
            _store(self._models / "objects" / digest, candidate.objects[name])
        _store(self._manifest(made.id), canonical(made.manifest))
        return self.get(made.id)

    def promote(self, release: Release) -> None:
        """Make a stored release the champion, atomically, once all its bytes are verified.

        Raises ReleaseError without a key, and when the champion changed since it was stored.
        """
        if self._key is None:
            raise ReleaseError(
                f"release {release.short} is unsigned, so no server will load it; it lies in "
                f"{self._manifest(release.id)}.",
                hint=GET_A_KEY,
            )
        trust(self._models, self._key)
        stored = self.get(release.id)
        self._check_objects(stored)
        with files.locked(self._models):
            signed = self._read_pointer()
            self._fence(signed, stored.manifest["parent"])
            if stored.sequence != _next(signed):
                raise _fenced(f"the champion changed and came back since {stored.short} was stored")
            self._point(self._sign(self._key, stored, stored.sequence))

    def roll_back(self, to: str | None = None) -> Release:
        """Make an earlier release of the line (by default the predecessor) the champion again.

        Without a key only the predecessor can be reached, by the pointer that was signed when
        the present champion was promoted. Raises ReleaseError when there is no way back.
        """
        if self._key is not None:
            trust(self._models, self._key)
        with files.locked(self._models):
            signed = self._read_pointer()
            if signed is None or signed.pointer.previous is None:
                raise ReleaseError(
                    "there is no earlier release to go back to.", hint="See homeostat history."
                )
            target = self.get(to or signed.pointer.previous)
            if target.id not in {release.id for release in self.line()[1:]}:
                raise ReleaseError(
                    f"release {target.short} is not an earlier champion of this line.",
                    hint="See homeostat history.",
                )
            self._check_objects(target)
            if self._key is not None:
                back = self._sign(self._key, target, _next(signed))
            else:
                back = self._presigned(signed, target)
            self._point(back)
        return Release(target.id, back.pointer.sequence, target.manifest)

    def line(self) -> Sequence[Release]:
        """The champions from the present one back to the first, newest first, each verified."""
        line = []
        release = self.champion()
        while release is not None:
            line.append(release)
            parent = release.manifest["parent"]
            release = None if parent is None else self.get(parent)
        return line

    def trainings(self) -> list[tuple[str, TrainingRows]]:
        """Which rows fitted each model, and the map, of each release that is stored, by its id."""
        return [
            (release.id, rows)
            for release in self._stored()
            for rows in (*release.members, release.calibration)
            if rows is not None
        ]

    def _stored(self) -> Iterator[Release]:
        for path in sorted((self._models / "manifests").glob("*.json")):
            if _ID.fullmatch(path.stem):
                yield self.get(path.stem)

    def verify(self) -> int:
        """Verify pointer, pre-signed rollback, and every byte of the line; how many releases."""
        signed = self._read_pointer()
        if signed is not None and signed.rollback is not None and signed.pointer.previous:
            self._presigned(signed, self.get(signed.pointer.previous))
        line = self.line()
        for release in line:
            self._check_objects(release)
        return len(line)

    def copies(self, model_pkl: Path, reference_csv: Path) -> list[Path]:
        """Re-make the champion's copies for people where they are missing or differ.

        `model_pkl` is the object `model`; `reference_csv` the object `reference_sample`, Parquet
        turned into CSV, where there is one. Returns the files that were re-made.
        """
        champion = self.champion()
        if champion is None:
            return []
        wanted = {model_pkl: self.object(champion, "model")}
        if "reference_sample" in champion.manifest["objects"]:
            wanted[reference_csv] = _csv(self.object(champion, "reference_sample"))
        return [path for path, content in wanted.items() if _store(path, content)]

    def _point(self, signed: Signed) -> None:
        _store(self._pointer, json.dumps(signed.to_json(), indent=1).encode() + b"\n")

    @property
    def _pointer(self) -> Path:
        return self._models / "champion.json"

    def _manifest(self, identity: str) -> Path:
        return self._models / "manifests" / f"{identity}.json"

    def _complete(self, prefix: str) -> str:
        found = []
        if re.fullmatch(r"[0-9a-f]{1,63}", prefix):
            stems = (p.stem for p in (self._models / "manifests").glob(f"{prefix}*.json"))
            found = sorted(stem for stem in stems if _ID.fullmatch(stem))
        if len(found) != 1:
            problem = f"{len(found)} releases begin" if found else "no release begins"
            raise ReleaseError(f"{problem} with {prefix[:64]!r}.", hint="See homeostat history.")
        return found[0]

    def _check_objects(self, release: Release) -> None:
        for name in release.manifest["objects"]:
            self.object(release, name)

    def _fence(self, signed: Signed | None, parent: str | None) -> None:
        champion = None if signed is None else signed.pointer.release
        if parent != champion:
            now, then = (("none" if x is None else x[:12]) for x in (champion, parent))
            raise _fenced(f"the candidate challenges {then}, but the champion is {now}")

    def _sign(self, key: Ed25519PrivateKey, release: Release, sequence: int) -> Signed:
        """The pointer to `release`, with the way back to its parent one sequence above it."""
        parent: str | None = release.manifest["parent"]
        back = None
        if parent is not None:
            before = self.get(parent).manifest["parent"]
            back = Signed.by(key, Pointer(parent, sequence + 1, before))
        return Signed.by(key, Pointer(release.id, sequence, parent), back)

    def _presigned(self, signed: Signed, target: Release) -> Signed:
        """The way back to `target` that was signed in advance, verified to be the one meant."""
        now, back = signed.pointer, signed.rollback
        if back is None or target.id != now.previous:
            raise ReleaseError(
                f"going back to {target.short} needs the signing key: only the predecessor of a "
                "promoted champion is signed in advance.",
                hint=GET_A_KEY,
            )
        if (back.pointer.release, back.pointer.sequence) != (now.previous, now.sequence + 1):
            raise self._distrust("its pre-signed rollback belongs to another pointer.")
        self._check(back)
        return back

    def _check(self, signed: Signed) -> None:
        if self._trusted is None:
            self._trusted = public_key(self._models / "trusted.pub")
        try:
            signed.check(self._trusted)
        except VerificationError as error:
            raise self._distrust(error.message) from None

    def _read_pointer(self) -> Signed | None:
        try:
            signed = Signed.from_json(json.loads(self._pointer.read_bytes()))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._distrust(f"it cannot be read ({error.strerror}).") from error
        except VerificationError as error:
            raise self._distrust(error.message) from None
        except (ValueError, RecursionError):
            raise self._distrust("it is torn or no pointer.") from None
        self._check(signed)
        return signed

    def _distrust(self, why: str) -> VerificationError:
        return VerificationError(
            f"{self._pointer} is not to be trusted: {why} Nothing was loaded.",
            hint="Restore models/ from a copy you trust; a running server keeps its release.",
        )


def _next(signed: Signed | None) -> int:
    """The even number after the pointer's: above it and above the rollback signed with it."""
    sequence = 0 if signed is None else signed.pointer.sequence
    return sequence - sequence % 2 + 2


def _fenced(why: str) -> ReleaseError:
    return ReleaseError(
        f"{why}; another change of champion came first.",
        hint="Nothing was changed. Train again, against the present champion.",
    )


def released(candidate: Candidate, verdict: Verdict | None, at: datetime, sequence: int) -> Release:
    """The release that a candidate becomes in any store: its manifest, and as its id the SHA-256
    of that. Raises ReleaseError for a candidate that cannot be served.
    """
    objects = sorted(candidate.objects.items())
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "kind": candidate.kind,
        "created_at": utc(at),
        "sequence": sequence,
        "parent": candidate.parent,
        "task": _task(candidate),
        "objects": {name: hashlib.sha256(content).hexdigest() for name, content in objects},
        "twin": candidate.twin,
        "training": candidate.training,
        "gate": verdict,
        "seconds": candidate.seconds,
        "params": candidate.params,
        "versions": candidate.versions,
        "seed": candidate.seed,
    }
    if candidate.calibration is not None:  # so that all other releases keep their ids
        manifest["calibration"] = candidate.calibration
    if len(candidate.members) > 1:  # as above
        manifest["members"] = candidate.members
    plain = jsonable(manifest)
    return Release(hashlib.sha256(canonical(plain)).hexdigest(), sequence, plain)


def _task(candidate: Candidate) -> str:
    """The task, from the candidate's schema; ReleaseError for a candidate that cannot be served."""
    missing = [name for name in ("model", "schema") if name not in candidate.objects]
    if missing:
        raise ReleaseError(
            f"the candidate is incomplete: it has no {' and no '.join(missing)}.",
            hint="Train it again.",
        )
    try:
        return Schema.from_json(candidate.objects["schema"]).target.task
    except (ValueError, KeyError, TypeError):
        raise ReleaseError(
            "the candidate's schema cannot be read.", hint="Train it again."
        ) from None


def _verified(path: Path, digest: str, what: str) -> bytes:
    """The bytes of a file, read once, that have this SHA-256."""
    hint = "Restore models/ from a copy, or roll back to an earlier release."
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise VerificationError(f"{what} is missing: {path}.", hint=hint) from None
    except OSError as error:
        raise VerificationError(
            f"{what} cannot be read: {path}: {error.strerror}.", hint=hint
        ) from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise VerificationError(
            f"{what} was altered: {path} does not have the hash it is named by. "
            "Nothing was loaded.",
            hint=hint,
        )
    return content


def _store(path: Path, content: bytes) -> bool:
    """Write `content` unless the file holds it already; whether it wrote."""
    try:
        if path.is_file() and path.read_bytes() == content:
            return False
        files.write(path, content)
    except OSError as error:
        raise ReleaseError(
            f"{path} cannot be written: {error.strerror}.",
            hint="Free disk space or mend the permissions; the champion is as it was.",
        ) from error
    return True


def _csv(parquet: bytes) -> bytes:
    """Parquet as CSV; null is an empty field, an empty string is quoted."""
    import pyarrow.csv
    import pyarrow.parquet

    out = io.BytesIO()
    pyarrow.csv.write_csv(pyarrow.parquet.read_table(io.BytesIO(parquet)), out)
    return out.getvalue()
