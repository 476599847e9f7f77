"""Sessions: who looks at the page, what they may do, and that it was they who asked.

Takes the keys of the settings and a secret of this project. Gives cookies that this project signed,
and a token by which a form shows that it came from the page.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from homeostat import files
from homeostat.listening import Key

LASTS = 7 * 86_400  # seconds
RENEWED = 86_400  # seconds after which a session in use begins anew
LOCAL = "someone on this machine"
"""Who asks where no keys are set, as the audit chain tells it."""
STRANGER = "someone without a key"
"""The same of one from elsewhere, whom `serving.insecure` lets look, and no more."""


@dataclass(frozen=True, slots=True)
class Session:
    """One visitor."""

    name: str  # of the key
    admin: bool
    token: str  # that forms carry; empty for one that shows its key with each request
    renewed: str = ""  # the cookie's new value, where it is time for one


class Sessions:
    """Opens and reads sessions; a key that is taken from the settings ends those it opened."""

    def __init__(
        self, secret: bytes, keys: Sequence[Key], clock: Callable[[], float] = time.time
    ) -> None:
        self._secret = secret
        self._keys = {self._signed("key", key.sha256): key for key in keys}
        self._clock = clock

    @property
    def cookie(self) -> str:
        """The cookie's name: browsers tell hosts apart and not ports, and so not projects."""
        return f"homeostat_page_{self._signed('name', '')[:8]}"

    def open(self, key: Key | None) -> str:
        """The cookie's value for a visitor with this key; without keys, for anybody."""
        return self._made(self._signed("key", key.sha256) if key else "", secrets.token_hex(8))

    def _made(self, key: str, salt: str) -> str:
        held = {"key": key, "until": self._clock() + LASTS, "salt": salt}
        body = base64.urlsafe_b64encode(json.dumps(held).encode()).decode()
        return f"{body}.{self._signed('session', body)}"

    def read(self, cookie: str) -> Session | None:
        """The session of a cookie; None for one that was not signed here or is over."""
        body, _, signature = cookie.partition(".")
        if not hmac.compare_digest(signature.encode(), self._signed("session", body).encode()):
            return None
        with suppress(ValueError, KeyError, TypeError):
            held = json.loads(base64.urlsafe_b64decode(body))
            left = held["until"] - self._clock()
            if left < 0:
                return None
            token = self._signed("form", f"{held['key']}:{held['salt']}")
            anew = self._made(held["key"], held["salt"]) if left < LASTS - RENEWED else ""
            if not self._keys and not held["key"]:
                return Session(LOCAL, admin=True, token=token, renewed=anew)
            key = self._keys.get(held["key"])
            if key is not None:
                return Session(key.name, admin=key.role == "admin", token=token, renewed=anew)
        return None

    def shown(self, key: Key) -> Session:
        """The session of a request that shows a key itself."""
        return Session(key.name, admin=key.role == "admin", token="")

    def _signed(self, purpose: str, text: str) -> str:
        made = hmac.new(self._secret, f"{purpose}:{text}".encode("utf-8", "replace"), "sha256")
        return made.hexdigest()


def secret(home: Path) -> bytes:
    """The secret of this project, made where there is none; `home` is its own folder."""
    path = home / "page.key"
    with suppress(FileNotFoundError):
        held = path.read_bytes()
        if len(held) == hashlib.sha256().digest_size:
            return held
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = secrets.token_bytes(32)
    files.write(path, made, mode=0o600)
    return made
