"""The routes of memory blocks: a user's own, and those of agents by their labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

from aiohttp import web

from batchray.batch.rules import RequestRules
from batchray.config import ServerSettings
from batchray.schema import AgentState, Block, CreateBlock, UpdateBlock
from batchray.server.agent_catalog import AgentCatalog, SettingsBlock
from batchray.server.agent_queries import AgentsOfBlockQuery
from batchray.server.agent_states import AgentStates
from batchray.server.auth import user_of
from batchray.server.block_queries import BlocksQuery
from batchray.server.block_shapes import changed_block, new_block, shown_block
from batchray.server.errors import HttpError
from batchray.server.pagination import Cursor, Page, is_between, paged, slice_of
from batchray.server.routes.agents import Deleted
from batchray.server.routing import NoQuery, ResponseBody, Route
from batchray.server.storage import ServerStorage
from batchray.server.upload import read_json

_PATH = "/v1/blocks/{block_id}"
_OF_AGENT = "/v1/agents/{agent_id}/core-memory/blocks"
_LABELLED = f"{_OF_AGENT}/{{block_label}}"
_PAGE_CHARACTERS = 8 * 1024 * 1024
"""About how many characters of values are sent at a time: a page of long blocks is shorter than its limit."""


class BlockRoutes:
    """The endpoints of memory blocks.

    Those of the operator's agents can be read, and their values edited if the agent keeps its memory.
    """

    def __init__(
        self, settings: ServerSettings, storage: ServerStorage, states: AgentStates, catalog: AgentCatalog
    ) -> None:
        self._settings, self._states, self._catalog = settings, states, catalog
        self._reader, self._store = storage.reader, storage.store

    def routes(self) -> list[Route]:
        """Return the routes, with trailing slashes where Letta has them."""
        body = (404, 408, 413, 415, 422)
        of_block = partial(Route, response=Block, tag="blocks")
        of_agent = partial(Route, response=AgentState, tag="blocks")
        get, patch, path = partial(of_block, "GET"), partial(of_block, "PATCH", body=UpdateBlock), "/v1/blocks/"
        changes = (*body, 403, 409)
        listed = partial(Route, "GET", tag="blocks")
        return [
            of_block("POST", path, self.create, "create_block", "Create a memory block", body=CreateBlock, errors=body),
            listed(path, self.index, "list_blocks", "List memory blocks", BlocksQuery, response=list[Block]),
            get(_PATH, self.retrieve, "retrieve_block", "Retrieve a memory block", errors=(404,)),
            patch(_PATH, self.update, "update_block", "Change a memory block", errors=changes),
            Route(
                "DELETE",
                _PATH,
                self.delete,
                "delete_block",
                "Delete a memory block, and detach it from all agents",
                response=Deleted,
                errors=(403, 404),
                tag="blocks",
            ),
            listed(
                f"{_PATH}/agents",
                self.agents,
                "list_block_agents",
                "List the agents that have a memory block",
                AgentsOfBlockQuery,
                response=list[AgentState],
                errors=(404,),
            ),
            listed(
                _OF_AGENT,
                self.of_agent,
                "list_agent_blocks",
                "List an agent's memory blocks",
                Page,
                response=list[Block],
                errors=(404,),
            ),
            of_agent(
                "PATCH",
                f"{_OF_AGENT}/attach/{{block_id}}",
                self.attach,
                "attach_agent_block",
                "Give a memory block to an agent",
                errors=(403, 404, 409),
            ),
            of_agent(
                "PATCH",
                f"{_OF_AGENT}/detach/{{block_id}}",
                self.detach,
                "detach_agent_block",
                "Take a memory block from an agent",
                errors=(403, 404),
            ),
            get(_LABELLED, self.labelled, "retrieve_agent_block", "Retrieve an agent's memory block", errors=(404,)),
            patch(_LABELLED, self.update_labelled, "update_agent_block", "Change an agent's block", errors=changes),
        ]

    async def create(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Create a block that no agent has yet."""
        given = await read_json(request, CreateBlock, self._settings, RequestRules(()))
        return shown_block(await self._store.blocks.create(user_of(request), new_block(given)))

    async def index(self, request: web.Request, query: BlocksQuery) -> ResponseBody:
        """List the blocks of the operator's agents and the user's own."""
        user_id = user_of(request)
        return await self._reader.call(paged, query, lambda query: self._page(user_id, query))

    async def retrieve(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Return a block."""
        return await self._reader.call(self._states.block, user_of(request), request.match_info["block_id"])

    async def update(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Change a block, for all agents that have it.  Runs that have begun see the change when they end."""
        return await self._update(request, request.match_info["block_id"])

    async def delete(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Delete a block; runs that have begun keep their copy, and no later ones see it."""
        block_id = request.match_info["block_id"]
        if (place := self._catalog.settings_blocks.get(block_id)) is not None:
            raise HttpError(403, f"block {block_id} of agent {place.agent_id!r} is configured by the operator")
        await self._store.blocks.delete(block_id, user_of(request))
        return Deleted(message=f"Block id={block_id} successfully deleted")

    async def agents(self, request: web.Request, query: AgentsOfBlockQuery) -> ResponseBody:
        """List the agents that have a block."""
        user_id, block_id = user_of(request), request.match_info["block_id"]

        def page(query: AgentsOfBlockQuery) -> list[AgentState]:
            self._states.block(user_id, block_id)
            place = self._catalog.settings_blocks.get(block_id)
            ids = [place.agent_id] if place else self._reader.sync.blocks.agents_of(block_id)
            ids = ids if query.order == "asc" else ids[::-1]
            return list(self._states.agents(user_id, ids[slice_of(ids, query, "Agent with ID")][: query.limit]))

        return await self._reader.call(paged, query, page)

    async def of_agent(self, request: web.Request, query: Page) -> ResponseBody:
        """List an agent's blocks."""
        user_id, agent_id = user_of(request), request.match_info["agent_id"]

        def page(query: Page) -> list[Block]:
            found = self._states.blocks_of(user_id, agent_id)
            blocks = {block.id: block for block in (found if query.order == "asc" else found[::-1])}
            return [blocks[each] for each in [*blocks][slice_of([*blocks], query, "Block with id")][: query.limit]]

        return await self._reader.call(paged, query, page)

    async def labelled(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Return the block of an agent that has a label."""
        return await self._reader.call(self._states.block_of, user_of(request), *_agent_and_label(request))

    async def update_labelled(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Change the block of an agent that has a label, as `update` does."""
        block = await self._reader.call(self._states.block_of, user_of(request), *_agent_and_label(request))
        return await self._update(request, block.id)

    async def attach(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Give a block to an agent; batches that exist already run without it."""
        user_id, agent_id, block_id = self._places(request)
        await self._reader.call(self._states.own_block, user_id, block_id)
        await self._store.blocks.attach(agent_id, user_id, block_id)
        return await self._reader.call(self._states.agent, user_id, agent_id)

    async def detach(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Take a block from an agent, which may not have it; batches that exist already run with it."""
        user_id, agent_id, block_id = self._places(request)
        if not await self._store.blocks.detach(agent_id, user_id, block_id):
            await self._reader.call(self._states.own_block, user_id, block_id)
        return await self._reader.call(self._states.agent, user_id, agent_id)

    def _places(self, request: web.Request) -> tuple[str, str, str]:
        agent_id = request.match_info["agent_id"]
        if agent_id in self._catalog.ids:
            raise HttpError(403, f"agent {agent_id} is configured by the operator, and so are its blocks")
        return user_of(request), agent_id, request.match_info["block_id"]

    async def _update(self, request: web.Request, block_id: str) -> Block:
        user_id = user_of(request)
        given = await read_json(request, UpdateBlock, self._settings, RequestRules(()))
        if (place := self._catalog.settings_blocks.get(block_id)) is not None:
            await self._edit_memory(user_id, place, given)
            return await self._reader.call(self._states.block, user_id, block_id)
        changed = await self._store.blocks.change(block_id, user_id, lambda before: changed_block(before, given))
        return shown_block(changed)

    async def _edit_memory(self, user_id: str, place: SettingsBlock, given: UpdateBlock) -> None:
        """Set the value that a block of an operator's agent has for this user, as the agent's model does."""
        block, agent_id = place.block, place.agent_id
        name = f"block {block.label!r} of agent {agent_id!r}"
        if not self._catalog.is_stateful(agent_id):
            raise HttpError(
                403, f"{name} has the value of the agents file for each request, because it keeps no memory"
            )
        if block.read_only:
            raise HttpError(403, f"{name} is read-only, as the operator has configured it")
        if others := given.model_dump(exclude_none=True).keys() - {"value"}:
            raise HttpError(403, f"{min(others)} of {name} is configured by the operator; only its value can change")
        if given.value is None:
            return
        if (n_given := len(given.value)) > block.limit:
            raise HttpError(422, f"value: it has {n_given:,} characters; the block's limit is {block.limit:,}")
        await self._store.conversations.edit_memory(user_id, agent_id, block.label, given.value)

    def _page(self, user_id: str, query: BlocksQuery) -> list[Block]:
        after, before = (self._cursor(user_id, each) if each else None for each in (query.after, query.before))
        found: list[Block] = []
        n_characters = 0
        for cursor, block, n_agents in self._listed(user_id, query, after, before):
            if is_between(cursor, after, before, query.order) and query.matches(block, n_agents):
                found.append(block)
                n_characters += len(block.value)
            if len(found) == query.limit or n_characters >= _PAGE_CHARACTERS:
                break
        return found

    def _cursor(self, user_id: str, block_id: str) -> Cursor:
        """Return the place of a block in the list: the operator's come first, then the user's own."""
        if block_id in self._catalog.settings_blocks:
            return Cursor(0, list(self._catalog.settings_blocks).index(block_id))
        position = self._reader.sync.blocks.position(block_id, user_id)
        if position is None:
            raise HttpError(400, f"Block with id {block_id} not found")
        return Cursor(1, position)

    def _listed(
        self, user_id: str, query: BlocksQuery, after: Cursor | None, before: Cursor | None
    ) -> Iterator[tuple[Cursor, Block, int]]:
        def own() -> Iterable[tuple[Cursor, Block, int]]:
            ends = [cursor.ordinal if cursor is not None and cursor.seq else None for cursor in (after, before)]
            for each in self._reader.sync.blocks.listed(user_id, query.order, *ends):
                yield Cursor(1, each.position), shown_block(each.block), each.n_agents

        operators = ((Cursor(0, n), block_id) for n, block_id in enumerate(self._catalog.settings_blocks))
        shown = [(cursor, self._states.block(user_id, block_id), 1) for cursor, block_id in operators]
        if query.order == "asc":
            yield from shown
            yield from own()
            return
        if after is None or after.seq:
            yield from own()
        yield from reversed(shown)


def _agent_and_label(request: web.Request) -> tuple[str, str]:
    return request.match_info["agent_id"], request.match_info["block_label"].removesuffix("/")
