"""Methods of Letta's Python SDK, found by introspection, and calls of them in each way that the SDK offers."""

from __future__ import annotations

import functools
import inspect
import json
import typing
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import httpx
from letta_client import AsyncLetta, AsyncStream, Letta, Stream
from letta_client.pagination import SyncArrayPage, SyncObjectPage
from pydantic import TypeAdapter

from tests.server.document import Document, events_in

WAYS = ("plain", "with_raw_response", "with_streaming_response")
_OF_EVERY_METHOD = {"extra_headers", "extra_query", "extra_body", "timeout"}


class Method(NamedTuple):
    """A method of a resource, such as `list` of `agents.messages`; `returns` is the type that it declares."""

    resource: str
    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    returns: Any

    def __str__(self) -> str:
        return f"{self.resource}.{self.name}"


def methods_of(*resources: str) -> Iterator[Method]:
    """Yield the public methods of some resources."""
    client = Letta(base_url="http://127.0.0.1:1", api_key="any")
    for resource in resources:
        for name, function in inspect.getmembers(_resource(client, resource), inspect.ismethod):
            if not name.startswith("_"):
                given = [
                    each
                    for each in inspect.signature(function).parameters.values()
                    if each.name not in _OF_EVERY_METHOD
                ]
                required = tuple(each.name for each in given if each.default is inspect.Parameter.empty)
                optional = tuple(each.name for each in given if each.default is not inspect.Parameter.empty)
                yield Method(resource, name, required, optional, typing.get_type_hints(function)["return"])


class Calls:
    """Calls methods on a server; each response is compared with the server's document and with the SDK's types."""

    def __init__(self, url: str, document: Document) -> None:
        self._url, self._document = url, document
        self._responses: list[httpx.Response] = []

    def sync(self, *, is_strict: bool) -> Letta:
        """Return a client for calls, which the caller closes."""
        http = httpx.Client(event_hooks={"response": [self._keep]})
        return Letta(
            base_url=self._url, api_key="any", max_retries=0, _strict_response_validation=is_strict, http_client=http
        )

    def for_async(self, *, is_strict: bool) -> AsyncLetta:
        """Return a client for asynchronous calls, which the caller closes."""
        http = httpx.AsyncClient(event_hooks={"response": [self._keep_async]}, verify=False)
        return AsyncLetta(
            base_url=self._url, api_key="any", max_retries=0, _strict_response_validation=is_strict, http_client=http
        )

    def call(self, client: Letta, method: Method, way: str, given: Mapping[str, Any]) -> Any:
        """Call a method in one of the WAYS, check its response, and return what the SDK made of it."""
        function = _function(client, method, way)
        if way == "plain":
            parsed = function(**given)
        elif way == "with_raw_response":
            parsed = function(**given).parse()
        else:
            with function(**given) as response:
                parsed = response.parse()
        parsed = [*parsed] if isinstance(parsed, Stream) else parsed
        self._check(method, parsed)
        return parsed

    async def call_async(self, client: AsyncLetta, method: Method, way: str, given: Mapping[str, Any]) -> Any:
        """Call a method in one of the WAYS, check its response, and return what the SDK made of it."""
        function = _function(client, method, way)
        if way == "plain":
            parsed = await function(**given)
        elif way == "with_raw_response":
            parsed = await _awaited((await function(**given)).parse())
        else:
            async with function(**given) as response:
                parsed = await _awaited(response.parse())
        parsed = [each async for each in parsed] if isinstance(parsed, AsyncStream) else parsed
        self._check(method, parsed)
        return parsed

    def problems(self) -> list[str]:
        """Return what in the last response does not agree with the document."""
        response = self._responses[-1]
        request = response.request
        kind = response.headers["content-type"]
        return self._document.problems(request.method, request.url.path, response.status_code, kind, response.content)

    def parameters(self) -> dict[str, str]:
        """Return the description of each parameter of the last operation; those that are refused say so."""
        request = self._responses[-1].request
        operation = self._document.operation(request.method, request.url.path)
        assert operation is not None, request
        return self._document.parameters(operation)

    def without_effect(self) -> set[str]:
        """Return the parameters without an effect, as the warning in the last response names them."""
        _, _, names = self._responses[-1].headers.get("Warning", "").strip('"').partition("no effect here: ")
        return set(names.split(", "))

    def _check(self, method: Method, parsed: Any) -> None:
        assert self.problems() == [], self._responses[-1].text[:2000]
        _check_type(method.returns, self._responses[-1].content, parsed)

    def _keep(self, response: httpx.Response) -> None:
        response.read()
        self._responses[:] = [response]

    async def _keep_async(self, response: httpx.Response) -> None:
        await response.aread()
        self._responses[:] = [response]


def _check_type(returns: Any, body: bytes, parsed: Any) -> None:
    """Check that a response holds the type that a method declares, and that the SDK has made such an object of it."""
    streams = [kind for kind in _kinds(returns) if typing.get_origin(kind) is Stream]
    others = [kind for kind in _kinds(returns) if kind not in streams]
    page = getattr(returns, "__pydantic_generic_metadata__", {"origin": None})
    if streams and isinstance(parsed, list):
        items = [json.loads(data) for _, data in events_in(body) if data != b"[DONE]"]
        _check_items(typing.get_args(streams[0])[0], items, parsed)
    elif page["origin"] in (SyncArrayPage, SyncObjectPage):
        items = json.loads(body) if page["origin"] is SyncArrayPage else json.loads(body)["messages"]
        _check_items(page["args"][0], items, parsed._get_page_items())
    else:
        _adapter(others[0] if streams else returns).validate_json(body)
        assert any(isinstance(parsed, typing.get_origin(kind) or kind) for kind in others), type(parsed)


def _check_items(kind: Any, items: Sequence[Any], parsed: Sequence[Any]) -> None:
    for item in items:
        _adapter(kind).validate_python(item)
    assert len(parsed) == len(items)


def _kinds(returns: Any) -> Sequence[Any]:
    return typing.get_args(returns) if typing.get_origin(returns) is typing.Union else (returns,)


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _function(client: Letta | AsyncLetta, method: Method, way: str) -> Callable[..., Any]:
    resource = _resource(client, method.resource)
    return typing.cast(Callable[..., Any], getattr(resource if way == "plain" else getattr(resource, way), method.name))


def _resource(client: Letta | AsyncLetta, path: str) -> Any:
    return functools.reduce(getattr, path.split("."), client)


async def _awaited(value: Any) -> Any:
    return await value if isinstance(value, Awaitable) else value
