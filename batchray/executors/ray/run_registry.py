"""The runs of one lane by the key of their attempt: each runs once, however often it is called for."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable
from enum import Enum
from functools import partial
from typing import NamedTuple

import msgspec

from batchray.agents.failures import in_words

# Reports may be lost on their way to the driver.  It asks again within seconds.
_MAX_REPORTS = 4096
_MAX_REPORT_BYTES = 16 * 1024 * 1024
# Why a run has no report: 100 to 200 bytes each.
_MAX_MARKS = 65_536
# Ray carries up to 100 KiB in the message of a call or its answer; what is larger takes a way that costs more.
MAX_MESSAGE_BYTES = 64 * 1024
"""Of starts or reports in one message; a larger one goes alone."""
IDLE_S = 10.0
"""How long a call waits for a run to end."""
_LOST = "its report was lost on the way"


class Start(NamedTuple):
    """An attempt to start.  `key` is its name, `agent` a packed agent, `item` an AttemptInput."""

    key: str
    agent: bytes
    item: bytes
    keeps_steps: bool = False


class RunReport(NamedTuple):
    """The report of a run: an AttemptReport as JSON (`content`), or why there is none.

    `lost` if it has run, and its report is gone; `failed` if it raised an error, which is a defect of this package;
    `is_unknown` if its start never arrived.
    """

    key: str
    content: bytes = b""
    lost: str = ""
    failed: str = ""
    is_unknown: bool = False

    @property
    def n_bytes(self) -> int:
        """About how many bytes it takes in a message."""
        return len(self.content) + len(self.failed) + len(self.key)


class _AgentStarts(NamedTuple):
    """Starts of one agent, which is sent once for all of them."""

    agent: bytes
    runs: list[tuple[str, bytes, bool]]


class _Call(NamedTuple):
    """The content of a call of a lane: starts, and the keys of runs whose reports may have been lost."""

    starts: list[_AgentStarts]
    asked: list[str]


_encode = msgspec.msgpack.Encoder().encode
_decode_call = msgspec.msgpack.Decoder(_Call).decode
_decode_reports = msgspec.msgpack.Decoder(list[RunReport]).decode


def pack_call(starts: Iterable[Start], asked: Iterable[str] = ()) -> bytes:
    """Return starts, and keys of runs that are asked for, as a lane's `exchange` takes them."""
    by_agent: dict[bytes, list[tuple[str, bytes, bool]]] = {}
    for key, agent, item, keeps_steps in starts:
        by_agent.setdefault(agent, []).append((key, item, keeps_steps))
    return _encode((list(by_agent.items()), list(asked)))


def unpack_call(packed: bytes) -> tuple[list[Start], list[str]]:
    """Return the starts in what `pack_call` returned, those of one agent together, and the keys."""
    call = _decode_call(packed)
    starts = [Start(key, same.agent, item, keeps_steps) for same in call.starts for key, item, keeps_steps in same.runs]
    return starts, call.asked


def pack_reports(reports: Iterable[RunReport]) -> bytes:
    """Return reports as a lane's `exchange` answers them."""
    return _encode(list(reports))


def unpack_reports(packed: bytes) -> list[RunReport]:
    """Return the reports in what `pack_reports` returned."""
    return _decode_reports(packed)


class _Mark(Enum):
    """Why there is no report of a run."""

    STOPPED = "nothing waits for it"
    DROPPED = "it failed, or newer ones have taken its place"


class RunRegistry:
    """The runs of a lane, the newest contents of finished ones, and the reports that its driver does not have yet."""

    def __init__(
        self,
        max_reports: int = _MAX_REPORTS,
        max_bytes: int = _MAX_REPORT_BYTES,
        max_marks: int = _MAX_MARKS,
        idle_s: float = IDLE_S,
    ) -> None:
        self._max_reports, self._max_bytes, self._max_marks = max_reports, max_bytes, max_marks
        self._idle_s = idle_s
        self._running: dict[str, asyncio.Task[bytes]] = {}
        self._contents: OrderedDict[str, bytes] = OrderedDict()
        self._marks: OrderedDict[str, _Mark] = OrderedDict()
        self._n_bytes = 0
        self._unsent: deque[RunReport] = deque()
        self._waiting: asyncio.Future[None] | None = None  # of the newest call
        self._is_waking = False

    def start(self, key: str, run: Callable[[], Awaitable[bytes]]) -> None:
        """Start a run; its report is one of `reports`.  It is not started if it was stopped, for which nothing waits.

        A second start for a key joins the same run, and the report of one that has ended comes again.  If its content
        is gone, or never existed, the report says so: the same attempt is not run a second time.
        """
        if not self._knows(key):
            task = self._running[key] = asyncio.ensure_future(run())
            task.add_done_callback(partial(self._finish, key))

    def ask(self, key: str) -> None:
        """Return the report of a run again, which may have been lost on its way; or say that the run is unknown."""
        if not self._knows(key):
            self._add_report(RunReport(key, is_unknown=True))

    def _knows(self, key: str) -> bool:
        """Whether the run has been started or stopped; its report comes again if it has ended."""
        if (content := self._contents.get(key)) is not None:
            self._add_report(RunReport(key, content))
        elif (mark := self._marks.get(key)) is _Mark.DROPPED:
            self._add_report(RunReport(key, lost=_LOST))
        else:
            return mark is not None or key in self._running
        return True

    async def reports(self) -> list[RunReport]:
        """Return the reports that were not returned yet, as soon as there are some; empty after `idle_s` seconds.

        A call that waits returns when the next one comes: of a call whose connection broke the driver gets no answer.
        """
        self._wake()
        if not self._unsent:
            self._waiting = asyncio.get_running_loop().create_future()
            timer = asyncio.get_running_loop().call_later(self._idle_s, self._wake)
            try:
                await self._waiting
            finally:
                timer.cancel()
        return self._take_reports()

    def stop(self, keys: Iterable[str]) -> None:
        """Stop runs.  A start for one of them that is still on its way does not start it."""
        for key in keys:
            if (run := self._running.get(key)) is not None:
                run.cancel()
            if key not in self._contents:
                self._mark(key, _Mark.STOPPED)

    def _finish(self, key: str, run: asyncio.Task[bytes]) -> None:
        del self._running[key]
        if run.cancelled():
            failed = "RuntimeError: the run cancelled itself"  # by its own code, unless it is marked as stopped
        elif (error := run.exception()) is not None:
            failed = in_words(error)  # whose class may come from user code: other runs share the message
        else:
            failed = ""
        if key in self._marks:
            return
        if failed:
            self._mark(key, _Mark.DROPPED)
            self._add_report(RunReport(key, failed=failed))
        else:
            self._remember(key, run.result())
            self._add_report(RunReport(key, run.result()))

    def _add_report(self, report: RunReport) -> None:
        self._unsent.append(report)
        if self._waiting is not None and not self._is_waking:
            self._is_waking = True
            asyncio.get_running_loop().call_soon(self._wake)  # runs that end in the same moment go together

    def _wake(self) -> None:
        """Wake the call that waits, which returns the reports."""
        self._is_waking = False
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def _take_reports(self) -> list[RunReport]:
        """Take the next reports that fit into one message."""
        taken: list[RunReport] = []
        n_bytes = 0
        while self._unsent and (not taken or n_bytes + self._unsent[0].n_bytes <= MAX_MESSAGE_BYTES):
            taken.append(self._unsent.popleft())
            n_bytes += taken[-1].n_bytes
        return taken

    def _remember(self, key: str, content: bytes) -> None:
        """Store a content of any length, and drop older ones beyond the limits."""
        self._contents[key] = content
        self._n_bytes += len(content)
        while len(self._contents) > 1 and (len(self._contents) > self._max_reports or self._n_bytes > self._max_bytes):
            oldest, dropped = self._contents.popitem(last=False)
            self._n_bytes -= len(dropped)
            self._mark(oldest, _Mark.DROPPED)

    def _mark(self, key: str, mark: _Mark) -> None:
        self._marks[key] = mark
        if len(self._marks) > self._max_marks:
            self._marks.popitem(last=False)
