"""The signed pointer to the champion, and the keys behind it.

It takes a release id and an Ed25519 private key and gives a pointer with its signature. Keys come
from the environment or a file of mode 0600; the public key lies beside the releases, and whatever
is not signed by it is a VerificationError.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from homeostat import files
from homeostat.audit import canonical
from homeostat.errors import ReleaseError, VerificationError
from homeostat.records import Json

FORMAT = 1
DOMAIN = b"homeostat champion pointer 1\n"
"""Signed in front of every pointer, so that its signature can stand for nothing else."""

VARIABLE = "HOMEOSTAT_SIGNING_KEY"
GET_A_KEY = (
    f"Set {VARIABLE}, or put the key that belongs to models/trusted.pub at "
    ".homeostat/signing.key with mode 0600."
)


@dataclass(frozen=True, slots=True)
class Pointer:
    """What a signature vouches for: which release is the champion, and since which change."""

    release: str
    sequence: int  # even: signed when it happened; odd: a rollback signed in advance
    previous: str | None  # the release that a rollback leads to

    @property
    def payload(self) -> bytes:
        return DOMAIN + canonical({"format": FORMAT, **asdict(self)})


@dataclass(frozen=True, slots=True)
class Signed:
    """A pointer, its Ed25519 signature, and the way back that was signed in advance."""

    pointer: Pointer
    signature: bytes
    rollback: Signed | None = None

    @classmethod
    def by(cls, key: Ed25519PrivateKey, pointer: Pointer, rollback: Signed | None = None) -> Signed:
        return cls(pointer, key.sign(pointer.payload), rollback)

    def check(self, key: Ed25519PublicKey) -> None:
        """Raises VerificationError unless the pointer was signed by the owner of `key`."""
        try:
            key.verify(self.signature, self.pointer.payload)
        except InvalidSignature:
            raise VerificationError("the signature is not by the key in trusted.pub.") from None

    def to_json(self) -> dict[str, Json]:
        signature = base64.b64encode(self.signature).decode()
        back = None if self.rollback is None else self.rollback.to_json()
        return {
            "format": FORMAT,
            **asdict(self.pointer),
            "signature": signature,
            "rollback": back,
        }

    @classmethod
    def from_json(cls, raw: Json) -> Signed:
        """Raises VerificationError for what is no pointer of this format."""
        try:
            if raw["format"] != FORMAT:
                raise VerificationError(
                    f"it has format {raw['format']!r}, this version reads {FORMAT}."
                )
            pointer = Pointer(_id(raw["release"]), int(raw["sequence"]), raw["previous"])
            if pointer.previous is not None:
                _id(pointer.previous)
            signature = base64.b64decode(raw["signature"], validate=True)
            back = raw["rollback"]
            return cls(pointer, signature, None if back is None else cls.from_json(back))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            raise VerificationError("it is torn or no pointer.") from None


def _id(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError("no release id")
    return text


def signing_key(
    folder: Path, models: Path, environ: Mapping[str, str], *, make: bool = True
) -> Ed25519PrivateKey | None:
    """The key that signs releases, None where there is none.

    The variable HOMEOSTAT_SIGNING_KEY (PEM, or base64 of the 32 raw bytes) beats
    `folder/signing.key` (PEM, mode 0600). In a project that has neither and was never released
    from, a key is made and stored, unless `make` is False. Raises VerificationError for a key
    that does not belong to `models/trusted.pub`, ReleaseError for one that cannot be used.
    """
    text = environ.get(VARIABLE, "").strip()
    if text:
        key = _from_text(text)
    else:
        found = _from_file(folder / "signing.key", models, make=make)
        if found is None:
            return None
        key = found
    trust(models, key)
    return key


def trust(models: Path, key: Ed25519PrivateKey) -> None:
    """Write `models/trusted.pub` where it is missing; VerificationError when it is another's."""
    path = models / "trusted.pub"
    mine = key.public_key()
    _once(path, mine.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), 0o666)
    if public_key(path).public_bytes_raw() != mine.public_bytes_raw():
        raise VerificationError(
            f"the signing key does not belong to {path}.",
            hint="Use the key that this project was first released with. To change keys, remove "
            "trusted.pub and champion.json and release again.",
        )


def public_key(path: Path) -> Ed25519PublicKey:
    """The trusted public key; VerificationError when it is missing or none."""
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise VerificationError(
            f"{path} is missing or is no Ed25519 public key in PEM; nothing can be verified.",
            hint="Restore it from a copy you trust.",
        )
    return key


def _from_text(text: str) -> Ed25519PrivateKey:
    if "PRIVATE KEY" in text:
        return _from_pem(text.encode(), VARIABLE)
    raw = b""
    with suppress(binascii.Error, ValueError):
        raw = base64.b64decode(text, validate=True)
    if len(raw) != 32:
        raise ReleaseError(f"{VARIABLE} is neither PEM nor base64 of 32 bytes.", hint=GET_A_KEY)
    return Ed25519PrivateKey.from_private_bytes(raw)


def _from_pem(content: bytes, where: str) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        # The cause is left out: it could quote the key.
        raise ReleaseError(f"{where} is no unencrypted Ed25519 key in PEM.", hint=GET_A_KEY)
    return key


def _from_file(path: Path, models: Path, *, make: bool) -> Ed25519PrivateKey | None:
    """The key in the file; made first where nothing was ever signed and `make` says so."""
    signed_before = (models / "trusted.pub").exists() or (models / "champion.json").exists()
    if make and not signed_before:
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        _once(path, pem, 0o600)
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ReleaseError(f"{path} cannot be read: {error.strerror}.") from error
    if mode & 0o077:
        raise ReleaseError(
            f"{path} can be read by others (mode {mode:04o}), so it is not used.",
            hint=f"chmod 600 {path}; if others may have read it, release with a new key.",
        )
    return _from_pem(content, str(path))


def _once(path: Path, content: bytes, mode: int) -> None:
    """Write a file unless it is there; of several processes that try at once, one succeeds."""
    try:
        if not path.exists():
            path.parent.mkdir(mode=0o700 if mode == 0o600 else 0o777, parents=True, exist_ok=True)
            with files.locked(path.parent):
                if not path.exists():
                    files.write(path, content, mode)
    except OSError as error:
        raise ReleaseError(f"{path} cannot be written: {error.strerror}.") from error
