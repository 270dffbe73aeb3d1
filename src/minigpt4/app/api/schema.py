"""Requests of the HTTP API, OpenAI's chat completions. What this model does not do is refused; null asks nothing."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

TEXT = 200_000  # characters in a conversation: more than any LLM here reads, and tokenised in a moment

Text = Annotated[str, Field(max_length=TEXT)]
T = TypeVar("T")
#: The first wrong item ends its validation: each error takes a kilobyte.
Items = Annotated[list[T], Field(fail_fast=True)]
_BY_TYPE = Discriminator(lambda value: "a list" if isinstance(value, list) else "a text")  # else both would be tried
Content = Annotated[Annotated[Text, Tag("a text")] | Annotated[Items[T], Tag("a list")], _BY_TYPE]
Stop = Annotated[str, Field(min_length=1, max_length=200)]
Stops = Annotated[Annotated[Stop, Tag("a text")] | Annotated[Items[Stop], Field(max_length=4), Tag("a list")], _BY_TYPE]
Nothing = Annotated[list[Any], Field(max_length=0)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", json_schema_extra={"additionalProperties": {"type": "null"}})

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, fields: Any) -> Any:
        return {key: v for key, v in fields.items() if v is not None} if isinstance(fields, dict) else fields


class ImageUrl(_Request):
    url: str = Field(description="data:image/...;base64,..., or cid:NAME for the file NAME of a multipart request.")
    detail: str | None = Field(None, max_length=100, description="Accepted; all images are read alike.")


class TextPart(_Request):
    type: Literal["text"]
    text: Text
    cache_control: Any = None


class ImagePart(_Request):
    """Other forms are taken too: a text as `image_url`, and `input_image` and `image` parts as other APIs have them."""

    type: Literal["image_url"]
    image_url: ImageUrl
    cache_control: Any = None


#: Where a part may hold its image, and what may be said of it, which the image itself says too.
_IMAGE, _ABOUT = ("image_url", "image", "url", "base64", "data"), ("media_type", "mime_type", "mediaType", "mimeType")


def _as_openais(part: Any) -> Any:
    """The parts of OpenAI's newer API, of Anthropic's, of transformers and of Vercel's SDK as this API has them."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("input_text", "output_text"):
        return part | {"type": "text"}
    if kind not in ("image_url", "input_image", "image"):
        return part
    source = part.get("source") or {}
    fields = {k: v for k, v in part.items() if k not in ("source", *_ABOUT)} | (
        {k: v for k, v in source.items() if k not in _ABOUT} if isinstance(source, dict) else {"source": source}
    )
    place = next((name for name in _IMAGE if fields.get(name)), "image_url")
    image = fields.pop(place, None)
    if isinstance(image, str):
        encoded = place in ("base64", "data") and not image.startswith("data:")
        image = {"url": f"data:image;base64,{image}" if encoded else image}
    if isinstance(image, dict) and "detail" in fields:
        image = {"detail": fields.pop("detail"), **image}
    return fields | {"type": "image_url", "image_url": image}


Part = Annotated[Annotated[TextPart | ImagePart, Field(discriminator="type")], BeforeValidator(_as_openais)]
Words = Annotated[TextPart, BeforeValidator(_as_openais)]


class _Message(_Request):
    name: str | None = None


class SystemMessage(_Message):
    role: Literal["system", "developer"]
    content: Content[Words]


class UserMessage(_Message):
    role: Literal["user"]
    content: Content[Part]


class AssistantMessage(_Message):
    role: Literal["assistant"]
    content: Content[Words] = ""
    annotations: Nothing | None = None
    tool_calls: Nothing | None = None


InMessage = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class StreamOptions(_Request):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ResponseFormat(_Request):
    type: Literal["text"]


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
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, str] | None = Field(None, max_length=16)
    store: Literal[False] | None = None
    frequency_penalty: Annotated[Number, Field(ge=0, le=0)] | None = Field(None, description="0 only.")
    presence_penalty: Annotated[Number, Field(ge=0, le=0)] | None = Field(None, description="0 only.")
    response_format: ResponseFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    service_tier: Literal["auto", "default"] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    function_call: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none"] | None = None
    verbosity: Literal["medium"] | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: needs logprobs=true")
        if self.stream_options and self.stream_options.include_usage and not self.stream:
            raise ValueError("stream_options: needs stream=true")
        return self
