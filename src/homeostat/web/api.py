"""The FastAPI application: the endpoints, the guards before them, and the watch on the pointer.

It takes the folder of a project, or a predictor with settings. It gives an application that any
ASGI server runs; the blocking work of an endpoint is done in the thread pool.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.telemetry import TelemetryConfig
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, RedirectResponse, Response

from homeostat import settings as configuration
from homeostat.answer import Answer
from homeostat.champion import Champion
from homeostat.errors import HomeostatError
from homeostat.group import Group
from homeostat.listening import Serving
from homeostat.predictor import Asked, Predictor
from homeostat.records import Json
from homeostat.settings import Settings
from homeostat.web import admin, errors, feedback, invocations, logs, openapi
from homeostat.web.front import Front
from homeostat.web.guards import Guarded, Guards
from homeostat.web.metrics import Measured, Metrics

PATHS = frozenset(
    {
        "/",
        "/feedback",
        "/admin/rollback",
        "/invocations",
        "/ping",
        "/health",
        "/version",
        "/model",
        "/metrics",
        "/docs",
        "/openapi.json",
        "/health/live",
        "/health/ready",
    }
)
_QUIET: TelemetryConfig = {
    "auto_configure": False,
    "tracing": False,
    "metrics": False,
    "logs": False,
}

_log = structlog.get_logger("homeostat.web")


def create_app(root: Path | str = ".") -> FastAPI:
    """The application of the project in `root`. Raises SettingsError for its settings."""
    # Trees scored by several threads beside a busy process stall for tenths of a second; OpenMP
    # reads this when the model's library is loaded.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # The composition root imports every room; a test that brings its own predictor needs none.
    from homeostat import build

    chosen = configuration.read(root)
    return create_app_for(build.predictor(chosen), chosen)


def create_app_for(predictor: Predictor, settings: Settings) -> FastAPI:
    """The application that answers from `predictor`, with the guards that `settings` ask for."""
    logs.as_json()
    serving = settings.serving
    group: Group[Asked, list[Answer]] = Group(
        predictor.answer,
        max_rows=serving.max_waiting,
        timeout=serving.timeout.total_seconds(),
    )
    labels = feedback.line(predictor, serving)
    health = _health(predictor, serving)
    metrics = Metrics(predictor, lambda: _waiting((group, labels)), logs.RequestLog(serving.log))
    guards = Guards(serving)
    app = FastAPI(
        title=settings.project.name,
        version="1",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        lifespan=_watching(
            predictor, (group, labels, health), metrics, serving.watch.total_seconds()
        ),
        middleware=[
            Middleware(Front, predictor=predictor, group=group, guards=guards, metrics=metrics),
            Middleware(Measured, metrics=metrics, paths=PATHS),
            Middleware(errors.Failsafe),
            Middleware(Guarded, guards=guards),
        ],
        telemetry=_QUIET,
    )
    errors.install(app)
    feedback.add(app, predictor, labels, max_rows=serving.max_rows)
    invocations.add(app, predictor, group, health, max_rows=serving.max_rows)
    _add_state(app, predictor, health, metrics)
    admin.add(app, predictor, settings)
    _add_documentation(app, predictor, keys=bool(serving.keys))
    return app


def _waiting(lines: Sequence[Group[Any, Any]]) -> tuple[int, float]:
    return sum(line.rows for line in lines), max(line.lag for line in lines)


def _health(predictor: Predictor, serving: Serving) -> Group[None, None]:
    """The line of who asks whether a prediction would be answered: one look serves all that wait,
    so that a disk on which it stalls costs one thread.
    """

    def checked(waiting: Sequence[None]) -> Sequence[HomeostatError | None]:
        try:
            predictor.check()
        except HomeostatError as error:
            return [error] * len(waiting)
        return [None] * len(waiting)

    return Group(checked, max_rows=serving.max_waiting, timeout=serving.timeout.total_seconds())


def _watching(
    predictor: Predictor, lines: Sequence[Group[Any, Any]], metrics: Metrics, seconds: float
) -> Callable[[FastAPI], Any]:
    """Load the champion before the first request; until the end follow the pointer, and journal
    what was refused; at the end answer what waits in `lines`.
    """

    async def watch() -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await run_in_threadpool(_look, predictor, metrics)
            except Exception as error:  # noqa: BLE001 - the watch goes on, the champion stays
                _log.error("watch failed", error=type(error).__name__)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(predictor.refresh)
        with suppress(HomeostatError):  # what is amiss, /health/ready says
            await run_in_threadpool(predictor.check)
        # What is loaded by now stays; to walk through it again takes tenths of a second each time.
        gc.collect()
        gc.freeze()
        task = asyncio.create_task(watch())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        for line in lines:
            await line.close()
        with suppress(HomeostatError):  # only counts of refusals are lost, and the log says why
            await run_in_threadpool(predictor.flush)

    return lifespan


def _look(predictor: Predictor, metrics: Metrics) -> None:
    predictor.refresh()
    try:
        predictor.flush()
    finally:
        metrics.look()


def _add_state(
    app: FastAPI, predictor: Predictor, health: Group[None, None], metrics: Metrics
) -> None:
    @app.get("/model", summary="The release that answers")
    async def model() -> Response:
        champion = predictor.serving()
        return JSONResponse({**describe(champion), "failure": predictor.failure})

    @app.get("/health/live", summary="The process answers")
    async def live() -> Response:
        return JSONResponse({"status": "live"})

    @app.get("/health/ready", summary="A prediction would be answered")
    async def ready() -> Response:
        await health.ask(None, 1)
        return JSONResponse({"status": "ready", "failure": predictor.failure})

    @app.get("/metrics", summary="For Prometheus")
    async def scraped() -> Response:
        return metrics.response()


def describe(champion: Champion) -> dict[str, Json]:
    """What `GET /model` tells of a release."""
    release, schema = champion.release, champion.schema
    names = ("kind", "created_at", "parent", "training", "versions")
    return {
        "model_version": release.id,
        "sequence": release.sequence,
        **{name: release.manifest.get(name) for name in names},
        "engine": champion.engine,
        "why": champion.why,
        "twin": release.manifest.get("twin"),
        "members": len(release.members),
        "calibrated": champion.calibrator is not None,
        "target": {
            "name": schema.target.name,
            "task": schema.target.task,
            "classes": [schema.target.value(text) for text in schema.target.classes],
        },
        "features": [
            {"name": f.name, "kind": f.kind, "nullable": f.nullable, "example": f.example}
            for f in schema.features
        ],
    }


def _add_documentation(app: FastAPI, predictor: Predictor, *, keys: bool) -> None:
    kept: dict[str | None, dict[str, Json]] = {}

    def document() -> dict[str, Json]:
        """Made once per release."""
        champion = predictor.champion
        version = None if champion is None else champion.release.id
        if version not in kept:
            base = get_openapi(title=app.title, version=app.version, routes=app.routes)
            made = openapi.document(base, champion, keys=keys)
            kept.clear()
            kept[version] = made
            return made
        return kept[version]

    @app.get("/openapi.json", include_in_schema=False)
    async def document_json() -> Response:
        return JSONResponse(document())

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return openapi.page(app.title)

    @app.get("/docs/{name}", include_in_schema=False)
    def asset(name: str) -> Response:
        found = openapi.asset(name)
        if found is None:
            raise HTTPException(404)
        return found

    @app.get("/", include_in_schema=False)
    async def home() -> Response:
        return RedirectResponse("docs")
