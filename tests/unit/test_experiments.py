"""Experiments: variants, crossed requests, scores and comparisons, on the local executor."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import batchray
from batchray import Agent, AgentRequest, Job, Result
from batchray.errors import BatchrayError, ConfigError, UsageError
from batchray.experiments.bootstrap import interval_of_mean

QA = Agent(id="qa", model="offline/rules")


def shout(request: AgentRequest) -> str:
    return str(request.input).upper()


def echo(request: AgentRequest) -> str:
    if "refused" in str(request.input):
        raise ValueError("refused")
    return str(request.input)


def is_upper(result: Result) -> bool:
    return result.text.isupper()


def is_expected(result: Result) -> bool:
    return result.row is not None and result.text == result.row["expected"]


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    return {"data_dir": tmp_path / "data", "executor": "local", "progress": False}


@pytest.fixture
def experiment(options: dict[str, Any]) -> Job:
    """Return a job of two functions, two repeats and four requests, one of which fails in one of the functions."""
    agents = batchray.variants(Agent(id="fn", run=echo), run=[echo, shout])
    texts = ["one", "two", "THREE", "refused"]
    return batchray.run(batchray.cross(texts, agents, repeats=2), agents, **options)


def test_variants_are_all_combinations_with_their_labels() -> None:
    made = batchray.variants(QA, model=["openai/a", "openai/b"], system={"short": "One word.", "long": "Explain."})
    assert [agent.id for agent in made] == [
        "qa[model=openai/a, system=short]",
        "qa[model=openai/a, system=long]",
        "qa[model=openai/b, system=short]",
        "qa[model=openai/b, system=long]",
    ]
    assert [agent.system for agent in made] == ["One word.", "Explain."] * 2
    assert made[3].labels == {"model": "openai/b", "system": "long"}


def test_the_label_of_a_value_is_short() -> None:
    long = "x" * 100
    made = batchray.variants(QA, system=["two\nlines", long, None, "hi"], temperature=[0])
    assert [agent.labels["system"] for agent in made] == ["1", "2", "None", "hi"]
    assert made[1].system == long


def test_variants_of_variants_keep_the_labels_of_both() -> None:
    [first] = batchray.variants(QA, temperature=[0])
    [second] = batchray.variants(first, max_tokens=[5])
    assert second.labels == {"temperature": "0", "max_tokens": "5"}
    assert batchray.variants({"id": "qa", "model": "offline/rules"}) == [QA]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"temprature": [0]}, "no field 'temprature' to vary; did you mean 'temperature'"),
        ({"id": ["a"]}, "no field 'id' to vary"),
        ({"model": "openai/a"}, "a list of values, or a mapping of labels to values, not str"),
        ({"model": []}, "model has no values"),
        ({"temperature": [0, 0]}, "temperature has '0' twice"),
        ({"temperature": ["hot"]}, "temperature"),
    ],
)
def test_variants_with_unknown_fields_or_invalid_values_are_refused(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        batchray.variants(QA, **values)


def test_crossed_requests_stand_together_and_name_their_origin() -> None:
    crossed = batchray.cross([{"input": "x", "custom_id": "first", "metadata": {"n": 1}}, "y"], ["a", QA], repeats=2)
    made = list(crossed)
    assert len(crossed) == len(made) == 8
    assert made == list(crossed)
    assert [(each["metadata"]["request"], each["metadata"]["repeat"], each["agent_id"]) for each in made] == [
        (key, repeat, agent) for key in ("first", "1") for repeat in (0, 1) for agent in ("a", "qa")
    ]
    assert made[0] == {
        "agent_id": "a",
        "custom_id": "first/a/0",
        "input": "x",
        "metadata": {"n": 1, "request": "first", "repeat": 0},
    }
    assert len({each["custom_id"] for each in made}) == 8


def test_an_iterator_is_crossed_whole_and_a_request_may_be_typed() -> None:
    requests = iter([AgentRequest(agent_id="other", input="x", max_steps=3)])
    [made] = batchray.cross(requests, QA)
    assert made["agent_id"] == "qa"
    assert made["max_steps"] == 3


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("a text", [QA]), "a list of requests or the rows of a table, not 'a text'"),
        (({"input": "x"}, [QA]), "a list of requests, not a dict"),
        ((["x"], []), "no agents"),
        ((["x"], [QA, "qa"]), "agent 'qa' is given twice"),
        ((["x"], [QA], 0), "a whole number from 1, not 0"),
        ((["x"], [QA], 1.5), "a whole number from 1, not 1.5"),
        (([3], [QA]), r"requests\[0\] is a text, a mapping or an AgentRequest, not int"),
        (([{"input": "x", "metadata": {"repeat": 1}}], [QA]), "'repeat' in its metadata"),
    ],
)
def test_arguments_that_cannot_be_crossed_are_refused(arguments: Any, reason: str) -> None:
    with pytest.raises(BatchrayError, match=reason):
        list(batchray.cross(*arguments))


def test_scores_are_a_job_over_stored_outcomes(experiment: Job, options: dict[str, Any]) -> None:
    ratings = batchray.apply(experiment, is_upper, **options)
    assert ratings.counts["succeeded"] == experiment.counts["succeeded"] == 14
    first = next(ratings.results("index"))
    assert (first.agent_id, first.text) == ("is_upper", '{"score":0.0}')
    assert first.custom_id == "0/fn[run=echo]/0"
    assert first.metadata == {"scored": {"job": experiment.id, "index": 0}}


def test_a_comparison_has_rates_scores_and_paired_differences(experiment: Job, options: dict[str, Any]) -> None:
    frame = batchray.compare(batchray.apply(experiment, is_upper, **options), by="run")
    assert list(frame.index) == ["echo", "shout"]
    assert frame["requests"].tolist() == [8, 8]
    assert frame["success_rate"].tolist() == [0.75, 1.0]
    assert frame["scored"].tolist() == [6, 8]
    assert frame["score"].tolist() == [pytest.approx(1 / 3), 1.0]
    assert frame["pairs"].tolist() == [4, 4]
    assert frame.loc["shout", "success_difference"] == 0.25
    assert frame.loc["shout", "score_difference"] == pytest.approx(2 / 3)  # over the three requests that both scored
    assert frame.loc["echo", "score_difference"] == 0
    assert (frame["score_low"] <= frame["score"]).all()
    assert (frame["score"] <= frame["score_high"]).all()
    assert frame["cost_usd"].isna().all()


def test_a_failure_can_count_as_a_score(experiment: Job, options: dict[str, Any]) -> None:
    ratings = batchray.apply(experiment, is_upper, **options)
    frame = batchray.compare(experiment, by="run", scores=ratings, failed_score=0.0, baseline="shout")
    assert frame.loc["echo", "score"] == 0.25
    assert frame.loc["echo", "score_difference"] == -0.75


def test_groups_may_come_from_several_names_metadata_or_a_function(experiment: Job) -> None:
    by_names = batchray.compare(experiment, by=["run", "repeat"])
    assert list(by_names.index) == [("echo", 0), ("shout", 0), ("echo", 1), ("shout", 1)]
    assert list(batchray.compare(experiment, by=lambda result: len(result.agent_id)).index) == [12, 13]
    assert list(batchray.compare(experiment).index) == ["fn[run=echo]", "fn[run=shout]"]
    with pytest.raises(UsageError, match=r"cannot group by 'size': .* they have: run, .*request, repeat$"):
        batchray.compare(experiment, by="size")
    with pytest.raises(UsageError, match="no group is 'x', which is named as the baseline; groups: 'echo', 'shout'"):
        batchray.compare(experiment, by="run", baseline="x")
    wrong: Any = "job-1"
    with pytest.raises(UsageError, match="it takes a job, or a list of jobs, not 'job-1'"):
        batchray.compare(wrong)


def test_jobs_are_compared_by_equal_input(options: dict[str, Any]) -> None:
    requests = [{"agent_id": "fn", "input": text} for text in ("x", "refused", "Y")]
    first = batchray.run(requests, [Agent(id="fn", run=echo)], **options)
    second = batchray.run(requests[:2], [Agent(id="fn", run=shout)], **options)
    ratings = [batchray.apply(job, is_upper, **options) for job in (first, second)]
    frame = batchray.compare(ratings, by="job")
    assert list(frame.index) == [first.id, second.id]
    assert frame["pairs"].tolist() == [3, 2]
    assert frame.loc[second.id, "success_difference"] == 0.5
    assert frame.loc[second.id, "score_difference"] == 1.0


def test_the_rows_of_a_table_are_crossed(options: dict[str, Any]) -> None:
    frame = pd.DataFrame({"question": ["one", "TWO"], "level": ["easy", "hard"], "expected": ["one", "two"]})
    agents = batchray.variants(Agent(id="fn", run=echo), run=[echo, shout])
    job = batchray.run(batchray.cross(frame, agents, repeats=2), agents, prompt="{question}", **options)
    first = next(job.results("index", include_input=True))
    assert (first.input, first.custom_id) == ("one", "0/fn[run=echo]/0")
    assert first.row is not None
    assert first.row["expected"] == "one"
    assert first.metadata == {"request": "0", "repeat": 0}
    ratings = batchray.apply(job, is_expected, **options)
    compared = batchray.compare(ratings, by=["run", "level"])
    assert compared["score"].to_dict() == {
        ("echo", "easy"): 1,
        ("shout", "easy"): 0,
        ("echo", "hard"): 0,
        ("shout", "hard"): 0,
    }
    assert batchray.compare(ratings, by="run")["pairs"].tolist() == [2, 2]
    judge = Agent(id="judge", model="offline/rules")
    asked = batchray.apply(job, judge, prompt="{row[expected]}?", **options)
    assert next(asked.results("index", include_input=True)).input == "one?"


def test_other_tables_are_crossed_by_their_rows() -> None:
    rows = [{"question": "x"}, {"question": "y"}]
    expected = list(batchray.cross(rows, "a"))
    assert list(batchray.cross(pa.Table.from_pylist(rows), "a")) == expected
    assert expected[1]["question"] == "y"


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("0.5", 0.5),
        (" 1 ", 1.0),
        ("true", 1.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("No.", 0.0),
        ("**Score:** 0.5", 0.5),
        ("`Rating = 3`", 3.0),
        ('{"score": "0.8"}', 0.8),
        ('"yes"', 1.0),
        ('{"score": "good"}', None),
        ("", None),
        ("7/10", None),
        ('```json\n{"score": 0.25, "reason": "short"}\n```', 0.25),
        ("Good!", None),
        ('{"points": 3}', None),
        ("[1]", None),
    ],
)
def test_a_judge_answers_with_a_number_or_json(
    answer: str, score: float | None, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    job = batchray.run([{"agent_id": "fn", "input": "x"}], [Agent(id="fn", run=echo)], **options)
    judge = Agent(id="judge", model="offline/scripted", script=[{"text": answer}])
    ratings = batchray.apply(job, judge, **options)
    assert ("1 of 1 answers hold no score" in caplog.text) == (score is None)
    frame = batchray.compare(ratings)
    assert frame["scored"].tolist() == [int(score is not None)]
    assert frame["score"].tolist() == [score] or frame["score"].isna().all()


def test_a_judge_that_gives_no_score_on_purpose_causes_no_warning(
    options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    job = batchray.run([{"agent_id": "fn", "input": "x"}], [Agent(id="fn", run=echo)], **options)
    judge = Agent(id="judge", model="offline/scripted", script=[{"text": '{"score": null}'}])
    assert batchray.compare(batchray.apply(job, judge, **options))["scored"].tolist() == [0]
    assert caplog.text == ""


def test_requests_of_several_jobs_are_paired_by_what_they_ask(options: dict[str, Any]) -> None:
    agents = [Agent(id="fn", run=echo)]
    rows: list[dict[str, Any]] = [{"question": "one"}, {"question": "two"}, {"question": "three"}]
    first, reordered = (
        batchray.run(batchray.cross(these, agents, repeats=2), agents, prompt=prompt, **options)
        for these, prompt in ((rows, "{question}"), (rows[::-1], "{question}?"))
    )
    other = batchray.run(batchray.cross(["four", "five", "six"], agents), agents, **options)
    ratings = [batchray.apply(job, lambda result: len(result.text), **options) for job in (first, reordered, other)]
    compared = batchray.compare(ratings, by="job")
    assert compared["pairs"].tolist() == [3, 3, 0]
    assert compared["score_difference"].tolist()[:2] == [0, 1]  # of the question mark
    assert compared["score_difference"].isna().tolist() == [False, False, True]


def test_requests_with_equal_inputs_are_one_whatever_else_their_rows_have(options: dict[str, Any]) -> None:
    agents = [Agent(id=name, run=echo) for name in ("x", "y")]
    rows = [{"id": f"{q}-{a.id}", "agent_id": a.id, "question": q} for q in ("one", "two") for a in agents]
    job = batchray.run(rows, agents, input_column="question", id_column="id", **options)
    assert batchray.compare(job)["pairs"].tolist() == [2, 2]
    frame = pd.DataFrame({"q": ["two", "one"], "old": [1, 2]})
    other = batchray.run(frame, agents, agent="x", input_column="q", **options)
    assert batchray.compare([job, other], by="job")["pairs"].tolist() == [2, 2]


def test_requests_of_several_jobs_with_ids_of_their_own_are_paired_by_them(options: dict[str, Any]) -> None:
    agents = [Agent(id="fn", run=echo)]
    asked = ([{"custom_id": f"q{n}", "input": f"{n}{end}"} for n in (1, 2)] for end in ("", "?"))
    jobs = [batchray.run(batchray.cross(requests, agents), agents, **options) for requests in asked]
    assert batchray.compare(jobs, by="job")["pairs"].tolist() == [2, 2]


def test_a_judge_is_asked_with_the_fields_of_the_result(options: dict[str, Any]) -> None:
    request = {"agent_id": "fn", "input": "two", "metadata": {"expected": "TWO"}}
    job = batchray.run([request], [Agent(id="fn", run=shout)], **options)
    judge = Agent(id="judge", model="offline/rules")
    ratings = batchray.apply(job, judge, prompt="{input} -> {text}, {metadata[expected]} {{}}", **options)
    assert next(ratings.results(include_input=True)).input == "two -> TWO, TWO {}"


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("{answer}", "has {answer}, which no result has; known: text, index"),
        ("{text", "is not a template"),
        ("{metadata[x]}", "does not fit item 0"),
    ],
)
def test_a_prompt_that_does_not_fit_is_refused(prompt: str, reason: str, options: dict[str, Any]) -> None:
    job = batchray.run([{"agent_id": "fn", "input": "x"}], [Agent(id="fn", run=echo)], **options)
    with pytest.raises(UsageError, match=reason):
        batchray.apply(job, QA, prompt=prompt, **options)


@pytest.mark.parametrize("returned", ["good", [1], float("nan"), {"points": 1}])
def test_a_scorer_that_returns_no_score_is_an_error(returned: Any, options: dict[str, Any]) -> None:
    job = batchray.run([{"agent_id": "fn", "input": "x"}], [Agent(id="fn", run=echo)], **options)
    ratings = batchray.apply(job.id, lambda result: returned, **options)
    [failed] = ratings.results()
    assert failed.error is not None
    assert "score" in failed.error.message


async def _rate(result: Result) -> dict[str, Any]:
    return {"score": np.float32(0.5), "reason": result.text}


def test_a_scorer_may_be_async_and_explain_itself(options: dict[str, Any]) -> None:
    job = batchray.run([{"agent_id": "fn", "input": "x"}], [Agent(id="fn", run=echo)], **options)
    assert next(batchray.apply(job, _rate, **options).results()).text == '{"score":0.5,"reason":"x"}'
    assert next(batchray.apply(job, lambda result: None, **options).results()).text == '{"score":null}'


def test_apply_refuses_a_job_without_outcomes_to_rate_and_a_scorer_that_cannot_be_called(
    options: dict[str, Any],
) -> None:
    job = batchray.run([{"agent_id": "fn", "input": "refused"}], [Agent(id="fn", run=echo)], **options)
    with pytest.raises(UsageError, match="has no succeeded outcome to rate"):
        batchray.apply(job, is_upper, **options)
    not_a_scorer: Any = 3
    with pytest.raises(UsageError, match="a scorer is a function or an agent, not int"):
        batchray.apply(job, not_a_scorer, **options)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.integers(0, 5))
def test_an_interval_holds_its_mean_and_repeats(values: list[float], seed: int) -> None:
    found = interval_of_mean(np.array(values), seed)
    slack = 1e-9 * max(1.0, *map(abs, values))
    assert min(values) - slack <= found.low <= found.high <= max(values) + slack
    assert found == interval_of_mean(np.array(values), seed)


def test_an_interval_is_that_of_the_normal_distribution_for_many_values() -> None:
    source = random.Random(1)
    values = np.array([source.gauss(5, 2) for _ in range(25_000)])
    few, many = interval_of_mean(values[:19_999], 0), interval_of_mean(values, 0)
    assert few.high - few.low == pytest.approx(2 * 1.96 * 2 / 19_999**0.5, rel=0.1)
    assert many.high - many.low == pytest.approx(2 * 1.96 * 2 / 25_000**0.5, rel=0.02)


def test_requests_are_crossed_with_all_agents_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "agents.yaml").write_text("agents: [{id: a, model: offline/rules}, {id: b, model: offline/rules}]")
    crossed = batchray.cross(["one"], batchray.load_agents([tmp_path / "agents.yaml"]))
    assert [request["agent_id"] for request in crossed] == ["a", "b"]


def test_columns_with_the_names_of_crossed_fields_do_not_make_pairs(options: dict[str, Any]) -> None:
    rows = [{"q": q, "agent_id": a, "request": "chat", "metadata": "m"} for a in ("a", "b") for q in ("x", "y", "z")]
    job = batchray.run(
        rows, [Agent(id=name, model="offline/rules") for name in ("a", "b")], input_column="q", **options
    )
    assert list(batchray.compare(job)["pairs"]) == [3, 3]
    with pytest.raises(UsageError, match="metadata of requests\\[0\\] is a mapping, not str"):
        list(batchray.cross(rows, ["a"]))


def test_a_setting_of_one_job_groups_the_agents_of_another(options: dict[str, Any]) -> None:
    plain = batchray.run([{"agent_id": "a", "input": "x"}], [Agent(id="a", model="offline/rules")], **options)
    warm = Agent(id="b", model="offline/rules", temperature=0.5)
    other = batchray.run([{"agent_id": "b", "input": "x"}], [warm], **options)
    frame = batchray.compare([other, plain], by="temperature")
    assert list(frame["pairs"]) == [1, 1]
    assert frame.index[0] == 0.5
    assert batchray.compare(plain, by=lambda result: [result.agent_id]).index[0] == '["a"]'
    with pytest.raises(UsageError, match="nothing to group by"):
        batchray.compare(plain, by=[])


def test_cross_says_what_takes_a_path_or_an_option_of_run() -> None:
    cross: Any = batchray.cross  # mypy refuses these calls too
    for path in ("s.csv", Path("s.csv")):
        with pytest.raises(UsageError, match=r"not 's\.csv'; read a file first, such as pandas\.read_csv"):
            cross(path, ["a"])
    with pytest.raises(UsageError, match=r"give it to run: batchray\.run\(batchray\.cross\(.*prompt=\.\.\.\)"):
        cross(["x"], ["a"], prompt="{x}")
    with pytest.raises(UsageError, match="unknown argument 'repeat'; it takes requests, agents and repeats"):
        cross(["x"], ["a"], repeat=2)


def test_a_judges_prompt_takes_no_attributes(options: dict[str, Any]) -> None:
    job = batchray.run([{"agent_id": "fn", "input": "x"}], [Agent(id="fn", run=echo)], **options)
    with pytest.raises(UsageError, match=r"has \{text.__class__\}, an attribute; write \{text\}"):
        batchray.apply(job, Agent(id="judge", model="offline/rules"), prompt="{text.__class__}", **options)


def test_missing_values_of_a_crossed_frame_are_none() -> None:
    frame = pd.DataFrame(
        {
            "id": [1, 2],
            "f": [0.5, float("nan")],
            "t": pd.Series([pd.Timestamp("2026-01-01"), pd.NaT]),
            "i": pd.array([1, None], "Int64"),
        }
    ).set_index("id")
    rows = [{name: row[name] for name in ("id", "f", "t", "i")} for row in batchray.cross(frame, ["a"])]
    assert rows[0] == {"id": 1, "f": 0.5, "t": pd.Timestamp("2026-01-01"), "i": 1}
    assert rows[1] == {"id": 2, "f": None, "t": None, "i": None}
    assert [row["input"] for row in batchray.cross(pd.Series(["x", "y"]), ["a"])] == ["x", "y"]


def test_values_may_be_an_array_and_labels_differ_as_texts() -> None:
    agents = batchray.variants(
        Agent(id="a", model="offline/rules"), temperature=np.linspace(0, 1, 3), max_steps=np.array([2])
    )
    assert [(each.temperature, each.max_steps) for each in agents] == [(0.0, 2), (0.5, 2), (1.0, 2)]
    assert agents[1].id == "a[temperature=0.5, max_steps=2]"
    with pytest.raises(ConfigError, match="system has '1' twice"):
        batchray.variants(Agent(id="a", model="offline/rules"), system={1: "x", "1": "y"})
