"""Finds out that a cluster is gone.

Ray itself does not tell: with its raylet dead the driver stays up while every call fails, and 60 s after the GCS has
died it ends the driver's process.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import Mapping
from typing import Any

import ray
from ray._private import worker as ray_worker

_POLL_S = 1.0
_REACH_S = 3.0
# A cluster that is not ours may be restarting its GCS, and a network may hiccup; processes of our own never come back.
_PATIENCE_S = 10.0

Address = tuple[str, int]


class ClusterMonitor:
    """Watches what a driver depends on.

    `processes` are those of a cluster of our own, by name: a look at them costs microseconds.  `addresses` are where
    the parts of somebody else's cluster listen, by name.
    """

    def __init__(
        self, processes: Mapping[str, subprocess.Popen[Any]], addresses: Mapping[str, Address], beat_s: float = _POLL_S
    ) -> None:
        self._processes, self._addresses, self._beat_s = processes, addresses, beat_s

    async def wait_until_lost(self, patience_s: float = _PATIENCE_S) -> str:
        """Return when the cluster is gone, and in words why."""
        loop = asyncio.get_running_loop()
        seen = dict.fromkeys(self._addresses, loop.time())
        while True:
            await asyncio.sleep(self._beat_s)
            for name, process in self._processes.items():
                if process.poll() is not None:
                    return f"its {name} has died"
            for name, address in self._addresses.items():
                if await _is_reachable(*address):
                    seen[name] = loop.time()
                elif loop.time() - seen[name] > patience_s:
                    return f"its {name} at {address[0]}:{address[1]} has not answered for {patience_s:g} s"


def monitor_of_cluster() -> ClusterMonitor:
    """Return the pulse of the cluster that this process is connected to."""
    node: Any = ray_worker._global_node
    if node is None:  # Ray Client, which notices by itself
        return ClusterMonitor({}, {})
    known = {"gcs_server": "GCS", "raylet": "raylet"}
    ours = {known[name]: infos[0].process for name, infos in node.all_processes.items() if name in known and infos}
    return ClusterMonitor(ours, {} if ours else {"GCS": _address(node.gcs_address), **_raylet()})


def _raylet() -> dict[str, Address]:
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
    with contextlib.suppress(OSError):  # it answered, which is all that counts
        await writer.wait_closed()
    return True
