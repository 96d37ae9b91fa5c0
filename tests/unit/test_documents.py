"""The documents agree with the code: links, paths, modules, and the tables of fields, settings and options.

Their commands and snippets run in tests/cluster/test_readme.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from pydantic import BaseModel

from batchray.cli.main import cli
from batchray.config import Agent, MemoryBlock, Provider, ServerSettings, Settings
from batchray.config.agents import AgentsFile, Prices, ProviderTimeouts
from batchray.schema import AgentRequest, ItemStatus, Result

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    file.relative_to(ROOT)
    for pattern in ("*.md", ".github/*.md", "batchray/**/*.md", "configs/**/*.md", "notebooks/*.md", "tests/**/*.md")
    for file in ROOT.glob(pattern)
)
CONFIGURATION = "configs/README.md"
# Fields of Letta's requests that batchray refuses or does not use.
UNUSED_REQUEST_FIELDS = {
    *("client_skills", "override_model", "include_compaction_messages"),
    *("return_logprobs", "top_logprobs", "return_token_ids"),
}


def _read(document: str | Path) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def _table(document: str, heading: str) -> dict[str, str]:
    """Return the table whose first column has this heading: the name in its first column -> its second column."""
    _, _, rest = _read(document).partition(f"\n| {heading} |")
    assert rest, f"no table {heading!r} in {document}"
    rows = {}
    for line in rest.splitlines()[2:]:
        if not line.startswith("|"):
            break
        first, second = re.split(r"(?<!\\)\|", line)[1:3]
        for name in re.findall(r"`(\w+)`", first):
            rows[name] = second.strip().strip("`")
    return rows


def _written(default: Any) -> str:
    """Return a default as a document has it: in YAML, with whole numbers as integers."""
    match default:
        case None:
            return "null"
        case bool():
            return str(default).lower()
        case float() if default.is_integer():
            return str(int(default))
        case tuple():
            return "[]"
        case Mapping():
            return "{}"
        case "":
            return '""'
    return str(default)


def _defaults(model: type[BaseModel]) -> dict[str, str]:
    return {
        name: "required" if field.is_required() else _written(field.get_default(call_default_factory=True))
        for name, field in model.model_fields.items()
    }


def _slug(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_every_link_leads_to_a_file_or_a_heading_of_it(document: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", _read(document)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / document).parent / path if path else ROOT / document
        headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        if not file.exists() or (anchor and anchor not in map(_slug, headings)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_every_module_and_test_that_a_command_names_exists(document: Path) -> None:
    text = _read(document)
    modules = [name.replace(".", "/") for name in re.findall(r"-m (tests\.[\w.]+)", text)]
    missing = [name for name in modules if not (ROOT / f"{name}.py").exists() and not (ROOT / name).is_dir()]
    missing += [path for path in re.findall(r"\btests/[\w/]+(?:\.\w+)?", text) if not (ROOT / path).exists()]
    assert missing == []


@pytest.mark.parametrize(
    ("heading", "model"),
    [("option", Agent), ("field of a block", MemoryBlock), ("option of a provider", Provider), ("setting", Settings)],
)
def test_a_table_of_options_has_every_field_with_its_default(heading: str, model: type[BaseModel]) -> None:
    described, defaults = _table(CONFIGURATION, heading), _defaults(model)
    assert list(described) == [name for name in described if name in defaults]
    assert described.keys() == defaults.keys()
    unexplained = {name for name, default in described.items() if not default}
    assert unexplained <= {"model", "run", "timeouts"}  # exactly one of the first two; the last is a mapping
    assert {name: default for name, default in described.items() if default} == {
        name: default for name, default in defaults.items() if name not in unexplained
    }


def test_the_table_of_server_settings_has_every_further_field_with_its_default() -> None:
    further = {name: value for name, value in _defaults(ServerSettings).items() if name not in Settings.model_fields}
    assert _table(CONFIGURATION, "setting of a server") == further
    changed = {
        name
        for name, field in Settings.model_fields.items()
        if field.default != ServerSettings.model_fields[name].default
    }
    assert changed == {"min_watched_items"}
    assert "`min_watched_items` 1000" in _read(CONFIGURATION).replace("\n", " ")


def test_the_timeouts_and_prices_of_a_provider_are_described() -> None:
    text = _read(CONFIGURATION)
    described = dict(re.findall(r"`(\w+)` ([0-9.]+)", text.split("| `timeouts` |")[1].splitlines()[0]))
    assert described == _defaults(ProviderTimeouts)
    assert f"{{{', '.join(Prices.model_fields)}}}" in text


def test_the_keys_of_an_agents_file_are_described() -> None:
    assert "`agents`, `providers` and `tools`" in _read(CONFIGURATION)
    assert set(AgentsFile.model_fields) == {"agents", "providers", "tools"}


def test_the_table_of_requests_has_every_field_that_has_an_effect() -> None:
    described = _table(CONFIGURATION, "field").keys() - {"otid", "name", "sender_id", "group_id"}
    assert described == AgentRequest.model_fields.keys() - UNUSED_REQUEST_FIELDS


def test_the_table_of_results_has_every_field_and_every_status() -> None:
    described = _table("notebooks/README.md", "field")
    assert described.keys() == Result.model_fields.keys()
    assert set(re.findall(r"\w+", described["status"])) >= {status.value for status in ItemStatus}


def test_the_options_are_those_of_the_command_line() -> None:
    groups = [command for command in cli.commands.values() if isinstance(command, click.Group)]
    commands = [*cli.commands.values(), *(command for group in groups for command in group.commands.values())]
    known = {flag for command in commands for option in command.params for flag in option.opts if flag[:2] == "--"}
    section = _read("README.md").split("## Command line")[1].split("```")[0]
    assert set(re.findall(r"--[a-z][a-z-]*", section)) == known | {"--help"}


def test_every_command_of_the_command_line_is_listed() -> None:
    section = _read("README.md").split("## Command line")[1].split("```")[0]
    missing = []
    for name, command in cli.commands.items():
        subcommands = command.commands if isinstance(command, click.Group) else [""]
        missing += [
            words
            for words in (f"{name} {sub}".strip() for sub in subcommands)
            if not re.search(rf"`(batchray )?{words}\b", section)
        ]
    assert missing == []


def test_the_check_scripts_are_executable_and_install_as_the_readme_says() -> None:
    for script in ("run", "check"):
        assert (ROOT / ".ci" / script).stat().st_mode & 0o111
        assert '-e ".[dev]"' in _read(f".ci/{script}").replace("\\", "")
    assert "-m pytest" in _read(".ci/run")


def test_every_path_on_the_map_exists() -> None:
    text = _read("batchray/README.md")
    paths = {*re.findall(r"[\w/]+\.py\b", text), *re.findall(r"`((?:\w+/)+)`", text)}
    assert len(paths) > 60
    assert [
        path for path in sorted(paths) if not any((base / path).exists() for base in (ROOT, ROOT / "batchray"))
    ] == []


def test_every_room_is_on_the_map() -> None:
    described = _read("batchray/README.md").split("## Rooms and floors")[1].split("##")[0]
    top = [path for path in (ROOT / "batchray").iterdir() if path.is_dir() or path.suffix == ".py"]
    rooms = {f"{path.name}/" if path.is_dir() else path.name for path in top}
    assert rooms - set(re.findall(r"`([^`]+)`", described)) == {"__init__.py", "__main__.py"} | {
        room for room in rooms if room.startswith("__pycache__")
    }


def test_the_map_is_short() -> None:
    assert len(_read("batchray/README.md").splitlines()) <= 165


def test_ci_tests_every_python_that_the_package_claims() -> None:
    claimed = re.findall(r"Programming Language :: Python :: (3\.\d+)", _read("pyproject.toml"))
    workflow = yaml.safe_load(_read(".github/workflows/ci.yml"))
    for job in ("check", "cluster"):
        assert workflow["jobs"][job]["strategy"]["matrix"]["python"] == claimed
    assert f"Python {claimed[0]} to {claimed[-1]}" in _read("README.md")
