"""Tokenizers' chat templates (Jinja): an LLM's own as a `Template`, and a `Template` for transformers and vLLM."""

import contextlib
import json
from collections.abc import Collection
from dataclasses import replace
from importlib.resources import files
from typing import Any

from transformers import PreTrainedTokenizerBase

from minigpt4.errors import UserError
from minigpt4.prompts.encode import CUT, check_template, control_tokens
from minigpt4.prompts.templates import IMAGE_MARK, IMAGE_TOKEN, TEMPLATES, Message, Template, get_template

#: The chat in Jinja: up to a user's turn, its images before the text or in their places, and what follows.
_PARTS = files("minigpt4.prompts").joinpath("chat.jinja").read_text(encoding="utf-8").split("{#- ---- -#}\n")
_SYSTEM, _FIRST, _ANSWER, _SECOND = "qzsystemq", "qzfirstq", "qzanswerq", "qzsecondq"  # no template contains them


def choose_template(template: str | Template | None, tokenizer: PreTrainedTokenizerBase, llm: str) -> Template:
    """The given template, else the LLM's own, else `vicuna_v0`. Raises UserError if its tokenizer cannot write it."""
    if template is not None:
        chosen = get_template(template)
    else:
        chosen = own_template(tokenizer, llm) if tokenizer.chat_template else TEMPLATES["vicuna_v0"]
    check_template(tokenizer, chosen, llm)
    return chosen


def own_template(tokenizer: PreTrainedTokenizerBase, llm: str) -> Template:
    """The LLM's own chat format, with images wrapped as in the released ones. Raises UserError if it has no turns."""
    talk = [Message("user", _FIRST), Message("assistant", _ANSWER), Message("user", _SECOND)]
    try:
        one, closed, two = (_render(tokenizer, talk[: i + 1]) for i in range(3))
        opening, before_answer = one.split(_FIRST)
        after_answer = closed.split(_ANSWER)[1]
        # Some templates write a space before an answer, but leave it to the LLM when it is to answer.
        heading = two.split(_FIRST)[1].split(_ANSWER)[0]
        if heading.rstrip() == before_answer:
            two = two.replace(heading + _ANSWER, before_answer + _ANSWER)
        before_question = two.split(_ANSWER)[1].split(_SECOND)[0].removeprefix(after_answer)
        if not opening.endswith(before_question):
            raise ValueError("its first turn is written otherwise than the next")
        # The first special token after an answer stops it, else the text there, else EOS.
        ends = [token for token in control_tokens(tokenizer) if token in after_answer]
        template = Template(
            name="own", system=opening.removesuffix(before_question), system_end="",
            user=before_question + "{images}{text}", assistant=before_answer + "{text}" + after_answer,
            image=TEMPLATES["vicuna_v0"].image,
            stop=min(ends, key=after_answer.index) if ends else after_answer.strip() or str(tokenizer.eos_token),
        )  # fmt: skip
        if template.prompt(talk[:1]) != one or template.prompt(talk) != two:
            raise ValueError("its turns are not written one like the other")
    except Exception as error:  # templates are programs and may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        told = f"the chat template of its tokenizer cannot be used ({reason})"
        raise UserError(f"{llm}: {told}; give one of {', '.join(TEMPLATES)} as template") from None
    talk = [Message("system", _SYSTEM), talk[0]]
    with contextlib.suppress(Exception):  # some refuse a system message
        told = _render(tokenizer, talk)
        turn = told.removesuffix(one.removeprefix(template.system)).replace(_SYSTEM, "{text}")
        if (whole := replace(template, system_turn=turn)).prompt(talk) == told:
            return whole
    return template


def _render(tokenizer: Any, messages: list[Message]) -> str:
    """What the tokenizer's template makes of these messages, without BOS, which `encode` puts first."""
    chat = [{"role": message.role, "content": message.text} for message in messages]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=chat[-1]["role"] == "user")
    # An export's template marks pieces.
    return str(rendered).replace(CUT, "").removeprefix(tokenizer.bos_token or "")


def end_at_stop(llm: Any, tokenizer: PreTrainedTokenizerBase, template: Template) -> None:
    """Add to the LLM's end tokens its tokenizer's EOS and, if it is a special token, the template's stop string."""
    ends, stops = eos_tokens(llm), {tokenizer.eos_token, template.stop} & control_tokens(tokenizer)
    if more := {tokenizer.convert_tokens_to_ids(stop) for stop in stops}.difference(ends):
        llm.generation_config.eos_token_id = [*ends, *sorted(more)]


def eos_tokens(llm: Any) -> list[int]:
    """The end tokens in an LLM's generation config."""
    own = llm.generation_config.eos_token_id
    return [own] if isinstance(own, int) else list(own or [])


def jinja_template(template: Template, bos_token: str | None, control: Collection[str] = (), cut: str = "") -> str:
    """A chat template that renders messages in transformers' form exactly as `Template.prompt` does.

    Images are `{"type": "image"}` parts; each becomes one `<image>` in its place. As in `encode.plain_message`, a space
    replaces `control` tokens, `<image>`, the stop string and (except in system texts) the template's tags in what users
    write. `cut` stands around each earlier answer, which `encode.encode_chat` tokenises on its own, and after a text
    that ends in the character with which the template continues (a space if the tokenizer cannot cut).
    """
    before, between, after = template.user_parts
    before_system, _, after_system = template.system_turn.partition("{text}")
    image = template.image.rstrip(" ").replace(IMAGE_MARK, IMAGE_TOKEN)
    gap = template.image[len(template.image.rstrip(" ")) :]
    values = {
        "bos": bos_token or "", "stop": template.stop, "system": template.system, "system_end": template.system_end,
        "before_system": before_system, "after_system": after_system,
        "before": before, "between": between, "after": after, "image": image, "gap": gap,
        "before_answer": template.before_answer, "after_answer": template.after_answer, "cut": cut,
        "seam": cut or " ", "follows": (after + template.before_answer)[:1],
        "control": sorted({*control, IMAGE_TOKEN, template.stop, CUT} - {""}, key=lambda text: (-len(text), text)),
        "tags": template.tags,
    }  # fmt: skip
    settings = "".join(f"{{%- set {key} = {json.dumps(value)} -%}}\n" for key, value in values.items())
    to_user, images_first, images_in_place, after_user = _PARTS
    return settings + to_user + (images_first if between else images_in_place) + after_user
