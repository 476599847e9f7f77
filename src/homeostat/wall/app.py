"""The page's HTTP application: the views, their data, and what people ask of the loop.

Takes a board, what the loop does, the servers' traffic and the sessions. Gives an ASGI application;
a request never waits for the loop, and nothing but an order is ever written.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    HTMLResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)

from homeostat.notes import Notes, Order
from homeostat.settings import Settings
from homeostat.wall import data, parts
from homeostat.wall.board import Board, View
from homeostat.wall.door import OPENED, REPORT, Door, visitor
from homeostat.wall.render import ASSETS, asset, render, stamp
from homeostat.wall.sessions import Sessions
from homeostat.wall.story import Around, late
from homeostat.wall.traffic import Traffic, down
from homeostat.wall.turns import Doing
from homeostat.web import errors
from homeostat.web.guards import find_key

LOGGER = logging.getLogger(__name__)
WATCH = 0.5  # seconds between two looks at the files
SCRAPE = 5.0  # seconds between two scrapes of the servers
BEAT = 10.0  # seconds after which a connection hears that all is as it was
LARGEST = 10_000  # bytes of a form
PATIENCE = 10.0  # seconds for a form to arrive
REPORTS = frozenset({"monitor_report.html", "drift_report.html"})
ID = re.compile("[0-9a-f]{0,64}")
ACTIONS = frozenset({"approve", "roll_back", "pin", "unpin"})


@dataclass(frozen=True)
class Wall:
    """What the page is made of."""

    settings: Settings
    board: Board
    traffic: Traffic
    sessions: Sessions
    orders: Notes[Order]
    doing: Callable[[], Doing]  # what the loop does
    now: Callable[[], datetime]  # UTC
    wake: Callable[[], None]  # tells the loop that an order waits
    closing: threading.Event = field(default_factory=threading.Event)  # ends what has no end


def create_app(wall: Wall) -> FastAPI:
    """The application."""
    app = FastAPI(
        title=wall.settings.project.name,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        lifespan=_watching(wall),
        middleware=[
            # The door is the outer one: what fails inside gets its headers, too.
            Middleware(Door, serving=wall.settings.serving, sessions=wall.sessions),
            Middleware(errors.Failsafe),
        ],
    )
    errors.install(app)
    _add_visits(app, wall)
    _add_views(app, wall)
    _add_files(app, wall)
    _add_orders(app, wall)
    _add_events(app, wall)
    return app


# --- what is watched ---


def _watching(wall: Wall) -> Callable[[FastAPI], Any]:
    async def often(seconds: float, look: Callable[[], object]) -> None:
        while True:
            try:
                await run_in_threadpool(look)
            except Exception as error:  # noqa: BLE001 - the watch goes on, the page stays
                LOGGER.warning("The page could not look: %s.", type(error).__name__)
            await asyncio.sleep(seconds)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(wall.board.look)
        tasks = [
            asyncio.create_task(often(WATCH, wall.board.look)),
            asyncio.create_task(often(SCRAPE, wall.traffic.look)),
        ]
        yield
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    return lifespan


def _around(wall: Wall) -> Around:
    return Around(wall.doing(), wall.traffic.servers, wall.now(), wall.settings)


def _state(wall: Wall) -> Mapping[str, object]:
    """What each part of the page stands on; a part is fetched again when its value changes."""
    numbers, view, around = wall.board.numbers, wall.board.view, _around(wall)
    return {
        "loop": numbers["loop"],
        "doing": (around.doing, down(around.servers), late(view, around)),
        "orders": numbers["orders"],
        "replay": numbers["replay"],
        "traffic": wall.traffic.servers,
    }


def _add_events(app: FastAPI, wall: Wall) -> None:
    async def told(request: Request) -> AsyncIterator[str]:
        """The names of the parts that changed, as they change, and a beat where nothing does."""
        known, quiet = dict(_state(wall)), 0.0
        yield f"retry: 2000\nevent: hello\ndata: {stamp()}\n\n"
        while not (wall.closing.is_set() or await request.is_disconnected()):
            now = _state(wall)
            changed = [name for name, value in now.items() if value != known[name]]
            known = dict(now)
            if changed:
                yield f"event: changed\ndata: {' '.join(changed)}\n\n"
            elif quiet >= BEAT:
                yield "event: beat\ndata: \n\n"
            quiet = 0.0 if changed or quiet >= BEAT else quiet + WATCH
            await asyncio.sleep(WATCH)

    @app.get("/events")
    async def events(request: Request) -> Response:
        return StreamingResponse(told(request), media_type="text/event-stream")


# --- visits ---


def _add_visits(app: FastAPI, wall: Wall) -> None:
    @app.get("/login")
    async def login() -> Response:
        return HTMLResponse(_page(wall, "login.html", wrong=False))

    @app.post("/login")
    async def enter(request: Request) -> Response:
        form = await _form(request)
        # A key is shown as it would be to the API, and compared in the same way.
        shown = form.get("key", "").encode("utf-8", "replace").decode("latin-1")
        key = find_key(Headers({"x-api-key": shown}), wall.settings.serving.keys)
        if key is None:
            LOGGER.warning("A key was refused at the page's login.")
            return HTMLResponse(_page(wall, "login.html", wrong=True), 403)
        answer = RedirectResponse("./", 303)
        request.scope[OPENED] = wall.sessions.open(key)
        return answer

    @app.post("/logout")
    async def leave(request: Request) -> Response:
        await _checked(request)
        answer = RedirectResponse("login", 303)
        answer.headers["Set-Cookie"] = f"{wall.sessions.cookie}=; Max-Age=0; Path=/"
        return answer


async def _form(request: Request) -> Mapping[str, str]:
    body = b""
    try:
        async with asyncio.timeout(PATIENCE):
            async for part in request.stream():
                body += part
                if len(body) > LARGEST:
                    raise HTTPException(413)
    except TimeoutError:
        raise HTTPException(408) from None
    told = parse_qs(body.decode("utf-8", "replace"), max_num_fields=20)
    return {name: values[0] for name, values in told.items()}


async def _checked(request: Request) -> Mapping[str, str]:
    """The form, once it carries the visitor's own token; a key with the request needs none."""
    form, asks = await _form(request), visitor(request.scope)
    if asks.token and form.get("token") != asks.token:
        raise HTTPException(403)
    return form


# --- views ---


def _page(wall: Wall, template: str, **values: Any) -> str:
    settings = wall.settings
    return render(template, project=settings.project.name, version=stamp(), **values)


def _add_views(app: FastAPI, wall: Wall) -> None:
    @app.get("/")
    async def page(request: Request) -> Response:
        asks = visitor(request.scope)
        keys = bool(wall.settings.serving.keys)
        top = parts.top(wall.board.view, _around(wall))
        return HTMLResponse(_page(wall, "page.html", visitor=asks, keys=keys, **top))

    @app.get("/part/{name}")
    def part(request: Request, name: str) -> Response:
        asked, asks = request.query_params, visitor(request.scope)
        made: Mapping[str, Callable[[], Mapping[str, Any] | None]] = {
            "top": lambda: parts.top(wall.board.view, _around(wall)),
            "traffic": lambda: {"servers": wall.traffic.servers},
            "looks": lambda: parts.looks(wall.board.view, asked),
            "drift": lambda: parts.drift(wall.board.view),
            "column": lambda: parts.column(wall.board, asked, wall.settings.monitor),
            "releases": lambda: parts.releases(wall.board.view, asks),
            "decisions": lambda: parts.decisions(wall.board.view, asked),
            "decision": lambda: parts.decision(wall.board, asked, wall.settings, asks),
            "replays": lambda: {"replays": wall.board.view.replays},
        }
        values = made[name]() if name in made else None
        if values is None:
            raise HTTPException(404)
        return HTMLResponse(render(f"{name}.html", **values))

    @app.get("/framed")
    async def framed(of: str) -> Response:
        """A report in a tab of its own: in a frame all the same, so that it cannot lead away."""
        if of not in REPORTS and not re.fullmatch("evidently/[0-9]{1,15}", of):
            raise HTTPException(404)
        return HTMLResponse(_page(wall, "framed.html", name=of))

    held: dict[str, tuple[View, bytes]] = {}  # made once for each view, whoever asks

    @app.get("/data/{name}")
    def told(name: str) -> Response:
        made, view = {"performance": data.performance, "heat": data.heat}.get(name), wall.board.view
        if made is None:
            raise HTTPException(404)
        if name not in held or held[name][0] is not view:
            held[name] = (view, made(view))
        return Response(held[name][1], media_type="application/json")


def _add_files(app: FastAPI, wall: Wall) -> None:
    reports = wall.settings.path("reports")

    @app.get("/static/{version}/{name}")
    async def static(name: str) -> Response:
        if name not in ASSETS:
            raise HTTPException(404)
        headers = {"Cache-Control": "public, max-age=31536000, immutable"}
        return Response(asset(name), media_type=ASSETS[name], headers=headers)

    @app.get("/reports/{name}")
    async def newest(name: str) -> Response:
        """Of the last look."""
        if name not in REPORTS or not (reports / name).is_file():
            raise HTTPException(404)
        return FileResponse(reports / name, media_type="text/html", headers=dict(REPORT))

    @app.get("/reports/evidently/{seq}")
    async def evidently(seq: str) -> Response:
        """Of the look that the chain's line of this number tells of."""
        look = next((each for each in wall.board.view.looks if str(each.seq) == seq), None)
        found = wall.board.report(look) if look else None
        if found is None:
            raise HTTPException(404)
        headers = {**REPORT, "Content-Encoding": "gzip"}
        return FileResponse(found, media_type="text/html", headers=headers)

    @app.get("/replays/{name:path}/picture")
    async def picture(name: str) -> Response:
        # Only what the board found is a name, so none leads out of the folder.
        found = {each.name: reports / Path(each.name) / "replay.png" for each in _pictured(wall)}
        if name not in found:
            raise HTTPException(404)
        return FileResponse(found[name], media_type="image/png")


def _pictured(wall: Wall) -> list[Any]:
    return [each for each in wall.board.view.replays if each.picture]


# --- what people ask ---


def _add_orders(app: FastAPI, wall: Wall) -> None:
    @app.get("/ask/{action}")
    async def ask(request: Request, action: str) -> Response:
        """What would be done, and the button that asks for it."""
        asks, release = visitor(request.scope), request.query_params.get("release", "")
        _allowed(asks.admin, action)
        values = parts.asked(wall.board.view, action, release)
        return HTMLResponse(render("ask.html", token=asks.token, **values))

    @app.post("/ask/{action}")
    async def order(request: Request, action: str) -> Response:
        form, asks = await _checked(request), visitor(request.scope)
        _allowed(asks.admin, action)
        if form.get("sure") != "yes":
            raise HTTPException(400)
        release, champion = (form.get(name, "") for name in ("release", "champion"))
        if not (ID.fullmatch(release) and ID.fullmatch(champion)):
            raise HTTPException(400)
        left = Order(action, release, champion, asks.name, wall.now().isoformat())
        await run_in_threadpool(wall.orders.leave, left)
        wall.wake()
        return HTMLResponse(render("asked.html", order=left), 202)


def _allowed(admin: bool, action: str) -> None:
    if action not in ACTIONS:
        raise HTTPException(404)
    if not admin:
        raise HTTPException(403)
