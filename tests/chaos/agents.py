"""Agents and tools of the chaos tests; every process imports them by name."""

from __future__ import annotations

import asyncio

from batchray.schema import AgentRequest


async def echo(request: AgentRequest) -> str:
    """Answer with the input, after a moment in which a process may be killed."""
    await asyncio.sleep(0.005)
    return str(request.input)


def add(a: int, b: int) -> int:
    """Add two numbers; a tool."""
    return a + b
