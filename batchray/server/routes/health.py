"""Routes that report the server's own state: health checks, readiness, Prometheus metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from batchray.errors import StoreError
from batchray.schema.base import WireModel
from batchray.server.bodies import PlainText
from batchray.server.errors import unavailable
from batchray.server.job_table import JobTable
from batchray.server.recent_check import RecentCheck
from batchray.server.routing import VERSION, NoQuery, ResponseBody, Route, route_of
from batchray.server.scheduler import JobScheduler
from batchray.server.storage import ServerStorage
from batchray.server.upload import Uploads
from batchray.store import Store


class HealthView(WireModel):
    """The server's version; the response itself says that the server is up."""

    version: str = VERSION
    status: str = "ok"


class HealthRoutes:
    """The endpoints of the server's own state.  `is_alive` returns whether the executor can run requests."""

    def __init__(
        self, storage: ServerStorage, scheduler: JobScheduler, uploads: Uploads, is_alive: Callable[[], bool]
    ) -> None:
        self._storage, self._scheduler, self._is_alive = storage, scheduler, is_alive
        self._storage_check = RecentCheck(self._check_storage)
        self._registry = CollectorRegistry()
        self._registry.register(_StateCollector(storage.reader.sync, scheduler.table, uploads))
        self._n_requests = Counter(
            "batchray_http_requests", "HTTP requests", ("method", "route", "status"), registry=self._registry
        )
        self._durations = Histogram(
            "batchray_http_request_seconds", "Time to answer HTTP requests", ("route",), registry=self._registry
        )

    def routes(self) -> list[Route]:
        """Return the routes.  All except the metrics are open, because health checkers have no keys."""
        route = partial(Route, "GET", tag="server")
        check = partial(route, response=HealthView, is_open=True, is_health_check=True)
        return [
            check("/v1/health/", self.health, "check_health", "Return the server's version"),
            check("/livez", self.livez, "check_livez", "Check that the process responds"),
            check("/readyz", self.readyz, "check_readyz", "Check that batches are accepted and run"),
            route(
                "/metrics",
                self.metrics,
                "read_metrics",
                "Return Prometheus metrics",
                response=PlainText(),
                errors=(403,),
                is_for_operator=True,
            ),
        ]

    async def health(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Return the version, as Letta's server does."""
        return HealthView()

    async def livez(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Return at once: this proves only that the event loop runs."""
        return HealthView()

    async def readyz(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Return 200 if a batch would be accepted and run now.  Raises HttpError 503 with the reason if not."""
        if self._scheduler.is_draining:
            raise unavailable(10, "the server is stopping")
        if not self._is_alive():
            raise unavailable(5, "the executor is not running")
        await self._storage_check.passed()
        return HealthView()

    async def _check_storage(self) -> None:
        """Raise HttpError 503 if the store does not respond, or if the disk is full."""
        try:
            async with asyncio.timeout(2):
                has_room = await self._storage.probe.call(self._storage.can_read_and_has_room)
        except (StoreError, TimeoutError):
            raise unavailable(5, "the store does not respond") from None
        if not has_room:
            raise unavailable(30, "the disk is full")

    async def metrics(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Return the metrics in Prometheus' text format."""
        text = await asyncio.to_thread(generate_latest, self._registry)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    def measured(self) -> Middleware:
        """Return the middleware that counts requests.  Its labels are routes, never text that a client chose."""

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


class _StateCollector(Collector):
    """Gauges of the store and the scheduler, read at each scrape."""

    def __init__(self, reader: Store, jobs: JobTable, uploads: Uploads) -> None:
        self._reader, self._jobs, self._uploads = reader, jobs, uploads

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges."""
        reader = self._reader
        jobs = GaugeMetricFamily("batchray_jobs", "Jobs in the store, by status", labels=("status",))
        for status, count in reader.jobs.count_by_status().items():
            jobs.add_metric((status,), count)
        yield jobs
        items = GaugeMetricFamily("batchray_items", "Items of all jobs, by outcome", labels=("status",))
        for status, count in reader.items.count_by_status().items():
            items.add_metric((status,), count)
        yield items
        yield GaugeMetricFamily("batchray_in_flight", "Requests in flight", value=self._jobs.n_in_flight())
        yield GaugeMetricFamily("batchray_uploads", "Bodies being received or stored", value=self._uploads.n_open)
        waiting = reader.callbacks.count()
        yield GaugeMetricFamily("batchray_callbacks_waiting", "Callbacks still to be delivered", value=waiting)
