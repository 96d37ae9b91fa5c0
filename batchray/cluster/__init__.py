"""Where requests run: on a Ray cluster, or in this process.

Only this package imports ray, and only its modules that need it do: importing the package itself does not.
"""

from batchray.cluster.executor import Executor, Host, Link, LocalExecutor, Order

__all__ = ["Executor", "Host", "Link", "LocalExecutor", "Order"]
