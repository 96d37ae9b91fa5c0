"""Custom ids that occur more than once in a batch: told to the caller, who may want to join results by them."""

from __future__ import annotations


class CustomIds:
    """Counts the custom ids that are not the first of their kind, by hashes: a batch may have millions."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._n_repeated = 0
        self._example = ""

    def add(self, custom_id: str | None) -> bool:
        """Take a request's custom id; return whether an earlier request has the same."""
        if custom_id is None:
            return False
        n_before = len(self._seen)
        self._seen.add(hash(custom_id))
        if len(self._seen) > n_before:
            return False
        self._n_repeated += 1
        self._example = self._example or custom_id
        return True

    @property
    def repeated(self) -> str:
        """A sentence about the custom ids that repeat others; empty if all differ."""
        if not self._n_repeated:
            return ""
        these = "request has a custom_id" if self._n_repeated == 1 else "requests have custom_ids"
        told = f"{self._n_repeated:,} {these} of earlier requests, such as {self._example[:60]!r}"
        return f"{told}; results are told apart by their index"
