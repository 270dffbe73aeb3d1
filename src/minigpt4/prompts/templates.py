"""Chat formats: how a conversation about images becomes the text that an LLM was taught to continue.

Knows nothing about tokenizers or tensors. The place of an image in a text is the mark `<ImageHere>`; `encode.py`
turns it into placeholder tokens. Exact strings matter here: they are the protocol of the released checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from minigpt4.errors import UserError

IMAGE_MARK = "<ImageHere>"
IMAGE_TOKEN = "<image>"  # its token in a tokenizer


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    `images` counts the images that belong to it. They stand before the text, unless the text says where with one
    `<ImageHere>` for each of them.
    """

    role: Literal["system", "user", "assistant"]
    text: str
    images: int = 0


@dataclass(frozen=True)
class Template:
    """One chat format.

    `user` and `assistant` are the turns with `{text}` in them (`{images}` too in the user's), `system` opens every
    conversation and is followed by `system_end`, `image` is how one image is wrapped, and `stop` is the string that
    ends an answer.
    """

    name: str
    system: str
    system_end: str
    user: str
    assistant: str
    image: str
    stop: str

    def prompt(self, messages: Sequence[Message]) -> str:
        """The text up to the place where the next answer starts; images are marked `<ImageHere>`.

        The first message may be a system message, which replaces the template's own. After that user and assistant
        take turns, and the user has the last word.
        """
        system, turns = self.system, list(messages)
        if turns and turns[0].role == "system":
            system = without_marks(turns.pop(0).text)
        expected = ["user", "assistant"] * (len(turns) // 2) + ["user"]
        if [message.role for message in turns] != expected:
            raise UserError(
                f"a conversation takes turns from user to assistant and ends with the user; "
                f"got {', '.join(message.role for message in messages) or 'no messages'}"
            )
        return system + self.system_end + "".join(self._turn(message) for message in turns) + self.before_answer

    def continuation(self, message: Message) -> str:
        """What follows an answer (given without its stop string) when the user speaks again.

        `prompt(first) + answer + continuation(second)` equals `prompt([first, answer, second])`, so a chat that keeps
        its KV cache feeds only this.
        """
        return self.after_answer + self._turn(message) + self.before_answer

    @property
    def tags(self) -> tuple[str, ...]:
        """What in the format looks like a tag, such as `</Img>` or `[/INST]`: words that only the format may write."""
        written = self.user + self.assistant + self.image.replace(IMAGE_MARK, "")
        return tuple(dict.fromkeys(re.findall(r"</?\w+>|\[/?\w+\]|<\|\w+\|>", written)))

    @property
    def user_parts(self) -> tuple[str, str, str]:
        """What stands before the images of a user's turn, between them and the text, and after the text."""
        before, _, rest = self.user.partition("{images}")
        between, _, after = rest.partition("{text}")
        return before, between, after

    @property
    def before_answer(self) -> str:
        """What an answer follows on."""
        return self.assistant.partition("{text}")[0]

    @property
    def after_answer(self) -> str:
        """What closes an answer."""
        return self.assistant.partition("{text}")[2]

    def _turn(self, message: Message) -> str:
        if message.role != "user":
            return self.before_answer + without_marks(message.text) + self.after_answer
        images, text = self._place_images(message)
        before, between, after = self.user_parts
        return before + images + between + text + after

    def _place_images(self, message: Message) -> tuple[str, str]:
        """(what stands before the text, the text with its own marks wrapped)."""
        if message.images == 0:
            return "", without_marks(message.text)
        pieces = message.text.split(IMAGE_MARK)
        if len(pieces) == 1:
            return self.image * message.images, message.text
        if len(pieces) - 1 != message.images:
            raise UserError(
                f"the text marks {len(pieces) - 1} places with {IMAGE_MARK} but comes with {message.images} images; "
                "give one image for each mark, or no marks"
            )
        return "", self.image.rstrip(" ").join(pieces)


def without_marks(text: str) -> str:
    """`text` with a space for each `<ImageHere>` (nothing in its place could bring two halves of another together)."""
    return text.replace(IMAGE_MARK, " ")


_RELEASED_SYSTEM = (
    "Give the following image: <Img>ImageContent</Img>. "
    "You will be able to see the image once I provide it to you. Please answer my questions."
)

TEMPLATES: dict[str, Template] = {
    template.name: template
    for template in (
        Template(
            name="vicuna_v0",
            system=_RELEASED_SYSTEM,
            system_end="###",
            user="Human: {images}{text}###",
            assistant="Assistant: {text}###",
            image=f"<Img>{IMAGE_MARK}</Img> ",
            stop="###",
        ),
        Template(
            name="llama2",
            system=_RELEASED_SYSTEM,
            system_end="",
            user="<s>[INST] {images}{text}",
            assistant=" [/INST] {text}",
            image=f"<Img>{IMAGE_MARK}</Img> ",
            stop="</s>",
        ),
        Template(
            name="pocket",
            system="",
            system_end="###",
            user="Human: {images}{text}###",
            assistant="Assistant: {text}###",
            image=f"<Img>{IMAGE_MARK}</Img> ",
            stop="###",
        ),
        Template(
            name="blip2",
            system="",
            system_end="",
            user="{images}Question: {text} ",
            assistant="Answer: {text}\n",
            image=IMAGE_MARK,
            stop="\n",
        ),
    )
}


def get_template(template: str | Template) -> Template:
    """The template of that name, or the one given. Raises UserError for a name that does not exist."""
    if isinstance(template, Template):
        return template
    if template not in TEMPLATES:
        raise UserError(f"there is no chat template {template!r}; choose one of {', '.join(TEMPLATES)}")
    return TEMPLATES[template]


def stage1_text(caption: str) -> tuple[str, str]:
    """(prompt, target) of stage 1: the bare image, then its caption and the end symbol (paper, section 3.1)."""
    return IMAGE_MARK, caption + "\n"


def stage2_text(asked: str | Sequence[Message], description: str, template: Template | None = None) -> tuple[str, str]:
    """(prompt, target) of stage 2: a conversation with an instruction, then the description (paper, section 3.3).

    `asked` is the instruction, or the conversation up to the question. The paper's form is that of templates that stop
    at `###`, and of none; other templates give their own, without their system text. The space before `###Assistant`
    is the released training format; in chat there is none.
    """
    paper = template is None or template.stop == "###"
    if isinstance(asked, str) and paper:
        return f"###Human: <Img>{IMAGE_MARK}</Img> {asked} ###Assistant: ", description + "###"
    form = TEMPLATES["pocket"] if template is None else replace(template, system="", system_end="###" if paper else "")
    messages = [Message("user", asked, images=1)] if isinstance(asked, str) else asked
    return form.prompt(messages), description + form.stop
