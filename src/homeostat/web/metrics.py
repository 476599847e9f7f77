"""What Prometheus scrapes: requests as the outermost layer sees them, and the predictor's counts.

It takes a predictor and the paths of the application. It gives an ASGI layer that measures, and
the text of `GET /metrics`; each application has a registry of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from homeostat.predictor import Predictor
from homeostat.web.guards import route

_FAMILIES = {
    "predictions": ("Predictions journalled and answered.", ()),
    "repeated": ("Rows whose prediction_id was answered before.", ()),
    "unseen": ("Values of a category that training never saw.", ("column",)),
    "refused": ("Refused rows.", ("code",)),
    "labels": ("Labels taken: accepted, of these changed, and repeated.", ("kind",)),
    "refresh_failures": ("Looks at the pointer that found a release not fit to serve.", ()),
    "journal_failures": ("Times the journal could not be used.", ()),
}
"""What the predictor counts → help and label names."""


class Metrics:
    """The registry of one application."""

    def __init__(self, predictor: Predictor) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Counts(predictor))
        self._requests = Counter(
            "homeostat_requests",
            "HTTP requests.",
            ("path", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "homeostat_request_seconds",
            "Time until the response was sent, seconds.",
            ("path",),
            registry=self._registry,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
        )

    def observe(self, path: str, status: int, seconds: float) -> None:
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def response(self) -> Response:
        return Response(
            generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )


class _Counts(Collector):
    """Reads the predictor at the moment of the scrape."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        counts = self._predictor.counts()
        for name, (text, labels) in _FAMILIES.items():
            family = CounterMetricFamily(f"homeostat_{name}", text, labels=labels)
            found = {label: count for (what, label), count in counts.items() if what == name}
            for label, count in (found or ({} if labels else {"": 0})).items():
                family.add_metric((label,) if labels else (), count)
            yield family
        champion = self._predictor.champion
        serving = GaugeMetricFamily(
            "homeostat_champion_sequence",
            "Sequence of the pointer that is served.",
            labels=("model_version",),
        )
        if champion is not None:
            serving.add_metric((champion.release.id,), champion.release.sequence)
        yield serving


class Measured:
    """Measures every request; paths outside the application count as one."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, paths: frozenset[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            path = route(scope)
            known = path if path in self._paths else "other"
            self._metrics.observe(known, status, time.perf_counter() - began)
