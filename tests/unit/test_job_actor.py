"""The job actor's state, and what its client does after its executor has closed; the rest needs a cluster."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from batchray.executors.blocking import BlockingBoard
from batchray.executors.ray.job_actor import JobActor, JobActorChannel, JobActorClient
from tests.builders.references import Reference


def test_each_job_has_its_own_control_request_and_a_removed_one_is_unknown() -> None:
    actor = JobActor()
    assert [actor.update(job_id, {"id": job_id}) for job_id in ("a", "b")] == [{}, {}]
    actor.pause("a")
    actor.resize("b", 3)
    assert actor.update("a", {"id": "a"}) == {"is_paused": True}
    assert actor.update("b", {"id": "b"}) == {"max_in_flight": 3}

    actor.remove("a")
    actor.remove("a")
    assert (actor.has("a"), actor.has("b")) == (False, True)
    with pytest.raises(KeyError):
        actor.cancel("a")
    assert actor.snapshot("b") == {"id": "b"}
    actor.set_blocking("a", "lane", None)  # a lane may be late
    assert not actor.has("a")


async def test_a_job_that_outlives_its_executor_is_neither_shown_nor_held_up() -> None:
    client = JobActorClient(lambda: True, BlockingBoard())
    channel = JobActorChannel("a", client)
    client.close()
    client.close()
    assert await channel.update({"id": "a"}) is None
    channel.close()


@pytest.mark.parametrize(
    ("error", "is_kept"),
    [(ActorUnavailableError("it restarts", None), True), (TimeoutError(), True), (ActorDiedError(), False)],
)
async def test_an_actor_that_does_not_answer_is_kept_and_one_that_is_dead_is_not(
    error: Exception, is_kept: bool
) -> None:
    async def update(job_id: str, snapshot: dict[str, Any]) -> None:
        raise error

    client = JobActorClient(lambda: True, BlockingBoard())
    actor = client._actor = SimpleNamespace(update=SimpleNamespace(remote=lambda *args: Reference(update(*args))))
    assert await client.call_update("a", {"id": "a"}) is None
    assert (client._actor is actor) == is_kept
    client._thread.shutdown()
