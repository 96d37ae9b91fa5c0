"""A Python callable as an agent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from batchray.agents.base import Run
from batchray.agents.tools import as_text, call_function
from batchray.schema import StopReason, TextContent, Usage, new_id


class FunctionAgent:
    """Calls `function(request)`; the answer is the string that it returns, or its value as JSON."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    async def run(self, run: Run) -> StopReason:
        """Call the function once; an exception becomes the outcome's error."""
        with run.executing():
            value = await call_function(self._function, run.request)
        run.usage += Usage(step_count=1)
        run.append(role="assistant", content=[TextContent(text=as_text(value))], step_id=new_id("step"))
        return StopReason.END_TURN
