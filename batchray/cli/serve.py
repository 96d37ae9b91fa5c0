"""The command that serves HTTP: batchray serve."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchray.cli.options import agents_options, executor_options, log_level_option, store_options
from batchray.errors import BatchrayError

if TYPE_CHECKING:
    from batchray.server.app import RunningServer


@click.command()
@agents_options
@click.option("--host", help="Address to listen on.  Default: 127.0.0.1.  Any other than loopback needs API keys.")
@click.option("--port", type=click.IntRange(0, 65535), help="Default: 8283, as Letta's server.  0: any free port.")
@click.option("--max-in-flight", type=click.IntRange(min=1), help="Requests in flight at once, of all jobs together.")
@executor_options
@log_level_option
@store_options
def serve(agents_files: tuple[Path, ...], config: Path | None, **options: Any) -> None:
    """Serve Letta's and OpenAI's batch APIs over HTTP until SIGTERM or Ctrl-C.

    Unfinished jobs of the data directory continue.

    Example: batchray serve --agents agents.yaml --port 8283
    """
    import asyncio

    from batchray.config import load_agents, load_server_settings
    from batchray.server.app import serve as serve_until_stopped

    own_log = logging.getLogger("batchray")
    if own_log.level == logging.NOTSET:  # or --log-level was given
        own_log.setLevel(logging.INFO)
    settings = load_server_settings(config, **options)
    agents = load_agents(agents_files, needs_agents=False)
    try:
        asyncio.run(serve_until_stopped(settings, agents, _print_address))
    except OSError as error:
        raise BatchrayError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from None


def _print_address(running: RunningServer) -> None:
    access = "clients need an API key" if running.needs_key else "no API keys: for this machine only"
    click.echo(f"batchray listens on {running.url} ({access})")
    sys.stdout.flush()
