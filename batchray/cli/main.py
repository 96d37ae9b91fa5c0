"""The command line: batchray run | resume | retry | status | results | cancel | pause | unpause | serve | keys | db.

Exit status: 0 all succeeded, 1 some item did not or the job could not go on, 2 unusable input (and nothing was run),
130 interrupted, 143 terminated.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from batchray.cli.db import DEFAULT_DATA_DIR, data_dir_option, db, store_options
from batchray.cli.output import as_line, as_plain, check_output, print_results, state_of, write_results
from batchray.errors import BatchrayError, ConfigError, JobInterruptedError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from batchray.jobs.handle import Job
    from batchray.store import JobRecord

_F = Callable[..., Any]


def main() -> None:
    """Run the command; the entry point `batchray`."""
    signal.signal(signal.SIGTERM, _on_sigterm)
    logging.basicConfig(level=logging.WARNING, format="batchray: %(message)s")
    logging.getLogger("batchray.models").setLevel(logging.ERROR)  # a line a retry would drown the progress
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as done:
        _leave(done.exit_code)
    except click.ClickException as error:
        error.show()
        _leave(2)
    except UsageError as error:
        _complain(error)
        _leave(2)
    except BatchrayError as error:
        _complain(error)
        _leave(1)
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _leave(0)
    except _Terminated:
        _leave(143)
    except (KeyboardInterrupt, click.Abort):
        _leave(130)
    _leave(0)


class _Terminated(KeyboardInterrupt):
    """SIGTERM: handled as an interrupt, with its own exit status."""


def _on_sigterm(*_: object) -> NoReturn:
    raise _Terminated


def _leave(status: int) -> NoReturn:
    """End lanes and stores quietly, then exit."""
    if "batchray.api" in sys.modules:
        from batchray.api import shutdown

        with _interruptible():
            shutdown()
    sys.exit(status)


@contextmanager
def _interruptible() -> Iterator[None]:
    """A second Ctrl-C ends the process at once, what is recorded is safe already; a second SIGTERM changes nothing."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    yield


def _complain(error: BatchrayError) -> None:
    click.echo(f"batchray: {error}", err=True)


def _run_options(command: _F) -> _F:
    options = (
        click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write one JSON line an item."),
        click.option("--max-in-flight", type=click.IntRange(min=1), help="Requests in flight at once."),
        click.option("--lanes", type=click.IntRange(min=1), help="Lanes to start; by default one a CPU, at most 8."),
        click.option("--ray-address", help="An existing Ray cluster; by default one is started on loopback."),
        click.option("--executor", type=click.Choice(["ray", "local"]), help="Run on Ray, or in this process."),
        click.option(
            "--config",
            type=click.Path(dir_okay=False, path_type=Path),
            help="A YAML file with settings; BATCHRAY_* variables and options win over it.",
        ),
        click.option("--quiet", is_flag=True, help="Show no progress and no summary."),
    )
    for option in reversed(options):
        command = option(command)
    return store_options(command)


_agents_option = click.option(
    "--agents",
    "agents_files",
    type=click.Path(dir_okay=False, path_type=Path),
    multiple=True,
    help="A YAML or JSON file of agents and providers; may be given more than once.",
)


@click.group()
@click.version_option(package_name="batchray")
def cli() -> None:
    """Run large batches of LLM agent requests in parallel on Ray."""


@cli.command()
@click.argument("requests", type=click.Path(dir_okay=False, path_type=Path, allow_dash=True))
@_agents_option
@_run_options
def run(requests: Path, agents_files: tuple[Path, ...], output: Path | None, **options: Any) -> None:
    """Run the batch in REQUESTS and wait for it.

    REQUESTS is JSON Lines with one request a line, a JSON file with a whole {"requests": [...]} body, or - for standard
    input.

    Example: batchray run requests.jsonl --agents agents.yaml --output results.jsonl
    """
    from batchray.api import submit
    from batchray.config import load_agents

    if not agents_files:
        raise ConfigError("give the agents that the requests name: --agents FILE")
    check_output(output)
    # A reader of our own: an interrupt may leave it waiting, and Python's own standard input would hold up the exit.
    source = open(0, "rb", closefd=False) if str(requests) == "-" else requests  # noqa: SIM115
    _see_through(lambda settings: submit(source, load_agents(agents_files), **settings), output, options)


@cli.command()
@click.argument("job_id", metavar="JOB")
@_agents_option
@_run_options
def resume(job_id: str, agents_files: tuple[Path, ...], output: Path | None, **options: Any) -> None:
    """Go on with an unfinished JOB: items that have an outcome are not run again.

    Its agents come from the job itself; --agents replaces those of the same ids.

    Example: batchray resume job-4f0c... --output results.jsonl
    """
    from batchray.api import submit_resume
    from batchray.config import load_agents

    check_output(output)
    agents = load_agents(agents_files) if agents_files else None
    _see_through(lambda settings: submit_resume(job_id, agents, **settings), output, options)


@cli.command()
@click.argument("job_id", metavar="JOB")
@_agents_option
@_run_options
def retry(job_id: str, agents_files: tuple[Path, ...], output: Path | None, **options: Any) -> None:
    """Run the items of an ended JOB again that did not succeed, and wait for them.

    Example: batchray retry job-4f0c...
    """
    from batchray.api import submit_retry
    from batchray.config import load_agents

    check_output(output)
    agents = load_agents(agents_files) if agents_files else None
    _see_through(lambda settings: submit_retry(job_id, agents, **settings), output, options)


@cli.command()
@click.argument("job_id", metavar="[JOB]", required=False)
@click.option("--json", "is_json", is_flag=True, help="Print JSON, one object a line.")
@store_options
def status(job_id: str | None, is_json: bool, data_dir: Path, database_url: str | None) -> None:
    """Show one JOB, or all jobs of the data directory, a line each.

    Example: batchray status --json
    """
    from batchray.store import Store

    with Store.open_for_reading(data_dir, database_url) as store:
        records = [store.jobs.get(job_id)] if job_id else store.jobs.find()
        running = store.running_jobs()
    for record in records:
        state = state_of(record, data_dir, record.id in running)
        click.echo(json.dumps(as_plain(record, state)) if is_json else as_line(record, state))


@cli.command()
@click.argument("job_id", metavar="JOB")
@click.option("--failed", is_flag=True, help="Only items that did not succeed.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="A file instead of standard output.")
@store_options
def results(job_id: str, failed: bool, output: Path | None, data_dir: Path, database_url: str | None) -> None:
    """Print the outcomes of JOB as JSON Lines in index order; of a running job those that there are.

    Example: batchray results job-4f0c... --failed
    """
    from batchray.api import attach

    job = attach(job_id, data_dir, database_url)
    check_output(output)
    if output is None:
        print_results(job, failed)
    else:
        write_results(job, output, failed)


@cli.command()
@_agents_option
@click.option("--host", help="Where to listen; by default 127.0.0.1.  Beyond loopback it takes API keys.")
@click.option("--port", type=click.IntRange(0, 65535), help="By default 8283, as Letta's server; 0 takes a free one.")
@click.option("--max-in-flight", type=click.IntRange(min=1), help="Requests in flight at once, of all jobs together.")
@click.option("--lanes", type=click.IntRange(min=1), help="Lanes to start; by default one a CPU, at most 8.")
@click.option("--ray-address", help="An existing Ray cluster; by default one is started on loopback.")
@click.option("--executor", type=click.Choice(["ray", "local"]), help="Run on Ray, or in this process.")
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path), help="A YAML file with settings.")
@store_options
def serve(agents_files: tuple[Path, ...], config: Path | None, **options: Any) -> None:
    """Serve Letta's batch API over HTTP until SIGTERM or Ctrl-C; unfinished jobs of the data directory go on.

    Example: batchray serve --agents agents.yaml --port 8283
    """
    import asyncio

    from batchray.config import load_agents, load_server_settings
    from batchray.server.app import RunningServer
    from batchray.server.app import serve as serve_until_stopped

    def say(running: RunningServer) -> None:
        who = "clients need an API key" if running.needs_key else "no API keys: for this machine only"
        click.echo(f"batchray listens on {running.url} ({who})")
        sys.stdout.flush()

    logging.getLogger("batchray").setLevel(logging.INFO)
    _forget_default_data_dir(options)
    settings = load_server_settings(config, **options)
    agents = load_agents(agents_files, needs_agents=False)
    try:
        asyncio.run(serve_until_stopped(settings, agents, say))
    except OSError as error:
        raise BatchrayError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from None


@cli.group()
def keys() -> None:
    """Make, list and remove the API keys of a server; a running one takes a change at once."""


@keys.command("add")
@click.argument("name")
@data_dir_option
def keys_add(name: str, data_dir: Path) -> None:
    """Make a key for a new user, and print it; it is kept as a hash and cannot be shown again.

    Example: batchray keys add alice
    """
    from batchray.server.keys import KeyFile

    click.echo(KeyFile(data_dir).add(name))


@keys.command("list")
@data_dir_option
def keys_list(data_dir: Path) -> None:
    """List the names of the keys, and their users.

    Example: batchray keys list
    """
    from batchray.server.keys import KeyFile

    for key in KeyFile(data_dir).all():
        click.echo(f"{key.name}  {key.user_id}  {key.created_at[:19].replace('T', ' ')}")


@keys.command("remove")
@click.argument("name")
@data_dir_option
def keys_remove(name: str, data_dir: Path) -> None:
    """Remove a key.  Its user's jobs stay.

    Example: batchray keys remove alice
    """
    from batchray.server.keys import KeyFile

    KeyFile(data_dir).remove(name)


cli.add_command(db)


def _steering(name: str, method: str, help: str) -> None:
    @cli.command(name, help=f"{help}\n\nExample: batchray {name} job-4f0c...")
    @click.argument("job_id", metavar="JOB")
    @store_options
    def steer(job_id: str, data_dir: Path, database_url: str | None) -> None:
        from batchray.api import attach

        getattr(attach(job_id, data_dir, database_url), method)()


_steering("cancel", "cancel", "End JOB: what runs is stopped, items without an outcome are canceled.")
_steering("pause", "pause", "Start no more items of JOB; what runs goes on.")
_steering("unpause", "unpause", "Start items of a paused JOB again.")


def _see_through(start: Callable[[dict[str, Any]], Job], output: Path | None, options: dict[str, Any]) -> NoReturn:
    """Start a job, print its id, show it to its end, write its results; exits with the job's status."""
    from batchray.config import load_settings
    from batchray.views.progress_display import show_progress

    is_quiet, config = options.pop("quiet"), options.pop("config")
    _forget_default_data_dir(options)
    settings = load_settings(config, **options)
    job: Job | None = None
    try:
        job = start(settings.model_dump())
        click.echo(job.id)
        sys.stdout.flush()
        if not is_quiet:
            show_progress(job)
        record = job.wait()
    except KeyboardInterrupt as interrupt:
        if job is not None:
            _stop(job, settings.data_dir)
        _leave(143 if isinstance(interrupt, _Terminated) else 130)
    except JobInterruptedError:
        raise
    except UsageError:
        raise
    except BatchrayError as error:
        _complain(error)
        if job is not None:
            click.echo(_how_to_resume(job, settings.data_dir), err=True)
        _leave(1)
    if output is not None:
        write_results(job, output)
    if not is_quiet:
        _summarize(job, record, output, settings.data_dir)
    _leave(0 if record.counts["succeeded"] == record.total else 1)


def _forget_default_data_dir(options: dict[str, Any]) -> None:
    """Let a config file's data directory win over the default, and an option over the file."""
    source = click.get_current_context().get_parameter_source("data_dir")
    if source is click.core.ParameterSource.DEFAULT:
        del options["data_dir"]


def _stop(job: Job, data_dir: Path) -> None:
    with _interruptible():
        click.echo("\nstopping; a second Ctrl-C stops at once", err=True)
        job.stop()
    record = job.record()
    if not record.is_ended:
        click.echo(f"interrupted with {record.done:,} of {record.total:,} done; all of them are kept", err=True)
        click.echo(_how_to_resume(job, data_dir), err=True)


def _how_to_resume(job: Job, data_dir: Path) -> str:
    return f"go on with: batchray resume {job.id}{_data_dir_option(data_dir)}"


def _data_dir_option(data_dir: Path) -> str:
    return "" if data_dir == DEFAULT_DATA_DIR else f" --data-dir {data_dir}"


def _summarize(job: Job, record: JobRecord, output: Path | None, data_dir: Path) -> None:
    from rich.console import Console

    from batchray.views.progress_display import summary

    console: Console = Console(highlight=False)
    summary(record, job.timing, job.failures(), console)
    command = f"batchray results {job.id}{_data_dir_option(data_dir)}"
    click.echo(f"results: {output}" if output else f"results: {command}")
    if record.counts["succeeded"] < record.total:
        click.echo(f"failures: {command} --failed")
