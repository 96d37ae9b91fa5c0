"""YAML and JSON files with the line of each value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from batchray.errors import ConfigError
from batchray.schema.validation_text import path_text


@dataclass(frozen=True)
class Document:
    """A YAML or JSON mapping with the positions of its values."""

    file: Path
    data: dict[str, Any]
    root: yaml.Node | None

    def location(self, path: Sequence[int | str]) -> str:
        """Return the file, the line and the path of a value, or of its innermost parent that exists."""
        known, line = self._find(path)
        return f"{self.file}, line {line}" + (f", {path_text(known)}" if known else "")

    def line(self, path: Sequence[int | str]) -> int:
        """Return the line of a value, or of its innermost parent that exists; lines count from 1."""
        return self._find(path)[1]

    def _find(self, path: Sequence[int | str]) -> tuple[list[int | str], int]:
        node, known = self.root, list[int | str]()
        line = node.start_mark.line + 1 if node else 1
        for key in path:
            child, mark = _child(node, key)
            if mark is None:
                break
            node, line = child, mark.line + 1
            known.append(key)
        return known, line


def _child(node: yaml.Node | None, key: int | str) -> tuple[yaml.Node | None, yaml.Mark | None]:
    if isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
        child = node.value[key]
        return child, child.start_mark
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if name.value == key:
                return value, name.start_mark
    return None, None


def read_mapping(file: Path, what: str) -> Document:
    """Read a file that contains a mapping; `what` completes the sentence "must be a mapping ..." in errors.

    Raises ConfigError with the file, and the line if it is known.
    """
    try:
        text = file.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", str(file)) from None
    except UnicodeDecodeError:
        raise ConfigError("is not UTF-8 text", str(file)) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line if error.problem_mark else 0
        hint = "; inside { } a value with ${ } needs quotes" if "${" in text.splitlines()[line] else ""
        raise ConfigError(f"is not YAML: {error.problem}{hint}", f"{file}, line {line + 1}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist
        raise ConfigError(f"is not YAML: {str(error).splitlines()[0]}", str(file)) from None
    except RecursionError:
        raise ConfigError("is nested too deep", str(file)) from None
    if not isinstance(data, dict):
        raise ConfigError(f"must be a mapping {what}", str(file))
    return Document(file, data, root)
