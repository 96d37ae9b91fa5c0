"""Holds the floors of the design: a module imports only what stands above it in this list."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import batchray

ROOT = Path(batchray.__file__).parent

# A package is one floor: inside it, modules may import each other.
FLOORS = (
    # words
    "errors",
    "schema",
    # pure parts
    "config",
    "intake",
    "window",
    "progress",
    # the agent
    "models",
    "tools",
    "agents",
    # the outside
    "interpreter",
    "threads",
    "crash",
    "store",
    "retention",
    "control",
    "callback",
    "cluster",
    # the story
    "context",
    "in_flight",
    "limits",
    "ledger",
    "running",
    "driver",
    "results",
    "job",
    "session",
    "display",
    "api",
    # the doors
    "server",
    "cli_db",
    "cli_output",
    "cli",
    "__main__",
)
PURE = ("config", "intake", "window", "progress")

# Which modules may import what is heavy.
HEAVY = {
    "ray": {
        "cluster.calls",
        "cluster.connect",
        "cluster.job_actor",
        "cluster.lane",
        "cluster.lane_handle",
        "cluster.lanes",
        "cluster.pool",
        "cluster.pulse",
        "cluster.step_reader",
    },
    "aiohttp": {"callback.transport", "models.client", "models.http", "server"},
    "sqlalchemy": {"store"},
    "psycopg": set(),
    "click": {"cli", "cli_db"},
    "rich": {"cli", "display"},
    "pandas": {"job", "results"},
    "yaml": {"config"},
}

MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted(ROOT.rglob("*.py"))
    if file != ROOT / "__init__.py"
}


def imports(file: Path) -> Iterator[str]:
    """Yield the full names of the modules that a file imports, at any depth and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(file.read_text())):
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
    return module.split(".")[0]


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
    assert ours <= {"errors", "schema", floor_of(module)}


@pytest.mark.parametrize("package", HEAVY)
def test_what_is_heavy_is_imported_only_where_it_is_needed(package: str) -> None:
    importers = {
        module for module, file in MODULES.items() if package in {name.split(".")[0] for name in imports(file)}
    }
    assert {module for module in importers if floor_of(module) not in HEAVY[package]} <= HEAVY[package]


def test_importing_batchray_loads_neither_ray_nor_aiohttp_nor_pydantic() -> None:
    code = (
        "import sys, batchray; print(*sorted({'ray', 'aiohttp', 'pydantic', 'sqlalchemy', 'rich'} & set(sys.modules)))"
    )
    assert loaded(code) == []


def test_running_locally_with_offline_models_loads_neither_ray_nor_aiohttp() -> None:
    code = "import sys, batchray.api, batchray.cli; print(*sorted({'ray', 'aiohttp', 'rich'} & set(sys.modules)))"
    assert loaded(code) == []


def loaded(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    return done.stdout.split()


def test_every_public_name_is_there_and_the_list_is_sorted() -> None:
    assert batchray.__all__ == sorted(batchray.__all__, key=lambda name: (not name[0].isupper(), name))
    homes = [name for names in batchray._HOMES.values() for name in names]
    assert sorted(homes) == sorted(batchray.__all__)
    # `find_job` alone needs Ray.
    assert all(getattr(batchray, name).__name__ for name in batchray.__all__ if name != "find_job")
