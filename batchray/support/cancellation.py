"""Cancel a block of a task and give the reason as an exception."""

from __future__ import annotations

import asyncio
from types import TracebackType


class CancelScope:
    """A block of the current task that other code can end with an exception.

    `cancel_with(error)` cancels the task; the block then raises `error` in place of the CancelledError.  A cancel that
    comes from elsewhere, before, after or at the same time, is still raised as CancelledError, as by `asyncio.timeout`.
    Calls are made on the task's event loop.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None
        """The error that the block was cancelled with."""
        self._task: asyncio.Task[object] | None = None
        self._n_cancels = 0

    def __enter__(self) -> CancelScope:
        task = asyncio.current_task()
        assert task is not None, "a CancelScope needs a task"
        self._task, self._n_cancels = task, task.cancelling()
        return self

    def cancel_with(self, error: BaseException) -> None:
        """End the block with `error`.  Only the first call counts, and none after the block has ended."""
        if self._task is not None and self.error is None:
            self.error = error
            self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        assert task is not None
        if self.error is None:
            return
        is_ours_alone = task.uncancel() <= self._n_cancels
        if is_ours_alone and isinstance(raised, asyncio.CancelledError):
            raise self.error from None
