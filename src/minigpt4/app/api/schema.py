"""Requests of the HTTP API: OpenAI's chat completions, as far as this model does them.

Parameters that are not supported (tools, audio, ...) are refused by name, never ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

#: Characters in a conversation: more than any LLM here reads, and tokenised in a moment.
TEXT = 200_000

Text = Annotated[str, Field(max_length=TEXT)]
T = TypeVar("T")
#: The first wrong item ends its validation: each error takes a kilobyte.
Items = Annotated[list[T], Field(fail_fast=True)]
_BY_TYPE = Discriminator(lambda value: "list" if isinstance(value, list) else "text")  # else both would be tried
Content = Annotated[Annotated[Text, Tag("text")] | Annotated[Items[T], Tag("list")], _BY_TYPE]
Stop = Annotated[str, Field(min_length=1, max_length=200)]
Stops = Annotated[Annotated[Stop, Tag("text")] | Annotated[Items[Stop], Field(max_length=4), Tag("list")], _BY_TYPE]
Number = Annotated[float, Field(allow_inf_nan=False)]


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class ImageUrl(_Request):
    url: str = Field(description="data:image/...;base64,..., or cid:NAME for the file NAME of a multipart request.")
    detail: Literal["auto", "low", "high"] | None = Field(None, description="Accepted; all images are read alike.")


class TextPart(_Request):
    type: Literal["text"]
    text: Text


class ImagePart(_Request):
    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class _Message(_Request):
    name: str | None = None


class SystemMessage(_Message):
    role: Literal["system", "developer"]
    content: Content[TextPart]


class UserMessage(_Message):
    role: Literal["user"]
    content: Content[Part]


class AssistantMessage(_Message):
    role: Literal["assistant"]
    content: Content[TextPart]
    refusal: None = None
    annotations: list[Any] | None = Field(None, max_length=0)
    audio: None = None
    function_call: None = None
    tool_calls: None = None


InMessage = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class StreamOptions(_Request):
    include_usage: bool | None = None


class ChatRequest(_Request):
    """A conversation that ends with the user's question, and how it is to be answered."""

    model: str = Field(max_length=1000)
    messages: Items[InMessage] = Field(min_length=1, max_length=1000)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1, le=1_000_000, description="300 unless given.")
    max_completion_tokens: int | None = Field(None, ge=1, le=1_000_000, description="The newer name of max_tokens.")
    temperature: Number | None = Field(None, ge=0, le=2, description="0 takes the likeliest token. 1 unless given.")
    top_p: Number | None = Field(None, gt=0, le=1, description="0.9 unless given, as in the released demo.")
    repetition_penalty: Number | None = Field(
        None, ge=0.1, le=10, description="Not OpenAI's. 1.05 at a temperature above 0, else 1."
    )
    n: int | None = Field(None, ge=1, le=16)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stops | None = Field(None, description="A string or up to 4, each of which ends the answer before it.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    # What many clients send though it changes nothing here.
    user: str | None = None
    metadata: dict[str, str] | None = Field(None, max_length=16)
    store: Literal[False] | None = None
    frequency_penalty: Annotated[Number, Field(ge=0, le=0)] | None = Field(None, description="0 only.")
    presence_penalty: Annotated[Number, Field(ge=0, le=0)] | None = Field(None, description="0 only.")

    @model_validator(mode="after")
    def _fits_together(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: needs logprobs=true")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: needs stream=true")
        return self
