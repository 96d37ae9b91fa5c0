"""The notebooks run from the first cell to the last in a fresh kernel, and again in the same kernel, on Ray.

They join the session's cluster, so that it starts once for all of them.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
import ray
from nbclient.exceptions import CellExecutionError

import batchray

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
NAMES = ["quickstart", "experiment", "offline_batch", "cluster"]
MAX_OUTPUT_BYTES = 200_000

REDEFINED = """
def loud(text: str) -> str:
    return text.upper()


def answer(request: batchray.AgentRequest) -> str:
    return loud(f"first {request.input}")


def tell() -> str:
    "Tell."
    return loud("first")


def shown() -> list[str]:
    "Ask a function and a tool, which are built again from the names of this moment."
    script = [{"tool_calls": [{"name": "tell"}]}, {"text": "Done."}]
    agents = [
        batchray.Agent(id="function", run=answer),
        batchray.Agent(id="tool", model="offline/scripted", script=script, tools=[tell]),
    ]
    requests = [{"agent_id": agent.id, "input": "one"} for agent in agents]
    function, tool = batchray.run(requests, agents, progress=False).results("index")
    return [function.text, next(each.tool_return for each in tool.messages if hasattr(each, "tool_return"))]


print(shown())
"""
ANSWER_AGAIN = """
def answer(request: batchray.AgentRequest) -> str:
    return loud(f"second {request.input}")


def tell() -> str:
    "Tell."
    return loud("second")


print(shown())
"""
HELPER_AGAIN = """
def loud(text: str) -> str:
    return f"{text}!"


print(shown())
"""

SLOW_RUN = """
def slow(request: batchray.AgentRequest) -> str:
    time.sleep(0.1)
    return str(request.input)


slow_agents = [batchray.Agent(id="slow", run=slow)]
job = batchray.run([{"agent_id": "slow", "input": f"text {i}"} for i in range(40)], slow_agents, max_in_flight=2)
"""
RESUME = """
job = batchray.jobs(limit=1)[0]
n_kept = sum(job.counts.values())
job = batchray.resume(job.id, agents=slow_agents)
numbers = sorted(int(result.text.split()[1]) for result in job.results())
print(n_kept, job.counts["succeeded"], numbers == list(range(40)))
"""


def read(name: str) -> Any:
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)  # type: ignore[no-untyped-call]


def said(cells: list[Any]) -> str:
    """Return all text that cells show."""
    shown = []
    for cell in cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            shown += [output.get("text", ""), data.get("text/plain", ""), data.get("text/html", "")]
    return "\n".join(shown)


class Interrupting(nbclient.NotebookClient):
    """Sends the kernel an interrupt, as the button of a front end does, when a display first has such a text."""

    awaited: str | None = None

    def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
        text = msg["content"].get("data", {}).get("text/plain", "")
        if self.awaited is not None and msg["msg_type"] == "update_display_data" and re.match(self.awaited, text):
            self.awaited = None
            kernel: Any = self.km
            os.kill(kernel.provisioner.pid, signal.SIGINT)
        return super().process_message(msg, cell, cell_index)


@pytest.fixture(scope="module")
def address(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the address of the session's cluster, which the first job starts."""
    agents = [batchray.Agent(id="a", model="offline/rules")]
    options: Any = {"data_dir": tmp_path_factory.mktemp("first"), "progress": False, "lanes": 2, "num_cpus": 2}
    batchray.run([{"agent_id": "a", "input": "hello"}], agents, **options)
    return str(ray.get_runtime_context().gcs_address)


@pytest.fixture
def kernel_of(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a context with a fresh kernel of a notebook, in an empty directory."""
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("BATCHRAY_LANES", "2")

    @contextlib.asynccontextmanager
    async def kernel_of(notebook: Any) -> AsyncIterator[Interrupting]:
        (tmp_path / "work").mkdir()
        resources = {"metadata": {"path": str(tmp_path / "work")}}
        client = Interrupting(notebook, timeout=600, kernel_name="python3", resources=resources)
        async with client.async_setup_kernel():
            yield client

    return kernel_of


async def run_all(client: Interrupting, notebook: Any) -> str:
    """Execute all cells, check their outputs, and return what they say.  A cell that raises is an error here."""
    for position, cell in enumerate(notebook.cells):
        await client.async_execute_cell(cell, position)
    text = said(notebook.cells)
    assert len(nbformat.writes(notebook)) < MAX_OUTPUT_BYTES  # type: ignore[no-untyped-call]
    for noise in ('Traceback (most recent call last):\n  File "/', "ipywidgets", "INFO", "Warning", "\x1b["):
        assert noise not in text
    return text


def appended(client: Interrupting, source: str) -> tuple[Any, int]:
    """Return a new cell at the end of the notebook, and its position."""
    client.nb.cells.append(nbformat.v4.new_code_cell(source))  # type: ignore[no-untyped-call]
    return client.nb.cells[-1], len(client.nb.cells) - 1


async def executed(client: Interrupting, source: str) -> str:
    """Execute a new cell, and return what it says."""
    cell, position = appended(client, source)
    await client.async_execute_cell(cell, position)
    return said([cell]).strip()


def test_there_are_the_notebooks_that_are_tested_here() -> None:
    assert sorted(file.stem for file in NOTEBOOKS.glob("*.ipynb")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_committed_without_outputs(name: str) -> None:
    cells = [cell for cell in read(name).cells if cell.cell_type == "code"]
    assert cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


async def test_the_quickstart_runs_twice_in_a_kernel(kernel_of: Any) -> None:
    notebook = read("quickstart")
    async with kernel_of(notebook) as client:
        for _ in range(2):
            text = await run_all(client, notebook)
            assert "completed: {'succeeded': 180, 'errored': 20" in text
            assert "ZeroDivisionError" in text
            assert "Percentiles(p50=" in text
            assert "completed: {'succeeded': 200, 'errored': 0" in text  # of the function that was defined again
            assert "completed {'succeeded': 180, 'errored': 20" in text

        assert await executed(client, REDEFINED) == "['FIRST ONE', 'FIRST']"
        assert await executed(client, ANSWER_AGAIN) == "['SECOND ONE', 'SECOND']"
        assert await executed(client, HELPER_AGAIN) == "['second one!', 'second!']"

        client.awaited = r"[1-9]\d? of 40 done"
        interrupted, position = appended(client, SLOW_RUN)
        with pytest.raises(CellExecutionError, match="KeyboardInterrupt"):
            await client.async_execute_cell(interrupted, position)
        assert re.search(r"to continue: batchray\.resume\('job-[0-9a-f-]{36}', agents=agents\)", said([interrupted]))
        assert "<progress" not in said([interrupted])
        n_kept, n_succeeded, is_whole = (await executed(client, RESUME)).split()
        assert 0 < int(n_kept) < 40
        assert (n_succeeded, is_whole) == ("40", "True")


async def test_the_experiment_runs_twice_in_a_kernel(kernel_of: Any) -> None:
    notebook = read("experiment")
    async with kernel_of(notebook) as client:
        for _ in range(2):
            text = await run_all(client, notebook)
            assert "<20 requests x 4 agents x 3 repeats: 240>" in text
            assert "local/small: steps - terse = +0." in text
            assert "300 outcomes, 300 calls of a model in all" in text
            pictures = [output for cell in notebook.cells for output in cell.get("outputs", ()) if "data" in output]
            assert sum("image/png" in output["data"] for output in pictures) == 2


@pytest.mark.parametrize("n_rows", [1_000, pytest.param(20_000, marks=[pytest.mark.full, pytest.mark.timeout(900)])])
async def test_the_large_batch_runs_twice_in_a_kernel(
    kernel_of: Any, monkeypatch: pytest.MonkeyPatch, n_rows: int
) -> None:
    monkeypatch.setenv("N_ROWS", str(n_rows))
    notebook = read("offline_batch")
    n_long = n_rows // 200
    async with kernel_of(notebook) as client:
        for _ in range(2):
            text = await run_all(client, notebook)
            assert f"{{'succeeded': {n_rows - n_long}, 'errored': {n_long}, " in text
            assert f"completed {{'succeeded': {n_rows}, 'errored': 0, " in text
            assert "stars: int8" in text
            assert "That is 216 words." in text


async def test_the_cluster_runs_twice_in_a_kernel(kernel_of: Any) -> None:
    notebook = read("cluster")
    async with kernel_of(notebook) as client:
        for _ in range(2):
            text = await run_all(client, notebook)
            assert re.search(r"\{'succeeded': \d+, 'errored': 0", text)
            assert "completed {'succeeded': 400, 'errored': 0" in text
