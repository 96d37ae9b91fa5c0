"""Starts or joins a Ray cluster.  No other module decides to; `internals` starts one without what it does not need."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import ray.exceptions

from batchray.config import Settings
from batchray.errors import ClusterError
from batchray.executors.ray import internals

logger = logging.getLogger(__name__)

NAMESPACE = "batchray"
# Requests and outcomes travel inside the calls.  Ray's default is 30 % of the memory.
_OBJECT_STORE_BYTES = 128 * 1024 * 1024
_VARIABLES = {
    # Ray ends the whole process, a server or a notebook, if a call to a GCS that has died is unanswered for this time,
    # also one that a thread still makes when this process has left the cluster.  `monitor` notices the loss before.
    "RAY_gcs_rpc_server_reconnect_timeout_s": str(10**8),
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # silences a warning about GPUs
}
_REACH_S, _LOOK_AGAIN_S = 10.0, 0.1
# More than any system's `struct sigaction` takes.
_SIGACTION_BYTES = 256
_connecting = threading.Lock()
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def connect(settings: Settings, *, object_store_bytes: int | None = _OBJECT_STORE_BYTES) -> bool:
    """Connect this process to a cluster.  True if the connection is new, so that the driver has to close it.

    In this order: a connection that the process already has; the address in the settings or in RAY_ADDRESS; a new
    local cluster, whose object store is of Ray's own size if `object_store_bytes` is None.  Raises ClusterError.
    """
    with _connecting:  # Ray itself does not notice that another thread is connecting
        if ray.is_initialized():
            return False
        _connect(settings, object_store_bytes)
        return True


def connect_existing(ray_address: str | None, wait_s: float) -> None:
    """Connect this process to a cluster that exists, as `connect` does; never start one.

    Without an address this waits up to `wait_s` seconds for a connection of this process, which a job may be making.
    Raises ClusterError.
    """
    address = ray_address or os.environ.get("RAY_ADDRESS") or "local"
    if address != "local":
        connect(Settings(ray_address=address))
        return
    end = time.monotonic() + wait_s
    while not _is_connected():
        if time.monotonic() >= end:
            raise ClusterError("this process is not connected to a Ray cluster; pass `ray_address` or set RAY_ADDRESS")
        time.sleep(_LOOK_AGAIN_S)


def _is_connected() -> bool:
    """Return whether this process is connected; while another thread connects it, that is not known yet."""
    if not _connecting.acquire(blocking=False):
        return False
    try:
        return ray.is_initialized()
    finally:
        _connecting.release()


def _connect(settings: Settings, object_store_bytes: int | None) -> None:
    address = settings.ray_address or os.environ.get("RAY_ADDRESS")
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
    internals.reread_variables()
    logging.getLogger("ray").setLevel(logging.ERROR)  # Ray logs its start before it applies `logging_level`
    internals.redirect_worker_output(lambda line: logger.info("ray: %s", line))
    where = f"the cluster at {address}" if address else "a local cluster"
    try:
        with _restoring_signal_handlers():
            if address and address != "local":
                _join(address)
            else:
                _start_local(settings, object_store_bytes)
    except ray.exceptions.AuthenticationError as error:
        raise ClusterError(f"cannot use {where}: {_token_advice()}") from error
    except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        reason = str(error).partition("\n")[0] or repr(error)
        raise ClusterError(f"cannot use {where}: {reason}") from error


def disconnect() -> None:
    """Leave the cluster.  A local cluster that `connect` started ends; any other keeps running."""
    with _restoring_signal_handlers():
        ray.shutdown()


def _join(address: str) -> None:
    """Join a running cluster, by "auto", HOST:PORT or ray://HOST:PORT."""
    if address == "auto":
        address = internals.find_local_cluster()
    _check_reachable(address)
    with internals.on_loopback() if _host(address) in _LOOPBACK else contextlib.nullcontext():
        # Without a token at all `ray.init` raises at once.
        if _host(address) and "://" not in address and (_token_source() or not _is_token_mode()):
            _check_token(address)
        ray.init(address=address, **_quiet())


def _start_local(settings: Settings, object_store_bytes: int | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report usage to its makers
    options = {
        "address": "local",
        "num_cpus": settings.num_cpus,
        "include_dashboard": False,
        "object_store_memory": object_store_bytes,
        **_quiet(),
    }
    try:
        internals.start_lean(options)
    except OSError as error:
        if not error.filename or not (Path.home() / ".ray" / "auth_token").is_relative_to(error.filename):
            raise
        advice = "make the home directory writable, or set RAY_AUTH_TOKEN to a secret of your own"
        raise OSError(f"Ray cannot save its authentication token ({error}); {advice}") from error


def _quiet() -> dict[str, Any]:
    return {"log_to_driver": False, "logging_level": logging.ERROR, "namespace": NAMESPACE}


def _check_reachable(address: str) -> None:
    """Raise OSError at once if nothing listens there; Ray itself would wait for minutes."""
    _, _, port = address.rpartition(":")
    if port.isdecimal():
        socket.create_connection((_host(address), int(port)), timeout=_REACH_S).close()


def _check_token(address: str) -> None:
    """Raise AuthenticationError if the cluster does not accept this process's token, or its lack of one."""
    if not internals.accepts_token(address):
        raise ray.exceptions.AuthenticationError("the cluster refused the authentication token")


def _token_advice() -> str:
    """Return what to set so that a cluster accepts this process."""
    source = _token_source()
    if not _is_token_mode():
        where = f"; the token in {source} is used then" if source else ", and RAY_AUTH_TOKEN to the cluster's token"
        return f"it asks for an authentication token; set RAY_AUTH_MODE=token before Python starts{where}"
    if source is None:
        path = os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")
        return f"there is no authentication token; put the cluster's in {path}, or in RAY_AUTH_TOKEN"
    return f"it rejects the authentication token in {source}; put the cluster's token there"


def _is_token_mode() -> bool:
    return os.environ.get("RAY_AUTH_MODE", "").lower() == "token"


def _token_source() -> str | None:
    """Return where Ray reads this process's authentication token; None if there is none."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN"
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or str(Path.home() / ".ray" / "auth_token")
    return path if os.access(path, os.R_OK) else None


def _host(address: str) -> str:
    return address.removeprefix("ray://").rpartition(":")[0].strip("[]")


@contextlib.contextmanager
def _restoring_signal_handlers() -> Iterator[None]:
    """Restore this process's signal handlers afterwards.

    Ray installs its own and removes them again, below Python: a SIGTERM to a server would then simply kill it.  This
    restores them below Python too, because Python lets only the main thread do it.
    """
    libc = ctypes.CDLL(None)
    handlers = {number: ctypes.create_string_buffer(_SIGACTION_BYTES) for number in (signal.SIGTERM, signal.SIGINT)}
    for number, action in handlers.items():
        libc.sigaction(number, None, action)
    try:
        yield
    finally:
        for number, action in handlers.items():
            libc.sigaction(number, action, None)
