"""`POST /predict`, taken before all routing, since most requests are of this kind.

It takes a request's scope and body, a predictor, and the group in which requests wait together. It
gives the response; whatever else is asked goes on to the application behind.
"""

from __future__ import annotations

import time

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from homeostat.answer import Answer
from homeostat.errors import HomeostatError
from homeostat.group import Group
from homeostat.predictor import Asked, Predictor
from homeostat.web import errors
from homeostat.web.guards import Guards, route
from homeostat.web.metrics import Metrics
from homeostat.web.openapi import PREDICT

LARGE = 1 << 17  # bytes of a body above which reading it would keep other requests waiting

_ONLY_POST = errors.response(
    405,
    "method_not_allowed",
    "only POST is answered here.",
    hint="See /docs.",
    headers={"Allow": "POST"},
)
_encoded = msgspec.json.Encoder().encode


class Front:
    """The ASGI layer that answers `POST /predict` itself."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        predictor: Predictor,
        group: Group[Asked, list[Answer]],
        guards: Guards,
        metrics: Metrics,
    ) -> None:
        self._app = app
        self._predictor = predictor
        self._group = group
        self._guards = guards
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or route(scope) != PREDICT:
            await self._app(scope, receive, send)
            return
        began, asked = time.perf_counter(), None
        try:
            response, asked = await self._respond(scope, receive)
        except HomeostatError as error:
            response = errors.of(error)
        except ClientDisconnect:
            response = errors.GONE
        except Exception as error:  # noqa: BLE001 - fails closed: told as a 500, and logged
            response = errors.defect(error)
        try:
            await response(scope, receive, send)
        finally:
            self._observe(response, asked, time.perf_counter() - began)

    async def _respond(self, scope: Scope, receive: Receive) -> tuple[Response, Asked | None]:
        refused = self._guards.refusal(scope)
        if refused is not None:
            return refused, None
        if scope["method"] != "POST":
            return _ONLY_POST, None
        reception = self._guards.reception(receive)
        try:
            body = await reception.body()
            if len(body) > LARGE:
                asked = await run_in_threadpool(self._predictor.ask, body)
            else:
                asked = self._predictor.ask(body)
            answers = await self._group.ask(asked, len(asked.batch.ids))
        finally:
            reception.close()
        told = answers[0] if asked.single else answers
        return Response(_encoded(told), media_type="application/json"), asked

    def _observe(self, response: Response, asked: Asked | None, seconds: float) -> None:
        log, status = self._metrics.log, response.status_code
        if asked is None or not log.all:
            self._metrics.done(PREDICT, status, seconds, response.body)
            return
        batch, names = asked.batch, asked.answerer.schema.names
        told = zip(*batch.columns, strict=True) if log.values else ()
        rows = [dict(zip(names, row, strict=True)) for row in told]
        self._metrics.done(PREDICT, status, seconds, ids=batch.asked, rows=rows)
