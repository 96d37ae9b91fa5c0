"""Options that several commands share, and the settings that they amount to."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchray.batch.formats.options import FORMATS

if TYPE_CHECKING:
    from batchray.config import StoreSettings

Command = Callable[..., Any]

DEFAULT_DATA_DIR = Path(".batchray")

_data_dir = click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="BATCHRAY_DATA_DIR",
    help=f"Directory of the jobs and their results.  Default: {DEFAULT_DATA_DIR}.",
)
_database_url = click.option(
    "--database-url",
    envvar="BATCHRAY_DATABASE_URL",
    help="PostgreSQL database of the jobs instead.  Put a URL with a password into BATCHRAY_DATABASE_URL.",
)
_config = click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="YAML file of settings.  BATCHRAY_* variables and options override it.",
)
_agents = click.option(
    "--agents",
    "agents_files",
    type=click.Path(dir_okay=False, path_type=Path),
    multiple=True,
    help="YAML or JSON file of agents and providers.  Can be given more than once.",
)


_ENV_FILES = "batchray.env_files"


def env_file_options() -> str:
    """Return the --env-file options of the running command, to be printed in a command that repeats it."""
    files = click.get_current_context().meta.get(_ENV_FILES, ())
    return "".join(f" --env-file {shlex.quote(str(file))}" for file in files)


def _load_env_files(context: click.Context, parameter: click.Parameter, files: tuple[Path, ...]) -> None:
    """Add the variables of the files to this process's environment, which its workers inherit; variables of it win."""
    if files:
        from batchray.config.env_file import read_env_file

        context.meta[_ENV_FILES] = files

        values = {name: value for file in files for name, value in read_env_file(file).items()}
        os.environ.update({name: value for name, value in values.items() if name not in os.environ})


_env_file = click.option(
    "--env-file",
    type=click.Path(dir_okay=False, path_type=Path),
    multiple=True,
    is_eager=True,  # other options may come from its variables
    expose_value=False,
    callback=_load_env_files,
    help="File of environment variables, such as .env.  Those that are set already win.",
)
_include_input = click.option("--include-input", is_flag=True, help="Give each result the input of its request.")
_executor = (
    click.option(
        "--lanes",
        type=click.IntRange(min=1),
        help="Ray workers.  Default: one per free CPU, at most 8 per node.",
    ),
    click.option("--ray-address", help="Existing Ray cluster.  Default: start one that listens on loopback only."),
    click.option("--executor", type=click.Choice(["ray", "local"]), help="Run on Ray, or in this process."),
)


_input = (
    click.option("--agent", metavar="ID", help="Agent of every request of a table, or of a batch of another API."),
    click.option("--input-column", metavar="NAME", help="Column of a table that is the input of each request."),
    click.option("--prompt", metavar="TEMPLATE", help='The input as a template: "Answer: {question}".'),
    click.option("--id-column", metavar="NAME", help="Column of a table that is the custom_id of each request."),
    click.option(
        "--format",
        type=click.Choice(FORMATS),
        help="Format of the input.  Default: what its name or its content tells.",
    ),
)
INPUT_OPTIONS = ("agent", "input_column", "prompt", "id_column", "format")
"""The parameters that `input_options` adds."""


def input_options(command: Command) -> Command:
    """Add the options that say how the rows or lines of the input become requests."""
    for option in reversed(_input):
        command = option(command)
    return command


def include_input_option(command: Command) -> Command:
    """Add --include-input."""
    return _include_input(command)


def _set_log_level(context: click.Context, option: click.Parameter, level: str | None) -> None:
    if level is not None:
        logging.getLogger("batchray").setLevel(level.upper())


def log_level_option(command: Command) -> Command:
    """Add --log-level."""
    option = click.option(
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error"]),
        envvar="BATCHRAY_LOG_LEVEL",
        expose_value=False,
        callback=_set_log_level,
        help="Least severe messages to print to standard error.  Default: warning; of serve: info.",
    )
    return option(command)


def agents_options(command: Command) -> Command:
    """Add what says what the agents are: --agents, and --env-file with the variables in them."""
    return _agents(_env_file(command))


def executor_options(command: Command) -> Command:
    """Add what says where requests run: --lanes, --ray-address and --executor."""
    for option in reversed(_executor):
        command = option(command)
    return command


def data_dir_options(command: Command) -> Command:
    """Add what says where the files are: --config and --data-dir."""
    return _config(_data_dir(command))


def store_options(command: Command) -> Command:
    """Add what says where jobs are stored: --config, --data-dir and --database-url."""
    return _config(_data_dir(_database_url(command)))


def store_settings(config: Path | None, data_dir: Path | None, database_url: str | None = None) -> StoreSettings:
    """Return the settings that say where jobs are stored.  The file may be one of a server.  Raises ConfigError."""
    from batchray.config import load_store_settings

    return load_store_settings(config, data_dir=data_dir, database_url=database_url)
