"""The routes that tell how the server is: for supervisors, for Prometheus, and for Letta's clients."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from batchray.errors import StoreError
from batchray.schema.base import WireModel
from batchray.server.errors import later
from batchray.server.routing import VERSION, Answer, NoQuery, Route, route_of
from batchray.server.scheduler import Service
from batchray.server.upload import Uploads


class HealthView(WireModel):
    """That the server answers, and which version it is."""

    version: str = VERSION
    status: str = "ok"


class Health:
    """The endpoints of the server's own state.  `is_alive` tells whether what runs the requests is there."""

    def __init__(self, service: Service, uploads: Uploads, is_alive: Callable[[], bool]) -> None:
        self._service, self._is_alive = service, is_alive
        self._registry = CollectorRegistry()
        self._registry.register(_State(service, uploads))
        self._n_requests = Counter(
            "batchray_http_requests", "HTTP requests", ("method", "route", "status"), registry=self._registry
        )
        self._durations = Histogram(
            "batchray_http_request_seconds", "Time to answer HTTP requests", ("route",), registry=self._registry
        )

    def routes(self) -> list[Route]:
        """Return the routes; all but the metrics are open, as their callers have no keys."""
        return [
            Route("GET", "/v1/health/", self.health, "Tell the version", answer=HealthView, is_open=True, tag="health"),
            Route(
                "GET",
                "/livez",
                self.livez,
                "Whether the process answers",
                answer=HealthView,
                is_open=True,
                tag="health",
            ),
            Route(
                "GET",
                "/readyz",
                self.readyz,
                "Whether it takes batches, and runs them",
                answer=HealthView,
                errors=(503,),
                is_open=True,
                tag="health",
            ),
            Route("GET", "/metrics", self.metrics, "Prometheus metrics", media_type="text/plain", tag="health"),
        ]

    async def health(self, request: web.Request, query: NoQuery) -> Answer:
        """Answer as Letta's server does."""
        return HealthView()

    async def livez(self, request: web.Request, query: NoQuery) -> Answer:
        """Answer at once: it says no more than that this loop turns."""
        return HealthView()

    async def readyz(self, request: web.Request, query: NoQuery) -> Answer:
        """Tell whether a batch would be taken and run now."""
        if self._service.is_draining:
            raise later(10, "the server is stopping")
        if not self._is_alive():
            raise later(5, "what runs the requests is not there")
        try:
            async with asyncio.timeout(2):
                await self._service.read(self._service.reader.count_callbacks)
                has_room = await self._service.read(self._service.store.has_room)
        except (StoreError, TimeoutError):
            raise later(5, "the store does not answer") from None
        if not has_room:
            raise later(30, "the disk is full")
        return HealthView()

    async def metrics(self, request: web.Request, query: NoQuery) -> Answer:
        """Return the metrics in Prometheus' text format."""
        text = await self._service.read(generate_latest, self._registry)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    def measured(self) -> Middleware:
        """Return the middleware that counts requests, by their route and never by what a client makes up."""

        @web.middleware
        async def measure(request: web.Request, handler: Handler) -> web.StreamResponse:
            loop = asyncio.get_running_loop()
            started = loop.time()
            response = await handler(request)
            route = route_of(request)
            name = route.path if route else "unknown"
            method = request.method if route else "other"
            self._n_requests.labels(method, name, str(response.status)).inc()
            self._durations.labels(name).observe(loop.time() - started)
            return response

        return measure


class _State(Collector):
    """What the store and the service hold, read when it is asked for."""

    def __init__(self, service: Service, uploads: Uploads) -> None:
        self._service, self._uploads = service, uploads

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges."""
        reader = self._service.reader
        jobs = GaugeMetricFamily("batchray_jobs", "Jobs in the store, by status", labels=("status",))
        for status, count in reader.count_jobs().items():
            jobs.add_metric((status,), count)
        yield jobs
        items = GaugeMetricFamily("batchray_items", "Items of all jobs, by outcome", labels=("status",))
        for status, count in reader.count_items().items():
            items.add_metric((status,), count)
        yield items
        yield GaugeMetricFamily("batchray_in_flight", "Requests in flight", value=self._service.in_flight())
        yield GaugeMetricFamily("batchray_uploads", "Bodies being received or stored", value=self._uploads.n_open)
        waiting = reader.count_callbacks()
        yield GaugeMetricFamily("batchray_callbacks_waiting", "Callbacks still to be delivered", value=waiting)
