from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from batchray.executors.ray.activity_log import ActivityLog, delete_records, read_crash_record
from batchray.executors.ray.exit_report import UNKNOWN_CAUSE
from batchray.schema import new_job_id

JOB = new_job_id()


def files(directory: Path) -> list[str]:
    return [file.name for file in directory.iterdir()]


@pytest.fixture
def dead_pid() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def killed_while(executing: str, directory: Path) -> None:
    """Kill another process with SIGKILL in the middle of `executing`."""
    code = f"""
import sys
from pathlib import Path
from batchray.executors.ray.activity_log import ActivityLog
log = ActivityLog("actor", Path(sys.argv[1]))
{executing}
"""
    die = "print('now', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code.replace("DIE", die), str(directory)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"now\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()


def executing(actor_id: str, directory: Path) -> list[tuple[str, int]] | None:
    """Return the items that a dead lane was executing; None if it left no record."""
    record = read_crash_record(directory, actor_id)
    return None if record is None else record.executing


def test_another_process_reads_which_items_a_killed_one_was_executing(tmp_path: Path) -> None:
    done = f"with log.executing({JOB!r}, 1): pass"
    running = f"with log.executing({JOB!r}, 2), log.executing({JOB!r}, 2**27): DIE"
    killed_while(f"{done}\n{running}", tmp_path)
    record = read_crash_record(tmp_path, "actor")
    assert record is not None
    assert sorted(record.executing) == [(JOB, 2), (JOB, 2**27)]
    assert record.cause.cause == UNKNOWN_CAUSE.cause
    assert record.cause.n_bytes > 0


def test_a_process_that_executed_nothing_lists_no_items(tmp_path: Path) -> None:
    killed_while("DIE", tmp_path)
    assert executing("actor", tmp_path) == []


def test_records_are_read_until_they_are_deleted_and_only_those_of_the_lane_in_question(tmp_path: Path) -> None:
    killed_while(f"with log.executing({JOB!r}, 5): DIE", tmp_path)
    read = [executing(actor_id, tmp_path) for actor_id in ("another", "actor", "actor")]
    assert read == [None, [(JOB, 5)], [(JOB, 5)]]  # the first answer may be lost on its way
    delete_records(tmp_path, "acto")
    delete_records(tmp_path, "actor")
    assert executing("actor", tmp_path) is None
    assert files(tmp_path) == []


def test_an_item_is_removed_when_it_ends_also_by_an_exception(tmp_path: Path) -> None:
    log = ActivityLog("actor", tmp_path)
    with pytest.raises(LookupError), log.executing(JOB, 1):
        raise LookupError
    with log.executing(JOB, 2):
        assert executing("actor", tmp_path) == [(JOB, 2)]
    log.close()


def test_items_beyond_the_slots_run_without_being_listed(tmp_path: Path) -> None:
    log = ActivityLog("actor", tmp_path)
    with ExitStack() as stack:
        for index in range(8200):
            stack.enter_context(log.executing(JOB, index))
        assert len(executing("actor", tmp_path) or []) == 8192
    with log.executing(JOB, 7):
        pass
    log.close()


def test_only_old_files_of_processes_that_are_gone_are_removed(tmp_path: Path, dead_pid: int) -> None:
    day_ago = time.time() - 90_000
    names = {
        f"batchray-lane-old-{dead_pid}": day_ago,
        f"batchray-lane-new-{dead_pid}": time.time(),  # its driver may not have read it yet
        f"batchray-lane-alive-{os.getpid()}": day_ago,
        "batchray-lane-strange": day_ago,
        "another-file": day_ago,
    }
    for name, changed in names.items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (changed, changed))
    ActivityLog("actor", tmp_path).close()
    assert sorted(files(tmp_path)) == sorted(names.keys() - {f"batchray-lane-old-{dead_pid}"})


def test_the_activity_log_does_not_import_ray() -> None:
    code = "import sys, batchray.executors.ray.activity_log; print('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"False\n"
