"""Every command and snippet of the user documents runs as written, in a fresh directory and without a network.

Snippets that do not name Ray run with BATCHRAY_EXECUTOR=local: the first command runs on Ray in test_quickstart.py.
tests/unit/test_documents.py compares the documents' tables with the code.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.cluster.processes import COMMAND, ROOT, run_there, user_directory
from tests.provider_server import ProviderServer, run_in_thread
from tests.server.live import LiveServer, live_server

DOCUMENTS = ("README.md", "configs/README.md", "batchray/server/README.md", "notebooks/README.md")
INSTALL = re.compile(r"python3 -m venv \.venv && \.venv/bin/pip install (\S+|-e \S+) && \.venv/bin/")
TEST_COMMAND = 'python3 -m venv .venv && .venv/bin/pip install -e ".[dev]" && .venv/bin/python -m pytest'


class Block(NamedTuple):
    document: str
    line: int
    language: str
    text: str


def _read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def _blocks(document: str) -> Iterator[Block]:
    text = _read(document)
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield Block(document, text.count("\n", 0, found.start()) + 1, found[1], found[2])


BLOCKS = [block for document in DOCUMENTS for block in _blocks(document)]
RUNNABLE = [block for block in BLOCKS if block.language in ("bash", "python") and block.text.strip() != TEST_COMMAND]
FILES = [block for block in BLOCKS if block.language == "yaml"]


def _name(block: Block) -> str:
    return f"{block.document}-{block.language}-line-{block.line}"


@pytest.fixture(scope="module")
def provider() -> Iterator[ProviderServer]:
    with run_in_thread() as server:
        yield server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with live_server(tmp_path_factory.mktemp("served")) as server:
        yield server


def test_every_block_is_of_a_language_that_is_run_here() -> None:
    assert {block.language for block in BLOCKS} == {"bash", "python", "yaml"}


def test_the_two_commands_come_first() -> None:
    first, second = [block.text.strip() for block in BLOCKS if block.language == "bash"][:2]
    assert INSTALL.sub("", first) == COMMAND
    assert second == TEST_COMMAND


@contextlib.contextmanager
def _with_free_port(text: str) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    yield text.replace("8283", port)


@pytest.mark.parametrize("block", RUNNABLE, ids=_name)
def test_an_example_of_a_document_runs(
    block: Block, tmp_path: Path, provider: ProviderServer, request: pytest.FixtureRequest
) -> None:
    text = INSTALL.sub("", block.text)
    with user_directory(tmp_path) as (directory, environment), _with_free_port(text) as text:
        environment["OPENAI_BASE_URL"] = provider.base_url  # stands in for OpenAI's
        if "import ray" not in text:
            environment["BATCHRAY_EXECUTOR"] = "local"
        if "letta_client" in text or "from openai import" in text:
            text = re.sub(r"http://localhost:\d+", request.getfixturevalue("server").url, text)
        if block.language == "python":
            (directory / "example.py").write_text(text)
            command = ["python", "example.py"]
        else:
            command = ["bash", "-c", text]
        done = run_there(command, directory, environment)
    fails_on_purpose = text.strip() == COMMAND
    assert done.returncode == (1 if fails_on_purpose else 0), done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("block", [block for block in FILES if "agents:" in block.text], ids=_name)
def test_an_agents_file_answers_a_request_to_each_of_its_agents(
    block: Block, tmp_path: Path, provider: ProviderServer
) -> None:
    agent_ids = re.findall(r"- id: (\w+)", block.text)
    assert agent_ids
    with user_directory(tmp_path) as (_, environment):
        directory = tmp_path / "configs" / "quickstart"  # the file names tools of this directory
        (directory / "agents.yaml").write_text(block.text.replace("http://127.0.0.1:8000/v1", provider.base_url))
        shutil.copy(ROOT / "tests" / "data" / "loopback.pem", directory / "ca.pem")
        requests = "".join(f'{{"agent_id": "{agent_id}", "input": "one two"}}\n' for agent_id in agent_ids)
        command = ["batchray", "run", "-", "--agents", "agents.yaml", "--quiet"]
        environment |= {"LOCAL_API_KEY": "a-key", "BATCHRAY_EXECUTOR": "local"}
        done = run_there(command, directory, environment, requests)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", [block for block in FILES if "agents:" not in block.text], ids=_name)
def test_a_settings_file_is_accepted(block: Block, tmp_path: Path) -> None:
    with user_directory(tmp_path) as (directory, environment):
        (directory / "settings.yaml").write_text(block.text)
        (directory / "one.jsonl").write_text('{"agent_id": "calculator", "input": "What is 6 * 7?"}')
        command = (
            "batchray run one.jsonl --agents configs/quickstart/agents.yaml --config settings.yaml --executor local"
        )
        done = run_there(command.split(), directory, environment)
    assert done.returncode == 0, done.stderr
    assert (directory / "work" / "batchray" / "batchray.db").exists()


def test_the_routes_and_their_parameters_are_those_of_the_server(server: LiveServer) -> None:
    text = _read("batchray/server/README.md")
    with urllib.request.urlopen(f"{server.url}/openapi.json") as response:
        paths: dict[str, dict[str, Any]] = json.load(response)["paths"]
    described = set(re.findall(r"`((?:GET|POST|PUT|PATCH|DELETE) /[^`]*)`", text))
    assert described == {f"{method.upper()} {path}" for path in paths for method in paths[path]} | {"GET /openapi.json"}
    parameters = {each["name"] for path in paths.values() for route in path.values() for each in route["parameters"]}
    words = set(re.findall(r"[\w-]+", " ".join(re.findall(r"`([^`\n]+)`", text))))
    assert parameters - words == set()
