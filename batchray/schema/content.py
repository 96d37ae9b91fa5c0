"""Content parts of messages: text, images, tool calls, tool returns and reasoning.

Letta's clients may omit `type`; a part without one is recognised by the keys that only its kind has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Tag

from batchray.schema.base import Integer, WireModel, any_present


class UrlImage(WireModel):
    """An image at an address."""

    type: Literal["url"] = "url"
    url: str


class Base64Image(WireModel):
    """An image inside the request.  `detail` is `low`, `high` or `auto`."""

    type: Literal["base64"] = "base64"
    media_type: str
    data: str
    detail: str | None = None


class LettaImage(WireModel):
    """An image stored on a Letta server."""

    type: Literal["letta"] = "letta"
    file_id: str
    media_type: str | None = None
    data: str | None = None
    detail: str | None = None


def tag_by_shape(what: str, shapes: Sequence[tuple[str, frozenset[str]]], hint: str = "") -> Discriminator:
    """Return a discriminator that reads `type`, or else takes the first of `shapes` whose keys are all present.

    `shapes` holds (tag, keys).  A value without a known tag or shape is one error that names the tags, and
    ends with the `hint`.
    """
    tags = frozenset(tag for tag, _ in shapes)

    def tag_of(value: Any) -> str | None:
        if not isinstance(value, dict):
            return getattr(value, "type", None)
        tag = value.get("type")
        if tag is None:
            return next((tag for tag, keys in shapes if keys <= value.keys()), None)
        return tag if isinstance(tag, str) and tag in tags else None

    return _discriminator(what, tags, tag_of, hint)


def _discriminator(what: str, tags: frozenset[str], tag_of: Callable[[Any], str | None], hint: str) -> Discriminator:
    return Discriminator(
        tag_of,
        custom_error_type=f"unknown_{what.replace(' ', '_')}",
        custom_error_message=f"not a known {what}: give a `type` of {', '.join(sorted(tags))}, and that type's fields"
        + (f"; {hint}" if hint else ""),
    )


_IMAGE_SOURCE_SHAPES = (
    # First, because a stored image may also have `data` and `media_type`.
    ("letta", frozenset({"file_id"})),
    ("base64", frozenset({"data", "media_type"})),
    ("url", frozenset({"url"})),
)

ImageSource = Annotated[
    Annotated[UrlImage, Tag("url")] | Annotated[Base64Image, Tag("base64")] | Annotated[LettaImage, Tag("letta")],
    tag_by_shape("image source", _IMAGE_SOURCE_SHAPES),
]
"""Where an image comes from."""


class TextContent(WireModel):
    """Text."""

    type: Literal["text"] = "text"
    text: str
    signature: str | None = None


class ImageContent(WireModel):
    """An image."""

    type: Literal["image"] = "image"
    source: ImageSource


class ToolCallContent(WireModel):
    """A tool call as a content part.  `input` holds the parsed arguments."""

    type: Literal["tool_call"] = "tool_call"
    id: str
    name: str
    input: dict[str, Any]
    signature: str | None = None


class ToolReturnContent(WireModel):
    """A tool return as a content part."""

    type: Literal["tool_return"] = "tool_return"
    tool_call_id: str
    content: str
    is_error: bool


class ReasoningContent(WireModel):
    """A model's reasoning.  `is_native` is False if it was an argument of a tool call."""

    type: Literal["reasoning"] = "reasoning"
    is_native: bool
    reasoning: str
    signature: str | None = None


class RedactedReasoningContent(WireModel):
    """Reasoning that the provider returns only in encrypted form."""

    type: Literal["redacted_reasoning"] = "redacted_reasoning"
    data: str


class OmittedReasoningContent(WireModel):
    """Reasoning that took place but that the provider does not return."""

    model_config = ConfigDict(json_schema_extra=any_present("type", "signature"))

    type: Literal["omitted_reasoning"] = "omitted_reasoning"
    signature: str | None = None


class SummaryPart(WireModel):
    """One paragraph of summarised reasoning."""

    index: Integer
    text: str


class SummarizedReasoningContent(WireModel):
    """Reasoning in the style of OpenAI's Responses API."""

    type: Literal["summarized_reasoning"] = "summarized_reasoning"
    id: str
    summary: list[SummaryPart]
    encrypted_content: str | None = None


_PART_SHAPES = (
    ("tool_call", frozenset({"id", "name", "input"})),
    ("tool_return", frozenset({"tool_call_id", "content"})),
    ("summarized_reasoning", frozenset({"summary"})),
    ("reasoning", frozenset({"reasoning"})),
    ("text", frozenset({"text"})),
    ("image", frozenset({"source"})),
    ("redacted_reasoning", frozenset({"data"})),
    # Last, because text and reasoning may also have a signature.
    ("omitted_reasoning", frozenset({"signature"})),
)

ContentPart = Annotated[
    Annotated[TextContent, Tag("text")]
    | Annotated[ImageContent, Tag("image")]
    | Annotated[ToolCallContent, Tag("tool_call")]
    | Annotated[ToolReturnContent, Tag("tool_return")]
    | Annotated[ReasoningContent, Tag("reasoning")]
    | Annotated[RedactedReasoningContent, Tag("redacted_reasoning")]
    | Annotated[OmittedReasoningContent, Tag("omitted_reasoning")]
    | Annotated[SummarizedReasoningContent, Tag("summarized_reasoning")],
    tag_by_shape(
        "content part",
        _PART_SHAPES,
        'OpenAI\'s image_url is {"type": "image", "source": {"type": "url", "url": "https://..."}}',
    ),
]
"""One part of a message."""

Content = str | list[ContentPart]
"""The content of a message: text, or parts."""
