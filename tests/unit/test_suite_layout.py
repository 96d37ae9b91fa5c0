"""The rules of the test suite's own layout."""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_no_test_module_imports_from_another() -> None:
    found = [
        f"{file.relative_to(TESTS)} imports {module}"
        for file in TESTS.rglob("*.py")
        for module in _imported(ast.parse(file.read_text()))
        if module.startswith("tests.") and module.rpartition(".")[2].startswith("test_")
    ]
    assert not found, f"move what they share to tests/builders: {found}"


def _imported(tree: ast.Module) -> list[str]:
    """Return the dotted names that a module imports, at its top or in a function."""
    nodes = list(ast.walk(tree))
    whole = [each.name for node in nodes if isinstance(node, ast.Import) for each in node.names]
    parts = [(node.module or "", node.names) for node in nodes if isinstance(node, ast.ImportFrom)]
    return whole + [name for module, names in parts for name in (module, *(f"{module}.{each.name}" for each in names))]
