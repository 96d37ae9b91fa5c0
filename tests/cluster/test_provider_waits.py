"""Lanes tell their driver which providers hold calls back, and all requests of a refused key pause the job."""

from __future__ import annotations

from typing import Any

import pytest

import batchray
from batchray import Agent
from batchray.errors import JobPausedError
from tests.polling import until
from tests.provider_server import run_in_thread

AGENT = Agent(id="a", model="local/m", deadline_s=1)


def test_an_outage_is_seen_by_the_driver_and_loses_no_request(options: dict[str, Any]) -> None:
    options.pop("progress")
    with run_in_thread() as gone:
        providers = {"local": {"protocol": "openai", "base_url": gone.base_url}}
    requests = [{"agent_id": "a", "input": f"text {n}"} for n in range(200)]
    job = batchray.submit(requests, [AGENT], providers=providers, max_in_flight=16, **options)
    until(lambda: any(wait["n_waiting"] == 16 and wait["since_s"] > 1.2 for wait in job.waits))  # beyond its deadline
    [wait] = job.waits
    assert (wait["provider"], wait["kind"], wait["is_shut"], job.in_flight) == ("local", "unavailable", True, 16)
    with run_in_thread(port=gone.port) as server:
        assert job.wait(60).counts["succeeded"] == 200
        assert server.n_calls == 200


def test_a_refused_key_pauses_the_job_after_few_calls(options: dict[str, Any]) -> None:
    with run_in_thread() as server:
        server.always = "[[status:401]]"
        providers = {"local": {"protocol": "openai", "base_url": server.base_url}}
        requests = [{"agent_id": "a", "input": f"text {n}"} for n in range(300)]
        with pytest.raises(JobPausedError) as raised:
            batchray.run(requests, [AGENT], providers=providers, max_consecutive_failures=5, **options)
        assert server.n_calls <= 64
        server.always = ""
        assert batchray.attach(raised.value.job_id, options["data_dir"]).status == "paused"
        job = batchray.resume(raised.value.job_id, **options)
        assert job.counts["succeeded"] == 300
