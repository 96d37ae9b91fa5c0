from __future__ import annotations

import pytest

from batchray.executors.ray.oom import is_oom_culprit

LANE, OTHER_LANE, PROCESS = "4a2033d3717caf58abaed80701000000", "8e9aa5cf6d78e7fb85c8cf1201000000", "job-1-2-3"
SMALL, LARGE = 150 << 20, 3500 << 20
_FACTS = "job ID=01000000, lease ID=04ff, task name={task}, required resources={{CPU: 0.25}}, pid=1"


def report(*lines: str) -> str:
    """Return a report of Ray's memory monitor, shortened, with the workers that it compared."""
    n_killed = sum(line.startswith("Selected") for line in lines)
    head = f"{n_killed} worker(s) were killed due to the node running low on memory. It was 2.62GB used / 23.54GB limit"
    users = "Top 10 memory users: PID\tMEM(GB)\tCOMMAND\n1\t9.75\tray::Lane.run"
    return "\n".join([head, "Considered workers: [", *lines, "]", users])


def lane(actor_id: str, gb: float) -> str:
    return f"(Actor({actor_id}): {_FACTS.format(task='Lane.__init__')}, actual memory used={gb}GB, worker ID=53f3)"


def process(name: str, gb: float) -> str:
    return f"(Task: {_FACTS.format(task=name)}, actual memory used={gb}GB, worker ID=11d7)"


def killed(worker: str) -> str:
    return f"Selected to kill: {worker}"


def test_a_small_process_that_was_killed_for_a_large_one_is_no_culprit() -> None:
    text = report(killed(lane(LANE, 0.15)), killed(process(PROCESS, 3.4)), lane(OTHER_LANE, 0.15))
    assert not is_oom_culprit(LANE, SMALL, text)
    assert is_oom_culprit(PROCESS, LARGE, text)


def test_a_small_process_is_not_a_culprit_if_the_large_one_survives() -> None:
    assert not is_oom_culprit(PROCESS, SMALL, report(killed(process(PROCESS, 0.14)), lane(LANE, 3.9)))


def test_a_lane_can_be_the_culprit() -> None:
    assert is_oom_culprit(LANE, LARGE, report(killed(lane(LANE, 3.9)), process(PROCESS, 0.1)))


def test_two_processes_that_filled_the_memory_together_are_both_culprits() -> None:
    text = report(killed(process(PROCESS, 1.9)), killed(process("job-1-7-1", 2.5)))
    assert is_oom_culprit(PROCESS, 1900 << 20, text)
    assert is_oom_culprit("job-1-7-1", 2500 << 20, text)


def test_other_work_on_the_cluster_is_not_compared() -> None:
    assert is_oom_culprit(PROCESS, LARGE, report(killed(process(PROCESS, 3.5)), process("train", 12.0)))


def test_a_task_in_a_process_that_was_started_for_another_is_judged_by_its_own_count() -> None:
    text = report(killed(process("job-1-7-1", 3.5)), killed(process("job-1-8-1", 0.1)))
    assert is_oom_culprit(PROCESS, LARGE, text)
    assert not is_oom_culprit("job-1-7-1", SMALL, text)


def test_a_process_on_a_node_without_a_lane_is_found_by_its_name() -> None:
    text = report(killed(process(PROCESS, 3.5)), killed(process("job-1-8-1", 0.1)))
    assert [is_oom_culprit(name, 0, text) for name in (PROCESS, "job-1-8-1")] == [True, False]


@pytest.mark.parametrize("text", ["", report(killed(process("job-1-7-1", 2.5)))], ids=["empty", "others"])
def test_a_process_that_had_not_begun_is_no_culprit(text: str) -> None:
    assert not is_oom_culprit(PROCESS, 0, text)
