"""Uses the newest Python SDK, which has no `batches` any more, and prints what it saw as JSON.

Arguments: the server; `loose` or `strict`.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import letta_client
from letta_client import Letta

BATCHES = "/v1/messages/batches"


def main(base_url: str, is_strict: bool) -> dict[str, Any]:
    with Letta(base_url=base_url, api_key="any", _strict_response_validation=is_strict) as client:

        def get(path: str) -> Any:
            return client.get(path, cast_to=object)

        agent = client.agents.create(name="sums", model="offline/rules", tools=["calculate"], tags=["of newest"])
        requests = [{"agent_id": agent.id, "input": f"What is {i} + 1?"} for i in range(3)]
        job: Any = client.post(BATCHES, cast_to=object, body={"requests": requests})
        while job["completed_at"] is None:
            time.sleep(0.05)
            job = get(f"{BATCHES}/{job['id']}")
        answer = client.agents.messages.create(agent.id, input="What is 4 * 5?")
        streamed = client.agents.messages.create(
            agent.id, messages=[{"role": "user", "content": "What is 4 * 5?"}], streaming=True
        )
        seen = {
            "version": letta_client.__version__,
            "health": client.health().model_dump(),
            "models": [model.handle for model in client.models.list()],
            "tagged": [each.id for each in client.agents.list(tags=["of newest"])],
            "retrieved": client.agents.retrieve(agent.id).id,
            "agent_id": agent.id,
            "job": job,
            "listed": get(f"{BATCHES}?limit=1")[0]["id"],
            "messages": get(f"{BATCHES}/{job['id']}/messages?order=asc")["messages"],
            "canceled": client.patch(f"{BATCHES}/{job['id']}/cancel", cast_to=object),
            "answer": answer.model_dump(mode="json"),
            "streamed": [event.message_type for event in streamed],
            "said": [message.message_type for message in client.agents.messages.list(agent.id, limit=3, order="asc")],
        }
        try:
            client.post(BATCHES, cast_to=object, body={"requests": []})
        except letta_client.BadRequestError as error:
            seen["refused"] = error.body
        seen |= around_a_run(client, agent.id, job["id"])
        client.agents.delete(agent.id)
    return seen


def around_a_run(client: Letta, agent_id: str, job_id: str) -> dict[str, Any]:
    """Start a run in the background, read what it and the batch have left, and delete the batch."""
    started = client.agents.messages.create_async(agent_id, input="What is 4 * 5?")
    events = [event.message_type for event in client.runs.messages.stream(started.id)]
    [newest, oldest] = client.runs.steps.list(started.id)
    return {
        "run": client.runs.retrieve(started.id).model_dump(mode="json"),
        "run_events": events,
        "run_said": [message.message_type for message in client.runs.messages.list(started.id)],
        "run_steps": [client.steps.retrieve(step.id).status for step in (oldest, newest)],
        "runs_of_job": [run.status for run in client.runs.list(agent_id=agent_id, order="asc", limit=2)][:3],
        "deleted": client.delete(f"/v1/jobs/{job_id}", cast_to=object),
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2] == "strict")))
