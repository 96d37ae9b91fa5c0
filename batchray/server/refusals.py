"""Error responses to requests that are not HTTP: fixed sentences, which quote nothing of the request.

The messages of the HTTP parser quote what was sent, which may hold keys, as Python writes bytes.
"""

from __future__ import annotations

from aiohttp.http_exceptions import (
    BadHttpMethod,
    BadStatusLine,
    HttpProcessingError,
    InvalidHeader,
    InvalidURLError,
    LineTooLong,
)

from batchray.server.errors import HttpError

MAX_LINE_BYTES, MAX_HEADERS = 8190, 100
"""The longest request line, or header, and the most headers."""

_TOO_LONG = f"the request line or a header is longer than {MAX_LINE_BYTES} bytes"
_METHOD = "the request line must begin with a method such as GET; this server speaks HTTP/1.1, without TLS"
_TARGET = "the request's target must be a path or a whole URL, with special characters escaped"
VERSION_SENTENCE = "the request line must be METHOD TARGET HTTP/1.1, and end with CR LF"
_HEADER = "a header is malformed; write NAME: VALUE on one line that ends with CR LF, without control characters"

_BY_TYPE: tuple[tuple[type[HttpProcessingError], int, str], ...] = (
    (LineTooLong, 431, _TOO_LONG),
    (BadHttpMethod, 400, _METHOD),
    (BadStatusLine, 400, VERSION_SENTENCE),
    (InvalidURLError, 400, _TARGET),
    (InvalidHeader, 400, _HEADER),
)
# Words in the first line of the parser's message, which is its own text.
_BY_WORD = (
    ("too many headers", 431, f"there are more than {MAX_HEADERS} headers"),
    ("'host'", 400, "a request needs exactly one header Host"),
    ("duplicate", 400, "a header occurs twice that may occur only once"),
    ("chunk", 400, "the body is not chunked as its Transfer-Encoding says"),
    ("content-length", 400, "Content-Length must be one number, without Transfer-Encoding"),
    ("transfer-encoding", 400, "Transfer-Encoding must be chunked, without Content-Length"),
    ("header", 400, _HEADER),
    ("method", 400, _METHOD),
    ("url", 400, _TARGET),
    ("version", 400, VERSION_SENTENCE),
)


def refusal_of(error: BaseException | None) -> HttpError:
    """Return the error response for what the HTTP parser raised."""
    for kind, status, sentence in _BY_TYPE:
        if isinstance(error, kind):
            return HttpError(status, sentence)
    reason = error.message.partition("\n")[0].lower() if isinstance(error, HttpProcessingError) else ""
    for word, status, sentence in _BY_WORD:
        if word in reason:
            return HttpError(status, sentence)
    return HttpError(400, "the request is not valid HTTP/1.1")
