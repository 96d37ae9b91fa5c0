"""Each private part of Ray is missing in turn: there is one warning, and the public fallback works."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray._private import ray_constants, services, state, worker
from ray._private.node import Node as RayNode
from ray.autoscaler.v2 import sdk, utils
from ray.experimental import internal_kv

import batchray
from batchray.config import Settings
from batchray.executors.ray import connection, internals, nodes
from batchray.executors.ray.nodes import Node

PRIVATE = re.compile(
    r"ray\._private|_raylet\b|\b_global_node\b|\bglobal_worker\b|ENABLE_RAY_CLUSTER|_webui_url|_generator_backpressure|_system_config"
)


@pytest.fixture(autouse=True)
def no_warnings_yet() -> Iterator[None]:
    internals._warn_changed.cache_clear()
    yield
    internals._warn_changed.cache_clear()


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_no_other_module_names_a_private_part_of_ray() -> None:
    root = Path(batchray.__file__).parent
    modules = [file for file in root.rglob("*.py") if file.name != "internals.py" or file.parent.name != "ray"]
    assert len(modules) > 50
    assert [str(file) for file in modules if PRIVATE.search(file.read_text())] == []


def test_only_settings_that_this_ray_knows_are_passed(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        assert internals.known_settings({**internals.SETTINGS, "no_such_setting": 1}) == internals.SETTINGS
    assert ["no_such_setting" in text for text in warnings_in(caplog)] == [True]


def test_without_ray_s_library_no_setting_is_passed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    internals._is_setting.cache_clear()
    monkeypatch.delattr(ray, "_raylet")
    assert internals.known_settings(internals.SETTINGS) == {}
    assert len(warnings_in(caplog)) == len(internals.SETTINGS)
    internals._is_setting.cache_clear()


@pytest.mark.parametrize("config", [SimpleNamespace(), SimpleNamespace(initialize=lambda: None)])
def test_a_ray_that_cannot_read_its_variables_again_is_used_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, config: SimpleNamespace
) -> None:
    monkeypatch.setattr(ray._raylet, "Config", config)
    for _ in range(2):
        internals.reread_variables()
    assert ["Config.initialize" in text for text in warnings_in(caplog)] == [True]


def test_unused_services_are_started_if_they_cannot_be_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(RayNode, "start_monitor")
    start_log_monitor = RayNode.start_log_monitor
    with internals.without_unused_services():
        assert RayNode.start_log_monitor is not start_log_monitor
    assert RayNode.start_log_monitor is start_log_monitor
    monkeypatch.delattr("ray._private.node.Node")
    with internals.without_unused_services():
        pass
    assert [re.findall(r"start_monitor|Node(?= as)", text) for text in warnings_in(caplog)] == [
        ["start_monitor"],
        ["Node"],
    ]


def test_a_ray_that_does_not_start_lean_starts_plainly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[dict[str, Any]] = []

    def init(**options: Any) -> None:
        calls.append(options)
        if "_system_config" in options:
            raise RuntimeError("Unknown keyword argument(s): _system_config")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # a cluster of other tests may be running
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert connection.connect(Settings())
    assert ["_system_config" in options for options in calls] == [True, False]
    assert ["starts with its own" in text for text in warnings_in(caplog)] == [True]


def test_without_ray_s_switch_the_loopback_variable_is_still_set(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(ray_constants, "ENABLE_RAY_CLUSTER")
    monkeypatch.delenv(internals._LOOPBACK_VARIABLE, raising=False)
    for _ in range(2):
        with internals.on_loopback():
            assert os.environ[internals._LOOPBACK_VARIABLE] == "0"
    assert internals._LOOPBACK_VARIABLE not in os.environ
    assert not hasattr(ray_constants, "ENABLE_RAY_CLUSTER")
    assert len(warnings_in(caplog)) == 1


def test_output_of_workers_that_cannot_be_redirected_stays(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(worker, "print_to_stdstream")
    internals.redirect_worker_output(print)
    assert not hasattr(worker, "print_to_stdstream")
    assert len(warnings_in(caplog)) == 1


def test_ray_looks_for_a_local_cluster_itself_if_batchray_cannot(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(services, "get_ray_address_from_environment")
    assert internals.find_local_cluster() == "auto"
    assert len(warnings_in(caplog)) == 1


@pytest.mark.parametrize("client", [None, lambda *args, **kwargs: SimpleNamespace()], ids=["none", "other methods"])
def test_a_token_that_cannot_be_tried_is_left_to_ray(
    client: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if client is None:
        monkeypatch.delattr("ray._raylet.InnerGcsClient")
    else:
        monkeypatch.setattr("ray._raylet.InnerGcsClient", SimpleNamespace(standalone=client))
    assert internals.accepts_token("127.0.0.1:1")
    assert len(warnings_in(caplog)) == 1


def test_own_processes_are_those_of_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    process = SimpleNamespace()
    processes = {"raylet": [SimpleNamespace(process=process)], "log_monitor": [SimpleNamespace(process=process)]}
    monkeypatch.setattr(worker, "_global_node", SimpleNamespace(all_processes=processes))
    assert internals.own_processes() == {"raylet": process}


@pytest.mark.parametrize("node", ["no such name", SimpleNamespace()], ids=["no node", "no processes"])
def test_a_cluster_whose_processes_are_not_known_is_watched_at_its_addresses(
    node: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if isinstance(node, str):
        monkeypatch.delattr(worker, "_global_node")
    else:
        monkeypatch.setattr(worker, "_global_node", node)
    assert internals.own_processes() == {}
    assert len(warnings_in(caplog)) == 1


def test_without_ray_s_session_directory_the_processes_of_a_node_share_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker, "global_worker", SimpleNamespace())
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_session_name=lambda: "session_1"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    assert internals.session_directory() == internals.session_directory()
    assert internals.session_directory().is_dir()
    assert internals.session_directory().parent == tmp_path
    assert len(warnings_in(caplog)) == 1


def test_results_stream_without_backpressure_if_ray_has_none(caplog: pytest.LogCaptureFixture) -> None:
    class Function:
        def options(self, **options: Any) -> dict[str, Any]:
            if "_generator_backpressure_num_objects" in options:
                raise ValueError("Invalid option keyword")
            return options

    assert internals.one_result_at_a_time(Function(), {"num_cpus": 1}) == {"num_cpus": 1, "num_returns": "streaming"}
    assert len(warnings_in(caplog)) == 1


def test_a_report_of_the_memory_monitor_in_another_format_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        assert internals.memory_by_worker("a worker was killed, as memory ran short") == []
    assert len(warnings_in(caplog)) == 1
    assert internals.memory_by_worker("") == []


# -- an autoscaler, as `ray start --head` reports its nodes with and without an --autoscaling-config

WATCHED = {"ff00": "node_ff00"}
SCALED = {"ff00": "ray.head.default"}


@pytest.mark.parametrize(
    ("types", "may_add"), [(WATCHED, False), (SCALED, True), ({**WATCHED, **SCALED, "ff01": "gpu"}, True), ({}, False)]
)
@pytest.mark.parametrize("version", [1, 2])
def test_an_autoscaler_that_only_watches_adds_no_nodes(
    version: int, types: dict[str, str], may_add: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = json.dumps({"autoscaler_report": {"node_type_mapping": types}}).encode()
    nodes = [SimpleNamespace(node_id=node_id, ray_node_type_name=kind) for node_id, kind in types.items()]
    monkeypatch.setattr(utils, "is_autoscaler_v2", lambda fetch_from_server: version == 2)
    monkeypatch.setattr(internal_kv, "_internal_kv_get", lambda key: report)
    status = SimpleNamespace(active_nodes=nodes[:1], idle_nodes=nodes[1:])
    monkeypatch.setattr(sdk, "get_cluster_status", lambda address: status)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="127.0.0.1:6379"))
    assert internals.may_add_nodes() == may_add


def test_without_a_report_of_an_autoscaler_no_nodes_are_added(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(utils, "is_autoscaler_v2", lambda fetch_from_server: False)
    for report in (None, b"", b"{}", b'{"autoscaler_report": null}'):
        monkeypatch.setattr(internal_kv, "_internal_kv_get", lambda key, report=report: report)
        assert not internals.may_add_nodes()
    assert warnings_in(caplog) == []
    monkeypatch.setattr(internal_kv, "_internal_kv_get", lambda key: b"no JSON")
    assert not internals.may_add_nodes()
    monkeypatch.delattr(utils, "is_autoscaler_v2")
    assert [internals.may_add_nodes() for _ in range(2)] == [False] * 2
    assert len(warnings_in(caplog)) == 2


def test_without_the_state_of_nodes_all_cpus_count_and_no_node_is_leaving(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(state, "available_resources_per_node", lambda: {"ff01": {"CPU": 1.5}, "ff02": {}})
    monkeypatch.setattr(state, "state", SimpleNamespace(get_draining_nodes=lambda: {"ff02": 0}))
    monkeypatch.setattr(
        ray,
        "nodes",
        lambda: [
            {"NodeID": "ff01", "Alive": True, "Resources": {"CPU": 2.0}},
            {"NodeID": "ff02", "Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0}},
            {"NodeID": "ff03", "Alive": False, "Resources": {}},
        ],
    )
    known = [Node("ff01", {"CPU": 2.0}, 1.5), Node("ff02", {"CPU": 4.0, "GPU": 1.0}, 0.0, is_leaving=True)]
    assert nodes.read_nodes() == known
    assert [node.has({"CPU": 1.0, "GPU": 1.0}) for node in known] == [False, True]

    def not_connected() -> None:
        raise ray.exceptions.RaySystemError("Ray has not been started yet.")  # type: ignore[no-untyped-call]

    monkeypatch.setattr(state, "available_resources_per_node", not_connected)
    assert internals.free_cpus() == {}
    assert warnings_in(caplog) == []
    monkeypatch.delattr(state, "available_resources_per_node")
    monkeypatch.setattr(state, "state", SimpleNamespace(get_draining_nodes=lambda: 0))
    for _ in range(2):
        assert nodes.read_nodes() == [
            node._replace(free_cpus=node.resources["CPU"], is_leaving=False) for node in known
        ]
    assert len(warnings_in(caplog)) == 2
