"""Handles of jobs in a store that another process writes to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

import batchray
from batchray import Agent
from batchray.errors import ConfigError, StoreLockedError
from batchray.store import Store
from tests.builders.commands import AGENTS, command, local
from tests.builders.jobs import echo, fail, new_job
from tests.polling import until
from tests.postgres import Database


def ended_job(data_dir: Path, agent: Agent) -> str:
    job = batchray.run(
        [{"agent_id": agent.id, "input": "x"}], [agent], data_dir=data_dir, executor="local", progress=False
    )
    job_id = job.id
    batchray.shutdown()
    return job_id


def test_a_retry_needs_the_lock_only_if_there_is_something_to_run(tmp_path: Path) -> None:
    good, bad = ended_job(tmp_path, Agent(id="e", run=echo)), ended_job(tmp_path, Agent(id="f", run=fail))
    with Store.open(tmp_path) as store:
        unended = new_job(store, "e")
        assert batchray.submit_retry(good, data_dir=tmp_path).status == "completed"
        with pytest.raises(ConfigError, match="has not ended; `batchray resume` continues it"):
            batchray.submit_retry(unended, data_dir=tmp_path)
        with pytest.raises(StoreLockedError):
            batchray.submit_retry(bad, data_dir=tmp_path)


def test_a_handle_holds_no_connection_to_postgresql_between_reads(database: Database, tmp_path: Path) -> None:
    url = database.new_url()
    with Store.open(tmp_path, url) as store:
        jobs = [batchray.attach(new_job(store, "e"), tmp_path, url) for _ in range(5)]
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")  # or it would see one snapshot
    with engine.connect() as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        assert [job.status for job in jobs] == ["created"] * 5
        until(lambda: connection.exec_driver_sql(query).scalar() == 1)  # this one; a backend ends after its client
    engine.dispose()


def test_a_second_run_waits_until_the_first_has_released_the_directory(tmp_path: Path) -> None:
    (tmp_path / "agents.yaml").write_text(AGENTS)
    (tmp_path / "requests.jsonl").write_text('{"agent_id": "a", "input": "x"}\n')
    arguments = local("requests.jsonl", "--quiet")
    holder = f"process {os.getpid()} is writing to {tmp_path / '.batchray'}"
    with Store.open(tmp_path / ".batchray"):
        refused = command(tmp_path, *arguments, "--no-wait")
        waiting = subprocess.Popen(
            [sys.executable, "-m", "batchray", *arguments], cwd=tmp_path, stderr=subprocess.PIPE, text=True
        )
        assert waiting.stderr is not None
        said = waiting.stderr.readline()
    _, err = waiting.communicate(timeout=60)
    assert (waiting.returncode, err) == (0, "")
    assert (refused.status, f"{holder}; wait until it ends" in refused.err) == (2, True)
    assert said == f"batchray: {holder}; this command starts when it has ended\n"
    assert [job.status for job in batchray.jobs(tmp_path / ".batchray")] == ["completed"]
