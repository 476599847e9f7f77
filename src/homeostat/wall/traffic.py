"""Traffic: what the servers' `/metrics` say of the last seconds.

Takes the addresses of servers and a key. Gives rates and quantiles between two scrapes of each; a
server that does not answer is told of as such.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from http.client import HTTPResponse
from typing import Any
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from prometheus_client.parser import text_string_to_metric_families

from homeostat.errors import cause

PATHS = frozenset({"/predict", "/invocations"})
LARGEST = 4_000_000  # bytes of an answer
TIMEOUT = 2.0  # seconds, for each part of an answer
DEADLINE = 4.0  # seconds, for the whole of it
PIECE = 65_536  # bytes
TOGETHER = 16  # servers that are asked at once


@dataclass(frozen=True, slots=True)
class Count:
    """What one scrape counted, since the server's start."""

    at: float  # seconds of a clock that only goes forward
    requests: float
    failed: float  # answered with a status of 400 or more
    rows: float  # predictions
    waiting: float  # rows and labels that wait to be journalled, now
    buckets: Mapping[float, float]  # upper end in seconds → requests as quick
    release: str


@dataclass(frozen=True, slots=True)
class Server:
    """One server now; None where two scrapes do not tell yet, or nobody asked."""

    address: str
    problem: str = ""  # why it cannot be read
    met: bool = False  # it answered once, or the settings name it
    requests: float | None = None  # a second
    failed: float | None = None  # share of these
    rows: float | None = None  # a second
    median: float | None = None  # seconds, the upper end of the histogram's bucket
    slow: float | None = None  # 99 % are at least as quick
    waiting: float = 0.0
    release: str = ""


class Traffic:
    """Scrapes servers; `look` may be called from one thread at a time.

    The servers that are `expected` count as down from the first scrape on that finds them so; any
    other may never have been started.
    """

    def __init__(self, addresses: Sequence[str], key: str = "", *, expected: bool = True) -> None:
        self._addresses = [each.rstrip("/") for each in addresses]
        self._key = key
        self._last: dict[str, Count] = {}
        self._met = set(self._addresses) if expected else set()
        # Neither a proxy nor where a server sends us to is to see the key.
        self._opener = build_opener(ProxyHandler({}), _Stay)
        self.servers: tuple[Server, ...] = ()

    def look(self) -> None:
        """Scrape all of them once, side by side; never raises."""
        with ThreadPoolExecutor(TOGETHER) as threads:
            self.servers = tuple(threads.map(self._server, self._addresses))

    def _server(self, address: str) -> Server:
        try:
            count = counted(self._scrape(address), time.monotonic())
        except Exception as error:  # noqa: BLE001 - the page tells that it does not answer
            self._last.pop(address, None)
            return Server(address, _told(error), address in self._met)
        before = self._last.get(address)
        self._last[address] = count
        self._met.add(address)
        return replace(between(address, before, count), met=True)

    def _scrape(self, address: str) -> str:
        if not address.startswith(("http://", "https://")):
            raise ValueError(address)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        asked = Request(f"{address}/metrics", headers=headers)  # noqa: S310 - checked above
        until = time.monotonic() + DEADLINE
        with self._opener.open(asked, timeout=TIMEOUT) as answer:
            return _read(answer, until).decode()


class _Stay(HTTPRedirectHandler):
    """Follows no redirect: that is an answer of status 3xx."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _read(answer: HTTPResponse, until: float) -> bytes:
    """The whole body. Raises TimeoutError for one that is late, ValueError for one too large."""
    body = b""
    while piece := answer.read1(PIECE):
        body += piece
        if time.monotonic() > until:
            raise TimeoutError("timed out")
        if len(body) > LARGEST:
            raise ValueError("too large")
    return body


def down(servers: Sequence[Server]) -> bool:
    """Whether there is a server that should answer, and none does."""
    return any(each.met for each in servers) and all(each.problem for each in servers)


def _told(error: Exception) -> str:
    """Why a server cannot be read, in few words."""
    code, reason = getattr(error, "code", None), getattr(error, "reason", None)
    if code is not None:
        return f"HTTP status {code}"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return cause(error).split(" at ")[0]


def counted(text: str, at: float) -> Count:
    """What a scrape says; raises ValueError for what is no text of Prometheus."""
    requests = failed = rows = waiting = 0.0
    buckets: dict[float, float] = {}
    release = ""
    for family in text_string_to_metric_families(text):
        for name, labels, value, *_ in family.samples:
            if name == "homeostat_requests_total" and labels["path"] in PATHS:
                requests += value
                failed += value if labels["status"] >= "400" else 0.0
            elif name == "homeostat_request_seconds_bucket" and labels["path"] in PATHS:
                end = float(labels["le"])
                buckets[end] = buckets.get(end, 0.0) + value
            elif name == "homeostat_predictions_total":
                rows += value
            elif name == "homeostat_journal_waiting_rows":
                waiting += value
            elif name == "homeostat_champion_sequence":
                release = labels["model_version"]
    return Count(at, requests, failed, rows, waiting, buckets, release)


def between(address: str, before: Count | None, now: Count) -> Server:
    """Rates between two scrapes; a server that was started anew counts from its start."""
    if before is None or now.at <= before.at:
        return Server(address, waiting=now.waiting, release=now.release)
    if now.requests < before.requests:
        before = Count(before.at, 0, 0, 0, 0, {}, "")
    seconds, asked = now.at - before.at, now.requests - before.requests
    grown = {end: count - before.buckets.get(end, 0.0) for end, count in now.buckets.items()}
    return Server(
        address,
        requests=asked / seconds,
        failed=(now.failed - before.failed) / asked if asked else None,
        rows=max(0.0, now.rows - before.rows) / seconds,
        median=quantile(grown, 0.5),
        slow=quantile(grown, 0.99),
        waiting=now.waiting,
        release=now.release,
    )


def quantile(buckets: Mapping[float, float], share: float) -> float | None:
    """The upper end of the bucket in which this share is reached; None of no requests."""
    total = max(buckets.values(), default=0.0)
    if total <= 0:
        return None
    return next(end for end in sorted(buckets) if buckets[end] >= share * total)
