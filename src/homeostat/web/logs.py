"""Structured logs: one JSON object a line on stderr, requests among them as the settings ask.

It takes what is known of a request once it is answered. It gives a line without any value of a
feature, unless `serving.log` is "values"; refusals and failures are always told.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
import structlog

from homeostat.records import Json

IDS = 100  # prediction ids, and rows of values, that one line names at most

_log = structlog.get_logger("homeostat.web")


def as_json(least: int = logging.INFO) -> None:
    """One JSON object a line on stderr, unless the process has chosen otherwise; lines below the
    level `least` are left out.
    """
    if not structlog.is_configured():
        structlog.configure(
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.JSONRenderer(serializer=_encoded),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(least),
            logger_factory=lambda *_: structlog.WriteLogger(sys.stderr),
        )


def _encoded(event: Any, **_: Any) -> str:
    return msgspec.json.encode(event, enc_hook=repr).decode()


class RequestLog:
    """Lines of requests; `mode` is the setting `serving.log`."""

    def __init__(self, mode: Literal["none", "requests", "values"]) -> None:
        self.all = mode != "none"  # whether requests that went well are told, too
        self.values = mode == "values"

    def request(
        self,
        path: str,
        status: int,
        seconds: float,
        *,
        error: Mapping[str, Json] | None = None,
        ids: Sequence[str] = (),
        rows: Sequence[Mapping[str, Json]] = (),
    ) -> None:
        """One answered request. `rows` are told only where values were asked for.

        Of an error only code, field and row number are told: its message is for the client.
        """
        if status < 400 and not self.all:
            return
        line: dict[str, Json] = {"path": path, "status": status, "ms": round(1000 * seconds, 3)}
        if ids:
            line |= {"rows": len(ids), "ids": list(ids[:IDS])}
        if rows and self.values:
            line["values"] = list(rows[:IDS])
        if error:
            # A name that is no feature is the client's own text.
            told = ("code", "row") if error["code"] == "unknown_field" else ("code", "field", "row")
            line |= {name: error[name] for name in told if name in error}
        (_log.warning if status >= 500 else _log.info)("request", **line)
