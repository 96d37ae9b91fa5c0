"""Agents and tools that end the process that they run in."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal

from batchray import AgentRequest
from tests.cluster.agents import text_of


def die(how: str) -> str:
    """End this process in the given way; also a tool."""
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "crash":
        faulthandler._sigsegv()  # type: ignore[attr-defined]  # reads from address 0
    elif how == "exit":
        os._exit(3)
    elif how == "allocate":
        hoard: list[bytes] = []
        while True:
            hoard.append(b"x" * (50 << 20))
    return "alive"


async def die_async(how: str) -> str:
    """End this process from its event loop; also a tool."""
    await asyncio.sleep(0)
    return die(how)


def sync_agent(request: AgentRequest) -> str:
    return die(text_of(request))


async def async_agent(request: AgentRequest) -> str:
    return await die_async(text_of(request))
