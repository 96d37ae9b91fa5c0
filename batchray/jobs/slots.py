"""Concurrency limits that all jobs of a process share: of a provider, and of a stateful agent.

Pure: neither I/O nor an event loop.  The windows of all jobs take and release slots on one thread.
"""

from __future__ import annotations

import heapq
import itertools
from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import NamedTuple


class Slot(NamedTuple):
    """One of the `size` slots of a key, such as a provider's `max_in_flight`."""

    key: Hashable
    size: int


Wanted = tuple[Slot, ...]
"""All slots that an item needs at once; empty if nothing but its window limits it."""


class Waiter(ABC):
    """Waits for slots that are not free, for one item after another.

    `ticket` is its place in the queue, which it keeps while it declines offers.
    """

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.ticket: int | None = None

    @abstractmethod
    def offer(self) -> bool:
        """Use the slots, which are free and then taken for it, for the next item; return False to decline.

        After that it gets no offer until it calls `Slots.acquire_or_wait`.
        """

    @abstractmethod
    def is_waiting(self) -> bool:
        """Whether it has an item that needs the slots."""


class Slots:
    """Counts the slots in use; free ones go to the waiter that has waited longest.  O(log n) for n waiters.

    An item gets all of its slots or none, so that it never holds one while it waits for another.  A waiter is queued at
    one key, which has no free slot: so a key with free slots has no queue, and a new item never overtakes a waiter.
    """

    def __init__(self) -> None:
        self._n_used: dict[Hashable, int] = {}
        self._limits: dict[Hashable, int] = {}
        self._queues: dict[Hashable, list[tuple[int, Waiter]]] = {}  # heaps
        self._tickets = itertools.count()

    def acquire(self, wanted: Wanted) -> bool:
        """Take all of these slots, or none; return whether they were taken."""
        if self._first_full(wanted) is not None:
            return False
        self._take(wanted)
        return True

    def acquire_or_wait(self, waiter: Waiter) -> bool:
        """Take a waiter's slots and return True; if they are not free, queue it and return False."""
        full = self._first_full(waiter.wanted)
        if full is not None:
            self._queue(waiter, full)
            return False
        self._take(waiter.wanted)
        waiter.ticket = None
        return True

    def release(self, held: Wanted) -> None:
        """Release slots and offer them to waiters."""
        for key, _ in held:
            self._n_used[key] -= 1
            if not self._n_used[key]:
                del self._n_used[key]
        for slot in held:
            self._offer(slot)

    def n_used(self, key: Hashable) -> int:
        """Return how many slots of a key are in use."""
        return self._n_used.get(key, 0)

    def limit(self, slot: Slot, most: int | None) -> None:
        """Limit the slots of a key that may be in use to `most`, although it has more; None lifts the limit."""
        if most is None:
            self._limits.pop(slot.key, None)
        else:
            self._limits[slot.key] = most
        self._offer(slot)

    def _offer(self, slot: Slot) -> None:
        queue = self._queues.get(slot.key)
        while queue and self._has_room(slot):
            _, waiter = heapq.heappop(queue)
            if not waiter.is_waiting():
                continue
            full = self._first_full(waiter.wanted)
            if full is not None:
                self._queue(waiter, full)
            elif waiter.offer():
                self._take(waiter.wanted)
                waiter.ticket = None
                if waiter.is_waiting():
                    self._queue(waiter, slot)  # for its next item, behind all others
        if queue is not None and not queue:
            del self._queues[slot.key]

    def _queue(self, waiter: Waiter, slot: Slot) -> None:
        if waiter.ticket is None:
            waiter.ticket = next(self._tickets)
        heapq.heappush(self._queues.setdefault(slot.key, []), (waiter.ticket, waiter))

    def _take(self, wanted: Wanted) -> None:
        for key, _ in wanted:
            self._n_used[key] = self._n_used.get(key, 0) + 1

    def _first_full(self, wanted: Wanted) -> Slot | None:
        for slot in wanted:
            if not self._has_room(slot):
                return slot
        return None

    def _has_room(self, slot: Slot) -> bool:
        size = min(slot.size, self._limits.get(slot.key, slot.size)) if self._limits else slot.size
        return self._n_used.get(slot.key, 0) < size
