"""Letta's npm SDK and its newest Python SDK against a live server.

Run with -m sdks.  `.ci/run` installs them and names the places: LETTA_NODE_SDK is a directory with `node_modules`,
LETTA_NEWEST_SDK one that pip has installed into.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batchray import __version__
from tests.server.live import LiveServer, live_server
from tests.server.receiver import Receiver, receiver

pytestmark = pytest.mark.sdks

SCRIPTS = Path(__file__).parent / "sdks"
SAID = ["user", "assistant", "tool", "assistant"]
SHOWN = ["tool_call_message", "tool_return_message", "assistant_message"]


def place_of(variable: str, wanted: str) -> str:
    """Return the directory that a variable names; fails if it lacks a file."""
    directory = os.environ.get(variable, "")
    if not directory or not (Path(directory) / wanted).is_dir():
        pytest.fail(f"{variable} has to name a directory with {wanted}, as .ci/run makes it; it is {directory!r}")
    return str(Path(directory).absolute())


def json_output(*command: str, **environment: str) -> dict[str, Any]:
    """Run a script and return what it prints."""
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


# -- npm


@pytest.fixture(scope="module")
def hook() -> Iterator[Receiver]:
    with receiver((202,)) as running:
        yield running


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, hook: Receiver) -> dict[str, Any]:
    """Return what the npm SDK saw."""
    sdk = place_of("LETTA_NODE_SDK", "node_modules/@letta-ai/letta-client")
    data_dir = tmp_path_factory.mktemp("node") / "data"
    with live_server(data_dir, BATCHRAY_CALLBACK_NETWORKS='["127.0.0.0/8"]') as server:
        return json_output("node", str(SCRIPTS / "letta_sdk.mjs"), server.url, hook.url, LETTA_NODE_SDK=sdk)


def test_npm_is_the_version_that_has_batches(node: dict[str, Any]) -> None:
    assert node["version"] == "1.6.4"


def test_npm_finds_health_models_and_agents(node: dict[str, Any]) -> None:
    assert node["health"] == {"version": __version__, "status": "ok"}
    assert "offline/rules" in node["models"]
    agent = node["agent"]
    assert (agent["system"], agent["tags"], agent["blocks"][0]["value"]) == ("Be brief.", ["of node"], "Anna")
    assert [tool["name"] for tool in agent["tools"]] == ["calculate"]
    assert node["renamed"]["name"] == "other"
    assert node["tagged"] == [agent["id"], node["actor"]["id"]]


def test_npm_runs_a_batch_to_its_end_and_callback(node: dict[str, Any], hook: Receiver) -> None:
    created, job = node["created"], node["job"]
    assert created["status"] in ("created", "running")
    assert (job["id"], job["status"], job["stop_reason"]) == (created["id"], "completed", "end_turn")
    assert len(job) == 18
    assert 0 < job["ttft_ns"] <= job["total_duration_ns"]
    assert job["metadata"]["request_counts"]["succeeded"] == 5
    assert (job["callback_status_code"], job["callback_error"]) == (202, None)
    assert json.loads(hook.received[0].body)["job_id"] == job["id"]


def test_npm_iterates_messages_in_both_orders(node: dict[str, Any]) -> None:
    messages = node["oldestFirst"]
    ids = [message["id"] for message in messages]
    assert len({*ids}) == len(ids) == 4 * 4 + 2
    assert node["newestFirst"] == ids[::-1]
    assert node["before"] == ids[2:4] + ids[:2]
    items: dict[str, list[str]] = {}
    for message in messages:
        items.setdefault(message["batch_item_id"], []).append(message["role"])
    assert sorted(items.values()) == sorted([SAID] * 4 + [["user", "assistant"]])
    assert [message["role"] for message in node["ofActor"]] == ["assistant", "user"]
    assert node["ofActor"][0]["content"] == [{"type": "text", "text": "spoken", "signature": None}]


def test_npm_cancels_and_iterates_the_list(node: dict[str, Any]) -> None:
    assert node["canceledAfterItsEnd"] is None
    assert node["canceled"] is None
    assert node["unchanged"] == node["job"]
    stopped = node["stopped"]
    assert (stopped["status"], stopped["metadata"]["request_counts"]["canceled"]) == ("cancelled", 2)
    assert node["later"] == [node["running"]["id"]]
    assert node["listed"] == [node["running"]["id"], node["job"]["id"]]


def test_npm_sends_a_message_to_an_agent(node: dict[str, Any]) -> None:
    assert [message["message_type"] for message in node["answer"]["messages"]] == SHOWN
    assert node["answer"]["messages"][-1]["content"] == "4 * 5 = 20"
    kinds = [event["message_type"] for event in node["streamed"]]
    assert [kind for kind in kinds if kind != "ping"] == [*SHOWN, "stop_reason", "usage_statistics"]
    # The agent remembers the batch's four items too.
    assert [message["message_type"] for message in node["said"]] == ["user_message", *SHOWN] * 6


def test_npm_raises_its_own_errors(node: dict[str, Any]) -> None:
    assert [(error["name"], error["status"]) for error in node["refused"]] == [
        ("BadRequestError", 400),
        ("NotFoundError", 404),
        ("UnprocessableEntityError", 422),
        ("BadRequestError", 400),
        ("InternalServerError", 500),
        ("NotFoundError", 404),
    ]
    assert all(error["detail"] for error in node["refused"])


# -- the newest for Python


@pytest.mark.parametrize("mode", ["loose", "strict"])
def test_the_newest_python_sdk_reaches_batches_by_its_low_level_calls(server: LiveServer, mode: str) -> None:
    sdk = place_of("LETTA_NEWEST_SDK", "letta_client")
    seen = json_output(sys.executable, str(SCRIPTS / "newest.py"), server.url, mode, PYTHONPATH=sdk)
    assert tuple(map(int, seen["version"].split("."))) > (1, 7, 0)
    assert (seen["run"]["status"], seen["run"]["background"]) == ("completed", True)
    assert seen["run_events"] == [*SHOWN, "stop_reason", "usage_statistics"]
    assert seen["run_said"] == ["user_message", *SHOWN]
    assert (seen["run_steps"], seen["runs_of_job"]) == (["success"] * 2, ["completed"] * 3)
    assert seen["deleted"]["id"] == seen["job"]["id"]
    assert seen["health"] == {"version": __version__, "status": "ok"}
    assert "offline/rules" in seen["models"]
    assert seen["tagged"] == [seen["retrieved"]] == [seen["agent_id"]]
    job = seen["job"]
    assert (job["status"], job["stop_reason"], seen["listed"]) == ("completed", "end_turn", job["id"])
    assert [message["role"] for message in seen["messages"]] == SAID * 3
    assert seen["canceled"] is None
    assert [message["message_type"] for message in seen["answer"]["messages"]] == SHOWN
    assert [kind for kind in seen["streamed"] if kind != "ping"] == [*SHOWN, "stop_reason", "usage_statistics"]
    assert seen["said"] == ["user_message", *SHOWN] * 5  # the agent remembers the batch's three items too
    assert seen["refused"]["detail"] == "Empty list of batch_requests passed in!"
