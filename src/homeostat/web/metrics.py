"""What Prometheus scrapes: requests as the outermost layer sees them, and the predictor's counts.

It takes a predictor, the paths of the application and a way to ask how much waits for the journal.
It gives an ASGI layer that measures, and the text of `GET /metrics`: of one process, or, where
several share a folder of counters, the sum over all of them.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from homeostat.champion import Champion
from homeostat.records import Json
from homeostat.web.guards import route
from homeostat.web.logs import RequestLog

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Variable that names the folder in which the workers of one server keep their counters. It has to
be set before the client of Prometheus is imported."""

IDS = "homeostat.prediction_ids"
"""Where an endpoint leaves, in the scope of its request, the ids that it answered."""

ERROR = 4_096  # bytes of an error's body that are read for its code; no error has as many

COUNTS = {
    "predictions": ("Rows journalled and answered.", ()),
    "repeated": ("Rows whose prediction_id was answered before.", ()),
    "unseen": ("Values of a category that training never saw.", ("column",)),
    "nulls": ("Nulls among the features of answered rows.", ("column",)),
    "refused": ("Refused requests, by the reason.", ("code",)),
    "refused_columns": ("Refused requests, by the column that was at fault.", ("column",)),
    "labels": ("Labels taken: accepted, of these changed, and repeated.", ("kind",)),
    "conflicts": ("Rows whose prediction_id came again with other content.", ()),
    "refresh_failures": ("Looks at the pointer that found a release not fit to serve.", ()),
    "journal_failures": ("Times the journal could not be used.", ()),
}
"""What a predictor may count → help and label names; a name that is not here is not shown."""

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)


class Counted(Protocol):
    """What is asked of a predictor."""

    @property
    def champion(self) -> Champion | None: ...

    def counts(self) -> Mapping[tuple[str, str], int]:
        """Counts since the start by name and label; they only grow."""
        ...


@contextmanager
def shared(workers: int) -> Iterator[None]:
    """A fresh folder for the counters of several workers, removed at the end.

    One worker needs none, and one that the environment names already is left as it is.
    """
    if workers == 1 or os.environ.get(FOLDER):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="homeostat-metrics-") as folder:
        os.environ[FOLDER] = folder
        try:
            yield
        finally:
            os.environ.pop(FOLDER, None)


class Metrics:
    """The metrics of one application, and the log of its requests; for any thread.

    `waiting` gives the rows and labels that wait to be journalled and the age of the oldest, in
    seconds.
    """

    def __init__(
        self,
        predictor: Counted,
        waiting: Callable[[], tuple[int, float]] = lambda: (0, 0.0),
        log: RequestLog | None = None,
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # untyped there
        self._predictor = predictor
        self._waiting = waiting
        self.log = log or RequestLog("none")
        self._folder = os.environ.get(FOLDER)
        self._own = CollectorRegistry()
        self._own.register(_Serving(predictor))
        # With a folder the values are read from it, so the metrics themselves stay unregistered.
        kept = None if self._folder else self._own
        self._counts = {
            name: Counter(f"homeostat_{name}", text, labels, registry=kept)
            for name, (text, labels) in COUNTS.items()
        }
        self._requests = Counter(
            "homeostat_requests", "HTTP requests.", ("path", "status"), registry=kept
        )
        self._errors = Counter("homeostat_errors", "Error responses.", ("code",), registry=kept)
        self._seconds = _seconds(kept)
        self._rows, self._lag = _gauges(kept)
        self._bound: dict[tuple[str, int], Callable[[float], None]] = {}
        self._looking = threading.Lock()
        self._known: dict[tuple[str, str], int] = {}

    def observe(self, path: str, status: int, seconds: float) -> None:
        """One response; `path` must be one of few. Costs 1 µs, with a shared folder 3 µs."""
        measure = self._bound.get((path, status))
        if measure is None:
            measure = self._bound[path, status] = self._binding(path, status)
        measure(seconds)

    def _binding(self, path: str, status: int) -> Callable[[float], None]:
        count = self._requests.labels(path, str(status)).inc
        spread = self._seconds.labels(path).observe

        def measure(seconds: float) -> None:
            count()
            spread(seconds)

        return measure

    def done(
        self,
        path: str,
        status: int,
        seconds: float,
        body: bytes | memoryview = b"",
        *,
        ids: Sequence[str] = (),
        rows: Sequence[Mapping[str, Json]] = (),
    ) -> None:
        """Measure and log one response; see `RequestLog.request` for what is told of it.

        `body` is read where it is an error in the one shape, for its code.
        """
        self.observe(path, status, seconds)
        if status >= 400:
            error = _error(bytes(body))
            if error:
                self._errors.labels(error["code"]).inc()
            self.log.request(path, status, seconds, error=error)
        elif self.log.all:
            self.log.request(path, status, seconds, ids=ids, rows=rows)

    def look(self) -> None:
        """Take over what the predictor counted and what waits.

        Called at each scrape and, so that the other workers know of it as well, now and then.
        """
        with self._looking:
            for key, count in self._predictor.counts().items():
                more = count - self._known.get(key, 0)
                if more and key[0] in self._counts:
                    self._known[key] = count
                    family = self._counts[key[0]]
                    (family.labels(key[1]) if COUNTS[key[0]][1] else family).inc(more)
            rows, age = self._waiting()
            self._rows.set(rows)
            self._lag.set(age)

    def text(self) -> bytes:
        """What `GET /metrics` answers, in Prometheus' text format."""
        self.look()
        if self._folder is None:
            return generate_latest(self._own)
        _forget_dead(Path(self._folder))
        everyone = CollectorRegistry()
        MultiProcessCollector(everyone, path=self._folder)  # type: ignore[no-untyped-call]  # untyped there
        return generate_latest(everyone) + generate_latest(self._own)

    def response(self) -> Response:
        return Response(self.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _seconds(registry: CollectorRegistry | None) -> Histogram:
    text = "Time until the response was sent, seconds."
    return Histogram(
        "homeostat_request_seconds", text, ("path",), registry=registry, buckets=_BUCKETS
    )


def _gauges(registry: CollectorRegistry | None) -> tuple[Gauge, Gauge]:
    """What waits now: how many, of all workers, and for how long, of the slowest."""
    rows = Gauge(
        "homeostat_journal_waiting_rows",
        "Rows and labels that wait to be journalled.",
        registry=registry,
        multiprocess_mode="livesum",
    )
    lag = Gauge(
        "homeostat_journal_lag_seconds",
        "Age of the oldest of them, seconds.",
        registry=registry,
        multiprocess_mode="livemax",
    )
    return rows, lag


def _forget_dead(folder: Path) -> None:
    """Drop what dead workers had waiting; what they counted stays counted."""
    for file in folder.glob("gauge_live*.db"):
        pid = int(file.stem.rpartition("_")[2])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            with suppress(FileNotFoundError):  # another worker was faster
                mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]  # untyped there
        except PermissionError:
            pass  # alive, of another user


class _Serving(Collector):
    """The release that this process serves, read at the moment of the scrape."""

    def __init__(self, predictor: Counted) -> None:
        self._predictor = predictor

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        champion = self._predictor.champion
        serving = GaugeMetricFamily(
            "homeostat_champion_sequence",
            "Sequence of the pointer that the process which answers this serves.",
            labels=("model_version",),
        )
        if champion is not None:
            serving.add_metric((champion.release.id,), champion.release.sequence)
        yield serving


class Measured:
    """Measures and logs every request; paths outside the application count as one."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, paths: frozenset[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status, body = 500, b""

        async def watched(message: Message) -> None:
            nonlocal status, body
            if message["type"] == "http.response.start":
                status = message["status"]
            elif status >= 400 and len(body) < ERROR:
                body += message.get("body", b"")
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            path = route(scope)
            known = path if path in self._paths else "other"
            seconds = time.perf_counter() - began
            self._metrics.done(known, status, seconds, body, ids=scope.get(IDS, ()))


def _error(body: bytes) -> Mapping[str, Json]:
    """What an error response says of itself; empty for one of another shape."""
    with suppress(ValueError, KeyError, TypeError):
        error = json.loads(body)["error"]
        if isinstance(error["code"], str):
            return dict(error)
    return {}
