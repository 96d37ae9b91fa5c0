"""The query of a list of memory blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import field_validator

from batchray.schema import Block
from batchray.server.pagination import Page

_NO_IDENTITIES = "batchray has no identities"


class BlocksQuery(Page):
    """Query of blocks: a page, filtered by label, tags, texts in them, and how many agents have them."""

    refused: ClassVar[Mapping[str, str]] = {"identity_id": _NO_IDENTITIES, "identifier_keys": _NO_IDENTITIES}

    label: str | None = None
    name: str | None = None
    label_search: str | None = None
    description_search: str | None = None
    value_search: str | None = None
    tags: tuple[str, ...] = ()
    match_all_tags: bool = False
    templates_only: bool = False
    project_id: str | None = None
    connected_to_agents_count_eq: tuple[int, ...] = ()
    connected_to_agents_count_gt: int | None = None
    connected_to_agents_count_lt: int | None = None
    identity_id: str | None = None
    identifier_keys: tuple[str, ...] = ()

    @field_validator("identity_id", "identifier_keys")
    @classmethod
    def _refuse(cls, value: object) -> object:
        if value:
            raise ValueError(_NO_IDENTITIES)
        return value

    def matches(self, block: Block, n_agents: int) -> bool:
        """Return whether a block that `n_agents` agents have passes the filters."""
        is_like = self._has_names(block) and self._has_texts(block) and self._has_tags(block)
        return is_like and self._has_agents(n_agents)

    def _has_names(self, block: Block) -> bool:
        given = ((self.label, block.label), (self.name, block.template_name), (self.project_id, block.project_id))
        is_template = block.is_template or not self.templates_only
        return is_template and all(wanted in (None, value) for wanted, value in given)

    def _has_texts(self, block: Block) -> bool:
        searched = (
            (self.label_search, block.label),
            (self.description_search, block.description),
            (self.value_search, block.value),
        )
        return all(wanted is None or wanted.lower() in (text or "").lower() for wanted, text in searched)

    def _has_tags(self, block: Block) -> bool:
        tags, wanted = set(block.tags or ()), set(self.tags)
        return not wanted or (wanted <= tags if self.match_all_tags else not wanted.isdisjoint(tags))

    def _has_agents(self, n_agents: int) -> bool:
        more_than, less_than = self.connected_to_agents_count_gt, self.connected_to_agents_count_lt
        return (
            (not self.connected_to_agents_count_eq or n_agents in self.connected_to_agents_count_eq)
            and (more_than is None or n_agents > more_than)
            and (less_than is None or n_agents < less_than)
        )
