"""The input file of an OpenAI batch, checked as OpenAI's API does: all problems are reported at once.

Source: the API reference and the Batch guide; codes and sentences are those of the errors of batches that have failed
there.  Unlike OpenAI's API, the lines of a file may name several models, and a line that names an unknown one fails
alone, as long as any line names a known one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import orjson

from batchray.batch.custom_ids import CustomIds
from batchray.batch.formats.provider_batches import OpenAIEntries
from batchray.batch.parse import parse_request
from batchray.batch.rules import KnownAgent, RequestRules
from batchray.batch.split import MAX_REQUEST_BYTES, numbered_lines
from batchray.batch.spool import RawRequest
from batchray.batch.strict_json import strict_json
from batchray.errors import BatchFormatError, RefusedLinesError, UnknownAgentError

_MAX_PROBLEMS = 100
_KINDS: Mapping[str, tuple[type, str]] = {
    **dict.fromkeys(("custom_id", "method", "url"), (str, "a string")),
    "body": (dict, "an object"),
}
# By endpoint: its name, and the parameter with what is asked.
_ASKED = {"/v1/chat/completions": ("Chat Completions", "messages"), "/v1/responses": ("Responses", "input")}


class LineProblem(NamedTuple):
    """A problem of a file, in the words of OpenAI's API; `line` None is the whole file."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class OpenAIFile:
    """Reads the lines of a file as requests, once.  `unused` is complete when all have been read."""

    def __init__(self, stream: BinaryIO, endpoint: str, agents: Mapping[str, KnownAgent]) -> None:
        self._stream, self._endpoint, self._agents = stream, endpoint, agents
        self.unused = set[str]()
        self._entries = OpenAIEntries(agents, None, self.unused)
        self._custom_ids = CustomIds()
        self._problems: list[LineProblem] = []
        self._unknown: list[LineProblem] = []
        self._n_known = 0

    def requests(self) -> Iterator[RawRequest]:
        """Yield the requests; one that names an unknown agent has the name of the model as its agent.

        Raises RefusedLinesError at the end if anything is wrong with the file.
        """
        for number, line in numbered_lines(self._stream):
            request = self._request(number, line)
            if request is not None and not self._problems:
                yield request
            if len(self._problems) >= _MAX_PROBLEMS:
                break
        if not self._problems and not self._n_known:
            self._problems = self._unknown or [LineProblem("empty_file", "The input file has no requests.")]
        if self._problems:
            raise RefusedLinesError(tuple(problem._asdict() for problem in self._problems))

    def _request(self, number: int, line: bytes) -> RawRequest | None:
        try:
            entry = _entry(line)
            self._check(entry)
            body = entry["body"]
            agent_id, fields = self._fields(body["model"], entry, number)
            request = {"custom_id": entry["custom_id"], **fields, "agent_id": agent_id}
            return parse_request(orjson.dumps(request), RequestRules([agent_id]))
        except _LineError as error:
            self._problems += [problem._replace(line=number) for problem in error.problems]
        except BatchFormatError as error:
            path = error.path or None
            self._problems.append(LineProblem("invalid_request", error.reason, number, path))
        return None

    def _check(self, entry: dict[str, Any]) -> None:
        """Raise _LineError for a line that is not one of this batch."""
        if missing := [name for name in _KINDS if name not in entry]:
            raise _LineError(*(_missing(name) for name in missing))
        for name, (kind, words) in _KINDS.items():
            if not isinstance(entry[name], kind):
                message = f"Invalid type for '{name}': expected {words}, but got {_word_of(entry[name])} instead."
                raise _LineError(LineProblem("invalid_type", message, param=name))
        if unknown := sorted(entry.keys() - _KINDS.keys()):
            raise _LineError(LineProblem("unknown_parameter", f"Unknown parameter: {unknown[0][:60]!r}."))
        if not entry["custom_id"]:
            raise _LineError(LineProblem("invalid_value", "The custom_id is empty.", param="custom_id"))
        if self._custom_ids.add(entry["custom_id"]):
            message = (
                "The custom_id for this request is a duplicate of another request. "
                "The custom_id parameter must be unique for each request in a batch."
            )
            raise _LineError(LineProblem("duplicate_custom_id", message, param="custom_id"))
        if entry["method"] != "POST":
            message = f"Invalid value: {entry['method'][:20]!r}. Supported values are: 'POST'."
            raise _LineError(LineProblem("invalid_value", message, param="method"))
        if entry["url"] != self._endpoint:
            message = "The URL provided for this request does not match the batch endpoint."
            raise _LineError(LineProblem("invalid_url", message, param="url"))
        self._check_body(entry["body"])

    def _check_body(self, body: Mapping[str, Any]) -> None:
        name, asked = _ASKED[self._endpoint]
        if body.get("stream"):
            message = f"{name}: Streaming is not supported in the Batch API."
            raise _LineError(LineProblem("streaming_unsupported", message, param="body.stream"))
        for name in ("model", asked):
            if not body.get(name):
                message = f"{name.capitalize()} parameter is required."
                raise _LineError(LineProblem("invalid_request", message, param=f"body.{name}"))
        if not isinstance(body["model"], str):
            raise _LineError(LineProblem("invalid_type", "Model must be a string.", param="body.model"))

    def _fields(self, model: str, entry: Mapping[str, Any], number: int) -> tuple[str, dict[str, Any]]:
        """Return the agent and the fields of a request."""
        try:
            fields = self._entries.converted(entry)
        except UnknownAgentError as error:
            why = error.reason.partition("; name one")[0]
            message = f"The provided model {model[:60]!r} is not supported by the Batch API: {why}."
            if len(self._unknown) < _MAX_PROBLEMS:
                self._unknown.append(LineProblem("model_not_found", message, number, "body.model"))
            return model, OpenAIEntries({model: KnownAgent()}, model, self.unused).converted(entry)
        self._n_known += 1
        return str(fields["agent_id"]), fields


class _LineError(Exception):
    """Problems of one line."""

    def __init__(self, *problems: LineProblem) -> None:
        super().__init__(*problems)
        self.problems = problems


def _entry(line: bytes) -> dict[str, Any]:
    if len(line) > MAX_REQUEST_BYTES:
        raise BatchFormatError(f"a request of more than {MAX_REQUEST_BYTES >> 20} MiB")
    try:
        entry = strict_json(line)
    except BatchFormatError as error:
        message = f"This line is not parseable as valid JSON. ({error.reason})"
        raise _LineError(LineProblem("invalid_json_line", message)) from None
    if not isinstance(entry, dict):
        raise _LineError(LineProblem("invalid_request", "Each line must be a JSON object."))
    return entry


def _missing(name: str) -> LineProblem:
    return LineProblem("missing_required_parameter", f"Missing required parameter: '{name}'.", param=name)


def _word_of(value: Any) -> str:
    words = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", int: "an integer"}
    return "null" if value is None else words.get(type(value), "a number")
