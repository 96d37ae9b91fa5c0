"""Where requests run: on a Ray cluster, or in this process.

Only this package imports ray, and only its modules that need it do: importing the package itself does not.
"""

from batchray.executors.base import AttemptSpec, ControlChannel, Executor, ManagedExecutor
from batchray.executors.local import LocalExecutor

__all__ = ["AttemptSpec", "ControlChannel", "Executor", "LocalExecutor", "ManagedExecutor"]
