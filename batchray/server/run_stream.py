"""A run's output as server-sent events: messages as its steps are stored, then its stop reason and usage."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import suppress

from aiohttp import web

from batchray.errors import StoreError
from batchray.schema import (
    ErrorMessage,
    LettaMessage,
    Ping,
    StopReason,
    StopReasonMessage,
    new_id,
    run_id,
)
from batchray.schema.letta_messages import LettaMessageBase
from batchray.server.bodies import EventsOf
from batchray.server.clients import has_left
from batchray.server.routing import encode, warning_of
from batchray.server.stream import Events
from batchray.server.views import outputs_of, steps_of, usage_of
from batchray.store import JobRecord, StoredResult, ThreadedStore, utc_now

RUN_EVENTS = EventsOf({"message": LettaMessage, "error": ErrorMessage}, ends_with_done=True)
"""The events of a stream: messages, then its stop reason, then its usage or, as an event of another name, its error."""

_POLL_S = 0.25
_POLLS_PER_PING = 60


class RunStream:
    """The stream of one run: item `index` of a job, with its request as JSON.

    The messages are numbered from 1 in `seq_id`; those up to `after` are left out.
    """

    def __init__(
        self, reader: ThreadedStore, job: JobRecord, index: int, body: bytes, *, pings: bool = True, after: int = 0
    ) -> None:
        self._reader, self._job, self._index, self._body = reader, job, index, body
        self._pings, self._n_sent = pings, after

    async def send(
        self, request: web.Request, ended: asyncio.Task[tuple[JobRecord, StoredResult]], unused: Collection[str] = ()
    ) -> web.StreamResponse:
        """Stream until the task `ended` has the run's result; cancel the task if the client leaves."""
        events, n_idle_polls = Events(request, warning_of(unused)), 0
        try:
            while not (await asyncio.wait({ended}, timeout=_POLL_S))[0]:
                if has_left(request):
                    raise ConnectionResetError("the client has left")
                n_new = await self._send_new(events)
                n_idle_polls = 0 if n_new else n_idle_polls + 1
                if self._pings and n_idle_polls and n_idle_polls % _POLLS_PER_PING == 0:
                    await events.send("", encode(_ping()))
            record, result = await ended
        finally:
            ended.cancel()
        await self._send_rest(events, outputs_of(result))
        return await _end(events, record, result)

    async def _send_new(self, events: Events) -> int:
        """Send what the run has stored since the last poll; return how many messages."""
        known = list[LettaMessage]()
        with suppress(StoreError):  # the next poll reads again; the run continues meanwhile
            known = await self._reader.call(self._known)
        return await self._send_rest(events, known)

    def _known(self) -> list[LettaMessage]:
        return steps_of(self._body, self._reader.sync.items.checkpoints(self._job, self._index))

    async def _send_rest(self, events: Events, messages: list[LettaMessage]) -> int:
        new = messages[self._n_sent :]
        for message in new:
            self._n_sent += 1
            await events.send("", encode(_numbered(message, self._n_sent)))
        return len(new)


async def _end(events: Events, record: JobRecord, result: StoredResult) -> web.StreamResponse:
    await events.send("", encode(StopReasonMessage(stop_reason=StopReason(result.stop_reason))))
    if result.error is not None:
        failed = ErrorMessage(
            run_id=run_id(record.id, result.index),
            error_type=result.error["type"],
            message=result.error["message"],
            detail=result.error.get("traceback"),
        )
        await events.send("error", encode(failed))
    else:
        await events.send("", encode(usage_of(record, result)))
    await events.send("", b"[DONE]")
    return await events.end()


def _numbered(message: LettaMessage, seq_id: int) -> LettaMessage:
    return message.model_copy(update={"seq_id": seq_id}) if isinstance(message, LettaMessageBase) else message


def _ping() -> Ping:
    return Ping.model_validate({"id": new_id("message"), "date": utc_now()})
