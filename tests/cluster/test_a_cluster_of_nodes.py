"""A cluster of several nodes that batchray joins and does not own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_lanes_follow_the_nodes_of_a_cluster_and_no_request_pays_for_it(ray_session: None, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.cluster.nodes_script", str(tmp_path / "data")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)

    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout.splitlines()[-1])
    assert report["first"].keys() == {"one", "two"}  # the head has no CPUs
    assert report["first"]["two"] > 1.3 * report["first"]["one"]  # it has twice as many
    assert report["joined"].keys() == {"one", "two", "three"}
    assert report["drained"].keys() == {"one", "three"}
    assert report["status"] == "completed"
    assert report["indices"] == list(range(800))
    assert report["attempts"] == 1  # neither the drained node nor the lost one cost a request an attempt
    assert report["nodes_left"] == 2
    # Another driver uses the same nodes at the same time.
    assert {*report["second"]["nodes"]} <= {"one", "two", "three"}
    assert (report["second"]["n"], report["attempts_of_second"]) == (20, 1)
