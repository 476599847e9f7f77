"""The OpenAPI document and the page that shows it, with the champion's own features in them.

It takes the framework's bare document and the champion, if there is one. It gives a document whose
example is answered when it is pasted, and a page that loads nothing from the network.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse, Response

from homeostat.champion import Champion
from homeostat.decode import MAX_ID
from homeostat.records import Json
from homeostat.schema import Feature, Schema, Target
from homeostat.web.admin import PATH as ROLLBACK

LEVELS = 20  # known levels of a category that the description names

PREDICT = "/predict"

_ASSETS = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon-32x32.png": "image/png",
}
_POLICY = (
    "default-src 'self'; img-src 'self' data:; "
    "script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'"
)
_TYPES = {"number": "number", "category": "string", "boolean": "boolean"}
_EMPTY: dict[str, Json] = {"number": 0.0, "category": "", "boolean": False}

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {
                "code": {"type": "string", "description": "Stable, for machines."},
                "message": {"type": "string", "description": "For people; never holds a value."},
                "field": {"type": "string"},
                "row": {"type": "integer", "description": "From 0, in the order of the request."},
                "hint": {"type": "string", "description": "What to do about it."},
            },
        }
    },
}
_FAILURES = {
    "400": "not JSON",
    "401": "no valid key",
    "403": "the key's role or the address does not reach this",
    "409": "a prediction_id came again with other content",
    "413": "the body or the array is too large",
    "415": "the content type is not application/json",
    "422": "does not fit the schema",
    "429": "too much waits already",
    "503": "no champion, or the journal cannot be written",
}
_REFUSALS = {
    "401": _FAILURES["401"],
    "403": _FAILURES["403"],
    "503": "no champion, or what is asked cannot be done now",
}
"""Of what takes no body."""
_ROLLBACK = {
    **_REFUSALS,
    "400": _FAILURES["400"],
    "409": "there is no earlier release, or it does not load",
    "413": "the body is too large",
    "415": _FAILURES["415"],
    "422": "a rollback takes no arguments",
}

_PREDICT = {
    "summary": "Predict one row, or an array of rows",
    "description": "Every answer is journalled before it is given.",
    "operationId": "predict",
}


def document(base: dict[str, Json], champion: Champion | None, *, keys: bool) -> dict[str, Json]:
    """The framework's document with bodies, answers and errors filled in."""
    full = copy.deepcopy(base)
    # Answered before the framework's routing, so the framework does not know of it.
    full["paths"] = {PREDICT: {"post": dict(_PREDICT)}, **full["paths"]}
    schemas = full.setdefault("components", {}).setdefault("schemas", {})
    schemas["Error"] = _ERROR
    schemas["Row"] = _row(None if champion is None else champion.schema)
    schemas["Answer"] = _answer(None if champion is None else champion.schema.target)
    schemas["Label"] = _label(None if champion is None else champion.schema.target)
    schemas["Taken"] = _counts("accepted", "repeated", "changed")
    example = None if champion is None else example_row(champion.schema)
    _fill(full["paths"][PREDICT]["post"], "Row", "Answer", example, many=True)
    label = {"prediction_id": "the id that was answered", "label": _some_label(champion)}
    _fill(full["paths"]["/feedback"]["post"], "Label", "Taken", label, many=False)
    _invocations(full["paths"]["/invocations"]["post"], example)
    metrics = full["paths"]["/metrics"]["get"]["responses"]["200"]
    metrics["content"] = {"text/plain": {"schema": {"type": "string"}}}
    _refuse(full["paths"])
    if keys:
        full["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        full["security"] = [{"key": []}]
    return full


def example_row(schema: Schema) -> dict[str, Json]:
    """A row that the model takes: a typical value of each feature."""
    return {
        f.name: _EMPTY[f.kind] if f.example is None and not f.nullable else f.example
        for f in schema.features
    }


def page(title: str) -> Response:
    """The documentation page; the addresses in it are relative, so it works behind a prefix."""
    script, style, icon = (f"docs/{name}" for name in _ASSETS)
    shown = get_swagger_ui_html(
        openapi_url="openapi.json",
        title=title.replace("<", "").replace("&", ""),
        swagger_js_url=script,
        swagger_css_url=style,
        swagger_favicon_url=icon,
        # Without this the page asks a validator on the network.
        swagger_ui_parameters={"validatorUrl": None, "tryItOutEnabled": True},
    )
    return HTMLResponse(shown.body, headers={"Content-Security-Policy": _POLICY})


def asset(name: str) -> Response | None:
    """One file of the documentation page; None when there is no such file."""
    if name not in _ASSETS:
        return None
    content = files("fastapi_swagger").joinpath("resources", name).read_bytes()
    kept = {"Cache-Control": "public, max-age=86400"}
    return Response(content, media_type=_ASSETS[name], headers=kept)


def _row(schema: Schema | None) -> dict[str, Json]:
    system = {
        "prediction_id": {
            "type": "string",
            "minLength": 1,
            "maxLength": MAX_ID,
            "description": "Yours; a UUIDv7 is made if it is left out.",
        },
        "occurred_at": {
            "type": "string",
            "format": "date-time",
            "description": "When the event happened, with a zone; the server's clock if left out.",
        },
    }
    if schema is None:
        text = "No model is released yet, so the features are not known."
        return {"type": "object", "properties": system, "description": text}
    return {
        "type": "object",
        "properties": {**{f.name: _feature(f) for f in schema.features}, **system},
        "required": list(schema.names),
        "additionalProperties": False,
    }


def _feature(feature: Feature) -> dict[str, Json]:
    kind = _TYPES[feature.kind]
    told: dict[str, Json] = {"type": [kind, "null"] if feature.nullable else kind}
    if feature.levels:
        shown = ", ".join(
            json.dumps(level, ensure_ascii=False) for level in feature.levels[:LEVELS]
        )
        more = " and others" if feature.other or len(feature.levels) > LEVELS else ""
        told["description"] = f"Seen in training: {shown}{more}. Other values are taken as well."
    return told


def _answer(target: Target | None) -> dict[str, Json]:
    share = {"type": "number", "minimum": 0, "maximum": 1}
    properties: dict[str, Json] = {"prediction_id": {"type": "string"}, "prediction": {}}
    if target is not None:
        properties["prediction"] = {"type": _label_type(target)}
        if target.task == "binary":
            text = f"Of {target.name} = {target.classes[1]}."
            properties["probability"] = {**share, "description": text}
        elif target.task == "multiclass":
            shares = dict.fromkeys(target.classes, share)
            properties["probabilities"] = {"type": "object", "properties": shares}
    properties["model_version"] = {"type": "string", "description": "Id of the release."}
    return {"type": "object", "properties": properties}


def _label(target: Target | None) -> dict[str, Json]:
    label: dict[str, Json] = {} if target is None else {"type": _label_type(target)}
    if target is not None and target.classes:
        label["enum"] = [target.value(text) for text in target.classes]
    return {
        "type": "object",
        "properties": {
            "prediction_id": {"type": "string", "minLength": 1, "maxLength": MAX_ID},
            "label": label,
            "labelled_at": {
                "type": "string",
                "format": "date-time",
                "description": "When the truth was known; the server's clock if left out.",
            },
        },
        "required": ["prediction_id", "label"],
        "additionalProperties": False,
    }


def _label_type(target: Target) -> str:
    return {"int": "integer", "bool": "boolean", "str": "string", "float": "number"}[target.dtype]


def _some_label(champion: Champion | None) -> Json:
    if champion is None:
        return 1
    target = champion.schema.target
    return target.value(target.classes[-1]) if target.classes else 0.0


def _counts(*names: str) -> dict[str, Json]:
    return {"type": "object", "properties": {name: {"type": "integer"} for name in names}}


def _fill(
    operation: dict[str, Any], body: str, answer: str, example: Json | None, *, many: bool
) -> None:
    one = {"$ref": _ref(body)}
    media: dict[str, Json] = {"schema": {"oneOf": [one, {"type": "array", "items": one}]}}
    if example is not None:
        media["examples"] = {
            "one": {"summary": "One", "value": example},
            "many": {"summary": "An array", "value": [example, example]},
        }
    operation["requestBody"] = {"required": True, "content": {"application/json": media}}
    given = {"$ref": _ref(answer)}
    shape = {"oneOf": [given, {"type": "array", "items": given}]} if many else given
    operation["responses"] = {"200": _content("OK", shape)}


def _invocations(operation: dict[str, Any], example: Json | None) -> None:
    """MLflow's formats, of which a request has one, and its answer."""
    rows: dict[str, Json] = {"type": "array", "items": {"$ref": _ref("Row")}}
    lists: dict[str, Json] = {"type": "array", "items": {"type": "array"}}
    columns = {"type": "object", "additionalProperties": {"type": "array"}}
    split = {
        "type": "object",
        "properties": {
            "columns": {"type": "array", "items": {"type": "string"}},
            "data": lists,
            "index": {},
        },
        "required": ["columns", "data"],
        "additionalProperties": False,
    }
    formats = {
        "dataframe_split": split,
        "dataframe_records": rows,
        "instances": {"anyOf": [rows, lists, columns]},
        "inputs": {"anyOf": [rows, lists, columns]},
    }
    media: dict[str, Json] = {
        "schema": {
            "type": "object",
            "properties": {**formats, "params": {"type": "object", "maxProperties": 0}},
            "oneOf": [{"required": [name]} for name in formats],
            "additionalProperties": False,
        }
    }
    if example is not None:
        media["example"] = {"dataframe_records": [example]}
    operation["requestBody"] = {"required": True, "content": {"application/json": media}}
    answer = {
        "predictions": {"type": "array"},
        "prediction_ids": {"type": "array", "items": {"type": "string"}},
    }
    shape = {"type": "object", "properties": answer, "required": list(answer)}
    operation["responses"] = {"200": _content("OK", shape)}


def _refuse(paths: Mapping[str, Mapping[str, dict[str, Any]]]) -> None:
    """The errors that each operation may answer with."""
    for path, operations in paths.items():
        for operation in operations.values():
            failures = _FAILURES if "requestBody" in operation else _REFUSALS
            for status, text in (_ROLLBACK if path == ROLLBACK else failures).items():
                operation["responses"][status] = _content(text, {"$ref": _ref("Error")})


def _content(text: str, shape: Json) -> dict[str, Json]:
    return {"description": text, "content": {"application/json": {"schema": shape}}}


def _ref(name: str) -> str:
    return f"#/components/schemas/{name}"
