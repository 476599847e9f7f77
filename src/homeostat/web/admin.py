"""`POST /admin/rollback`: back to the predecessor at once, without the private key.

It takes the store of releases, the place for notes, and the predictor. It gives the release that
answers from now on: the pointer that was signed in advance replaces the present one, and the note
left behind lets the loop's next turn record who asked for it.
"""

from __future__ import annotations

from datetime import UTC, datetime

import structlog
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from homeostat import decode
from homeostat.champion import opened
from homeostat.errors import ReleaseError, RowError, VerificationError, cause
from homeostat.notes import Note, Notes, requests
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
    notes = requests(settings.path(".homeostat"))

    @app.post(PATH, summary="Make the predecessor the champion again")
    async def rollback(request: Request) -> Response:
        """Takes no arguments: an empty body, or an empty object. Role admin."""
        body = await request.body()
        if body.strip() and decode.read(body) != {}:
            raise RowError("unknown_field", "a rollback takes no arguments.")
        key = find_key(request.headers, settings.serving.keys)
        by = key.name if key else ""
        return await run_in_threadpool(roll_back, releases, notes, predictor, by=by)


def roll_back(
    releases: FileReleases, notes: Notes[Note], predictor: Predictor, *, by: str
) -> Response:
    """Leave a note, move the pointer, and follow it; or say why not, with nothing changed.

    The predecessor is opened and tried first, since the champion is not given up for a release
    that this server cannot load.
    """
    try:
        champion, parent = _line(releases)
        unfit = _tried(releases, parent)
        if unfit is not None:
            return unfit
        release = _switched(releases, notes, champion, parent, by)
    except VerificationError as error:
        _log.error("rollback refused", reason=str(error))
        return errors.response(503, "not_trusted", "the releases are not to be trusted.")
    except ReleaseError as error:
        if isinstance(error.__cause__, OSError):
            return _unwritten(error.__cause__)
        return errors.response(409, "no_way_back", error.message, hint=error.hint)
    except OSError as error:
        return _unwritten(error)
    predictor.refresh()
    serving = predictor.champion
    _log.warning("rolled back", release=release.short, previous=champion.short, by=by)
    told = {
        "model_version": release.id,
        "sequence": release.sequence,
        "previous": champion.id,
        "serving": None if serving is None else serving.release.id,
    }
    return JSONResponse(told)


def _line(releases: FileReleases) -> tuple[Release, Release]:
    """The champion and its predecessor, both verified. Raises ReleaseError without one."""
    champion = releases.champion()
    if champion is None or champion.manifest["parent"] is None:
        raise ReleaseError(
            "there is no earlier release to go back to.", hint="See homeostat history."
        )
    return champion, releases.get(champion.manifest["parent"])


def _tried(releases: FileReleases, release: Release) -> Response | None:
    """The answer that refuses a release which does not load here; None for one that does."""
    try:
        opened(releases, release)
    except VerificationError:
        raise
    except Exception as error:  # noqa: BLE001 - fails closed: the champion stays
        _log.error("rollback refused", reason=cause(error))
        return errors.response(
            409,
            "not_servable",
            "the earlier release cannot be loaded here, or does not answer as it should.",
            hint="Nothing was changed; the server's log says why.",
        )
    return None


def _switched(
    releases: FileReleases, notes: Notes[Note], champion: Release, parent: Release, by: str
) -> Release:
    """The predecessor, with the sequence of the pointer that names it from now on."""
    left = notes.leave(Note(champion.id, parent.id, by, datetime.now(UTC).isoformat()))
    try:
        # By name: should another release be promoted meanwhile, it is not that one's way back.
        return releases.roll_back(parent.id)
    except BaseException:
        notes.clear([left])
        raise


def _unwritten(error: OSError) -> Response:
    _log.error("rollback failed", error=type(error).__name__, reason=error.strerror)
    return errors.response(
        503,
        "cannot_record",
        "the rollback could not be written.",
        hint="Try again; the server's log says why.",
        headers=errors.RETRY,
    )
