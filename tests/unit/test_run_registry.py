"""A lane runs each attempt once, however often it is called for, and reports each to its driver."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchray.executors.ray.run_registry import (
    MAX_MESSAGE_BYTES,
    RunRegistry,
    RunReport,
    Start,
    pack_call,
    pack_reports,
    unpack_call,
    unpack_reports,
)
from tests.polling import run_pending_tasks

LOST = "its report was lost on the way"


class Work:
    """Work that waits until it may end, and counts how often it was started and stopped."""

    def __init__(self, report: bytes = b"report") -> None:
        self._report = report
        self.may_end = asyncio.Event()
        self.n_started = self.n_stopped = 0

    async def __call__(self) -> bytes:
        self.n_started += 1
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.n_stopped += 1
            raise
        return self._report


async def report_of(runs: RunRegistry, key: str, work: Work) -> RunReport:
    """Start a run that may end, and return its report, which is the only one."""
    work.may_end.set()
    runs.start(key, work)
    (report,) = await runs.reports()
    return report


async def test_a_second_start_joins_the_run_and_after_its_end_brings_the_same_report() -> None:
    runs, work = RunRegistry(), Work()
    runs.start("k", work)
    runs.start("k", work)
    await run_pending_tasks()
    assert await report_of(runs, "k", work) == RunReport("k", b"report")
    assert await report_of(runs, "k", work) == RunReport("k", b"report")
    assert work.n_started == 1


async def test_a_call_that_waits_gets_all_runs_that_end_in_the_same_moment() -> None:
    runs, works = RunRegistry(), [Work(b"%d" % n) for n in range(3)]
    for n, work in enumerate(works):
        runs.start(str(n), work)
    call = asyncio.ensure_future(runs.reports())
    await run_pending_tasks()
    for work in works[:2]:
        work.may_end.set()
    assert await call == [RunReport("0", b"0"), RunReport("1", b"1")]
    works[2].may_end.set()
    assert await runs.reports() == [RunReport("2", b"2")]


async def test_a_call_that_waits_returns_when_the_next_comes_because_its_answer_may_be_lost() -> None:
    runs, work = RunRegistry(), Work()
    runs.start("k", work)
    calls = [asyncio.ensure_future(runs.reports()) for _ in range(3)]
    await run_pending_tasks()
    assert [call.done() for call in calls] == [True, True, False]
    work.may_end.set()
    assert [await call for call in calls] == [[], [], [RunReport("k", b"report")]]


async def test_reports_that_are_too_large_for_one_message_come_in_several() -> None:
    runs, work = RunRegistry(), Work(b"x" * (MAX_MESSAGE_BYTES // 2))
    work.may_end.set()
    for n in range(3):
        runs.start(str(n), work)
    await run_pending_tasks()
    assert [[report.key for report in await runs.reports()] for _ in range(3)] == [["0"], ["1"], ["2"]]


async def test_asking_for_a_run_returns_its_report_again_or_that_it_is_unknown() -> None:
    runs, work, running = RunRegistry(), Work(), Work()
    await report_of(runs, "ended", work)
    runs.start("running", running)
    runs.stop(["stopped"])
    for key in ("ended", "running", "stopped", "unknown"):
        runs.ask(key)
    assert await runs.reports() == [RunReport("ended", b"report"), RunReport("unknown", is_unknown=True)]
    runs.stop(["running"])


async def test_a_call_that_times_out_returns_nothing_and_the_next_gets_the_report() -> None:
    runs, work = RunRegistry(idle_s=0.0), Work()
    runs.start("k", work)
    assert await runs.reports() == []
    assert await report_of(runs, "k", work) == RunReport("k", b"report")


async def test_a_stopped_run_ends_without_a_report_and_does_not_start_again() -> None:
    runs, work, other = RunRegistry(), Work(), Work()
    runs.start("k", work)
    await run_pending_tasks()
    runs.stop(["k"])
    await run_pending_tasks()
    runs.start("k", work)
    assert await report_of(runs, "other", other) == RunReport("other", b"report")
    assert (work.n_started, work.n_stopped) == (1, 1)


async def test_a_run_that_is_stopped_before_its_start_arrives_does_not_start() -> None:
    runs, work = RunRegistry(), Work()
    runs.stop(["k"])
    runs.start("k", work)
    await run_pending_tasks()
    assert work.n_started == 0


async def test_a_run_that_is_stopped_after_its_end_keeps_its_report() -> None:
    runs, work = RunRegistry(), Work()
    await report_of(runs, "k", work)
    runs.stop(["k"])
    assert await report_of(runs, "k", work) == RunReport("k", b"report")


async def test_an_exception_reaches_the_driver_and_the_run_is_not_repeated() -> None:
    async def fails() -> bytes:
        raise LookupError("nowhere")

    runs = RunRegistry()
    for expected in (RunReport("k", failed="LookupError: nowhere"), RunReport("k", lost=LOST)):
        runs.start("k", fails)
        assert await runs.reports() == [expected]


class WithoutText(Exception):
    def __str__(self) -> str:
        raise LookupError("nowhere")


@pytest.mark.parametrize("error", [WithoutText(), RuntimeError("\ud800")])
async def test_an_exception_whose_text_is_odd_spoils_no_other_report(error: Exception) -> None:
    async def fails() -> bytes:
        raise error

    runs, work = RunRegistry(), Work()
    work.may_end.set()
    runs.start("k", fails)
    runs.start("other", work)
    await run_pending_tasks()
    failed, ended = unpack_reports(pack_reports(await runs.reports()))
    assert failed.failed.startswith(type(error).__name__)
    assert ended == RunReport("other", b"report")


async def test_a_run_that_cancels_itself_is_an_error() -> None:
    async def cancels_itself() -> bytes:
        raise asyncio.CancelledError

    runs = RunRegistry()
    runs.start("k", cancels_itself)
    assert await runs.reports() == [RunReport("k", failed="RuntimeError: the run cancelled itself")]


@pytest.mark.parametrize("limits", [{"max_reports": 2}, {"max_bytes": 5}])
async def test_only_the_newest_reports_are_stored_and_a_run_without_its_report_is_not_repeated(
    limits: dict[str, int],
) -> None:
    runs, works = RunRegistry(**limits), [Work(f"r{n}".encode()) for n in range(3)]
    for n, work in enumerate(works):
        await report_of(runs, str(n), work)
    assert [(await report_of(runs, str(n), works[n])).content for n in (1, 2)] == [b"r1", b"r2"]
    assert await report_of(runs, "0", works[0]) == RunReport("0", lost=LOST)
    assert [work.n_started for work in works] == [1, 1, 1]


async def test_the_newest_report_is_stored_whatever_its_length() -> None:
    runs, work = RunRegistry(max_bytes=5), Work(b"longer than that")
    assert [(await report_of(runs, "k", work)).content for _ in range(2)] == [b"longer than that"] * 2
    assert work.n_started == 1


async def test_stopped_runs_do_not_displace_reports() -> None:
    runs, work, stopped = RunRegistry(max_reports=1, max_marks=2), Work(), Work()
    await report_of(runs, "k", work)
    runs.stop(["s1", "s2", "s3"])
    assert await report_of(runs, "k", work) == RunReport("k", b"report")
    runs.start("s3", stopped)
    await run_pending_tasks()
    assert stopped.n_started == 0


STARTS = st.builds(Start, st.text(max_size=3), st.sampled_from([b"a", b"b"]), st.binary(max_size=5), st.booleans())


@given(st.lists(STARTS))
def test_starts_survive_the_way_to_a_lane_and_an_agent_is_sent_once(starts: list[Start]) -> None:
    given, asked = unpack_call(pack_call(starts, ["k"]))
    assert (sorted(given), asked) == (sorted(starts), ["k"])
    agent = random.Random(1).randbytes(1000)
    assert pack_call([Start(str(n), agent, b"") for n in range(5)]).count(agent) == 1


@given(st.lists(st.builds(RunReport, st.text(), st.binary(), st.text(), st.text(), st.booleans())))
def test_reports_survive_the_way_to_the_driver(reports: list[RunReport]) -> None:
    assert unpack_reports(pack_reports(reports)) == reports
