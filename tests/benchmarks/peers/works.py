"""The works, with the standard library alone: this runs in the environments of all contenders."""

from __future__ import annotations

from typing import NamedTuple

SLOW_EVERY = 10
"""Of the first window of a work with stragglers, each tenth request is one."""

_TOKENS = [f"tok{i}" for i in range(50)]


class Work(NamedTuple):
    """n requests, a number of them at once.

    Each makes `n_tool_steps` model calls that ask for a tool, and one that answers.
    `latency_s` is the time of a model call.  With `slow_s`, 1 % of the requests take that long, all of them among the
    first, so that the work can end when they do.
    """

    name: str
    n: int
    concurrency: int
    latency_s: float
    n_tool_steps: int = 0
    slow_s: float = 0.0
    limit: float = 0.0
    """batchray's wall time divided by that of the bare loop, at most; 0: none."""
    calm: str = ""
    """The name of the same work without stragglers, which is measured too."""
    base_url: str = ""

    @property
    def has_tools(self) -> bool:
        return self.n_tool_steps > 0

    @property
    def n_slow(self) -> int:
        return self.n // 100 if self.slow_s else 0

    @property
    def n_calls(self) -> int:
        """Model calls that the work needs."""
        return self.n * (self.n_tool_steps + 1)

    @property
    def ideal_s(self) -> float:
        """The time of the work if nothing but the model takes any."""
        if not self.latency_s:
            return 0.0
        return max(self.slow_s, self.n_calls / self.concurrency * self.latency_s)

    def is_slow(self, index: int) -> bool:
        return index % SLOW_EVERY == 0 and index < self.n_slow * SLOW_EVERY

    def prompts(self) -> list[str]:
        """The text of each request, with directives for the mock."""
        return [f"{index} Say something, please.{self._directives(index)}" for index in range(self.n)]

    def _directives(self, index: int) -> str:
        if self.n_tool_steps:
            return f' [[steps:{self.n_tool_steps}]] [[tool:add {{"a": {index}, "b": 1}}]]'
        return f" [[latency:{self.slow_s}]]" if self.is_slow(index) else ""


WORKS = {
    work.name: work
    for work in (
        Work("wide", n=5000, concurrency=1000, latency_s=1.0, limit=1.25),
        Work("short", n=1000, concurrency=100, latency_s=0.2, limit=1.15),
        Work("steps", n=400, concurrency=100, latency_s=0.2, n_tool_steps=4, limit=1.15),
        Work("stragglers", n=1000, concurrency=100, latency_s=0.2, slow_s=10.0, calm="short"),
        Work("cpu", n=2000, concurrency=64, latency_s=0.0),
    )
}


def is_right(text: str) -> bool:
    """Whether this is the mock's answer, whole."""
    return text.split() == _TOKENS


async def add(a: int, b: int) -> str:
    """Add two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return str(a + b)
