"""Wait for the answers of remote calls, and stop waiting, without an effect on Ray."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from typing import Any


def answer_of(reference: Any) -> asyncio.Future[Any]:
    """Return a future of the running loop that ends as the remote call of this `ObjectRef` does.

    To cancel it is safe at any moment.  To cancel an await of the reference itself is not: it cancels a future that
    one of Ray's threads may be about to complete, after it has seen it open, and Ray then logs an InvalidStateError
    with a traceback.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Any] = loop.create_future()

    def hand_over(done: concurrent.futures.Future[Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nothing waits for the answer
            loop.call_soon_threadsafe(_copy, done, answer)

    reference.future().add_done_callback(hand_over)
    return answer


async def next_answer(answers: Any) -> Any:
    """Take the next answer of a call that returns several, an `ObjectRefGenerator`.

    Cancelling this is as safe: Ray awaits a reference here too, and continues to.  Raises StopAsyncIteration.
    """
    fetching = asyncio.ensure_future(anext(answers))
    fetching.add_done_callback(lambda done: done.cancelled() or done.exception())  # if nothing waits for it any more
    return await answer_of(await asyncio.shield(fetching))


def _copy(done: concurrent.futures.Future[Any], answer: asyncio.Future[Any]) -> None:
    if answer.done():
        return
    if (error := done.exception()) is not None:
        answer.set_exception(error)
    else:
        answer.set_result(done.result())
