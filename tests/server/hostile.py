"""Bodies that must be refused, made from a seed: mutations of good ones, nearly good ones, and deliberate attacks.

Each good body ends with a value that must be refused (the poison), so that a harmless mutation is refused as well.
"""

from __future__ import annotations

import copy
import json
import zlib
from collections.abc import Iterator
from itertools import chain, islice
from random import Random
from typing import Any

Path = tuple[str | int, ...]

POISON = "poison/for-any-server"

_REQUESTS: list[dict[str, Any]] = [
    {"agent_id": "calculator", "input": "What is 6 * 7?", "custom_id": "one", "max_steps": 3},
    {
        "agent_id": "clerk",
        "messages": [
            {"role": "user", "content": "How many?", "name": "Ann", "otid": "o", "type": "message"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b", "signature": None}]},
            {
                "role": "user",
                "content": [
                    {"type": "image", "source": {"type": "url", "url": "http://h/i.png"}},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
                ],
            },
        ],
        "include_return_message_types": ["assistant_message", "tool_call_message"],
        "client_tools": [{"name": "t", "description": "d", "parameters": {"type": "object", "properties": {}}}],
    },
    {
        "agent_id": "planner",
        "messages": [
            {"type": "approval", "approvals": [{"type": "approval", "tool_call_id": "c", "approve": True}]},
            {"type": "approval", "approve": False, "approval_request_id": "x", "reason": "no"},
            {
                "type": "tool_return",
                "tool_returns": [{"type": "tool", "tool_return": "r", "status": "success", "tool_call_id": "c"}],
            },
        ],
    },
]
BATCH: dict[str, Any] = {
    "callback_url": "http://example.com/hook",
    "requests": [*_REQUESTS, {"agent_id": POISON, "input": "x"}],
}
AGENT: dict[str, Any] = {
    "name": "n",
    "system": "s",
    "tools": ["calculate"],
    "tags": ["t"],
    "metadata": {"k": 1},
    "memory_blocks": [{"label": "human", "value": "v", "limit": 5}],
    "model_settings": {"temperature": 0.5},
    "model": POISON,
}
QUESTION: dict[str, Any] = {**_REQUESTS[1], "stream_tokens": False, "max_steps": 2, "background": POISON}

# fmt: off
_ODD: list[Any] = [
    None, True, False, 0, -1, 1.5, 10**18, 10**30, "", "x", "message", "\0", "\x7f", "😀" * 9, [], {}, [None], [[]],
    [{}], ["a", 1], {"": 0}, {"type": "text"}, {"type": 7}, [{"type": "nothing"}], {"$ref": "#"},
]
_WORDS = [
    "agent_id", "input", "messages", "role", "content", "type", "text", "requests", "callback_url", "max_steps",
    "approve", "approvals", "tool_returns", "source", "custom_id", "include_return_message_types", "", "__class__",
]
_SPLINTERS = [
    b"NaN", b"Infinity", b"-", b"1e999", b"\\u0000", b"\\ud800", b"\\udc00\\ud800", b"\xff", b"\0", b"{", b"[", b'"',
    b"\\", b",", b"}", b"]", b":", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xc0\xaf", b"9" * 400, b'"a":1,',
]
_NUMBERS = [
    b"9" * 20, b"9" * 5000, b"-" + b"9" * 30, b"1e309", b"-1e99999", b"NaN", b"-Infinity", b"01", b"0x1", b"1.", b"+1",
]
_URLS = [
    "ftp://h", "javascript:1", "//h", "http://", "http://" + "h" * 3000, "http://h:99999", "http://[::", "\0", "http://\0",
]
_SCRAPS = [b"", b" ", b"null", b"1", b'""', b"[]", b"{}", b"nul", b"{", b"}", b"\0", b"\xff\xfe", b"<xml/>", b"a=b"]
# fmt: on
_ENCODINGS = ["utf-16", "utf-16-le", "utf-32", "utf-8-sig", "utf-7", "cp037"]


def bodies(seed: int, good: dict[str, Any], n: int) -> list[bytes]:
    """Return n bodies: first the fixed ones, then random ones."""
    rng = Random(seed)
    fixed = [*_attacks(), *_misfits(good), *_in_other_encodings(good)]
    rng.shuffle(fixed)
    return list(islice(chain(fixed, _by_chance(rng, good)), n))


def large_bodies() -> list[bytes]:
    """Return bodies that are large enough to be spooled to disk."""
    return [
        b"[" * 2_000_000,
        b'{"requests":[' + b"[" * 1_500_000 + b"]" * 1_500_000 + b"]}",
        b'{"requests":[{"agent_id":"clerk","input":"x","max_steps":' + b"9" * 1_500_000 + b"}]}",
        b'{"requests":[{"' + b"k" * 1_500_000 + b'":1}]}',
        b'{"requests":[' + b"{}," * 500_000 + b"{}]}",
        b'{"requests":["' + b"\\ud800" * 300_000 + b'"]}',
        b'{"requests":[' + b'{"agent_id":"clerk","input":"x"},' * 50_000 + b"{}]}",
        b'{"requests":[{"agent_id":"clerk","input":"' + b"\xff" * 1_500_000 + b'"}]}',
        b'{"callback_url":"' + b"u" * 1_500_000 + b'","requests":[]}',
        b'{"requests":[' + b'{"agent_id":"clerk","input":"x"},' * 50_000,
        b" " * 1_500_000,
        b"\0" * 1_500_000,
    ]


def _attacks() -> Iterator[bytes]:
    """Yield well-known attacks."""
    yield from (
        b"",
        b" ",
        b"null",
        b"1",
        b'""',
        b"[]",
        b"{}",
        b"nul",
        b"{",
        b"}",
        b"\0",
        b"\xff\xfe",
        b"<xml/>",
        b"a=b",
    )
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        for depth in (60, 70, 1000, 20_000):
            deep = opening * depth + b"1" + closing * depth
            yield from (deep, deep[: depth * len(opening)])
            yield b'{"requests":[{"agent_id":"clerk","input":"x","client_tools":%b}]}' % deep
            yield b'{"requests":%b}' % deep
    for number in _NUMBERS:
        yield b'{"requests":[{"agent_id":"clerk","input":"x","max_steps":%b},0]}' % number
    for name in (b"requests", b"callback_url", b"agent_id"):
        yield b'{"requests":[],"%b":1,"%b":2}' % (name, name)
    yield b'{"requests":[{"agent_id":"clerk","agent_id":"clerk","input":"x"}]}'
    yield b'{"requests":[{"agent_id":"clerk","input":"x","input":"x"}]}'
    yield b'{"requests":[{"agent_id":"clerk","\\u0069nput":"x","input":"x"}]}'
    yield b'{"requests":[{"agent_id":"clerk","input":"\\ud800"}]}'
    yield b'{"requests":[{"agent_id":"clerk","input":"\xed\xa0\x80"}]}'
    yield b'{"requests":[{"%b":1}]}' % (b"k" * 100_000)
    yield b'{"requests":[%b]}' % b",".join(b'{"k%d":0}' % n for n in range(5000))
    yield b'{"requests":[{%b}]}' % b",".join(b'"k%d":0' % n for n in range(20_000))
    yield json.dumps({"requests": [{"agent_id": "x" * 300, "input": "x"}]}).encode()
    for url in _URLS:
        yield json.dumps({"requests": [{"agent_id": POISON, "input": "x"}], "callback_url": url}).encode()
    yield zlib.compress(json.dumps(BATCH).encode())


def _misfits(good: dict[str, Any]) -> Iterator[bytes]:
    """Yield a good body with an odd value at each path, and with each path removed."""
    for path in _paths(good):
        for odd in _ODD:
            yield _json(_with(good, path, odd))
        yield _json(_without(good, path))


def _in_other_encodings(good: dict[str, Any]) -> Iterator[bytes]:
    text = json.dumps(good, ensure_ascii=False)
    yield from (text.encode(encoding) for encoding in _ENCODINGS)
    yield text.replace("o", "ö").encode("latin-1")


def _by_chance(rng: Random, good: dict[str, Any]) -> Iterator[bytes]:
    text = _json(good)
    while True:
        yield text[: rng.randrange(len(text))]
        yield _scratched(rng, text)
        yield _scratched(rng, text)
        yield _json({rng.choice(_WORDS): _value(rng, 5), **good})
        yield _json(_with(good, rng.choice([*_paths(good)]), _value(rng, 3)))
        yield rng.randbytes(rng.randrange(300))


def _scratched(rng: Random, text: bytes) -> bytes:
    """Return a body that was truncated, duplicated or spliced at random offsets."""
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(text) + 1)
        end = min(len(text), start + rng.randrange(12))
        splinter = rng.choice([b"", text[start:end] * 2, rng.choice(_SPLINTERS), rng.randbytes(2)])
        text = text[:start] + splinter + text[end:]
    return text


def _value(rng: Random, depth: int) -> Any:
    """Return a random value that uses names of the API."""
    kind = rng.randrange(4) if depth else 0
    if kind == 1:
        return [_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind > 1:
        return {rng.choice(_WORDS): _value(rng, depth - 1) for _ in range(rng.randrange(5))}
    return copy.deepcopy(rng.choice([*_ODD, *_WORDS]))


def _paths(value: Any, path: Path = ()) -> Iterator[Path]:
    """Yield all paths, except that of the poison."""
    children: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        if child != POISON and not (isinstance(child, dict) and POISON in child.values()):
            yield (*path, key)
            yield from _paths(child, (*path, key))


def _with(good: dict[str, Any], path: Path, odd: Any) -> Any:
    changed: Any = copy.deepcopy(good)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = odd
    return changed


def _without(good: dict[str, Any], path: Path) -> Any:
    changed: Any = copy.deepcopy(good)
    place = changed
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    return changed


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()
