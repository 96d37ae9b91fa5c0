"""A Python callable as an agent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from batchray.agents.base import Run
from batchray.agents.user_code import call_for_text
from batchray.schema import StopReason, TextContent, Usage


class FunctionAgent:
    """Calls `function(request)`; the answer is the string that it returns, or its value as JSON.

    What the function writes to standard output and standard error is a tool return in the answer's message.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    async def run(self, run: Run) -> StopReason:
        """Call the function once; an exception becomes the outcome's error."""
        with run.executing():
            text = await call_for_text(self._function, run.output, run.request)
        run.usage += Usage(step_count=1)
        returned = run.tool_return("success") if run.output else None
        run.append(
            role="assistant",
            content=[TextContent(text=text)],
            tool_returns=[returned] if returned else [],
            step_id=run.next_step_id(),
        )
        return StopReason.END_TURN
