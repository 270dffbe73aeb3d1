"""Pairs of an image and a text, from a dataset's record, by the keys that common trainers give texts."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from minigpt4.documents import read_yaml
from minigpt4.errors import UserError
from minigpt4.files import TooLargeError, decode_text
from minigpt4.images import LARGEST_IMAGE
from minigpt4.prompts.templates import Message

#: The names of fields. Those of a text are looked for in their order, unless the source names its key.
FIELDS = read_yaml(Path(__file__).with_name("fields.yaml"))
CAPTION_KEYS, QUESTION_KEYS, TURN_KEYS = (tuple(FIELDS[kind]) for kind in ("captions", "questions", "turns"))
SPLIT_KEY = "split"  # the column that may name a row's split
TEXT_KEYS = {*CAPTION_KEYS, *QUESTION_KEYS, *TURN_KEYS, "completion", "json", SPLIT_KEY}
NO_IMAGE, TOO_LARGE, TOO_LONG, BROKEN_LINE = "no image", "image too large", "text too long", "broken line"
NO_TEXT = ("no caption", "no description")  # by stage
#: Bytes of a record's text (a line, a JSON beside an image), and characters of what is learnt of it.
LARGEST_RECORD, LONGEST_TEXT = 1_000_000, 100_000
#: Endings of the files beside an image that may hold its text; the first that does is read.
TEXT_ENDINGS = ("json", "txt", "caption")
_MARK = re.compile(r"[ \t]*<image>[ \t]*\n?")  # where other trainers put the image
_DAMAGED = re.compile("[\0\ufffd\ud800-\udfff]")


class Cause(str):
    """Why a record gives no pair. Causes are counted by their text; `detail` names the place and what is wrong."""

    detail: str

    def __new__(cls, cause: str, detail: object = "") -> "Cause":
        self = super().__new__(cls, cause)
        self.detail = str(detail)
        return self

    def __reduce__(self) -> "tuple[type[Cause], tuple[str, str]]":
        return Cause, (str(self), self.detail)


@dataclass(frozen=True)
class Pair:
    """An image and its text; in stage 2 perhaps the question that it answers, or a conversation that it ends."""

    name: str  # where it came from
    image: bytes  # of its file
    text: str
    instruction: str | None = None
    messages: tuple[Message, ...] = ()  # user and assistant in turns, the image in the first question


@dataclass(frozen=True)
class Record:
    """An image's bytes, or why there are none, and its `lowered` fields, or the `trouble` with its texts."""

    name: str
    image: bytes | Cause
    fields: Mapping[str, Any]
    trouble: str = ""


def parse_record(data: bytes, name: str) -> dict[str, Any] | Cause:
    """The JSON object in `data`, or why there is none."""
    if len(data) > LARGEST_RECORD:
        return Cause(TOO_LONG, f"{name}: more than {LARGEST_RECORD:,} bytes")
    try:
        record = json.loads(decode_text(data, name))
    except UserError as error:
        return Cause(BROKEN_LINE, error)
    except (ValueError, RecursionError) as error:  # not JSON, a number of thousands of digits, or nested as deep
        return Cause(BROKEN_LINE, f"{name}: broken JSON ({str(error).partition(';')[0]})")
    return record if isinstance(record, dict) else Cause(BROKEN_LINE, f"{name}: a JSON object was expected")


def read_beside(texts: Mapping[str, Callable[[], bytes]], name: str, key: str | None) -> tuple[dict[str, Any], str]:
    """The fields that stand beside an image, of the first of TEXT_ENDINGS with a text, and what is wrong with them."""
    record: dict[str, Any] = {}
    trouble = ""
    for ending in TEXT_ENDINGS:
        if ending not in texts or _texts(record, key) or _turns(record) is not None:
            continue
        try:
            if ending != "json":
                record["caption"] = decode_text(texts[ending](), f"{name}.{ending}")
            elif isinstance(parsed := parse_record(texts[ending](), f"{name}.json"), Cause):
                trouble = parsed.detail
            else:
                record = lowered(parsed)
        except TooLargeError:
            raise
        except UserError as error:
            trouble = str(error)
    return record, trouble


def lowered(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with each key in lower case too; those of the JSON that the hub keeps for a tar's record beside."""
    inner = record.get("json")
    record = {**record, **inner} if isinstance(inner, Mapping) else record
    return {**{key.lower(): record[key] for key in reversed(list(record))}, **record}


def split_of(name: object) -> str:
    """Which split a name speaks of: train, validation, test, or none ("")."""
    words = re.findall("[a-z]+", str(name).lower())
    return next((FIELDS["splits"][word] for word in words if word in FIELDS["splits"]), "")


def make_pairs(record: Record, stage: int, key: str | None = None) -> list[Pair] | list[Cause]:
    """The pairs of a record, one for each of several captions (under `key`), or why there are none."""
    name, image, fields = record.name, record.image, record.fields
    if isinstance(image, Cause):
        return [image]
    if not image:
        return [Cause(NO_IMAGE, f"{name}: its image is empty")]
    if len(image) > LARGEST_IMAGE:
        return [Cause(TOO_LARGE, f"{name}: more than {LARGEST_IMAGE:,} bytes")]
    texts, turns = _texts(fields, key), _turns(fields)
    if turns is not None and (stage == 2 or not texts):
        messages = _conversation(turns, name)
        if isinstance(messages, Cause):
            return [messages]
        if cause := unusable_text(name, *(message.text for message in messages)):
            return [cause]
        if stage == 2:
            return [Pair(name, image, messages[-1].text, messages=messages)]
        texts = [message.text for message in messages[1:] if len(messages) == 2]  # a caption, in LLaVA's form
    if not texts:
        where = repr(key) if key else ", ".join(CAPTION_KEYS)
        there = ", ".join(sorted({at.lower() for at in islice(fields, 20)})) or "nothing"
        return [Cause(NO_TEXT[stage - 1], record.trouble or f"{name}: no text under {where}; there is: {there}")]
    asked = next((fields[at] for at in QUESTION_KEYS if at != (key or "").lower() and _is_text(fields.get(at))), "")
    asked = _MARK.sub("", asked).strip() if stage == 2 else ""
    if cause := unusable_text(name, *texts, asked):
        return [cause]
    if stage == 1:
        return [Pair(name, image, " ".join(text.split())) for text in texts]
    return [Pair(name, image, _clean(text), _clean(asked) or None) for text in texts]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip(" \t\r\n#"))  # nothing but signs of a heading is no text


def _clean(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def _texts(record: Mapping[str, Any], key: str | None) -> list[str]:
    """The texts under the first key that has one."""
    for at in (key, key.lower()) if key else CAPTION_KEYS:
        value = record.get(at)
        texts = [
            str(text)
            for each in (value if isinstance(value, list) else [value])
            if _is_text(text := each.get("raw") if isinstance(each, Mapping) else each)  # `raw` in Karpathy's files
        ]
        if texts:
            return list(dict.fromkeys(texts))
    return []


def unusable_text(name: str, *texts: str) -> Cause | None:
    """Why texts cannot be learnt from: too long together, or with signs of a wrong encoding."""
    if sum(map(len, texts)) > LONGEST_TEXT:
        return Cause(TOO_LONG, f"{name}: more than {LONGEST_TEXT:,} characters")
    for text in texts:
        if found := _DAMAGED.search(text):
            around = " ".join(text[max(0, found.start() - 12) : found.start() + 12].split())
            return Cause("damaged text", f"{name}: {around!r} was read in a wrong encoding; make it anew as UTF-8")
    return None


def _turns(record: Mapping[str, Any]) -> Any:
    for key in TURN_KEYS:
        value = record.get(key)
        if value is not None and (key != "texts" or (isinstance(value, list) and not all(map(_is_text, value)))):
            return value
    prompt, completion = record.get("prompt"), record.get("completion")
    return [*prompt, *completion] if isinstance(prompt, list) and isinstance(completion, list) else None


def _conversation(turns: Any, name: str) -> tuple[Message, ...] | Cause:
    """The messages of a conversation about one image, or why a model cannot learn from it."""
    said = [part for turn in (turns if isinstance(turns, list) else ()) for part in _parts(turn)]
    marks = sum(len(_MARK.findall(text)) for _, text in said)
    if marks > 1:
        return Cause("several images", f"{name}: a conversation about {marks} images; a pair has one")
    roles, texts = [role for role, _ in said], [_clean(_MARK.sub("", text)) for _, text in said]
    first = int(roles[:1] == ["system"])
    if len(roles) < first + 2 or roles[first:] != ["user", "assistant"] * ((len(roles) - first) // 2) or not all(texts):
        there = ", ".join(roles[:8]) or repr(turns)[:80]
        return Cause("no conversation", f"{name}: user and assistant in turns were expected, there is: {there}")
    return tuple(
        Message(role, text, images=int(i == first))  # type: ignore[arg-type]
        for i, (role, text) in enumerate(zip(roles, texts, strict=True))
    )


def _parts(turn: Any) -> list[tuple[str, str]]:
    """(role, text) of a turn; of a question and its answer in the_cauldron's form."""
    if not isinstance(turn, Mapping):
        return [(type(turn).__name__, "")]
    if "user" in turn and "assistant" in turn:
        return [(role, str(turn[role] or "")) for role in ("user", "assistant")]
    role, content = str(turn.get("role") or turn.get("from")), turn.get("content") or turn.get("value")
    if isinstance(content, list):  # texts, and the place of the image
        content = "\n".join(str(part["text"]) for part in content if isinstance(part, Mapping) and part.get("text"))
    return [(FIELDS["roles"].get(role, role), content if isinstance(content, str) else "")]
