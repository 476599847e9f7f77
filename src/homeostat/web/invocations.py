"""MLflow's scoring protocol, so that a client of `mlflow models serve` needs no change.

It takes the body of `POST /invocations` and the names of the champion's features. It gives rows as
`POST /predict` takes them, and the answers in MLflow's shape; what the schema checks is not checked
here. `add` gives an application this path and those that MLflow's client asks besides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from homeostat import __version__, decode
from homeostat.answer import Answer
from homeostat.errors import RowError
from homeostat.group import Group
from homeostat.predictor import Asked, Predictor
from homeostat.records import Json
from homeostat.web.metrics import IDS

FORMATS = ("dataframe_split", "dataframe_records", "instances", "inputs")
_ONE = f"The body is an object with one of {', '.join(FORMATS)}."


def add(
    app: FastAPI,
    predictor: Predictor,
    group: Group[Asked, list[Answer]],
    health: Group[None, None],
    *,
    max_rows: int,
) -> None:
    """Give `app` the paths of MLflow's scoring server; `health` is the line of `/health/ready`."""

    def asked(body: bytes) -> Asked:
        names = predictor.serving().schema.names
        try:
            found = rows(body, names, max_rows=max_rows)
        except RowError as error:
            predictor.refuse(error)
            raise
        return predictor.asked(found)

    @app.post("/invocations", summary="Predict, in the protocol of MLflow's scoring server")
    async def invoke(request: Request) -> Response:
        """Checked and journalled as `POST /predict` does; answers hold the ids for labels."""
        checked = await run_in_threadpool(asked, await request.body())
        answers = await group.ask(checked, len(checked.batch.ids))
        request.scope[IDS] = checked.batch.asked
        return JSONResponse(answer(answers))

    @app.get("/ping", include_in_schema=False)
    @app.get("/health", include_in_schema=False)
    async def ping() -> Response:
        """Whether a prediction would be answered, as `/health/ready`."""
        await health.ask(None, 1)
        return Response("\n", media_type="application/json")

    @app.get("/version", include_in_schema=False)
    async def version() -> Response:
        return Response(f"homeostat {__version__}", media_type="text/plain")


def rows(body: bytes, names: Sequence[str], *, max_rows: int) -> list[dict[str, Json]]:
    """The rows in a body, in order; lists without names are taken in the order of `names`.

    NaN, which MLflow's client writes for a missing value of a frame, is null. Raises RowError with
    the codes of `decode.parse`, and `bad_invocation` for what is not of the protocol.
    """
    kind, data = _one_of(_object(body))
    if kind == "dataframe_split":
        given, lists = _split(data)
        found = _named(_counted(lists, kind, max_rows), given)
    elif isinstance(data, dict) and kind != "dataframe_records":
        found = _columns(data, kind, max_rows)
    else:
        found = _counted(data, kind, max_rows)
        by_name = kind == "dataframe_records" or isinstance(found[0], dict)
        found = _objects(found) if by_name else _named(found, names)
    return [{name: _known(value) for name, value in row.items()} for row in found]


def answer(answers: Sequence[Mapping[str, Json]]) -> dict[str, Json]:
    """MLflow's answer: the predictions in order, and beside them the ids that labels refer to."""
    return {
        "predictions": [each["prediction"] for each in answers],
        "prediction_ids": [each["prediction_id"] for each in answers],
    }


def _object(body: bytes) -> Mapping[str, Json]:
    value = decode.read(body, nan=True)
    if not isinstance(value, dict):
        raise _strange("the body is not an object.", hint=_ONE)
    return value


def _one_of(given: Mapping[str, Json]) -> tuple[str, Any]:
    """The one format that the request uses, and what it holds."""
    for name in given:
        if name not in (*FORMATS, "params"):
            raise _strange(f"{name[:80]!r} is no part of the protocol.", hint=_ONE)
    if given.get("params"):
        raise _strange(
            "this model takes no params.", field="params", hint="Leave params out, or empty."
        )
    found = [name for name in FORMATS if name in given]
    if len(found) != 1:
        raise _strange(f"{len(found)} formats are given, not one.", hint=_ONE)
    return found[0], given[found[0]]


def _counted(data: Json, kind: str, max_rows: int) -> list[Any]:
    """The list of rows, counted before anything is made of them."""
    if not isinstance(data, list):
        raise _strange(f"{kind} must hold a list of rows.", field=kind)
    if not data:
        raise RowError("no_rows", f"{kind} holds no row.", hint="Send one row at least.")
    if len(data) > max_rows:
        raise RowError(
            "too_many_rows",
            f"one request may hold {max_rows} rows at most.",
            hint="Split it; see serving.max_rows.",
        )
    return data


def _split(data: Json) -> tuple[Sequence[str], Json]:
    """Names and lists of `{"columns": …, "data": …}`, as pandas splits a frame.

    An index is ignored.
    """
    kind = "dataframe_split"
    if not isinstance(data, dict) or not {"columns", "data"} <= data.keys():
        raise _strange(f"{kind} must hold columns and data.", field=kind)
    if not data.keys() <= {"columns", "data", "index"}:
        raise _strange(f"{kind} may hold columns, index and data only.", field=kind)
    names = data["columns"]
    texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not texts or len(set(names)) != len(names):
        raise _strange("columns must be a list of names, each once.", field=kind)
    return names, data["data"]


def _columns(data: Mapping[str, Json], kind: str, max_rows: int) -> list[dict[str, Json]]:
    """Rows of `{name: [values]}`, every column as long as the others."""
    if not all(isinstance(values, list) for values in data.values()):
        raise _strange(f"in {kind}, every column must be a list of values.", field=kind)
    columns = list(data.values())
    if len({len(values) for values in columns}) > 1:
        raise _strange(f"in {kind}, the columns are not of the same length.", field=kind)
    _counted(columns[0] if columns else [], kind, max_rows)
    return [dict(zip(data, row, strict=True)) for row in zip(*columns, strict=True)]


def _objects(data: Sequence[Json]) -> list[dict[str, Json]]:
    for index, row in enumerate(data):
        if not isinstance(row, dict):
            raise RowError("not_an_object", "a row must be a JSON object.", row=index)
    return list(data)


def _named(data: Sequence[Json], names: Sequence[str]) -> list[dict[str, Json]]:
    """Rows of lists, each in the order of `names`."""
    for index, row in enumerate(data):
        if not isinstance(row, list) or len(row) != len(names):
            raise _strange(f"a row must be a list of {len(names)} values.", row=index)
    return [dict(zip(names, row, strict=True)) for row in data]


def _known(value: Json) -> Json:
    return None if isinstance(value, float) and math.isnan(value) else value


def _strange(
    message: str, *, field: str | None = None, row: int | None = None, hint: str = ""
) -> RowError:
    return RowError("bad_invocation", message, field=field, row=row, hint=hint)
