"""What a request must pass before it is read: connection, key, content type, size.

`Guards` takes the settings of serving and the head of a request. It gives the answer in the one
error shape that refuses it, or None, and a body that can neither grow nor wait without bound.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Sequence
from email.message import Message as Header
from functools import lru_cache
from ipaddress import IPv6Address, ip_address

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from homeostat.errors import BusyError, RowError
from homeostat.settings import Key, Serving
from homeostat.web import errors

OPEN = frozenset({"/health/live", "/health/ready", "/health", "/ping"})
"""Paths that need no key: a balancer asks them."""

_ROLES = {"/predict": "predict", "/invocations": "predict", "/feedback": "feedback"}
"""Path → the role it takes besides admin. Reading anything else takes any key."""


class Guards:
    """What the settings ask of a request.

    Lets in who holds a key; without keys in the settings, who comes over the loopback. What
    counts is the address of the socket on which the connection arrived, not the one the server
    was asked to bind, nor the Host header. A Unix socket is as local as loopback.
    """

    def __init__(self, serving: Serving) -> None:
        self._keys = serving.keys
        self._insecure = serving.insecure
        self._limit = serving.max_body
        self._timeout = serving.timeout.total_seconds()

    def refusal(self, scope: Scope) -> Response | None:
        """The answer that refuses the request by its head, or None."""
        headers = Headers(scope=scope)
        refused = self._stranger(scope, headers)
        if refused is not None or scope["method"] != "POST":
            return refused
        if not is_json(headers.get("content-type", "")):
            return _NOT_JSON
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self._limit:
            return errors.of(self._too_large())
        return None

    def _stranger(self, scope: Scope, headers: Headers) -> Response | None:
        if not self._keys:
            server = scope.get("server")
            local = self._insecure or is_local(server and tuple(server))
            return None if local else _NOT_LOCAL
        path = route(scope)
        if path in OPEN:
            return None
        key = find_key(headers, self._keys)
        if key is None:
            return _NO_KEY
        if path in _ROLES:
            enters = key.role in (_ROLES[path], "admin")
        else:
            enters = key.role == "admin" or scope["method"] in ("GET", "HEAD")
        return None if enters else _WRONG_ROLE

    def bounded(self, receive: Receive) -> Receive:
        """`receive` that raises RowError when the body grows too large, and BusyError when it
        takes longer than the settings say.
        """
        received, deadline, whole = 0, asyncio.get_running_loop().time() + self._timeout, False

        async def counted() -> Message:
            nonlocal received, whole
            if whole:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise BusyError("timeout", "the body took too long.") from None
            received += len(message.get("body", b""))
            if received > self._limit:
                raise self._too_large()
            whole = not message.get("more_body", False)
            return message

        return counted

    async def body(self, receive: Receive) -> bytes:
        """The whole body. Raises as `bounded` does, and ClientDisconnect."""
        parts = []
        bounded = self.bounded(receive)
        while True:
            message = await bounded()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    def _too_large(self) -> RowError:
        return RowError(
            "too_large",
            f"the body is larger than {self._limit} bytes.",
            hint="Split the request; see serving.max_body.",
        )


class Guarded:
    """The ASGI layer that lets nothing in which the guards refuse."""

    def __init__(self, app: ASGIApp, *, guards: Guards) -> None:
        self._app = app
        self._guards = guards

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refused = self._guards.refusal(scope)
        if refused is not None:
            await refused(scope, receive, send)
            return
        await self._app(scope, self._guards.bounded(receive), send)


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


@lru_cache
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


_NOT_JSON = errors.response(
    415,
    "unsupported_media_type",
    "the content type must be application/json, in UTF-8.",
    hint="Send the header `Content-Type: application/json`.",
)


@lru_cache
def is_json(content_type: str) -> bool:
    header = Header()
    header["content-type"] = content_type
    try:
        charset = str(header.get_param("charset", "utf-8")).lower()
    except (TypeError, ValueError):  # so the parser says of parameters that are none
        return False
    return header.get_content_type() == "application/json" and charset in ("utf-8", "utf8")
