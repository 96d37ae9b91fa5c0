"""Keys that no model reads are found at every level of a request."""

from __future__ import annotations

import typing
from typing import Any

import pytest
import typing_extensions
from hypothesis import given
from hypothesis import strategies as st
from letta_client.types import batch_create_params
from pydantic import ValidationError

from batchray.config import Agent, Provider, Settings
from batchray.config.agents import AgentsFile, MemoryBlock, ProviderTimeouts
from batchray.schema import AgentRequest, CreateBatch
from batchray.schema.keys import did_you_mean, model_at, unused_keys
from batchray.schema.validation_text import first_problem, path_text

# Every kind of message and part, with a marked place for one more key in each object.
FULL: dict[str, Any] = {
    "agent_id": "a",
    "messages": [
        {"role": "user", "content": [{"text": "x"}, {"type": "image", "source": {"url": "u"}}]},
        {"role": "assistant", "content": [{"id": "c", "name": "n", "input": {"free": {"any": 1}}}]},
        {"role": "assistant", "content": [{"id": "r", "summary": [{"index": 0, "text": "t"}]}, {"data": "d"}]},
        {"type": "approval", "approvals": [{"tool_call_id": "c", "approve": True}]},
        {"tool_returns": [{"tool_call_id": "c", "status": "success", "tool_return": [{"text": "t"}]}]},
    ],
    "client_tools": [{"name": "t", "parameters": {"free": {"any": [{"thing": 1}]}}}],
    "metadata": {"free": [{"any": 1}]},
}


def objects(value: Any, path: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Return all objects inside a value whose keys are fixed, by path."""
    found = {path: value} if isinstance(value, dict) else {}
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        if key not in ("input", "parameters", "metadata"):
            found |= objects(child, (*path, key))
    return found


def test_a_whole_request_has_no_unused_key() -> None:
    assert list(unused_keys(AgentRequest, FULL)) == []


@pytest.mark.parametrize("path", objects(FULL), ids=lambda path: path_text(path) or "request")
def test_an_unknown_key_is_found_in_every_object(path: tuple[Any, ...]) -> None:
    level = objects(FULL)[path]
    level["zzz"] = None
    try:
        assert [each.path for each in unused_keys(AgentRequest, FULL)] == [(*path, "zzz")]
    finally:
        del level["zzz"]


@given(st.recursive(st.none() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_a_value_of_any_shape_can_be_searched(value: Any) -> None:
    for name in AgentRequest.model_fields:
        list(unused_keys(AgentRequest, {name: value, "messages": [value, {"content": [value]}]}))


def test_a_field_without_effect_or_refused_is_found_if_it_asks_for_something() -> None:
    asked: dict[str, Any] = {
        "override_model": "a/b",
        "top_logprobs": None,
        "return_logprobs": False,
        "client_skills": [],
        "include_compaction_messages": True,
    }
    message = {"role": "user", "content": "x", "batch_item_id": "b"}
    found = list(unused_keys(AgentRequest, {**asked, "messages": [message]}))
    assert [(each.path, each.is_known, each.refusal is None) for each in found] == [
        (("override_model",), True, False),
        (("include_compaction_messages",), True, True),
        (("messages", 0, "batch_item_id"), True, True),
    ]


def _sdk_params(kind: Any) -> set[Any]:
    """Return the typed dicts of Letta's client inside a type."""
    if typing_extensions.is_typeddict(kind):
        hints = typing.get_type_hints(kind)
        return {kind}.union(*map(_sdk_params, hints.values()))
    return set[Any]().union(*map(_sdk_params, typing.get_args(kind)))


def test_every_field_that_lettas_client_can_send_is_known() -> None:
    ours = {"requests": [{"agent_id": "a"}], "callback_url": None}
    assert list(unused_keys(CreateBatch, ours)) == []
    kinds = _sdk_params(batch_create_params.Request)
    assert len(kinds) > 10
    fields = {kind: set(typing.get_type_hints(kind)) for kind in kinds}
    known = [set(each.model_fields) for each in _models(AgentRequest)]
    for kind, names in fields.items():
        assert any(names <= each for each in known), kind


def _models(model: Any) -> set[Any]:
    if isinstance(model, type) and hasattr(model, "model_fields"):
        inside = [_models(field.annotation) for field in model.model_fields.values()]
        return {model}.union(*inside)
    return set[Any]().union(*map(_models, typing.get_args(model)))


@pytest.mark.parametrize(
    ("key", "given", "suggested"),
    [
        ("imput", (), "input"),
        ("Messages", (), "messages"),
        ("prompt", (), "input"),
        ("prompt", ("input",), ""),
        ("id", (), "custom_id"),
        ("custom_id", (), ""),
        ("zzz", (), ""),
    ],
)
def test_a_suggestion_is_another_key_that_is_not_given_yet(key: str, given: tuple[str, ...], suggested: str) -> None:
    assert did_you_mean(key, AgentRequest, given) == (f"; did you mean {suggested!r}?" if suggested else "")


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ((), AgentsFile),
        (("agents", 3), Agent),
        (("agents", 0, "memory_blocks", 1), MemoryBlock),
        (("providers", "agents"), Provider),
        (("providers", "p", "timeouts"), ProviderTimeouts),
        (("agents", 0, "body", "x"), Agent),
        (("nothing", 1), AgentsFile),
    ],
)
def test_the_model_at_a_path_is_found(path: tuple[Any, ...], model: type[Any]) -> None:
    assert model_at(AgentsFile, path) is model


def test_a_suggestion_comes_from_the_model_of_its_level() -> None:
    def problem(content: Any) -> str:
        with pytest.raises(ValidationError) as caught:
            AgentsFile.model_validate(content)
        return first_problem(caught.value, AgentsFile)

    assert problem({"model": "offline/rules"}) == "unknown key 'model'"
    assert problem({"agents": [{"id": "a", "base_url": "h"}]}) == "unknown key 'base_url'"
    assert problem({"providers": {"p": {"base_ulr": "h"}}}) == "unknown key 'base_ulr'; did you mean 'base_url'?"
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"max_inflight": 3})
    assert first_problem(caught.value, Settings) == "unknown key 'max_inflight'; did you mean 'max_in_flight'?"
