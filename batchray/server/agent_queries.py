"""The queries of the routes of agents: filters and the order of their list."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from batchray.schema import LettaMessage, Message, MessageType, StopReason
from batchray.schema.base import WireModel
from batchray.schema.visible import letta_messages
from batchray.server.agent_states import ListedAgent
from batchray.server.pagination import Page
from batchray.store import SortOrder

AgentOrder = Literal["created_at", "last_run_completion"]
Relation = Literal[
    "agent.blocks",
    "agent.identities",
    "agent.managed_group",
    "agent.pending_approval",
    "agent.secrets",
    "agent.sources",
    "agent.tags",
    "agent.tools",
]


class AgentQuery(WireModel):
    """Query of one agent.  A state always has all its relations."""

    include: tuple[Relation, ...] = ()
    include_relationships: tuple[str, ...] = ()


class AgentsOfBlockQuery(Page):
    """Query of the agents that have a block: a page.  A state always has all its relations."""

    include: tuple[Relation, ...] = ()
    include_relationships: tuple[str, ...] = ()


class AgentsQuery(Page):
    """Query of agents: a page, with filters.

    `name` is a whole name, `query_text` a part of one, in any case.  No agent has an identity or a template.
    `sort_by` and `ascending` are older names of `order_by` and `order`.  Agents that never ran come before all others.
    """

    _NOBODY_HAS: ClassVar[tuple[str, ...]] = ("identity_id", "identifier_keys", "template_id", "base_template_id")

    order_by: AgentOrder = "created_at"  # type: ignore[assignment]
    sort_by: AgentOrder | None = None
    ascending: bool | None = None
    name: str | None = None
    query_text: str | None = None
    tags: tuple[str, ...] = ()
    match_all_tags: bool = False
    last_stop_reason: StopReason | None = None
    project_id: str | None = None
    created_by_id: str | None = None
    identity_id: str | None = None
    identifier_keys: tuple[str, ...] = ()
    template_id: str | None = None
    base_template_id: str | None = None
    include: tuple[Relation, ...] = ()
    include_relationships: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check_older_names(self) -> Self:
        given = self.model_fields_set
        if {"order", "ascending"} <= given and self.ascending is not None and self.ascending != (self.order == "asc"):
            raise ValueError("order and ascending contradict each other")
        if {"order_by", "sort_by"} <= given and self.sort_by not in (None, self.order_by):
            raise ValueError("order_by and sort_by contradict each other")
        return self

    def with_order(self) -> Self:
        """Return the query with `order` and `order_by` as their older names give them."""
        order: SortOrder = self.order if self.ascending is None else "asc" if self.ascending else "desc"
        return self.model_copy(update={"order": order, "order_by": self.sort_by or self.order_by})

    def matches(self, agent: ListedAgent) -> bool:
        """Return whether an agent passes the filters."""
        if agent.is_hidden or any(getattr(self, name) for name in self._NOBODY_HAS):
            return False
        exact = (
            (self.name, agent.name),
            (self.project_id, agent.project_id),
            (self.created_by_id, agent.created_by_id),
            (self.last_stop_reason, agent.last_run and agent.last_run.stop_reason),
        )
        return (
            all(wanted in (None, found) for wanted, found in exact)
            and (self.query_text or "").lower() in agent.name.lower()
            and self._has_tags(agent)
        )

    def _has_tags(self, agent: ListedAgent) -> bool:
        wanted, found = set(self.tags), set(agent.tags)
        return not wanted or (wanted <= found if self.match_all_tags else not wanted.isdisjoint(found))

    def sort(self, agents: Iterable[ListedAgent]) -> list[str]:
        """Return the ids of agents, which come oldest first, in the order of the query."""
        ordered = list(agents)
        if self.order_by == "last_run_completion":
            ordered.sort(key=lambda agent: agent.last_run.finished_at if agent.last_run else "")
        return [agent.id for agent in (ordered if self.order == "asc" else ordered[::-1])]


class AgentMessagesQuery(Page):
    """Query of an agent's messages: a page, with filters, and how calls to a tool that speaks are shown.

    An agent has one conversation, `default`.  `include_return_message_types` are the kinds of message that are listed.
    """

    refused: ClassVar[Mapping[str, str]] = {"include_err": "an error is not a message; see the agent's run"}

    conversation_id: str | None = None
    group_id: str | None = None
    include_return_message_types: tuple[MessageType, ...] = ()
    use_assistant_message: bool = True
    assistant_message_tool_name: str = "send_message"
    assistant_message_tool_kwarg: str = "message"
    include_err: bool = False

    @property
    def is_filtered(self) -> bool:
        """Whether some messages may be left out."""
        return bool(self.conversation_id or self.group_id or self.include_return_message_types)

    def matches(self, message: Message) -> bool:
        """Return whether a message passes the filters."""
        is_here = self.conversation_id in (None, "default") and self.group_id in (None, message.group_id)
        return is_here and bool(self.parts(message))

    def parts(self, message: Message) -> list[LettaMessage]:
        """Return a message as the list shows it: its parts of the wanted types, in the order of the query."""
        is_set = any(name.startswith(("use_assistant", "assistant")) for name in self.model_fields_set)
        tool = self.assistant_message_tool_name if is_set and self.use_assistant_message else None
        found = letta_messages(message, tool, self.assistant_message_tool_kwarg)
        wanted = self.include_return_message_types
        parts = [part for part in found if not wanted or part.message_type in wanted]
        return parts if self.order == "asc" else parts[::-1]
