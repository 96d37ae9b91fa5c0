"""Everything that batchray uses of Ray without Ray documenting it.

Each part is looked up when it is needed.  If this Ray does not have it, there is one warning and a fallback on Ray's
public API: a new Ray may cost speed or comfort, never a traceback.  No other module may name a private part of Ray.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import logging
import mmap
import operator
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ray
import ray.exceptions

logger = logging.getLogger(__name__)

# These start the autoscaler's monitor, the reader of the workers' logs, and the dashboard's server, which Ray starts
# without a dashboard too.  A cluster of one node and one driver needs none of them.
_UNUSED_SERVICES = ("start_monitor", "start_log_monitor", "start_api_server")
_LOOPBACK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
# Ray collects this for a dashboard that a local cluster does not have: 5 to 8 % of the CPU of a job.
_NO_METRICS = {
    "event_stats": False,
    "enable_metrics_collection": False,
    "task_events_report_interval_ms": 0,
}
# How long a failed call waits for news of its actor's death, and how often Ray checks for it.  The driver asks the
# actor itself, so Ray's default of some seconds for each lost call gains nothing.
_SHORT_WAITS = {"timeout_ms_task_wait_for_death_info": 100, "core_worker_internal_heartbeat_ms": 100}
# Ray runs its workers at a niceness of 15 to leave CPU for its own processes.  A lane mostly waits; but when many
# replies come at once, the driver would keep spawning while the lanes hardly got CPU to start what it spawned.
_NO_NICENESS = {"worker_niceness": 0}
SETTINGS = {**_NO_METRICS, **_SHORT_WAITS, **_NO_NICENESS}
_PROBE_S = 3.0
_NO_CLUSTER_ID = "00" * 28
# A worker in a report: a lane by the id of its actor, a process of its own by the name of the task it was started for.
_OOM_WORKER = re.compile(r"\((?:Task|Actor\((\w+)\)): .*?task name=(\S*?),.*?actual memory used=([0-9.]+)GB")


def _find(module: str, name: str, fallback: str) -> Any:
    """Return a private object of Ray, or None after a warning that names what happens instead."""
    try:
        return operator.attrgetter(name)(importlib.import_module(module))
    except (ImportError, AttributeError):
        _warn_changed(f"{module}.{name}", fallback)
        return None


@functools.cache
def _warn_changed(part: str, fallback: str) -> None:
    """Warn that this Ray lacks a private part; once for each part."""
    logger.warning("Ray %s does not have %s as batchray knows it: %s", ray.__version__, part, fallback)


def known_settings(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return these settings of Ray's `_system_config` without those that this Ray does not know.

    For an unknown setting Ray ends the processes of its cluster.  It has no list of them, but its library reads each
    from an environment variable `RAY_<name>`, and so contains that name.
    """
    known = {name: value for name, value in wanted.items() if _is_setting(name)}
    for name in sorted(wanted.keys() - known):
        _warn_changed(f"the internal setting {name}", "the cluster starts with Ray's default, which costs more CPU")
    return known


@functools.cache
def _is_setting(name: str) -> bool:
    library = getattr(getattr(ray, "_raylet", None), "__file__", None)
    if library is None:
        return False
    with open(library, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b"RAY_%s\0" % name.encode()) >= 0


def reread_variables() -> None:
    """Have Ray read the variables `RAY_<name>` of its settings again.

    It reads them at its first use of any setting.  With `RAY_AUTH_MODE` set, which a process inherits from one that has
    started a cluster, that is its import.
    """
    fallback = "a setting of batchray's may have no effect, so that the loss of a cluster can end this process"
    initialize = _find("ray._raylet", "Config.initialize", fallback)
    if initialize is None:
        return
    try:
        initialize(b"{}")
    except TypeError:
        _warn_changed("ray._raylet.Config.initialize", fallback)


def start_lean(options: Mapping[str, Any]) -> None:
    """Start a local cluster with `SETTINGS`, without unused services; if this Ray cannot, as it starts by itself."""
    try:
        with on_loopback(), without_unused_services():
            ray.init(**options, _system_config=known_settings(SETTINGS))
        return
    except (AttributeError, TypeError, RuntimeError) as error:  # of this Ray's private parts
        if isinstance(error, RuntimeError) and "_system_config" not in str(error):
            raise
        reason = f"did not start with batchray's settings and starts with its own: {error}"
        logger.warning("Ray %s %s", ray.__version__, reason)
    ray.shutdown()
    with on_loopback():
        ray.init(**options)


@contextlib.contextmanager
def without_unused_services() -> Iterator[None]:
    """A cluster that is started inside this block leaves out services that a single driver does not need.

    They are 40 % of the CPU of a start, and delay the end of the cluster by a second.
    """
    node = _find("ray._private.node", "Node", "the cluster starts with all of Ray's services")
    before = {name: getattr(node, name) for name in _UNUSED_SERVICES if hasattr(node, name)}
    if node is not None:
        for name in sorted({*_UNUSED_SERVICES} - before.keys()):
            _warn_changed(f"ray._private.node.Node.{name}", "the cluster starts with all of Ray's services")
    for name in before:
        setattr(node, name, _start_nothing)
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(node, name, method)


def _start_nothing(node: Any, *args: Any, **kwargs: Any) -> None:
    node._webui_url = ""  # starting the dashboard's server would have set it


@contextlib.contextmanager
def on_loopback() -> Iterator[None]:
    """A cluster that is started inside this block listens on loopback only, and such a cluster can be joined.

    The environment variable is for the processes that Ray starts.  This process read it when it imported Ray.
    """
    constants = _find("ray._private", "ray_constants", "")
    has_switch = hasattr(constants, "ENABLE_RAY_CLUSTER")
    if not has_switch:
        fallback = "a local cluster may listen on all interfaces, protected by its authentication token alone"
        _warn_changed("ray._private.ray_constants.ENABLE_RAY_CLUSTER", fallback)
    before, before_here = os.environ.get(_LOOPBACK_VARIABLE), getattr(constants, "ENABLE_RAY_CLUSTER", None)
    if before is None:  # or else the user has decided
        os.environ[_LOOPBACK_VARIABLE] = "0"
        if has_switch:
            constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        if has_switch:
            constants.ENABLE_RAY_CLUSTER = before_here
        if before is None:
            del os.environ[_LOOPBACK_VARIABLE]


def redirect_worker_output(log: Callable[[str], None]) -> None:
    """Log what Ray prints about dead workers and nodes; it would print it to the driver's standard output."""

    def log_lines(data: Any, *args: Any, **kwargs: Any) -> None:
        for line in data.get("lines", ()):
            log(line)

    fallback = "messages of Ray may be printed to standard output"
    if _find("ray._private.worker", "print_to_stdstream", fallback) is not None:
        worker: Any = importlib.import_module("ray._private.worker")
        worker.print_to_stdstream = log_lines


def find_local_cluster() -> str:
    """Return the HOST:PORT of the cluster that `auto` means on this machine, or "auto" if only Ray can tell.

    Ray turns a loopback address into one of another interface, on which a loopback cluster does not answer.
    As `ray.init("auto")` does, this turns token authentication on if the user has a token and has not set a mode.
    Raises ConnectionError if there is no cluster.
    """
    find = _find("ray._private.services", "get_ray_address_from_environment", "Ray itself looks for the cluster")
    if find is None:
        return "auto"
    address = str(find("auto", None))
    with contextlib.suppress(ImportError, AttributeError):  # before 2.59 it is never turned on by itself
        setup: Any = importlib.import_module("ray._private.authentication.authentication_token_setup")
        setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    return address


def accepts_token(address: str) -> bool:
    """Whether the cluster at HOST:PORT lets this process in, with its authentication token or without one.

    `ray.init` would try for 20 s, with a line on standard error each second.  True if it cannot be found out.  The call
    carries a cluster id that no cluster has, so it is answered without any effect.
    """
    fallback = "a wrong authentication token is noticed late"
    connect = _find("ray._raylet", "InnerGcsClient.standalone", fallback)
    if connect is None:
        return True
    try:
        client = connect(address, cluster_id=_NO_CLUSTER_ID, timeout_ms=int(_PROBE_S * 1000))
        client.internal_kv_exists(b"batchray", namespace=None, timeout=_PROBE_S)
    except (AttributeError, TypeError):
        _warn_changed("ray._raylet.InnerGcsClient", fallback)
    except (ray.exceptions.RayError, RuntimeError, ValueError, OSError) as error:
        return "InvalidAuthToken" not in str(error)
    return True


def own_processes() -> dict[str, subprocess.Popen[Any]]:
    """Return the GCS and the raylet of a cluster that this process started, by name; empty for any other cluster."""
    fallback = "the cluster is watched at its addresses"
    if (worker := _find("ray._private", "worker", fallback)) is None:
        return {}
    if not hasattr(worker, "_global_node") or (
        worker._global_node is not None and not hasattr(worker._global_node, "all_processes")
    ):
        _warn_changed("ray._private.worker._global_node.all_processes", fallback)
        return {}
    if worker._global_node is None:
        return {}
    names = {"gcs_server": "GCS", "raylet": "raylet"}
    started = worker._global_node.all_processes.items()
    return {names[name]: infos[0].process for name, infos in started if name in names and infos}


def session_directory() -> Path:
    """Return a directory of this node that all processes of the cluster's session there share."""
    fallback = "crash reports are written to the directory for temporary files"
    worker = _find("ray._private.worker", "global_worker", fallback)
    try:
        return Path(worker.node.get_session_dir_path())
    except AttributeError:
        _warn_changed("ray._private.worker.global_worker.node.get_session_dir_path", fallback)
    name = ray.get_runtime_context().get_session_name()
    directory = Path(tempfile.gettempdir()) / f"batchray-{os.getuid()}-{name}"
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory


def one_result_at_a_time(function: Any, options: Mapping[str, Any]) -> Any:
    """Return a remote generator function that runs on only when its last result has been taken."""
    try:
        return function.options(**options, num_returns="streaming", _generator_backpressure_num_objects=1)
    except (TypeError, ValueError):
        streaming = function.options(**options, num_returns="streaming")
        fallback = "a run in a process of its own does not wait until its last step is stored"
        _warn_changed("the task option _generator_backpressure_num_objects", fallback)
        return streaming


class WorkerMemory(NamedTuple):
    """A worker in a report of Ray's memory monitor: a lane has an actor id, any other process the name of its task."""

    actor_id: str
    task: str
    n_bytes: float


def memory_by_worker(oom_report: str) -> list[WorkerMemory]:
    """Return how much memory each worker held, as the memory monitor reported it when it killed one."""
    found = [WorkerMemory(actor, task, float(gb) * 2**30) for actor, task, gb in _OOM_WORKER.findall(oom_report)]
    if oom_report and not found:
        _warn_changed("a list of workers in its report of an out-of-memory kill", "only its own count of memory counts")
    return found


def free_cpus() -> dict[str, float]:
    """Return how many CPUs of each node are free, by the node's id; empty if Ray does not say."""
    available = _read_state("available_resources_per_node", "lanes are spread by all CPUs of the nodes, free or not")
    return {node_id: resources.get("CPU", 0.0) for node_id, resources in available.items()}


def leaving_nodes() -> frozenset[str]:
    """Return the ids of the nodes that are being drained; empty if Ray does not say."""
    return frozenset(_read_state("state.get_draining_nodes", "a lane takes requests until its node has ended"))


def _read_state(name: str, fallback: str) -> Mapping[str, Any]:
    """Call a function of Ray's global state that returns something for each node, by its id."""
    read = _find("ray._private.state", name, fallback)
    try:
        return dict(read()) if read is not None else {}
    except (TypeError, ValueError):
        _warn_changed(f"ray._private.state.{name}", fallback)
    except ray.exceptions.RayError as error:  # over Ray Client there is no global state
        logger.debug("%s: %s", fallback, error)
    return {}


def may_add_nodes() -> bool:
    """Return whether an autoscaler may add nodes to the cluster that this process is connected to.

    Every head node has an autoscaler that may only watch: it names the type of each node after the node itself.  Waits
    for the GCS.
    """
    fallback = "an agent that asks for more than any node has is refused"
    is_version_2 = _find("ray.autoscaler.v2.utils", "is_autoscaler_v2", fallback)
    if is_version_2 is None:
        return False
    try:
        types = _node_types_2(fallback) if is_version_2(fetch_from_server=True) else _node_types_1(fallback)
    except (OSError, RuntimeError, ValueError, TypeError, AttributeError, ray.exceptions.RayError) as error:
        logger.warning("the state of the autoscaler cannot be read (%s): %s", error, fallback)
        return False
    return any(kind and kind != f"node_{node_id}" for node_id, kind in types.items())


def _node_types_1(fallback: str) -> Mapping[str, str]:
    """Return the types of nodes by their ids, as the first version of the autoscaler reports them."""
    read = _find("ray.experimental.internal_kv", "_internal_kv_get", fallback)
    key = _find("ray._private.ray_constants", "DEBUG_AUTOSCALING_STATUS", fallback)
    report = read(key) if read is not None and key is not None else None
    return (json.loads(report).get("autoscaler_report") or {}).get("node_type_mapping") or {} if report else {}


def _node_types_2(fallback: str) -> Mapping[str, str]:
    """Return the same as the second version reports them."""
    status_of = _find("ray.autoscaler.v2.sdk", "get_cluster_status", fallback)
    if status_of is None:
        return {}
    status = status_of(ray.get_runtime_context().gcs_address)
    return {node.node_id: node.ray_node_type_name for node in (*status.active_nodes, *status.idle_nodes)}
