"""The OpenAPI document: valid, typed, true, and good enough for a generator of clients."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import openapi_python_client
import pytest
from openapi_python_client.config import Config, ConfigFile, MetaType

from batchray import __version__
from tests.server.document import Document
from tests.server.http_client import BATCHES, ask, call
from tests.server.live import LiveServer

VERBS = (
    "attach|cancel|check|create|delete|detach|list|read|reset|retrieve|retry|run|search|send|stream"
    "|unpause|update|upsert"
)


@pytest.fixture(scope="module")
def document(server: LiveServer) -> dict[str, Any]:
    return dict(ask(server.url, "/openapi.json"))


def test_the_document_is_valid_openapi(document: dict[str, Any]) -> None:
    [folder] = importlib.util.find_spec("openapi_spec_validator").submodule_search_locations  # type: ignore
    schema = json.loads((Path(folder) / "resources/schemas/v3.1/schema.json").read_bytes())
    assert [error.message for error in jsonschema_rs.Draft202012Validator(schema).iter_errors(document)] == []
    schemas = document["components"]["schemas"]
    refs = {part.partition('"')[0] for part in json.dumps(document).split('"#/components/schemas/')[1:]}
    assert refs <= schemas.keys()
    for name, schema in schemas.items():
        jsonschema_rs.meta.validate(schema)
        assert re.fullmatch("[A-Z][A-Za-z0-9]+", name)
    tags = {tag["name"] for tag in document["tags"]}
    for operation in Document(document).operations:
        assert {*operation.described["tags"]} <= tags
        assert re.fullmatch(rf"({VERBS})(_[a-z]+)+", operation.id), operation.id
    ids = [operation.id for operation in Document(document).operations]
    assert len({*ids}) == len(ids)


def test_the_document_names_every_route_and_its_models(document: dict[str, Any]) -> None:
    assert document["openapi"] == "3.1.0"
    assert (document["info"]["title"], document["info"]["version"]) == ("batchray", __version__)
    create_batch = document["paths"][BATCHES]["post"]
    assert create_batch["requestBody"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/CreateBatch"
    }
    assert {*create_batch["responses"]} >= {"200", "400", "401", "404", "409", "413", "415", "422", "500", "503", "507"}
    assert {*document["paths"]} >= {
        *(f"{BATCHES}/{{batch_id}}{rest}" for rest in ("", "/cancel", "/messages", "/items", "/results", "/events")),
        *("/v1/agents/", "/v1/agents/{agent_id}", "/v1/agents/{agent_id}/messages", "/v1/models/", "/livez"),
    }
    parameters = {each["name"]: each for each in document["paths"]["/v1/agents/"]["get"]["parameters"]}
    assert parameters["tags"]["schema"]["type"] == "array"


def test_every_response_has_a_schema_that_says_something(document: dict[str, Any]) -> None:
    for operation in Document(document).operations:
        for status, response in operation.described["responses"].items():
            for content in response["content"].values():
                assert content["schema"], (operation.id, status)


def test_no_model_is_a_union_of_untyped_parts(document: dict[str, Any]) -> None:
    """Generators make types without the fields from `anyOf` and `oneOf` beside `properties`."""
    for name, schema in document["components"]["schemas"].items():
        assert not ("properties" in schema and schema.keys() & {"anyOf", "oneOf"}), name


def test_streams_are_texts_whose_events_and_lines_are_typed(document: dict[str, Any]) -> None:
    operations = {operation.id: operation.described for operation in Document(document).operations}
    events = operations["stream_batch_events"]["responses"]["200"]["content"]["text/event-stream"]
    assert events["schema"]["type"] == "string"
    assert {*events["x-events"]} == {"progress", "outcome", "end"}
    lines = operations["stream_batch_results"]["responses"]["200"]["content"]
    assert {*lines} == {"application/jsonl", "text/plain"}
    assert lines["text/plain"]["schema"]["type"] == "string"
    assert lines["text/plain"]["x-line"] == {"$ref": "#/components/schemas/Result"}


def test_fields_that_are_refused_or_without_an_effect_say_so(document: dict[str, Any]) -> None:
    request = document["components"]["schemas"]["AgentRequest"]["properties"]
    without_effect = "Accepted for Letta's clients; it has no effect here."
    assert request["include_compaction_messages"]["description"].startswith(without_effect)
    refused = {name: request[name] for name in ("override_model", "return_logprobs", "client_skills")}
    assert all(field.pop("description").startswith("Refused: ") for field in refused.values())
    assert refused["override_model"] == {"type": "null"}
    assert refused["return_logprobs"]["enum"] == [False]
    assert [kind.get("maxItems") for kind in refused["client_skills"]["anyOf"]] == [0, None]
    assert "description" not in request["override_system"]


# -- a client that openapi-python-client generates


@pytest.fixture(scope="module")
def generated(document: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Generate a client, without a warning, and return the name of its package."""
    folder = tmp_path_factory.mktemp("generated")
    (folder / "openapi.json").write_text(json.dumps(document))
    config = Config.from_sources(
        config_file=ConfigFile(post_hooks=[]),
        meta_type=MetaType.NONE,
        document_source=folder / "openapi.json",
        file_encoding="utf-8",
        overwrite=False,
        output_path=folder / "generated_client",
    )
    assert openapi_python_client.generate(config=config) == []
    sys.path.insert(0, str(folder))
    yield "generated_client"
    sys.path.remove(str(folder))


def test_a_generated_client_runs_a_batch(server: LiveServer, generated: str) -> None:
    client = importlib.import_module(generated).Client(base_url=server.url, raise_on_unexpected_status=True)
    models = importlib.import_module(f"{generated}.models")

    def call_of(tag: str, operation: str) -> Any:
        return importlib.import_module(f"{generated}.api.{tag}.{operation}").sync

    with client:
        body = models.CreateAgent(name="generated", model="offline/rules", tools=["calculate"])
        agent = call_of("agents", "create_agent")(client=client, body=body)
        assert isinstance(agent, models.AgentState)
        asked = models.MessageCreate(role=models.MessageCreateRole.USER, content="What is 2 * 21?")
        requests = [
            models.AgentRequest(agent_id=agent.id, input_="What is 1 + 2?", custom_id="first"),
            models.AgentRequest(agent_id=agent.id, messages=[asked]),
        ]
        job = call_of("batches", "create_batch")(client=client, body=models.CreateBatch(requests=requests))
        while job.status in (models.JobStatus.CREATED, models.JobStatus.RUNNING):
            time.sleep(0.05)
            job = call_of("batches", "retrieve_batch")(job.id, client=client)
        assert (job.status, job.stop_reason) == (models.JobStatus.COMPLETED, models.StopReason.END_TURN)
        assert "unused_fields" not in job.metadata  # the client sends only what was given
        items = call_of("batches", "list_batch_items")(job.id, client=client, status=models.ItemStatus.SUCCEEDED)
        assert [item.custom_id for item in items] == ["first", None]
        page = call_of("batches", "list_batch_messages")(job.id, client=client, order=models.ListBatchMessagesOrder.ASC)
        assert {message.role for message in page.messages} == {"user", "assistant", "tool"}
        results = call_of("batches", "stream_batch_results")(job.id, client=client)
        lines = [models.Result.from_dict(json.loads(line)) for line in results.splitlines()]
        assert [result.messages[-1].content for result in lines] == ["1 + 2 = 3", "2 * 21 = 42"]
        events = call_of("batches", "stream_batch_events")(job.id, client=client)
        assert events.rstrip().splitlines()[-2] == "event: end"
        error = call_of("agents", "retrieve_agent")("agent-missing", client=client)
        assert isinstance(error, models.ErrorBody)
        assert "agent-missing" in error.detail
        assert call_of("batches", "cancel_batch")(job.id, client=client) is None


def test_results_come_as_text_if_only_that_is_accepted(server: LiveServer) -> None:
    [job] = call(server, "GET", f"{BATCHES}?limit=1").body
    path = f"{BATCHES}/{job['id']}/results"
    for accepted, sent in (
        ("text/plain", "text/plain; charset=utf-8"),
        ("Text/*;q=0.5, image/png", "text/plain; charset=utf-8"),
        ("text/plain, */*", "application/jsonl"),
        ("*/*", "application/jsonl"),
        ("", "application/jsonl"),
    ):
        assert call(server, "GET", path, headers={"Accept": accepted}).headers["Content-Type"] == sent
