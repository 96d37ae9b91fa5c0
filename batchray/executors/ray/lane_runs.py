"""The runs of one lane on the driver's side: calls that start them and bring back their reports.

Runs that start in the same moment share a call, and so do reports that are ready in the same moment, because a call
costs more CPU than all else around a short request.  No call is delayed for that: a start is sent in the same round of
the event loop, and while anything runs, a call waits at the lane for the next report.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from ray.exceptions import ActorUnavailableError

from batchray.errors import ClusterError, RequestError, WorkerDiedError
from batchray.executors.ray.answers import answer_of
from batchray.executors.ray.calls import CLUSTER_GONE, first_line
from batchray.executors.ray.run_registry import IDLE_S, MAX_MESSAGE_BYTES, RunReport, Start, pack_call, unpack_reports

logger = logging.getLogger(__name__)

# For a lane that is busy, and for a call that was lost without an error.
_LATE_S = 20.0
# For how long calls may be lost in a row before the lane is suspected, and the pause after each but the first.
_LOST_S = 1.5
_PAUSE_S = 0.1


class LaneRuns:
    """Starts runs on a lane (an actor), and waits for their reports.  `late_s` is how late an answer may be."""

    def __init__(self, actor: Any, late_s: float = IDLE_S + _LATE_S) -> None:
        self._actor, self._late_s = actor, late_s
        self._waiting: dict[str, tuple[Start, asyncio.Future[RunReport | Exception]]] = {}
        self._unsent: list[Start] = []
        self._sending: asyncio.Handle | None = None
        self._calls: set[asyncio.Task[None]] = set()
        self._n_calls = self._n_unanswered = 0
        self._has_doubts = False
        self._lost_since: float | None = None

    async def run(self, start: Start) -> bytes:
        """Run an attempt and return its report.  A second call for the attempt joins the same run.

        Raises RayError if the lane's process ended, or if calls to it are lost one after the other; WorkerDiedError if
        the attempt has run and its report is gone; RequestError for a defect of the lane; ClusterError if the cluster
        is gone.
        """
        future: asyncio.Future[RunReport | Exception] = asyncio.get_running_loop().create_future()
        self._waiting[start.key] = start, future
        self._send_soon(start)
        try:
            report = await future
        finally:
            self._waiting.pop(start.key, None)
        if isinstance(report, Exception):
            raise report.with_traceback(None)  # many raise the same one
        if report.lost:
            raise WorkerDiedError(report.lost, is_suspect=False)
        if report.failed:
            raise RequestError("worker_error", report.failed.splitlines()[0])
        return report.content

    def close(self) -> None:
        """Make no more calls."""
        if self._sending is not None:
            self._sending.cancel()
        for call in self._calls:
            call.cancel()

    def _send_soon(self, *starts: Start) -> None:
        self._unsent += starts
        if self._sending is None:
            self._sending = asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        """Send the starts that are not sent yet.  While runs are waited for, at least one call waits at the lane."""
        unsent, self._unsent, self._sending = self._unsent, [], None
        asked, self._has_doubts = list(self._waiting) if self._has_doubts else [], False
        messages = list(_messages(unsent))
        if not messages and (asked or (self._waiting and not self._n_unanswered)):
            messages = [[]]
        for n, starts in enumerate(messages, start=1):
            self._call(pack_call(starts, asked if n == len(messages) else ()))

    def _call(self, packed: bytes) -> None:
        self._n_calls += 1
        self._n_unanswered += 1
        call = asyncio.ensure_future(self._exchange(packed, self._n_calls))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _exchange(self, packed: bytes, number: int) -> None:
        """Make one call, and then the next if runs are still waited for."""
        answer = asyncio.ensure_future(self._answer(packed))
        try:
            await asyncio.wait((answer,), timeout=self._late_s)
            self._n_unanswered -= 1
            if not answer.done():
                self._has_doubts = True
                self._send_soon()
            reports = await answer
        except ActorUnavailableError as error:
            await self._follow_lost_call(error)
        except Exception as error:  # noqa: BLE001  # raised for every run that waits
            self._fail(error)
        else:
            self._take(reports, is_newest=number == self._n_calls)
        finally:
            answer.cancel()

    async def _answer(self, packed: bytes) -> list[RunReport]:
        return unpack_reports(await answer_of(self._actor.exchange.remote(packed)))

    def _take(self, reports: Sequence[RunReport], *, is_newest: bool) -> None:
        """Hand out the reports.

        A lane returns none if it had none for long, or if a newer call has come.  If that is not one of ours, it is one
        whose answer may be lost, and ends with it: the next call asks for all runs.
        """
        if self._lost_since is not None:  # until now a lost call may have waited at the lane, and taken reports
            self._lost_since, self._has_doubts = None, True
        for report in reports:
            if report.is_unknown:
                if report.key in self._waiting:
                    self._send_soon(self._waiting[report.key][0])
            elif (found := self._waiting.pop(report.key, None)) is not None and not found[1].done():
                found[1].set_result(report)
        if not reports and is_newest:
            self._has_doubts = True
        if self._waiting:
            self._send_soon()

    async def _follow_lost_call(self, error: Exception) -> None:
        """Ask for all runs in another call: the lost one may have started one or brought its report."""
        now, pause_s = asyncio.get_running_loop().time(), _PAUSE_S
        if self._lost_since is None:
            self._lost_since, pause_s = now, 0.0
        elif now - self._lost_since > _LOST_S:
            self._lost_since = None
            self._fail(error)
            return
        logger.info("a call to a lane was lost and is made again: %s", first_line(error))
        self._has_doubts = True
        await asyncio.sleep(pause_s)
        self._send_soon()

    def _fail(self, error: Exception) -> None:
        """Raise an error for all runs."""
        gone = isinstance(error, CLUSTER_GONE)
        raised = ClusterError(f"Ray is gone: {first_line(error)}") if gone else error
        waiting, self._waiting = self._waiting, {}
        for _, future in waiting.values():
            if not future.done():
                future.set_result(raised)


def _messages(starts: Sequence[Start]) -> Iterator[list[Start]]:
    """Yield starts in their order, as many together as fit into one message, which has each of their agents once."""
    message: list[Start] = []
    agents: set[bytes] = set()
    n_bytes = 0
    for start in starts:
        size = len(start.item) + (0 if start.agent in agents else len(start.agent))
        if message and n_bytes + size > MAX_MESSAGE_BYTES:
            yield message
            message, agents, n_bytes, size = [], set(), 0, len(start.item) + len(start.agent)
        message.append(start)
        agents.add(start.agent)
        n_bytes += size
    if message:
        yield message
