"""Checks a large body in a process of its own: `python -m batchray.server.checker FILE`.

The parser works through a whole body at once, with the interpreter's lock in its hand; in another process it holds up
nobody, and its memory goes with it.  Known agents come in as a JSON array on standard input; what goes out on standard
output are pickles: the callback's address, then lists of requests, then None or the error.
"""

from __future__ import annotations

import mmap
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

import orjson

from batchray.errors import BatchFormatError, StoreError
from batchray.intake import Batch, RawRequest, read_body

_CHUNK = 1000
# The parser is linear, and does 256 MiB in seconds; beyond this it is not the body that is slow.
_LIMIT_S = 300.0


@contextmanager
def checked(file: Path, agents: Iterable[str]) -> Iterator[Batch]:
    """Yield the batch in a file's body, checked by another process while it is iterated.

    Raises BatchFormatError as `read_body` does, and StoreError where that process dies.
    """
    command = [sys.executable, "-m", "batchray.server.checker", str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        limit = threading.Timer(_LIMIT_S, process.kill)
        limit.start()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(orjson.dumps(list(agents)))
            process.stdin.close()
            callback_url = _next(process.stdout)
            yield Batch(_requests(process.stdout), callback_url)
        finally:
            limit.cancel()
            process.kill()  # it has said all, or nobody listens any more


def _requests(source: IO[bytes]) -> Iterator[RawRequest]:
    while chunk := _next(source):
        for fields in chunk:
            yield RawRequest(*fields)


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
    known = orjson.loads(sys.stdin.buffer.read())
    out = sys.stdout.buffer
    end: BatchFormatError | None = None
    try:
        with file.open("rb") as body, mmap.mmap(body.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
            batch = read_body(buffer, known)
            pickle.dump(batch.callback_url, out)
            while chunk := [tuple(request) for request in islice(batch.requests, _CHUNK)]:
                pickle.dump(chunk, out, pickle.HIGHEST_PROTOCOL)
    except BatchFormatError as error:
        end = error
    pickle.dump(end, out)
    out.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
