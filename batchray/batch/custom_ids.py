"""Custom ids that occur more than once in a batch: they are refused, or named in a warning."""

from __future__ import annotations

from array import array

# A repeated id is named if it is among this many first ids of a batch.
_N_NAMED = 10_000
_N_PARTS = 256


class CustomIds:
    """The custom ids of a batch so far, as hashes: a batch may have millions."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def add(self, custom_id: str | None) -> bool:
        """Take a request's custom id; return whether an earlier request has the same."""
        if custom_id is None:
            return False
        n_before = len(self._seen)
        self._seen.add(hash(custom_id))
        return len(self._seen) == n_before


class CustomIdCounts:
    """Counts the custom ids that are not the first of their kind, at the end of a batch; 8 bytes for each id."""

    def __init__(self) -> None:
        self._named: set[int] = set()
        self._example = ""
        self._parts = [array("q") for _ in range(_N_PARTS)]

    def add(self, custom_id: str | None) -> None:
        """Take a request's custom id."""
        if custom_id is None:
            return
        digest = hash(custom_id)
        self._parts[digest % _N_PARTS].append(digest)
        if len(self._named) < _N_NAMED:
            n_before = len(self._named)
            self._named.add(digest)
            if len(self._named) == n_before:
                self._example = self._example or custom_id
        elif not self._example and digest in self._named:
            self._example = custom_id

    @property
    def repeated(self) -> str:
        """A sentence about the custom ids that repeat others; empty if all differ."""
        return _sentence(sum(len(part) - len(set(part)) for part in self._parts), self._example)


def _sentence(n_repeated: int, example: str) -> str:
    if not n_repeated:
        return ""
    these = "request has a custom_id" if n_repeated == 1 else "requests have custom_ids"
    named = f", such as {example[:60]!r}" if example else ""
    return f"{n_repeated:,} {these} of earlier requests{named}; results are told apart by their index"
