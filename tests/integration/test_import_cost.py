"""The modules that an import of batchray loads, in a fresh process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from batchray import schema

ROOT = Path(__file__).parents[2]


def test_importing_batchray_loads_neither_ray_nor_aiohttp_nor_pydantic() -> None:
    code = (
        "import sys, batchray; print(*sorted({'ray', 'aiohttp', 'pydantic', 'sqlalchemy', 'rich'} & set(sys.modules)))"
    )
    assert loaded(code) == []


def test_running_locally_with_offline_models_loads_neither_ray_nor_aiohttp() -> None:
    code = "import sys, batchray.api, batchray.cli.main; print(*sorted({'ray', 'aiohttp', 'rich'} & set(sys.modules)))"
    assert loaded(code) == []


def test_the_process_that_checks_a_body_loads_few_models() -> None:
    code = (
        "import sys, batchray.server.body_checker\n"
        "print(*sorted(name for name in sys.modules if name in ('aiohttp', 'ray', 'sqlalchemy')"
        " or name.startswith(('batchray.schema.agents', 'batchray.schema.letta', 'batchray.schema.runs'))))"
    )
    assert loaded(code) == []


def test_each_module_of_the_schema_can_be_the_first_one() -> None:
    code = (
        "import sys\nfrom importlib import import_module\nimport batchray.schema\n"
        "for module in batchray.schema._MODULES:\n"
        "    for name in [name for name in sys.modules if name.startswith('batchray.schema')]:\n"
        "        del sys.modules[name]\n"
        "    import_module(f'batchray.schema.{module}')\n"
        "    print(module)\n"
    )
    assert loaded(code) == list(schema._MODULES)


def loaded(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.split()


def test_the_warning_of_an_old_import_path_names_the_line_that_imports_it() -> None:
    code = "import warnings; warnings.simplefilter('default')\nfrom batchray.tools import ToolError, is_cancelled\n"
    done = subprocess.run([sys.executable, "-"], input=code, capture_output=True, text=True, check=True)
    assert done.stderr.startswith("<stdin>:2: DeprecationWarning: batchray.tools is deprecated; ")
