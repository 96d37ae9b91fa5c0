"""Token authentication: a cluster with a token is joined, or one sentence says what to set.

`find_job` from a process of its own stands for all that joins a cluster: it raises UnknownJobError once it has joined.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import ray

from tests.cluster.processes import run_cli
from tests.polling import until

TOKEN, WRONG_TOKEN = "ab" * 32, "cd" * 32
HAS_DEFAULT = tuple(map(int, ray.__version__.split(".")[:2])) >= (2, 59)
"""Whether `ray.init` turns token authentication on by itself: for a new cluster, and for `auto` if there is a token."""
FIND_JOB = """
import sys, batchray
try:
    batchray.find_job("job-1", sys.argv[1], wait_s=0)
except batchray.BatchrayError as error:
    print(type(error).__name__, error)
"""


class TokenCluster(NamedTuple):
    """A cluster of another user on this machine, which asks for a token."""

    address: str
    directory: Path

    def find_job(self, address: str, token: str | None, mode: str | None) -> str:
        """Join the cluster from another process, whose home directory holds this token; return what it prints."""
        with tempfile.TemporaryDirectory() as home:
            if token is not None:
                (Path(home) / ".ray").mkdir()
                (Path(home) / ".ray" / "auth_token").write_text(token)
            variables = environment(Path(home), mode, self.directory)
            command = [sys.executable, "-c", FIND_JOB, address]
            done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
        assert done.stderr == ""
        return done.stdout.strip()


def environment(home: Path, mode: str | None, ray_directory: Path) -> dict[str, str]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    variables |= {"HOME": str(home), "RAY_TMPDIR": str(ray_directory), "PYTHONPATH": str(Path(__file__).parents[2])}
    return variables if mode is None else {**variables, "RAY_AUTH_MODE": mode}


@pytest.fixture(scope="module")
def cluster() -> Iterator[TokenCluster]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="br", ignore_cleanup_errors=True) as directory:
        variables = environment(Path(directory), "token", Path(directory))
        variables |= {"RAY_AUTH_TOKEN": TOKEN, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
        command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}"]
        command += ["--node-ip-address=127.0.0.1", "--include-dashboard=false", "--num-cpus=1", "--disable-usage-stats"]
        with open(Path(directory) / "log", "w+") as log:
            head = subprocess.Popen(command, env=variables, stdout=log, stderr=subprocess.STDOUT)
            try:
                until(lambda: "Ray runtime started" in Path(log.name).read_text() or head.poll() is not None)
                assert head.poll() is None, Path(log.name).read_text()
                yield TokenCluster(f"127.0.0.1:{port}", Path(directory))
            finally:
                head.terminate()
                head.wait(30)


JOINED = "UnknownJobError"
NO_MODE = "asks for an authentication token; set RAY_AUTH_MODE=token before Python starts"
REJECTED = "it rejects the authentication token in /"


@pytest.mark.parametrize(
    ("token", "mode", "printed"),
    [
        (TOKEN, "token", JOINED),
        (TOKEN, None, f"{NO_MODE}; the token in /"),
        (WRONG_TOKEN, "token", REJECTED),
        (
            None,
            "token",
            "there is no authentication token; put the cluster's in ~/.ray/auth_token, or in RAY_AUTH_TOKEN",
        ),
        (None, None, f"{NO_MODE}, and RAY_AUTH_TOKEN to the cluster's token"),
    ],
)
def test_a_cluster_at_an_address_is_joined_or_refused_by_its_token(
    cluster: TokenCluster, token: str | None, mode: str | None, printed: str
) -> None:
    said = cluster.find_job(cluster.address, token, mode)
    assert printed in said
    assert printed == JOINED or said.startswith(f"ClusterError cannot use the cluster at {cluster.address}: ")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("token", "printed"),
    [
        (TOKEN, JOINED if HAS_DEFAULT else NO_MODE),
        (WRONG_TOKEN, REJECTED if HAS_DEFAULT else NO_MODE),
        (None, NO_MODE),
    ],
)
def test_the_cluster_of_this_machine_is_joined_or_refused_by_its_token(
    cluster: TokenCluster, token: str | None, printed: str
) -> None:
    said = cluster.find_job("auto", token, None)
    assert printed in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("token", [None, TOKEN])
def test_a_new_cluster_needs_a_token_or_a_home_directory_that_can_be_written(token: str | None, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "agents.json").write_text('{"agents": [{"id": "echo", "model": "offline/rules"}]}')
    (tmp_path / "requests.jsonl").write_text('{"agent_id": "echo", "input": "2 + 2"}\n')
    with tempfile.TemporaryDirectory(prefix="br", ignore_cleanup_errors=True) as ray_directory:
        variables = {**environment(tmp_path / "file", None, Path(ray_directory)), "RAY_AUTH_TOKEN": token or ""}
        arguments = ["requests.jsonl", "--agents", "agents.json", "--lanes", "1", "--output", "out.jsonl", "--quiet"]
        with run_cli("run", *arguments, cwd=tmp_path, environment=variables) as driver:
            _, err = driver.communicate(timeout=120)
    if HAS_DEFAULT and token is None:
        assert driver.returncode == 1
        assert "cannot use a local cluster: Ray cannot save its authentication token" in err
        assert "make the home directory writable, or set RAY_AUTH_TOKEN to a secret of your own" in err
    else:
        assert (driver.returncode, err) == (0, "")
