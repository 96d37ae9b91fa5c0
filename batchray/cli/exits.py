"""How the command ends: its exit status, its error message, and signals."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import click

from batchray.errors import BatchrayError


class Terminated(KeyboardInterrupt):
    """SIGTERM: handled as an interrupt, with an exit status of its own."""


def raise_terminated(*_: object) -> NoReturn:
    """Handle SIGTERM."""
    raise Terminated


def abort_status(abort: BaseException) -> int:
    """Return the exit status of an interrupt; of SIGTERM also if click made its own Abort of it."""
    return 143 if isinstance(abort, Terminated) or isinstance(abort.__cause__, Terminated) else 130


@contextmanager
def saying_if_stopped(sentence: str) -> Iterator[None]:
    """Print what an interrupt or SIGTERM left undone, to standard error."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        closing = "" if isinstance(interrupt, Terminated) else "\n"  # of the line on which a terminal shows ^C
        click.echo(f"{closing}batchray: {sentence}", err=True)
        raise click.Abort from interrupt


def leave(status: int) -> NoReturn:
    """End executors and stores, then exit."""
    if "batchray.jobs.start" in sys.modules:
        from batchray.jobs.start import shutdown

        with interruptible():
            shutdown()
    sys.exit(status)


@contextmanager
def interruptible() -> Iterator[None]:
    """From here on Ctrl-C ends the process at once, because outcomes are on disk already.  SIGTERM is ignored."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    yield


def complain(error: BatchrayError) -> None:
    """Print an error to standard error."""
    click.echo(f"batchray: {error}", err=True)
