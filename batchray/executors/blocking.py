"""The requests that block an event loop which they share with others, as the driver knows them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from batchray.agents import Blocked

logger = logging.getLogger(__name__)

_MAX_LOGGED = 10_000


class BlockingBoard:
    """The requests that block a loop of one executor, by job.  Logs each agent once; may be used in any thread."""

    def __init__(self) -> None:
        self._by_job: dict[str, Sequence[Blocked]] = {}
        self._logged: set[tuple[str, str]] = set()

    def put(self, job_id: str, blocked: Sequence[Blocked]) -> None:
        """Replace what is known of a job."""
        if blocked:
            self._by_job[job_id] = blocked
        else:
            self._by_job.pop(job_id, None)
        for each in blocked:
            self._log(each)

    def clear(self) -> None:
        """Forget everything: no loop is blocked."""
        self._by_job.clear()

    def of(self, job_id: str) -> list[dict[str, Any]]:
        """Return the requests of a job that block a loop now, as JSON-able data."""
        return [
            {"index": owner.index, "agent_id": owner.agent_id, "blocked_s": round(blocked_s, 1), "where": where}
            for owner, blocked_s, where in self._by_job.get(job_id, ())
        ]

    def _log(self, blocked: Blocked) -> None:
        owner = blocked.owner
        if (owner.job_id, owner.agent_id) in self._logged or len(self._logged) >= _MAX_LOGGED:
            return
        self._logged.add((owner.job_id, owner.agent_id))
        logger.warning(
            "agent %r blocks the event loop that it shares with other requests: item %d for %.1f s so far, in %s; "
            "await an async call, or block in a plain `def` function, in `asyncio.to_thread`, or with "
            "`placement: process`",
            *(owner.agent_id, owner.index, blocked.blocked_s, blocked.where),
            extra={"job_id": owner.job_id, "index": owner.index},
        )
