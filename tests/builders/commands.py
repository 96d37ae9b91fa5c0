"""The command line in a child process."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from tests.preloaded import ROOT, PreloadedProcess

AGENTS = "agents:\n  - {id: a, model: offline/rules}\n  - {id: b, model: offline/rules}\n"


class Done(NamedTuple):
    """Exit status and output of a command."""

    status: int | None
    out: str
    err: str


def local(requests: str, *options: str) -> list[str]:
    """Return the arguments that run `requests` with agents.yaml in the command's own process."""
    return ["run", requests, "--agents", "agents.yaml", "--executor", "local", *options]


def command(
    tmp_path: Path,
    *arguments: str,
    given: bytes = b"",
    limits: Mapping[int, int] | None = None,
    **environment: str,
) -> Done:
    """Run `batchray` in a child process.  `limits` are those of its resources, by their numbers in `resource`."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    with ExitStack() as stack:
        given_file, out, err = files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
        given_file.write(given)
        given_file.seek(0)
        with PreloadedProcess(arguments, variables, tmp_path, [file.fileno() for file in files], limits) as process:
            status = process.wait()
        for file in (out, err):
            file.seek(0)
        return Done(status, out.read().decode(), err.read().decode())
