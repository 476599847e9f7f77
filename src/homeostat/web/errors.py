"""The one shape of every error, whatever raised it, and the last line before a client.

It takes exceptions of the package, of the framework, and defects. It gives responses of the shape
`{"error": {"code", "message", "field"?, "row"?, "hint"?}}` that never hold a value or an internal.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from homeostat.errors import (
    BusyError,
    ConflictError,
    HomeostatError,
    JournalError,
    RowError,
    UnavailableError,
)
from homeostat.records import Json

RETRY = {"Retry-After": "5"}  # seconds

_log = structlog.get_logger("homeostat.web")
_STATUS = {
    "not_json": 400,
    "duplicate_key": 400,
    "too_large": 413,
    "too_many_rows": 413,
    "model_failed": 500,
}
"""Status of a refused row by its code; 422 for all others."""


def response(
    status: int,
    code: str,
    message: str,
    *,
    field: str | None = None,
    row: int | None = None,
    hint: str = "",
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """An error in the one shape; what is not known is left out."""
    optional = {"field": field, "row": row, "hint": hint or None}
    error: dict[str, Json] = {"code": code, "message": message}
    error |= {name: value for name, value in optional.items() if value is not None}
    return JSONResponse({"error": error}, status, headers=dict(headers or {}))


GONE = response(400, "disconnected", "the client went away before its request was read.")


def of(error: HomeostatError) -> JSONResponse:
    """The response for an error that was raised on purpose."""
    text, hint = error.message, error.hint
    if isinstance(error, RowError):
        status = _STATUS.get(error.code, 422)
        return response(status, error.code, text, field=error.field, row=error.row, hint=hint)
    if isinstance(error, ConflictError):
        return response(409, "conflict", text, field="prediction_id", row=error.row, hint=hint)
    if isinstance(error, BusyError):
        status = 429 if error.code == "busy" else 503
        return response(status, error.code, text, hint=hint, headers=RETRY)
    if isinstance(error, UnavailableError):
        return response(503, "no_champion", text, hint=hint, headers=RETRY)
    if isinstance(error, JournalError):
        # Its text names files, which are nobody's business outside.
        _log.error("cannot journal", reason=str(error))
        return response(
            503,
            "cannot_journal",
            "the answer could not be journalled, so none is given.",
            hint="Try again; the server's log says why.",
            headers=RETRY,
        )
    return defect(error)


def install(app: FastAPI) -> None:
    """Give the framework's own errors, and those of the package, the one shape."""

    async def ours(_request: Request, error: Exception) -> Response:
        return of(error) if isinstance(error, HomeostatError) else defect(error)

    async def http(_request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            return defect(error)
        status = HTTPStatus(error.status_code)
        code = status.phrase.lower().replace(" ", "_").replace("-", "_")
        hint = "See /docs." if status in (404, 405) else ""
        message = f"{status.description or status.phrase}."
        return response(status, code, message, hint=hint, headers=error.headers)

    async def invalid(_request: Request, _error: Exception) -> Response:
        # The framework's own handler echoes the input, and fails where it cannot be encoded.
        return response(422, "invalid_request", "the request does not fit.", hint="See /docs.")

    async def gone(_request: Request, _error: Exception) -> Response:
        return GONE

    app.add_exception_handler(HomeostatError, ours)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)


class Failsafe:
    """The outermost layer: a defect becomes a 500 that tells nothing, and a line in the log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:  # noqa: BLE001 - fails closed: told as a 500, and logged
            answer = defect(error)
            if started:
                raise RuntimeError("the response broke off; the log says why.") from None
            await answer(scope, receive, send)


def defect(error: Exception) -> JSONResponse:
    """The response for what nobody foresaw. The log tells where it happened; the text of a foreign
    error may hold values, so it is left out.
    """
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    where = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
    _log.error("internal error", error=type(error).__name__, where=where)
    return response(
        500, "internal", "an internal error occurred.", hint="The server's log says where."
    )
