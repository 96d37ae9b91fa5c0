"""A real kernel: a run is interrupted, and resumed in the next cell.  Ray is not needed for it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

RUN = """
import batchray

agents = [batchray.Agent(id="slow", model="offline/scripted", script=[{"text": "Done.", "delay_s": 0.1}])]
requests = [{"agent_id": "slow", "input": f"text <b>{i}</b>"} for i in range(6)]
job = batchray.run(requests, agents, executor="local", max_in_flight=1, data_dir="data")
"""
RESUME = """
(job,) = batchray.jobs("data")
job = batchray.resume(job.id, data_dir="data")
print(job.counts)
job
"""


def _outputs(cell: Any, kind: str) -> list[str]:
    return [output["data"].get(kind, "") for output in cell.outputs if "data" in output]


def _said(cell: Any, stream: str) -> str:
    return "".join(output["text"] for output in cell.outputs if output.get("name") == stream)


class _Interrupting(nbclient.NotebookClient):
    """Interrupts the first cell when its bar shows the first outcome."""

    is_interrupted = False

    def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
        shown = msg["content"].get("data", {}).get("text/plain", "") if msg["msg_type"] == "update_display_data" else ""
        if cell_index == 0 and not self.is_interrupted and re.match("[1-5] of 6 done", shown):
            self.is_interrupted = True
            kernel: Any = self.km
            os.kill(kernel.provisioner.pid, signal.SIGINT)  # as the button of a front end does
        return super().process_message(msg, cell, cell_index)


@contextlib.contextmanager
def _own_settings(monkeypatch: pytest.MonkeyPatch, directory: Path) -> Iterator[None]:
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(directory / name.lower()))
    yield


async def test_an_interrupted_run_takes_its_bar_away_and_says_how_to_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = nbformat.v4.new_notebook(  # type: ignore[no-untyped-call]
        cells=[nbformat.v4.new_code_cell(source) for source in (RUN, RESUME)]  # type: ignore[no-untyped-call]
    )
    with _own_settings(monkeypatch, tmp_path):
        client = _Interrupting(
            notebook, timeout=60, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
        )
        async with client.async_setup_kernel():
            interrupted, resumed = notebook.cells
            with pytest.raises(CellExecutionError, match="KeyboardInterrupt"):
                await client.async_execute_cell(interrupted, 0)
            await asyncio.wait_for(client.async_execute_cell(resumed, 1), 60)
    assert client.is_interrupted
    assert _outputs(interrupted, "text/html") == [""]
    assert re.search(
        r"to continue: batchray\.resume\('job-[-\w]+', data_dir='/.*/data'\)", _said(interrupted, "stderr")
    )
    assert "all of them are kept" in _said(interrupted, "stderr")
    assert "'succeeded': 6" in _said(resumed, "stdout")
    bar, *_ = _outputs(resumed, "text/html")
    assert bar == ""
