"""An agent whose code crashes the worker that imports it, as a broken native library may."""

from __future__ import annotations

import os

import ray

from batchray import AgentRequest

if ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.WORKER_MODE:
    os._exit(3)


def answer(request: AgentRequest) -> str:
    return "imported"
