"""The limits of one request in tokens and money."""

from __future__ import annotations

from batchray.config import Agent
from batchray.errors import LimitReachedError
from batchray.schema import Usage


def check_budget(agent: Agent, usage: Usage) -> None:
    """Raise LimitReachedError if the agent's limits allow no further step."""
    if agent.max_total_tokens is not None and usage.total_tokens >= agent.max_total_tokens:
        reason = f"{usage.total_tokens:,} tokens are used of max_total_tokens {agent.max_total_tokens:,}"
        raise LimitReachedError("max_total_tokens_reached", reason)
    if agent.max_cost_usd is not None and agent.prices is not None:
        cost = agent.prices.cost_usd(usage)
        if cost >= agent.max_cost_usd:
            reason = f"{cost:.6f} US dollars are spent of max_cost_usd {agent.max_cost_usd:g}"
            raise LimitReachedError("max_cost_usd_reached", reason)
