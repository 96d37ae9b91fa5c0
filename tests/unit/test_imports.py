"""Imports of agents' code: in a thread, each once, before the clock of the first request starts."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from batchray.agents import AttemptReport, AttemptRunner, Imports, encode_input, read_report
from batchray.config import Agent, BoundAgent
from batchray.schema import new_job_id
from tests.builders.agents import bound

JOB = new_job_id()
GATED = """
import {gate}
{gate}.begun.set()
assert {gate}.opened.wait(30)
def answer(request):
    return "imported"
"""


class Gate:
    """A module that an agent's code imports; it holds that import until it is opened."""

    def __init__(self) -> None:
        self.begun, self.opened = threading.Event(), threading.Event()


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    monkeypatch.setitem(sys.modules, "gate_of_an_import", gate)
    (tmp_path / "gated_agent.py").write_text(GATED.format(gate="gate_of_an_import"))
    yield gate
    gate.opened.set()
    sys.modules.pop("gated_agent", None)


def gated_agent(tmp_path: Path) -> BoundAgent:
    return BoundAgent(Agent(id="gated", run="gated_agent:answer"), None, import_paths=(str(tmp_path),))


async def report_of(runner: AttemptRunner, agent: BoundAgent, index: int = 0) -> AttemptReport:
    request = json.dumps({"agent_id": "a", "input": "?"}).encode()
    return read_report(await runner.run_attempt(agent, encode_input(JOB, index, 1, request)))


async def test_an_import_holds_up_no_other_agent_and_is_not_part_of_the_requests_time(
    gate: Gate, tmp_path: Path, attempt_runner: AttemptRunner
) -> None:
    waiting = [asyncio.ensure_future(report_of(attempt_runner, gated_agent(tmp_path))) for _ in range(2)]
    await asyncio.to_thread(gate.begun.wait, 30)
    other = bound(model="offline/rules")
    assert (await report_of(attempt_runner, other)).status == "succeeded"

    opened_ns = time.monotonic_ns()
    gate.opened.set()
    reports = await asyncio.gather(*waiting)
    assert [report.status for report in reports] == ["succeeded"] * 2
    assert all(report.duration_ns <= time.monotonic_ns() - opened_ns for report in reports)


async def test_an_import_is_marked_as_code_of_the_first_request_only(gate: Gate, tmp_path: Path) -> None:
    marked: list[int] = []

    @contextmanager
    def mark(job_id: str, index: int) -> Iterator[None]:
        marked.append(index)
        yield

    runner, agent = AttemptRunner(mark), gated_agent(tmp_path)
    waiting = [asyncio.ensure_future(report_of(runner, agent, index)) for index in (3, 4, 5)]
    await asyncio.to_thread(gate.begun.wait, 30)
    assert marked == [3]
    gate.opened.set()
    await asyncio.gather(*waiting)
    await runner.close()


async def test_an_import_continues_for_the_others_if_the_request_that_began_it_is_cancelled(
    gate: Gate, tmp_path: Path, attempt_runner: AttemptRunner
) -> None:
    agent = gated_agent(tmp_path)
    first, second = (asyncio.ensure_future(report_of(attempt_runner, agent)) for _ in range(2))
    await asyncio.to_thread(gate.begun.wait, 30)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    gate.opened.set()
    assert (await second).status == "succeeded"


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), StopIteration(), LookupError("no")], ids=repr)
async def test_nothing_that_an_import_raises_ends_the_loop(error: BaseException) -> None:
    def work() -> None:
        raise error

    imports: Imports[None] = Imports()
    for _ in range(2):
        with pytest.raises((RuntimeError, LookupError), match=str(error) or type(error).__name__):
            await imports.run("key", work)


async def test_code_that_asks_for_a_loop_while_it_is_imported_gets_one() -> None:
    loop = await Imports[asyncio.AbstractEventLoop]().run("key", asyncio.get_event_loop)
    assert await loop.run_in_executor(None, lambda: 7) == 7  # on the loop that runs here
