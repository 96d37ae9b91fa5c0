"""Files over HTTP, through OpenAI's own client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.server.live import LiveServer
from tests.server.sdk_values import FILE

if TYPE_CHECKING:
    import openai


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    import openai

    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def test_a_file_is_uploaded_listed_read_and_deleted(client: openai.OpenAI) -> None:
    import openai

    large = (FILE + b"\n") * 20_000  # more than is kept in memory
    uploaded = client.files.create(file=("large.jsonl", large), purpose="batch")
    small = client.files.create(file=("ü.jsonl", FILE), purpose="batch")
    assert (uploaded.bytes, uploaded.filename, uploaded.purpose) == (len(large), "large.jsonl", "batch")
    assert uploaded.expires_at == uploaded.created_at + 30 * 86_400
    assert client.files.retrieve(uploaded.id) == uploaded
    assert client.files.content(uploaded.id).read() == large
    assert [file.id for file in client.files.list(limit=1)][:2] == [small.id, uploaded.id]  # over pages
    assert client.files.list(order="asc", purpose="batch", after=uploaded.id).data == [small]
    assert client.files.delete(uploaded.id).deleted
    for ask in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError, match="No such File object: file-") as unknown:
            ask(uploaded.id)
        assert (unknown.value.param, unknown.value.type) == ("id", "invalid_request_error")
        assert str(unknown.value.request_id).startswith("trace-")
    assert uploaded.id not in [file.id for file in client.files.list()]


def test_unusable_files_and_queries_raise_bad_request_errors(client: openai.OpenAI) -> None:
    import openai

    for content, purpose, param in ((b"", "batch", "file"), (b"{bad", "batch", "file"), (FILE, "vision", "purpose")):
        with pytest.raises(openai.BadRequestError) as refused:
            client.files.create(file=("a.jsonl", content), purpose=purpose)  # type: ignore[arg-type]
        assert refused.value.param == param
    with pytest.raises(openai.BadRequestError, match="limit"):
        client.files.list(limit=0)
    with pytest.raises(openai.BadRequestError, match="No such File object: file-x"):
        client.files.list(after="file-x")


def test_an_idempotency_key_yields_one_file(client: openai.OpenAI) -> None:
    import openai

    same = {"Idempotency-Key": "of a file"}
    files = [client.files.create(file=("a.jsonl", FILE), purpose="batch", extra_headers=same).id for _ in range(2)]
    assert files[0] == files[1]
    with pytest.raises(openai.BadRequestError, match="another file"):
        client.files.create(file=("a.jsonl", FILE + b"\n"), purpose="batch", extra_headers=same)
    client.files.delete(files[0])
    assert client.files.create(file=("a.jsonl", FILE), purpose="batch", extra_headers=same).id != files[0]


def test_errors_of_the_server_itself_have_openai_s_shape(server: LiveServer) -> None:
    for method, path, content, status in (
        ("PATCH", "/v1/files/file-1", b"{}", 405),
        ("POST", "/v1/files", b"{}", 415),
        ("GET", "/v1/files/file-1/missing", b"", 404),
    ):
        answer = httpx.request(method, server.url + path, content=content)
        assert (answer.status_code, answer.json().keys()) == (status, {"error"})
        assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
