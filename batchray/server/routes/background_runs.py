"""The routes of runs for which no client waits: start one, and cancel runs of an agent."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, islice

from aiohttp import web

from batchray.batch.rules import RequestRules
from batchray.config import ServerSettings
from batchray.schema import Run, is_id, run_id
from batchray.server.agent_catalog import AgentLookup
from batchray.server.asks import AskInBackground, AskReader, CancelRuns
from batchray.server.auth import user_of
from batchray.server.errors import NO_RETRY, HttpError
from batchray.server.idempotency import KEY_PATTERN
from batchray.server.routing import NoQuery, ResponseBody, Route, with_warning
from batchray.server.run_reader import RunReader
from batchray.server.run_views import run_view
from batchray.server.scheduler import JobScheduler
from batchray.server.single_runs import SingleRuns
from batchray.server.storage import ServerStorage
from batchray.server.upload import read_json
from batchray.store import JobRecord, RunFilter, StoredRun

_PATH = "/v1/agents/{agent_id}/messages"
_MAX_CANCELED = 100
_ACTIVE = RunFilter(statuses=("created", "running"), kinds=("run", "background"))


class BackgroundRunRoutes:
    """The endpoints that start runs in the background, and cancel runs."""

    def __init__(
        self,
        settings: ServerSettings,
        storage: ServerStorage,
        agents: AgentLookup,
        runs: SingleRuns,
        scheduler: JobScheduler,
    ) -> None:
        self._settings, self._reader, self._agents = settings, storage.reader, agents
        self._runs, self._scheduler = runs, scheduler
        self._asks, self._read = AskReader(settings, storage.reader, agents), RunReader(storage.reader.sync)

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route(
                "POST",
                f"{_PATH}/async",
                self.start,
                "send_agent_message_async",
                "Send messages to an agent without waiting for its response",
                body=AskInBackground,
                has_strict_body=True,
                response=Run,
                errors=(404, 408, 413, 415, 422, 507),
                headers={"Idempotency-Key": KEY_PATTERN},
                tag="agents",
            ),
            Route(
                "POST",
                f"{_PATH}/cancel",
                self.cancel,
                "cancel_agent_runs",
                "Cancel runs of an agent that are no part of a batch",
                body=CancelRuns,
                has_strict_body=True,
                response=dict[str, str],
                errors=(404, 408, 409, 413, 415, 422),
                tag="agents",
            ),
        ]

    async def start(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Start a run and return it: it is durable, and continues also after a restart of the server."""
        given, run = await self._asks.read(request, AskInBackground)
        job = await self._runs.start(replace(run, in_background=True, callback_url=given.callback_url))
        started = await self._reader.call(self._read.run, run.user_id, run_id(job.id, 0))
        return with_warning(run_view(started), run.unused)

    async def cancel(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Cancel runs; the response has `cancelled` for each that is, and `failed` for any other id.

        A run of a batch ends only with the batch.
        """
        user_id, agent_id = user_of(request), request.match_info["agent_id"]
        await self._reader.call(self._agents.find, user_id, agent_id)
        given = CancelRuns()
        if request.can_read_body:
            given = await read_json(request, CancelRuns, self._settings, RequestRules(()))
        jobs = await self._reader.call(self._jobs_of, user_id, agent_id, given.run_ids)
        if not jobs:
            raise HttpError(409, f"No active runs to cancel for agent {agent_id}", NO_RETRY)
        for job in filter(None, jobs.values()):
            await self._scheduler.cancel(job)
        return {each: "cancelled" if job is not None else "failed" for each, job in jobs.items()}

    def _jobs_of(self, user_id: str, agent_id: str, run_ids: list[str] | None) -> dict[str, JobRecord | None]:
        """Return the jobs to cancel by the ids of their runs; None for a run that cannot be cancelled."""
        if not run_ids:
            wanted = replace(_ACTIVE, agent_ids=(agent_id,))
            pages = self._reader.sync.runs.pages(user_id, wanted, "desc", limit=_MAX_CANCELED)
            active = islice(chain.from_iterable(pages), _MAX_CANCELED)
            return {run_id(run.job.id, run.index): run.job for run in active}
        found = {each: self._find(user_id, each) for each in run_ids}
        return {
            each: run.job if run is not None and run.agent_id == agent_id and _is_active(run) else None
            for each, run in found.items()
        }

    def _find(self, user_id: str, each: str) -> StoredRun | None:
        if not is_id(each, "run"):
            return None
        try:
            return self._read.run(user_id, each)
        except HttpError:
            return None


def _is_active(run: StoredRun) -> bool:
    return run.status is None and run.job.is_single
