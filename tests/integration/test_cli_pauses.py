"""The commands of a job that pauses itself: why it ended, how it continues, and its status meanwhile."""

from __future__ import annotations

import json
from pathlib import Path

from tests.builders.commands import command, local
from tests.provider_server import run_in_thread


def test_a_paused_run_says_why_and_how_it_continues(tmp_path: Path) -> None:
    lines = [json.dumps({"agent_id": "a", "input": f"text {n}"}) for n in range(100)]
    (tmp_path / "requests.jsonl").write_text("\n".join(lines))
    with run_in_thread() as server:
        provider = {"protocol": "openai", "base_url": server.base_url}
        agents = {"providers": {"p": provider}, "agents": [{"id": "a", "model": "p/m"}]}
        (tmp_path / "agents.yaml").write_text(json.dumps(agents))
        server.always = "[[status:401]]"
        done = command(
            tmp_path,
            *local("requests.jsonl", "--data-dir", "jobs", "--output", "out.jsonl", "--quiet"),
            BATCHRAY_MAX_CONSECUTIVE_FAILURES="4",
        )
        job_id = done.out.strip()
        assert (done.status, (tmp_path / "out.jsonl").exists()) == (1, False)
        reason = "4 requests in a row failed alike: p: status 401: asked for status 401"
        assert done.err.splitlines() == [
            f"batchray: job {job_id} is paused: {reason}",
            f"to continue: batchray resume {job_id} --data-dir jobs",
        ]
        status = command(tmp_path, "status", "--data-dir", "jobs").out
        assert (status.split()[1], status.strip().endswith(reason)) == ("paused", True)
        server.always = ""
        resumed = ("resume", job_id, "--data-dir", "jobs", "--executor", "local", "--output", "out.jsonl", "--quiet")
        assert command(tmp_path, *resumed).status == 0
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 100
