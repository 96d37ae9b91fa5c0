"""A job of 1,000,000 requests: how long its operations take to begin, what its run keeps in memory, its rate, its disk.

The operations work on a job whose outcomes are written by SQL: all but 1,000 items have one, every tenth of them an
error.  The run is a real one, on the offline model.  Limits:

- `status`, first pages of results, and the first part of a cancel, a retry and a retention: 1 s each; each part: 0.5 s
- a resume and a retry begin requests within 3 s
- driver and job actor within 10 % of a run of 10,000 requests, and at most 300 MB; a server at most 300 MB
- rate at the end at least 95 % of that at the start, on a machine that is as fast as it was then (see `machine_speed`);
  bytes for each outcome at the end at most 110 %

    python -m tests.benchmarks.million --requests 100000 --executor ray --database-url postgresql+psycopg://...
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

import orjson
import sqlalchemy as sa

import batchray
from batchray.schema import item_id, message_id, new_job_id, run_id, step_id
from batchray.schema.requests import AgentRequest
from batchray.store import Chunked, LedJob, NewItem, NewJob, Store, run_all
from batchray.store.tables import attempts, items, jobs, outcomes
from tests.benchmarks.harness import JobActorPeak, data_dir, peak_kb
from tests.benchmarks.machine_speed import MachineSpeed
from tests.server.http_client import BATCHES, ask, results
from tests.server.live import live_server

_LEFT = 1_000
_AT_ONCE = 50_000
_SMALL = 10_000
_EARLY, _LATE = (0.05, 0.3), (0.7, 0.95)  # shares of the run that are compared
_AGENTS: dict[str, dict[str, Any]] = {
    "a": {"agent": {"id": "a", "run": "tests.benchmarks.million:answer"}, "provider": None, "import_paths": []}
}
_OFFLINE = {"id": "a", "model": "offline/scripted", "script": [{"text": "word " * 20}]}
_ID = new_job_id()  # any: the messages of all items are the same
_MESSAGE = {
    "id": message_id(_ID, 0, 1),
    "role": "assistant",
    "agent_id": "a",
    "content": [{"type": "text", "text": "word " * 100}],
    "step_id": step_id(_ID, 0, 1),
    "run_id": run_id(_ID, 0),
    "batch_item_id": item_id(_ID, 0),
    "created_at": "2026-01-02T03:04:05.678901Z",
}
_USAGE = orjson.dumps({"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30, "step_count": 1})
_ERROR = orjson.dumps({"type": "ValueError", "message": "no", "traceback": "line\n" * 20})

_OVER = object()

_began: list[float] = []


class Line(NamedTuple):
    """A line of the table; `limit` None: only to be read."""

    name: str
    value: float
    unit: str
    limit: float | None = None

    @property
    def is_held(self) -> bool:
        """Whether the value is within its limit."""
        return self.limit is None or self.value <= self.limit

    def __str__(self) -> str:
        limit = (
            "" if self.limit is None else f"limit {self.limit:g} {self.unit}" + ("" if self.is_held else "  TOO MUCH")
        )
        return f"{self.name:<52} {self.value:>10.2f} {self.unit:<3} {limit}"


def answer(request: AgentRequest) -> str:
    """The agent of the seeded job; it notes when it was first called."""
    if not _began:
        _began.append(time.monotonic())
    return "done"


def _first_call() -> float:
    """Return when `answer` was first called, in this program's other copy: the agent is imported by its name."""
    return float(importlib.import_module("tests.benchmarks.million")._began[0])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--run-requests", type=int, help="of the real run; 0: none")
    parser.add_argument("--executor", choices=["local", "ray"], default="local", help="of the real run")
    parser.add_argument("--database-url", help="an empty PostgreSQL database, for the operations")
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step is not None:
        name, directory, *rest = given.step
        print(json.dumps(_STEPS[name](Path(directory), given.database_url, *rest)))
        return
    lines = _operations(given.requests, given.database_url)
    n_run = given.requests if given.run_requests is None else given.run_requests
    lines += _run(n_run, given.executor) if n_run else []
    print(*lines, sep="\n", flush=True)
    assert all(line.is_held for line in lines), "a limit is not held"


def _step(name: str, directory: Path, url: str | None, *rest: object) -> Any:
    """Take a step in a fresh process; return what it found."""
    options = [] if url is None else ["--database-url", url]
    command = [sys.executable, "-m", __spec__.name, *options, "--step", name, str(directory), *map(str, rest)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def _operations(n: int, url: str | None) -> list[Line]:
    with data_dir() as data:
        data.mkdir()
        job_id = _step("seed", data, url, n, n - _LEFT)
        lines = [line for name in ("read", "resume", "retry", "server") for line in _lines(name, data, url, job_id)]
        unstarted = _step("seed", data, url, n, 0)
        return lines + [line for name in ("cancel", "retain") for line in _lines(name, data, url, unstarted)]


def _lines(name: str, data: Path, url: str | None, job_id: str) -> list[Line]:
    return [Line(*line) for line in _step(name, data, url, job_id)]


def _seed(data: Path, url: str | None, n: str, n_done: str) -> str:
    """Store a job with outcomes for its first `n_done` items; return its id."""
    job_id = new_job_id()
    with Store.open(data, url) as store:
        store.jobs.create(NewJob(job_id, lambda ids: _AGENTS), _items(int(n)))
        job = store.jobs.start(job_id)
        for first in range(0, int(n_done), _AT_ONCE):
            _add_outcomes(store, job, first, min(first + _AT_ONCE, int(n_done)))
            run_all(store.tallies.catch_up(job))
        store.leases.release(job)
    return job_id


def _items(n: int) -> Iterator[NewItem]:
    for index in range(n):
        request = {"agent_id": "a", "custom_id": f"c-{index}", "input": f"What is {index}? {'context ' * 10}"}
        yield NewItem("a", f"c-{index}", orjson.dumps(request))


def _add_outcomes(store: Store, job: LedJob, first: int, end: int) -> None:
    """Write outcomes inside the database, as the writes of a driver would have left them."""
    these = sa.and_(items.c.job == job.key, items.c.idx.between(first, end - 1))
    has_failed = items.c.idx % 10 == 0
    n_failed = sum(index % 10 == 0 for index in range(first, end))
    values = {
        "seq": items.c.idx + 1,
        "attempt": sa.literal(1),
        "status": sa.case((has_failed, "errored"), else_="succeeded"),
        "stop_reason": sa.case((has_failed, "error"), else_="end_turn"),
        "error": sa.case((has_failed, sa.literal(_ERROR, outcomes.c.error.type)), else_=None),
        "usage": sa.literal(_USAGE, outcomes.c.usage.type),
        "queued_ns": items.c.idx * 1_000_000,
        "ttft_ns": items.c.idx % 1000 * 1_000_000 + 1,
        "duration_ns": items.c.idx % 5000 * 1_000_000 + 1,
        "messages": sa.literal(orjson.dumps([_MESSAGE]), outcomes.c.messages.type),
        "finished_at": sa.literal("2026-01-02T03:04:05.678901+00:00"),
    }
    with store.database.transaction() as connection:
        begun = sa.select(items.c.job, items.c.idx, sa.literal(1)).where(these)
        connection.execute(sa.insert(attempts).from_select(["job", "idx", "attempt"], begun))
        made = sa.select(items.c.job, items.c.idx, *values.values()).where(these)
        connection.execute(sa.insert(outcomes).from_select(["job", "idx", *values], made))
        counts = {"errored": jobs.c.errored + n_failed, "succeeded": jobs.c.succeeded + end - first - n_failed}
        tokens = {"prompt_tokens": jobs.c.prompt_tokens + 10 * (end - first), "last_seq": end}
        tokens["completion_tokens"] = jobs.c.completion_tokens + 20 * (end - first)
        connection.execute(sa.update(jobs).where(jobs.c.job == job.key).values(**counts, **tokens))


def _read(data: Path, url: str | None, job_id: str) -> list[Line]:
    def page(**options: Any) -> Callable[[], object]:
        return lambda: store.items.results(record, **options)

    job = batchray.attach(job_id, data_dir=data, database_url=url)
    with Store.open_for_reading(data, url) as store:
        record = store.jobs.get(job_id)
        calls: dict[str, Callable[[], object]] = {
            "status of a job, with percentiles and failures": lambda: (job.status, job.timing, job.failures()),
            "progress from another process": lambda: job.progress,
            "first page of results, in index order": page(),
            "first page of results, in finish order": page(after_seq=0),
            "first page of failed results": page(is_failed=True),
            "failed results after the last one": page(after_seq=record.done, is_failed=True),
            "items that are pending": lambda: store.items.find(record, status="pending"),
            "items of a status that none has": lambda: store.items.find(record, status="expired"),
            "list of jobs": lambda: store.jobs.find(),
            "report in a notebook": job.brief_report,
        }
        return [Line(name, _seconds(call), "s", 1.0) for name, call in calls.items()]


def _seconds(call: Callable[[], object]) -> float:
    start = time.monotonic()
    call()
    return time.monotonic() - start


def _resume(data: Path, url: str | None, job_id: str) -> list[Line]:
    start = time.monotonic()
    job = batchray.resume(job_id, data_dir=data, database_url=url, executor="local", progress=False)
    assert job.record().done == job.record().total
    lines = [Line("resume: until its first request", _first_call() - start, "s", 3.0)]
    return [*lines, Line("resume: memory of the driver", peak_kb(os.getpid()) / 1024, "MB", 300)]


def _retry(data: Path, url: str | None, job_id: str) -> list[Line]:
    start = time.monotonic()
    job = batchray.submit_retry(job_id, data_dir=data, database_url=url, executor="local")
    n_failed = job.record().total // 10
    while not job.is_started or job.progress_now().done < job.record().total - n_failed + 1_000:
        time.sleep(0.1)
    job.stop()  # the server continues it
    lines = [Line(f"retry of {n_failed:,}: until its first request", _first_call() - start, "s", 3.0)]
    return [*lines, Line("retry: memory of the driver", peak_kb(os.getpid()) / 1024, "MB", 300)]


def _cancel(data: Path, url: str | None, job_id: str) -> list[Line]:
    from batchray.jobs.idle import cancel_idle_job

    with Store.open(data, url) as store:
        return _parts("cancel", cancel_idle_job(store, job_id))


def _retain(data: Path, url: str | None, job_id: str) -> list[Line]:
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()

    def prune() -> Chunked[None]:
        while store.retention.prune(tomorrow):
            yield

    with Store.open(data, url) as store:
        with store.database.transaction() as connection:  # until then its callback would keep it
            connection.execute(sa.update(jobs).values(completed_at="2026-01-01"))
        return _parts("retention", prune())


def _parts(name: str, work: Chunked[None]) -> list[Line]:
    took_s, is_over = [], False
    while not is_over:
        start = time.monotonic()
        is_over = next(work, _OVER) is _OVER
        took_s.append(time.monotonic() - start)
    return [
        Line(f"{name}: its first part", took_s[0], "s", 1.0),
        Line(f"{name}: its longest part of {len(took_s):,}", max(took_s), "s", 0.5),
        Line(f"{name}: all of it", sum(took_s), "s"),
    ]


def _server(data: Path, url: str | None, job_id: str) -> list[Line]:
    options = () if url is None else ("--database-url", url)
    with live_server(data, *options) as server:
        calls: dict[str, Callable[[], object]] = {
            "HTTP: the job": lambda: ask(server.url, f"{BATCHES}/{job_id}"),
            "HTTP: its first result": lambda: next(results(server.url, job_id)),
            "HTTP: its canceled items": lambda: ask(server.url, f"{BATCHES}/{job_id}/items?status=canceled"),
            "HTTP: a list of jobs": lambda: ask(server.url, BATCHES),
        }
        lines = [Line(name, _seconds(call), "s", 1.0) for name, call in calls.items()]
        for _ in itertools.islice(results(server.url, job_id), 20_000):  # while it runs the job
            pass
        return [*lines, Line("server: memory", peak_kb(server.pid) / 1024, "MB", 300)]


class _Moment(NamedTuple):
    """How far a run was at a moment, and the bytes of its database."""

    at_s: float
    n_done: int
    n_bytes: int


def _run(n: int, executor: str) -> list[Line]:
    found = {}
    for each in (_SMALL, n):
        with data_dir() as data:
            found[each] = _step("run", data, None, each, executor)
    small, large = found[_SMALL], found[n]
    lines = [Line(f"run of {n:,}: all of it", large["took_s"], "s")]
    for name in ("driver", "job actor"):
        if large[name]:
            lines.append(Line(f"run of {n:,}: memory of the {name}", large[name], "MB", 300))
            lines.append(Line(f"run of {n:,}: of that of {_SMALL:,}", 100 * large[name] / small[name], "%", 110))
    lines.append(Line("time of a request at the end, of that at the start", 100 * large["slower"], "%"))
    lines.append(Line("CPU time of unchanged work, of that at the start", 100 * large["machine"], "%"))
    slower = 100 * large["slower"] / large["machine"]
    lines.append(Line("time of a request, on an unchanged machine", slower, "%", 100 / 0.95))
    return [*lines, Line("bytes of an outcome at the end, of those at the start", 100 * large["larger"], "%", 110)]


def _run_one(data: Path, url: str | None, n: str, executor: Literal["local", "ray"]) -> dict[str, float]:
    data.mkdir(parents=True)
    with (data / "requests.jsonl").open("w") as file:
        for index in range(int(n)):
            request = {"agent_id": "a", "custom_id": f"c-{index}", "input": f"{index} {'x' * 400}"}
            file.write(json.dumps(request) + "\n")
    watch, start = JobActorPeak(), time.monotonic()
    watch.start()
    job = batchray.submit(data / "requests.jsonl", [_OFFLINE], data_dir=data, executor=executor)
    moments = [_Moment(start, 0, 0)]
    with MachineSpeed() as machine:
        while not job.is_done:
            time.sleep(0.2)
            n_bytes = sum(file.stat().st_size for file in data.glob("batchray.db"))
            moments.append(_Moment(time.monotonic(), job.progress_now().done, n_bytes))
    assert job.wait().counts["succeeded"] == int(n)

    def at(share: float) -> _Moment:
        return next(each for each in moments if each.n_done >= share * int(n))

    def ratio(field: str) -> float:
        """Return how much more an outcome takes in the last quarter than in the first."""

        def of_one(first: float, last: float) -> float:
            start, end = at(first), at(last)
            return float(getattr(end, field) - getattr(start, field)) / max(end.n_done - start.n_done, 1)

        return of_one(*_LATE) / max(of_one(*_EARLY), 1e-9)

    def work_s(share: tuple[float, float]) -> float:
        return machine.cpu_s(*(at(each).at_s for each in share))

    return {
        "driver": peak_kb(os.getpid()) / 1024,
        "job actor": watch.stop() / 1024,
        "took_s": moments[-1].at_s - start,
        "slower": ratio("at_s"),
        "machine": work_s(_LATE) / work_s(_EARLY),
        "larger": ratio("n_bytes"),
    }


_STEPS: dict[str, Callable[..., Any]] = {
    "seed": _seed,
    "read": _read,
    "resume": _resume,
    "retry": _retry,
    "cancel": _cancel,
    "retain": _retain,
    "server": _server,
    "run": _run_one,
}


if __name__ == "__main__":
    main()
