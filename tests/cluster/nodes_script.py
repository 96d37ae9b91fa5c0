"""Runs a job while nodes join, drain and die, next to a second driver; test_a_cluster_of_nodes.py starts it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import ray
from ray import _raylet
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

import batchray
from batchray import Agent, AgentRequest
from batchray.jobs.handle import Job
from tests.polling import until

N = 800


async def where(request: AgentRequest) -> str:
    """Answer with the node that ran it, after half a second as long as the file in the input does not exist."""
    if not Path(str(request.input)).exists():
        await asyncio.sleep(0.5)  # long enough that some requests are in flight on the node that is lost
    return str(ray.get_runtime_context().get_node_id())


def second_driver(data_dir: Path, address: str, flag: str) -> None:
    """Run another job on the same cluster at the same time."""
    requests = [{"agent_id": "where", "input": flag} for _ in range(20)]
    options: dict[str, Any] = {"data_dir": data_dir, "ray_address": address, "lanes": 1, "progress": False}
    job = batchray.run(requests, [Agent(id="where", run=where)], **options)
    print(json.dumps([[result.text, result.attempts] for result in job.results()]))


def newest(job: Job, n: int) -> Counter[str]:
    """Return on which nodes the next `n` requests to finish run."""
    after = job.progress_now().done
    until(lambda: job.progress_now().done >= after + n)
    return Counter(str(result.text) for result in list(job.results(wait=False))[after:])


def drain(address: str, node_id: str) -> None:
    """Do what `ray drain-node` does, and the autoscaler before it ends a node."""
    raylet: Any = _raylet
    reasons: Any = autoscaler_pb2
    deadline_ms = int((time.time() + 600) * 1000)
    client, reason = raylet.GcsClient(address=address), reasons.DRAIN_NODE_REASON_PREEMPTION
    client.drain_node(node_id, reason, "it is preempted", deadline_ms)


def main(data_dir: Path) -> None:
    """Run the job and print a report: on which nodes requests ran after each change of the cluster."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    one = cluster.add_node(num_cpus=1)
    two = cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    head: Any = cluster.head_node
    names = {head.node_id: "head", one.node_id: "one", two.node_id: "two"}
    flag = data_dir.parent / "fast"
    report: dict[str, Any] = {}

    def named(counts: Counter[str]) -> dict[str, int]:
        return {names[node_id]: n for node_id, n in counts.items()}

    try:
        requests = [{"agent_id": "where", "input": str(flag)} for _ in range(N)]
        options: dict[str, Any] = {"data_dir": data_dir, "max_in_flight": 9, "ray_address": cluster.address}
        job = batchray.submit(requests, [Agent(id="where", run=where)], **options)
        report["first"] = named(newest(job, 36))

        command = [sys.executable, "-m", "tests.cluster.nodes_script", f"{data_dir}2", cluster.address, __file__]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as second:
            three = cluster.add_node(num_cpus=2)
            names[three.node_id] = "three"
            until(lambda: newest(job, 10)[three.node_id] > 2)  # both of its lanes have started
            report["joined"] = named(newest(job, 36))
            assert second.stdout is not None
            of_second = json.loads(second.stdout.readlines()[-1])
        report["second"] = {"nodes": sorted({names[node_id] for node_id, _ in of_second}), "n": len(of_second)}
        report["attempts_of_second"] = max(n_attempts for _, n_attempts in of_second)

        drain(cluster.address, two.node_id)
        until(lambda: two.node_id not in newest(job, 18))
        cluster.remove_node(two, allow_graceful=False)
        report["drained"] = named(newest(job, 36))
        cluster.remove_node(one, allow_graceful=False)
        until(lambda: one.node_id not in newest(job, 9))
        flag.touch()
        record = job.wait(120)
        results = list(job.results("index"))
        batchray.shutdown()
        # Still there: batchray does not stop a cluster that it did not start.
        ray.init(address=cluster.address, log_to_driver=False)
        report |= {
            "status": record.status,
            "indices": [result.index for result in results],
            "attempts": max(result.attempts for result in results),
            "nodes_left": sum(node["Alive"] for node in ray.nodes()),  # type: ignore[no-untyped-call]
        }
        print(json.dumps(report))
    finally:
        batchray.shutdown()
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    if len(sys.argv) > 2:
        second_driver(Path(sys.argv[1]), *sys.argv[2:])
    else:
        main(Path(sys.argv[1]))
