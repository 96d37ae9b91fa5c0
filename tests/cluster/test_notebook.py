"""The notebook runs from its first cell to its last, on Ray, in this interpreter."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "quickstart.ipynb"


def _read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]


def test_the_notebook_is_committed_without_outputs() -> None:
    cells = [cell for cell in _read().cells if cell.cell_type == "code"]
    assert cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


async def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    notebook = _read()
    with tempfile.TemporaryDirectory(prefix="br", ignore_cleanup_errors=True) as ray_directory:
        monkeypatch.setenv("RAY_TMPDIR", ray_directory)
        client = nbclient.NotebookClient(
            notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
        )
        await client.async_execute()
    said = "\n".join(
        output.get("text", "") + output.get("data", {}).get("text/plain", "")
        for cell in notebook.cells
        for output in cell.get("outputs", ())
    )
    assert "completed: {'succeeded': 180, 'errored': 20" in said
    assert "ZeroDivisionError" in said
    assert "'succeeded': 180, 'errored': 20" in said
    assert "Percentiles(p50=" in said
    assert "ipywidgets" not in said  # nor any other message of Ray
    assert "INFO" not in said
