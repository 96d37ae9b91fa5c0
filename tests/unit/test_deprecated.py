"""Names and import paths of 0.1.0 still work, with a DeprecationWarning that names the new one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

import pytest

import batchray
from batchray.schema import AssistantMessage, ItemStatus, Result, StopReason, Timing, Usage, item_id, new_job_id
from batchray.support import moved


@pytest.fixture(params=moved.MOVED_MODULES)
def old(request: pytest.FixtureRequest) -> Iterator[str]:
    """Return an old path that has not been imported."""
    name: str = request.param
    yield name
    sys.modules.pop(name, None)
    vars(batchray).pop(name.rpartition(".")[2], None)


def test_an_old_import_path_gives_the_names_of_the_new_one(old: str) -> None:
    new = import_module(moved.MOVED_MODULES[old])
    with pytest.warns(DeprecationWarning, match=f"^{old} is deprecated; import {new.__name__}$") as warned:
        module = import_module(old)
    assert [each.category for each in warned] == [DeprecationWarning]
    own = [name for name, value in vars(new).items() if getattr(value, "__module__", None) == new.__name__]
    assert own
    assert all(getattr(module, name) is getattr(new, name) for name in own)
    for name, new_name in moved.RENAMED.get(old, {}).items():
        assert getattr(module, name) is getattr(new, new_name)
    assert new.__spec__ is not None
    assert new.__spec__.name == new.__name__


def test_an_unknown_module_is_still_unknown() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'batchray\.nowhere'"):
        import_module("batchray.nowhere")


def test_installing_the_finder_twice_adds_it_once() -> None:
    before = list(sys.meta_path)
    moved.install()
    assert sys.meta_path == before


def test_text_of_is_the_text_of_a_result() -> None:
    message = AssistantMessage.model_validate({"id": "m", "date": datetime.now(UTC), "content": "hello"})
    result = Result(
        index=0,
        batch_item_id=item_id(new_job_id(), 0),
        agent_id="a",
        status=ItemStatus.SUCCEEDED,
        stop_reason=StopReason.END_TURN,
        messages=[message],
        usage=Usage(),
        attempts=1,
        timing=Timing(queued_ns=0, duration_ns=0),
    )
    with pytest.warns(DeprecationWarning, match=r"use result\.text"):
        assert batchray.text_of(result) == result.text == "hello"


def test_deprecated_names_of_a_job_that_another_process_runs_do_nothing(tmp_path: Path) -> None:
    job = batchray.Job(new_job_id(), tmp_path)
    with pytest.warns(DeprecationWarning, match="steer"):
        assert job.steer(None) is False
    with pytest.warns(DeprecationWarning, match="when_over"):
        assert job.when_over(print) is None
