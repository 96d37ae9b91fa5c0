"""Hundreds of odd requests on raw connections: one error shape, no 5xx, and nothing quoted."""

from __future__ import annotations

import itertools
from random import Random

import pytest

from tests.server.live import LiveServer
from tests.server.raw_forms import GROUPS, MARK, Form
from tests.server.raw_http import Reply, head, wire

N_MUTATED = 300
SPLINTERS = (
    *(
        b"\0",
        b"\r\n",
        b"\n",
        b"\r",
        b" ",
        b"\t",
        b":",
        b"\xff",
        b"%00",
        b"//",
        b"http://",
        b"@",
        b"[",
        b"?",
        b"#",
        b";",
    ),
    *(b"HTTP/1.1", b"Host: a\r\n", b"Transfer-Encoding: chunked\r\n", b"Content-Length: 3\r\n", b"CONNECT "),
    *(b"Expect: 100-continue\r\n", b"Connection: upgrade\r\nUpgrade: websocket\r\n", b"0\r\n\r\n", b"5\r\nhello\r\n"),
)


def problems_of(form: Form, reply: Reply) -> list[str]:
    """Return what is wrong with the response to a form."""
    is_error, text = reply.status >= 400, str(reply.body)
    claims = {
        f"status {reply.status}, not one of {sorted(form.statuses)}": reply.status in form.statuses,
        f"server {reply.headers['server']}": reply.headers["server"] == "batchray",
        # A route may name what it looked for, such as an id.  Errors of the transport end the connection.
        f"quotes the request: {text}": reply.headers.get("connection") != "close" or MARK not in str(reply),
    }
    if is_error and not form.sent.startswith(b"HEAD"):
        claims[f"another shape: {text}"] = isinstance(reply.body, dict) and reply.body.keys() == {"detail", "trace_id"}
        claims[f"written by Python: {text}"] = "b'" not in reply.body["detail"] and "\n" not in reply.body["detail"]
    return [problem for problem, is_good in claims.items() if not is_good]


@pytest.mark.parametrize("group", GROUPS)
def test_odd_requests_get_one_shape_of_errors(server: LiveServer, group: str) -> None:
    found = {}
    for form in GROUPS[group]():
        with wire(server) as connection:
            connection.send(form.sent)
            if problems := problems_of(form, connection.reply(has_body=not form.sent.startswith(b"HEAD"))):
                found[form.name] = problems
    assert not found


def test_nothing_is_read_as_a_request_after_one_with_an_ambiguous_end(server: LiveServer) -> None:
    next_one = head("/livez", "GET")
    found = []
    for form in (*GROUPS["framing"](), *GROUPS["chunks"]()):
        for pieces in ([form.sent + next_one], [form.sent, next_one]):
            with wire(server) as connection:
                connection.send(*pieces)
                reply = connection.reply()
                # A reply in HTTP/1.0 says nothing of it.
                is_end = reply.headers.get("connection", "close") == "close" and connection.is_closed()
                if reply.status == 400 and not is_end:
                    found.append((form.name, reply))
    assert not found


def test_mutated_requests_get_the_same_shape_of_errors(server: LiveServer) -> None:
    rng = Random(1)
    forms = [
        form for group in GROUPS.values() for form in group() if len(form.sent) < 20_000 and b"HEAD" not in form.sent
    ]
    found = {}
    for _ in range(N_MUTATED):
        form = rng.choice(forms)
        form = Form(form.name, mutated(rng, form.sent), frozenset(range(200, 500)))
        with wire(server) as connection:
            connection.send(form.sent)
            if not connection.has_reply(0.05):  # incomplete now
                continue
            try:
                reply = connection.reply()
            except EOFError:
                continue
            if reply.status != 100 and (problems := problems_of(form, reply)):
                found[form.sent] = problems
    assert not found


def mutated(rng: Random, sent: bytes) -> bytes:
    """Return bytes of which a few places were cut out, doubled, or replaced by something of HTTP."""
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(sent) + 1)
        end = min(len(sent), start + rng.choice((0, 0, 1, 1, 2, 5, 20)))
        sent = sent[:start] + rng.choice((rng.choice(SPLINTERS), sent[start:end] * 2, b"")) + sent[end:]
    return sent


def test_the_forms_are_many_and_distinct() -> None:
    forms = [*itertools.chain.from_iterable(group() for group in GROUPS.values())]
    assert len({form.name for form in forms}) == len(forms) >= 380


def test_the_log_quotes_nothing_of_odd_requests(server: LiveServer) -> None:
    assert MARK not in server.log
    assert "Traceback" not in server.log
    assert server.log.count("not valid HTTP") <= 2
