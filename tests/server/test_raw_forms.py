"""Hundreds of odd requests on raw connections: one error shape, no 5xx, and nothing quoted."""

from __future__ import annotations

import itertools

import pytest

from tests.server.live import LiveServer
from tests.server.raw_forms import GROUPS, MARK, Form
from tests.server.raw_http import Reply, wire


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


def test_the_forms_are_many_and_distinct() -> None:
    forms = [*itertools.chain.from_iterable(group() for group in GROUPS.values())]
    assert len({form.name for form in forms}) == len(forms) >= 380


def test_the_log_quotes_nothing_of_odd_requests(server: LiveServer) -> None:
    assert MARK not in server.log
    assert "Traceback" not in server.log
    assert server.log.count("not valid HTTP") <= 2
