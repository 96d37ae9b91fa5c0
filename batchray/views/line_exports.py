"""Results written as lines: of this project, of other APIs, for training, as trajectories, as CSV."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import PurePath, PurePosixPath
from typing import Any, BinaryIO, cast

from batchray.batch.places import LocalPlace, Place, place_of
from batchray.errors import BatchFormatError, ConfigError
from batchray.store import JobRecord, StoredResult
from batchray.views.anthropic_lines import anthropic_line
from batchray.views.carried import CarriedRows
from batchray.views.conversations import ConversationReader
from batchray.views.export_formats import Target, beside, check_endpoint
from batchray.views.export_places import delete, make_directory, packed, writing
from batchray.views.openai_lines import is_in_error_file, is_openai_line, openai_line
from batchray.views.result_pages import ReadPage, ResultCursor
from batchray.views.results import ResultViews, parse_time
from batchray.views.training_lines import training_line
from batchray.views.trajectories import trajectory

LineOf = Callable[[StoredResult], bytes | None]


@dataclass(frozen=True, slots=True)
class ExportSource:
    """A job to be written: `agents` is its snapshot of its agents, `read` returns a page of its results."""

    job: JobRecord
    agents: Mapping[str, Any]
    rows: CarriedRows
    read: ReadPage

    def stored(self) -> Iterator[StoredResult]:
        """Yield the results of this moment in index order, a page of them in memory."""
        for page in ResultCursor("index").pages(self.read):
            yield from page

    def views(self, **options: bool) -> ResultViews:
        """Return what shows its results."""
        return ResultViews(self.job, self.agents, rows=self.rows, **options)


def _shown(target: Target) -> str:
    return str(target) if isinstance(target, str | PurePath) else "an open file"


def write_lines(target: Target, name: str, source: ExportSource, endpoint: str) -> None:
    """Write the results of this moment as lines of the format `name`, in index order and bounded memory.

    Raises ConfigError if the place cannot be written to, UsageError for an unknown endpoint.
    """
    check_endpoint(endpoint)
    with config_errors_for(target):
        if name == "openai":
            _write_openai(target, source, endpoint)
        elif name == "atif" and (place := _directory(target)) is not None:
            _write_files(place, source)
        else:
            with opened(target) as file:
                _write(file, source, _line_of(name, source))


def _line_of(name: str, source: ExportSource) -> LineOf:
    """Return what makes a line of a result, or None for one that the format leaves out."""
    match name:
        case "jsonl":
            shown = source.views(include_input=True)
            return lambda stored: shown.result(stored).model_dump_json().encode()
        case "anthropic":
            whole = source.views(every_message=True)
            return lambda stored: anthropic_line(whole.result(stored))
        case "sft":
            conversations = ConversationReader(source.job, source.agents, needs_tools=True)
            return lambda stored: training_line(stored, conversations.of(stored))
        case _:
            return _trajectories(source)


def _trajectories(source: ExportSource) -> LineOf:
    views = source.views()
    conversations = ConversationReader(source.job, source.agents, needs_tools=False)
    return lambda stored: trajectory(views.result(stored), conversations.of(stored))


def _write(file: BinaryIO, source: ExportSource, line_of: LineOf) -> None:
    for stored in source.stored():
        if (line := line_of(stored)) is not None:
            file.write(line + b"\n")


def _write_openai(target: Target, source: ExportSource, endpoint: str) -> None:
    """Write the output file, and the error file if there are errors; an open file gets the lines of both."""
    views = source.views(every_message=True)
    created = parse_time(source.job.created_at)
    seconds = int(created.timestamp()) if created else 0
    with ExitStack() as files:
        output, errors = files.enter_context(opened(target)), None
        for stored in source.stored():
            result = views.result(stored)
            if (is_error := is_in_error_file(result)) and errors is None:
                errors = files.enter_context(opened(beside(target)))
            file = errors if is_error and errors is not None else output
            file.write(openai_line(result, endpoint, seconds) + b"\n")
    if errors is None and isinstance(target, str | PurePath):
        _delete_earlier_errors(place_of(str(beside(target))))


def _delete_earlier_errors(place: Place) -> None:
    """Delete the error file that an earlier export left on this machine; another file of its name stays."""
    if not isinstance(place, LocalPlace) or not place.path.is_file():
        return
    with place.open() as lines:
        first = lines.readline()
    if not first or is_openai_line(first):
        delete(place)


def _directory(target: Target) -> Place | None:
    """Return the place of a directory, which has a name without a suffix; None for a file."""
    if not isinstance(target, str | PurePath):
        return None
    place = place_of(str(target))
    return place if place.is_directory() or not PurePosixPath(place.name).suffix else None


def _write_files(place: Place, source: ExportSource) -> None:
    """Write a file for each trajectory, as Harbor's own tools read them."""
    make_directory(place)
    line_of = _trajectories(source)
    for stored in source.stored():
        line = line_of(stored)
        assert line is not None
        with writing(place.child(f"trajectory-{stored.index:07d}.json"), is_synced=False) as file:
            file.write(line)


@contextmanager
def opened(target: Target) -> Iterator[BinaryIO]:
    """Open a file for writing: it appears whole when the block has ended, packed if its name says so.

    An open file is written to as it is.
    """
    if not isinstance(target, str | PurePath):
        yield target
        target.flush()
        return
    place = place_of(str(target))
    with writing(place) as file, packed(file, place.name) as inner:
        yield cast(BinaryIO, inner)


@contextmanager
def config_errors_for(target: Target) -> Iterator[None]:
    """Raise ConfigError for a place that cannot be written to."""
    try:
        yield
    except BatchFormatError as error:
        raise ConfigError(error.reason, error.file or _shown(target)) from None
    except BrokenPipeError:  # the reader of the output has closed it
        raise
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror or error}", _shown(target)) from None
