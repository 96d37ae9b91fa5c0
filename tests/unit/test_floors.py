"""Holds the floors of the design: a module imports only what stands above it in this list."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

import batchray

ROOT = Path(batchray.__file__).parent


@functools.cache
def tree_of(file: Path) -> ast.Module:
    """Return the syntax tree of a module."""
    return ast.parse(file.read_text())


# From the bottom up.  Inside a package that is named whole, modules may import each other.
FLOORS = (
    # words and pure parts
    "errors",
    "support",
    "schema",
    "models",
    "batch",
    "config",
    # the outside
    "callbacks",
    # the agent
    "agents",
    "store",
    "executors.provider_board",
    "executors.blocking",
    "executors.base",
    "executors.local",
    "executors.ray",
    "executors",
    # what a person or a file gets to see
    "views",
    # the story
    "jobs.slots",
    "jobs.window",
    "jobs.attempt_policy",
    "jobs.failure_policy",
    "jobs.deadlines",
    "jobs.in_flight",
    "jobs.provider_gates",
    "jobs.timing",
    "jobs.endings",
    "jobs.idle",
    "jobs.control",
    "jobs.retention",
    "jobs.group_commit",
    "jobs.context",
    "jobs.clearing",
    "jobs.running",
    "jobs.window_shares",
    "jobs.steering",
    "jobs.item_runner",
    "jobs.driver",
    "jobs.local_run",
    "jobs.states",
    "jobs.reader",
    "jobs.handle",
    "jobs.reuse",
    "jobs.create",
    "jobs.runtime",
    "jobs.start",
    "jobs",
    "api",
    "experiments.variants",
    "experiments.cross",
    "experiments.bootstrap",
    "experiments.scoring",
    "experiments.comparison_figure",
    "experiments.comparison_frame",
    "experiments.comparison",
    "experiments",
    # the doors
    "server",
    "cli.exits",
    "cli.options",
    "cli.job_names",
    "cli.output",
    "cli.db",
    "cli.keys",
    "cli.serve",
    "cli.jobs",
    "cli.show",
    "cli.run",
    "cli.main",
    "cli",
    "__main__",
)
PURE = ("support", "batch", "config", "jobs.slots", "jobs.window", "jobs.attempt_policy", "jobs.failure_policy")

# Which modules may import what is heavy.
HEAVY = {
    "ray": {"executors.ray"},
    "aiohttp": {"callbacks.transport", "models.client", "models.connection", "models.http", "server"},
    "sqlalchemy": {"store"},
    "psycopg": set(),
    "click": {"cli"},
    "rich": {"cli.show", "views.report_text", "views.summary", "views.terminal", "views.trajectory_text"},
    "pandas": {
        "experiments.comparison",
        "experiments.comparison_figure",
        "experiments.comparison_frame",
        "jobs.reader",
        "views.frames",
    },
    "yaml": {"config"},
    "pyarrow": {
        "batch",
        "executors.ray",
        "jobs.reader",
        "views.export_places",
        "views.frames",
        "views.carried",
        "views.csv_export",
        "views.exports",
        "views.result_tables",
    },
}

MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted(ROOT.rglob("*.py"))
    if file != ROOT / "__init__.py"
}


@functools.cache
def imports(file: Path) -> tuple[str, ...]:
    """Return the full names of the modules that a file imports, at any depth and under TYPE_CHECKING too."""
    return tuple(_imports(file))


def _imports(file: Path) -> Iterator[str]:
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            assert node.module is not None
            if node.module == "batchray":
                yield from (f"batchray.{alias.name}" for alias in node.names)
            else:
                yield node.module


def floor_of(module: str) -> str:
    """Return the most exact floor of a module: the longest prefix of its dotted name that is one."""
    parts = module.split(".")
    prefixes = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next(prefix for prefix in prefixes if prefix in FLOORS)


def test_every_module_has_a_floor() -> None:
    assert {floor_of(module) for module in MODULES} == set(FLOORS)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_floors_below(module: str) -> None:
    own = floor_of(module)
    below = FLOORS[: FLOORS.index(own)]
    wrong = [
        name
        for name in imports(MODULES[module])
        if name.startswith("batchray.") and floor_of(name.removeprefix("batchray.")) not in (*below, own)
    ]
    assert not wrong


@pytest.mark.parametrize("module", [module for module in MODULES if floor_of(module) in PURE])
def test_a_pure_part_imports_only_words(module: str) -> None:
    ours = {
        floor_of(name.removeprefix("batchray.")) for name in imports(MODULES[module]) if name.startswith("batchray")
    }
    assert ours <= {"errors", "schema", "jobs.slots", floor_of(module)}


@pytest.mark.parametrize("package", HEAVY)
def test_a_heavy_package_is_imported_only_by_the_modules_that_need_it(package: str) -> None:
    importers = {
        module for module, file in MODULES.items() if package in {name.split(".")[0] for name in imports(file)}
    }
    assert {
        module
        for module in importers
        if floor_of(module) not in HEAVY[package] and module.split(".")[0] not in HEAVY[package]
    } <= HEAVY[package]


def test_no_module_is_longer_than_350_lines() -> None:
    assert {module for module, file in MODULES.items() if len(file.read_text().splitlines()) > 350} == set()


SOURCES = [*ROOT.rglob("*.py"), *(ROOT.parent / "tests").rglob("*.py")]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def test_functions_are_short() -> None:
    found = [(file, node) for file in SOURCES for node in ast.walk(tree_of(file)) if isinstance(node, FUNCTIONS)]
    lengths = {f"{file.name}: {node.name}": (node.end_lineno or 0) - node.lineno + 1 for file, node in found}
    assert [name for name, length in lengths.items() if length > 60] == []
    assert sorted(lengths.values())[int(len(lengths) * 0.95)] <= 25


def test_a_class_of_many_methods_says_why() -> None:
    found = [(file, node) for file in SOURCES for node in ast.walk(tree_of(file)) if isinstance(node, ast.ClassDef)]
    large = [(file, node) for file, node in found if sum(isinstance(each, FUNCTIONS) for each in node.body) > 20]
    silent = [node.name for file, node in large if "# more than 20 methods" not in _line(file, node.lineno)]
    assert silent == []


def _line(file: Path, number: int) -> str:
    return file.read_text().splitlines()[number - 1]


def test_every_public_name_is_there_and_the_list_is_sorted() -> None:
    assert batchray.__all__ == sorted(batchray.__all__, key=lambda name: (not name[0].isupper(), name))
    homes = [name for names in batchray._HOMES.values() for name in names]
    assert sorted([*homes, "jobs"]) == sorted(batchray.__all__)  # a package that can be called
    need_ray = ("RemoteJob", "find_job")
    assert all(getattr(batchray, name).__name__ for name in batchray.__all__ if name not in need_ray)
