"""Agents of the chaos kit; found by name in every process."""

from __future__ import annotations

import asyncio

from batchray.schema import AgentRequest


async def echo(request: AgentRequest) -> str:
    """Answer with the input, after a moment in which something may die."""
    await asyncio.sleep(0.005)
    return str(request.input)


def add(a: int, b: int) -> int:
    """Add two numbers; a tool."""
    return a + b
