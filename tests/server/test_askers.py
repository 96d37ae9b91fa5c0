"""Clients that ask one agent and leave before its answer: their runs stop, unless an idempotency key says otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.polling import until
from tests.provider_server import ProviderServer, run_in_thread
from tests.server.askers import ASK, ENDLESS, answering_server, leave_after_the_first_call, runs_of
from tests.server.http_client import Response, call
from tests.server.live import LiveServer
from tests.timing import timed


@pytest.fixture(scope="module")
def provider() -> Iterator[ProviderServer]:
    with run_in_thread() as running:
        yield running


@pytest.fixture(scope="module")
def asked(provider: ProviderServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with answering_server(tmp_path_factory.mktemp("asked"), provider) as server:
        yield server


def ask(server: LiveServer, text: str, key: str | None = None, **fields: Any) -> Response:
    headers = {"Idempotency-Key": key} if key else {}
    return call(server, "POST", ASK, {"input": text, **fields}, headers=headers)


@timed
def test_a_run_without_a_client_makes_no_more_model_calls(
    slack: float, asked: LiveServer, provider: ProviderServer
) -> None:
    bodies = [{"input": f"{ENDLESS} {n}", "streaming": n % 2 == 0} for n in range(4)]
    left_at = leave_after_the_first_call(asked, provider, bodies)
    until(lambda: all(run.is_ended for run in runs_of(asked)))
    assert [run.status for run in runs_of(asked)[-4:]] == ["cancelled"] * 4
    assert provider.calls[-1].at - left_at < 2 * slack
    assert "Traceback" not in asked.log


def test_a_run_with_a_key_continues_without_its_client(asked: LiveServer, provider: ProviderServer) -> None:
    question = "[[latency:0.5]] alone"
    leave_after_the_first_call(asked, provider, [{"input": question}], Idempotency_Key="left")
    answer = ask(asked, question, "left")
    again = ask(asked, question, "left")
    assert answer.status == 200
    assert answer.body["stop_reason"]["stop_reason"] == "end_turn"
    assert again.body == answer.body
    assert [each.text for each in provider.calls].count(question) == 1


def test_requests_with_one_key_share_a_run(asked: LiveServer, provider: ProviderServer) -> None:
    question = "[[latency:0.3]] shared"
    with ThreadPoolExecutor(4) as pool:
        plain = [pool.submit(ask, asked, question, "shared") for _ in range(3)]
        streamed = pool.submit(ask, asked, question, "shared", streaming=True)
    bodies = [each.result().body for each in plain]
    assert bodies[0] == bodies[1] == bodies[2]
    assert bodies[0]["usage"]["run_ids"][0] in streamed.result().body
    assert [each.text for each in provider.calls].count(question) == 1


def test_a_failure_is_returned_again_for_its_key(asked: LiveServer, provider: ProviderServer) -> None:
    first, second = (ask(asked, "[[400:]] wrong", "failed") for _ in range(2))
    assert first.status == second.status >= 400
    assert first.body["detail"] == second.body["detail"]
    assert [each.text for each in provider.calls].count("[[400:]] wrong") == 1


def test_a_key_is_refused_with_another_body_or_if_it_is_unusable(asked: LiveServer) -> None:
    assert ask(asked, "one", "used").status == 200
    other = ask(asked, "two", "used")
    assert (other.status, other.headers.get("x-should-retry")) == (422, "false")
    batch = call(
        asked,
        "POST",
        "/v1/messages/batches",
        {"requests": [{"agent_id": "asked", "input": "one"}]},
        headers={"Idempotency-Key": "used"},
    )
    assert batch.status == 422
    assert ask(asked, "one", "x" * 256).status == 400


# The last one, because it kills the server of the others: a start takes seconds.
def test_runs_with_a_key_or_in_the_background_continue_after_a_crash(
    asked: LiveServer, provider: ProviderServer
) -> None:
    question, n_before = "[[latency:0.5 x1]] crashed", len(runs_of(asked))
    leave_after_the_first_call(asked, provider, [{"input": question}], Idempotency_Key="kept")
    leave_after_the_first_call(asked, provider, [{"input": "[[stall]] lost"}])
    started = call(asked, "POST", f"{ASK}/async", {"input": "[[latency:0.5 x1]] in the background"}).body
    asked.kill()
    with answering_server(asked.data_dir.parent, provider) as server:
        assert ask(server, question, "kept").status == 200
        assert [run.status for run in runs_of(server)[n_before:]] == ["completed", "cancelled"]
        until(lambda: call(server, "GET", f"/v1/runs/{started['id']}").body["status"] == "completed")
