"""An agent whose code takes longer to import in a worker than its request may take."""

from __future__ import annotations

import time

import ray

from batchray import AgentRequest

if ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.WORKER_MODE:
    time.sleep(2.5)


def answer(request: AgentRequest) -> str:
    return "imported"
