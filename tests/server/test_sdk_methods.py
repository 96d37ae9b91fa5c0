"""Every method of Letta's Python SDK around batches, in every way to call it, and with every parameter that it has.

The methods and their parameters are found by introspection, so none is forgotten.  Each response is compared with the
type that the SDK declares and with the server's OpenAPI document; each parameter works, or is refused by its name, as
the document says.
"""

from __future__ import annotations

from collections.abc import Iterator

import letta_client
import pytest
from letta_client import Letta

from tests.server.document import Document
from tests.server.http_client import ask
from tests.server.live import LiveServer
from tests.server.sdk_methods import Calls, Method, methods_of
from tests.server.sdk_values import World, given

RESOURCES = (
    *("batches", "batches.messages", "agents", "agents.messages", "models"),
    *("blocks", "blocks.agents", "agents.blocks", "tools", "agents.tools"),
    *("runs", "runs.messages", "runs.steps", "runs.usage"),
    *("steps", "steps.messages", "steps.metrics", "steps.trace", "steps.feedback"),
)
ABSENT = {
    *("agents.export_file", "agents.import_file", "agents.messages.compact"),
    *("tools.add", "tools.create", "tools.create_from_function", "tools.upsert", "tools.upsert_from_function"),
    *("tools.update", "tools.delete"),
}
"""Methods that batchray does not have, or refuses: the operator configures the tools."""

ALIASES = {"body_requires_approval": "requires_approval", "query_requires_approval": "requires_approval"}
"""The names of parameters in requests, if the SDK has other ones."""

pytestmark = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")

METHODS = [method for method in methods_of(*RESOURCES) if str(method) not in ABSENT]
LIKE_CREATE = {"agents.messages.stream", "agents.messages.create_async"}
"""Methods whose parameters are those of `agents.messages.create`, on the same way."""

each_method = pytest.mark.parametrize("method", METHODS, ids=str)


@pytest.fixture(scope="module")
def calls(server: LiveServer) -> Calls:
    return Calls(server.url, Document(ask(server.url, "/openapi.json")))


@pytest.fixture(scope="module")
def strict(calls: Calls) -> Iterator[Letta]:
    with calls.sync(is_strict=True) as client:
        yield client


@pytest.fixture(scope="module")
def loose(calls: Calls) -> Iterator[Letta]:
    with calls.sync(is_strict=False) as client:
        yield client


@pytest.fixture(scope="module")
def world(server: LiveServer) -> Iterator[World]:
    with Letta(base_url=server.url, api_key="any") as letta:
        yield World(letta)


def wanted(calls: Calls, method: Method) -> list[str]:
    """Return the optional parameters that the last operation does not refuse, without those that others replace."""
    described = calls.parameters()
    replaced = {"input", "before", "streaming"}
    return [name for name in method.optional if name not in replaced and not is_refused(described.get(wire(name), ""))]


def wire(name: str) -> str:
    """Return the name of a parameter in the request."""
    return ALIASES.get(name, name)


def is_refused(description: str) -> bool:
    return description.startswith("Refused")


@each_method
def test_a_method_returns_what_it_declares(
    method: Method, calls: Calls, strict: Letta, loose: Letta, world: World
) -> None:
    calls.call(strict, method, "plain", given(world, method))
    calls.call(loose, method, "with_raw_response", given(world, method))
    calls.call(strict, method, "with_streaming_response", given(world, method))
    everything = wanted(calls, method)
    calls.call(strict, method, "with_raw_response", given(world, method, *everything))
    calls.call(loose, method, "plain", given(world, method, *everything))


@each_method
async def test_an_asynchronous_method_returns_the_same(method: Method, calls: Calls, world: World) -> None:
    async with calls.for_async(is_strict=True) as strict, calls.for_async(is_strict=False) as loose:
        await calls.call_async(loose, method, "plain", given(world, method))
        await calls.call_async(strict, method, "with_raw_response", given(world, method))
        await calls.call_async(strict, method, "with_streaming_response", given(world, method))
        await calls.call_async(strict, method, "plain", given(world, method, *wanted(calls, method)))


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(each, id=str(each), marks=[pytest.mark.full] if str(each) in LIKE_CREATE else [])
        for each in METHODS
    ],
)
def test_each_parameter_works_or_is_refused_by_its_name(
    method: Method, calls: Calls, loose: Letta, world: World
) -> None:
    few = ("limit",) if method.name == "list" and "limit" in method.optional else ()
    calls.call(loose, method, "plain", given(world, method, *few))
    described = calls.parameters()
    for name in method.optional:
        assert wire(name) in described, f"{name} is neither used nor refused"
        if is_refused(described[wire(name)]):
            with pytest.raises(letta_client.UnprocessableEntityError) as raised:
                calls.call(loose, method, "plain", given(world, method, *few, name))
            assert wire(name) in raised.value.body["detail"]  # type: ignore[index]
            assert calls.problems() == []
        else:
            calls.call(loose, method, "plain", given(world, method, *few, name))
            assert (wire(name) in calls.without_effect()) == ("no effect" in described[wire(name)]), name
