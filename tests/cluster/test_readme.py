"""Every command and snippet of the README runs, as it stands there, in a fresh directory and without a network.

Snippets that do not name Ray run with BATCHRAY_EXECUTOR=local: the first command runs on Ray in test_quickstart.py.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from tests.cluster.processes import COMMAND, ROOT, run_there, user_directory
from tests.provider_server import ProviderServer, run_in_thread
from tests.server.live import live_server

README = (ROOT / "README.md").read_text(encoding="utf-8")
INSTALL = re.compile(r"python3 -m venv \.venv && \.venv/bin/pip install (\S+|-e \S+) && \.venv/bin/")
TEST_COMMAND = 'python3 -m venv .venv && .venv/bin/pip install -e ".[dev]" && .venv/bin/python -m pytest'


class Block(NamedTuple):
    line: int
    language: str
    text: str


def _blocks() -> Iterator[Block]:
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL):
        yield Block(README.count("\n", 0, found.start()) + 1, found[1], found[2])


BLOCKS = list(_blocks())
RUNNABLE = [block for block in BLOCKS if block.language in ("bash", "python") and block.text.strip() != TEST_COMMAND]


def _name(block: Block) -> str:
    return f"{block.language}-line-{block.line}"


@pytest.fixture(scope="module")
def provider() -> Iterator[ProviderServer]:
    with run_in_thread() as server:
        yield server


def test_every_block_is_of_a_language_that_is_run_here() -> None:
    assert {block.language for block in BLOCKS} == {"bash", "python", "yaml"}


def test_the_two_commands_come_first() -> None:
    first, second = [block.text.strip() for block in BLOCKS if block.language == "bash"][:2]
    assert INSTALL.sub("", first) == COMMAND
    assert second == TEST_COMMAND


@contextlib.contextmanager
def served(text: str, directory: Path) -> Iterator[str]:
    """Yield a block's text with a free port for the documented one; a client's finds a server there."""
    if "letta_client" in text:
        with live_server(directory / "served") as server:
            yield text.replace("http://localhost:8283", server.url)
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        yield text.replace("8283", port)


@pytest.mark.parametrize("block", RUNNABLE, ids=_name)
def test_a_block_runs(block: Block, tmp_path: Path, provider: ProviderServer) -> None:
    text = INSTALL.sub("", block.text)
    with user_directory(tmp_path) as (directory, environment), served(text, tmp_path) as text:
        environment["OPENAI_BASE_URL"] = provider.base_url  # stands in for OpenAI's
        if "import ray" not in text:
            environment["BATCHRAY_EXECUTOR"] = "local"
        if block.language == "python":
            (directory / "example.py").write_text(text)
            command = ["python", "example.py"]
        else:
            command = ["bash", "-c", text]
        done = run_there(command, directory, environment)
    fails_on_purpose = text.strip() == COMMAND
    assert done.returncode == (1 if fails_on_purpose else 0), done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "yaml"], ids=_name)
def test_an_agents_file_answers_a_request_to_each_of_its_agents(
    block: Block, tmp_path: Path, provider: ProviderServer
) -> None:
    agent_ids = re.findall(r"- id: (\w+)", block.text)
    with user_directory(tmp_path) as (_, environment):
        directory = tmp_path / "configs" / "quickstart"  # where the tools are that the file names
        (directory / "agents.yaml").write_text(block.text.replace("http://127.0.0.1:8000/v1", provider.base_url))
        requests = "".join(f'{{"agent_id": "{agent_id}", "input": "one two"}}\n' for agent_id in agent_ids)
        command = ["batchray", "run", "-", "--agents", "agents.yaml", "--quiet"]
        environment |= {"LOCAL_API_KEY": "a-key", "BATCHRAY_EXECUTOR": "local"}
        done = run_there(command, directory, environment, requests)
    assert agent_ids
    assert done.returncode == 0, done.stderr


def test_every_link_to_a_file_leads_somewhere() -> None:
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_the_options_are_those_of_the_command_line() -> None:
    from batchray.cli.main import cli

    groups = [command for command in cli.commands.values() if isinstance(command, click.Group)]
    commands = [*cli.commands.values(), *(command for group in groups for command in group.commands.values())]
    known = {flag for command in commands for option in command.params for flag in option.opts if flag[0] == "-"}
    section = README.split("## Command line")[1].split("```")[0]
    assert set(re.findall(r"--[a-z][a-z-]*", section)) == known | {"--help"}


def test_ci_installs_and_tests_as_the_readme_says() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert '-e ".[dev]"' in script
    assert "-m pytest" in script
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
