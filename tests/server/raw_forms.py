"""Requests in forms that HTTP libraries do not send, each with the statuses that may answer it.

`MARK` is in every part of a form that a client chooses freely, so that a test can look for it in responses and logs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

MARK = "qZ7mark"
_LONG = MARK + "a" * 9000
_HOST = "Host: localhost\r\n"
_JSON = "Content-Type: application/json\r\n"
_BATCHES = "/v1/messages/batches"


class Form(NamedTuple):
    """One request: its name, its bytes as they go over the wire, and the statuses that may answer it."""

    name: str
    sent: bytes
    statuses: frozenset[int]


REFUSED = frozenset({400, 431})
SERVED = frozenset({200})
ANY = frozenset({200, 400, 401, 404, 405, 408, 411, 413, 414, 415, 417, 421, 422, 431})


def _form(name: str, sent: str | bytes, statuses: frozenset[int] | set[int] = REFUSED) -> Form:
    return Form(name, sent if isinstance(sent, bytes) else sent.encode("latin-1"), frozenset(statuses))


def _get(path: str = "/livez", headers: str = "", method: str = "GET", version: str = "HTTP/1.1") -> str:
    return f"{method} {path} {version}\r\n{_HOST}{headers}\r\n"


def _post(headers: str, body: str = "", path: str = _BATCHES) -> str:
    return f"POST {path} HTTP/1.1\r\n{_HOST}{_JSON}{headers}\r\n{body}"


def _request_lines() -> Iterator[Form]:
    lines = {
        "a word": f"{MARK}\r\n\r\n",
        "a method alone": "GET\r\n\r\n",
        "a method and a space": "GET \r\n\r\n",
        "no version": "GET /livez\r\n\r\n",
        "no version but a space": "GET /livez \r\n\r\n",
        "no target": "GET HTTP/1.1\r\n\r\n",
        "two spaces before the target": f"GET  /livez HTTP/1.1\r\n{_HOST}\r\n",
        "two spaces before the version": f"GET /livez  HTTP/1.1\r\n{_HOST}\r\n",
        "a tab before the target": f"GET\t/livez HTTP/1.1\r\n{_HOST}\r\n",
        "a tab before the version": f"GET /livez\tHTTP/1.1\r\n{_HOST}\r\n",
        "a space in the target": f"GET /livez {MARK} HTTP/1.1\r\n{_HOST}\r\n",
        "a space before the method": f" GET /livez HTTP/1.1\r\n{_HOST}\r\n",
        "a text after the version": f"GET /livez HTTP/1.1 {MARK}\r\n{_HOST}\r\n",
        "a space after the version": f"GET /livez HTTP/1.1 \r\n{_HOST}\r\n",
        "a line end in the middle": f"GET\r\n/livez HTTP/1.1\r\n{_HOST}\r\n",
        "line feeds alone": f"GET /livez HTTP/1.1\n{_HOST}\n".replace("\r", ""),
        "carriage returns alone": f"GET /livez HTTP/1.1\r{_HOST}\r".replace("\n", ""),
        "a line feed after the first line": f"GET /livez HTTP/1.1\n{_HOST}\r\n",
        "two carriage returns": f"GET /livez HTTP/1.1\r\r\n{_HOST}\r\n",
        "a response": f"HTTP/1.1 200 OK\r\n{_HOST}\r\n",
        "a form feed": f"GET\f/livez\fHTTP/1.1\r\n{_HOST}\r\n",
    }
    lenient = {"two spaces before the target", "two spaces before the version"}
    for name, line in lines.items():
        yield _form(f"request line: {name}", line, REFUSED | SERVED if name in lenient else REFUSED)
    yield _form("request line: line ends before it", f"\r\n\r\n{_get()}", SERVED)


def _methods() -> Iterator[Form]:
    for method in (MARK, "get", "Get", "GET1", "G\0T", "GET/", "GÉT", "\x7f", '"GET"', "GET,POST", "A" * 300, "", "-"):
        yield _form(f"method {method[:20]!r}", _get(method=method))
    for method in ("PUT", "DELETE", "PATCH", "POST", "OPTIONS", "TRACE", "PROPFIND", "PURGE", "M-SEARCH", "REPORT"):
        yield _form(f"method {method} of a route that has none", _get(method=method), {405})
    yield _form("method QUERY", _get(method="QUERY"), {400, 405})
    yield _form("method HEAD of a route of GET", _get(method="HEAD"), SERVED)
    yield _form("method HEAD of no route", _get(f"/{MARK}", method="HEAD"), {404})
    yield _form("method CONNECT", f"CONNECT {MARK}.example:443 HTTP/1.1\r\n{_HOST}\r\n", ANY - SERVED)
    yield _form("method CONNECT with a path", f"CONNECT /livez HTTP/1.1\r\n{_HOST}\r\n", ANY - SERVED)


def _versions() -> Iterator[Form]:
    for version in (
        *(
            "HTTP/0.9",
            "HTTP/1.2",
            "HTTP/1.9",
            "HTTP/2.0",
            "HTTP/2",
            "HTTP/3",
            "HTTP/3.7",
            "HTTP/9.9",
            "HTTP/1",
            "HTTP/1.",
        ),
        *(
            "HTTP/.1",
            "HTTP/11",
            "HTTP/1.11",
            "HTTP/01.1",
            "HTTP/-1.1",
            "HTTP/1.1.1",
            "HTTP/a.b",
            "http/1.1",
            "HTTP 1.1",
        ),
        *("HTTPS/1.1", "ICE/1.0", f"{MARK}/1.1", "HTTP/1,1", "HTTP/1.\0", "/1.1", "HTTP/", "HTTP"),
    ):
        yield _form(f"version {version!r}", _get(version=version))
    yield _form("version of another protocol", _get(version="RTSP/1.0"), REFUSED | SERVED)
    yield _form("version HTTP/1.0", _get(version="HTTP/1.0"), SERVED)
    yield _form("version HTTP/1.0 without Host", "GET /livez HTTP/1.0\r\n\r\n", ANY)


_BAD_PATHS = {
    "an unknown path": f"/{MARK}",
    "two slashes": f"//{MARK}",
    "two slashes before a route": "//livez",
    "dots": f"/../../{MARK}",
    "dots to a route": f"/{MARK}/../livez",
    "escaped dots": "/%2e%2e/%2e%2e/etc/passwd",
    "an escaped slash": "/v1%2fmessages%2fbatches",
    "an escaped null": "/livez%00",
    "a bad escape": "/%zz",
    "half an escape": "/livez%",
    "escaped bytes that are not UTF-8": "/%ff%fe",
    "bytes that are not UTF-8": f"/\xff\xfe{MARK}",
    "letters beyond ASCII": f"/é{MARK}",
    "a backslash": f"/\\{MARK}",
    "a null": f"/\0{MARK}",
    "a control character": f"/\x01{MARK}",
    "a delete character": f"/\x7f{MARK}",
    "no slash": MARK,
    "an asterisk": "*",
    "a fragment alone": f"#{MARK}",
    "a quote": f"/\"'<script>{MARK}</script>",
    "braces": f"/{{{MARK}}}",
    "many slashes": "/" * 4000,
    "a deep path": "/a" * 3000 + MARK,
    "a job of another form": f"{_BATCHES}/{MARK}",
    "a job with a null": f"{_BATCHES}/%00{MARK}",
    "a job with a surrogate": f"{_BATCHES}/%ed%a0%80",
}
_BAD_URLS = {
    "a scheme alone": "http://",
    "a scheme without slashes": f"http:{MARK}",
    "a URL without a host": "http:///livez",
    "a URL with a bad port": f"http://{MARK}:99999/livez",
    "a URL with a port of letters": f"http://localhost:{MARK}/livez",
    "a URL with a bracket": f"http://[{MARK}/livez",
    "a URL with two brackets": "http://[::1]x/livez",
    "a URL with a user": f"http://{MARK}:{MARK}@/livez",
    "a URL with an escaped host": "http://%5b/livez",
    "a URL of a file": "file:///etc/passwd",
    "a URL of no kind": f"{MARK}://",
    "a host": f"{MARK}.example:80",
}
_BAD_QUERIES = {
    "an unknown query": f"/livez?{MARK}=1",
    "a query alone": f"?{MARK}",
    "a query with a null": f"{_BATCHES}?after=%00{MARK}",
    "a query that is not UTF-8": f"{_BATCHES}?after=%ff",
    "many parameters": f"{_BATCHES}?" + "&".join(f"a{n}=1" for n in range(900)),
    "a parameter twice": f"{_BATCHES}?limit=1&limit=2",
    "a large number": f"{_BATCHES}?limit=" + "9" * 4000,
}


def _targets() -> Iterator[Form]:
    served = {
        "a whole URL": "http://localhost/livez",
        "a whole URL with a port": "http://localhost:1/livez",
        "a whole URL in capitals": "HTTP://LOCALHOST/livez",
        "a whole URL of another scheme": "https://localhost/livez",
        "a query": "/v1/models/?",
        "escaped letters": "/%6civez",
        "a fragment": f"/livez#{MARK}",
    }
    for name, target in served.items():
        yield _form(f"target: {name}", _get(target), SERVED)
    for name, target in (_BAD_PATHS | _BAD_URLS | _BAD_QUERIES).items():
        yield _form(f"target: {name}", _get(target), ANY)
    yield _form("target: an asterisk of OPTIONS", _get("*", method="OPTIONS"), {404, 405})
    yield _form("target: a whole URL of another host", _get(f"http://{MARK}.example{_BATCHES}"), {421})


def _hosts() -> Iterator[Form]:
    for name, lines in {
        "no host": "",
        "two hosts": f"Host: localhost\r\nHost: {MARK}\r\n",
        "the same host twice": "Host: localhost\r\nHost: localhost\r\n",
    }.items():
        yield _form(f"host: {name}", f"GET {_BATCHES} HTTP/1.1\r\n{lines}\r\n")
    for host in (
        *("", MARK, f"{MARK}.example:80", "[", "[::1", "]", ":", "localhost:", "localhost:x", "localhost:99999"),
        *(
            "127.0.0.1 ",
            "local\thost",
            "[::ffff:10.0.0.1]",
            "a@localhost",
            "localhost/x",
            "\xff",
            "localhost,x",
            "0",
            "%00",
        ),
        *("http://localhost", "[fe80::1%25eth0]", "127.1", "2130706433", "x" * 5000),
    ):
        yield _form(f"host {host[:24]!r}", f"GET {_BATCHES} HTTP/1.1\r\nHost: {host}\r\n\r\n", {200, 400, 421})


def _header_syntax() -> Iterator[Form]:
    for name, line in {
        "a space before the colon": f"X : {MARK}\r\n",
        "no colon": f"{MARK}\r\n",
        "no name": f": {MARK}\r\n",
        "a space in the name": f"X Y: {MARK}\r\n",
        "a folded value": f"X: a\r\n {MARK}\r\n",
        "a folded first line": f" {MARK}: a\r\n",
        "a null in the value": f"X: {MARK}\0\r\n",
        "a null in the name": f"X\0: {MARK}\r\n",
        "a carriage return in the value": f"X: a\r{MARK}\r\n",
        "a line feed in the value": f"X: a\n{MARK}\r\n",
        "a control character in the value": f"X: \x01{MARK}\r\n",
        "a delete character in the value": f"X: \x7f{MARK}\r\n",
        "letters beyond ASCII in the name": f"É: {MARK}\r\n",
        "a bracket in the name": f"X[]: {MARK}\r\n",
        "a quote in the name": f'"X": {MARK}\r\n',
        "a slash in the name": f"X/Y: {MARK}\r\n",
        "a line feed alone at its end": f"X: {MARK}\n",
        "two content types": f"Content-Type: {MARK}\r\nContent-Type: {MARK}\r\n",
        "two user agents": f"User-Agent: {MARK}\r\nUser-Agent: {MARK}\r\n",
        "an old key of WebSocket": f"Sec-WebSocket-Key1: {MARK}\r\n",
    }.items():
        yield _form(f"header: {name}", _get(headers=line))
    for name, line in {
        "an empty value": "X:\r\n",
        "spaces around the value": f"X:   {MARK}  \t\r\n",
        "bytes beyond ASCII in the value": f"X: \xff\xfe{MARK}\r\n",
        "a key in a foreign scheme": f"Authorization: Basic {MARK}\r\n",
        "a key of odd bytes": f"Authorization: Bearer \xff{MARK}\r\n",
        "a malformed cookie": f"Cookie: ;;==;{MARK}=\r\n",
        "ranges": "Range: bytes=0-\r\n",
        "conditions": f'If-None-Match: "{MARK}"\r\nIf-Modified-Since: {MARK}\r\n',
        "odd encodings that are accepted": "Accept-Encoding: \xff, *;q=x\r\n",
        "forwarded": f"X-Forwarded-For: {MARK}\r\nForwarded: for={MARK}\r\n",
        "an overridden method": "X-HTTP-Method-Override: DELETE\r\n",
        "no keep-alive": "Connection: close\r\n",
        "odd options of the connection": f"Connection: {MARK}, ,\xff\r\n",
        "an option that names a header": "Connection: host, content-length\r\n",
        "a bad keep-alive": f"Connection: keep-alive\r\nKeep-Alive: timeout={MARK}\r\n",
    }.items():
        yield _form(f"header: {name}", _get(headers=line), SERVED)


def _sizes() -> Iterator[Form]:
    yield _form("size: a long path", _get(f"/{_LONG}"))
    yield _form("size: a long query", _get(f"/livez?{_LONG}"))
    yield _form("size: a long value", _get(headers=f"X: {_LONG}\r\n"))
    yield _form("size: a long name", _get(headers=f"{_LONG}: x\r\n"))
    yield _form("size: a value of a megabyte", _get(headers=f"X: {MARK}{'a' * 1_000_000}\r\n"))
    yield _form("size: a path of a megabyte", _get(f"/{MARK}{'a' * 1_000_000}"))
    yield _form("size: a method of a megabyte", _get(method=MARK + "a" * 1_000_000))
    yield _form("size: 150 headers", _get(headers="".join(f"X{n}: {MARK}\r\n" for n in range(150))))
    yield _form("size: 20,000 headers", _get(headers="X: 1\r\n" * 20_000))
    yield _form("size: a long host", f"GET /livez HTTP/1.1\r\nHost: {_LONG}\r\n\r\n")
    yield _form("size: many large headers", _get(headers=f"X: {'a' * 8000}\r\n" * 90), ANY)


def _framing() -> Iterator[Form]:
    for name, lines in {
        "length and chunks": "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
        "chunks and length": "Transfer-Encoding: chunked\r\nContent-Length: 2\r\n",
        "length 0 and chunks": "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
        "two lengths": "Content-Length: 2\r\nContent-Length: 3\r\n",
        "the same length twice": "Content-Length: 2\r\nContent-Length: 2\r\n",
        "a list of lengths": "Content-Length: 2, 2\r\n",
        "a negative length": "Content-Length: -2\r\n",
        "a signed length": "Content-Length: +2\r\n",
        "a length in hexadecimal": "Content-Length: 0x2\r\n",
        "a fraction": "Content-Length: 2.0\r\n",
        "an exponent": "Content-Length: 2e0\r\n",
        "an empty length": "Content-Length: \r\n",
        "a length of letters": f"Content-Length: {MARK}\r\n",
        "a length in other digits": "Content-Length: \xb2\r\n",
        "a length with a space": "Content-Length: 2 2\r\n",
        "a length with an underscore": "Content-Length: 0_2\r\n",
        "a length beyond 64 bits": f"Content-Length: {2**64 + 2}\r\n",
        "a huge length": f"Content-Length: {'9' * 400}\r\n",
        "gzip and chunks": "Transfer-Encoding: gzip, chunked\r\n",
        "chunks and gzip": "Transfer-Encoding: chunked, gzip\r\n",
        "chunks twice": "Transfer-Encoding: chunked, chunked\r\n",
        "chunks in two headers": "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "chunks and identity": "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "identity": "Transfer-Encoding: identity\r\n",
        "an unknown coding": f"Transfer-Encoding: {MARK}\r\n",
        "a prefix of chunked": "Transfer-Encoding: xchunked\r\n",
        "chunked and more": "Transfer-Encoding: chunkedx\r\n",
        "a quoted coding": 'Transfer-Encoding: "chunked"\r\n',
        "an empty coding": "Transfer-Encoding: \r\n",
        "a comma": "Transfer-Encoding: ,\r\n",
        "a coding with a parameter": "Transfer-Encoding: chunked;q=1\r\n",
        "a vertical tab": "Transfer-Encoding: \x0bchunked\r\n",
        "a space before the colon": "Transfer-Encoding : chunked\r\n",
        "a folded coding": "Transfer-Encoding:\r\n chunked\r\n",
    }.items():
        yield _form(f"framing: {name}", _post(lines, "2\r\n{}\r\n0\r\n\r\n"), REFUSED | {422})
        yield _form(f"framing of GET: {name}", _get(headers=lines) + "2\r\n{}\r\n0\r\n\r\n")
    yield _form(
        "framing: chunks in HTTP/1.0", _post("Transfer-Encoding: chunked\r\n", "0\r\n\r\n").replace("1.1", "1.0")
    )
    yield _form(
        "framing: GET with chunks in HTTP/1.0", _get(headers="Transfer-Encoding: chunked\r\n", version="HTTP/1.0")
    )
    yield _form("framing: GET with a body", _get(headers="Content-Length: 2\r\n") + "{}", SERVED)
    yield _form("framing: Chunked in capitals", _post("Transfer-Encoding: CHUNKED\r\n", "2\r\n{}\r\n0\r\n\r\n"), {422})


def _chunks() -> Iterator[Form]:
    for name, body in {
        "a size of letters": f"{MARK}\r\n{{}}\r\n0\r\n\r\n",
        "a negative size": "-2\r\n{}\r\n0\r\n\r\n",
        "a signed size": "+2\r\n{}\r\n0\r\n\r\n",
        "a prefixed size": "0x2\r\n{}\r\n0\r\n\r\n",
        "a huge size": "FFFFFFFFFFFFFFFFFF\r\n{}\r\n0\r\n\r\n",
        "an empty size": "\r\n{}\r\n0\r\n\r\n",
        "a space before the size": " 2\r\n{}\r\n0\r\n\r\n",
        "a space after the size": "2 \r\n{}\r\n0\r\n\r\n",
        "more than its size": f"2\r\n{{}}{MARK}\r\n0\r\n\r\n",
        "less than its size": "5\r\n{}\r\n0\r\n\r\n",
        "line feeds alone": "2\n{}\n0\n\n",
        "a line feed in an extension": f"2;{MARK}\n{{}}\r\n0\r\n\r\n",
        "a null in an extension": "2;a=\0\r\n{}\r\n0\r\n\r\n",
        "no line end after the data": "2\r\n{}0\r\n\r\n",
        "a bad trailer": f"2\r\n{{}}\r\n0\r\n{MARK}\r\n\r\n",
        "a trailer with a null": "2\r\n{}\r\n0\r\nX: \0\r\n\r\n",
    }.items():
        yield _form(f"chunks: {name}", _post("Transfer-Encoding: chunked\r\n", body), REFUSED)
    for name, body in {
        "an extension": f"2;{MARK}=1\r\n{{}}\r\n0\r\n\r\n",
        "leading zeros": "0002\r\n{}\r\n000\r\n\r\n",
        "a trailer": f"2\r\n{{}}\r\n0\r\nX: {MARK}\r\n\r\n",
        "a trailer of framing": "2\r\n{}\r\n0\r\nContent-Length: 9\r\n\r\n",
        "a long extension": f"2;{'a' * 20_000}\r\n{{}}\r\n0\r\n\r\n",
        "one byte each": "1\r\n{\r\n1\r\n}\r\n0\r\n\r\n",
    }.items():
        yield _form(f"chunks: {name}", _post("Transfer-Encoding: chunked\r\n", body), {400, 422})


def _foreign_protocols() -> Iterator[Form]:
    for name, sent in {
        "TLS": b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03" + b"\0" * 200,
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
        "SSH": b"SSH-2.0-OpenSSH_9.9\r\n",
        "SMTP": b"EHLO %b\r\n\r\n" % MARK.encode(),
        "Redis": b"*1\r\n$4\r\nPING\r\n\r\n",
        "SOCKS5": b"\x05\x01\x00\r\n\r\n",
        "a proxy's first line": f"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n{_get()}".encode(),
        "PostgreSQL": b"\0\0\0\x08\x04\xd2\x16\x2f\r\n\r\n",
        "RDP": b"\x03\x00\x00\x13\x0e\xe0\0\0\0\0\0\1\0\x08\0\3\0\0\0",
        "nulls": b"\0" * 4096,
        "high bytes": b"\xff" * 4096,
        "UTF-16": _get().encode("utf-16"),
        "a byte order mark": b"\xef\xbb\xbf" + _get().encode(),
        "JSON": b'{"requests": []}\r\n\r\n',
        "XML": b"<?xml version='1.0'?>\r\n\r\n",
    }.items():
        yield _form(f"protocol: {name}", sent)


def _upgrades() -> Iterator[Form]:
    key = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    for name, lines in {
        "WebSocket": f"Connection: Upgrade\r\nUpgrade: websocket\r\n{key}",
        "HTTP/2": "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
        "an unknown protocol": f"Connection: upgrade\r\nUpgrade: {MARK}/9\r\n",
        "TLS": "Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n",
        "no option of the connection": "Upgrade: websocket\r\n",
    }.items():
        yield _form(f"upgrade to {name}", _get(headers=lines), SERVED)
        yield _form(f"upgrade of no route to {name}", _get(f"/{MARK}", lines), {404})
        yield _form(f"upgrade of POST to {name}", _post(f"{lines}Content-Length: 2\r\n", "{}"), {400, 422})


def _expectations() -> Iterator[Form]:
    for value in (MARK, "200-ok", "100-continue, x", "100-continued", '"100-continue"', "\xff"):
        for path in ("/livez", f"/{MARK}", _BATCHES):
            yield _form(f"expect {value!r} of {path}", _get(path, f"Expect: {value}\r\n"), {417})
    yield _form("expect in HTTP/1.0", _get(headers=f"Expect: {MARK}\r\n", version="HTTP/1.0"), SERVED)


def _bodies() -> Iterator[Form]:
    for name, lines in {
        "compressed": "Content-Encoding: gzip\r\n",
        "compressed twice": "Content-Encoding: gzip, br\r\n",
        "of an unknown coding": f"Content-Encoding: {MARK}\r\n",
        "of an unknown charset": f"Content-Type: application/json; charset={MARK}\r\n",
        "of another type": f"Content-Type: text/{MARK}\r\n",
        "of a type with a null": "Content-Type: \xff\r\n",
    }.items():
        sent = f"POST {_BATCHES} HTTP/1.1\r\n{_HOST}" + ("" if "Type" in lines else _JSON) + lines
        yield _form(f"a body {name}", f"{sent}Content-Length: 2\r\n\r\n{{}}", {415})
    for path in (_BATCHES, "/v1/agents/", "/v1/agents/clerk/messages"):
        for body in ("", MARK, '"\xff"', "[" * 5000, "nul", f'{{"{MARK}": 1}}', "1e999", "\0"):
            yield _form(
                f"body {body[:12]!r} of {path}", _post(f"Content-Length: {len(body)}\r\n", body, path), ANY - SERVED
            )
    yield _form("a body that is too large", _post(f"Content-Length: {2**40}\r\n"), {413})


def _routes() -> Iterator[Form]:
    for path in (_BATCHES, "/v1/agents/", "/metrics", "/openapi.json", f"{_BATCHES}/{MARK}/cancel"):
        yield _form(f"OPTIONS {path}", _get(path, f"Origin: http://{MARK}\r\n", "OPTIONS"), {405})
        yield _form(f"PUT {path}", _get(path, method="PUT"), {405})


GROUPS: dict[str, Callable[[], Iterator[Form]]] = {
    "request lines": _request_lines,
    "methods": _methods,
    "versions": _versions,
    "targets": _targets,
    "hosts": _hosts,
    "headers": _header_syntax,
    "sizes": _sizes,
    "framing": _framing,
    "chunks": _chunks,
    "other protocols": _foreign_protocols,
    "upgrades": _upgrades,
    "expectations": _expectations,
    "bodies": _bodies,
    "routes": _routes,
}
"""All forms, by what is odd about them."""
