"""A batch at an address of S3, on a server of this process that has the calls that reading needs."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet
import pytest

from batchray.batch.formats.options import InputOptions
from batchray.batch.formats.recognize import Table, open_batch
from batchray.batch.rules import KnownAgent
from batchray.errors import BatchFormatError

ROWS = pa.table({"question": [f"What is {i}?" for i in range(50)]})


class Bucket(BaseHTTPRequestHandler):
    """HEAD and GET of the objects of a bucket, whole or a range of bytes."""

    objects: ClassVar[dict[str, bytes]] = {}
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        content = self.objects.get(urlsplit(self.path).path)
        if content is None:
            self._send(404, b"", {})
            return
        if (given := self.headers.get("Range")) is None:
            self._send(200, content, {})
            return
        first, _, last = given.removeprefix("bytes=").partition("-")
        part = content[int(first) : int(last) + 1]
        self._send(206, part, {"Content-Range": f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        modified = {
            "Last-Modified": "Sat, 28 Nov 2026 00:00:00 GMT",
            "ETag": '"e"',
            "Content-Length": str(len(content)),
        }
        for name, value in {**modified, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def bucket() -> Iterator[str]:
    """Return the address of a bucket, with room for a name, and what a client needs to reach it."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Bucket) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        options = f"region=here&scheme=http&endpoint_override=127.0.0.1:{server.server_port}"
        yield "s3://name:secret@bucket/{}?" + options
        server.shutdown()
        thread.join()


def test_a_table_at_an_address_of_s3_is_read(bucket: str, tmp_path: Path) -> None:
    parquet = io.BytesIO()
    pyarrow.parquet.write_table(ROWS, parquet)
    lines = b"".join(b'{"question": "What is %d?"}\n' % i for i in range(50))
    Bucket.objects = {"/bucket/t.parquet": parquet.getvalue(), "/bucket/t.jsonl": lines}
    options = InputOptions(agent="a", input_column="question")
    for name in ("t.parquet", "t.jsonl"):
        batch = open_batch(bucket.format(name), {"a": KnownAgent()}, tmp_path, options)
        assert isinstance(batch, Table)
        bodies = [request.body for part in batch.parts for request in part.requests]
        assert bodies == [b'{"agent_id":"a","input":"What is %d?"}' % i for i in range(50)]
    with pytest.raises(BatchFormatError, match=r"^s3://bucket/none\.csv: there is no such file$"):
        open_batch(bucket.format("none.csv"), {"a": KnownAgent()}, tmp_path, options)
