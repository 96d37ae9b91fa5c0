"""Starts a Ray cluster as another program would, prints its address, and ends when standard input ends."""

from __future__ import annotations

import sys

import ray

from batchray.config import load_settings
from batchray.executors.ray.connection import connect


def main() -> None:
    connect(load_settings(num_cpus=2))
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
