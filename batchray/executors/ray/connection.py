"""The one place that starts or joins a Ray cluster."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import ray
import ray.exceptions
from ray._private import ray_constants
from ray._private import worker as ray_worker
from ray._private.node import Node

from batchray.config import Settings
from batchray.errors import ClusterError

logger = logging.getLogger(__name__)

NAMESPACE = "batchray"
# Requests and outcomes travel inside the calls; Ray's default would be 30 % of the memory.
_OBJECT_STORE_BYTES = 128 * 1024 * 1024
# What Ray gathers for a dashboard that a cluster of our own does not have: 5 to 8 % of the CPU of a job.
_LEAN = {
    "event_stats": False,
    "enable_metrics_collection": False,
    "task_events_report_interval_ms": 0,
}
# How long a call that failed waits for news of its actor's death, and how often that is looked at.  We ask the actor
# itself, so Ray's seconds of waiting, for each lost call, would buy nothing.
_IMPATIENT = {"timeout_ms_task_wait_for_death_info": 100, "core_worker_internal_heartbeat_ms": 100}
# Ray runs its workers at a niceness of 15, so that they leave room for Ray itself.  A lane mostly waits; but when many
# answers come at once, the driver would spawn on and on while the lanes hardly got to start what it spawned.
_FAIR = {"worker_niceness": 0}
# What starts them: the autoscaler's monitor, the reader of the workers' logs, and the dashboard's server, which Ray
# starts without a dashboard too.  A cluster of one node with a driver of ours has no use for them.
_UNUSED_SERVICES = ("start_monitor", "start_log_monitor", "start_api_server")
_REACH_S = 10.0
# More than any system's `struct sigaction` takes.
_SIGACTION_BYTES = 256
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def connect(settings: Settings) -> bool:
    """Connect this process to a cluster and tell whether the connection is ours, to be ended with the driver.

    In this order: a connection that the process has; the address in the settings or in RAY_ADDRESS; a local cluster
    of our own.  Raises ClusterError.
    """
    if ray.is_initialized():
        return False
    address = settings.ray_address or os.environ.get("RAY_ADDRESS")
    logging.getLogger("ray").setLevel(logging.ERROR)  # Ray tells of its start before it applies the level below
    _keep_off_stdout()
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "namespace": NAMESPACE}
    try:
        with _signals_kept():
            if address and address != "local":
                _reach(address)
                with _on_loopback() if _host(address) in _LOOPBACK else contextlib.nullcontext():
                    ray.init(address=address, **quiet)
            else:
                _start_local(settings, quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        where = f"the cluster at {address}" if address else "a local cluster"
        raise ClusterError(f"cannot use {where}: {str(error).splitlines()[0] if str(error) else error!r}") from error
    return True


def disconnect() -> None:
    """Leave the cluster.  A local one that `connect` started ends; any other goes on without us."""
    with _signals_kept():
        ray.shutdown()


def _start_local(settings: Settings, quiet: dict[str, Any]) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would call home
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a warning about GPUs
    with _on_loopback(), _without_unused_services():
        ray.init(
            address="local",
            num_cpus=settings.num_cpus,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            _system_config={**_LEAN, **_IMPATIENT, **_FAIR},
            **quiet,
        )


def _reach(address: str) -> None:
    """Raise OSError at once where nothing listens; Ray itself would wait for minutes."""
    _, _, port = address.rpartition(":")
    if port.isdecimal():
        socket.create_connection((_host(address), int(port)), timeout=_REACH_S).close()


def _host(address: str) -> str:
    return address.removeprefix("ray://").rpartition(":")[0].strip("[]")


def _keep_off_stdout() -> None:
    """Log what Ray has to say of dead workers and nodes; it would print it into the driver's standard output."""

    def log(data: Any, ignore_prefix: bool) -> None:
        for line in data.get("lines", ()):
            logger.info("ray: %s", line)

    ray_worker.print_to_stdstream = log


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep what this process does at signals.

    Ray has handlers of its own, and takes them away again, below Python: a server's SIGTERM would then just kill it.
    They are put back below Python too, since that lets only the main thread do it.
    """
    libc = ctypes.CDLL(None)
    kept = {number: ctypes.create_string_buffer(_SIGACTION_BYTES) for number in (signal.SIGTERM, signal.SIGINT)}
    for number, action in kept.items():
        libc.sigaction(number, None, action)
    try:
        yield
    finally:
        for number, action in kept.items():
            libc.sigaction(number, action, None)


@contextlib.contextmanager
def _without_unused_services() -> Iterator[None]:
    """Let a cluster that starts meanwhile do so without its attendants.

    They are 40 % of the CPU of a start, and hold up its end by a second.  Undocumented; a test holds it, and a Ray that
    has no such methods starts them.
    """
    kept = {name: getattr(Node, name) for name in _UNUSED_SERVICES if hasattr(Node, name)}
    for name in kept:
        setattr(Node, name, _start_nothing)
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(Node, name, method)


def _start_nothing(node: Node, **wishes: Any) -> None:
    node._webui_url = ""  # what starting the dashboard's server would have told


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Let a cluster that starts meanwhile listen on loopback only, and one that does be joined.

    Undocumented; a test holds it.  The variable is for the processes that Ray starts; in this one Ray read it when it
    was imported.
    """
    name = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    known, before = ray_constants.ENABLE_RAY_CLUSTER, os.environ.get(name)
    if before is None:  # or else the user has decided
        os.environ[name] = "0"
        ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = known
        if before is None:
            del os.environ[name]
