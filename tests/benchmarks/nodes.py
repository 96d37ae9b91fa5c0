"""Four nodes against one: how requests of an agent that computes are divided, and what they cost the driver.

The nodes are simulated on this machine, each with one CPU, so four of them are no faster here than its cores allow.
What is compared is CPU time: with a core for each node and one for the driver, a job takes as long as the busiest of
them computes.  Limits: four nodes are 3.6 times as fast as one, and a request costs the driver at most half more.

It also measures the ceiling of one driver: CPU per request with a model that answers at once.
"""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
import ray
from ray.cluster_utils import Cluster

import batchray
from batchray import Agent, AgentRequest
from tests.benchmarks.harness import TreeCpu, data_dir, report, requests

N = 600
N_EMPTY = 4000
WINDOW = 32
COMPUTE_S = 0.03


def compute(request: AgentRequest) -> str:
    """Use 30 ms of CPU, and answer with the node and the process that did."""
    end = time.thread_time() + COMPUTE_S
    while time.thread_time() < end:
        pass
    return f"{ray.get_runtime_context().get_node_id()} {os.getpid()}"


class Measured(NamedTuple):
    """CPU seconds of the driver and of the lanes of each node, and the number of requests of each node."""

    driver_s: float
    node_s: dict[str, float]
    n_requests: Counter[str]

    @property
    def busiest_s(self) -> float:
        """How long the job takes if each node and the driver have a core."""
        return max(self.driver_s, *self.node_s.values())


@contextmanager
def cluster(n_nodes: int) -> Iterator[str]:
    """Start a cluster of nodes with one CPU each, behind a head without any; yield its address."""
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(n_nodes):
            started.add_node(num_cpus=1)
        started.wait_for_nodes()
        yield started.address
    finally:
        batchray.shutdown()
        started.shutdown()  # type: ignore[no-untyped-call]


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _run(n: int, agent: Agent, directory: Path, address: str, window: int = WINDOW) -> list[str]:
    options = {"data_dir": directory, "progress": False}
    job = batchray.run(requests(n), [agent], ray_address=address, max_in_flight=window, **options)  # type: ignore[arg-type]
    assert job.counts["succeeded"] == n, job.counts
    return [str(result.text) for result in job.results()]


def divided(directory: Path, address: str) -> Measured:
    """Run requests that compute, after some that start everything."""
    agent = Agent(id="a", run=compute)
    before = {int(text.split()[1]): 0.0 for text in _run(120, agent, directory, address)}
    before = {pid: _cpu_s(pid) for pid in before}
    cpu = TreeCpu()
    places = [text.split() for text in _run(N, agent, directory, address)]
    driver_s = cpu.spent()["driver"]
    node_s: defaultdict[str, float] = defaultdict(float)
    for node_id, pid in {(node_id, int(pid)) for node_id, pid in places}:
        node_s[node_id] += _cpu_s(pid) - before.get(pid, 0.0)
    return Measured(driver_s, dict(node_s), Counter(node_id for node_id, _ in places))


def ceiling(directory: Path, address: str) -> tuple[float, float]:
    """Return the driver's CPU milliseconds per request of a model that answers at once, and requests per second."""
    agent = Agent(id="a", model="offline/rules")
    _run(200, agent, directory, address, window=256)
    cpu, started = TreeCpu(), time.monotonic()
    _run(N_EMPTY, agent, directory, address, window=256)
    return cpu.spent()["driver"] / N_EMPTY * 1e3, N_EMPTY / (time.monotonic() - started)


def main() -> None:
    """Measure and print."""
    with data_dir() as directory:
        with cluster(1) as address:
            one = divided(directory, address)
        with cluster(4) as address:
            four = divided(directory, address)
            driver_ms, per_s = ceiling(directory, address)
    shares = ", ".join(str(n) for n in sorted(four.n_requests.values(), reverse=True))
    faster = one.busiest_s / four.busiest_s
    costs = [measured.driver_s / N * 1e3 for measured in (one, four)]
    report(
        [
            f"{N} requests of {COMPUTE_S * 1e3:.0f} ms of CPU, by node: {shares} of 4 nodes",
            f"the busiest node        {one.busiest_s:.2f} s of CPU with 1 node, {four.busiest_s:.2f} s with 4",
            f"driver                  {costs[0]:.2f} ms of CPU a request with 1 node, {costs[1]:.2f} ms with 4",
            f"a model without latency {driver_ms:.2f} ms of the driver a request, {1e3 / driver_ms:.0f} requests/s of "
            f"a core; {per_s:.0f}/s here, with all processes on {os.cpu_count()} cores",
            f"with a core each, 4 nodes are {faster:.2f} times as fast as 1 (limit 3.6)",
        ],
        is_held=faster >= 3.6 and costs[1] <= 1.5 * costs[0],
    )


if __name__ == "__main__":
    main()
