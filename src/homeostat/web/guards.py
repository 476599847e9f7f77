"""What a request must pass before it is read: connection, key, content type, size.

Each guard is a plain ASGI layer that takes the next one and its own settings. It gives way, or
answers in the one error shape without looking at the body.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from email.message import Message as Header
from ipaddress import IPv6Address, ip_address

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from homeostat.errors import RowError
from homeostat.settings import Key, Serving
from homeostat.web import errors

OPEN = frozenset({"/health/live", "/health/ready"})
"""Paths that need no key: a balancer asks them."""

_ROLES = {"/predict": "predict", "/feedback": "feedback"}
"""Path → the role it takes besides admin. Reading anything else takes any key."""


class Doorkeeper:
    """Lets in who holds a key; without keys in the settings, who comes over the loopback.

    What counts is the address of the socket on which the connection arrived, not the one the
    server was asked to bind, nor the Host header. A Unix socket is as local as loopback.
    """

    def __init__(self, app: ASGIApp, *, serving: Serving) -> None:
        self._app = app
        self._keys = serving.keys
        self._insecure = serving.insecure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._judge(scope)
        await (refusal or self._app)(scope, receive, send)

    def _judge(self, scope: Scope) -> ASGIApp | None:
        """The answer that refuses the request, or None."""
        if not self._keys:
            return None if self._insecure or is_local(scope.get("server")) else _NOT_LOCAL
        path = route(scope)
        if path in OPEN:
            return None
        key = find_key(Headers(scope=scope), self._keys)
        if key is None:
            return _NO_KEY
        if path in _ROLES:
            enters = key.role in (_ROLES[path], "admin")
        else:
            enters = key.role == "admin" or scope["method"] in ("GET", "HEAD")
        return None if enters else _WRONG_ROLE


_NOT_LOCAL = errors.response(
    403,
    "not_local",
    "without keys this service answers on loopback addresses only.",
    hint="Make a key with `homeostat key`, or set serving.insecure.",
)
_NO_KEY = errors.response(
    401,
    "unauthorized",
    "a valid key is needed.",
    hint="Send it as `Authorization: Bearer` or `X-API-Key`.",
    headers={"WWW-Authenticate": "Bearer"},
)
_WRONG_ROLE = errors.response(403, "forbidden", "the role of this key does not reach this path.")


def route(scope: Scope) -> str:
    """The path as the application's routes name it, below the prefix that a proxy put before."""
    path, prefix = str(scope["path"]), str(scope.get("root_path", ""))
    below = path.removeprefix(prefix)
    return below if below.startswith("/") else path


def is_local(server: Sequence[str | int | None] | None) -> bool:
    """Whether a connection arrived on loopback or on a Unix socket; unknown counts as not."""
    if not server:
        return False
    host, port = server
    try:
        address = ip_address(str(host).split("%")[0])
    except ValueError:
        return port is None  # how ASGI tells a Unix socket; the host is its path
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address.is_loopback


def find_key(headers: Headers, keys: Sequence[Key]) -> Key | None:
    """The key that the request shows, compared with every one in constant time."""
    scheme, _, shown = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        shown = headers.get("x-api-key", "")
    # Starlette decodes headers as Latin-1, so this gives the bytes that were sent.
    digest = hashlib.sha256(shown.strip().encode("latin-1")).hexdigest()
    found = [key for key in keys if hmac.compare_digest(digest, key.sha256)]
    return found[0] if found else None


class JsonOnly:
    """Refuses a POST whose content type is not JSON in UTF-8."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            given = Headers(scope=scope).get("content-type", "")
            if not is_json(given):
                await _NOT_JSON(scope, receive, send)
                return
        await self._app(scope, receive, send)


_NOT_JSON = errors.response(
    415,
    "unsupported_media_type",
    "the content type must be application/json, in UTF-8.",
    hint="Send the header `Content-Type: application/json`.",
)


def is_json(content_type: str) -> bool:
    header = Header()
    header["content-type"] = content_type
    charset = str(header.get_param("charset", "utf-8")).lower()
    return header.get_content_type() == "application/json" and charset in ("utf-8", "utf8")


class BodyLimit:
    """Refuses bodies above `limit` bytes: by their declared length, else while they come in."""

    def __init__(self, app: ASGIApp, *, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared) > self._limit:
            await errors.of(self._too_large())(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise self._too_large()
            return message

        await self._app(scope, counted, send)

    def _too_large(self) -> RowError:
        return RowError(
            "too_large",
            f"the body is larger than {self._limit} bytes.",
            hint="Split the request; see serving.max_body.",
        )
