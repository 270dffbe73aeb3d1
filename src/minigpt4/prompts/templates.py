"""Chat formats: how a conversation about images becomes the very text that an LLM was trained to continue."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from minigpt4.documents import read_yaml
from minigpt4.errors import UserError

IMAGE_MARK = "<ImageHere>"  # in a text
IMAGE_TOKEN = "<image>"  # its token in a tokenizer


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. Its images stand before the text, or where it has an `<ImageHere>` for each."""

    role: Literal["system", "user", "assistant"]
    text: str
    images: int = 0


@dataclass(frozen=True)
class Template:
    """One chat format."""

    name: str
    system: str  # opens every conversation
    system_end: str  # follows it
    user: str  # a turn, with {images} and {text}
    assistant: str  # a turn, with {text}
    image: str  # wraps an image
    stop: str  # ends an answer
    system_turn: str = "{text}"  # takes the place of `system` where a conversation has a system message

    def prompt(self, messages: Sequence[Message]) -> str:
        """Text up to the next answer; a first system message replaces `system`. Raises UserError for wrong turns."""
        system, turns = self.system, list(messages)
        if turns and turns[0].role == "system":
            system = self.system_turn.replace("{text}", without_marks(turns.pop(0).text))
        expected = ["user", "assistant"] * (len(turns) // 2) + ["user"]
        if [message.role for message in turns] != expected:
            got = ", ".join(message.role for message in messages) or "no messages"
            raise UserError(f"a conversation takes turns from user to assistant and ends with the user; got {got}")
        return system + self.system_end + "".join(self._turn(message) for message in turns) + self.before_answer

    def continuation(self, message: Message) -> str:
        """The text from an answer (without its stop string) to the next answer, which continues `prompt`'s text."""
        return self.after_answer + self._turn(message) + self.before_answer

    @property
    def tags(self) -> tuple[str, ...]:
        """Tags in the format, like `</Img>` or `[/INST]`, which messages may not contain."""
        written = self.user + self.assistant + self.image.replace(IMAGE_MARK, "")
        return tuple(dict.fromkeys(re.findall(r"</?\w+>|\[/?\w+\]|<\|\w+\|>", written)))

    @property
    def user_parts(self) -> tuple[str, str, str]:
        """A user's turn: before its images, between images and text, after the text."""
        before, _, rest = self.user.partition("{images}")
        between, _, after = rest.partition("{text}")
        return before, between, after

    @property
    def before_answer(self) -> str:
        return self.assistant.partition("{text}")[0]

    @property
    def after_answer(self) -> str:
        return self.assistant.partition("{text}")[2]

    def _turn(self, message: Message) -> str:
        if message.role != "user":
            return self.before_answer + without_marks(message.text) + self.after_answer
        before, between, after = self.user_parts
        text = message.text if message.images else without_marks(message.text)
        marks = text.count(IMAGE_MARK)
        if marks == 0:
            return before + self.image * message.images + between + text + after
        if marks != message.images:
            told = f"the text marks {marks} places with {IMAGE_MARK} but comes with {message.images} images"
            raise UserError(f"{told}; give one image for each mark, or no marks")
        return before + between + text.replace(IMAGE_MARK, self.image.rstrip(" ")) + after


#: Words by which a question speaks of other images than the newest.
_OTHERS = re.compile(
    r"(?i)\b(?:compar(?:e|es|ed|ing|ison)|differences?|in common|both of (?:them|these)"
    r"|(?:both|two|three|these|those|all|the) (?:the |of the )?(?:image|picture|photo|photograph|drawing)s"
    r"|(?:first|other|previous|earlier) (?:image|picture|photo|photograph|drawing|one))\b"
)


def what_is_read(messages: Sequence[Message]) -> list[Message]:
    """The messages of a chat that the LLM reads: the system message, and from the last turn on that brought an image.

    Models that learnt from one image at a time, as the paper's do, tell the first that they see. A question that
    speaks of other images ("compare", "the first picture") where only one would be read has everything read again.
    """
    first = start = int(bool(messages) and messages[0].role == "system")
    shown = seen = 0  # images so far, and those of them from `start` on
    for i, message in enumerate(messages):
        if message.images and shown:
            start, seen = i, 0
        shown, seen = shown + message.images, seen + message.images
        if seen == 1 and message.role == "user" and _OTHERS.search(message.text):
            start, seen = first, shown
    return [*messages[:first], *messages[start:]]


def without_marks(text: str) -> str:
    """`text` with a space in place of each `<ImageHere>` (removing one could join two halves of another)."""
    return text.replace(IMAGE_MARK, " ")


TEMPLATES = {
    name: Template(name=name, **strings)
    for name, strings in read_yaml(Path(__file__).with_name("templates.yaml")).items()
}


def get_template(template: str | Template) -> Template:
    """The template of that name, or the given one. Raises UserError if there is no such name."""
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

    `asked` is the instruction, or the conversation up to the question. Templates that stop at `###` (and none) give the
    paper's form, whose space before `###Assistant` is not in chat; others give their own without the system text.
    """
    paper = template is None or template.stop == "###"
    if isinstance(asked, str) and paper:
        return f"###Human: <Img>{IMAGE_MARK}</Img> {asked} ###Assistant: ", description + "###"
    form = TEMPLATES["pocket"] if template is None else replace(template, system="", system_end="###" if paper else "")
    messages = [Message("user", asked, images=1)] if isinstance(asked, str) else asked
    return form.prompt(messages), description + form.stop
