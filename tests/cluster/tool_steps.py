"""An agent that takes several steps, with a tool that logs each of its calls to a file."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from batchray import Agent, Tool
from tests.cluster.dying import die
from tests.provider_server import ProviderServer

N_STEPS = 3


def note(ledger: str, wait_for: str = "") -> str:
    """A tool that logs its begin and its end, and in between waits for a file."""
    _write(ledger, "begun")
    while wait_for and not Path(wait_for).exists():
        time.sleep(0.01)
    _write(ledger, "ended")
    return "noted"


def die_after(wait_for: str) -> str:
    """A tool that ends its process as soon as a file exists."""
    while not Path(wait_for).exists():
        time.sleep(0.01)
    return die("exit")


def _write(ledger: str, word: str) -> None:
    with Path(ledger).open("a") as file:
        file.write(f"{word} {os.getpid()}\n")


def events(ledger: Path, word: str) -> int:
    """Count the lines of a log that start with `word`."""
    return sum(line.startswith(word) for line in ledger.read_text().splitlines()) if ledger.exists() else 0


def agent(server: ProviderServer, *, idempotent: bool = False, **fields: Any) -> dict[str, Any]:
    """Return the arguments of a job: an agent with these tools, and its provider."""
    tools = [Tool(function=note, idempotent=idempotent), die_after]
    local = {"protocol": "openai", "base_url": server.base_url}
    return {
        "agents": [Agent(id="a", model="local/m", tools=tools, **fields)],
        "providers": {"local": local},
    }


def asked(ledger: Path, latency_s: float = 0.0, **arguments: str) -> list[dict[str, Any]]:
    """Return one request whose first `N_STEPS` replies each call the tool `note`."""
    call = json.dumps({"ledger": str(ledger), **arguments})
    text = f"[[steps:{N_STEPS}]] [[latency:{latency_s}]] [[tool:note {call}]]"
    return [{"agent_id": "a", "input": text}]
