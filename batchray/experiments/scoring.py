"""Scores: a function or a judge agent that rates the outcomes of a job, run as a job of its own."""

from __future__ import annotations

import logging
import math
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Unpack

import orjson
from pydantic import SecretStr

from batchray.agents.user_code import is_async
from batchray.api import ResumeOptions, attach, run
from batchray.batch.formats.prompts import has_attribute
from batchray.config import Agent
from batchray.errors import UsageError
from batchray.jobs.handle import Job
from batchray.schema import AgentRequest, Result
from batchray.views.plain_text import in_short

logger = logging.getLogger(__name__)

SCORED = "scored"
"""The key in the metadata of a scoring request: `{"job": id, "index": position}` of the outcome that it rates."""

_WORDS = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
_MAX_LOOSE = 100
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)", re.ASCII)
# Models like to write `**Score:** 0.5` or `1.`.
_DECORATION = re.compile(r"^[*_`\s]*(?:(?:score|rating)[*_`\s]*[:=])?[*_`\s]*|[*_`\s]*\.?[*_`\s]*$", re.IGNORECASE)

JUDGE_PROMPT = """\
Rate the answer to the task from 0 (wrong) to 1 (right).

Task:
{input}

Answer:
{text}

Reply with the number alone."""


def apply(
    job: Job | str,
    scorer: Callable[[Result], Any] | Agent | Mapping[str, Any],
    *,
    prompt: str = JUDGE_PROMPT,
    progress: bool = True,
    **options: Unpack[ResumeOptions],
) -> Job:
    """Rate the succeeded outcomes of a job, and return the job of the ratings.

    `scorer` is a function, sync or async, from a `Result` (with its input) to a number, a bool, None for no score, or a
    mapping with the key `score`; or an agent as a judge, which is asked `prompt` with fields of the result in braces:
    `{input}`, `{text}`, `{metadata[name]}`, `{row[column]}`.  A judge answers with a number, yes or no, or JSON with
    the key `score`; a warning says how many of its answers hold no score.  Nothing of `job` runs again.  A scorer that
    raises is an errored outcome of the ratings, which `retry` repeats; `compare` reads the scores.  Other options are
    settings and `providers`, as of `run`.

    The outcomes of a job that still runs are rated as they come.
    Raises UsageError if there is nothing to rate, or the prompt names a field that a result does not have.
    """
    source = job if isinstance(job, Job) else attach(job, options.get("data_dir"), _text(options.get("database_url")))
    if isinstance(scorer, Mapping):
        scorer = Agent(**scorer)
    if isinstance(scorer, Agent):
        judge, render = scorer, _Prompt(prompt).render
    else:
        judge, render = Agent(id=_name_of(scorer), run=_scoring(scorer)), _result_as_text
    options.setdefault("data_dir", source.data_dir)
    options.setdefault("database_url", source.url)
    if not source.counts["succeeded"] and source.is_done:
        raise UsageError(f"job {source.id} has no succeeded outcome to rate")
    ratings = run(_scoring_requests(source, judge.id, render), [judge], progress=progress, **options)
    if judge is scorer:
        _warn_of_unreadable(ratings.id, ratings.results(wait=False))
    return ratings


def _scoring_requests(source: Job, scorer_id: str, render: Callable[[Result], str]) -> Iterator[dict[str, Any]]:
    for result in source.results("index", include_input=True):
        if result.status == "succeeded":
            yield {
                "agent_id": scorer_id,
                "custom_id": result.custom_id,
                "input": render(result),
                "metadata": {SCORED: {"job": source.id, "index": result.index}},
            }


def _text(url: str | SecretStr | None) -> str | None:
    return url.get_secret_value() if isinstance(url, SecretStr) else url


def _result_as_text(result: Result) -> str:
    return result.model_dump_json()


def _name_of(scorer: Callable[..., Any]) -> str:
    if not callable(scorer):
        raise UsageError(f"a scorer is a function or an agent, not {type(scorer).__name__}")
    return getattr(scorer, "__name__", type(scorer).__name__)


def _scoring(scorer: Callable[[Result], Any]) -> Callable[[AgentRequest], Any]:
    """Return the scorer as a function agent, whose request has the result as its input."""
    if is_async(scorer):

        async def rate_async(request: AgentRequest) -> Any:
            return _checked(await scorer(Result.model_validate_json(str(request.input))))

        return rate_async

    def rate(request: AgentRequest) -> Any:
        return _checked(scorer(Result.model_validate_json(str(request.input))))

    return rate


def _checked(returned: Any) -> Any:
    """Return what a scorer returned with its score as a number.  Raises TypeError or ValueError for another value."""
    score = returned["score"] if isinstance(returned, Mapping) and "score" in returned else returned
    if score is not None:
        if not hasattr(score, "__float__") or isinstance(score, str):
            shown = repr(score)[:80]
            raise TypeError(f"a scorer returns a number, a bool, None or a mapping with the key score, not {shown}")
        score = float(score)
        if not math.isfinite(score):
            raise ValueError(f"a score is a finite number, not {score}")
    return {**returned, "score": score} if isinstance(returned, Mapping) else {"score": score}


class Rating(NamedTuple):
    """The score in an answer of a scorer.  `is_readable`: it has one, or says that there is none."""

    score: float | None
    is_readable: bool


def read_rating(text: str) -> Rating:
    """Return the score in an answer: a number, yes, no, true or false, or JSON with the key `score`.

    Markdown around it, a word such as `Score:` before it and a full stop after it make no difference.
    """
    text = _without_fence(text)
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        value = _loosely_read(text)
    if isinstance(value, dict) and "score" in value:
        value = value["score"]
        if value is None:
            return Rating(None, True)
    if isinstance(value, str):
        value = _loosely_read(value)
    score = float(value) if isinstance(value, int | float) else None
    return Rating(score, score is not None)


def _loosely_read(text: str) -> float | None:
    text = _DECORATION.sub("", text).casefold() if len(text) <= _MAX_LOOSE else text
    if text in _WORDS:
        return _WORDS[text]
    return float(text) if _NUMBER.fullmatch(text) else None


def _warn_of_unreadable(job_id: str, ratings: Iterable[Result]) -> None:
    """Log how many answers of a judge hold no score, with an example; nothing if all do."""
    answers = [rating.text for rating in ratings if rating.status == "succeeded"]
    unreadable = [text for text in answers if not read_rating(text).is_readable]
    if unreadable:
        example = in_short(unreadable[0].strip() or "an empty text", 80)
        counted = f"{len(unreadable):,} of {len(answers):,} answers hold no score, such as {example!r}"
        logger.warning("ratings %s: %s; ask the judge for a number alone", job_id, counted)


def _without_fence(text: str) -> str:
    """Return a judge's JSON without the Markdown fence that models like to put around it."""
    text = text.strip()
    if text.startswith("```") and text.endswith("```"):
        text = text[3:-3].removeprefix("json")
    return text.strip()


class _Prompt:
    """A judge's prompt with the fields of a result in braces."""

    def __init__(self, template: str) -> None:
        try:
            names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
        except ValueError as error:
            raise UsageError(f"the judge's prompt is not a template: {error}; write {{{{ for a brace") from None
        for name in names:
            first = name.partition("[")[0].partition(".")[0]
            if first != "text" and first not in Result.model_fields:
                known = ", ".join(("text", *Result.model_fields))
                raise UsageError(f"the judge's prompt has {{{name}}}, which no result has; known: {known}")
            if has_attribute(name):
                raise UsageError(
                    f"the judge's prompt has {{{name}}}, an attribute; write {{{first}}} or {{{first}[name]}}"
                )
        self._template = template

    def render(self, result: Result) -> str:
        fields = result.model_dump(mode="json")
        if not isinstance(fields["input"], str):
            fields["input"] = orjson.dumps(fields["input"]).decode()
        try:
            return self._template.format_map({**fields, "text": result.text})
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise UsageError(f"the judge's prompt does not fit item {result.index}: {error!r}") from None
