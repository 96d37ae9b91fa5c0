"""Agents and tools that the cluster's tests name; importable by the lanes."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

from batchray import AgentRequest


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


async def wait(request: AgentRequest) -> str:
    await asyncio.sleep(float(text_of(request)))
    return "waited"


def fail(expression: str) -> str:
    """A tool that always raises."""
    raise ValueError(f"cannot work with {expression}")


def drop(key: str) -> str:
    """Drop what has this key."""
    return f"{key} is gone, says {os.getpid()}"


async def begin_and_wait(request: AgentRequest) -> str:
    """Make a file that says that it has begun, and wait for long."""
    Path(text_of(request)).touch()
    await asyncio.sleep(60)
    return "waited"
