"""Forms: the files and fields of any form are found as they were sent, and a malformed one is refused."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchray.server import file_uploads, forms
from batchray.server.errors import HttpError
from batchray.server.file_uploads import read_upload
from batchray.server.forms import read_form

BOUNDARY = b"-x7"
LINE = b'{"custom_id": "a"}\n'
NOW = datetime(2026, 11, 28, tzinfo=UTC)


def form_of(*parts: tuple[str, bytes], boundary: bytes = BOUNDARY) -> bytes:
    """Return a form of parts: the header that follows `form-data`, and the content."""
    heads = [f"Content-Disposition: form-data; {head}\r\n\r\n".encode() for head, _ in parts]
    bodies = [b"--" + boundary + b"\r\n" + head + body for head, (_, body) in zip(heads, parts, strict=True)]
    return b"\r\n".join([*bodies, b"--" + boundary + b"--\r\n"])


def upload_of(*parts: tuple[str, bytes], key: str | None = None) -> tuple[bytes, str, str | None]:
    """Return the content, the time of expiry and the digest of the file in a form."""
    body = form_of(*parts)
    upload = read_upload(read_form(body, BOUNDARY), body, key, NOW)
    return b"".join(upload.parts()), str(upload.new.expires_at), upload.new.digest


FILE = ('name="file"; filename="in.jsonl"', LINE)
PURPOSE = ('name="purpose"', b"batch")


@given(content=st.binary(max_size=200), fields=st.dictionaries(st.sampled_from("abc"), st.text(max_size=20)))
def test_read_form_returns_the_fields_and_the_file_that_were_sent(content: bytes, fields: dict[str, str]) -> None:
    boundary = hashlib.sha256(content).hexdigest().encode()
    parts = [(f'name="{name}"', text.encode()) for name, text in fields.items()]
    body = form_of(*parts, ('name="file"; filename="ü %22.jsonl"', content), boundary=boundary)
    form = read_form(body, boundary)
    assert form.fields == fields
    file = form.files["file"]
    assert (file.filename, body[file.start : file.end]) == ('ü ".jsonl', content)


@given(cut=st.integers(0, 400), junk=st.binary(max_size=4))
def test_a_malformed_form_is_refused_in_one_sentence(cut: int, junk: bytes) -> None:
    body = form_of(FILE, PURPOSE)
    error: HttpError | None = None
    try:
        read_form(body[:cut] + junk + body[cut + 3 :], BOUNDARY)
    except HttpError as refused:
        error = refused
    assert error is None or (error.status, error.detail.partition(": ")[0]) == (400, "the form is malformed")


def test_a_file_longer_than_a_window_of_the_search_is_found_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "_WINDOW", 7)
    for length in range(40):
        body = form_of((FILE[0], b"x" * length))
        file = read_form(body, BOUNDARY).files["file"]
        assert file.end - file.start == length


@pytest.mark.parametrize(
    ("parts", "param", "said"),
    [
        ([PURPOSE], "file", "'file' is a required property"),
        ([PURPOSE, ('name="file"', LINE)], "file", "with a filename"),
        ([FILE], "purpose", "'purpose' is a required property"),
        ([FILE, ('name="purpose"', b"vision")], "purpose", "Invalid value: 'vision'"),
        ([FILE, PURPOSE, ('name="color"', b"red")], "color", "Unknown parameter: 'color'"),
        ([(FILE[0], b""), PURPOSE], "file", "it is empty"),
        ([(FILE[0], b"\n \n"), PURPOSE], "file", "it is empty"),
        ([(FILE[0], b"a,b\n1,2\n"), PURPOSE], "file", "its first line is not a JSON object"),
        ([(FILE[0], b"[1]\n"), PURPOSE], "file", "its first line is not a JSON object"),
        ([(FILE[0], b"\n" * 90 + LINE), PURPOSE], "file", "its first line is not a JSON object"),
        ([(FILE[0], b'{"a": "%080d"}\n' % 0), PURPOSE], "file", "its first line is longer than 0 MiB"),
        ([FILE, PURPOSE, ('name="expires_after[seconds]"', b"3600")], "expires_after.anchor", "'created_at'"),
        (
            [
                *(FILE, PURPOSE),
                ('name="expires_after[anchor]"', b"created_at"),
                ('name="expires_after[seconds]"', b"3599"),
            ],
            "expires_after.seconds",
            "from 3600 to 2592000",
        ),
    ],
)
def test_an_unusable_upload_is_refused_with_its_parameter(
    parts: list[tuple[str, bytes]], param: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_uploads, "MAX_REQUEST_BYTES", 80)  # a longer line is not a request
    with pytest.raises(HttpError) as refused:
        upload_of(*parts)
    assert (refused.value.status, refused.value.more["param"]) == (400, param)
    assert said in refused.value.detail


def test_a_file_expires_after_30_days_or_as_its_form_says() -> None:
    expiry = [('name="expires_after[anchor]"', b"created_at"), ('name="expires_after[seconds]"', b"86400")]
    assert upload_of(FILE, PURPOSE)[:2] == (LINE, "2026-12-28T00:00:00.000000+00:00")
    assert upload_of(FILE, PURPOSE, *expiry)[1] == "2026-11-29T00:00:00.000000+00:00"


def test_the_digest_of_a_file_depends_on_what_was_sent_only() -> None:
    digests = [upload_of(*parts, key="k")[2] for parts in ([FILE, PURPOSE], [PURPOSE, FILE])]
    assert digests[0] == digests[1] is not None
    assert upload_of((FILE[0], LINE + LINE), PURPOSE, key="k")[2] != digests[0]
    assert upload_of(FILE, PURPOSE)[2] is None


def test_a_form_with_too_many_repeated_or_long_parts_is_refused() -> None:
    for parts, said in (
        ([(f'name="{number}"', b"") for number in range(21)], "more than 20 parts"),
        ([PURPOSE, PURPOSE], "'purpose' occurs twice"),
        ([('name="purpose"', b"x" * 4097)], "longer than 4096 bytes"),
    ):
        with pytest.raises(HttpError, match=said):
            read_form(form_of(*parts), BOUNDARY)
