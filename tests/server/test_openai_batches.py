"""Batches through OpenAI's own client, unmodified: the same jobs as those of Letta's routes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import pytest

from tests.polling import until
from tests.server.http_client import BATCHES, call, ended
from tests.server.live import LiveServer

if TYPE_CHECKING:
    import openai
    from openai.types import Batch

CHAT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
_UNENDED = ("validating", "in_progress", "finalizing", "cancelling")


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    import openai

    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def line(number: int, model: str = "calculator", *, padding: int = 0, **fields: Any) -> bytes:
    ask = [{"role": "user", "content": f"What is {number} + 1?" + " " * padding}]
    entry = {"custom_id": f"r{number}", "method": "POST", "url": CHAT, "body": {"model": model, "messages": ask}}
    return json.dumps({**entry, **fields}).encode() + b"\n"


def create(client: openai.OpenAI, *lines: bytes, **options: Any) -> Batch:
    file = client.files.create(file=("in.jsonl", b"".join(lines)), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h", **options)


def finished(client: openai.OpenAI, batch: Batch) -> Batch:
    def look() -> Batch | None:
        found = client.batches.retrieve(batch.id)
        return found if found.status not in _UNENDED else None

    return until(look, 120)


def lines_of(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]


def job_id_of(batch: Batch) -> str:
    digits = batch.id.removeprefix("batch_")
    return "job-" + "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def summed(usages: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the usage of a batch whose chat completions have these."""
    cached = sum(each["prompt_tokens_details"]["cached_tokens"] for each in usages)
    reasoning = sum(each["completion_tokens_details"]["reasoning_tokens"] for each in usages)
    given, made = (sum(each[name] for each in usages) for name in ("prompt_tokens", "completion_tokens"))
    return {
        "input_tokens": given,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": given + made,
    }


def run_lines(client: openai.OpenAI, n_lines: int, padding: int) -> Batch:
    """Run a batch whose line 7 names an unknown agent, and compare its files with it."""
    models = {7: "unknown"}
    lines = [line(number, models.get(number, "calculator"), padding=padding) for number in range(n_lines)]
    created = create(client, *lines, metadata={"night": "1"})
    assert (created.status, created.request_counts and created.request_counts.total) == ("validating", n_lines)
    batch = finished(client, created)
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": n_lines, "completed": n_lines - 1, "failed": 1}
    answers = {each["custom_id"]: each["response"] for each in lines_of(client, batch.output_file_id)}
    assert created.usage is None
    assert batch.usage is not None
    assert batch.usage.to_dict() == summed([each["body"]["usage"] for each in answers.values()])
    assert answers.keys() == {f"r{number}" for number in range(n_lines) if number != 7}
    for number in (0, n_lines - 1):
        answer = answers[f"r{number}"]
        assert answer["status_code"] == 200
        assert answer["body"]["choices"][0]["message"]["content"] == f"{number} + 1 = {number + 1}"
    [failed] = lines_of(client, batch.error_file_id)
    assert (failed["custom_id"], failed["response"]["status_code"]) == ("r7", 404)
    assert failed["response"]["body"]["error"]["code"] == "model_not_found"
    return batch


def test_a_batch_runs_from_upload_to_deletion(client: openai.OpenAI, server: LiveServer) -> None:
    import openai

    batch = run_lines(client, 200, padding=6000)  # more than is checked in the server's own process
    assert (batch.endpoint, batch.completion_window, batch.metadata) == (CHAT, "24h", {"night": "1"})
    assert (batch.model, batch.errors) == ("calculator", None)
    assert None not in (batch.completed_at, batch.in_progress_at, batch.finalizing_at)
    assert batch.expires_at == batch.created_at + 86_400
    output_id = str(batch.output_file_id)
    listed = [file.id for file in client.files.list(purpose="batch_output", limit=1)]  # over pages
    assert listed[:2] == [output_id, batch.error_file_id]
    assert listed[::-1] == [file.id for file in client.files.list(purpose="batch_output", order="asc", limit=1)]
    whole = client.files.list(limit=10_000).data
    uploaded = [file for file in whole if file.purpose == "batch"]
    results = [file for file in whole if file.purpose == "batch_output"]
    assert whole == uploaded + results
    assert [file.id for file in results] == listed
    assert [*client.files.list(limit=1)] == [*client.files.list(limit=3)] == whole  # a page ends in either part
    assert [*client.files.list(order="asc", limit=2)] == uploaded[::-1] + results[::-1]
    assert [*client.files.list(purpose="batch", limit=2)] == uploaded
    output = client.files.retrieve(output_id)
    assert output.bytes == len(client.files.content(output_id).read())
    assert (output.purpose, output.filename) == ("batch_output", f"{batch.id}_output.jsonl")
    job = call(server, "GET", f"{BATCHES}/{job_id_of(batch)}").body
    assert job["metadata"]["request_counts"]["succeeded"] == 199
    for file_id in (output_id, batch.input_file_id):
        assert client.files.delete(file_id).deleted
        with pytest.raises(openai.NotFoundError):
            client.files.content(file_id)
    assert client.batches.retrieve(batch.id).output_file_id == output_id
    assert len(lines_of(client, batch.error_file_id)) == 1


@pytest.mark.full
def test_ten_thousand_lines_run_from_upload_to_deletion(client: openai.OpenAI) -> None:
    batch = run_lines(client, 10_000, padding=0)
    assert client.files.delete(str(batch.output_file_id)).deleted


def test_a_file_that_cannot_be_run_makes_a_failed_batch(client: openai.OpenAI, server: LiveServer) -> None:
    for n_bytes in (0, 1_100_000):  # checked in the server's process, and in one of its own
        batch = create(client, line(1, padding=n_bytes), line(1), line(2, url="/v1/x"), b"{bad\n")
        assert (batch.status, batch.output_file_id) == ("failed", None)
        assert batch.failed_at is not None
        assert batch.errors is not None
        found = [(each.code, each.line, each.param) for each in batch.errors.data or ()]
        wanted = [("duplicate_custom_id", 2, "custom_id"), ("invalid_url", 3, "url"), ("invalid_json_line", 4, None)]
        assert found == wanted
    job = call(server, "GET", f"{BATCHES}/{job_id_of(batch)}").body
    assert (job["status"], job["metadata"]["request_counts"]["total"]) == ("failed", 0)
    missing = client.batches.create(input_file_id="file-missing", endpoint=CHAT, completion_window="24h")
    assert missing.errors is not None
    assert "Cannot find file file-missing" in str(missing.errors.data)


def test_the_requests_of_a_job_that_names_an_unknown_agent_can_be_retried(
    client: openai.OpenAI, server: LiveServer
) -> None:
    batch = finished(client, create(client, line(1), line(2, "unknown")))
    assert call(server, "POST", f"{BATCHES}/{job_id_of(batch)}/retry").status == 200
    assert ended(server, job_id_of(batch))["status"] == "completed"
    [failed] = lines_of(client, finished(client, batch).error_file_id)
    assert failed["response"]["status_code"] == 404


def test_a_cancelled_batch_is_cancelling_and_then_cancelled(client: openai.OpenAI) -> None:
    import openai

    batch = create(client, *(line(number, "endless") for number in range(3)))
    cancelling = client.batches.cancel(batch.id)
    assert cancelling.status in ("cancelling", "cancelled")
    assert cancelling.cancelling_at is not None
    cancelled = finished(client, batch)
    assert (cancelled.status, cancelled.cancelled_at is not None) == ("cancelled", True)
    assert {each["error"]["code"] for each in lines_of(client, cancelled.error_file_id)} == {"batch_cancelled"}
    assert client.batches.cancel(batch.id).status == "cancelled"
    done = finished(client, create(client, line(1)))
    with pytest.raises(openai.ConflictError, match="Cannot cancel a batch with status 'completed'"):
        client.batches.cancel(done.id)


def test_batches_are_listed_in_pages_and_those_of_letta_s_routes_too(client: openai.OpenAI, server: LiveServer) -> None:
    first = finished(client, create(client, line(1)))
    asked = {"requests": [{"agent_id": "calculator", "input": "What is 2 + 3?", "custom_id": "mine"}]}
    job = ended(server, call(server, "POST", BATCHES, asked).body["id"])
    page = client.batches.list(limit=1)
    [newest] = page.data
    assert (page.has_more, job_id_of(newest)) == (True, job["id"])
    assert (newest.input_file_id, newest.status) == ("", "completed")
    assert [each["custom_id"] for each in lines_of(client, newest.output_file_id)] == ["mine"]
    assert [each.id for each in client.batches.list(limit=1, after=newest.id).data] == [first.id]


def test_agents_are_the_models_of_openai_s_client(client: openai.OpenAI, server: LiveServer) -> None:
    import openai

    made = call(server, "POST", "/v1/agents/", {"name": "clerk", "model": "offline/rules"}).body
    models = {model.id: model for model in client.models.list()}
    assert {"calculator", made["id"]} <= models.keys()
    assert (models["calculator"].object, models["calculator"].owned_by) == ("model", "operator")
    assert models["calculator"].created > 1_700_000_000
    assert client.models.retrieve(made["id"]) == models[made["id"]]
    with pytest.raises(openai.NotFoundError, match="'nothing' does not exist") as missing:
        client.models.retrieve("nothing")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    assert finished(client, create(client, line(1, made["id"]))).status == "completed"
    assert call(server, "DELETE", f"/v1/agents/{made['id']}").status == 200


def test_the_models_of_letta_s_clients_have_a_slash(server: LiveServer) -> None:
    of_letta, of_openai = (call(server, "GET", path).body for path in ("/v1/models/", "/v1/models"))
    assert "offline/rules" in {model["handle"] for model in of_letta}
    assert {model["id"] for model in of_openai["data"]} >= {"calculator"}
    absent = call(server, "GET", "/v1/models/embedding")
    assert (absent.status, absent.body["detail"][:20]) == (404, "embedding models are")


def test_an_idempotency_key_yields_one_batch(client: openai.OpenAI) -> None:
    import openai

    file = client.files.create(file=("in.jsonl", line(1)), purpose="batch")
    asked: dict[str, Any] = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"}
    same = {"Idempotency-Key": "of a batch"}
    ids = {client.batches.create(**asked, extra_headers=same).id for _ in range(2)}
    assert len(ids) == 1
    with pytest.raises(openai.BadRequestError, match="another body"):
        client.batches.create(**asked, metadata={"a": "b"}, extra_headers=same)


def test_errors_raise_the_classes_of_openai_s_client(client: openai.OpenAI) -> None:
    import openai

    def creating(**fields: Any) -> Callable[[], object]:
        asked: dict[str, Any] = {"input_file_id": "file-1", "endpoint": CHAT, "completion_window": "24h", **fields}
        return lambda: client.batches.create(**asked)

    with pytest.raises(openai.BadRequestError) as refused:
        creating(endpoint="/v1/embeddings")()
    assert refused.value.param == "endpoint"
    for ask, kind, said in (
        (lambda: client.batches.retrieve("batch_missing"), openai.NotFoundError, "No batch found with id"),
        (lambda: client.batches.cancel("batch_missing"), openai.NotFoundError, "No batch found with id"),
        (lambda: client.batches.list(after="batch_missing"), openai.BadRequestError, "No batch found with id"),
        (creating(endpoint="/v1/embeddings"), openai.BadRequestError, "Invalid value: '/v1/embeddings'. Supported"),
        (creating(completion_window="1h"), openai.BadRequestError, "Invalid value: '1h'. Supported values are: '24h'"),
        (creating(metadata={"a": ["b"]}), openai.BadRequestError, "metadata.a"),
        (creating(metadata={"a" * 65: "b"}), openai.BadRequestError, "metadata"),
        (creating(extra_body={"model": "x"}), openai.BadRequestError, "unknown key"),
    ):
        with pytest.raises(kind, match=said):
            ask()


def test_an_entry_of_anthropic_s_api_is_refused_in_one_sentence(server: LiveServer) -> None:
    entry = {"custom_id": "a", "params": {"model": "calculator", "messages": [{"role": "user", "content": "hi"}]}}
    answer = call(server, "POST", BATCHES, {"requests": [entry]})
    assert answer.status == 422
    said = "`batchray run FILE` takes a file of Anthropic's, and OpenAI's /v1/batches one of OpenAI's"
    refused = f"requests[0]: an Anthropic batch entry; this route takes Letta's requests, {said}"
    assert answer.body["detail"] == refused
