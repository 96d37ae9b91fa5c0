from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import batchray.api
from batchray.agents import Clients, build_agent
from batchray.config import (
    Agent,
    AgentSet,
    Provider,
    Settings,
    Tool,
    bind_agents,
    function_name,
    load_agents,
    load_server_settings,
    load_settings,
    load_store_settings,
)
from batchray.config.binding import builtin_providers
from batchray.errors import ConfigError
from tests.builders.batches import BAD_AGENTS_FILES

KEY = "sk-proj-0123456789abcdefABCDEF"
ENVIRONMENT = {"OPENAI_API_KEY": KEY}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a file of a test."""

    def write(content: str | bytes, name: str = "agents.yaml") -> Path:
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file

    return write


GOOD = """\
providers:
  local: {protocol: openai, base_url: "http://127.0.0.1:8000/v1", api_key_env: LOCAL_KEY, max_in_flight: 4}
agents:
  - id: calculator
    model: local/my/model
    tools: [json:loads, {function: "json:dumps", idempotent: true}]
    temperature: 0
    body: {top_p: 0.5, seed: 7}
  - {id: echo, run: "json:dumps", placement: process, num_cpus: 2}
  - {id: rules, model: offline/rules}
"""


def test_an_agents_file_is_read_whole(write: Callable[..., Path]) -> None:
    file = write(GOOD)
    agents = load_agents([file], {"LOCAL_KEY": KEY})
    assert list(agents.agents) == ["calculator", "echo", "rules"]
    calculator = agents.agents["calculator"]
    assert calculator.agent.tools == ("json:loads", Tool(function="json:dumps", idempotent=True))
    assert (calculator.agent.provider_name, calculator.agent.model_name) == ("local", "my/model")
    assert calculator.agent.request_body == {"top_p": 0.5, "seed": 7, "temperature": 0}
    assert calculator.key is not None
    assert calculator.key.get_secret_value() == KEY
    assert calculator.import_paths == (str(file.parent), str(Path.cwd()))
    assert agents.agents["echo"].provider is None
    assert calculator.provider is not None
    assert calculator.provider.max_in_flight == 4


def test_agents_of_one_file_may_use_a_provider_of_another(write: Callable[..., Path]) -> None:
    providers = write('{"providers": {"p": {"protocol": "openai", "base_url": "http://h"}}}', "providers.json")
    agents = write("agents: [{id: a, model: p/m}]")
    bound = load_agents([agents, providers], {}).agents["a"]
    assert bound.provider is not None
    assert bound.provider.base_url == "http://h"


@pytest.mark.parametrize(("content", "reason"), BAD_AGENTS_FILES.values(), ids=BAD_AGENTS_FILES)
def test_a_bad_agents_file_is_refused_with_its_location(
    content: str | bytes, reason: str, write: Callable[..., Path]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_agents([write(content)], {})
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "agents.yaml" in str(caught.value)


def test_agents_files_are_given_as_paths_or_texts_and_their_agents_are_iterated(tmp_path: Path) -> None:
    file = tmp_path / "agents.yaml"
    file.write_text("agents: [{id: a, model: offline/rules}]")
    for named in (file, str(file), [file], [str(file)]):
        assert [agent.id for agent in load_agents(named)] == ["a"]
    assert [agent.id for agent in batchray.api._agent_set([str(file)])] == ["a"]


def test_an_agents_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for file in (tmp_path, tmp_path / "nowhere.yaml"):
        with pytest.raises(ConfigError, match="cannot be read: "):
            load_agents([file])
    with pytest.raises(ConfigError, match="no agents in it"):
        load_agents([])


@given(st.text(alphabet="{}[]:,-?&*!|>'\"% \nab01.#", max_size=60))
def test_any_text_is_an_agents_file_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.mktemp("any") / "agents.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError):
        load_agents([file], {})


@pytest.mark.parametrize("tool", ["nowhere_at_all:f", "json:nope", "json"])
def test_a_tool_that_cannot_be_imported_is_refused_when_the_agent_is_built(tool: str) -> None:
    agents = bind_agents([Agent(id="a", model="offline/rules", tools=(tool,))], environment={})
    with pytest.raises(ConfigError, match=r"^agent 'a': "):
        build_agent(agents.agents["a"], Clients())


def test_no_key_is_in_a_repr_a_snapshot_an_error_or_a_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    agents = bind_agents([Agent(id="a", model="openai/gpt")], environment=ENVIRONMENT)
    bound = agents.agents["a"]
    shown = [repr(agents), str(agents), repr(bound), str(vars(bound)), json.dumps(agents.snapshot()), repr(bound.key)]
    rebuilt = AgentSet.from_snapshot(agents.snapshot(), environment=ENVIRONMENT).agents["a"]
    assert rebuilt.key == bound.key
    bad = [{"id": "b", "model": "acme/m"}, {"id": "b", "model": "openai/gpt", "tools": ["x:y"]}]
    for fields in bad:
        with pytest.raises(ConfigError) as caught:
            build_agent(bind_agents([Agent.model_validate(fields)], environment=ENVIRONMENT).agents["b"], Clients())
        shown += [str(caught.value), repr(caught.value)]
    assert KEY not in "".join(shown) + caplog.text
    assert "sk-proj" not in "".join(shown)


def shout(request: Any) -> str:
    return str(request.input).upper()


def test_a_snapshot_gives_back_the_same_agents() -> None:
    agents = bind_agents(
        [
            Agent(id="a", model="openai/gpt", system="s", tools=(json.loads, "json:dumps"), body={"seed": 1}),
            Agent(id="i", model="offline/rules", tools=(Tool(function=json.loads, idempotent=True),)),
            Agent(id="b", run=shout, placement="process", num_cpus=0.5),
            Agent(id="c", model="offline/scripted", script=({"text": "hi"},)),
        ],
        environment=ENVIRONMENT,
        import_paths=["/somewhere"],
    )
    snapshot = orjson.loads(orjson.dumps(agents.snapshot()))
    again = AgentSet.from_snapshot(snapshot, environment=ENVIRONMENT)
    assert again.snapshot() == agents.snapshot()
    assert again.agents["a"].agent.tools == ("json:loads", "json:dumps")
    assert again.agents["i"].agent.tools == (Tool(function="json:loads", idempotent=True),)
    assert again.agents["b"].agent.run == f"{__name__}:shout"
    assert again.agents["c"].agent.request_body == {"script": [{"text": "hi"}]}
    assert again.agents["a"].import_paths == ("/somewhere",)


def test_a_function_that_has_no_name_has_to_be_given_again() -> None:
    def local(request: Any) -> str:
        return "x"

    snapshot = bind_agents([Agent(id="a", run=local), Agent(id="b", model="offline/rules", tools=(local,))]).snapshot()
    assert (snapshot["a"]["agent"]["run"], snapshot["b"]["agent"]["tools"]) == (None, [None])
    for agent_id in "ab":
        with pytest.raises(ConfigError, match=f"agent '{agent_id}' is a Python function that cannot be found by name"):
            AgentSet.from_snapshot({agent_id: snapshot[agent_id]})
    given = bind_agents([Agent(id="a", run=shout), Agent(id="b", run=shout)])
    assert AgentSet.from_snapshot(snapshot, given) == given


def test_a_resume_without_the_key_names_its_variable() -> None:
    snapshot = bind_agents([Agent(id="a", model="openai/gpt")], environment=ENVIRONMENT).snapshot()
    with pytest.raises(ConfigError, match=r"^the job's snapshot: .* needs its key in .* OPENAI_API_KEY$"):
        AgentSet.from_snapshot(snapshot, environment={})


def test_only_functions_that_can_be_imported_have_a_name() -> None:
    assert function_name(shout) == f"{__name__}:shout"
    assert function_name("a.b:c") == "a.b:c"
    assert function_name(Settings.model_validate) is None  # the name would lead to the unbound method
    assert function_name(lambda: None) is None


def test_the_address_of_openai_comes_from_the_environment_if_it_is_set() -> None:
    assert builtin_providers({})["openai"].base_url == "https://api.openai.com/v1"
    assert builtin_providers({"OPENAI_BASE_URL": "http://h/v1"})["openai"].base_url == "http://h/v1"


def test_the_address_of_anthropic_has_a_default_if_none_is_set() -> None:
    assert builtin_providers({})["anthropic"].base_url is None
    for address in ("http://h", "http://h/v1/"):
        assert builtin_providers({"ANTHROPIC_BASE_URL": address})["anthropic"].base_url == "http://h"
    agents = [Agent(id="a", model="anthropic/claude"), Agent(id="b", model="own/claude")]
    bound = bind_agents(agents, {"own": Provider(protocol="anthropic")}, {"ANTHROPIC_API_KEY": KEY})
    loops = [build_agent(bound.agents[agent_id], Clients()) for agent_id in "ab"]
    assert [repr(vars(loop)["_client"]) for loop in loops] == [
        f"AnthropicClient(HttpTransport({name!r}, 'https://api.anthropic.com'))" for name in ("anthropic", "own")
    ]


@pytest.mark.parametrize("variable", ["OPENAI_BASE_URL", "ANTHROPIC_BASE_URL"])
def test_a_variable_that_holds_no_address_is_refused_by_its_name(variable: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{variable}: protocol \w+ needs a base_url that starts with http"):
        builtin_providers({variable: "localhost:8000"})


def test_a_file_may_put_its_own_provider_in_the_place_of_a_built_in_one() -> None:
    own = Provider(protocol="openai", base_url="http://h", max_in_flight=2)
    agents = bind_agents([Agent(id="a", model="openai/m")], {"openai": own}, {})
    assert (agents.agents["a"].provider, agents.agents["a"].key) == (own, None)


def test_later_settings_win(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    file = write("{max_in_flight: 1, lanes: 1, max_attempts: 1}", "settings.yaml")
    monkeypatch.setenv("BATCHRAY_LANES", "2")
    monkeypatch.setenv("BATCHRAY_MAX_ATTEMPTS", "2")
    settings = load_settings(file, max_attempts=3, num_cpus=None)
    assert (settings.max_in_flight, settings.lanes, settings.max_attempts, settings.num_cpus) == (1, 2, 3, None)
    assert settings.database == Path(".batchray/batchray.db")
    assert load_settings().max_in_flight == 256


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"max_in_flght": 1}, "settings: unknown key 'max_in_flght'; did you mean 'max_in_flight'?"),
        ({"max_in_flight": 0}, "settings: max_in_flight: Input should be greater than or equal to 1"),
        (
            {"max_failures": "many"},
            "settings: max_failures: give a number of failures, such as 20, or a percentage, such as 5%",
        ),
        ({"executor": "threads"}, "settings: executor: Input should be 'ray' or 'local'"),
        ({"deadline_grace_s": float("inf")}, "settings: deadline_grace_s: Input should be a finite number"),
    ],
)
def test_bad_settings_are_refused(overrides: dict[str, Any], reason: str, write: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(**overrides)
    assert str(caught.value) == reason
    file = write(json.dumps(overrides).replace("Infinity", ".inf"), "settings.yaml")
    with pytest.raises(ConfigError) as caught:
        load_settings(file)
    assert str(caught.value) == reason.replace("settings: ", f"{file}, line 1: ")


def test_a_bad_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHRAY_LANES", "many")
    with pytest.raises(ConfigError, match="lanes: Input should be a valid integer"):
        load_settings()


@pytest.mark.parametrize("name", ["batchray_lanes", "Batchray_Lanes", "BATCHRAY_LANES"])
def test_a_variable_wins_over_the_file_in_any_case(
    name: str, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "2")
    assert load_settings(write("{lanes: 1}", "settings.yaml")).lanes == 2


def test_the_line_of_a_bad_setting_is_named(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    file = write("lanes: 1\nmax_in_flight: 0\n", "settings.yaml")
    with pytest.raises(ConfigError, match=r"settings.yaml, line 2: max_in_flight: Input should be greater"):
        load_settings(file)
    monkeypatch.setenv("batchray_max_in_flight", "-1")
    with pytest.raises(ConfigError, match=r"^BATCHRAY_MAX_IN_FLIGHT: max_in_flight: Input should be greater"):
        load_settings(file)
    with pytest.raises(ConfigError, match=r"^settings: max_in_flight: Input should be greater"):
        load_settings(file, max_in_flight=0)


def test_a_variable_that_is_not_json_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHRAY_CALLBACK_NETWORKS", "10.0.0.0/8")
    with pytest.raises(ConfigError, match="callback_networks"):
        load_server_settings()


def test_settings_and_agents_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_settings().lanes = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        Agent(id="a", model="offline/rules").id = "b"  # type: ignore[misc]


def test_settings_of_the_store_do_not_depend_on_any_other_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCHRAY_PORT", "tcp://10.0.0.1:8283")  # as Kubernetes sets it for a service of that name
    monkeypatch.setenv("BATCHRAY_DATABASE_URL", "postgresql://host/jobs")
    file = tmp_path / "server.yaml"
    file.write_text("data_dir: jobs\nport: 80\nmax_in_flight: -1\n")
    settings = load_store_settings(file)
    assert (settings.data_dir, settings.url) == (Path("jobs"), "postgresql://host/jobs")
    file.write_text("data_dirr: jobs\n")
    with pytest.raises(ConfigError, match="data_dirr"):
        load_store_settings(file)
