"""The command line in a child process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

AGENTS = "agents:\n  - {id: a, model: offline/rules}\n  - {id: b, model: offline/rules}\n"


class Done(NamedTuple):
    """Exit status and output of a command."""

    status: int | None
    out: str
    err: str


def local(requests: str, *options: str) -> list[str]:
    """Return the arguments that run `requests` with agents.yaml in the command's own process."""
    return ["run", requests, "--agents", "agents.yaml", "--executor", "local", *options]


def command(tmp_path: Path, *arguments: str, given: bytes = b"", **environment: str) -> Done:
    """Run `batchray` in a child process."""
    done = subprocess.run(
        [sys.executable, "-m", "batchray", *arguments],
        cwd=tmp_path,
        input=given,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())
