"""`POST /feedback`: labels wait in a line of their own, so that a slow disk holds up no one else.

It takes a predictor and the settings of serving. It gives a line that is bounded as that of
predictions is, and an application the path that asks it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from homeostat import decode
from homeostat.errors import RowError
from homeostat.group import Group
from homeostat.listening import Serving
from homeostat.predictor import Predictor
from homeostat.records import Json
from homeostat.web.front import LARGE

THREADS = 8  # requests that share a flush

Items: TypeAlias = Sequence[Mapping[str, Json]]
Counts: TypeAlias = dict[str, int]


def line(predictor: Predictor, serving: Serving) -> Group[Items, Counts]:
    """The line in which labels wait; each request is taken, refused or fails by itself."""
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="feedback")

    def taken(items: Items) -> Counts | Exception:
        try:
            return predictor.feedback(items)
        except Exception as error:  # noqa: BLE001 - told to the one who asked, and to no other
            return error

    return Group(
        lambda waiting: list(pool.map(taken, waiting)),
        max_rows=serving.max_waiting,
        timeout=serving.timeout.total_seconds(),
    )


def add(
    app: FastAPI, predictor: Predictor, waiting: Group[Items, Counts], *, max_rows: int
) -> None:
    """Give `app` the path."""

    def decoded(body: bytes) -> Items:
        try:
            return decode.parse(body, max_rows=max_rows)[0]
        except RowError as error:
            predictor.refuse(error)
            raise

    @app.post("/feedback", summary="Tell the true label of predictions")
    async def feedback(request: Request) -> Response:
        """Labels of ids that are not known are kept and joined later."""
        body = await request.body()
        large = len(body) > LARGE
        items = await run_in_threadpool(decoded, body) if large else decoded(body)
        return JSONResponse(await waiting.ask(items, len(items)))
