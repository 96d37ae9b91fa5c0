"""The runs of one lane by the key of their attempt: each runs once, however often it is called for."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable
from enum import Enum
from functools import partial
from typing import NamedTuple

import msgspec

# Reports may be lost on their way to the driver.  It asks again within seconds.
_MAX_REPORTS = 4096
_MAX_REPORT_BYTES = 16 * 1024 * 1024
# Why a run has no report: 100 to 200 bytes each.
_MAX_MARKS = 65_536
# Ray carries up to 100 KiB in the message of a call or its answer; what is larger takes a way that costs more.
MAX_MESSAGE_BYTES = 64 * 1024
"""Of starts or ends in one message; a larger one goes alone."""
IDLE_S = 10.0
"""How long a call waits for a run to end."""
_LOST = "its report was lost on the way"


class Start(NamedTuple):
    """An attempt to start.  `key` is its name, `agent` a packed agent, `item` an AttemptInput."""

    key: str
    agent: bytes
    item: bytes
    keeps_steps: bool = False


class End(NamedTuple):
    """The end of a run: its report, or why there is none.

    `lost` if it has run, and its report is gone; `failed` if it raised an error, which is a defect of this package.
    """

    key: str
    report: bytes = b""
    lost: str = ""
    failed: str = ""

    @property
    def n_bytes(self) -> int:
        """About how many bytes it takes in a message."""
        return len(self.report) + len(self.failed) + len(self.key)


class _OfAgent(NamedTuple):
    """Starts of one agent, which is sent once for all of them."""

    agent: bytes
    runs: list[tuple[str, bytes, bool]]


_encode = msgspec.msgpack.Encoder().encode
_decode_starts = msgspec.msgpack.Decoder(list[_OfAgent]).decode
_decode_ends = msgspec.msgpack.Decoder(list[End]).decode


def pack_starts(starts: Iterable[Start]) -> bytes:
    """Return starts as a lane's `exchange` takes them."""
    by_agent: dict[bytes, list[tuple[str, bytes, bool]]] = {}
    for key, agent, item, keeps_steps in starts:
        by_agent.setdefault(agent, []).append((key, item, keeps_steps))
    return _encode(list(by_agent.items()))


def unpack_starts(packed: bytes) -> list[Start]:
    """Return the starts in what `pack_starts` returned, those of one agent together."""
    return [
        Start(key, of_agent.agent, item, keeps_steps)
        for of_agent in _decode_starts(packed)
        for key, item, keeps_steps in of_agent.runs
    ]


def pack_ends(ends: Iterable[End]) -> bytes:
    """Return ends as a lane's `exchange` answers them."""
    return _encode(list(ends))


def unpack_ends(packed: bytes) -> list[End]:
    """Return the ends in what `pack_ends` returned."""
    return _decode_ends(packed)


class _Mark(Enum):
    """Why there is no report of a run."""

    STOPPED = "nothing waits for it"
    DROPPED = "it failed, or newer ones have taken its place"


class RunRegistry:
    """The runs of a lane, the newest reports of finished ones, and the ends that its driver has not been told yet."""

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
        self._reports: OrderedDict[str, bytes] = OrderedDict()
        self._marks: OrderedDict[str, _Mark] = OrderedDict()
        self._n_bytes = 0
        self._ends: deque[End] = deque()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_telling = False

    def start(self, key: str, run: Callable[[], Awaitable[bytes]]) -> None:
        """Start a run; its end is one of `ends`.  It is not started if it was stopped, for which nothing waits.

        A second start for a key joins the same run, and the end of one that has ended comes again.  If its report is
        gone, or never existed, the end says so: the same attempt is not run a second time.
        """
        if (report := self._reports.get(key)) is not None:
            self._add_end(End(key, report))
        elif (mark := self._marks.get(key)) is _Mark.DROPPED:
            self._add_end(End(key, lost=_LOST))
        elif mark is None and key not in self._running:
            task = self._running[key] = asyncio.ensure_future(run())
            task.add_done_callback(partial(self._end, key))

    async def ends(self) -> list[End]:
        """Return the ends that were not returned yet, as soon as there are some; empty after `idle_s` seconds.

        Of several calls that wait the oldest gets them.
        """
        if not self._ends:
            waiting = asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            timer = asyncio.get_running_loop().call_later(self._idle_s, self._give_up, waiting)
            try:
                await waiting
            finally:
                timer.cancel()
        return self._take_ends()

    def stop(self, keys: Iterable[str]) -> None:
        """Stop runs.  A start for one of them that is still on its way does not start it."""
        for key in keys:
            if (run := self._running.get(key)) is not None:
                run.cancel()
            if key not in self._reports:
                self._mark(key, _Mark.STOPPED)

    def _end(self, key: str, run: asyncio.Task[bytes]) -> None:
        del self._running[key]
        if run.cancelled():
            failed = "RuntimeError: the run cancelled itself"  # by its own code, unless it is marked as stopped
        elif (error := run.exception()) is not None:
            failed = f"{type(error).__name__}: {error}"
        else:
            failed = ""
        if key in self._marks:
            return
        if failed:
            self._mark(key, _Mark.DROPPED)
            self._add_end(End(key, failed=failed))
        else:
            self._remember(key, run.result())
            self._add_end(End(key, run.result()))

    def _add_end(self, end: End) -> None:
        self._ends.append(end)
        if self._waiting and not self._is_telling:
            self._is_telling = True
            asyncio.get_running_loop().call_soon(self._tell)  # runs that end in the same moment go together

    def _tell(self) -> None:
        """Wake the oldest call that waits, which returns the ends."""
        self._is_telling = False
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(None)
                return

    def _give_up(self, waiting: asyncio.Future[None]) -> None:
        if not waiting.done():
            self._waiting.remove(waiting)
            waiting.set_result(None)

    def _take_ends(self) -> list[End]:
        """Take the next ends that fit into one message."""
        taken: list[End] = []
        n_bytes = 0
        while self._ends and (not taken or n_bytes + self._ends[0].n_bytes <= MAX_MESSAGE_BYTES):
            taken.append(self._ends.popleft())
            n_bytes += taken[-1].n_bytes
        if self._ends:
            self._tell()
        return taken

    def _remember(self, key: str, report: bytes) -> None:
        """Store a report of any length, and drop older ones beyond the limits."""
        self._reports[key] = report
        self._n_bytes += len(report)
        while len(self._reports) > 1 and (len(self._reports) > self._max_reports or self._n_bytes > self._max_bytes):
            oldest, dropped = self._reports.popitem(last=False)
            self._n_bytes -= len(dropped)
            self._mark(oldest, _Mark.DROPPED)

    def _mark(self, key: str, mark: _Mark) -> None:
        self._marks[key] = mark
        if len(self._marks) > self._max_marks:
            self._marks.popitem(last=False)
