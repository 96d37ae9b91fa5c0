"""The command line while code of agents prints, logs and raises."""

from __future__ import annotations

import json
from pathlib import Path

from tests.builders.commands import command, local

TOOLS = """
import asyncio, logging, os, sys, threading

print("imported")


class PanicException(BaseException):
    pass


def shout(text: str) -> str:
    print("shouting", text)
    logging.getLogger("mine").warning("careful with %s", text)
    os.system("echo from a child process")
    other = threading.Thread(target=print, args=("from a thread of its own",))
    other.start()
    other.join()
    return text.upper()


async def panic(request):
    print("panicking")
    raise PanicException(f"with {os.environ['THEIR_API_KEY']}")


async def exit_in_a_task(request):
    async def leave():
        sys.exit(3)

    await asyncio.gather(leave(), asyncio.Event().wait())


def interrupt(request):
    raise KeyboardInterrupt
"""
AGENTS = """
agents:
  - id: model
    model: offline/scripted
    script: [{tool_calls: [{name: shout, arguments: {text: hello}}]}, {text: done}]
    tools: ["tools:shout"]
  - {id: panic, run: "tools:panic"}
  - {id: exit, run: "tools:exit_in_a_task"}
  - {id: interrupt, run: "tools:interrupt"}
"""


def test_code_of_agents_ends_no_job_and_writes_nothing_to_standard_output(tmp_path: Path) -> None:
    agents = ["model", "panic", "exit", "interrupt"]
    (tmp_path / "tools.py").write_text(TOOLS)
    (tmp_path / "agents.yaml").write_text(AGENTS)
    (tmp_path / "requests.jsonl").write_text(
        "".join(json.dumps({"agent_id": agent_id, "input": "?"}) + "\n" for agent_id in agents)
    )
    options = ("--data-dir", "jobs", "--output", "out.jsonl", "--quiet")
    done = command(tmp_path, *local("requests.jsonl", *options), THEIR_API_KEY="sk-of-theirs-123")

    assert done.status == 1
    assert done.out.startswith("job-")
    assert len(done.out.splitlines()) == 1
    assert sorted(done.err.splitlines()) == ["from a child process", "from a thread of its own", "imported"]
    results = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    returned = results[0]["messages"][1]
    assert (returned["tool_return"], returned["status"]) == ("HELLO", "success")
    assert (returned["stdout"], returned["stderr"]) == (["shouting hello\n"], ["careful with hello\n"])
    assert [each["error"]["type"] for each in results[1:]] == ["PanicException", "SystemExit", "KeyboardInterrupt"]
    panic = results[1]
    assert (panic["stdout"], panic["error"]["message"]) == ("panicking\n", "with ***")
    assert panic["error"]["traceback"].splitlines()[1:] == [
        f'  File "{tmp_path / "tools.py"}", line {TOOLS[: TOOLS.index("raise Panic")].count(chr(10)) + 1}, in panic',
        "    raise PanicException(f\"with {os.environ['THEIR_API_KEY']}\")",
        "tools.PanicException: with ***",
    ]
    assert {each["attempts"] for each in results} == {1}
