"""Import paths of 0.1.0 that have moved: they import the new module and warn."""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED_MODULES = {
    "batchray.job": "batchray.jobs.handle",
    "batchray.progress": "batchray.schema.progress",
    "batchray.results": "batchray.views.results",
    "batchray.session": "batchray.jobs.runtime",
    "batchray.tools": "batchray.agents.tools",
}
"""Old path -> new path."""
RENAMED = {"batchray.session": {"Session": "Runtime"}, "batchray.tools": {"Tool": "FunctionTool"}}
"""Old path -> old name -> new name, for names that changed with the move."""


def install() -> None:
    """Make the old paths importable.  Calling it again changes nothing."""
    if not any(isinstance(finder, _MovedModuleFinder) for finder in sys.meta_path):
        sys.meta_path.append(_MovedModuleFinder())  # last: asked only for what does not exist


class _MovedModuleFinder:
    """Finds and loads the modules of `MOVED_MODULES`.  Source: the import protocol, PEP 451."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Return how to load a module, or None if it did not move."""
        if name not in MOVED_MODULES:
            return None
        warnings.warn(f"{name} is deprecated; import {MOVED_MODULES[name]}", DeprecationWarning, stacklevel=2)
        return ModuleSpec(name, self)  # type: ignore[arg-type]  # duck-typed, as importlib allows

    def create_module(self, spec: ModuleSpec) -> None:
        """Return None: importlib creates an empty module."""

    def exec_module(self, module: ModuleType) -> None:
        """Fill the old module with the names of the new one."""
        old = module.__name__
        new = import_module(MOVED_MODULES[old])
        names: dict[str, Any] = {name: value for name, value in vars(new).items() if not name.startswith("__")}
        renamed = {name: names[new_name] for name, new_name in RENAMED.get(old, {}).items()}
        vars(module).update(names, **renamed)
