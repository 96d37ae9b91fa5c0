"""The rules of the test suite's own layout."""

from __future__ import annotations

import ast
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from tests.scheduling import SLOWEST_FIRST

TESTS = Path(__file__).parents[1]


def test_no_test_module_imports_from_another() -> None:
    found = [
        f"{file.relative_to(TESTS)} imports {module}"
        for file in TESTS.rglob("*.py")
        for module in _imported(_nodes(file))
        if module.startswith("tests.") and module.rpartition(".")[2].startswith("test_")
    ]
    assert not found, f"move what they share to tests/builders: {found}"


@cache
def _nodes(file: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(file.read_text())))


def _imported(nodes: tuple[ast.AST, ...]) -> list[str]:
    """Return the dotted names that a module imports, at its top or in a function."""
    whole = [each.name for node in nodes if isinstance(node, ast.Import) for each in node.names]
    parts = [(node.module or "", node.names) for node in nodes if isinstance(node, ast.ImportFrom)]
    return whole + [name for module, names in parts for name in (module, *(f"{module}.{each.name}" for each in names))]


_NOT_IN_UNIT_TESTS = (
    "subprocess",
    "multiprocessing",
    "signal",
    "tests.postgres",
    "tests.preloaded",
    "tests.builders.commands",
)


def test_unit_tests_start_no_process_and_no_database_and_do_not_sleep() -> None:
    found = [
        f"{file.name}:{line}: {what}" for file in (TESTS / "unit").glob("*.py") for line, what in _slow_parts(file)
    ]
    assert not found, f"move these tests to tests/integration: {found}"


def _slow_parts(file: Path) -> list[tuple[int, str]]:
    """Return what starts processes or takes real time in a test module, each with its line."""
    tree = ast.parse(file.read_text())
    found = [(1, f"imports {name}") for name in _imported(_nodes(file)) if name in _NOT_IN_UNIT_TESTS]
    tree.body = [node for node in tree.body if "in_virtual_time" not in _decorators(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _is_slow(node):
            found.append((node.lineno, ast.unparse(node)))
        if isinstance(node, ast.arg) and node.arg == "database":
            found.append((node.lineno, "needs PostgreSQL"))
    return found


def _decorators(node: ast.stmt) -> list[str]:
    return [ast.unparse(each) for each in getattr(node, "decorator_list", [])]


def _is_slow(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    if name == "asyncio.sleep":
        return ast.unparse(call.args[0]) != "0"
    return name in ("time.sleep", "os.kill", "os.fork", "os._exit", "request.getfixturevalue")


def test_the_commands_of_the_readme_select_folders_and_markers_that_exist(pytestconfig: pytest.Config) -> None:
    text = (TESTS / "README.md").read_text()
    commands = [shlex.split(block) for block in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)]
    assert all(command[:3] == ["python", "-m", "pytest"] for command in commands)
    arguments = [argument for command in commands for argument in command[3:]]
    paths = [each for each in arguments if each.startswith("tests/")]
    assert paths
    assert all((TESTS.parent / path).exists() for path in paths)
    declared = {line.partition(":")[0] for line in pytestconfig.getini("markers")}
    marked = {
        word for command in commands if "-m" in command[3:] for word in command[command.index("-m", 3) + 1].split()
    }
    assert (
        marked - {"not", "and"}
        == {"timing", "chaos", "formats", "full", "benchmark", "fuzz", "sdks", "servers", "cluster"}
        <= declared
    )


def test_the_files_that_are_scheduled_first_exist() -> None:
    assert [file for file in SLOWEST_FIRST if not (TESTS.parent / file).exists()] == []
    assert len(set(SLOWEST_FIRST)) == len(SLOWEST_FIRST)
