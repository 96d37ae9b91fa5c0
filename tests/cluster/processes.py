"""Child processes of the cluster tests: the command line and Ray's workers."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from tests.processes import descendants, named

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (
    "batchray run configs/quickstart/requests.jsonl --agents configs/quickstart/agents.yaml --output results.jsonl"
)
_TIMEOUT_S = 170


def processes_named(prefix: str) -> list[psutil.Process]:
    """Return the descendants of this process whose name starts with `prefix`."""
    return named(prefix, descendants())


def run_cli(*arguments: str, cwd: Path, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start `batchray` in a child process, with a Ray cluster of its own."""
    command = [sys.executable, "-m", "batchray", *arguments]
    variables = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **(environment or {})}
    return subprocess.Popen(command, cwd=cwd, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@contextlib.contextmanager
def user_directory(directory: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """Yield a directory with a copy of configs/, and an environment that finds this `batchray` and `python`.

    Ray's files go to a short path, which its sockets need, and are removed afterwards.
    """
    shutil.copytree(ROOT / "configs", directory / "configs")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("BATCHRAY_", "RAY_"))}
    with tempfile.TemporaryDirectory(prefix="br", ignore_cleanup_errors=True) as ray_directory:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        yield directory, {**inherited, "PATH": path, "RAY_TMPDIR": ray_directory}


def run_there(
    command: Sequence[str], directory: Path, environment: Mapping[str, str], given: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a command until it ends; on a timeout, kill its process group."""
    process = subprocess.Popen(
        command,
        cwd=directory,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(given, timeout=_TIMEOUT_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
            process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, out, err)
