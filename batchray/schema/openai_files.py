"""The files of OpenAI's API.  Times are in seconds since 1970.

Source: OpenAI's API reference, "Files", and the types of its client.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt

from batchray.schema.base import WHOLE, WireModel

ExpirySeconds = Annotated[int, Field(ge=3600, le=2_592_000), WHOLE]
"""After how many seconds a file expires: from an hour to 30 days."""


class CreateFile(WireModel):
    """The form of an upload.  A field may be absent, but not null, which a form cannot say."""

    file: bytes
    purpose: Literal["batch"]
    expires_after_anchor: Literal["created_at"] = Field("created_at", alias="expires_after[anchor]")
    expires_after_seconds: ExpirySeconds = Field(2_592_000, alias="expires_after[seconds]")


class OpenAIFile(WireModel):
    """A file: one that was uploaded, or the output or the errors of a batch."""

    id: str
    object: Literal["file"] = "file"
    bytes: NonNegativeInt
    created_at: int
    expires_at: int | None
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"] = "processed"
    status_details: None = None


class OpenAIFileList(WireModel):
    """A page of files."""

    object: Literal["list"] = "list"
    data: list[OpenAIFile]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedFile(WireModel):
    """A file that was deleted."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True
