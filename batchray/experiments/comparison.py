"""Comparisons: outcomes and scores by agent, model or anything else, with intervals and paired differences."""

from __future__ import annotations

import hashlib
import importlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from batchray.errors import UsageError
from batchray.experiments.bootstrap import Interval, interval_of_mean
from batchray.experiments.cross import REPEAT, REQUEST
from batchray.experiments.scoring import SCORED, read_rating
from batchray.jobs.handle import Job
from batchray.schema import Result
from batchray.views.extras import needing
from batchray.views.plain_text import in_short

if TYPE_CHECKING:
    import pandas as pd

Key = Callable[[Result], Any]
_Name = str | int
"""The name of a request, which all answers to it share."""
_Means = dict[_Name, float]
"""Means by request."""
_SET_BY_CROSS = ("agent_id", "custom_id", "metadata")
_Agents = Mapping[str, Mapping[str, Any]]
"""The settings of agents by id."""


def compare(
    job: Job | Sequence[Job],
    by: str | Sequence[str] | Key = "agent_id",
    *,
    scores: Job | None = None,
    baseline: Any = None,
    failed_score: float | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Return a frame with one row per group of outcomes.  Needs the extra `batchray[pandas]`.

    A notebook and `print` show it as a table for people, each mean with its interval.

    `job` is a job, the job of its ratings (what `apply` returns), or several of them; `scores` are the ratings of
    `job`.  `by` names what to group by, one name or several: `agent_id`, `model`, `job`, another field of a result, a
    label or a field of the agents such as `temperature`, a key of the requests' metadata, or a column of their table;
    or it is a function of a Result.

    | column | meaning |
    |---|---|
    | `requests`, `success_rate` | outcomes in the group; the share of them that succeeded |
    | `scored`, `score`, `score_low`, `score_high` | outcomes with a score; their mean, and the interval of the mean |
    | `pairs`, `score_pairs` | requests that both this group and the baseline have; those that both have scored |
    | `success_difference`, `..._low`, `..._high` | success rate minus that of the baseline, over these pairs |
    | `score_difference`, `..._low`, `..._high` | the same of the score, over the `score_pairs` |
    | `prompt_tokens`, `completion_tokens`, `cost_usd` | sums |
    | `p50_s`, `p95_s` | percentiles of the duration of the outcomes that succeeded |

    A mean is taken over requests; the answers to one request, such as repeats, are averaged first, because they are
    not independent.  Two outcomes of one job belong to one request if `cross` made them from it.  All others do if
    `cross` took them from requests of one custom_id that is not a number, or if their inputs, or in several jobs their
    rows, are equal.
    `baseline` is a group, by default the first one.  `failed_score` is the score of an outcome that failed; by default
    it has none.  Intervals have the given level and come from a bootstrap with `seed`; from 20,000 requests on, from
    the normal distribution.  An outcome without cost makes the sum of its group missing.

    Raises UsageError for a name that none of these has, and for an unknown baseline.
    """
    with needing("pandas", "pandas"):
        importlib.import_module("pandas")
    jobs, ratings = _split(job, scores)
    rated = _scores(ratings)
    groups: dict[Any, _Group] = defaultdict(_Group)
    requests = _Requests(is_one_job=len(jobs) == 1)
    agents = {each.id: each.agents() for each in jobs}
    for each in jobs:
        key_of = _key(by, each, agents)
        for result in each.results("index", wait=False, include_input=True):
            request, score = requests.name_of(result), rated.get((each.id, result.index))
            groups[key_of(result)].add(request, result, score, failed_score)
    if not groups:
        raise UsageError(f"job {jobs[0].id} has no outcomes to compare")
    reference = next(iter(groups)) if baseline is None else baseline
    if reference not in groups:
        known = ", ".join(repr(key) for key in list(groups)[:8])
        raise UsageError(f"no group is {reference!r}, which is named as the baseline; groups: {known}")
    rows = [_row(group, groups[reference], level, seed) for group in groups.values()]
    return _frame(list(groups), rows, by, reference, level)


@dataclass
class _Group:
    """The outcomes of a group, kept as numbers; successes and scores by request."""

    succeeded: dict[_Name, list[float]] = field(default_factory=lambda: defaultdict(list))
    scores: dict[_Name, list[float]] = field(default_factory=lambda: defaultdict(list))
    durations_s: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = 0.0

    def add(self, request: _Name, result: Result, score: float | None, failed_score: float | None) -> None:
        is_success = result.status == "succeeded"
        self.succeeded[request].append(float(is_success))
        if is_success:
            self.durations_s.append(result.timing.duration_ns / 1e9)
        else:
            score = failed_score
        if score is not None:
            self.scores[request].append(score)
        self.prompt_tokens += result.usage.prompt_tokens
        self.completion_tokens += result.usage.completion_tokens
        known = self.cost_usd is not None and result.cost_usd is not None
        self.cost_usd = (self.cost_usd or 0.0) + (result.cost_usd or 0.0) if known else None


class _Requests:
    """Finds out which answers belong to one request, and names it.

    `cross` names a request by its custom_id, or by its position, which says nothing about the requests of another job.
    Others are the same if their inputs are equal, and in several jobs, whose prompts may differ, if their rows are.
    Columns of a table may have the names that `cross` uses.
    """

    def __init__(self, *, is_one_job: bool) -> None:
        self._is_one_job = is_one_job
        self._known: dict[bytes, int] = {}

    def name_of(self, result: Result) -> _Name:
        """Return what all answers to one request share."""
        metadata = result.metadata or {}
        if REQUEST in metadata and REPEAT in metadata:
            name = str(metadata[REQUEST])
            if self._is_one_job or not name.isdecimal():
                return name
        digests = [_digest(result.input)]
        row = {key: value for key, value in (result.row or {}).items() if key not in _SET_BY_CROSS}
        if row and not self._is_one_job:
            digests.append(_digest(row))
        number = next((self._known[each] for each in digests if each in self._known), len(self._known))
        for each in digests:
            self._known.setdefault(each, number)
        return number


def _digest(content: Any) -> bytes:
    encoded = orjson.dumps(content, default=str, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(encoded, digest_size=16).digest()


def _given_with(result: Result) -> Mapping[str, Any]:
    """Return the request's metadata, and the columns of its row."""
    row = result.row or {}
    of_row = row.get("metadata")
    return {**row, **(of_row if isinstance(of_row, Mapping) else {}), **(result.metadata or {})}


def _split(given: Job | Sequence[Job], scores: Job | None) -> tuple[list[Job], list[Job]]:
    """Return the jobs to compare, and those with ratings of them, which bring the jobs that they rate."""
    given = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    if wrong := next((each for each in given if not isinstance(each, Job)), None):
        raise UsageError(f"compare: it takes a job, or a list of jobs, not {in_short(repr(wrong), 60)}")
    jobs: dict[str, Job] = {}
    ratings = [scores] if scores is not None else []
    for each in given:
        source_id = _rated_job(each)
        if source_id is None:
            jobs[each.id] = each
        else:
            ratings.append(each)
            jobs.setdefault(source_id, Job(source_id, each.data_dir, url=each.url))
    if not jobs:
        raise UsageError("compare: there are no jobs")
    return list(jobs.values()), ratings


def _rated_job(job: Job) -> str | None:
    """Return the id of the job whose outcomes this one rates; None if it is not a job of ratings."""
    first = next(job.results("index", wait=False), None)
    scored = (first.metadata or {}).get(SCORED) if first is not None else None
    return str(scored["job"]) if isinstance(scored, dict) else None


def _scores(ratings: Sequence[Job]) -> dict[tuple[str, int], float]:
    scores: dict[tuple[str, int], float] = {}
    for job in ratings:
        for rating in job.results("index", wait=False):
            scored = (rating.metadata or {}).get(SCORED)
            if scored is not None and rating.status == "succeeded":
                score = read_rating(rating.text).score
                if score is not None:
                    scores[scored["job"], scored["index"]] = score
    return scores


def _key(by: str | Sequence[str] | Key, job: Job, agents: Mapping[str, _Agents]) -> Key:
    """Return a function from a result of the job to its group; `agents` are those of all jobs, by the job's id."""
    if callable(by):
        return lambda result: _hashable(by(result))
    if isinstance(by, str):
        return _named(by, job, agents)
    if not by:
        raise UsageError("compare: `by` names nothing to group by")
    keys = [_named(name, job, agents) for name in by]
    return lambda result: tuple(key(result) for key in keys)


def _named(name: str, job: Job, agents: Mapping[str, _Agents]) -> Key:
    if name == "job":
        return lambda result: job.id
    if name in ("agent_id", "model", "status", "stop_reason", "custom_id"):
        return lambda result: None if (value := getattr(result, name)) is None else str(value)
    settings = {of_job: _settings(each) for of_job, each in agents.items()}
    is_of_agents = any(name in each for of_job in settings.values() for each in of_job.values())
    own = settings[job.id]

    def value_of(result: Result) -> Any:
        if is_of_agents and result.agent_id in own:  # None for an agent that leaves it to its default
            return _hashable(own[result.agent_id].get(name))
        given = _given_with(result)
        if name in given:
            return _hashable(given[name])
        known = ", ".join(dict.fromkeys([*(key for agent in own.values() for key in agent), *given]))
        where = f"neither agent {result.agent_id!r} nor item {result.index} has it"
        raise UsageError(f"cannot group by {name!r}: {where}" + (f"; they have: {known}" if known else ""))

    return value_of


def _settings(agents: _Agents) -> dict[str, dict[str, Any]]:
    """Return the labels and the settings of each agent; a label wins."""
    labels = {agent_id: agent.get("labels", {}) for agent_id, agent in agents.items()}
    return {agent_id: {**labels[agent_id], **agent, **labels[agent_id]} for agent_id, agent in agents.items()}


def _hashable(value: Any) -> Any:
    try:
        hash(value)
    except TypeError:
        return orjson.dumps(value, default=str).decode()
    return value


def _row(group: _Group, baseline: _Group, level: float, seed: int) -> dict[str, Any]:
    import numpy as np

    means, reference = _means(group.scores), _means(baseline.scores)
    success, success_reference = _means(group.succeeded), _means(baseline.succeeded)
    score = interval_of_mean(np.array(list(means.values())), seed, level)
    durations = np.array(group.durations_s or [float("nan")])
    return {
        "requests": sum(map(len, group.succeeded.values())),
        "success_rate": interval_of_mean(np.array(list(success.values())), seed, level).mean,
        "scored": sum(map(len, group.scores.values())),
        **_columns("score", score),
        "pairs": len(success.keys() & success_reference.keys()),
        "score_pairs": len(means.keys() & reference.keys()),
        **_columns("success_difference", _difference(success, success_reference, level, seed)),
        **_columns("score_difference", _difference(means, reference, level, seed)),
        "prompt_tokens": group.prompt_tokens,
        "completion_tokens": group.completion_tokens,
        "cost_usd": group.cost_usd,
        "p50_s": float(np.quantile(durations, 0.5)),
        "p95_s": float(np.quantile(durations, 0.95)),
    }


def _means(by_request: Mapping[_Name, Sequence[float]]) -> _Means:
    return {key: sum(values) / len(values) for key, values in by_request.items()}


def _difference(values: _Means, reference: _Means, level: float, seed: int) -> Interval:
    import numpy as np

    both = [key for key in values if key in reference]
    return interval_of_mean(np.array([values[key] - reference[key] for key in both]), seed, level)


def _columns(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _frame(
    keys: Sequence[Any],
    rows: Sequence[Mapping[str, Any]],
    by: str | Sequence[str] | Key,
    reference: Any,
    level: float,
) -> pd.DataFrame:
    import pandas as pd

    from batchray.experiments.comparison_frame import Comparison

    if callable(by) or isinstance(by, str):
        index = pd.Index(keys, name=by if isinstance(by, str) else getattr(by, "__name__", None), tupleize_cols=False)
    else:
        index = pd.MultiIndex.from_tuples(keys, names=list(by))
    frame = pd.DataFrame(list(rows), index=index)
    integers = ("requests", "scored", "pairs", "score_pairs", "prompt_tokens", "completion_tokens")
    typed = frame.astype({name: "Int64" if name in integers else "Float64" for name in frame})
    return Comparison(typed, baseline=typed.index[keys.index(reference)], level=level)
