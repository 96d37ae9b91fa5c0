"""API keys: authentication, isolation of users, and the absence of secrets in logs and files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import letta_client
import pytest
from click.testing import CliRunner

from batchray.cli.main import cli
from tests.preloaded import ROOT
from tests.server.http_client import BATCHES, Response, call
from tests.server.live import QUICKSTART, LiveServer, live_server
from tests.server.sdk_values import FILE

SUM = {"agent_id": "calculator", "input": "What is 2 + 3?"}
UNKNOWN = "1b4e28ba-2fa1-4d3b-a3f5-ef19c0ffee00"


def batchray_keys(data_dir: Path, *arguments: str) -> str:
    """Run `batchray keys`, and return what it prints."""
    done = CliRunner().invoke(cli, ["keys", *arguments, "--data-dir", str(data_dir)])
    assert done.exit_code == 0, done.output
    return done.output.strip()


def add_key(data_dir: Path, name: str, *options: str) -> str:
    return batchray_keys(data_dir, "add", name, *options)


class User(NamedTuple):
    """A user with a key."""

    server: LiveServer
    key: str

    def call(self, method: str, path: str, body: object = None, **headers: str) -> Response:
        return call(self.server, method, path, body, headers={"Authorization": f"Bearer {self.key}", **headers})

    def ended(self, body: object) -> dict[str, Any]:
        """Create a batch and wait for its end."""
        job, end = self.call("POST", BATCHES, body).body, time.monotonic() + 60
        while job["completed_at"] is None:
            assert time.monotonic() < end, job
            time.sleep(0.05)
            job = self.call("GET", f"{BATCHES}/{job['id']}").body
        return dict(job)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keyed") / "data"


@pytest.fixture(scope="module")
def keys(data_dir: Path) -> tuple[str, str]:
    """Return the keys of two users."""
    return add_key(data_dir, "alice"), add_key(data_dir, "bob")


@pytest.fixture(scope="module")
def keyed(data_dir: Path, keys: tuple[str, str]) -> Iterator[LiveServer]:
    with live_server(data_dir, "--host", "0.0.0.0") as running:  # allowed: it has keys
        running.url = running.url.replace("0.0.0.0", "127.0.0.1")
        yield running


@pytest.fixture(scope="module")
def alice(keyed: LiveServer, keys: tuple[str, str]) -> User:
    return User(keyed, keys[0])


@pytest.fixture(scope="module")
def bob(keyed: LiveServer, keys: tuple[str, str]) -> User:
    return User(keyed, keys[1])


MEMORY = "/v1/agents/calculator/core-memory/blocks"
ROUTES = [
    ("POST", BATCHES),
    ("GET", BATCHES),
    *[("GET", f"{BATCHES}/job-{UNKNOWN}{rest}") for rest in ("", "/messages", "/items", "/results", "/events")],
    ("PATCH", f"{BATCHES}/job-{UNKNOWN}/cancel"),
    *[("POST", f"{BATCHES}/job-{UNKNOWN}/{action}") for action in ("retry", "unpause")],
    *[(method, "/v1/agents/") for method in ("POST", "GET")],
    *[(method, "/v1/agents/calculator") for method in ("GET", "PATCH", "DELETE")],
    *[(method, "/v1/agents/calculator/messages") for method in ("POST", "GET")],
    ("PATCH", "/v1/agents/calculator/reset-messages"),
    ("POST", "/v1/agents/calculator/messages/stream"),
    *[("POST", f"/v1/agents/calculator/messages/{name}") for name in ("async", "cancel")],
    ("DELETE", f"{BATCHES}/job-{UNKNOWN}"),
    ("GET", "/v1/jobs/"),
    *[(method, f"/v1/jobs/job-{UNKNOWN}") for method in ("GET", "DELETE")],
    ("PATCH", f"/v1/jobs/job-{UNKNOWN}/cancel"),
    ("GET", "/v1/runs/"),
    ("DELETE", f"/v1/runs/run-{UNKNOWN}"),
    *[("GET", f"/v1/runs/run-{UNKNOWN}{rest}") for rest in ("", "/messages", "/usage", "/steps")],
    ("POST", f"/v1/runs/run-{UNKNOWN}/stream"),
    ("GET", "/v1/steps/"),
    *[("GET", f"/v1/steps/step-{UNKNOWN}{rest}") for rest in ("", "/messages", "/metrics", "/trace")],
    ("PATCH", f"/v1/steps/step-{UNKNOWN}/feedback"),
    *[(method, "/v1/blocks/") for method in ("POST", "GET")],
    *[(method, "/v1/blocks/block-1") for method in ("GET", "PATCH", "DELETE")],
    ("GET", "/v1/blocks/block-1/agents"),
    ("GET", f"{MEMORY}"),
    *[(method, f"{MEMORY}/human") for method in ("GET", "PATCH")],
    *[("PATCH", f"{MEMORY}/{action}/block-1") for action in ("attach", "detach")],
    *[(method, "/v1/tools/") for method in ("GET", "POST", "PUT")],
    *[(method, "/v1/tools/tool-1") for method in ("GET", "PATCH", "DELETE")],
    ("POST", "/v1/tools/search"),
    ("GET", "/v1/agents/calculator/tools"),
    *[("PATCH", f"/v1/agents/calculator/tools/{action}/tool-1") for action in ("attach", "detach", "approval")],
    ("POST", "/v1/agents/calculator/tools/calculate/run"),
    ("GET", "/v1/models/"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/model-1"),
    *[(method, "/v1/files") for method in ("POST", "GET")],
    *[(method, "/v1/files/file-1") for method in ("GET", "DELETE")],
    ("GET", "/v1/files/file-1/content"),
    *[(method, "/v1/batches") for method in ("POST", "GET")],
    ("GET", "/v1/batches/batch_1"),
    ("POST", "/v1/batches/batch_1/cancel"),
    ("GET", "/metrics"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_without_a_key_every_route_is_401(keyed: LiveServer, keys: tuple[str, str], method: str, path: str) -> None:
    wrong = [
        "",
        "Bearer",
        "Bearer ",
        "Bearer br-wrong",
        "Bearer \xff",
        f"Basic {keys[0]}",
        f"Bearer {keys[0]}x",
        keys[0],
    ]
    for header in wrong:
        answer = call(keyed, method, path, headers={"Authorization": header} if header else {})
        said = answer.body.get("detail") or answer.body["error"]["message"]
        assert (answer.status, said) == (401, "Unauthorized")
        assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/v1/health/", "/livez", "/readyz", "/openapi.json"])
def test_health_needs_no_key(keyed: LiveServer, path: str) -> None:
    assert call(keyed, "GET", path).status == 200


def test_every_route_of_the_openapi_document_was_tried(keyed: LiveServer) -> None:
    paths = call(keyed, "GET", "/openapi.json").body["paths"]
    closed = {
        (method.upper(), path)
        for path, operations in paths.items()
        for method, operation in operations.items()
        if "security" in operation
    }
    names = {
        f"jobs/job-{UNKNOWN}": "jobs/{job_id}",
        f"job-{UNKNOWN}": "{batch_id}",
        f"run-{UNKNOWN}": "{run_id}",
        f"step-{UNKNOWN}": "{step_id}",
        "calculator": "{agent_id}",
        "block-1": "{block_id}",
        "file-1": "{file_id}",
        "model-1": "{model}",
        "batch_1": "{openai_batch_id}",
        "blocks/human": "blocks/{block_label}",
        "approval/tool-1": "approval/{tool_name}",
        "tool-1": "{tool_id}",
        "/calculate/run": "/{tool_name}/run",
    }
    tried = {(method, _replaced(path, names)) for method, path in ROUTES}
    assert tried == closed


def _replaced(text: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        text = text.replace(old, new)
    return text


def test_letta_s_sdk_sends_its_key(alice: User) -> None:
    with letta_client.Letta(base_url=alice.server.url, api_key=alice.key) as letta:
        assert letta.agents.retrieve("calculator").id == "calculator"
    with (
        letta_client.Letta(base_url=alice.server.url, api_key="br-wrong") as letta,
        pytest.raises(letta_client.AuthenticationError),
    ):
        letta.agents.list()


# -- isolation of users


@pytest.fixture(scope="module")
def job_of_alice(alice: User) -> dict[str, Any]:
    return alice.ended({"requests": [SUM, SUM]})


@pytest.fixture(scope="module")
def agent_of_alice(alice: User) -> str:
    agent = alice.call("POST", "/v1/agents/", {"model": "offline/rules", "name": "hers"}).body
    assert alice.call("POST", f"/v1/agents/{agent['id']}/messages", {"input": "hello"}).status == 200
    return str(agent["id"])


def assert_looks_unknown(ask: Callable[[str], Response], their_id: str) -> None:
    """Assert that the response for another user's id equals that for an unknown id: status, headers, body."""
    prefix = their_id.partition("-")[0]
    unknown = f"{prefix}-{UNKNOWN}"
    of_theirs, of_none = ask(their_id), ask(unknown)
    assert of_theirs.status == of_none.status
    assert of_theirs.status in (400, 404)
    of_theirs.body.pop("trace_id")
    of_none.body.pop("trace_id")
    assert of_theirs.body == {"detail": of_none.body["detail"].replace(unknown, their_id)}
    compared = ("Content-Type", "Content-Length", "x-should-retry")
    assert [of_theirs.headers.get(name) for name in compared] == [of_none.headers.get(name) for name in compared]


def test_another_users_job_looks_like_an_unknown_one(bob: User, job_of_alice: dict[str, Any]) -> None:
    for method, rest in [
        *[("GET", rest) for rest in ("", "/messages", "/items", "/results", "/events")],
        ("PATCH", "/cancel"),
        ("POST", "/retry"),
        ("POST", "/unpause"),
        ("DELETE", ""),
    ]:
        assert_looks_unknown(lambda job_id: bob.call(method, f"{BATCHES}/{job_id}{rest}"), job_of_alice["id"])  # noqa: B023
    for cursor in ("after", "before"):
        assert_looks_unknown(lambda job_id: bob.call("GET", f"{BATCHES}?{cursor}={job_id}"), job_of_alice["id"])  # noqa: B023
    assert job_of_alice["id"] not in [job["id"] for job in bob.call("GET", BATCHES).body]


def test_another_users_items_and_messages_look_like_unknown_ones(
    alice: User, bob: User, job_of_alice: dict[str, Any]
) -> None:
    own_batch = f"{BATCHES}/{bob.ended({'requests': [SUM]})['id']}"
    [item, *_] = alice.call("GET", f"{BATCHES}/{job_of_alice['id']}/items").body
    [message, *_] = alice.call("GET", f"{BATCHES}/{job_of_alice['id']}/messages").body["messages"]
    for cursor in ("after", "before"):
        assert_looks_unknown(lambda item_id: bob.call("GET", f"{own_batch}/items?{cursor}={item_id}"), item["id"])  # noqa: B023
        assert_looks_unknown(lambda each: bob.call("GET", f"{own_batch}/messages?{cursor}={each}"), message["id"])  # noqa: B023


def test_another_users_runs_and_steps_look_like_unknown_ones(
    alice: User, bob: User, job_of_alice: dict[str, Any]
) -> None:
    [message, *_] = alice.call("GET", f"{BATCHES}/{job_of_alice['id']}/messages").body["messages"]
    for kind, rests in (("run", ("", "/messages", "/usage", "/steps")), ("step", ("", "/messages", "/metrics"))):
        own = message[f"{kind}_id"]
        for rest in rests:
            assert_looks_unknown(lambda each: bob.call("GET", f"/v1/{kind}s/{each}{rest}"), own)  # noqa: B023
        for cursor in ("after", "before"):
            assert_looks_unknown(lambda each: bob.call("GET", f"/v1/{kind}s/?{cursor}={each}"), own)  # noqa: B023
        assert own in [each["id"] for each in alice.call("GET", f"/v1/{kind}s/").body]
        assert own not in [each["id"] for each in bob.call("GET", f"/v1/{kind}s/").body]
    assert_looks_unknown(lambda each: bob.call("POST", f"/v1/runs/{each}/stream", {}), message["run_id"])
    for method, rest in (("GET", ""), ("PATCH", "/cancel"), ("DELETE", "")):
        assert_looks_unknown(lambda each: bob.call(method, f"/v1/jobs/{each}{rest}"), job_of_alice["id"])  # noqa: B023
    assert_looks_unknown(lambda each: bob.call("DELETE", f"/v1/runs/{each}"), message["run_id"])
    said = {"feedback": "positive"}
    assert_looks_unknown(lambda each: bob.call("PATCH", f"/v1/steps/{each}/feedback", said), message["step_id"])


def test_another_users_files_and_openai_batches_look_like_unknown_ones(
    alice: User, bob: User, job_of_alice: dict[str, Any]
) -> None:
    def file_of(user: User) -> Any:
        url, headers = f"{user.server.url}/v1", {"Authorization": f"Bearer {user.key}"}
        form = {"files": {"file": ("a.jsonl", FILE)}, "data": {"purpose": "batch"}}
        return httpx.post(f"{url}/files", headers=headers, **form).json()["id"]  # type: ignore[arg-type]

    digits = job_of_alice["id"].removeprefix("job-").replace("-", "")
    theirs, results = file_of(alice), f"file-output-{digits}"
    paths = [
        *((method, f"/v1/files/{each}{rest}") for each in (theirs, results) for method, rest in _OF_A_FILE),
        ("GET", f"/v1/batches/batch_{digits}"),
        ("POST", f"/v1/batches/batch_{digits}/cancel"),
        ("GET", f"/v1/files?after={theirs}"),
        ("GET", f"/v1/batches?after=batch_{digits}"),
    ]
    for method, path in paths:
        refused = bob.call(method, path)
        message = refused.body["error"]["message"]
        assert refused.status == (400 if "?" in path else 404)
        assert message.startswith(("No such File object", "No batch found")), path
    assert alice.call("GET", f"/v1/files/{results}").body["purpose"] == "batch_output"
    assert theirs in [file["id"] for file in alice.call("GET", "/v1/files").body["data"]]
    assert theirs not in [file["id"] for file in bob.call("GET", "/v1/files").body["data"]]
    asked = {"input_file_id": theirs, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    assert "Cannot find file" in str(bob.call("POST", "/v1/batches", asked).body["errors"])


_OF_A_FILE = (("GET", ""), ("GET", "/content"), ("DELETE", ""))


def test_another_users_agent_looks_like_an_unknown_one(alice: User, bob: User, agent_of_alice: str) -> None:
    for method, rest, body in [
        ("GET", "", None),
        ("PATCH", "", {"name": "his"}),
        ("DELETE", "", None),
        ("PATCH", "/reset-messages", None),
        ("GET", "/messages", None),
        ("POST", "/messages", {"input": "x"}),
        ("POST", "/messages/stream", {"input": "x"}),
    ]:
        assert_looks_unknown(lambda agent_id: bob.call(method, f"/v1/agents/{agent_id}{rest}", body), agent_of_alice)  # noqa: B023
    assert_looks_unknown(lambda agent_id: bob.call("GET", f"/v1/agents/?after={agent_id}"), agent_of_alice)
    assert_looks_unknown(
        lambda agent_id: bob.call("POST", BATCHES, {"requests": [{"agent_id": agent_id, "input": "x"}]}), agent_of_alice
    )
    [message, *_] = alice.call("GET", f"/v1/agents/{agent_of_alice}/messages").body
    assert_looks_unknown(
        lambda message_id: bob.call("GET", f"/v1/agents/calculator/messages?after={message_id}"), message["id"]
    )
    assert agent_of_alice not in [agent["id"] for agent in bob.call("GET", "/v1/agents/").body]
    assert alice.call("GET", f"/v1/agents/{agent_of_alice}").body["name"] == "hers"


def test_the_messages_of_a_shared_agent_are_separate_for_each_user(alice: User, bob: User) -> None:
    assert alice.call("POST", "/v1/agents/calculator/messages", {"input": "her words"}).status == 200
    assert bob.call("POST", "/v1/agents/calculator/messages", {"input": "his words"}).status == 200
    assert "her words" not in str(bob.call("GET", "/v1/agents/calculator/messages").body)
    assert "his words" in str(bob.call("GET", "/v1/agents/calculator/messages").body)


def test_idempotency_keys_are_separate_for_each_user(alice: User, bob: User) -> None:
    header = {"Idempotency-Key": "the same"}
    jobs = {user.call("POST", BATCHES, {"requests": [SUM]}, **header).body["id"] for user in (alice, bob, alice)}
    assert len(jobs) == 2


def test_a_job_names_its_user(alice: User, bob: User) -> None:
    users = [user.ended({"requests": [SUM]})["created_by_id"] for user in (alice, bob)]
    assert users[0].startswith("user-")
    assert users[0] != users[1]


def test_metrics_of_all_users_are_for_operators(keyed: LiveServer, data_dir: Path, alice: User) -> None:
    operator = User(keyed, add_key(data_dir, "operator", "--operator"))
    for method in ("GET", "HEAD"):
        assert (alice.call(method, "/metrics").status, operator.call(method, "/metrics").status) == (403, 200)
    refused = alice.call("GET", "/metrics").body["detail"]
    assert refused == "this is about all users; it needs an operator's key: batchray keys add NAME --operator"
    assert operator.call("GET", BATCHES).body == []
    marked = [line.split()[0] for line in batchray_keys(data_dir, "list").splitlines() if line.endswith(" operator")]
    assert marked == ["operator"]


def test_a_key_that_is_no_operators_can_be_read_by_earlier_versions(keyed: LiveServer, data_dir: Path) -> None:
    stored = {key["name"]: key.keys() for key in json.loads((data_dir / "keys.json").read_text())}
    assert stored["alice"] == {"name", "user_id", "digest", "created_at"}


# -- adding and removing keys


def test_a_key_is_valid_from_its_creation_to_its_removal_and_its_jobs_stay(keyed: LiveServer, data_dir: Path) -> None:
    carol = User(keyed, add_key(data_dir, "carol"))
    job_id = carol.ended({"requests": [SUM]})["id"]
    assert carol.call("GET", f"{BATCHES}/{job_id}").status == 200
    listed = batchray_keys(data_dir, "list")
    assert "carol" in listed
    assert carol.key not in listed
    batchray_keys(data_dir, "remove", "carol")
    assert carol.call("GET", f"{BATCHES}/{job_id}").status == 401
    assert "carol" not in batchray_keys(data_dir, "list")


def test_keys_are_stored_as_hashes_that_only_the_operator_can_read(
    keyed: LiveServer, data_dir: Path, alice: User
) -> None:
    assert alice.call("GET", BATCHES).status == 200
    files = [file for file in data_dir.rglob("*") if file.is_file()]
    assert data_dir / "keys.json" in files
    secret = alice.key.removeprefix("br-").encode()
    assert len(secret) >= 43  # 256 bits
    assert [file for file in files if secret in file.read_bytes()] == []
    assert (data_dir / "keys.json").stat().st_mode & 0o077 == 0


def test_the_first_key_of_a_running_server_takes_effect_at_once(tmp_path: Path) -> None:
    with live_server(tmp_path / "data") as running:
        assert call(running, "GET", BATCHES).status == 200
        key = add_key(tmp_path / "data", "alice")
        assert call(running, "GET", BATCHES).status == 401
        assert User(running, key).call("GET", BATCHES).status == 200
        (tmp_path / "data" / "keys.json").write_text("[{", encoding="utf-8")
        answer = User(running, key).call("GET", BATCHES)
        assert (answer.status, answer.body["detail"]) == (503, "API keys cannot be checked at the moment")
        assert call(running, "GET", "/livez").status == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_without_keys_a_server_listens_on_loopback_only(tmp_path: Path, host: str) -> None:
    command = [sys.executable, "-m", "batchray", "serve", "--host", host, "--port", "0", "--executor", "local"]
    command += ["--data-dir", str(tmp_path / "data"), "--agents", str(QUICKSTART)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    [sentence] = done.stderr.splitlines()
    assert sentence.startswith("batchray: without API keys the server listens on loopback only")
    assert host in sentence


# -- logs


def test_no_log_contains_a_key_a_header_or_a_text(tmp_path: Path) -> None:
    key = add_key(tmp_path / "data", "alice")
    with live_server(tmp_path / "data") as running:
        alice = User(running, key)
        agent = alice.call("POST", "/v1/agents/", {"model": "offline/rules", "system": "MARK-system"}).body["id"]
        marked = {"agent_id": agent, "input": "MARK-input", "custom_id": "MARK-custom"}
        spoken = '{"script": [{"fail": {"type": "api_error", "message": "MARK-failure"}}]}'
        failing = {"agent_id": "planner", "input": spoken}
        tool = {"agent_id": "clerk", "input": "Look up: MARK-key"}
        alice.ended({"requests": [marked, failing, tool], "callback_url": "http://user:MARK-password@127.0.0.1:9/MARK"})
        alice.call("POST", BATCHES, {"requests": [{"agent_id": "MARK-agent", "input": "MARK-input"}]})
        alice.call("POST", BATCHES, b'{"requests": [{"agent_id": "MARK-broken')
        alice.call("GET", f"{BATCHES}?after=MARK-cursor", **{"X-Marked": "MARK-header"})
        alice.call("GET", f"{BATCHES}/MARK-path")
        alice.call("POST", f"/v1/agents/{agent}/messages", {"input": "MARK-input"})
        alice.call("POST", "/v1/agents/planner/messages", {"input": spoken})
        call(running, "GET", BATCHES, headers={"Authorization": "Bearer MARK-wrong"})
        assert running.stop() == 0
    assert "job job-" in running.log
    assert "MARK" not in running.log
    assert key not in running.log
    assert "Traceback" not in running.log


def test_blocks_and_the_agents_that_have_them_belong_to_one_user(alice: User, bob: User) -> None:
    block = alice.call("POST", "/v1/blocks/", {"label": "human", "value": "of Alice"}).body
    theirs = alice.call("POST", "/v1/agents/", {"model": "offline/rules", "block_ids": [block["id"]]}).body["id"]
    mine = bob.call("POST", "/v1/agents/", {"model": "offline/rules", "tools": ["calculate"]}).body["id"]
    tool_id = bob.call("GET", f"/v1/agents/{mine}/tools").body[0]["id"]
    of_block, of_theirs = f"/v1/blocks/{block['id']}", f"/v1/agents/{theirs}"
    requests = [
        *((method, of_block, None) for method in ("GET", "DELETE")),
        ("PATCH", of_block, {"value": "of Bob"}),
        ("GET", f"{of_block}/agents", None),
        ("PATCH", f"/v1/agents/{mine}/core-memory/blocks/attach/{block['id']}", None),
        ("PATCH", f"/v1/agents/{mine}", {"block_ids": [block["id"]]}),
        ("POST", "/v1/agents/", {"model": "offline/rules", "block_ids": [block["id"]]}),
        ("GET", f"{of_theirs}/core-memory/blocks", None),
        ("GET", f"{of_theirs}/core-memory/blocks/human", None),
        ("PATCH", f"{of_theirs}/core-memory/blocks/human", {"value": "of Bob"}),
        ("PATCH", f"{of_theirs}/core-memory/blocks/detach/{block['id']}", None),
        ("GET", f"{of_theirs}/tools", None),
        *(("PATCH", f"{of_theirs}/tools/{action}/{tool_id}", None) for action in ("attach", "detach")),
        ("PATCH", f"{of_theirs}/tools/approval/calculate", {"requires_approval": True}),
        ("POST", f"{of_theirs}/tools/calculate/run", {"args": {"expression": "1"}}),
    ]
    for method, path, body in requests:
        answer = bob.call(method, path, body)
        assert (answer.status, "Alice" in str(answer.body)) == (404, False), (method, path, answer)
    assert block["id"] not in str(bob.call("GET", "/v1/blocks/").body)
    assert bob.call("GET", f"/v1/blocks/?after={block['id']}").status == 400
    assert alice.call("GET", of_block).body == block
    assert [each["id"] for each in alice.call("GET", f"{of_block}/agents").body] == [theirs]
