"""The death of a GCS ends the work of a process, and not the process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# A call that is on its way to the GCS when it dies, and is never answered.
SCRIPT = """
import os, signal, sys, threading, time
import ray
from batchray.config import load_settings
from batchray.executors.ray import connection
from batchray.executors.ray.internals import own_processes

given, wait_s = sys.argv[1], float(sys.argv[2])
if given:
    os.environ["RAY_gcs_rpc_server_reconnect_timeout_s"] = given
connection.connect(load_settings(executor="ray"))
ray.nodes()
gcs = own_processes()["GCS"]
gcs.send_signal(signal.SIGSTOP)  # it takes calls, and answers none
asking = threading.Thread(target=ray.nodes, daemon=True)
asking.start()
while not sys._current_frames()[asking.ident].f_code.co_filename.endswith("ray/_private/state.py"):
    time.sleep(0.01)
time.sleep(0.5)
gcs.kill()
gcs.wait()
connection.disconnect()
print("disconnected", flush=True)
time.sleep(wait_s)
print("alive", flush=True)
os._exit(0)
"""


# With this mode Ray reads its variables when it is imported.  A process inherits it from one that started a cluster.
MODES = pytest.mark.parametrize("mode", [{}, {"RAY_AUTH_MODE": "token"}], ids=["unset", "token"])


def run(given: str, wait_s: float, mode: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT, given, str(wait_s)]
    outside = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env = {**outside, "RAY_TMPDIR": os.environ["RAY_TMPDIR"], **mode}
    return subprocess.run(command, capture_output=True, text=True, timeout=170, env=env)


@MODES
def test_ray_would_end_the_process_after_the_time_that_is_set(ray_session: None, mode: dict[str, str]) -> None:
    done = run("1", 60, mode)
    assert (done.returncode, "alive" in done.stdout) == (1, False)
    assert "Failed to connect to GCS within 1 seconds" in done.stderr


@pytest.mark.full
def test_a_process_outlives_a_call_to_a_gcs_that_has_died(ray_session: None) -> None:
    done = run("", 75, {"RAY_AUTH_MODE": "token"})  # Ray's own time is 60 s
    assert (done.returncode, done.stdout) == (0, "disconnected\nalive\n"), done.stderr
