"""A process that was forked from one that has called users' code."""

from __future__ import annotations

import subprocess
import sys

FORK = """
import os, threading, time
from batchray.support.threads import SpareThreads

threads, called = SpareThreads(), threading.Event()
threads.start(called.set, "first")
while not threads._spare:
    time.sleep(0.001)
if os.fork() == 0:
    again = threading.Event()
    threads.start(again.set, "second")
    os._exit(0 if again.wait(30) else 1)
print("exit status", os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_a_forked_process_calls_code_in_threads_of_its_own() -> None:
    ran = subprocess.run([sys.executable, "-c", FORK], check=False, capture_output=True, text=True)
    assert ran.stdout == "exit status 0\n", ran.stderr
