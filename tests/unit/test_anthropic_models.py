"""The parameters that models of the Messages API accept: asked for, learned from refusals, and calls fitted to them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp.web
import pytest

from batchray.errors import ModelAPIError
from batchray.models.anthropic import AnthropicClient
from batchray.models.anthropic_models import NOTHING_KNOWN, KnownModels, ModelRules, changes, fitted
from batchray.models.anthropic_request import request_body
from tests.builders.model_calls import call, eager, failure

BUDGET = {"type": "enabled", "budget_tokens": 2048}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": False}


def supports(**types: bool) -> dict[str, Any]:
    """Return the answer of `GET /v1/models/{id}` for these types of thinking."""
    kinds = {name: {"supported": supported} for name, supported in types.items()}
    return {"id": "m", "type": "model", "capabilities": {"thinking": {"supported": True, "types": kinds}}}


OLD = supports(adaptive=False, disabled=True, enabled=True)
MIDDLE = supports(adaptive=True, disabled=True, enabled=True)
NEW = supports(adaptive=True, disabled=True, enabled=False)
ALWAYS = supports(adaptive=True, disabled=False, enabled=False)


class Anthropic:
    """A server that refuses what the model `new` refuses, in the words of Anthropic's API.

    `info` is its answer about each model: None answers 404, and "hang" never answers.
    """

    def __init__(self, info: Any) -> None:
        self.info = info
        self.asked: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.url, self.is_over = "", asyncio.Event()

    async def handle(self, request: aiohttp.web.BaseRequest) -> aiohttp.web.StreamResponse:
        if request.method == "GET":
            self.asked.append(request.raw_path)
            if self.info == "hang":
                await self.is_over.wait()
            return aiohttp.web.json_response(self.info or {}, status=200 if self.info else 404)
        body = await request.json()
        self.bodies.append(body)
        if (problem := self._problem(body)) is not None:
            error = {"type": "error", "error": {"type": "invalid_request_error", "message": problem}}
            return aiohttp.web.json_response(error, status=400)
        content = [{"type": "text", "text": "Sunny."}]
        return aiohttp.web.json_response({"content": content, "stop_reason": "end_turn", "usage": {}})

    def _problem(self, body: dict[str, Any]) -> str | None:
        if body["model"] != "new":
            return None
        if (body.get("thinking") or {}).get("type") == "enabled":
            return (
                '"thinking.type.enabled" is not supported for this model. Use "thinking.type.adaptive" and '
                '"output_config.effort" to control thinking behavior.'
            )
        refused = next((name for name in ("temperature", "top_p", "top_k") if name in body), None)
        return f"`{refused}` is deprecated for this model." if refused else None


@asynccontextmanager
async def anthropic(info: Any) -> AsyncIterator[tuple[Anthropic, AnthropicClient]]:
    server = Anthropic(info)
    runner = aiohttp.web.ServerRunner(aiohttp.web.Server(server.handle))
    await runner.setup()
    await aiohttp.web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    client = AnthropicClient(server.url, **eager())
    try:
        yield server, client
    finally:
        await client.close()
        server.is_over.set()
        await runner.cleanup()


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# --- fitted bodies ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("info", "thinking", "given", "sent"),
    [
        # Older models, and servers that say nothing: as the agent's file has it.
        (None, None, {"temperature": 0, "thinking": BUDGET}, {"temperature": 0, "thinking": BUDGET}),
        (OLD, None, {"temperature": 0, "top_k": 1}, {"temperature": 0, "top_k": 1}),
        (OLD, True, {"temperature": 0}, {"max_tokens": 4096, "thinking": BUDGET}),
        (OLD, False, {"thinking": BUDGET, "temperature": 0}, {"temperature": 0}),
        (OLD, True, {"thinking": {"type": "disabled"}}, {"max_tokens": 4096, "thinking": BUDGET}),
        # Models that take both.
        (MIDDLE, None, {"temperature": 0, "thinking": BUDGET}, {"temperature": 0, "thinking": BUDGET}),
        (
            MIDDLE,
            True,
            {"temperature": 0, "top_p": 1},
            {"max_tokens": 16384, "top_p": 1, "thinking": {"type": "adaptive"}},
        ),
        (MIDDLE, False, {}, {"thinking": {"type": "disabled"}}),
        # Models that decide by themselves.
        (NEW, None, {"temperature": 0, "top_p": 1, "top_k": 1, "seed": 1}, {"seed": 1}),
        (
            NEW,
            None,
            {"thinking": {**BUDGET, "display": "omitted"}},
            {"thinking": {"type": "adaptive", "display": "omitted"}},
        ),
        (NEW, True, {"max_tokens": 9}, {"max_tokens": 9, "thinking": {"type": "adaptive"}}),
        (NEW, False, {"thinking": BUDGET}, {"thinking": {"type": "disabled"}}),
        (ALWAYS, False, {"output_config": {"effort": "low"}}, {"output_config": {"effort": "low"}}),
        (ALWAYS, None, {"thinking": {"type": "disabled"}}, {}),
    ],
)
def test_a_body_has_only_the_parameters_that_its_model_accepts(
    info: Any, thinking: bool | None, given: dict[str, Any], sent: dict[str, Any]
) -> None:
    rules = ModelRules.of_model_info(info)
    assert fitted(given, thinking, rules) == sent
    assert fitted(fitted(given, thinking, rules), thinking, rules) == sent


@pytest.mark.parametrize("info", [None, [], 1, "m", {"capabilities": None}, {"capabilities": {"thinking": 1}}, OLD])
def test_an_answer_that_says_nothing_new_changes_nothing(info: Any) -> None:
    assert ModelRules.of_model_info(info) == NOTHING_KNOWN


def test_an_effort_that_a_model_does_not_know_is_left_out() -> None:
    info = {"capabilities": {"effort": {"supported": False}}}
    given = {"output_config": {"effort": "high", "format": {"type": "json_schema", "schema": SCHEMA}}}
    rules = ModelRules.of_model_info(info)
    assert fitted(given, None, rules) == {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}
    assert fitted({"output_config": {"effort": "high"}}, None, rules) == {}
    assert changes(given, None, rules) == ["output_config.effort is left out"]


@pytest.mark.parametrize(
    ("message", "given", "left"),
    [
        ("`temperature` is deprecated for this model.", {"temperature": 0, "top_p": 1}, {"top_p": 1}),
        (
            "`temperature` and `top_p` cannot both be specified for this model.",
            {"temperature": 0, "top_p": 1},
            {"temperature": 0},
        ),
        ("`top_k` may only be set to 1 when thinking is enabled", {"top_k": 5}, {}),
        ("This model does not support the effort parameter.", {"output_config": {"effort": "low"}}, {}),
        ('"thinking.type.disabled" is not supported for this model', {"thinking": {"type": "disabled"}}, {}),
    ],
)
def test_a_refusal_teaches_which_parameter_to_leave_out(
    message: str, given: dict[str, Any], left: dict[str, Any]
) -> None:
    learned = NOTHING_KNOWN.after_refusal(message, given)
    assert learned is not None
    assert fitted(given, None, learned) == left


@pytest.mark.parametrize(
    ("message", "given"),
    [
        ("temperature: Input should be less than or equal to 1", {"temperature": 2}),
        ("`top_k` is not supported", {"temperature": 0}),
        ("messages: text content blocks must be non-empty", {"temperature": 0}),
        ("images are not supported by this model", {"temperature": 0, "thinking": BUDGET}),
    ],
)
def test_an_error_about_a_value_or_about_something_else_teaches_nothing(message: str, given: dict[str, Any]) -> None:
    assert NOTHING_KNOWN.after_refusal(message, given) is None


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": SCHEMA, "strict": True},
                }
            },
            {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        ),
        ({"response_format": {"type": "text"}}, {}),
        ({"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}, "effort": "low"}}, None),
    ],
)
def test_a_schema_of_the_answer_is_sent_as_the_api_wants_it(given: dict[str, Any], sent: dict[str, Any] | None) -> None:
    body = request_body(call(body=given))
    expected = given if sent is None else sent
    assert {name: body[name] for name in ("response_format", "output_config") if name in body} == expected


# --- calls -----------------------------------------------------------------------------------------------------------


async def test_a_model_is_asked_for_once_and_its_calls_are_fitted(caplog: pytest.LogCaptureFixture) -> None:
    async with anthropic(NEW) as (server, client):
        asked = [client.ask(call(model="new", body={"temperature": 0, "thinking": BUDGET})) for _ in range(5)]
        assert [reply.text for reply in await asyncio.gather(*asked)] == ["Sunny."] * 5
    assert server.asked == ["/v1/models/new"]
    assert len(server.bodies) == 5
    assert said(caplog) == [
        "provider local: the model new does not take this: temperature is left out",
        "provider local: the model new does not take this: thinking with a budget becomes adaptive thinking",
    ]


async def test_a_model_is_not_asked_for_if_it_makes_no_difference() -> None:
    async with anthropic(NEW) as (server, client):
        await client.ask(call(model="new", body={"max_tokens": 9}))
    assert server.asked == []


async def test_a_name_with_a_slash_is_one_part_of_the_path() -> None:
    async with anthropic(OLD) as (server, client):
        await client.ask(call(model="a/b", body={"temperature": 0}))
    assert server.asked == ["/v1/models/a%2Fb"]
    assert server.bodies[0]["temperature"] == 0


async def test_calls_in_flight_learn_from_their_refusals(caplog: pytest.LogCaptureFixture) -> None:
    async with anthropic(None) as (server, client):
        given = {"temperature": 0, "top_p": 1, "thinking": BUDGET}
        asked = [client.ask(call(model="new", body=given)) for _ in range(3)]
        assert [reply.text for reply in await asyncio.gather(*asked)] == ["Sunny."] * 3
        n_calls = len(server.bodies)
        await client.ask(call(model="new", body=given))
    assert n_calls <= 12  # three parameters, refused one after the other, and an answer
    assert len(server.bodies) == n_calls + 1
    assert server.bodies[-1]["thinking"] == {"type": "adaptive"}
    assert len(said(caplog)) == 3


async def test_a_refusal_that_teaches_nothing_is_final() -> None:
    async with anthropic(None) as (server, client):
        server._problem = lambda body: "`seed` is not supported"  # type: ignore[method-assign]
        error = await failure(client.ask(call(body={"temperature": 0})), ModelAPIError)
    assert (error.type, len(server.bodies)) == ("bad_request", 1)


async def test_a_server_that_does_not_answer_about_models_delays_a_call_only_briefly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("batchray.models.anthropic._MODEL_INFO_S", 0.05)
    async with anthropic("hang") as (server, client):
        assert (await client.ask(call(body={"temperature": 0}))).text == "Sunny."
        await client.ask(call(body={"temperature": 0}))
    assert len(server.asked) == 1


async def test_a_client_that_closes_stops_asking() -> None:
    async def never(model: str) -> None:
        await asyncio.Event().wait()

    models = KnownModels("p", never)
    assert await models.rules_for("m", {"temperature": 0}, None, 0.0) == NOTHING_KNOWN
    await models.close()
    assert len(asyncio.all_tasks()) == 1
