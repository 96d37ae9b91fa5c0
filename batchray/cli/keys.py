"""The commands for the API keys of a server: batchray keys add | list | remove."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from batchray.cli.options import data_dir_options, store_settings

if TYPE_CHECKING:
    from batchray.server.keys import KeyFile


@click.group()
def keys() -> None:
    """Create, list and remove the API keys of a server.  A running server applies a change at once."""


@keys.command("add")
@click.argument("name")
@click.option("--operator", is_flag=True, help="The key may also read /metrics, which counts the jobs of all users.")
@data_dir_options
def keys_add(name: str, operator: bool, config: Path | None, data_dir: Path | None) -> None:
    """Create a key for a new user and print it.

    Only a hash of the key is stored, so it cannot be shown again.

    Example: batchray keys add alice
    """
    click.echo(_key_file(config, data_dir).add(name, is_operator=operator))


@keys.command("list")
@data_dir_options
def keys_list(config: Path | None, data_dir: Path | None) -> None:
    """List the keys: name, user, when each was created, and which are operators'.

    Example: batchray keys list
    """
    for key in _key_file(config, data_dir).all():
        mark = "  operator" if key.is_operator else ""
        click.echo(f"{key.name}  {key.user_id}  {key.created_at[:19].replace('T', ' ')}{mark}")


@keys.command("remove")
@click.argument("name")
@data_dir_options
def keys_remove(name: str, config: Path | None, data_dir: Path | None) -> None:
    """Remove a key.  Its user's jobs are kept.

    Example: batchray keys remove alice
    """
    _key_file(config, data_dir).remove(name)


def _key_file(config: Path | None, data_dir: Path | None) -> KeyFile:
    from batchray.server.keys import KeyFile

    return KeyFile(store_settings(config, data_dir).data_dir)
