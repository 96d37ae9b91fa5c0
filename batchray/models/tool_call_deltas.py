"""Puts the tool calls of a streamed chat completion together from their pieces.

The protocol gives each call an index, and sends its id and name with its first piece.  Servers deviate: one index for
all calls, no index, no ids, the id and name in every piece, arguments before the name, or all calls in one delta.
A piece therefore continues the call that it shares an identity with, and starts the next call if it shares none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from batchray.models.partial_reply import PartialCall, string
from batchray.models.reply_extras import extras_of_call, grown

_EMPTY: Mapping[str, Any] = {}


class ToolCallDeltas:
    """The tool calls of one reply, in the order in which they began."""

    __slots__ = ("_by_index", "_last", "calls")

    def __init__(self) -> None:
        self.calls: list[PartialCall] = []
        self._by_index: dict[int, PartialCall] = {}
        self._last: PartialCall | None = None

    def add(self, pieces: Any) -> None:
        """Process the pieces of one delta, or a single one.  Raises one of `BAD_SHAPE` for a piece of another shape."""
        named: list[PartialCall] | None = None  # by pieces of this delta: each names its own call
        for piece in pieces if isinstance(pieces, list) else [pieces]:
            function, index = piece.get("function") or _EMPTY, piece.get("index")
            arguments = function.get("arguments")
            if arguments.__class__ is not str:
                arguments = _as_text(arguments)
            if piece.get("id") or function.get("name"):
                named = [] if named is None else named
                call = self._identified(piece, function, arguments, named)
            else:  # hot path: a piece of the arguments
                call = (self._last if index is None else self._by_index.get(index)) or self._start(index)
            if arguments:
                call.arguments.append(arguments)
            if (len(piece) > 2 or len(function) > 1) and (extra := extras_of_call(piece, function)):
                call.extra = grown(call.extra, extra)

    def _identified(
        self, piece: Mapping[str, Any], function: Mapping[str, Any], text: str, named: list[PartialCall]
    ) -> PartialCall:
        """Return the call that a piece with an id or a name belongs to, with both filled in."""
        index, call_id, name = piece.get("index"), string(piece.get("id") or ""), string(function.get("name") or "")
        call = self._candidate(index, call_id)
        if call is None or not self._continues(call, piece, text, named):
            if call is not None and call not in named and _repeats(call, call_id, name, text):
                return PartialCall()  # the whole call once more, which some servers send at the end
            call = self._start(index)
        self._last = call
        if index is not None:
            self._by_index.setdefault(index, call)
        call.id, call.name = call.id or call_id, call.name or name
        if name:
            named.append(call)
        return call

    def _candidate(self, index: Any, call_id: str) -> PartialCall | None:
        """Return the call that shares an index or an id with a piece; the last one if the piece has neither."""
        if index is not None and (call := self._by_index.get(index)) is not None:
            return call
        if call_id:
            same = next((call for call in reversed(self.calls) if call.id == call_id), None)
            if same is not None or index is not None:
                return same
        return self._last if index is None else None

    def _continues(self, call: PartialCall, piece: Mapping[str, Any], text: str, named: list[PartialCall]) -> bool:
        """Whether a piece that shares an index or an id with a call, or follows it, belongs to it."""
        index, call_id, name = piece.get("index"), piece.get("id"), (piece.get("function") or _EMPTY).get("name")
        is_other_id = bool(call_id and call.id and call_id != call.id)
        if not name:
            return not is_other_id or index is not None  # some servers give each piece of a call an id of its own
        if is_other_id or call in named:
            return False
        if not call.name:
            return True  # its arguments came first
        if name != call.name or (call.is_whole() and (text.strip() or not call_id)):
            return False
        return index is None or index in self._by_index or bool(call.arguments)

    def _start(self, index: Any) -> PartialCall:
        self._last = call = PartialCall()
        self.calls.append(call)
        if index is not None:
            self._by_index[index] = call
        return call


def _repeats(call: PartialCall, call_id: str, name: str, text: str) -> bool:
    return bool(call_id) and call.id == call_id and call.name == name and bool(text) and call.text() == text


def _as_text(arguments: Any) -> str:
    """Return arguments that came as an object, not as its text."""
    return "" if arguments is None else orjson.dumps(arguments).decode()
