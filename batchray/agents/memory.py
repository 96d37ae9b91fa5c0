"""An agent's memory during one run: its blocks in the prompt, and the tools that edit them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from batchray.agents.tools import FunctionTool, make_tool
from batchray.config import MemoryBlock


class RunMemory:
    """The memory blocks of one run.

    `edited` holds the values that differ from `blocks`, by label: those of earlier runs, and this run's.  `bases` holds
    the value that this run found in each block that it has edited, so that an edit of a person meanwhile is not lost.
    """

    def __init__(
        self,
        blocks: Sequence[MemoryBlock] = (),
        edited: Mapping[str, str] | None = None,
        bases: Mapping[str, str] | None = None,
    ) -> None:
        self._blocks = {block.label: block for block in blocks}
        self.edited = {label: value for label, value in (edited or {}).items() if label in self._blocks}
        self.bases = {label: base for label, base in (bases or {}).items() if label in self.edited}

    def value(self, label: str) -> str:
        """Return a block's current value."""
        return self.edited.get(label, self._blocks[label].value)

    def prompt(self) -> str:
        """Return the blocks as text for the system prompt; empty if there are none."""
        if not self._blocks:
            return ""
        shown = "\n".join(self._block_text(block) for block in self._blocks.values())
        return f"<memory_blocks>\n{shown}\n</memory_blocks>"

    async def memory_insert(self, label: str, new_str: str, insert_line: int = -1) -> str:
        """Insert text into a memory block as lines of its own.

        Args:
            label: the block to edit
            new_str: the text to insert
            insert_line: the line behind which it is inserted; 0 is the beginning, -1 the end
        """
        value = self._writable(label)
        lines = value.split("\n") if value else []
        if not -1 <= insert_line <= len(lines):
            raise ValueError(f"insert_line {insert_line} is outside of block {label!r}, which has {len(lines)} lines")
        position = len(lines) if insert_line == -1 else insert_line
        return self._set(label, "\n".join([*lines[:position], *new_str.split("\n"), *lines[position:]]))

    async def memory_replace(self, label: str, old_str: str, new_str: str) -> str:
        """Replace text in a memory block.

        Args:
            label: the block to edit
            old_str: the text to replace, exactly as it stands there, and only once
            new_str: the text in its place; empty to delete it
        """
        value = self._writable(label)
        n_found = value.count(old_str) if old_str else 0
        if n_found != 1:
            found = "was not found" if n_found == 0 else f"stands {n_found} times"
            raise ValueError(f"old_str {found} in block {label!r}; it has to stand there exactly once")
        return self._set(label, value.replace(old_str, new_str))

    def tools(self, unbound_tools: Mapping[str, FunctionTool]) -> dict[str, FunctionTool]:
        """Return the tools of `memory_tools`, bound to these blocks.

        They are instant, so that a checkpoint never has an edit without the return of its call, which would be made
        again after a crash.
        """
        return {
            name: replace(tool, function=getattr(self, name), is_instant=True) for name, tool in unbound_tools.items()
        }

    def _writable(self, label: str) -> str:
        if label not in self._blocks:
            raise ValueError(f"there is no block {label!r}; there are: {', '.join(self._blocks)}")
        if self._blocks[label].read_only:
            raise ValueError(f"block {label!r} is read-only")
        return self.value(label)

    def _set(self, label: str, value: str) -> str:
        limit = self._blocks[label].limit
        if len(value) > limit:
            raise ValueError(f"block {label!r} would have {len(value):,} characters; its limit is {limit:,}")
        self.bases.setdefault(label, self.value(label))
        self.edited[label] = value
        return f"Block {label!r} is now:\n{value}"

    def _block_text(self, block: MemoryBlock) -> str:
        value = self.value(block.label)
        described = f"<description>{block.description}</description>\n" if block.description else ""
        access = ", read-only" if block.read_only else ""
        size = f"<size>{len(value):,} of {block.limit:,} characters{access}</size>"
        return f'<block label="{block.label}">\n{described}{size}\n<value>\n{value}\n</value>\n</block>'


MEMORY_TOOLS = frozenset({RunMemory.memory_insert.__name__, RunMemory.memory_replace.__name__})
"""The names of the tools that `memory_tools` returns."""


def memory_tools(blocks: Sequence[MemoryBlock], timeout_s: float) -> dict[str, FunctionTool]:
    """Return the tools that edit memory blocks, not yet bound to a run; none if all blocks are read-only.

    They are idempotent: they edit the run, and another attempt continues with the memory of the last checkpoint.
    """
    if all(block.read_only for block in blocks):
        return {}
    unbound = RunMemory()
    functions = (unbound.memory_insert, unbound.memory_replace)
    tools = (make_tool(function, timeout_s, idempotent=True) for function in functions)
    return {tool.name: tool for tool in tools}
