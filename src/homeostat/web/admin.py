"""`POST /admin/rollback`: back to the predecessor at once, without the private key.

It takes the store of releases, the place for notes, and the predictor. It gives the release that
answers from now on: the pointer that was signed in advance replaces the present one, and the note
left behind lets the loop's next turn record who asked for it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import structlog
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from homeostat import decode
from homeostat.errors import ReleaseError, RowError, VerificationError
from homeostat.notes import Note, Notes
from homeostat.predictor import Predictor
from homeostat.records import Release
from homeostat.release import FileReleases
from homeostat.settings import Settings
from homeostat.web import errors
from homeostat.web.guards import find_key

PATH = "/admin/rollback"

_log = structlog.get_logger("homeostat.web")


def add(app: FastAPI, predictor: Predictor, settings: Settings) -> None:
    """Give `app` the path; who may take it is for the guards to say."""
    releases = FileReleases(settings.path("models"))
    notes = Notes(settings.path(".homeostat", "requests"))

    @app.post(PATH, summary="Make the predecessor the champion again")
    async def rollback(request: Request) -> Response:
        """Takes no arguments: an empty body, or an empty object. Role admin."""
        body = await request.body()
        if body.strip() and decode.read(body) != {}:
            raise RowError("unknown_field", "a rollback takes no arguments.")
        key = find_key(request.headers, settings.serving.keys)
        return await run_in_threadpool(
            roll_back, releases, notes, by=key.name if key else "", then=predictor.refresh
        )


def roll_back(
    releases: FileReleases, notes: Notes, *, by: str, then: Callable[[], object]
) -> Response:
    """Leave a note, move the pointer, and follow it; or say why not, with nothing changed."""
    try:
        champion, release = _switched(releases, notes, by)
    except VerificationError as error:
        _log.error("rollback refused", reason=str(error))
        return errors.response(503, "not_trusted", "the releases are not to be trusted.")
    except ReleaseError as error:
        return errors.response(409, "no_way_back", error.message, hint=error.hint)
    except OSError as error:
        _log.error("rollback failed", error=type(error).__name__, reason=error.strerror)
        return errors.response(503, "cannot_record", "the request could not be recorded.")
    then()
    _log.warning("rolled back", release=release.short, previous=champion.short, by=by)
    told = {"model_version": release.id, "sequence": release.sequence, "previous": champion.id}
    return JSONResponse(told)


def _switched(releases: FileReleases, notes: Notes, by: str) -> tuple[Release, Release]:
    """The champion until now, and the one from now on."""
    champion = releases.champion()
    if champion is None or champion.manifest["parent"] is None:
        raise ReleaseError(
            "there is no earlier release to go back to.", hint="See homeostat history."
        )
    parent = champion.manifest["parent"]
    left = notes.leave(Note(champion.id, parent, by, datetime.now(UTC).isoformat()))
    try:
        # By name: should another release be promoted meanwhile, it is not that one's way back.
        return champion, releases.roll_back(parent)
    except BaseException:
        notes.clear([left])
        raise
