"""The limits of the HTTP API: sizes, times, numbers, types, and malformed HTTP."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack

import psutil
import pytest

from tests.polling import until
from tests.server.live import LiveServer, live_server
from tests.server.raw_http import Reply, head, wire

MAX_BYTES = 268_435_456
MEBIBYTE = b" " * 2**20
BATCH = b'{"requests":[{"agent_id":"headline","input":"x"}]}'
EMPTY = b'{"requests":[]}'
CHUNKED = head(Transfer_Encoding="chunked")
IDLE_S = 1.0
MAX_FILES = 224


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with short timeouts."""
    data_dir = tmp_path_factory.mktemp("impatient") / "data"
    with live_server(
        data_dir, BATCHRAY_UPLOAD_IDLE_S=str(IDLE_S), BATCHRAY_MIN_UPLOAD_BYTES_PER_S=str(2**30)
    ) as running:
        yield running


@pytest.fixture(scope="module")
def two_uploads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server that accepts two uploads at once, and has few file descriptors."""
    data_dir = tmp_path_factory.mktemp("two-uploads") / "data"
    with live_server(data_dir, max_files=str(MAX_FILES), BATCHRAY_MAX_UPLOADS="2") as running:
        yield running


def ask(server: LiveServer, *pieces: bytes) -> Reply:
    with wire(server) as connection:
        connection.send(*pieces)
        return connection.reply()


def refusal(reply: Reply) -> tuple[int, str]:
    """Return the status and reason of an error response, and check its shape."""
    assert reply.body.keys() == {"detail", "trace_id"}
    return reply.status, reply.body["detail"]


def n_uploads(server: LiveServer) -> int:
    text = ask(server, head("/metrics", "GET", Connection="close")).body.decode()
    return int(float(text.partition("\nbatchray_uploads ")[2].split()[0]))


def holds_nothing(server: LiveServer) -> bool:
    """Whether nothing is left of an upload: no slot, no file, no process."""
    files = [*(server.data_dir / "uploads").iterdir()]
    return n_uploads(server) == 0 and not files and not psutil.Process(server.pid).children()


# -- sizes


def test_a_body_of_the_largest_size_is_accepted_and_one_byte_more_is_not(server: LiveServer) -> None:
    whole, rest = divmod(MAX_BYTES - len(BATCH), len(MEBIBYTE))
    reply = ask(server, head(Content_Length=MAX_BYTES), BATCH, *[MEBIBYTE] * whole, b" " * rest)
    assert (reply.status, reply.body["metadata"]["request_counts"]["total"]) == (200, 1)
    # Refused because of its Content-Length, before a byte of it is sent.
    reply = ask(server, head(Content_Length=MAX_BYTES + 1))
    assert refusal(reply) == (413, f"Request too large. Max is {MAX_BYTES} bytes.")


def test_a_chunked_body_is_read_up_to_the_largest_size(server: LiveServer) -> None:
    chunk = b"100000\r\n%b\r\n" % MEBIBYTE
    with wire(server) as connection:
        assert connection.send(CHUNKED, *[chunk] * 256)
        assert not connection.has_reply(0)
        connection.send(b"1\r\n \r\n")
        assert refusal(connection.reply())[0] == 413
        assert connection.is_closed()
    until(lambda: holds_nothing(server))


def test_a_client_that_expects_100_continue_need_not_send_a_body_that_is_refused(server: LiveServer) -> None:
    reply = ask(server, head(Content_Length=MAX_BYTES + 1, Expect="100-continue"))
    assert refusal(reply)[0] == 413
    with wire(server) as connection:
        connection.send(head(Content_Length=len(EMPTY), Expect="100-continue"))
        assert connection.reply().status == 100
        connection.send(EMPTY)
        assert refusal(connection.reply())[0] == 400


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"path": "/nowhere"}, 404),
        ({"path": "/livez"}, 405),
        ({"path": "/v1/agents/", "Content_Type": "text/plain"}, 415),
        ({"path": "/v1/agents/", "Host": "other.example"}, 421),
    ],
)
def test_a_body_that_is_refused_is_not_asked_for(server: LiveServer, fields: dict[str, str], status: int) -> None:
    reply = ask(server, head(**fields, Content_Length=2, Expect="100-continue"))
    assert refusal(reply)[0] == status
    assert reply.headers["connection"] == "close"  # a client that does not send its body has to open another


def test_http_1_0_has_no_100_continue(server: LiveServer) -> None:
    with wire(server) as connection:
        connection.send(head(version="1.0", Content_Length=len(EMPTY), Expect="100-continue"))
        assert not connection.has_reply(0)
        connection.send(EMPTY)
        assert refusal(connection.reply())[0] == 400


# -- types


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, identity", "nonsense"])
def test_an_encoded_body_is_refused(server: LiveServer, encoding: str) -> None:
    assert refusal(ask(server, head(Content_Encoding=encoding, Content_Length=len(EMPTY)), EMPTY))[0] == 415
    twice = f"identity\r\nContent-Encoding: {encoding}"
    assert refusal(ask(server, head(Content_Encoding=twice, Content_Length=len(EMPTY)), EMPTY))[0] == 415


@pytest.mark.parametrize("encoding", ["identity", "Identity", ""])
def test_a_body_that_is_said_to_be_unencoded_is_read(server: LiveServer, encoding: str) -> None:
    assert refusal(ask(server, head(Content_Encoding=encoding, Content_Length=len(EMPTY)), EMPTY))[0] == 400


@pytest.mark.parametrize(
    "kind",
    [
        None,
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonl",
        "application/json; charset=latin-1",
        "application/json; charset=utf-16",
        "nonsense",
    ],
)
def test_a_body_without_the_content_type_of_json_is_refused(server: LiveServer, kind: str | None) -> None:
    assert refusal(ask(server, head(Content_Type=kind, Content_Length=len(EMPTY)), EMPTY))[0] == 415


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/messages/batches", BATCH),
        ("/v1/agents/", b'{"model": "offline/rules"}'),
        ("/v1/agents/headline/messages", b'{"input": "x"}'),
    ],
)
def test_a_byte_order_mark_before_a_body_is_skipped(server: LiveServer, path: str, body: bytes) -> None:
    marked = b"\xef\xbb\xbf" + body
    assert ask(server, head(path, Content_Length=len(marked)), marked).status == 200


@pytest.mark.parametrize("kind", ["application/json;charset=UTF-8", "Application/JSON"])
def test_a_body_with_an_equivalent_content_type_is_read(server: LiveServer, kind: str) -> None:
    reply = ask(server, head(Content_Type=kind, Content_Length=len(EMPTY)), EMPTY)
    assert refusal(reply) == (400, "Empty list of batch_requests passed in!")


# -- times


def test_a_silent_sender_is_disconnected(impatient: LiveServer) -> None:
    with wire(impatient) as connection:
        connection.send(head(Content_Length=1000), b"{")
        assert refusal(connection.reply()) == (408, "the sender was silent for 1 s")
        assert connection.is_closed()
    until(lambda: holds_nothing(impatient))


def test_a_slow_sender_is_disconnected(impatient: LiveServer) -> None:
    with wire(impatient) as connection:
        connection.send(head(Content_Length=1000), b"{")
        while not connection.has_reply(IDLE_S / 10):
            connection.send(b" ")
        assert refusal(connection.reply())[0] == 408
    until(lambda: holds_nothing(impatient))


@pytest.mark.parametrize("start", [b"", b"POST /v1/mess", head(Content_Length=2)[:-2]], ids=repr)
def test_a_sender_of_incomplete_headers_is_disconnected(impatient: LiveServer, start: bytes) -> None:
    with wire(impatient) as connection:
        connection.send(start)
        assert connection.is_closed()


def test_a_slow_sender_of_headers_is_disconnected(impatient: LiveServer) -> None:
    with wire(impatient) as connection:
        connection.send(b"GET /livez HTTP/1.1\r\nX: ")
        while not connection.has_reply(IDLE_S / 10):
            connection.send(b"x")
        assert connection.is_closed()


# -- numbers


def test_one_upload_too_many_gets_503_but_small_bodies_do_not_count(two_uploads: LiveServer) -> None:
    with wire(two_uploads) as first, wire(two_uploads) as second:
        for connection in (first, second):
            connection.send(CHUNKED, b"5\r\n%b\r\n" % EMPTY[:5])
        until(lambda: n_uploads(two_uploads) == 2)
        assert ask(two_uploads, head(Content_Length=len(EMPTY)), EMPTY).status == 400
        reply = ask(two_uploads, CHUNKED)
        assert refusal(reply)[0] == 503
        assert int(reply.headers["retry-after"]) > 0
        for connection in (first, second):
            connection.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(EMPTY) - 5, EMPTY[5:]))
            assert connection.reply().status == 400
    assert ask(two_uploads, head(Content_Length=len(EMPTY)), EMPTY).status == 400


@pytest.mark.parametrize("n_mebibytes", [0, 3])
@pytest.mark.parametrize("start", [head(Content_Length=MAX_BYTES), CHUNKED + b"FFFFFFF\r\n"], ids=["length", "chunks"])
def test_nothing_is_left_of_an_upload_whose_client_disconnects(
    two_uploads: LiveServer, start: bytes, n_mebibytes: int
) -> None:
    with wire(two_uploads) as connection:
        connection.send(start, b"[", *[MEBIBYTE] * n_mebibytes)
        until(lambda: n_uploads(two_uploads) == 1)
    until(lambda: holds_nothing(two_uploads))
    assert ask(two_uploads, head("/v1/messages/batches", "GET")).body == []


def max_connections(server: LiveServer) -> int:
    """Return how many connections a server with few file descriptors allows, which it logs."""
    lowered = re.search(r"max_connections is lowered from 4096 to (\d+)", server.log)
    assert lowered
    return int(lowered[1])


def test_silent_connections_give_way_to_new_ones(two_uploads: LiveServer) -> None:
    n_allowed = max_connections(two_uploads)
    assert 8 <= n_allowed < MAX_FILES / 2
    with ExitStack() as stack:
        silent = [stack.enter_context(wire(two_uploads)) for _ in range(2 * MAX_FILES)]
        assert ask(two_uploads, head("/readyz", "GET")).status == 200
        assert all(connection.is_closed() for connection in silent[:-n_allowed])
        silent[-1].send(head("/livez", "GET"))
        assert silent[-1].reply().status == 200
    assert "can be accepted" not in two_uploads.log


def test_connections_beyond_the_limit_answer_health_checks_only(two_uploads: LiveServer) -> None:
    with ExitStack() as stack:
        for _ in range(max_connections(two_uploads)):  # requests whose bodies do not end
            busy = stack.enter_context(wire(two_uploads))
            busy.send(head("/v1/agents/", Content_Length=2, Expect="100-continue"))
            assert busy.reply().status == 100
        healthy = dict.fromkeys(("/livez", "/readyz", "/v1/health/"), 200)
        for path, status in {**healthy, "/v1/models/": 503, "/nowhere": 503}.items():
            with wire(two_uploads) as connection:
                connection.send(head(path, "GET"))
                reply = connection.reply()
                assert (reply.status, reply.headers["connection"]) == (status, "close")
                assert connection.is_closed()
                assert status == 200 or int(reply.headers["retry-after"]) > 0
        busy.send(b"{}")
        assert refusal(busy.reply())[0] == 400
    until(lambda: ask(two_uploads, head("/v1/models/", "GET")).status == 200)


# -- malformed and ambiguous HTTP


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /livez?" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        head("/livez", "GET", X="a" * 10_000),
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 1_000_000,
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + b"X: 1\r\n" * 150 + b"\r\n",
        b"GET /livez HTTP/1.1\nHost: localhost\n\n",
        b"GET /livez HTTP/3.7\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03" + b"\0" * 200,
        b"\0\r\n\r\n",
        head("/livez", "GET", X="a\0b"),
        head("/livez", "GET", Host=None),
        head(Transfer_Encoding="chunked", Content_Length=2) + b"2\r\n{}\r\n0\r\n\r\n",
        head(Transfer_Encoding="chunked", version="1.0") + b"2\r\n{}\r\n0\r\n\r\n",
        head(Transfer_Encoding="gzip, chunked") + b"2\r\n{}\r\n0\r\n\r\n",
        head(Transfer_Encoding="chunked, chunked") + b"2\r\n{}\r\n0\r\n\r\n",
        head(Transfer_Encoding="xchunked") + b"2\r\n{}\r\n0\r\n\r\n",
        CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n",
        CHUNKED + b"-2\r\n{}\r\n0\r\n\r\n",
        CHUNKED + b"2\r\n{}x\r\n0\r\n\r\n",
        CHUNKED + b"FFFFFFFFFFFFFFFFFF\r\n{}",
        head(Content_Length="2\r\nContent-Length: 3") + b"{}",
        head(Content_Length="2, 2") + b"{}",
        head(Content_Length=-1),
        head(Content_Length="+2") + b"{}",
        head(Content_Length="0x2") + b"{}",
        head(Content_Length=10**30),
    ],
    ids=lambda sent: repr(sent[:60]),
)
def test_an_ambiguous_request_is_refused(server: LiveServer, request_: bytes) -> None:
    assert ask(server, request_).status in (400, 431)
    assert ask(server, head("/livez", "GET")).status == 200


@pytest.mark.parametrize("path", ["/v1/messages/batches", "/v1/agents/"])
def test_a_malformed_chunk_ends_the_upload_and_the_connection(server: LiveServer, path: str) -> None:
    with wire(server, timeout=10) as connection:  # less than the longest pause of a sender
        connection.send(head(path, Transfer_Encoding="chunked", Expect="100-continue"))
        assert connection.reply().status == 100
        connection.send(b"2\r\n{}\r\n")
        connection.send(b"zz\r\n")
        assert refusal(connection.reply()) == (400, "the body is not chunked as its Transfer-Encoding says")
        assert connection.is_closed()
    until(lambda: holds_nothing(server))


def test_a_malformed_chunk_does_not_disturb_the_request_before_it(server: LiveServer) -> None:
    with wire(server, timeout=10) as connection:
        connection.send(head("/livez", "GET") + CHUNKED)
        assert connection.reply().status == 200
        connection.send(b"zz\r\n")
        assert refusal(connection.reply())[0] == 400
        assert connection.is_closed()


def test_garbage_after_a_request_ends_the_connection(server: LiveServer) -> None:
    with wire(server) as connection:
        connection.send(head("/livez", "GET"))
        assert connection.reply().status == 200
        connection.send(b"garbage\r\n\r\n")
        assert connection.reply().status == 400
        assert connection.is_closed()


def test_pipelined_requests_are_answered_in_order(server: LiveServer) -> None:
    with wire(server) as connection:
        connection.send(head(Content_Length=2) + b"{}" + head("/livez", "GET") + head("/nowhere", "GET"))
        assert [connection.reply().status for _ in range(3)] == [422, 200, 404]


def test_a_client_of_http_1_0_is_served_and_its_connection_closed(server: LiveServer) -> None:
    for request in (head("/livez", "GET", "1.0"), head(version="1.0", Content_Length=len(EMPTY)) + EMPTY):
        with wire(server) as connection:
            connection.send(request)
            assert connection.reply().status in (200, 400)
            assert connection.is_closed()


def test_malformed_requests_are_not_quoted_in_the_log(server: LiveServer) -> None:
    assert ask(server, head("/livez", "GET", Authorization="Bearer br-secret\0")).status == 400
    until(lambda: "not valid HTTP" in server.log)
    assert "secret" not in server.log


def test_the_servers_logged_no_traceback(server: LiveServer, impatient: LiveServer, two_uploads: LiveServer) -> None:
    for each in (server, impatient, two_uploads):
        assert "Traceback" not in each.log
