"""A job of a server that pauses itself: its reason over HTTP, and how it continues."""

from __future__ import annotations

import json
from pathlib import Path

from tests.provider_server import run_in_thread
from tests.server.http_client import BATCHES, call, create, ended, job_when
from tests.server.live import live_server


def test_a_job_that_pauses_itself_says_why_and_continues_when_it_is_unpaused(tmp_path: Path) -> None:
    agents = tmp_path / "agents.json"
    with run_in_thread() as provider:
        provider.always = "[[status:401]]"
        models = [{"id": "a", "model": "p/m"}, {"id": "o", "model": "offline/rules"}]
        providers = {"p": {"protocol": "openai", "base_url": provider.base_url}}
        agents.write_text(json.dumps({"providers": providers, "agents": models}))
        with live_server(tmp_path / "data", agents=agents, BATCHRAY_MAX_CONSECUTIVE_FAILURES="4") as server:
            job_id = create(server, [{"agent_id": "a", "input": f"text {n}"} for n in range(50)])["id"]
            job = job_when(server, job_id, lambda job: "paused_because" in job["metadata"])
            assert job["metadata"]["paused_because"].startswith("4 requests in a row failed alike: p: status 401")
            assert (job["status"], job["metadata"]["request_counts"]["pending"]) == ("running", 50)
            other = create(server, [{"agent_id": "o", "input": "x"}])["id"]
            assert ended(server, other)["status"] == "completed"
            provider.always = ""
            assert call(server, "POST", f"{BATCHES}/{job_id}/unpause").status == 200
            job = ended(server, job_id)
            assert (job["metadata"]["request_counts"]["succeeded"], "paused_because" in job["metadata"]) == (50, False)
            assert call(server, "POST", f"{BATCHES}/{job_id}/unpause").status == 409
