"""Runs a job on two nodes and kills one of them; test_a_cluster_of_nodes.py starts it as a subprocess."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

import batchray
from batchray import Agent, AgentRequest


async def where(request: AgentRequest) -> str:
    """Answer with the node that ran it, after a moment."""
    await asyncio.sleep(0.3)  # long enough that some requests are in flight on the node that is lost
    return str(ray.get_runtime_context().get_node_id())


def main(data_dir: Path) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    try:
        requests = [{"agent_id": "where", "input": "?"} for _ in range(300)]
        agent_list = [Agent(id="where", run=where)]
        job = batchray.submit(requests, agent_list, data_dir=data_dir, max_in_flight=32, ray_address=cluster.address)
        while job.progress_now().done < 60:
            time.sleep(0.05)
        cluster.remove_node(second, allow_graceful=False)
        record = job.wait(120)
        results = list(job.results("index"))
        nodes = {result.text for result in results}
        batchray.shutdown()
        ray.init(
            address=cluster.address, log_to_driver=False
        )  # still there: batchray does not stop an external cluster
        report = {
            "status": record.status,
            "indices": [result.index for result in results],
            "nodes": len(nodes),
            "attempts": max(result.attempts for result in results),
            "nodes_left": sum(node["Alive"] for node in ray.nodes()),  # type: ignore[no-untyped-call]
        }
        print(json.dumps(report))
    finally:
        batchray.shutdown()
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
