"""The door: who may enter the page, and the headers that each answer carries.

Takes a request's head, the settings and the sessions. Gives the visitor in the request's scope, or
the answer that refuses; a page may load and run nothing but what this package ships.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from homeostat.listening import Serving
from homeostat.wall.sessions import STRANGER, Session, Sessions
from homeostat.web.guards import find_key, remote, route

VISITOR = "homeostat.visitor"
"""Where the visitor's `Session` stands in the scope of a request."""
OPENED = "homeostat.opened"
"""Where the value of a new cookie stands, if one is to be set."""

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; frame-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
"""On each answer that does not say otherwise."""

REPORT: Mapping[str, str] = {
    "Content-Security-Policy": "sandbox allow-scripts; default-src 'none'; "
    "script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data:; "
    "font-src data:; frame-ancestors 'self'",
    "X-Frame-Options": "SAMEORIGIN",
}
"""On a report, which is foreign code: an origin of its own, which can neither send nor read. It is
shown in a frame of the page's, which keeps it from leading the visitor elsewhere as well."""


class Door:
    """The ASGI layer that lets in visitors, by the rule of the server's guards: without keys only
    over loopback and by its names, under `serving.insecure` others as well, to look; with keys
    whoever holds one, by a session or with each request.
    """

    def __init__(self, app: ASGIApp, *, serving: Serving, sessions: Sessions) -> None:
        self._app = app
        self._serving = serving
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if scope.get(OPENED):
                    headers.append("Set-Cookie", self._kept(scope))
            await send(message)

        answer = self._refusal(scope)
        await (answer or self._app)(scope, receive, headed)

    def _kept(self, scope: Scope) -> str:
        """The cookie that is to be set."""
        # A proxy that ends TLS says so here; who lies makes his own cookie stricter.
        told = Headers(scope=scope).get("x-forwarded-proto", scope.get("scheme"))
        secure = "; Secure" if told == "https" else ""
        name, value = self._sessions.cookie, scope[OPENED]
        return f"{name}={value}; HttpOnly; SameSite=Strict; Path=/{secure}"

    def _refusal(self, scope: Scope) -> Response | None:
        """The answer that refuses, or None, with the visitor in the scope where there is one."""
        headers, keys = Headers(scope=scope), self._serving.keys
        stranger = None if keys else remote(scope.get("server"), headers.get("host"))
        if stranger is not None and not self._serving.insecure:
            return stranger
        if scope["method"] not in ("GET", "HEAD") and not _same_site(headers):
            return Response("This form came from another site.", 403)
        visitor = self._known(scope, headers)
        if visitor is not None and stranger is not None:
            visitor = replace(visitor, name=STRANGER, admin=False)
        if visitor is None and not _open(route(scope)):
            return _unknown(route(scope), headers)
        scope[VISITOR] = visitor
        return None

    def _known(self, scope: Scope, headers: Headers) -> Session | None:
        """Who asks: by the key of this very request, or else by a session."""
        keys = self._serving.keys
        key = find_key(headers, keys)
        if key is not None:
            return self._sessions.shown(key)
        cookies = cookie_parser(headers.get("cookie", ""))
        found = self._sessions.read(cookies.get(self._sessions.cookie, ""))
        if found is None and not keys:
            scope[OPENED] = self._sessions.open(None)
            return self._sessions.read(scope[OPENED])
        if found is not None and found.renewed:
            scope[OPENED] = found.renewed
        return found


def visitor(scope: Scope) -> Session:
    """Who asks, behind the door."""
    found: Session = scope[VISITOR]
    return found


def _open(path: str) -> bool:
    return path == "/login" or path.startswith("/static/")


def _unknown(path: str, headers: Headers) -> Response:
    """To the form for people; a script is told in its own words."""
    if path == "/":
        return RedirectResponse("login", 303)
    answer = Response("A key is needed; see login.", 401)
    if "hx-request" in headers:
        answer.headers["HX-Redirect"] = "login"
    return answer


def _same_site(headers: Headers) -> bool:
    """Whether a browser says that the request came from this page; other clients say nothing."""
    return headers.get("sec-fetch-site", "none") in ("same-origin", "none")
