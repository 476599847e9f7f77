"""What a request must pass before it is read: connection, host, key, content type, size.

`Guards` takes the settings of serving and the head of a request. It gives the answer in the one
error shape that refuses it, or None, and a body that can neither grow nor wait without bound, nor
together with all others take more than its share of memory.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
from collections.abc import Sequence
from email.message import Message as Header
from functools import lru_cache
from ipaddress import IPv6Address, ip_address

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from homeostat.errors import BusyError, RowError
from homeostat.listening import Key, Serving
from homeostat.web import errors

OPEN = frozenset({"/health/live", "/health/ready", "/health", "/ping"})
"""Paths that need no key: a balancer asks them."""

_ROLES = {"/predict": "predict", "/invocations": "predict", "/feedback": "feedback"}
"""Path → the role it takes besides admin. Reading anything else takes any key."""


class Guards:
    """What the settings ask of a request.

    Lets in who holds a key; without keys in the settings, who comes over the loopback. What
    counts is the address of the socket on which the connection arrived, not the one the server
    was asked to bind; a Unix socket is as local as loopback. On loopback the Host header has to
    name it, too, or a page of another site, whose name was made to lead here, could ask from
    within a browser of this machine.
    """

    def __init__(self, serving: Serving) -> None:
        self._keys = serving.keys
        self._insecure = serving.insecure
        self._limit = serving.max_body
        self._timeout = serving.timeout.total_seconds()
        self._room = Room(serving.max_reception)

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
            return errors.of(_too_large(self._limit))
        return None

    def _stranger(self, scope: Scope, headers: Headers) -> Response | None:
        if not self._keys:
            return None if self._insecure else remote(scope.get("server"), headers.get("host"))
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

    def reception(self, receive: Receive) -> Reception:
        """What is to be asked for the body of one request, instead of `receive`."""
        return Reception(receive, self._limit, self._timeout, self._room)


class Room:
    """The bytes of bodies that all requests hold together."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0


class Reception:
    """The body of one request, which can neither grow nor wait without bound.

    A body that comes in parts takes room from its first part until `close`; one that comes in one
    piece was in memory before anybody could refuse it, and takes none.
    """

    def __init__(self, receive: Receive, limit: int, timeout: float, room: Room) -> None:
        self._receive = receive
        self._limit = limit
        self._deadline = asyncio.get_running_loop().time() + timeout
        self._room = room
        self._held = self._received = 0
        self._whole = False

    async def __call__(self) -> Message:
        """The next message. Raises RowError when the body grows too large, and BusyError when it
        takes longer than the settings say or finds no room beside the others.
        """
        if self._whole:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise BusyError("timeout", "the body took too long.") from None
        self._received += len(message.get("body", b""))
        if self._received > self._limit:
            raise _too_large(self._limit)
        self._whole = not message.get("more_body", False)
        if self._held or not self._whole:
            self._hold()
        return message

    async def body(self) -> bytes:
        """The whole body. Raises as a call does, and ClientDisconnect."""
        parts = []
        while True:
            message = await self()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Give back the room: the request was answered."""
        self._room.held -= self._held
        self._held = 0

    def _hold(self) -> None:
        others = self._room.held - self._held
        # Alone, a body of any size that is taken finds room.
        if others and others + self._received > self._room.most:
            raise BusyError("busy", "the bodies of other requests take all the room there is.")
        self._room.held = others + self._received
        self._held = self._received


def _too_large(limit: int) -> RowError:
    return RowError(
        "too_large",
        f"the body is larger than {limit} bytes.",
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
        reception = self._guards.reception(receive)
        try:
            await self._app(scope, reception, send)
        finally:
            reception.close()


_NOT_LOCAL = errors.response(
    403,
    "not_local",
    "without keys this service answers on loopback addresses only.",
    hint="Make a key with `homeostat key`, or set serving.insecure.",
)
_FOREIGN_HOST = errors.response(
    403,
    "foreign_host",
    "without keys this service answers to the names of loopback only.",
    hint="Call it localhost or 127.0.0.1, or make a key with `homeostat key`.",
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


def remote(server: Sequence[str | int | None] | None, host: str | None) -> Response | None:
    """The answer to who does not come over loopback, by its name; None for who does."""
    if not is_local(server and tuple(server)):
        return _NOT_LOCAL
    # No browser leaves the header out, or asks a Unix socket.
    if host is None or (server and server[1] is None) or names_loopback(host):
        return None
    return _FOREIGN_HOST


@lru_cache
def is_local(server: Sequence[str | int | None] | None) -> bool:
    """Whether a connection arrived on loopback or on a Unix socket; unknown counts as not."""
    if not server:
        return False
    host, port = server
    loopback = _is_loopback(str(host).split("%")[0])
    # How ASGI tells a Unix socket; the host is its path.
    return port is None if loopback is None else loopback


@lru_cache
def names_loopback(host: str) -> bool:
    """Whether a Host header says `localhost` or an address of loopback, with any port or none."""
    match = _HOST.fullmatch(host)
    if match is None:
        return False
    name = match["six"] or match["name"]
    return name.lower() == "localhost" or bool(_is_loopback(name))


_HOST = re.compile(r"(\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<name>[^:\[\]]+))(:\d*)?", re.ASCII)


def _is_loopback(text: str) -> bool | None:
    """None for what is no address."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
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
