"""A job's report: outcomes, kinds of failures, slowest requests, tokens, cost, and what to do next."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import orjson

from batchray.config import Prices
from batchray.schema import Usage
from batchray.schema.progress import TIMINGS, Percentiles, Progress
from batchray.store import Figures, JobRecord, OutcomeFigures, Tally
from batchray.views.next_steps import JobLocation, in_python, on_command_line

_N_SLOWEST = 10
_N_EXACT, _N_SIMILAR = 20, 500
_MAX_MESSAGE_CHARS = 500
# Numbers and ids in messages, except status codes, which say what has failed.
_NUMBERS = re.compile(
    r"0x[0-9a-fA-F]+|[0-9a-f]{8}-[0-9a-f-]{27}|(?<![\d.])(?<!status )(?<!code )(?<!code: )(?<!HTTP )\d+(?:\.\d+)?"
)


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Requests that failed with the same message, or with messages that differ in numbers only.

    `message` is that of the first of them, whose `index` and `custom_id` are given.
    """

    n_items: int
    stop_reason: str
    type: str
    message: str
    index: int
    custom_id: str | None


@dataclass(frozen=True, slots=True)
class SlowRequest:
    """One of the requests that took longest, in seconds."""

    index: int
    custom_id: str | None
    agent_id: str
    status: str
    duration_s: float
    ttft_s: float | None


class NextStep(NamedTuple):
    """Something to do: why, as a command, and in Python, with the job's handle as `job`."""

    why: str
    command: str
    call: str


@dataclass(frozen=True)
class Report:
    """A job at one moment.  Durations are in seconds.

    `failures` are the most frequent first; `n_other_failures` are in none of them.  `cost_usd` is None without prices;
    `n_without_cost` outcomes with model calls are not in it.  A brief report sums up the newest failures only, and
    has neither `slowest` nor `cost_usd`.
    """

    job_id: str
    status: str
    paused_because: str | None
    total: int
    counts: Mapping[str, int]
    created_at: str
    started_at: str | None
    completed_at: str | None
    duration_s: float | None
    prompt_tokens: int
    completion_tokens: int
    timing: Mapping[str, Percentiles]
    failures: Sequence[FailureGroup]
    n_other_failures: int
    slowest: Sequence[SlowRequest]
    cost_usd: float | None
    n_without_cost: int
    next_steps: Sequence[NextStep]
    is_brief: bool = False

    @property
    def done(self) -> int:
        """Items that have an outcome."""
        return sum(self.counts.values())

    @property
    def n_sampled(self) -> int | None:
        """Number of failures that `failures` sum up; None if that is all of them."""
        n_seen = sum(group.n_items for group in self.failures) + self.n_other_failures
        return n_seen if self.is_brief and n_seen < self.counts["errored"] else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; a percentile that was not measured is None."""
        timing = {
            name: {key: value if value == value else None for key, value in each._asdict().items()}
            for name, each in self.timing.items()
        }
        lists: dict[str, list[Any]] = {
            name: [asdict(each) for each in getattr(self, name)] for name in ("failures", "slowest")
        }
        lists["next_steps"] = [each._asdict() for each in self.next_steps]
        fields = {name: value for name, value in vars(self).items() if name != "is_brief"}
        return {**fields, "counts": dict(self.counts), "done": self.done, "timing": timing, **lists}

    def to_markdown(self) -> str:
        """Return the report as Markdown."""
        from batchray.views.report_text import markdown

        return markdown(self)

    def __str__(self) -> str:
        """Return the report as it is printed in a terminal of 100 columns."""
        from batchray.views.report_text import as_text

        return as_text(self)

    def __repr__(self) -> str:
        return f"<Report of job {self.job_id}: {self.status}, {self.done:,} of {self.total:,} done>"

    def _repr_html_(self) -> str:
        from batchray.views.report_html import report_html

        return report_html(self)


def whole_report(
    record: JobRecord, status: str, place: JobLocation, snapshot: Mapping[str, Any], tally: Tally, figures: Figures
) -> Report:
    """Return the report of the outcomes that are in the tally; of most of them only the usage is read."""
    seen = _Seen(tally.progress(record.total))
    for page in figures.failures(record, tally.until_seq):
        for failure in page:
            seen.failures.add(failure)
    seen.slowest = [_slow(each) for each in figures.slowest(record, tally.until_seq, _N_SLOWEST)]
    seen.costs = _Costs({agent_id: kept["agent"].get("prices") for agent_id, kept in snapshot.items()})
    for counted in figures.usages(record, tally.until_seq, snapshot):
        for (agent_id, usage), n_outcomes in counted.items():
            seen.costs.add(agent_id, orjson.loads(usage), n_outcomes)
    return _report(record, status, place, snapshot, seen, is_brief=False)


def brief_report(
    record: JobRecord,
    status: str,
    place: JobLocation,
    snapshot: Mapping[str, Any],
    failures: Sequence[OutcomeFigures],
    progress: Progress | None,
) -> Report:
    """Return a report of the job's record and some failures, which costs the same however large the job is."""
    seen = _Seen(progress or Progress(total=record.total))
    for figures in failures:
        seen.failures.add(figures)
    return _report(record, status, place, snapshot, seen, is_brief=True)


_Key = tuple[str, str, str]


class _Failures:
    """Failures by their messages while these are few, and by their messages without numbers otherwise."""

    def __init__(self) -> None:
        self._groups: dict[_Key, FailureGroup] = {}
        self._n_items: Counter[_Key] = Counter()
        self._is_exact, self._n_other = True, 0

    def add(self, figures: OutcomeFigures) -> None:
        error = orjson.loads(figures.error or b"{}")
        kind, message = str(error.get("type")), str(error.get("message"))[:_MAX_MESSAGE_CHARS]
        key = (figures.stop_reason, kind, message) if self._is_exact else _similar((figures.stop_reason, kind, message))
        if key in self._groups:
            self._n_items[key] += 1
            return
        group = FailureGroup(1, figures.stop_reason, kind, message, figures.index, figures.custom_id)
        if self._is_exact and len(self._groups) == _N_EXACT:
            self._join_similar()
            key = _similar(key)
        self._put(key, group, 1)

    def _join_similar(self) -> None:
        exact, self._groups = self._groups, {}
        counted, self._n_items = self._n_items, Counter()
        self._is_exact = False
        for key, group in exact.items():
            self._put(_similar(key), group, counted[key])

    def _put(self, key: _Key, group: FailureGroup, n_items: int) -> None:
        if key not in self._groups and len(self._groups) == _N_SIMILAR:
            self._n_other += n_items
            return
        self._groups.setdefault(key, group)
        self._n_items[key] += n_items

    def groups(self) -> tuple[list[FailureGroup], int]:
        """Return the most frequent groups, and the number of failures in none of them."""
        found = [replace(group, n_items=self._n_items[key]) for key, group in self._groups.items()]
        ordered = sorted(found, key=lambda group: (-group.n_items, group.index))
        return ordered[:_N_EXACT], self._n_other + sum(group.n_items for group in ordered[_N_EXACT:])


def _similar(key: _Key) -> _Key:
    return (*key[:2], _NUMBERS.sub("N", key[2]))


class _Costs:
    """Sums up the usage of agents that have prices; its size does not grow with the number of outcomes."""

    def __init__(self, prices: Mapping[str, Any]) -> None:
        self._prices = {agent_id: Prices.model_validate(each) for agent_id, each in prices.items() if each}
        self._usage: dict[str, Counter[str]] = {agent_id: Counter() for agent_id in self._prices}
        self.n_unknown = 0

    def add(self, agent_id: str, usage: Mapping[str, int], n_outcomes: int) -> None:
        """Add a usage that `n_outcomes` outcomes have."""
        if agent_id in self._usage and usage.get("total_tokens"):
            self._usage[agent_id].update({name: n * n_outcomes for name, n in usage.items()})
        elif usage.get("step_count"):
            self.n_unknown += n_outcomes

    @property
    def usd(self) -> float | None:
        if not self._prices:
            return None
        return math.fsum(prices.cost_usd(_usage(self._usage[name])) for name, prices in self._prices.items())


class _Seen:
    """The parts of a report that the job's record has not."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.failures, self.costs = progress, _Failures(), _Costs({})
        self.slowest: Sequence[SlowRequest] = ()


def _slow(figures: OutcomeFigures) -> SlowRequest:
    head = (figures.index, figures.custom_id, figures.agent_id, figures.status)
    return SlowRequest(*head, figures.duration_ns / 1e9, None if figures.ttft_ns is None else figures.ttft_ns / 1e9)


def _usage(sums: Mapping[str, Any]) -> Usage:
    return Usage.model_construct(**sums)  # not checked: sums may be larger than what one request can have


def _report(
    record: JobRecord, status: str, place: JobLocation, snapshot: Mapping[str, Any], seen: _Seen, *, is_brief: bool
) -> Report:
    failures, n_other = seen.failures.groups()
    counts = record.counts if is_brief else seen.progress.counts
    agents = [kept["agent"] for kept in snapshot.values()]
    return Report(
        job_id=record.id,
        status=status,
        paused_because=record.paused_because,
        total=record.total,
        counts=counts,
        created_at=record.created_at,
        started_at=record.started_at,
        completed_at=record.completed_at,
        duration_s=None if record.total_duration_ns is None else record.total_duration_ns / 1e9,
        prompt_tokens=record.prompt_tokens if is_brief else seen.progress.prompt_tokens,
        completion_tokens=record.completion_tokens if is_brief else seen.progress.completion_tokens,
        timing={name: seen.progress.timings[name].percentiles() for name in TIMINGS},
        failures=failures,
        n_other_failures=n_other,
        slowest=seen.slowest,
        cost_usd=seen.costs.usd,
        n_without_cost=seen.costs.n_unknown,
        next_steps=_next_steps(record, status, place, agents, failures),
        is_brief=is_brief,
    )


def _next_steps(
    record: JobRecord,
    status: str,
    place: JobLocation,
    agents: Sequence[Mapping[str, Any]],
    failures: Sequence[FailureGroup],
) -> list[NextStep]:
    def step(why: str, words: str, call: str, *more: str) -> NextStep:
        return NextStep(why, on_command_line(words, record.id, place, *more), call)

    steps = []
    if status == "interrupted" or record.paused_because is not None:
        steps.append(step("continue", "resume", in_python("resume", record.id, place, agents)))
    elif status == "paused":
        steps.append(step("continue", "unpause", "job.unpause()"))
    if failures:
        example = str(failures[0].index)
        steps.append(step("read a failure of the most frequent kind", "show", f"job.result({example})", example))
        steps.append(step("list all failures", "results", "job.results(failed=True)", "--failed"))
    if record.is_ended and record.counts["succeeded"] < record.total:
        retry = in_python("retry", record.id, place, agents)
        steps.append(step("run what did not succeed again", "retry", retry))
    if not steps and record.is_ended:
        steps.append(step("write the results", "results", "job.to_pandas()", "--output", "results.jsonl"))
    if not record.is_ended and status in ("created", "running"):
        steps.append(step("see the progress", "status", "job.progress"))
    return steps
