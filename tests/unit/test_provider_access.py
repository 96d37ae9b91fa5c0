"""Options that say how a provider is reached, and variables in agents files."""

from __future__ import annotations

import json
import os
import re
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp.web
import click
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from batchray.agents import AttemptRunner, encode_input, read_report
from batchray.agents.attempt import AttemptReport
from batchray.cli.options import agents_options, env_file_options
from batchray.config import Access, Agent, AgentSet, BoundAgent, Provider, bind_agents, load_agents
from batchray.config.access import ANTHROPIC_URL
from batchray.config.env_file import read_env_file
from batchray.config.proxies import environment_proxy, is_excluded
from batchray.config.variables import expand
from batchray.errors import ConfigError
from batchray.models.anthropic import BASE_URL
from batchray.schema import new_job_id
from batchray.schema.secret_names import is_secret_name
from tests.provider_server import ProviderServer

ROOT = Path(__file__).parents[2]
CERTIFICATE = ROOT / "tests" / "data" / "loopback.pem"
SECRET = "hunter2-hunter2-hunter2"


def bound(environment: Mapping[str, str] | None = None, **options: Any) -> BoundAgent:
    provider = Provider.model_validate({"protocol": "openai", "base_url": "http://h/v1", **options})
    return bind_agents([Agent(id="a", model="p/m")], {"p": provider}, environment or {}).agents["a"]


def access(environment: Mapping[str, str] | None = None, **options: Any) -> Access:
    found = bound(environment, **options).access
    assert found is not None
    return found


def problem(environment: Mapping[str, str] | None = None, **options: Any) -> str:
    with pytest.raises((ConfigError, ValidationError)) as raised:
        bound(environment, **options)
    return str(raised.value)


async def ask(agent: BoundAgent) -> AttemptReport:
    runner = AttemptRunner()
    try:
        item = encode_input(new_job_id(), 0, 1, b'{"agent_id": "a", "input": "hi"}')
        return read_report(await runner.run_attempt(agent, item))
    finally:
        await runner.close()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(content: str, name: str = "agents.yaml") -> Path:
        (tmp_path / name).write_text(content)
        return tmp_path / name

    return write


# --- variables -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("plain", "plain"),
        ("${HOST}", "h"),
        ("http://${HOST}:${PORT:-80}/v1", "http://h:80/v1"),
        ("${EMPTY:-d}${UNSET:-}", "d"),
        ("$HOST and $ and 5$", "$HOST and $ and 5$"),
        ("$${HOST} $$ $$$${HOST}", "${HOST} $ $${HOST}"),
        ("${UNSET:-a:-b}", "a:-b"),
    ],
)
def test_a_variable_is_replaced_by_its_value_or_its_default(text: str, expanded: str) -> None:
    assert expand(text, {"HOST": "h", "EMPTY": ""}) == expanded


@pytest.mark.parametrize("text", ["${UNSET}", "${EMPTY}", "${", "${}", "${A B}", "${UNSET:+x}", "${HOST", "${A:-${B}}"])
def test_a_variable_without_a_value_and_a_malformed_one_are_errors(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not set or empty|is not of the form"):
        expand(text, {"HOST": "h", "EMPTY": ""})


@given(st.text())
def test_a_text_with_every_dollar_doubled_is_read_unchanged(text: str) -> None:
    assert expand(text.replace("$", "$$"), {}) == text


FILE = """\
providers:
  p:
    protocol: openai
    base_url: "${URL}"
    headers: {X-Key: "${P_KEY}"}
    max_in_flight: ${LIMIT:-4}
agents:
  - id: a
    model: p/${MODEL}
    system: "Write ${name}, and $$."
    body: {user: "${TENANT:-none}"}
"""


def test_a_file_keeps_the_variables_of_its_providers_and_expands_the_rest(write: Callable[..., Path]) -> None:
    environment = {"URL": "http://h/v1", "P_KEY": SECRET, "MODEL": "m"}
    loaded = load_agents([write(FILE)], environment)
    agent, provider, found = loaded.agents["a"].agent, loaded.agents["a"].provider, loaded.agents["a"].access
    assert (agent.model, agent.system, agent.body) == ("p/m", "Write ${name}, and $$.", {"user": "none"})
    assert provider is not None
    assert found is not None
    assert (provider.base_url, provider.headers, provider.max_in_flight) == ("${URL}", {"X-Key": "${P_KEY}"}, 4)
    assert (found.base_url, found.headers, found.secrets) == ("http://h/v1", (("X-Key", SECRET),), (SECRET,))

    snapshot = json.loads(json.dumps(loaded.snapshot()))
    assert SECRET not in str(snapshot)
    again = AgentSet.from_snapshot(snapshot, environment={**environment, "P_KEY": "a-new-one"}).agents["a"].access
    assert again is not None
    assert again.headers == (("X-Key", "a-new-one"),)


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({}, "agents.yaml, line 9, agents[0].model: the environment variable MODEL is not set or empty"),
        ({"MODEL": "m"}, "agent 'a': provider 'p': base_url: the environment variable URL is not set or empty"),
        ({"MODEL": "m", "URL": "h"}, "provider 'p': base_url, expanded, does not start with http:// or https://"),
        ({"MODEL": "m", "URL": "http://h"}, "provider 'p': header 'X-Key': the environment variable P_KEY is not set"),
    ],
)
def test_a_missing_variable_is_named_with_its_place(
    write: Callable[..., Path], environment: dict[str, str], reason: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        load_agents([write(FILE)], environment)
    assert reason in str(raised.value)


def test_a_secret_in_an_agent_is_refused_because_agents_are_stored(write: Callable[..., Path]) -> None:
    file = write('agents: [{id: a, model: offline/rules, body: {key: "${P_TOKEN}"}}]')
    with pytest.raises(ConfigError, match=r"\$\{P_TOKEN\} seems to be secret") as raised:
        load_agents([file], {"P_TOKEN": SECRET})
    assert SECRET not in str(raised.value)


def test_an_unquoted_variable_in_a_flow_mapping_gets_a_hint(write: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=r"line 1: is not YAML: .*; inside \{ \} a value with \$\{ \} needs quotes"):
        load_agents([write("providers: {p: {base_url: ${URL}}}")], {})


def test_a_variable_that_no_used_provider_names_is_not_needed(write: Callable[..., Path]) -> None:
    file = write('providers: {p: {protocol: openai, base_url: "${URL}"}}\nagents: [{id: a, model: offline/rules}]')
    assert load_agents([file], {}).agents["a"].access is None


# --- what is never stored or shown -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sig", "x-pass", "SAS", "x_pwd"])
def test_a_short_word_names_a_secret_only_if_it_is_whole(name: str) -> None:
    assert is_secret_name(name)
    assert not is_secret_name(f"{name}ive")


@pytest.mark.parametrize("field", ["headers", "query"])
def test_a_secret_that_is_written_out_is_not_stored_and_a_resume_asks_for_it(field: str) -> None:
    provider = Provider.model_validate(
        {"protocol": "openai", "base_url": "http://h", field: {"api-key": SECRET, "tenant": "t"}}
    )
    agents = bind_agents([Agent(id="a", model="p/m")], {"p": provider}, {})
    snapshot = json.loads(json.dumps(agents.snapshot()))
    assert snapshot["a"]["provider"][field] == {"api-key": None, "tenant": "t"}
    shown = [repr(agents), str(provider), str(vars(agents.agents["a"])), str(snapshot)]
    assert not [text for text in shown if SECRET in text]
    with pytest.raises(ConfigError, match=f"'api-key' under {field} is not stored with the job"):
        AgentSet.from_snapshot(snapshot, environment={})
    for known in ({"replaced": AgentSet(providers={"p": provider})}, {"providers": {"p": provider}}):
        again = AgentSet.from_snapshot(snapshot, environment={}, **known).agents["a"]
        assert again.access == agents.agents["a"].access


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"proxy": f"http://me:{SECRET}@proxy:3128"}, "write the password of the proxy as ${VAR}"),
        ({"base_url": f"http://h/v1?api-key={SECRET}"}, "move 'api-key' from base_url into `query`"),
        ({"proxy": 3128}, "give the address of a proxy, or false for none"),
        ({"headers": {"api-key": [SECRET]}}, "write the value of 'api-key' in quotes"),
        ({"headers": {"api key": SECRET}}, "'api key' is not the name of a header"),
        ({"headers": {"Content-Length": "1"}}, "'Content-Length' is set by the connection"),
        ({"query": {"version": 1.1}}, "write the value of 'version' in quotes"),
    ],
)
def test_an_option_that_would_be_stored_or_cannot_be_sent_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError) as raised:
        Provider.model_validate({"protocol": "openai", "base_url": "http://h", **options})
    assert reason in raised.value.errors()[0]["msg"]
    assert SECRET not in raised.value.errors()[0]["msg"]


def test_unquoted_yaml_values_are_sent_as_they_are_written(write: Callable[..., Path]) -> None:
    file = write(
        "providers:\n  p: {protocol: openai, base_url: 'http://h', query: {api-version: 2024-10-21, n: 1, b: true}}\n"
        "agents: [{id: a, model: p/m}]"
    )
    found = load_agents([file], {}).agents["a"].access
    assert found is not None
    assert found.query == (("api-version", "2024-10-21"), ("n", "1"), ("b", "true"))


# --- proxies ---------------------------------------------------------------------------------------------------------

PROXIES = {"http_proxy": "http://low:1", "HTTP_PROXY": "http://up:2", "HTTPS_PROXY": "https://up:3"}


@pytest.mark.parametrize(
    ("url", "environment", "proxy"),
    [
        ("http://h/v1", PROXIES, "http://low:1"),
        ("https://h/v1", PROXIES, "https://up:3"),
        ("http://127.0.0.1:8000/v1", PROXIES, "http://low:1"),
        ("http://127.0.0.1:8000/v1", {**PROXIES, "NO_PROXY": "localhost,127.0.0.1"}, None),
        ("http://h/v1", {"http_proxy": "", "HTTP_PROXY": "http://up:2"}, None),
        ("http://h/v1", {"HTTP_PROXY": "up:2"}, "http://up:2"),
        ("http://h/v1", {**PROXIES, "no_proxy": "*"}, None),
        ("https://h/v1", {"HTTP_PROXY": "http://up:2", "ALL_PROXY": "socks5://s"}, None),
    ],
)
def test_the_environment_says_which_proxy_is_used(url: str, environment: dict[str, str], proxy: str | None) -> None:
    assert access(environment, base_url=url).proxy == proxy
    assert access(environment, base_url=url, proxy=False).proxy is None
    assert access(environment, base_url=url, proxy="http://own:4").proxy == "http://own:4"
    assert (environment_proxy(url, environment) is None) == (proxy is None)


@pytest.mark.parametrize(
    ("host", "port", "excluded", "is_matched"),
    [
        ("api.example.org", None, "example.org", True),
        ("api.example.org", None, ".example.org", True),
        ("api.example.org", None, "*.example.org", True),
        ("badexample.org", None, "example.org", False),
        ("Example.ORG", None, "example.org", True),
        ("h", 8000, "h:8000", True),
        ("h", 8001, "h:8000", False),
        ("10.1.2.3", None, "a, 10.0.0.0/8", True),
        ("11.1.2.3", None, "10.0.0.0/8", False),
        ("::1", 8000, "::1", True),
        ("::1", 8000, "[::1]:8000", True),
        ("h", None, "", False),
        ("h", None, " , ,", False),
    ],
)
def test_no_proxy_lists_hosts_domains_ports_and_networks(
    host: str, port: int | None, excluded: str, is_matched: bool
) -> None:
    assert is_excluded(host, port, excluded) == is_matched


@pytest.mark.parametrize("proxy", ["socks5://s:1", "http://", "http://h:port"])
def test_a_proxy_that_cannot_be_used_is_refused_at_the_start(proxy: str) -> None:
    assert "a proxy must be http://host:port" in problem(proxy=proxy)
    said = problem({"HTTP_PROXY": proxy})
    assert "provider 'p': HTTP_PROXY: a proxy must be http://host:port" in said
    assert said.endswith("; `proxy: false` connects without it")


def test_the_password_of_a_proxy_is_a_secret() -> None:
    found = access({"PW": "p%40ssword"}, proxy="http://me:${PW}@proxy:3128")
    assert found.proxy == "http://me:p%40ssword@proxy:3128"
    assert {"p%40ssword", "p@ssword"} <= set(found.secrets)
    assert "ssword" not in repr(found)
    assert access({"GATEWAY": ""}, proxy="${GATEWAY:-}").proxy is None
    assert access({"GATEWAY": "false", **PROXIES}, proxy="${GATEWAY}").proxy is None


# --- certificates ----------------------------------------------------------------------------------------------------


async def test_a_ca_file_is_trusted_and_its_content_travels(tmp_path: Path, write: Callable[..., Path]) -> None:
    async def handle(request: aiohttp.web.BaseRequest) -> aiohttp.web.StreamResponse:
        choice = {"index": 0, "message": {"content": "Sunny."}, "finish_reason": "stop"}
        return aiohttp.web.json_response({"choices": [choice]})

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    runner = aiohttp.web.ServerRunner(aiohttp.web.Server(handle))
    await runner.setup()
    await aiohttp.web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    url = f"https://127.0.0.1:{runner.addresses[0][1]}/v1"
    (tmp_path / "ca.pem").write_text(CERTIFICATE.read_text())
    provider = f"{{protocol: openai, base_url: '{url}', max_retries: 0, ca_file: ca.pem}}"
    trusting = load_agents([write(f"providers: {{p: {provider}}}\nagents: [{{id: a, model: p/m}}]")], {}).agents["a"]
    (tmp_path / "ca.pem").unlink()  # as on another node
    try:
        assert (await ask(trusting)).status == "succeeded"
        refused = (await ask(bound(base_url=url, max_retries=0))).error
    finally:
        await runner.cleanup()
    assert refused is not None
    assert "CERTIFICATE_VERIFY_FAILED" in refused["message"]
    assert refused["message"].endswith("; the provider's `ca_file` or SSL_CERT_FILE names the certificates to trust")


def test_a_ca_file_without_certificates_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("")
    for name, reason in (("none.pem", "cannot be read: No such file"), ("empty.pem", "holds no PEM certificates")):
        assert reason in problem(ca_file=str(tmp_path / name))


# --- streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "body", "sent"),
    [
        ({}, {}, {"stream": True, "stream_options": {"include_usage": True}}),
        ({"stream_options": False}, {}, {"stream": True}),
        ({}, {"stream_options": None}, {"stream": True}),
        ({"stream": False}, {}, {"stream": False}),
        ({"stream": False}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}),
        ({"protocol": "anthropic", "stream": False, "stream_options": False}, {}, {"stream": False}),
    ],
)
async def test_a_provider_can_do_without_streams_and_their_options(
    options: dict[str, Any], body: dict[str, Any], sent: dict[str, Any]
) -> None:
    async with ProviderServer() as server:
        provider = Provider.model_validate({"protocol": "openai", "base_url": server.base_url, **options})
        agent = bind_agents([Agent(id="a", model="p/m", body=body)], {"p": provider}, {}).agents["a"]
        assert (await ask(agent)).status == "succeeded"
    asked = server.calls[0].body
    assert {name: asked[name] for name in ("stream", "stream_options") if name in asked} == sent


# --- files of variables, and the documents ---------------------------------------------------------------------------


@click.command()
@agents_options
@click.option("--place", envvar="A_PLACE")
def command(agents_files: tuple[Path, ...], place: str | None) -> None:
    click.echo(place)


def test_an_env_file_gives_variables_that_are_not_set(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {"A_SET": "here"})
    file = write(
        "export A_PLACE='there # ${A_SET}'\n# a comment\nA_SET=elsewhere\nA_NAME\n\nA_SUM=\"${A_SET}-2\"\n", ".env"
    )
    with command.make_context("command", ["--env-file", str(file)]) as context:
        assert context.params["place"] == "there # here"
        assert env_file_options() == f" --env-file {file}"
    assert os.environ == {"A_SET": "here", "A_PLACE": "there # here", "A_SUM": "here-2"}


def test_an_env_file_that_cannot_be_read_is_refused_without_its_values(write: Callable[..., Path]) -> None:
    file = write(f"A_KEY={SECRET}\n{SECRET} is it\n", ".env")
    with pytest.raises(ConfigError, match=r"\.env, line 2: is not of the form NAME=value") as raised:
        read_env_file(file)
    assert SECRET not in str(raised.value)
    with pytest.raises(ConfigError, match="none: cannot be read: No such file"):
        read_env_file(file.parent / "none")


def test_every_snippet_with_agents_loads_from_its_document(write: Callable[..., Path]) -> None:
    text = (ROOT / "configs" / "README.md").read_text()
    snippets = [each for each in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "\nproviders:" in each]
    write(CERTIFICATE.read_text(), "ca.pem")
    used: set[str] = set()
    for snippet in snippets:
        loaded = load_agents([write(snippet)], {"LOCAL_API_KEY": SECRET})
        used |= {field for each in loaded.agents.values() if each.provider for field in each.provider.model_fields_set}
    assert {"auth", "headers", "query", "proxy", "ca_file", "stream", "stream_options"} <= used


def test_the_address_of_anthropic_is_that_of_its_client() -> None:
    assert ANTHROPIC_URL == BASE_URL
