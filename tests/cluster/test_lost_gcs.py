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
leaving = threading.Thread(target=connection.disconnect, daemon=True)  # which Ray may never end
leaving.start()
leaving.join(30)
print("left", flush=True)
time.sleep(75)  # Ray's own limit is 60 s
print("alive", flush=True)
os._exit(0)
"""

# With this mode Ray reads its variables when it is imported.  A process inherits it from one that started a cluster.
TOKEN = {"RAY_AUTH_MODE": "token"}


def test_ray_reads_variables_that_are_set_after_its_import() -> None:
    script = """
import os
import ray
from batchray.executors.ray import internals
os.environ["RAY_health_check_period_ms"] = "1234"
internals.reread_variables()
print(ray._raylet.Config.health_check_period_ms())
"""
    env = {**os.environ, **TOKEN}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=env)
    assert done.stdout == "1234\n"


@pytest.mark.full
def test_a_process_outlives_a_call_to_a_gcs_that_has_died(ray_session: None) -> None:
    outside = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env = {**outside, "RAY_TMPDIR": os.environ["RAY_TMPDIR"], **TOKEN}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=170, env=env)
    assert (done.returncode, done.stdout) == (0, "left\nalive\n"), done.stderr
