"""The driver's calls of a lane: runs of one moment share a call, and a lost call loses no run."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, LocalRayletDiedError

from batchray.errors import ClusterError, RequestError, WorkerDiedError
from batchray.executors.ray import lane_runs
from batchray.executors.ray.lane_runs import LaneRuns
from batchray.executors.ray.run_registry import MAX_MESSAGE_BYTES, RunReport, Start, pack_reports, unpack_call
from tests.builders.references import Reference
from tests.builders.virtual_time import in_virtual_time
from tests.polling import run_pending_tasks


class FakeLane:
    """The actor of a lane: each call waits until the test answers it, the oldest first."""

    def __init__(self) -> None:
        self.exchange = self
        self.calls: list[list[str]] = []
        self.asked: list[list[str]] = []
        self._waiting: deque[asyncio.Future[bytes]] = deque()

    def remote(self, starts: bytes) -> Reference:
        given, asked = unpack_call(starts)
        self.calls.append([start.key for start in given])
        self.asked.append(asked)
        self._waiting.append(asyncio.get_running_loop().create_future())
        return Reference(self._waiting[-1])

    async def answer(self, *reports: RunReport) -> None:
        self._waiting.popleft().set_result(pack_reports(reports))
        await run_pending_tasks()

    async def fail(self, error: Exception) -> None:
        self._waiting.popleft().set_exception(error)
        await run_pending_tasks()

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)


async def started(lane: FakeLane, *keys: str, late_s: float = 60.0) -> tuple[LaneRuns, list[asyncio.Task[bytes]]]:
    runs = LaneRuns(lane, late_s)
    return runs, await run_all(runs, *keys)


async def run_all(runs: LaneRuns, *keys: str, item: bytes = b"item") -> list[asyncio.Task[bytes]]:
    tasks = [asyncio.ensure_future(runs.run(Start(key, b"agent", item))) for key in keys]
    await run_pending_tasks()
    return tasks


def outcomes(tasks: Sequence[asyncio.Task[bytes]]) -> list[bytes | None]:
    return [task.result() if task.done() else None for task in tasks]


async def test_runs_that_start_together_share_a_call_and_reports_come_when_they_are_ready() -> None:
    lane = FakeLane()
    runs, tasks = await started(lane, "a", "b", "c")
    assert lane.calls == [["a", "b", "c"]]
    await lane.answer(RunReport("b", b"1"))
    assert outcomes(tasks) == [None, b"1", None]
    await lane.answer(RunReport("a", b"2"), RunReport("c", b"3"))
    assert outcomes(tasks) == [b"2", b"1", b"3"]
    assert (lane.calls, lane.n_waiting) == ([["a", "b", "c"], []], 0)
    runs.close()


async def test_a_call_waits_at_the_lane_while_runs_are_waited_for_even_if_all_others_return_at_once() -> None:
    lane = FakeLane()
    runs, tasks = await started(lane, "a")
    tasks += await run_all(runs, "b")
    assert lane.n_waiting == 2
    answers = [lane._waiting.popleft() for _ in range(2)]
    for answer in answers:
        answer.set_result(pack_reports([]))
    await run_pending_tasks()
    assert lane.calls == [["a"], ["b"], []]
    await lane.answer(RunReport("a", b"1"), RunReport("b", b"2"))
    assert outcomes(tasks) == [b"1", b"2"]
    runs.close()


async def test_the_report_of_a_run_that_nothing_waits_for_is_dropped() -> None:
    lane = FakeLane()
    runs, (given_up, task) = await started(lane, "a", "b")
    given_up.cancel()
    await lane.answer(RunReport("a", b"1"), RunReport("unknown", b"2"))
    await lane.answer(RunReport("b", b"3"))
    assert task.result() == b"3"
    runs.close()


async def test_large_starts_go_in_several_calls() -> None:
    lane = FakeLane()
    runs = LaneRuns(lane)
    tasks = await run_all(runs, "a", "b", "c", item=b"x" * (MAX_MESSAGE_BYTES // 2))
    assert lane.calls == [["a"], ["b"], ["c"]]
    for key in "abc":
        await lane.answer(RunReport(key, b"1"))
    assert outcomes(tasks) == [b"1"] * 3
    runs.close()


async def test_a_call_counts_each_of_its_agents_once() -> None:
    lane = FakeLane()
    runs = LaneRuns(lane)
    large, other = b"x" * (MAX_MESSAGE_BYTES // 2), b"y" * (MAX_MESSAGE_BYTES // 2)
    starts = {"a": b"small", "b": large, "c": large, "d": other}
    tasks = [asyncio.ensure_future(runs.run(Start(key, agent, b"item"))) for key, agent in starts.items()]
    await run_pending_tasks()
    assert lane.calls == [["a", "b", "c"], ["d"]]
    for keys in lane.calls:
        await lane.answer(*(RunReport(key, b"1") for key in keys))
    assert outcomes(tasks) == [b"1"] * 4
    runs.close()


LOST = ActorUnavailableError("the connection broke", None)


async def test_a_lost_call_is_followed_by_one_that_asks_for_all_runs() -> None:
    lane = FakeLane()
    runs, tasks = await started(lane, "a")
    tasks += await run_all(runs, "b")
    await lane.fail(LOST)
    assert (lane.calls, lane.asked) == ([["a"], ["b"], []], [[], [], ["a", "b"]])
    await lane.answer(RunReport("a", is_unknown=True))
    assert lane.calls[3:] == [["a"]]
    assert lane.asked[3:] == [["a", "b"]]  # the lost call may have taken a report that came after the first question
    await lane.answer(RunReport("b", b"2"))
    await lane.answer(RunReport("a", b"1"))
    assert outcomes(tasks) == [b"1", b"2"]
    runs.close()


async def test_calls_that_are_lost_together_are_followed_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_runs, "_PAUSE_S", 0.0)
    lane = FakeLane()
    runs, tasks = await started(lane, "a")
    tasks += await run_all(runs, "b")
    for call in [lane._waiting.popleft() for _ in range(2)]:
        call.set_exception(LOST)
    await run_pending_tasks()
    assert (lane.calls, lane.asked) == ([["a"], ["b"], []], [[], [], ["a", "b"]])
    await lane.answer(RunReport("a", b"1"), RunReport("b", b"2"))
    assert outcomes(tasks) == [b"1", b"2"]
    runs.close()


@in_virtual_time
async def test_losses_in_a_row_are_raised_after_a_time_and_one_answer_ends_the_row() -> None:
    lane = FakeLane()
    runs, tasks = await started(lane, "a", "b")
    for _ in range(2):
        await lane.fail(LOST)
        await asyncio.sleep(lane_runs._LOST_S - 0.1)
        await lane.fail(LOST)
        await asyncio.sleep(2 * lane_runs._PAUSE_S)
        await lane.answer()
    assert outcomes(tasks) == [None, None]
    await lane.fail(LOST)
    await asyncio.sleep(lane_runs._LOST_S + 0.1)
    await lane.fail(LOST)
    assert [task.exception() for task in tasks] == [LOST, LOST]
    assert lane.n_waiting == 0
    (again,) = await run_all(runs, "a")
    await lane.fail(LOST)
    await lane.answer(RunReport("a", b"1"))
    assert again.result() == b"1"
    runs.close()


async def test_the_death_of_a_lane_is_raised_for_every_run() -> None:
    lane = FakeLane()
    runs, tasks = await started(lane, "a", "b")
    await lane.fail(ActorDiedError())
    assert all(isinstance(task.exception(), ActorDiedError) for task in tasks)
    runs.close()


async def test_a_call_that_returns_no_report_is_followed_by_one_that_asks_for_all_runs() -> None:
    lane = FakeLane()
    runs, tasks = await started(lane, "a", "b")
    await lane.answer()
    assert (lane.calls, lane.asked) == ([["a", "b"], []], [[], ["a", "b"]])
    await lane.answer(RunReport("a", b"1"), RunReport("b", is_unknown=True))
    assert (lane.calls[2:], lane.asked[2:]) == ([["b"]], [[]])
    await lane.answer(RunReport("b", b"2"))
    assert outcomes(tasks) == [b"1", b"2"]
    runs.close()


async def test_a_call_whose_place_a_newer_one_has_taken_asks_for_nothing() -> None:
    lane = FakeLane()
    runs, tasks = await started(lane, "a")
    tasks += await run_all(runs, "b")
    await lane.answer()
    assert (lane.calls, lane.asked) == ([["a"], ["b"]], [[], []])
    await lane.answer(RunReport("a", b"1"), RunReport("b", b"2"))
    assert outcomes(tasks) == [b"1", b"2"]
    runs.close()


async def test_a_late_call_is_followed_by_one_that_asks_for_all_runs_and_its_answer_still_counts() -> None:
    lane = FakeLane()
    runs, tasks = await started(lane, "a", "b", late_s=0.0)
    assert lane.calls[:2] == [["a", "b"], []]
    assert lane.asked[:2] == [[], ["a", "b"]]
    await lane.answer(RunReport("a", b"1"))
    lane._waiting[-1].set_result(pack_reports([RunReport("b", b"2")]))
    await run_pending_tasks()
    assert outcomes(tasks) == [b"1", b"2"]
    runs.close()


@pytest.mark.parametrize(
    ("report", "error"),
    [
        (RunReport("a", lost="gone"), WorkerDiedError("gone", is_suspect=False)),
        (RunReport("a", failed="LookupError: nowhere\nat all"), RequestError("worker_error", "LookupError: nowhere")),
    ],
)
async def test_a_run_without_a_report_is_an_error(report: RunReport, error: Exception) -> None:
    lane = FakeLane()
    runs, (task,) = await started(lane, "a")
    await lane.answer(report)
    raised = task.exception()
    assert (type(raised), vars(raised or error)) == (type(error), vars(error))
    runs.close()


async def test_a_cluster_that_is_gone_is_a_cluster_error() -> None:
    lane = FakeLane()
    runs, (task,) = await started(lane, "a")
    await lane.fail(LocalRayletDiedError())
    assert isinstance(task.exception(), ClusterError)
    runs.close()
