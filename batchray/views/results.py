"""Conversion of stored results into `Result` objects."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any

import orjson
from pydantic import TypeAdapter

from batchray.config import Prices
from batchray.schema import (
    AgentRequest,
    ErrorInfo,
    ItemStatus,
    LettaMessage,
    Message,
    Result,
    StopReason,
    Timing,
    Usage,
    item_id,
    visible_messages,
)
from batchray.schema.visible import letta_messages
from batchray.store import JobRecord, StoredResult
from batchray.views.carried import CarriedRows
from batchray.views.trajectory_html import result_html

_MESSAGES = TypeAdapter(list[Message])
Result.to_html = result_html


class ResultViews:
    """Shows the outcomes of a job as lines of the output.

    `agents` is the job's snapshot of its agents, which has their models and prices; without it neither is shown for a
    request that called no model.  With `include_input` each result has the input of its request, with `every_message`
    also the messages that it did not ask for.  `rows` are those of the table that the job was made of.
    """

    def __init__(
        self,
        job: JobRecord,
        agents: Mapping[str, Any] = MappingProxyType({}),
        *,
        include_input: bool = False,
        every_message: bool = False,
        rows: CarriedRows | None = None,
    ) -> None:
        self._job, self._include_input, self._rows = job, include_input, rows
        self._every_message = every_message
        settings = {agent_id: kept["agent"] for agent_id, kept in agents.items()}
        self._models: dict[str, str | None] = {agent_id: each.get("model") for agent_id, each in settings.items()}
        self._prices = {
            agent_id: Prices.model_validate(each["prices"]) for agent_id, each in settings.items() if each.get("prices")
        }

    def result(self, stored: StoredResult) -> Result:
        """Return an item's outcome."""
        request = AgentRequest.model_validate_json(stored.request)
        messages = _MESSAGES.validate_json(stored.messages)
        return Result(
            index=stored.index,
            custom_id=request.custom_id,
            metadata=request.metadata,
            row=self._rows.row(stored.index) if self._rows is not None else None,
            batch_item_id=item_id(self._job.id, stored.index),
            agent_id=stored.agent_id,
            model=self.model(stored.agent_id, model_of(messages)),
            status=ItemStatus(stored.status),
            stop_reason=StopReason(stored.stop_reason),
            input=input_of(orjson.loads(stored.request)) if self._include_input else None,
            messages=self._visible(messages, request),
            usage=Usage(**stored.usage),
            cost_usd=self.cost_usd(stored.agent_id, stored.usage),
            error=ErrorInfo(**stored.error) if stored.error else None,
            **output_of(stored.error, messages),
            attempts=stored.attempts,
            timing=Timing(queued_ns=stored.queued_ns, ttft_ns=stored.ttft_ns, duration_ns=stored.duration_ns),
        )

    def _visible(self, messages: Sequence[Message], request: AgentRequest) -> list[LettaMessage]:
        if self._every_message:
            return [view for message in messages for view in letta_messages(message)]
        return visible_messages(messages, request)

    def model(self, agent_id: str, answered: str | None) -> str | None:
        """Return the model that answered, or else the agent's.

        A resume may have replaced the agent of the snapshot; its answers name the model that gave them.
        """
        return answered or self._models.get(agent_id)

    def cost_usd(self, agent_id: str, stored: Mapping[str, int]) -> float | None:
        """Return the price of a stored usage; None without prices, or if the provider reported no tokens."""
        prices = self._prices.get(agent_id)
        if prices is None:
            return None
        usage = Usage(**stored)
        return None if usage.step_count > 0 and usage.total_tokens == 0 else prices.cost_usd(usage)


def model_of(messages: Sequence[Message]) -> str | None:
    """Return the model that wrote the first of the messages that names one."""
    return next((each.model for each in messages if each.model), None)


def input_of(request: Mapping[str, Any]) -> Any:
    """Return the `input` of a request, or else its `messages`."""
    return request["messages"] if request.get("input") is None else request["input"]


def output_of(error: Mapping[str, str] | None, messages: Sequence[Message]) -> dict[str, str]:
    """Return what a function agent has written, which is with its error, or else with its answer."""
    if error is not None:
        return {name: error[name] for name in ("stdout", "stderr") if name in error}
    if not messages or messages[-1].role != "assistant" or not messages[-1].tool_returns:
        return {}
    [returned] = messages[-1].tool_returns
    written = {"stdout": returned.stdout, "stderr": returned.stderr}
    return {name: "".join(texts) for name, texts in written.items() if texts}


def text_of(result: Result) -> str:
    """Return `result.text`.  Deprecated: use that."""
    warnings.warn("text_of(result) is deprecated; use result.text", DeprecationWarning, stacklevel=2)
    return result.text


def parse_time(timestamp: str | None) -> datetime | None:
    """Parse a timestamp of the store."""
    return datetime.fromisoformat(timestamp) if timestamp else None
