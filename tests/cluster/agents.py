"""Agents, tools and requests of the cluster tests; the lanes import this module."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from batchray import Agent, AgentRequest


def text_of(request: AgentRequest) -> str:
    """Return the request's plain input."""
    assert isinstance(request.input, str)
    return request.input


def echo(request: AgentRequest) -> str:
    return f"echo {text_of(request)}"


def pid(request: AgentRequest) -> int:
    return os.getpid()


def niceness(request: AgentRequest) -> int:
    return os.getpriority(os.PRIO_PROCESS, 0)


def kill_own_process(request: AgentRequest) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def block(request: AgentRequest) -> str:
    time.sleep(float(text_of(request)))
    return "awake"


def meet(request: AgentRequest) -> str:
    """Create a file in a directory, and block until the directory has `n` files."""
    directory, name, n = text_of(request).split()
    Path(directory, name).touch()
    while len(os.listdir(directory)) < int(n):
        time.sleep(0.02)
    return "met"


async def wait(request: AgentRequest) -> str:
    await asyncio.sleep(float(text_of(request)))
    return "waited"


def fail(expression: str) -> str:
    """A tool that always raises."""
    raise ValueError(f"cannot work with {expression}")


def drop(key: str) -> str:
    """A tool that reports a key as dropped, and its process."""
    return f"{key} is gone, says {os.getpid()}"


async def begin_and_wait(request: AgentRequest) -> str:
    """Create a file to show that the request has begun, then wait for a minute."""
    Path(text_of(request)).touch()
    await asyncio.sleep(60)
    return "waited"


async def block_the_loop(request: AgentRequest) -> str:
    """Block the event loop of its lane, as faulty async code does."""
    time.sleep(600)
    return "never"


async def block_until_released(request: AgentRequest) -> str:
    """Block the event loop of its lane until a file exists."""
    while not Path(text_of(request)).exists():
        time.sleep(0.01)
    return "released"


ECHO = Agent(id="echo", run=echo)


def echoes(n: int) -> Iterator[dict[str, Any]]:
    """Yield `n` requests to the agent `echo`."""
    return ({"agent_id": "echo", "input": str(index)} for index in range(n))
