"""Checks a large body in a subprocess: `python -m batchray.server.body_checker FILE`.

The parser holds the GIL while it reads a whole body.  In a subprocess it blocks no other client, and its memory is
returned at its exit.  Standard input is JSON, see `Checker.check`.  Standard output is a series of pickles:
the callback URL, then pages of requests, then the error, or None and the names of unused fields.
"""

from __future__ import annotations

import gc
import mmap
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import orjson

from batchray.batch.formats.openai_files import OpenAIFile
from batchray.batch.parse import Batch, read_body
from batchray.batch.rules import KnownAgent
from batchray.batch.spool import RawRequest
from batchray.errors import BatchFormatError, RefusedLinesError, StoreError

_PAGE, _PAGE_BYTES = 1000, 1024 * 1024
# Room for several pages: with the default of 64 KiB, checking and storing would wait for each other at each page.
_PIPE_BYTES = 1024 * 1024
# The parser is linear and reads 256 MiB in seconds; after this time the process hangs, and is killed.
_TIMEOUT_S = 300.0


class CheckedBatch(NamedTuple):
    """A batch that can be iterated once.  A page of requests is three columns: agent ids, custom ids, bodies.

    `unused` is complete when all pages have been read; see `batch.parse.Batch`.
    """

    pages: Iterator[tuple[Sequence[str], Sequence[str | None], Sequence[bytes]]]
    callback_url: str | None
    unused: Set[str]


class Checker:
    """The subprocess that checks the body in a file.  Its start takes a while, so start it while the body arrives."""

    def __init__(self, file: Path) -> None:
        command = [sys.executable, "-m", "batchray.server.body_checker", str(file)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pipesize=_PIPE_BYTES)

    @contextmanager
    def check(self, given: Iterable[str] | Mapping[str, Any]) -> Iterator[CheckedBatch]:
        """Yield the batch in the file, which must be complete.  The body is checked while its pages are iterated.

        `given` are the ids of the known agents; for a file of OpenAI's API, its `endpoint` and the known `agents`.
        Raises BatchFormatError as `read_body` does, RefusedLinesError for a file, and StoreError if the process dies.
        """
        timeout = threading.Timer(_TIMEOUT_S, self._process.kill)
        timeout.start()
        try:
            output = self._process.stdout
            assert self._process.stdin is not None
            assert output is not None
            with suppress(BrokenPipeError), self._process.stdin as input:  # a dead process is noticed at the first read
                input.write(orjson.dumps(given if isinstance(given, Mapping) else list(given)))
            callback_url = _next(output)
            unused = set[str]()
            yield CheckedBatch(_read_pages(output, unused), callback_url, unused)
        finally:
            timeout.cancel()

    def close(self) -> None:
        """Kill the process, whether or not it has finished."""
        with self._process:
            self._process.kill()


def _read_pages(output: IO[bytes], unused: set[str]) -> Iterator[Any]:
    while (page := _next(output)) is not None:
        yield page
    unused |= _next(output)


def _next(source: IO[bytes]) -> Any:
    try:
        message = pickle.load(source)
    except (EOFError, pickle.UnpicklingError):
        raise StoreError("the process that checks a body was killed") from None
    if isinstance(message, BatchFormatError | RefusedLinesError):
        raise message
    return message


def main(file: Path) -> None:
    """Check the body in a file, and write its contents to standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the server, which ends this process
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # exit silently when the server stops reading
    given = sys.stdin.buffer.read()
    if not given:  # the body did not arrive completely, or the server has died
        return
    gc.disable()  # nothing here has cycles, and a pass over all requests takes a fifth of the time
    out = sys.stdout.buffer
    end: list[Any]
    try:
        batch = _batch_in(file, orjson.loads(given))
        pickle.dump(batch.callback_url, out)
        for page in _pages(batch.requests):
            pickle.dump(tuple(zip(*page, strict=True)), out, pickle.HIGHEST_PROTOCOL)
        end = [None, set(batch.unused)]
    except (BatchFormatError, RefusedLinesError) as error:
        end = [error]
    for message in end:
        pickle.dump(message, out)
    out.flush()


def _batch_in(file: Path, given: Any) -> Batch:
    """Return the batch in a body, or in a file of OpenAI's API."""
    if isinstance(given, list):
        with file.open("rb") as body:
            # Not closed explicitly: a raised error still references slices of it.
            return read_body(mmap.mmap(body.fileno(), 0, access=mmap.ACCESS_READ), given)
    agents = {agent_id: KnownAgent(*each) for agent_id, each in given["agents"].items()}
    lines = OpenAIFile(file.open("rb"), given["endpoint"], agents)
    return Batch(lines.requests(), unused=lines.unused)


def _pages(requests: Iterator[RawRequest]) -> Iterator[list[RawRequest]]:
    page: list[RawRequest] = []
    n_bytes = 0
    for request in requests:
        page.append(request)
        n_bytes += len(request.body)
        if len(page) == _PAGE or n_bytes >= _PAGE_BYTES:
            yield page
            page, n_bytes = [], 0
    if page:
        yield page


if __name__ == "__main__":
    main(Path(sys.argv[1]))
