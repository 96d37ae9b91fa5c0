"""Agents as Letta's clients see and describe them."""

from __future__ import annotations

from batchray.config import Agent, bind_agents
from batchray.server.agent_catalog import AgentCatalog, KeptState
from batchray.server.block_shapes import shown_settings_blocks


def test_the_state_of_an_operators_agent_is_that_of_its_settings() -> None:
    block = {"label": "human", "value": "at first"}
    agents = bind_agents(
        [
            Agent(id="clerk", model="offline/rules", system="Be brief.", stateful=True, memory_blocks=(block,)),
            Agent(id="plain", model="offline/rules", temperature=0.5, max_tokens=9),
        ]
    )
    catalog = AgentCatalog(agents)
    blocks = shown_settings_blocks(agents.agents["clerk"].agent, {"human": "edited"})
    clerk = catalog.configured_state("clerk", KeptState(blocks, ["message-1"]))
    assert (clerk.message_buffer_autoclear, clerk.message_ids, clerk.system) == (False, ["message-1"], "Be brief.")
    assert [shown.value for shown in clerk.memory.blocks] == ["edited"]
    plain = catalog.configured_state("plain", KeptState())
    assert (plain.message_buffer_autoclear, plain.message_ids) == (True, [])
    assert (plain.llm_config.temperature, plain.llm_config.max_tokens) == (0.5, 9)
