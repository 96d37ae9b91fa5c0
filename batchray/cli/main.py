"""The command line: commands that run, show, export and steer jobs, serve them, and keep keys and the database.

Exit status: 0 all items succeeded, 1 an item did not succeed or the job could not continue, 2 unusable input (nothing
was run), 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import logging
import os
import signal
import sys

import click

from batchray.cli.db import db
from batchray.cli.exits import abort_status, complain, leave, raise_terminated
from batchray.cli.jobs import cancel, export, pause, results, status, unpause
from batchray.cli.keys import keys
from batchray.cli.options import log_level_option
from batchray.cli.run import resume, retry, run
from batchray.cli.serve import serve
from batchray.cli.show import report, show
from batchray.errors import BatchrayError, UsageError


def main() -> None:
    """Run the command; the entry point `batchray`."""
    signal.signal(signal.SIGTERM, raise_terminated)
    _log_to_stderr(logging.getLogger("batchray"))
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as done:
        leave(done.exit_code)
    except click.ClickException as error:
        error.show()
        leave(2)
    except UsageError as error:
        complain(error)
        leave(2)
    except BatchrayError as error:
        complain(error)
        leave(1)
    except BrokenPipeError:  # the reader of the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        leave(0)
    except (KeyboardInterrupt, click.Abort) as abort:
        leave(abort_status(abort))
    leave(0)


def _log_to_stderr(logger: logging.Logger) -> None:
    """Log this program's own warnings.  The root logger is left to the code of agents, as it is in a worker."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("batchray: %(message)s"))
    logger.addHandler(handler)
    logger.propagate = False


class _Commands(click.Group):
    """Lists its commands in the order in which a user meets them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_Commands)
@click.version_option(package_name="batchray")
@log_level_option
def cli() -> None:
    """Run large batches of LLM agent requests in parallel on Ray.

    A JOB is given by its id, by a beginning of the id that no other job shares, or as `last`, the newest job.

    Exit status: 0 all items succeeded, 1 an item did not succeed or the job could not continue, 2 unusable input and
    nothing was run, 130 interrupted, 143 terminated.
    """


for _command in (run, resume, retry, status, results, show, report, export, cancel, pause, unpause, serve, keys, db):
    cli.add_command(_command)
