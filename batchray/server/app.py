"""The aiohttp application, and the life of the process around it."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, MutableMapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from aiohttp import web

from batchray.agents.build import check_agents_build
from batchray.callbacks import DELAYS_S, make_sender
from batchray.config import AgentSet, ServerSettings
from batchray.jobs.runtime import Runtime
from batchray.server.agent_catalog import AgentCatalog
from batchray.server.auth import authentication, check_exposure
from batchray.server.callback_outbox import StoredOutbox
from batchray.server.errors import errors_as_json
from batchray.server.executor_supervisor import supervise
from batchray.server.keys import KeyFile
from batchray.server.openapi import document
from batchray.server.routes.agents import AgentRoutes
from batchray.server.routes.batches import BatchRoutes
from batchray.server.routes.health import HealthRoutes
from batchray.server.routes.messages import MessageRoutes
from batchray.server.routing import ROUTES, NoQuery, ResponseBody, Route, add_routes
from batchray.server.scheduler import Service
from batchray.server.upload import Uploads

logger = logging.getLogger(__name__)

# Of aiohttp: the request line, one header, and how many there may be.
_MAX_LINE_BYTES, _MAX_HEADER_BYTES, _MAX_HEADERS = 8190, 8190, 100
# How long what is left of a refused body is thrown away, so that the client reads why before the connection closes.
_LINGER_S = 2.0
# What answers get to be finished, when what they wait for has ended already.
_ANSWER_S = 1.0
# What callbacks that are on their way have left of the time to stop; those that are not through are sent again.
_CALLBACK_S = 5.0
# What interrupted jobs get to stop; what they have recorded is safe, and the rest goes on at the next start.
_STOP_S = 2.0
# Of all that is done after the grace period together, whatever of it stands still: a lane, Ray, or a database.
_END_S = 4.5
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_UPLOADS = "uploads"


@dataclass(frozen=True)
class RunningServer:
    """A server that listens: its address, and what to do to stop it."""

    host: str
    port: int
    needs_key: bool
    service: Service
    supervision: asyncio.Task[None]
    """Ends, with ClusterError, where nothing can run any more."""

    @property
    def url(self) -> str:
        """Where clients find it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


class _WithoutTexts(logging.LoggerAdapter[logging.Logger]):
    """Names what went wrong with a connection by its kind alone: the parser's errors quote what the client sent."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Replace an error by its name."""
        error = kwargs.pop("exc_info", None)
        return f"{msg}: {type(error).__name__}" if isinstance(error, BaseException) else msg, kwargs


@asynccontextmanager
async def serving(settings: ServerSettings, agents: AgentSet, session: Runtime) -> AsyncIterator[RunningServer]:
    """Listen, and go on with unfinished jobs; stops in good order at the end.

    Raises ConfigError for what cannot be served, StoreLockedError for a data directory in use, ClusterError where Ray
    cannot be had, and OSError for an address in use.
    """
    check_agents_build(agents)
    keys = KeyFile(settings.data_dir)
    needs_key = check_exposure(settings, keys)
    catalog = AgentCatalog(agents)
    await _check_address(settings)
    async with AsyncExitStack() as ending:  # read it from the bottom up
        service = Service(settings, agents, session)
        ending.callback(service.close)
        ending.push_async_callback(asyncio.to_thread, session.close, _STOP_S)
        sender = make_sender(
            StoredOutbox(service),
            secrets=settings.callback_secret.get_secret_value().split() if settings.callback_secret else (),
            allowed_networks=settings.callback_networks,
            delays_s=settings.callback_delays_s if settings.callback_delays_s is not None else DELAYS_S,
        )
        service.on_end = sender.wake
        uploads = Uploads(_emptied_directory(settings), settings)
        (await session.ensure_executor(settings)).check(agents)
        health = HealthRoutes(service, uploads, lambda: session.is_ready(settings))
        routes = [
            *BatchRoutes(service, uploads).routes(),
            *AgentRoutes(service, catalog).routes(),
            *MessageRoutes(service).routes(),
            *health.routes(),
        ]
        runner = _runner(_application(routes, keys, health, needs_key=needs_key), settings)
        sending = asyncio.create_task(sender.run())
        ending.push_async_callback(_finished, sending)
        ending.push_async_callback(sender.close)
        ending.push_async_callback(runner.cleanup)
        supervision = asyncio.create_task(supervise(session, settings))
        ending.callback(supervision.cancel)
        await runner.setup()
        await service.start()  # before anybody can ask for something new, which it would take for something old
        site = web.TCPSite(runner, settings.host, settings.port)
        await site.start()
        host, port = runner.addresses[0][:2]
        yield RunningServer(host, port, needs_key, service, supervision)
        ends = asyncio.get_running_loop().time() + settings.shutdown_grace_s
        await service.stop()
        await sender.close(min(_CALLBACK_S, max(ends - asyncio.get_running_loop().time(), 0.0)))


async def _check_address(settings: ServerSettings) -> None:
    """Raise OSError for an address in use: before Ray is started, which takes seconds."""
    loop = asyncio.get_running_loop()
    bound = await loop.create_server(asyncio.Protocol, settings.host, settings.port, start_serving=False)
    bound.close()
    await bound.wait_closed()


async def _finished(task: asyncio.Task[None]) -> None:
    await task


def _runner(application: web.Application, settings: ServerSettings) -> web.AppRunner:
    return web.AppRunner(
        application,
        handle_signals=False,
        access_log=None,  # it would hold what clients put into a URL
        logger=_WithoutTexts(logger),
        keepalive_timeout=settings.upload_idle_s,  # headers that stall are cut off after it, too
        lingering_time=_LINGER_S,
        shutdown_timeout=_ANSWER_S,
        auto_decompress=False,
        max_line_size=_MAX_LINE_BYTES,
        max_field_size=_MAX_HEADER_BYTES,
        max_headers=_MAX_HEADERS,
    )


def _application(routes: Sequence[Route], keys: KeyFile, health: HealthRoutes, *, needs_key: bool) -> web.Application:
    described = document(routes, needs_key=needs_key)

    async def openapi(request: web.Request, query: NoQuery) -> ResponseBody:
        return described

    app = web.Application(
        middlewares=[health.measured(), errors_as_json, authentication(keys, needs_key=needs_key)],
        client_max_size=0,  # bodies are read by `upload`, within its limits
    )
    app[ROUTES] = {}
    add_routes(
        app,
        [
            *routes,
            Route("GET", "/openapi.json", openapi, "openapi", "Return this document", is_open=True, tag="health"),
        ],
    )
    return app


def _emptied_directory(settings: ServerSettings) -> Path:
    """Return where bodies are spooled, without what an earlier server left there."""
    directory = settings.data_dir.absolute() / _UPLOADS
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


async def serve(settings: ServerSettings, agents: AgentSet, on_start: Callable[[RunningServer], None]) -> None:
    """Serve until SIGTERM or SIGINT, which are heard from the very beginning to the very end.

    `on_start` is called when the server listens.  Raises as `serving` does, and ClusterError where nothing can run any
    more.
    """
    loop, stopped, started = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    limit = threading.Timer(settings.shutdown_grace_s + _END_S, _leave)
    limit.daemon = True

    def stop() -> None:
        if not stopped.is_set():
            stopped.set()
            limit.start()

    for signal_number in _SIGNALS:
        loop.add_signal_handler(signal_number, stop)
    session = await asyncio.to_thread(Runtime)

    async def live() -> None:
        async with serving(settings, agents, session) as running:
            started.set()
            on_start(running)
            await _first_of(stopped.wait(), running.supervision)
            running.service.is_draining = True  # at once: whoever balances load has to know
            if running.supervision.done():
                await running.supervision
            logger.info("stopping: running items have %g s to finish", settings.shutdown_grace_s)

    living = asyncio.create_task(live())
    try:
        await _first_of(stopped.wait(), living)
        if not started.is_set():
            living.cancel()
        with suppress(asyncio.CancelledError):
            await living
    finally:
        for signal_number in _SIGNALS:  # one that is asked twice to end has not failed
            loop.remove_signal_handler(signal_number)
            signal.signal(signal_number, signal.SIG_IGN)


def _leave() -> NoReturn:
    """End this process at once."""
    logger.warning("not all could be ended in time; what is recorded is safe, and jobs go on at the next start")
    os._exit(0)


async def _first_of(event: Coroutine[Any, Any, object], task: asyncio.Task[None]) -> None:
    """Wait for the first of the two; the task goes on."""
    waiting = asyncio.ensure_future(event)
    await asyncio.wait((waiting, task), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
