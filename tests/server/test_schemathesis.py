"""The server behaves as its OpenAPI document says: schemathesis derives thousands of requests from it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import openapi_spec_validator
import pytest

from batchray.server.keys import KeyFile
from tests.preloaded import ROOT
from tests.server.http_client import BATCHES, ask
from tests.server.live import LiveServer, live_server

# Their answers do not fail, as those of some of the quickstart's agents do on purpose.
AGENTS = """
agents:
  - {id: scripted, model: offline/scripted, script: [{text: Done.}]}
  - {id: other, model: offline/rules}
"""

CONFIG = """
seed = 1
continue-on-failure = true
suppress-health-check = ["all"]  # this test makes no claim about the speed of a busy machine

[generation]
max-examples = 5

# Ids of what there is, so that not all requests end at an id that there is not.
[dictionaries]
agents.values = ["scripted", "other", "%(agent_id)s"]
batches.values = ["%(batch_id)s"]
blocks.values = ["%(block_id)s"]
runs.values = ["%(run_id)s"]
steps.values = ["%(step_id)s"]
models.values = ["offline/rules", "offline/scripted"]

[parameters]
"path.agent_id" = {dictionary = "agents", probability = 0.6}
"path.batch_id" = {dictionary = "batches", probability = 0.8}
"path.block_id" = {dictionary = "blocks", probability = 0.6}
"path.run_id" = {dictionary = "runs", probability = 0.8}
"path.step_id" = {dictionary = "steps", probability = 0.8}
"body.requests[*].agent_id" = {dictionary = "agents", probability = 0.8}
"body.model" = {dictionary = "models", probability = 0.6}

# All checks are on but one.  What they take for right beside their defaults:
[[operations]]
include-method = "GET"
# Letta answers a cursor that is the id of nothing with 400, and no schema can tell which ids there are.
checks.positive_data_acceptance.expected-statuses = ["2xx", "401", "403", "404", "409", "400"]
"""


def create_objects(server: LiveServer, key: str) -> dict[str, str]:
    """Create an agent and a block, run a batch, and return the ids of all that there is then."""
    authorization = f"Bearer {key}"
    made = {"model": "offline/rules", "message_buffer_autoclear": True}  # many requests at once
    agent_id = ask(server.url, "/v1/agents/", made, Authorization=authorization)["id"]
    requests = [{"agent_id": each, "input": "Say something."} for each in ("scripted", "other", agent_id) * 10]
    batch = ask(server.url, BATCHES, {"requests": requests}, Authorization=authorization)
    while batch["completed_at"] is None:
        time.sleep(0.05)
        batch = ask(server.url, f"{BATCHES}/{batch['id']}", Authorization=authorization)
    block = ask(server.url, "/v1/blocks/", {"label": "human", "value": "Anna."}, Authorization=authorization)
    [step] = ask(server.url, "/v1/steps/?limit=1", Authorization=authorization)
    ids = {"block_id": block["id"], "run_id": step["run_id"], "step_id": step["id"]}
    return {"agent_id": agent_id, "batch_id": batch["id"], **ids}


@pytest.mark.fuzz
def test_a_validator_accepts_the_document(server: LiveServer) -> None:
    """The default run compares it with OpenAPI's own schema; this validator takes seconds."""
    openapi_spec_validator.validate(ask(server.url, "/openapi.json"))


@pytest.mark.fuzz
@pytest.mark.timeout(800)
def test_the_server_and_its_document_agree(tmp_path: Path) -> None:
    agents, config = tmp_path / "agents.yaml", tmp_path / "schemathesis.toml"
    agents.write_text(AGENTS)
    key = KeyFile(tmp_path / "data").add("schemathesis")
    with live_server(tmp_path / "data", agents=agents) as server:
        config.write_text(CONFIG % create_objects(server, key))
        command = [str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(config)]
        command += ["run", f"{server.url}/openapi.json", "--header", f"Authorization: Bearer {key}", "--checks", "all"]
        # Some paths are also those of a label with slashes, or of an id, and so have more methods.
        command += ["--exclude-checks", "allow_header_conformance"]
        variables = {**os.environ, "PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": "tests.server.schema_hooks"}
        run = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=790)
        assert run.returncode == 0, run.stdout[-30_000:] + run.stderr
        assert server.stop() == 0
    assert "Traceback" not in server.log
