from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

import pandas
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from batchray.batch.fast_path import parse_simple_requests
from batchray.batch.parse import Batch, _validate, read_batch, read_body
from batchray.batch.rules import RequestRules
from batchray.batch.source import BOM
from batchray.batch.split import MAX_REQUEST_BYTES
from batchray.batch.spool import RawRequest, Spool
from batchray.batch.strict_json import MAX_DEPTH, strict_json
from batchray.errors import BatchFormatError
from batchray.schema import AgentRequest
from batchray.schema.keys import unused_keys
from tests.builders.batches import BAD_BODIES, BAD_REQUESTS, GOOD, Bad, with_value

AGENTS = ["a", "b"]


def read(source: Any) -> list[RawRequest]:
    return list(read_batch(source, AGENTS).requests)


def refusal(source: Any) -> BatchFormatError:
    with pytest.raises(BatchFormatError) as caught:
        read(source)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    return caught.value


@pytest.mark.parametrize("bad", BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_a_bad_line_is_refused_with_its_number(bad: Bad, tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_bytes(GOOD + b"\n\n" + bad.request + b"\n" + GOOD + b"\n")
    error = refusal(file)
    assert (error.line, error.index) == (3, None)
    assert bad.reason in str(error)


@pytest.mark.parametrize("bad", BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_a_bad_request_of_a_body_is_refused_with_its_index(bad: Bad) -> None:
    error = refusal(io.BytesIO(b'{"requests":[%s,%s,%s]}' % (GOOD, bad.request, GOOD)))
    assert (error.line, error.index) == (None, 1)
    assert (bad.in_body or bad.reason) in str(error)


@pytest.mark.parametrize("name", ["openai-batch", "anthropic-batch"])
def test_a_batch_of_another_api_that_is_posted_is_told_what_takes_it(name: str) -> None:
    with pytest.raises(BatchFormatError, match="this route takes Letta's requests"):
        list(read_body(b'{"requests":[%s]}' % BAD_REQUESTS[name].request, AGENTS).requests)


@pytest.mark.parametrize("name", sorted(BAD_REQUESTS.keys() - {"a-list", "utf16"}))
def test_a_bad_first_line_of_a_stream_is_still_a_line(name: str) -> None:
    error = refusal(io.BytesIO(BAD_REQUESTS[name].request + b"\n" + GOOD + b"\n"))
    assert (error.line, error.index) == (1, None)


@pytest.mark.parametrize(("body", "reason"), BAD_BODIES.values(), ids=BAD_BODIES)
def test_a_body_that_is_not_a_batch_is_refused(body: bytes, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "batch.json"
    file.write_bytes(body)
    assert str(refusal(file)).startswith(reason)
    assert str(refusal(io.BytesIO(body))).startswith(reason)


def test_an_input_of_another_type_is_refused(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in str(refusal(tmp_path / "nowhere.jsonl"))
    assert "cannot be read: Is a directory" in str(refusal(tmp_path))
    assert "binary mode" in str(refusal(io.StringIO(GOOD.decode())))
    assert "not int" in str(refusal(5))
    assert "not NoneType" in str(refusal(None))
    assert "the batch is empty" in str(refusal([]))


class Pipe(io.RawIOBase):
    """A stream that gives one byte at a time."""

    def __init__(self, content: bytes) -> None:
        self._content = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        byte = self._content.read(1)
        buffer[: len(byte)] = byte
        return len(byte)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("csv", "it looks like CSV; if it is, give --format csv"),
        ("cr-only", "end lines with LF, not with CR alone"),
        ("a-request-on-lines", "a request must be whole on its line"),
    ],
)
def test_the_error_of_a_usual_mistake_says_how_to_correct_it(name: str, remedy: str) -> None:
    assert f"; {remedy}" in str(refusal(io.BytesIO(BAD_BODIES[name][0])))


def test_the_errors_of_other_inputs_say_how_to_correct_them() -> None:
    assert "write one request a line" in str(refusal(io.BytesIO(GOOD + b" " + GOOD)))
    assert "line 2: not JSON" in str(refusal(io.BytesIO(GOOD + b"\n" + bytes(20))))
    assert "it has NUL bytes" in str(refusal(io.BytesIO(GOOD + b"\n" + bytes(20))))
    assert "it has NUL bytes" in str(refusal(io.BytesIO(b"\xb4\0\0\0")))
    assert 'a line is a request such as {"agent_id"' in str(refusal(io.BytesIO(b"What is 1 + 1?\n")))
    assert "in double quotes" in str(refusal(io.BytesIO(b"{'agent_id': 'a', 'input': 'x'}\n")))
    assert "put the request into a list" in str(refusal(json.loads(GOOD)))
    assert "frame.to_dict('records')" in str(refusal(pandas.DataFrame([json.loads(GOOD)])))
    assert "not bytes" in str(refusal(GOOD))


def test_an_array_as_a_body_over_http_is_refused() -> None:
    with pytest.raises(BatchFormatError, match="expected `object`, got `array`; a batch is"):
        read_body(b"[%s]" % GOOD, AGENTS)


ESCAPED = "".join(rf"\u{ord(letter):04X}" for letter in "requests")
SPELLINGS = ("requests", r"\u0072equests", r"request\u0073", r"req\u0075ests", ESCAPED)


@pytest.mark.parametrize("second", SPELLINGS)
@pytest.mark.parametrize("first", SPELLINGS)
def test_a_key_of_a_body_that_occurs_twice_is_refused_however_it_is_spelled(first: str, second: str) -> None:
    twice = b'{"%b": [%b], "%b" : [%b]}' % (first.encode(), GOOD, second.encode(), GOOD)
    with pytest.raises(BatchFormatError, match="duplicate key 'requests'"):
        read_body(twice, AGENTS)


def test_a_callback_url_that_occurs_twice_is_refused_however_it_is_spelled() -> None:
    with pytest.raises(BatchFormatError, match="duplicate key 'callback_url'"):
        read_body(rb'{"requests": [%b], "callback_url": null, "callback\u005furl": "http://h/"}' % GOOD, AGENTS)


def test_a_key_that_is_spelled_with_escapes_is_the_same_key() -> None:
    escaped = rb'{"callback\u005Furl": "http://h/", "\u0072equests": [%b]}' % with_value(rb'{"\u0072equests": 1}')
    batch = read_body(escaped, AGENTS)
    assert (len([*batch.requests]), batch.callback_url) == (1, "http://h/")


@pytest.mark.parametrize("member", [b'"callback_url": "http://h/\xff"', b'"\xff": 1'])
def test_a_body_that_is_not_utf_8_outside_of_its_requests_is_refused(member: bytes) -> None:
    with pytest.raises(BatchFormatError, match="not UTF-8: byte 0xff in a key or in callback_url"):
        read_body(b'{"requests": [%b], %b}' % (GOOD, member), AGENTS)


LINES = [
    GOOD,
    b'  {"agent_id": "b", "custom_id": "c-1", "messages": [{"role": "user", "content": "\xc3\xa4"}]}  ',
    with_value(b"18446744073709551615"),
    with_value(b"[-9223372036854775808,1e-400,0.1234567890123456789]"),
    with_value(b"[" * (MAX_DEPTH - 5) + b"]" * (MAX_DEPTH - 5)),
    with_value(b'{"requests":1,"callback_url":"\\"q\\":"}'),
]
FORMS: dict[str, Callable[[list[bytes]], bytes]] = {
    "lines": lambda lines: b"\n".join(lines),
    "lines-with-byte-order-marks": lambda lines: b"".join(BOM + line + b"\r\n" for line in lines),
    "lines-of-dos": lambda lines: b"\r\n".join(lines) + b"\r\n\x1a",
    "array": lambda lines: b"\n[%s]" % b",".join(lines),
    "array-on-lines": lambda lines: b"[\n%s\n]\n" % b",\n".join(lines),
    "body-with-byte-order-mark": lambda lines: BOM + b'{"requests":[%s]}' % b",".join(lines),
    "lines-with-crlf-and-blanks": lambda lines: b"\r\n\r\n".join(lines) + b"\r\n",
    "body": lambda lines: b'{"requests":[%s],"callback_url":"http://h/"}' % b",".join(lines),
    "body-on-lines": lambda lines: b'{\n "callback_url": null,\n "requests": [\n%s\n]}\n' % b",\n".join(lines),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["file", "open-file", "bytes", "gzip", "gzip-file", "utf-16", "utf-16-le-of-a-pipe"])
def test_every_form_of_a_batch_gives_the_same_requests(form: str, kind: str, tmp_path: Path) -> None:
    content = FORMS[form](LINES)
    file = tmp_path / ("batch.json" if form.startswith("body") else "batch.jsonl")
    file.write_bytes(gzip.compress(content) if "gzip" in kind else content)
    text = content.decode().removeprefix("\ufeff")
    if kind == "utf-16":
        file.write_bytes(text.encode("utf-16"))
    sources: dict[str, Callable[[], Any]] = {
        "file": lambda: file,
        "open-file": lambda: file.open("rb"),
        "bytes": lambda: io.BytesIO(content),
        "gzip": lambda: gzip.open(file),  # noqa: SIM115  # closed by the reader
        "gzip-file": lambda: file,
        "utf-16": lambda: file,
        "utf-16-le-of-a-pipe": lambda: BufferedReader(Pipe(text.encode("utf-16-le"))),
    }
    batch = read_batch(sources[kind](), AGENTS)
    requests = list(batch.requests)
    assert [(each.agent_id, each.custom_id) for each in requests] == [("a", None), ("b", "c-1"), *[("a", None)] * 4]
    assert [json.loads(each.body) for each in requests] == [json.loads(line) for line in LINES]
    assert batch.callback_url == ("http://h/" if form == "body" else None)


def test_objects_give_the_same_requests_as_their_json() -> None:
    objects = [json.loads(GOOD), AgentRequest(agent_id="b", input="y", custom_id="c")]
    first, second = read(iter(objects))
    assert first == RawRequest("a", None, GOOD)
    assert (second.agent_id, second.custom_id) == ("b", "c")
    assert AgentRequest.model_validate_json(second.body) == objects[1]


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else 1


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ("text", "a request is a mapping or an AgentRequest, not str"),
        ({"agent_id": "a"}, "Must specify either 'input' or 'messages'."),
        ({"agent_id": "nope", "input": "x"}, "unknown agent 'nope'"),
        ({"agent_id": "a", "input": "x", "custom id": 1}, "requests[1]['custom id']: unknown key; did you mean"),
        ({"agent_id": "a", "input": object()}, "cannot be written as JSON: "),
        ({"agent_id": "a", "input": "\ud800"}, "cannot be written as JSON: "),
        ({"agent_id": "a", "input": "x", "max_steps": 2**70}, "cannot be written as JSON: "),
        ({"agent_id": "a", "input": "x" * (MAX_REQUEST_BYTES + 1)}, "a request of more than 32 MiB"),
        ({"agent_id": "a", "input": "x", "client_tools": nested(100)}, "nested deeper than 64 levels"),
        ({1: "a"}, "cannot be written as JSON: "),
    ],
)
def test_a_bad_object_is_refused_with_its_index(request_: Any, reason: str) -> None:
    error = refusal([json.loads(GOOD), request_])
    assert (error.line, error.index) == (None, 1)
    assert reason in str(error)


def test_requests_are_validated_one_at_a_time() -> None:
    def endless() -> Iterator[dict[str, str]]:
        while True:
            yield {"agent_id": "a", "input": "x"}

    requests = read_batch(endless(), AGENTS).requests
    assert [next(requests).agent_id for _ in range(100)] == ["a"] * 100


def test_a_request_of_the_largest_size_is_accepted(tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    request = b'{"agent_id":"a","input":"%s"}' % (b"x" * (MAX_REQUEST_BYTES - len(GOOD) + 1))
    assert len(request) == MAX_REQUEST_BYTES
    file.write_bytes(request + b"\n" + GOOD)
    assert [len(each.body) for each in read(file)] == [MAX_REQUEST_BYTES, len(GOOD)]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=20,
)


@given(json_values)
def test_json_of_any_value_is_read_as_that_value(value: Any) -> None:
    assert strict_json(json.dumps(value).encode()) == value
    assert strict_json(json.dumps(value, ensure_ascii=False, indent=1).encode()) == value


@given(st.binary() | st.text('{}[]":,\\ 01e-.NaN').map(str.encode))
def test_any_bytes_are_read_as_python_reads_them_or_refused(raw: bytes) -> None:
    try:
        value = strict_json(raw)
    except BatchFormatError:
        return
    assert value == json.loads(raw)


@given(st.binary() | st.text('{}[]":,\\ agent_idrequests01\n').map(str.encode))
def test_any_bytes_are_a_batch_or_refused(raw: bytes) -> None:
    for content in (raw, b'{"requests":[' + raw, b'{"requests":[%s,%s]}' % (GOOD, raw)):
        try:
            batch = read_batch(io.BytesIO(content), AGENTS)
            assert isinstance(batch, Batch)
            assert [AgentRequest.model_validate_json(each.body).agent_id for each in batch.requests]
        except BatchFormatError:
            continue


@given(st.dictionaries(st.sampled_from(list(AgentRequest.model_fields)), json_values))
@example({"input": "", "settings": {"": None}})
def test_a_request_is_accepted_if_the_schema_accepts_it_and_it_has_no_unknown_keys(fields: dict[str, Any]) -> None:
    raw = json.dumps({**fields, "agent_id": "a"})
    try:
        expected: AgentRequest | None = AgentRequest.model_validate_json(raw, strict=True)
    except ValidationError:
        expected = None
    if any(not key.is_known or key.refusal for key in unused_keys(AgentRequest, json.loads(raw))):
        expected = None
    try:
        (request,) = read([json.loads(raw)])
    except BatchFormatError:
        assert expected is None
    else:
        assert expected == AgentRequest.model_validate_json(request.body)


def test_a_spool_can_be_iterated_repeatedly(tmp_path: Path) -> None:
    requests = [RawRequest("a", None, GOOD), RawRequest("b\n", "c\n", b"{\n}"), RawRequest("a", "", b"")]
    with Spool(tmp_path / "new") as spool:
        for request in requests:
            spool.add(request)
        assert list(spool) == list(spool) == requests
        spool.add(requests[0])
        assert len(list(spool)) == 4
    assert list((tmp_path / "new").iterdir()) == []


# -- the fast way for plain requests

_TEXTS = st.one_of(st.none(), st.text(max_size=8), st.sampled_from(["a", "b", 'x": 1', "\\", '"', "\ud83d\ude00"]))
_ODD = st.one_of(_TEXTS, st.integers(), st.booleans(), st.floats(allow_nan=False), st.lists(_TEXTS, max_size=2))
_BIG = st.integers(-(2**70), 2**70)
_NEARLY_MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system", "assistant", "tool"]), "content": _TEXTS},
        optional={"type": st.sampled_from(["message", "approval", None]), "name": _ODD, "otid": _ODD, "extra": _ODD},
    ),
    max_size=3,
)
_NEARLY_PLAIN = st.fixed_dictionaries(
    {},
    optional={
        "agent_id": st.sampled_from(["a", "b", "c", "", 1]),
        "custom_id": _ODD,
        "input": _ODD,
        "messages": st.one_of(_NEARLY_MESSAGES, st.none()),
        "max_steps": st.one_of(st.integers(), st.integers(-(2**70), 2**70), st.none(), st.booleans()),
        "name": _ODD,
        "metadata": st.one_of(_ODD, st.dictionaries(_TEXTS.map(str), st.one_of(_ODD, _BIG), max_size=2)),
    },
)


@given(_NEARLY_PLAIN, st.booleans(), st.sampled_from([None, "agent_id", "input", "custom_id"]))
def test_the_fast_path_accepts_only_requests_that_the_models_read_the_same(
    request: dict[str, Any], is_ascii: bool, repeated: str | None
) -> None:
    text = json.dumps(request, ensure_ascii=is_ascii)
    if repeated in request:
        text = text[:-1] + f", {json.dumps(repeated)}: {json.dumps(request[repeated])}}}"
    body = text.encode("utf-8", "surrogatepass")
    fast = parse_simple_requests([body], frozenset(AGENTS))
    if fast is not None:
        assert fast == [_validate(strict_json(body), body, RequestRules(AGENTS))[:2]]


@pytest.mark.parametrize(
    "body",
    [
        GOOD,
        b'{"agent_id":"b","messages":[{"role":"user","content":"x"}],"custom_id":"","max_steps":3}',
        '{"agent_id": "a", "input": "grüße"}'.encode(),
        b'{"agent_id":"a","input":"x","metadata":{"row":3,"share":0.5,"name":"n","is_new":true,"none":null}}',
    ],
)
def test_a_simple_request_takes_the_fast_path(body: bytes) -> None:
    heads = parse_simple_requests([body, body], frozenset(AGENTS))
    assert heads == [_validate(strict_json(body), body, RequestRules(AGENTS))[:2]] * 2
