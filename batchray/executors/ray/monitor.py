"""Notices that a cluster is gone.

Ray itself does not report it: if its raylet is dead, the driver stays up while every call fails.  60 s after the GCS
has died Ray would end the driver's process, if `connection` did not prevent it.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import Mapping
from typing import Any

import ray
from ray.util.client import ray as ray_client

from batchray.executors.ray.internals import own_processes

_POLL_S = 1.0
_REACH_S = 3.0
# A cluster that this process did not start may be restarting its GCS, and a network may fail for a moment.  Processes
# of our own never come back.
_MAX_UNREACHABLE_S = 10.0

Address = tuple[str, int]


class ClusterMonitor:
    """Watches what a driver depends on.

    `processes` are those of a cluster that this driver started, by name; a check of them costs microseconds.
    `addresses` are where the parts of any other cluster listen, by name.
    """

    def __init__(
        self, processes: Mapping[str, subprocess.Popen[Any]], addresses: Mapping[str, Address], poll_s: float = _POLL_S
    ) -> None:
        self._processes, self._addresses, self._poll_s = processes, addresses, poll_s

    async def wait_until_lost(self, max_unreachable_s: float = _MAX_UNREACHABLE_S) -> str:
        """Wait until the cluster is gone, and return the reason in words."""
        loop = asyncio.get_running_loop()
        seen = dict.fromkeys(self._addresses, loop.time())
        while True:
            await asyncio.sleep(self._poll_s)
            for name, process in self._processes.items():
                if process.poll() is not None:
                    return f"its {name} has died"
            for name, address in self._addresses.items():
                if await _is_reachable(*address):
                    seen[name] = loop.time()
                elif loop.time() - seen[name] > max_unreachable_s:
                    return f"its {name} at {address[0]}:{address[1]} has not answered for {max_unreachable_s:g} s"


def monitor_of_cluster() -> ClusterMonitor:
    """Return a monitor of the cluster that this process is connected to."""
    if ray_client.is_connected():  # type: ignore[no-untyped-call]  # Ray Client notices by itself
        return ClusterMonitor({}, {})
    if processes := own_processes():
        return ClusterMonitor(processes, {})
    return ClusterMonitor({}, {"GCS": _address(ray.get_runtime_context().gcs_address), **_raylet_address()})


def _raylet_address() -> dict[str, Address]:
    """Return where the raylet of this node listens."""
    own_id = ray.get_runtime_context().get_node_id()
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["NodeID"] == own_id:
            return {"raylet": (node["NodeManagerAddress"], node["NodeManagerPort"])}
    return {}


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


async def _is_reachable(host: str, port: int) -> bool:
    try:
        async with asyncio.timeout(_REACH_S):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):  # it answered, and nothing else counts
        await writer.wait_closed()
    return True
