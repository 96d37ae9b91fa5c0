"""The limits of one request in tokens and money."""

from __future__ import annotations

from batchray.config import Agent, Prices
from batchray.errors import LimitReachedError
from batchray.schema import Usage


def cost_usd(usage: Usage, prices: Prices) -> float:
    """Return the price of these tokens in US dollars."""
    cached = prices.input if prices.cached_input is None else prices.cached_input
    written = prices.input if prices.cache_write is None else prices.cache_write
    uncached = usage.prompt_tokens - usage.cached_input_tokens - usage.cache_write_tokens
    of_prompt = uncached * prices.input + usage.cached_input_tokens * cached + usage.cache_write_tokens * written
    return (of_prompt + usage.completion_tokens * prices.output) / 1e6


def check_budget(agent: Agent, usage: Usage) -> None:
    """Raise LimitReachedError if the agent's limits allow no further step."""
    if agent.max_total_tokens is not None and usage.total_tokens >= agent.max_total_tokens:
        reason = f"{usage.total_tokens:,} tokens are used of max_total_tokens {agent.max_total_tokens:,}"
        raise LimitReachedError("max_total_tokens_reached", reason)
    if agent.max_cost_usd is not None and agent.prices is not None:
        cost = cost_usd(usage, agent.prices)
        if cost >= agent.max_cost_usd:
            reason = f"{cost:.6f} US dollars are spent of max_cost_usd {agent.max_cost_usd:g}"
            raise LimitReachedError("max_cost_usd_reached", reason)
