"""Reports of jobs as text, Markdown, JSON and HTML."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import batchray
from batchray import Agent, AgentRequest, Job
from batchray.cli.main import cli
from batchray.errors import UsageError
from batchray.schema import new_job_id
from batchray.store import NewAttempt, NewItem, NewJob, NewOutcome, OutcomeFigures, Store
from batchray.views.plain_text import in_short
from batchray.views.report import Report, _Failures

HOSTILE = "<script>alert(1)</script>|\x1b[31m\x1b]0;title\x07\x9b\u202e`"


def answer(request: AgentRequest) -> str:
    if "fail" in str(request.input):
        raise LookupError(f"no {request.input} {HOSTILE}")
    return "fine"


def run(data_dir: Path, *inputs: str, agents: list[Agent] | None = None) -> Job:
    requests = [{"agent_id": "a", "custom_id": f"r{i}", "input": text} for i, text in enumerate(inputs)]
    given_agents = agents or [Agent(id="a", run=answer)]
    return batchray.run(requests, given_agents, executor="local", progress=False, data_dir=data_dir)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return run(tmp_path / "data", "fine", "fail one", "fail one", "fail two", "fine")


def call(job: Job, *arguments: str) -> str:
    done = CliRunner().invoke(cli, [*arguments, "--data-dir", str(job.data_dir)])
    assert done.exit_code == 0, done
    return done.output


def test_a_report_groups_failures_by_message_with_an_example(job: Job) -> None:
    report = job.report()
    assert dict(report.counts) == {"succeeded": 2, "errored": 3, "canceled": 0, "expired": 0}
    assert [(group.n_items, group.type, group.index, group.custom_id) for group in report.failures] == [
        (2, "LookupError", 1, "r1"),
        (1, "LookupError", 3, "r3"),
    ]
    assert report.n_other_failures == 0
    assert sorted(each.index for each in report.slowest) == [0, 1, 2, 3, 4]
    assert [each.duration_s for each in report.slowest] == sorted(
        (each.duration_s for each in report.slowest), reverse=True
    )


def test_a_report_names_the_commands_that_come_next(job: Job) -> None:
    place = f"--data-dir {job.data_dir}"
    assert [(step.command, step.call) for step in job.report().next_steps] == [
        (f"batchray show {job.id} 1 {place}", "job.result(1)"),
        (f"batchray results {job.id} --failed {place}", "job.results(failed=True)"),
        (f"batchray retry {job.id} {place}", f"batchray.retry({job.id!r}, data_dir={str(job.data_dir)!r})"),
    ]


def test_costs_are_those_of_the_results(tmp_path: Path) -> None:
    priced = Agent(id="a", model="offline/rules", prices={"input": 3, "output": 5, "cached_input": 1})
    job = run(tmp_path / "data", "one", "two", "three", agents=[priced])
    costs = [result.cost_usd or 0.0 for result in job.results()]
    assert job.report().cost_usd == pytest.approx(sum(costs))
    assert sum(costs) > 0
    assert job.report().n_without_cost == 0
    assert "cost: $" in str(job.report())


def test_all_forms_have_the_facts_and_nothing_that_acts(job: Job) -> None:
    for text in (call(job, "report", job.id), call(job, "report", job.id, "--markdown"), str(job.report())):
        assert "3 of 5" in text or "5 of 5 done" in text
        assert "LookupError: no fail one" in text
        assert not set(text) & set("\x1b\x07\x9b\u202e\r")
    assert "<script>" not in call(job, "report", job.id, "--markdown")
    for html in (job._repr_html_(), job.report()._repr_html_()):
        assert "LookupError: no fail one &lt;script&gt;" in html
        assert "<script>" not in html
        assert not set(html) & set("\x1b\x07\x9b\u202e")
        cells = re.findall(r"<t[dh]\b[^>]*>", html)
        assert all("text-align:left" in cell for cell in cells)  # front ends align to the right
        assert all("nowrap" in cell for cell in cells if cell.startswith("<th"))  # heads are not cut within words


def test_a_message_in_short_is_a_line_without_colours() -> None:
    assert in_short("\x1b[31mred\x1b[0m\nand \x07blue") == "red and blue"


def test_a_report_as_json_is_one_object_without_nan(job: Job) -> None:
    output = call(job, "report", job.id, "--json")
    data: dict[str, Any] = json.loads(output, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert output.count("\n") == 1
    assert data["done"] == data["total"] == 5
    assert data["failures"][0]["n_items"] == 2
    assert data["timing"]["ttft"]["p50"] is None


def test_two_forms_of_a_report_at_once_are_refused(job: Job) -> None:
    done = CliRunner().invoke(cli, ["report", job.id, "--json", "--markdown", "--data-dir", str(job.data_dir)])
    assert isinstance(done.exception, UsageError)
    assert (str(done.exception), done.output) == ("give only one of --json and --markdown", "")


def test_a_sample_of_the_failures_says_of_how_many(tmp_path: Path) -> None:
    with Store.open(tmp_path / "data") as store:
        job_id = new_job_id()
        store.jobs.create(NewJob(job_id, lambda ids: {}), [NewItem("a", f"f{n}", b"{}") for n in range(700)])
        led = store.jobs.start(job_id)
        store.outcomes.write(led, [NewAttempt(index, 1) for index in range(700)])
        store.outcomes.write(led, [], [_failed(index, {"type": "E", "message": "refused"}) for index in range(700)])
    job = batchray.attach(job_id, tmp_path / "data")
    title, counted = "failures: the newest 500 of 700", "of these 500"
    for shown in (str(job.brief_report()), job._repr_html_()):
        assert title in shown
        assert counted in shown
    whole = str(job.report())
    assert "failures by message" in whole
    rows = [" ".join(line.split()) for line in whole.splitlines()]
    assert "stop reason requests example: index (custom_id) error" in rows
    assert "error 700 0 (f0) E: refused" in rows
    assert "index (custom_id) agent outcome start to end" in rows


def test_a_run_with_failures_ends_with_the_commands_that_come_next(tmp_path: Path) -> None:
    agents, requests, data = tmp_path / "agents.yaml", tmp_path / "requests.jsonl", tmp_path / "data"
    agents.write_text(f"agents:\n- id: a\n  run: {__name__}:answer\n")
    requests.write_text('{"agent_id": "a", "input": "fail"}\n{"agent_id": "a", "input": "fine"}\n')
    run = ["run", str(requests), "--agents", str(agents), "--executor", "local", "--data-dir", str(data)]
    done = CliRunner().invoke(cli, run)
    assert done.exit_code == 1, done
    place = f"{done.output.split()[0]} --data-dir {data}"
    assert done.output.splitlines()[-1] == f"next: batchray report {place}; batchray retry {place}"
    assert "since the batch was accepted; on Ray, with Ray's own start" in done.output


def test_a_job_without_outcomes_has_a_report(tmp_path: Path) -> None:
    with Store.open(tmp_path / "data") as store:
        job_id = new_job_id()
        store.jobs.create(NewJob(job_id, lambda ids: {}), [NewItem("a", None, b"{}")] * 4)
    job = batchray.attach(job_id, tmp_path / "data")
    report = job.report()
    assert not report.failures
    assert not report.slowest
    assert "not done" in str(report)
    assert [step.command.split()[1] for step in report.next_steps] == ["resume"]
    assert "interrupted, 0 of 4 done" in job._repr_html_()


def test_the_html_of_a_job_that_cannot_be_read_is_a_sentence(job: Job) -> None:
    gone = batchray.Job(new_job_id(), job.data_dir)
    assert "cannot be read now: UnknownJobError" in gone._repr_html_()
    nowhere = batchray.Job(job.id, job.data_dir / "<b>nowhere")
    assert "&lt;b&gt;nowhere" in nowhere._repr_html_()
    assert repr(nowhere) == f"<Job {job.id}: {job.data_dir}/<b>nowhere>"


def test_the_html_of_a_large_job_is_small_and_reads_few_outcomes(tmp_path: Path) -> None:
    error = {"type": "E" * 100_000, "message": "<" * 100_000}
    with Store.open(tmp_path / "data") as store:
        job_id = new_job_id()
        store.jobs.create(NewJob(job_id, lambda ids: {}), [NewItem("a", "c" * 1000, b"{}")] * 30)
        led = store.jobs.start(job_id)
        store.outcomes.write(led, [NewAttempt(index, 1) for index in range(30)])
        store.outcomes.write(
            led, [], [_failed(index, {**error, "message": f"{index}{error['message']}"}) for index in range(30)]
        )
        pages = [store.figures.newest_failures(led, n) for n in (0, 7, 1000)]
    assert [[each.index for each in page][:2] for page in pages] == [[], [29, 28], [29, 28]]
    assert [len(page) for page in pages] == [0, 7, 30]
    job = batchray.attach(job_id, tmp_path / "data")
    assert len(job._repr_html_()) < 60_000
    assert len(job.report()._repr_html_()) < 60_000


def _failed(index: int, error: dict[str, str]) -> NewOutcome:
    return NewOutcome(
        index=index,
        attempt=1,
        status="errored",
        stop_reason="error",
        error=error,
        usage={},
        queued_ns=1,
        ttft_ns=None,
        duration_ns=index + 1,
        messages=b"[]",
    )


def _figures(index: int, message: str) -> OutcomeFigures:
    error = orjson.dumps({"type": "E", "message": message})
    return OutcomeFigures(index, "a", None, "errored", "error", error, None, 1)


def test_many_messages_that_differ_in_numbers_are_one_group_but_status_codes_are_not() -> None:
    failures = _Failures()
    for index in range(100):
        failures.add(_figures(index, f"row {index} of 0x{index:x}: status {400 + index % 2}"))
    groups, n_other = failures.groups()
    assert [(group.n_items, group.index) for group in groups] == [(50, 0), (50, 1)]
    assert n_other == 0


@given(st.lists(st.text(max_size=3), max_size=60))
def test_every_failure_is_counted_once(messages: list[str]) -> None:
    failures = _Failures()
    for index, message in enumerate(messages):
        failures.add(_figures(index, message))
    groups, n_other = failures.groups()
    assert sum(group.n_items for group in groups) + n_other == len(messages)
    assert len(groups) <= 20


def test_a_report_is_read_once_more_after_a_retry(job: Job) -> None:
    assert isinstance(job.report(), Report)
    batchray.retry(
        job.id, [Agent(id="a", run=lambda request: "fine")], executor="local", progress=False, data_dir=job.data_dir
    )
    assert job.report().failures == []
    assert [step.call for step in job.report().next_steps] == ["job.to_pandas()"]
