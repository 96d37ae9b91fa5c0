"""Checks a large body in a process of its own: `python -m batchray.server.body_checker FILE`.

The parser works through a whole body at once, with the interpreter's lock in its hand; in another process it holds up
nobody, and its memory goes with it.  Known agents come in as a JSON array on standard input; what goes out on standard
output are pickles: the callback's address, then pages of requests, then None or the error.
"""

from __future__ import annotations

import mmap
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import orjson

from batchray.batch.parse import read_body
from batchray.batch.spool import RawRequest
from batchray.errors import BatchFormatError, StoreError

_PAGE, _PAGE_BYTES = 1000, 1024 * 1024
# Some pages' worth: through the usual 64 KiB, checking and storing would wait for each other all the time.
_PIPE_BYTES = 1024 * 1024
# The parser is linear, and does 256 MiB in seconds; beyond this it is not the body that is slow.
_LIMIT_S = 300.0


class CheckedBatch(NamedTuple):
    """A batch that can be read once: its requests by the page, as columns (agents' ids, custom ids, bodies)."""

    pages: Iterator[tuple[Sequence[str], Sequence[str | None], Sequence[bytes]]]
    callback_url: str | None


class Checker:
    """The process that checks the body in a file.  It takes a while to get ready: start it while the body arrives."""

    def __init__(self, file: Path) -> None:
        command = [sys.executable, "-m", "batchray.server.body_checker", str(file)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pipesize=_PIPE_BYTES)

    @contextmanager
    def check(self, agents: Iterable[str]) -> Iterator[CheckedBatch]:
        """Yield the batch in the file, which is complete by now; it is checked while its pages are iterated.

        Raises BatchFormatError as `read_body` does, and StoreError where the process dies.
        """
        limit = threading.Timer(_LIMIT_S, self._process.kill)
        limit.start()
        try:
            said = self._process.stdout
            assert self._process.stdin is not None
            assert said is not None
            with (
                suppress(BrokenPipeError),
                self._process.stdin as asked,
            ):  # a dead process says nothing, as we shall see
                asked.write(orjson.dumps(list(agents)))
            callback_url = _next(said)
            yield CheckedBatch(iter(lambda: _next(said), None), callback_url)
        finally:
            limit.cancel()

    def close(self) -> None:
        """End the process: it has said all, or nobody listens any more."""
        with self._process:
            self._process.kill()


def _next(source: IO[bytes]) -> Any:
    try:
        told = pickle.load(source)
    except (EOFError, pickle.UnpicklingError):
        raise StoreError("the process that checks a body was killed") from None
    if isinstance(told, BatchFormatError):
        raise told
    return told


def main(file: Path) -> None:
    """Check a body, and say what is in it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the server, which ends us
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # its end is ours
    asked = sys.stdin.buffer.read()
    if not asked:  # the body never came in whole, or the server has died
        return
    known = orjson.loads(asked)
    out = sys.stdout.buffer
    end: BatchFormatError | None = None
    try:
        with file.open("rb") as body:
            # Not closed by hand: an error on its way still holds slices of it.
            batch = read_body(mmap.mmap(body.fileno(), 0, access=mmap.ACCESS_READ), known)
        pickle.dump(batch.callback_url, out)
        for page in _pages(batch.requests):
            pickle.dump(tuple(zip(*page, strict=True)), out, pickle.HIGHEST_PROTOCOL)
    except BatchFormatError as error:
        end = error
    pickle.dump(end, out)
    out.flush()


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
