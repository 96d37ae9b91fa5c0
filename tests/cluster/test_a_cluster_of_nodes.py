"""A cluster of two nodes that batchray joins and does not own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_lanes_spread_over_nodes_and_a_lost_node_costs_only_its_attempts(ray_session: None, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.cluster.nodes_script", str(tmp_path / "data")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)

    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout.splitlines()[-1])
    assert report["status"] == "completed"
    assert report["indices"] == list(range(300))
    assert report["nodes"] == 2
    assert report["attempts"] == 2
    assert report["nodes_left"] == 1
