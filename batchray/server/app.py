"""The HTTP server: builds its parts, listens, and stops within the grace period."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, MutableMapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from aiohttp import web

from batchray.agents.build import check_agents_build
from batchray.callbacks import DELAYS_S, CallbackSender, make_sender
from batchray.config import AgentSet, Provider, ServerSettings
from batchray.jobs.retention import run_purge, run_retention
from batchray.jobs.runtime import Runtime
from batchray.server.acceptance import BatchAcceptance
from batchray.server.agent_catalog import AgentCatalog, AgentLookup
from batchray.server.agent_states import AgentStates
from batchray.server.auth import authentication, check_exposure
from batchray.server.background import BackgroundTasks
from batchray.server.callback_outbox import StoredOutbox
from batchray.server.clients import ClientWatch
from batchray.server.connections import LINGER_S
from batchray.server.deletion import JobDeletion
from batchray.server.errors import errors_as_json
from batchray.server.executor_supervisor import supervise
from batchray.server.idle_jobs import IdleJobs
from batchray.server.keys import KeyFile
from batchray.server.listener import bound, listening
from batchray.server.openai_acceptance import OpenAIAcceptance
from batchray.server.openapi import openapi_route
from batchray.server.refusals import MAX_HEADERS, MAX_LINE_BYTES
from batchray.server.request_rules import only_health_checks
from batchray.server.result_streams import ResultStreams
from batchray.server.routes.agents import AgentRoutes
from batchray.server.routes.background_runs import BackgroundRunRoutes
from batchray.server.routes.batches import BatchRoutes
from batchray.server.routes.blocks import BlockRoutes
from batchray.server.routes.files import FileRoutes
from batchray.server.routes.health import HealthRoutes
from batchray.server.routes.jobs import JobRoutes
from batchray.server.routes.messages import MessageRoutes
from batchray.server.routes.models import ModelRoutes
from batchray.server.routes.openai_batches import OpenAIBatchRoutes
from batchray.server.routes.runs import RunRoutes
from batchray.server.routes.steps import StepRoutes
from batchray.server.routes.tools import ToolRoutes
from batchray.server.routing import ROUTES, add_routes, prepare_response
from batchray.server.scheduler import JobScheduler
from batchray.server.single_runs import SingleRuns
from batchray.server.stalled_readers import StalledReaders
from batchray.server.storage import ServerStorage
from batchray.server.upload import Uploads

logger = logging.getLogger(__name__)

# How long responses may still be written after the jobs have stopped.
_RESPONSE_S = 1.0
# The largest part of the remaining grace period that callbacks in delivery get; the others are sent at the next start.
_CALLBACK_S = 5.0
# How long interrupted jobs may take to stop.  Recorded results are durable, and the next start does the rest.
_STOP_S = 2.0
# The limit for everything after the grace period, in case a lane, Ray or the database hangs.
_EXIT_S = 4.5
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_UPLOADS = "uploads"


@dataclass(frozen=True)
class RunningServer:
    """A server that listens."""

    host: str
    port: int
    needs_key: bool
    begin_drain: Callable[[], None]
    """Stops accepting work; `/readyz` returns 503 from then on."""
    supervision: asyncio.Task[None]
    """Fails with ClusterError if the executor is lost and cannot be restarted."""

    @property
    def url(self) -> str:
        """The base URL for clients."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


class _WithoutClientText(logging.LoggerAdapter[logging.Logger]):
    """Logs connection errors by their type only: the messages of the HTTP parser quote what a client sent."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Replace an exception by the name of its type."""
        error = kwargs.pop("exc_info", None)
        return f"{msg}: {type(error).__name__}" if isinstance(error, BaseException) else msg, kwargs


@dataclass(frozen=True)
class _Jobs:
    """The parts that run jobs: the store, the scheduler, and the sender of callbacks."""

    storage: ServerStorage
    scheduler: JobScheduler
    idle_jobs: IdleJobs
    deletion: JobDeletion
    sender: CallbackSender
    tasks: BackgroundTasks


@asynccontextmanager
async def serving(settings: ServerSettings, agents: AgentSet, runtime: Runtime) -> AsyncIterator[RunningServer]:
    """Listen and continue unfinished jobs; on exit, drain within the grace period and close everything.

    Raises ConfigError for unusable settings or agents, StoreLockedError if another process uses the data directory,
    ClusterError if Ray cannot be started or reached, and OSError if the address is in use.
    """
    check_agents_build(agents)
    runtime.keeps_paused_jobs = True
    keys = KeyFile(settings.data_dir)
    needs_key = check_exposure(settings, keys)
    catalog = AgentCatalog(agents)
    async with (
        bound(settings.host, settings.port) as sockets,  # before Ray is started, which takes seconds
        _open_jobs(settings, runtime, agents.providers) as jobs,
    ):
        uploads = Uploads(_empty_upload_directory(settings), settings)
        (await runtime.ensure_executor(settings)).check(agents)
        streams = ResultStreams(jobs.storage)
        application = _application(
            settings, agents, runtime, jobs, uploads, catalog, keys, streams, needs_key=needs_key
        )
        async with (
            _sending(jobs.sender),
            _http_runner(application) as runner,
            _supervising(runtime, settings) as supervision,
        ):
            # Before clients can create jobs, which the first adoption would take for jobs of another server.
            await jobs.idle_jobs.start()
            if settings.retention_days is not None:
                jobs.tasks.spawn(run_retention(jobs.storage.store, settings.retention_days))
            jobs.tasks.spawn(run_purge(jobs.storage.store))
            jobs.tasks.spawn(jobs.storage.bulk.return_memory(streams.forget_pages))
            jobs.tasks.spawn(StalledReaders(settings.reader_idle_s).run(_server_of(runner)))
            async with listening(sockets, _server_of(runner), settings, _connection_options(settings)):
                host, port = sockets[0].getsockname()[:2]
                yield RunningServer(host, port, needs_key, jobs.scheduler.begin_drain, supervision)
                await _drain(jobs, settings.shutdown_grace_s)
                streams.cut()


@asynccontextmanager
async def _open_jobs(
    settings: ServerSettings, runtime: Runtime, providers: Mapping[str, Provider]
) -> AsyncIterator[_Jobs]:
    """Open the store and build the parts that run jobs; on exit, stop the jobs, then the tasks, then the store."""
    async with AsyncExitStack() as on_exit:
        storage = ServerStorage(settings, runtime)
        on_exit.callback(storage.close)
        tasks = BackgroundTasks()
        on_exit.callback(tasks.cancel)
        on_exit.push_async_callback(asyncio.to_thread, runtime.close, _STOP_S)
        sender = make_sender(
            StoredOutbox(storage),
            secrets=settings.callback_secret.get_secret_value().split() if settings.callback_secret else (),
            allowed_networks=settings.callback_networks,
            delays_s=settings.callback_delays_s if settings.callback_delays_s is not None else DELAYS_S,
        )
        scheduler = JobScheduler(settings, runtime, storage, tasks, on_job_end=sender.wake, providers=providers)
        idle_jobs = IdleJobs(settings, storage, scheduler, tasks)
        yield _Jobs(storage, scheduler, idle_jobs, JobDeletion(storage, scheduler, tasks), sender, tasks)


@asynccontextmanager
async def _sending(sender: CallbackSender) -> AsyncIterator[None]:
    """Send callbacks inside the block."""
    sending = asyncio.create_task(sender.run())
    try:
        yield
    finally:
        await sender.close()
        await sending


@asynccontextmanager
async def _http_runner(application: web.Application) -> AsyncIterator[web.AppRunner]:
    """Set up aiohttp, without listening; on exit, close all connections."""
    runner = web.AppRunner(application, handle_signals=False, shutdown_timeout=_RESPONSE_S)
    try:
        await runner.setup()
        yield runner
    finally:
        await runner.cleanup()


def _server_of(runner: web.AppRunner) -> web.Server:
    assert runner.server is not None
    return runner.server


def _connection_options(settings: ServerSettings) -> dict[str, Any]:
    """Return the options of aiohttp for each connection."""
    return {
        "access_log": None,  # it would contain what clients put into URLs
        "logger": _WithoutClientText(logger),
        "keepalive_timeout": settings.upload_idle_s,  # also ends connections whose headers stall
        "lingering_time": LINGER_S,
        "auto_decompress": False,
        "max_line_size": MAX_LINE_BYTES,
        "max_field_size": MAX_LINE_BYTES,
        "max_headers": MAX_HEADERS,
    }


@asynccontextmanager
async def _supervising(runtime: Runtime, settings: ServerSettings) -> AsyncIterator[asyncio.Task[None]]:
    """Supervise the executor inside the block; yields the task, which fails if the executor is lost for good."""
    supervision = asyncio.create_task(supervise(runtime, settings))
    try:
        yield supervision
    finally:
        supervision.cancel()


async def _drain(jobs: _Jobs, grace_s: float) -> None:
    """Wait for the running items, then for callbacks in delivery, all within the grace period."""
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + grace_s
    await jobs.scheduler.drain()
    await jobs.sender.close(min(_CALLBACK_S, max(ends_at - loop.time(), 0.0)))


def _application(
    settings: ServerSettings,
    agents: AgentSet,
    runtime: Runtime,
    jobs: _Jobs,
    uploads: Uploads,
    catalog: AgentCatalog,
    keys: KeyFile,
    streams: ResultStreams,
    *,
    needs_key: bool,
) -> web.Application:
    """Build the aiohttp application: all routes, with the parts that they use."""
    storage, scheduler = jobs.storage, jobs.scheduler
    lookup = AgentLookup(agents, storage.reader)
    runs, clients = SingleRuns(settings, runtime, storage, lookup, scheduler), ClientWatch()
    agent_routes, states = AgentRoutes(settings, storage, lookup, catalog), AgentStates(catalog, lookup, storage.reader)
    accepts = BatchAcceptance(storage, lookup, scheduler)
    health = HealthRoutes(storage, scheduler, uploads, lambda: runtime.is_ready(settings))
    routes = [
        *BatchRoutes(storage, uploads, accepts, scheduler, streams).routes(),
        *agent_routes.routes(),
        *ModelRoutes(catalog, lookup).routes(),
        *BlockRoutes(settings, storage, states, catalog).routes(),
        *ToolRoutes(settings, states, lookup, catalog.tools, agent_routes.change, runs, clients).routes(),
        *MessageRoutes(settings, storage, lookup, runs, clients).routes(),
        *BackgroundRunRoutes(settings, storage, lookup, runs, scheduler).routes(),
        *RunRoutes(settings, storage.reader, runs).routes(),
        *JobRoutes(storage, scheduler, jobs.deletion).routes(),
        *StepRoutes(settings, storage).routes(),
        *FileRoutes(storage, uploads, scheduler, jobs.tasks, streams).routes(),
        *OpenAIBatchRoutes(settings, storage, OpenAIAcceptance(storage, lookup, uploads, accepts), scheduler).routes(),
        *health.routes(),
    ]
    application = web.Application(
        middlewares=[health.measured(), errors_as_json, only_health_checks, authentication(keys, needs_key=needs_key)],
        client_max_size=0,  # `upload` reads the bodies, within its own limits
    )
    application[ROUTES] = {}
    application.on_response_prepare.append(prepare_response)
    add_routes(application, [*routes, openapi_route(routes, lambda: needs_key or bool(keys.all()))])
    return application


def _empty_upload_directory(settings: ServerSettings) -> Path:
    """Return the directory in which bodies are spooled, without files that an earlier server left there."""
    directory = settings.data_dir.absolute() / _UPLOADS
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


async def serve(settings: ServerSettings, agents: AgentSet, on_start: Callable[[RunningServer], None]) -> None:
    """Serve until SIGTERM or SIGINT, which are handled from the first to the last moment.

    `on_start` is called when the server listens.  Raises as `serving` does, and ClusterError if the executor is lost
    and cannot be restarted.
    """
    loop, stopped, started = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    exit_timer = threading.Timer(settings.shutdown_grace_s + _EXIT_S, _exit_now)
    exit_timer.daemon = True

    def stop() -> None:
        if not stopped.is_set():
            stopped.set()
            exit_timer.start()

    for signal_number in _SIGNALS:
        loop.add_signal_handler(signal_number, stop)
    runtime = await asyncio.to_thread(Runtime)

    async def live() -> None:
        async with serving(settings, agents, runtime) as server:
            started.set()
            on_start(server)
            await _first_of(stopped.wait(), server.supervision)
            server.begin_drain()  # at once, so that load balancers see it
            if server.supervision.done():
                await server.supervision
            logger.info("stopping: running items have %g s to finish", settings.shutdown_grace_s)

    living = asyncio.create_task(live())
    try:
        await _first_of(stopped.wait(), living)
        if not started.is_set():
            living.cancel()
        with suppress(asyncio.CancelledError):
            await living
    finally:
        for signal_number in _SIGNALS:  # a second signal must not turn a clean exit into a failure
            loop.remove_signal_handler(signal_number)
            signal.signal(signal_number, signal.SIG_IGN)


def _exit_now() -> NoReturn:
    """Exit this process without further cleanup."""
    logger.warning("the shutdown took too long; recorded results are safe, and jobs continue at the next start")
    os._exit(0)


async def _first_of(event: Coroutine[Any, Any, object], task: asyncio.Task[None]) -> None:
    """Wait until one of the two is done.  The task is not cancelled."""
    waiting = asyncio.ensure_future(event)
    await asyncio.wait((waiting, task), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
