"""Opens the input of a batch: unpacks gzip and zstd, converts UTF-16 to UTF-8, and names formats that are not text."""

from __future__ import annotations

import codecs
import gzip
import io
import re
import zlib
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, BinaryIO, cast

from batchray.errors import BatchFormatError

BOM = codecs.BOM_UTF8

_UNREADABLE = {
    b"\xff\xfe\0\0": "UTF-32; save it as UTF-8",
    b"\0\0\xfe\xff": "UTF-32; save it as UTF-8",
    b"\xfd7zX": "compressed with xz; unpack it, or compress it with gzip",
    b"BZh": "compressed with bzip2; unpack it, or compress it with gzip",
    b"PK\3\4": "a ZIP archive or an Excel workbook; write JSON Lines instead",
    b"PAR1": "Parquet, not text",
    b"SQLi": "a SQLite database; write JSON Lines instead",
    b"%PDF": "PDF; write JSON Lines instead",
}
"""First bytes of formats that are often given by mistake, and the remedy."""

_CSV_HEADER = re.compile(rb"\s*\"?[A-Za-z_][\w .-]*\"?(\s*[,;\t]\s*\"?[A-Za-z_][\w .-]*\"?)+\s*")
_CSV = "looks like CSV; if it is, give --format csv (format='csv')"
_GZIP, _ZSTD = b"\x1f\x8b", b"(\xb5/\xfd"
_LETTERS = bytes(range(0x20, 0x7F)) + b"\t\n\r"
"""The characters that a text of ASCII has."""
_PACKERS = {".gz": "gzip", ".zst": "zstd"}
_HEAD, _SAMPLE = 6, 512
_CHUNK = 256 * 1024


def open_file(path: Path) -> BinaryIO:
    """Open a file of a batch.  Raises BatchFormatError."""
    try:
        return open_stream(path.open("rb"))
    except OSError as error:
        raise BatchFormatError(f"{path} cannot be read: {error.strerror}") from None


def open_stream(stream: BinaryIO) -> BinaryIO:
    """Return a stream of UTF-8, which closes the given one with it.  Raises BatchFormatError for another format."""
    try:
        return _decoded(stream)
    except BaseException:
        stream.close()
        raise


def _decoded(stream: BinaryIO) -> BinaryIO:
    head, stream = first_bytes(stream)
    for magic, remedy in _UNREADABLE.items():
        if head.startswith(magic):
            raise BatchFormatError(f"the input is {remedy}")
    if is_packed(head):
        return open_stream(unpacked(head, stream))
    if (encoding := _utf16(head)) is not None:
        return cast(BinaryIO, io.BufferedReader(_Recoded(stream, encoding), _CHUNK))
    return stream


def is_packed(head: bytes) -> bool:
    """Whether the first bytes of a file are those of gzip or zstd."""
    return head.startswith((_GZIP, _ZSTD))


def unpacked(head: bytes, stream: BinaryIO) -> BinaryIO:
    """Return the content of packed data, which closes the data with it.  Raises BatchFormatError without pyarrow."""
    if head.startswith(_GZIP):
        return cast(BinaryIO, _Gunzipped(stream))
    try:
        import pyarrow
    except ImportError:
        reason = "zstd is unpacked with pyarrow, which is not installed: pip install 'batchray[data]'; or use gzip"
        raise BatchFormatError(reason) from None
    return cast(BinaryIO, io.BufferedReader(_Unzstd(stream, pyarrow.CompressedInputStream(stream, "zstd")), _CHUNK))


def check_is_text(head: bytes, stream: BinaryIO, name: str) -> None:
    """Raise BatchFormatError for data that are named as packed, and are neither packed nor text.

    `head` are their first bytes, and `stream` is what `first_bytes` has returned.
    """
    packer = _PACKERS.get(PurePath(name.lower()).suffix)
    if packer is None or is_packed(head) or head.startswith(tuple(_UNREADABLE)) or _utf16(head) is not None:
        return
    sample = cast(io.BufferedReader, stream).peek(_SAMPLE)[:_SAMPLE]
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(sample)
    except UnicodeDecodeError:
        text = "\0"
    if any(letter < " " and not letter.isspace() for letter in text):
        raise BatchFormatError(f"is named as {packer} data, and is neither that nor text in UTF-8; compress it again")


def first_bytes(stream: BinaryIO) -> tuple[bytes, BinaryIO]:
    """Return the first bytes of a stream, and a stream that still has them.  Raises BatchFormatError."""
    with readable():
        return _peek(stream)


@contextmanager
def readable() -> Iterator[None]:
    """Raise BatchFormatError for input that turns out to be damaged while it is read."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BatchFormatError(f"the gzip data is cut off or damaged: {error}") from None
    except _ZstdError as error:
        raise BatchFormatError(f"the zstd data is cut off or damaged: {error}") from None
    except UnicodeDecodeError as error:
        raise BatchFormatError(f"the input is damaged UTF-16: {error.reason}; save it as UTF-8") from None


def remedy(line: bytes, reason: str, number: int) -> str:
    """Return what to do about a line that is not JSON, to be written after the reason; or nothing."""
    if b"\0" in line:
        return "; it has NUL bytes: the file is damaged, or not text"
    if not reason.startswith("not JSON"):
        return ""
    if number == 1 and _CSV_HEADER.fullmatch(line):
        return f"; it {_CSV}"
    if "unexpected end of data" in reason and line.lstrip().startswith(b"{"):
        return "; a request must be whole on its line"
    if "after document" in reason:
        return "; end lines with LF, not with CR alone" if b"\r" in line else "; write one request a line"
    if line.lstrip().startswith(b"{'"):
        return "; texts in JSON are in double quotes, as json.dumps writes them"
    if not line.lstrip().startswith(b"{"):
        return '; a line is a request such as {"agent_id": "assistant", "input": "Say hello."}'
    return ""


def _peek(stream: BinaryIO) -> tuple[bytes, BinaryIO]:
    """Return the first bytes of a stream, and a stream that still has them."""
    if not hasattr(stream, "peek"):
        stream = cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, stream)))
    head = cast(io.BufferedReader, stream).peek(_HEAD)[:_HEAD]
    if 0 < len(head) < _HEAD:  # a pipe that has given little so far, or a short file
        head = stream.read(_HEAD)
        stream = cast(BinaryIO, io.BufferedReader(_Prefixed(head, stream), _CHUNK))
    return head, stream


def _utf16(head: bytes) -> str | None:
    """Return the UTF-16 encoding of a text by its byte order mark, or by the zeros of its first letters; or None."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    for encoding, zeros, letters in (("utf-16-le", head[1:4:2], head[0:4:2]), ("utf-16-be", head[0:4:2], head[1:4:2])):
        if zeros and not zeros.strip(b"\0") and letters.isascii() and not letters.translate(None, _LETTERS):
            return encoding
    return None


class _Gunzipped(gzip.GzipFile):
    """The content of gzip data, which closes the data with it."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(fileobj=stream, mode="rb")
        self._stream = stream

    def close(self) -> None:
        super().close()
        if hasattr(self, "_stream"):
            self._stream.close()


class _Wrapped(io.RawIOBase):
    """Bytes made of another stream's, which is closed with it."""

    def __init__(self, stream: BinaryIO, pending: bytes = b"") -> None:
        self._stream, self._pending = stream, pending

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._pending:
            self._pending = self._more()
        n_bytes = min(len(buffer), len(self._pending))
        buffer[:n_bytes], self._pending = self._pending[:n_bytes], self._pending[n_bytes:]
        return n_bytes

    def close(self) -> None:
        super().close()
        self._stream.close()

    @abstractmethod
    def _more(self) -> bytes:
        """Return the next bytes; none at the end."""


class _ZstdError(Exception):
    """The data is not what zstd writes."""


class _Unzstd(_Wrapped):
    """The content of zstd data."""

    def __init__(self, stream: BinaryIO, content: Any) -> None:
        super().__init__(stream)
        self._content = content

    def _more(self) -> bytes:
        try:
            return self._content.read(_CHUNK)  # type: ignore[no-any-return]
        except OSError as error:
            raise _ZstdError(" ".join(str(error).split())) from None


class _Prefixed(_Wrapped):
    """A stream behind bytes that were read from it already."""

    def __init__(self, prefix: bytes, stream: BinaryIO) -> None:
        super().__init__(stream, prefix)

    def _more(self) -> bytes:
        return self._stream.read(_CHUNK)


class _Recoded(_Wrapped):
    """Text of another encoding, as UTF-8."""

    def __init__(self, stream: BinaryIO, encoding: str) -> None:
        super().__init__(stream)
        self._decoder = codecs.getincrementaldecoder(encoding)()

    def _more(self) -> bytes:
        text, chunk = "", b" "
        while not text and chunk:
            chunk = self._stream.read(_CHUNK)
            text = self._decoder.decode(chunk, final=not chunk)
        return text.encode()
