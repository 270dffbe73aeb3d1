"""An LLM's own chat format, as its tokenizer's chat template writes it, in the form of a `Template`.

Knows nothing about models: it has the tokenizer render conversations and sees what stands around the texts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minigpt4.errors import UserError
from minigpt4.prompts.encode import CUT, control_tokens
from minigpt4.prompts.templates import IMAGE_MARK, TEMPLATES, Message, Template, get_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Texts that no template holds, and that none trims.
_FIRST, _ANSWER, _SECOND = "qzfirstq", "qzanswerq", "qzsecondq"


def choose_template(template: str | Template | None, tokenizer: PreTrainedTokenizerBase, llm: str) -> Template:
    """The template asked for; without one the LLM's own or, if its tokenizer has none, the released `vicuna_v0`."""
    if template is not None:
        return get_template(template)
    return own_template(tokenizer, llm) if tokenizer.chat_template else TEMPLATES["vicuna_v0"]


def own_template(tokenizer: PreTrainedTokenizerBase, llm: str) -> Template:
    """The chat format of the LLM called `llm`, images wrapped as in the released formats.

    Raises:
        UserError: its chat template cannot be taken apart into turns.
    """
    question = {"role": "user", "content": _FIRST}
    answer = {"role": "assistant", "content": _ANSWER}
    follow_up = {"role": "user", "content": _SECOND}
    try:
        one = _render(tokenizer, [question], True)
        closed = _render(tokenizer, [question, answer], False)
        two = _render(tokenizer, [question, answer, follow_up], True)
        opening, before_answer = one.split(_FIRST)
        after_answer = closed.split(_ANSWER)[1]
        # Some write a space before an answer that they leave to the LLM when it is to answer.
        heading = two.split(_FIRST)[1].split(_ANSWER)[0]
        if heading.rstrip() == before_answer:
            two = two.replace(heading + _ANSWER, before_answer + _ANSWER)
        before_question = two.split(_ANSWER)[1].split(_SECOND)[0].removeprefix(after_answer)
        if not opening.endswith(before_question):
            raise ValueError("its first turn is written otherwise than the next")
        template = Template(
            name="own",
            system=opening.removesuffix(before_question).removeprefix(tokenizer.bos_token or ""),
            system_end="",
            user=before_question + "{images}{text}",
            assistant=before_answer + "{text}" + after_answer,
            image=f"<Img>{IMAGE_MARK}</Img> ",
            stop=_stop(tokenizer, after_answer),
        )
        first = Message("user", _FIRST)
        talk = [first, Message("assistant", _ANSWER), Message("user", _SECOND)]
        for expected, messages in ((one, [first]), (two, talk)):
            if template.prompt(messages) != expected.removeprefix(tokenizer.bos_token or ""):
                raise ValueError("its turns are not written one like the other")
    except Exception as error:  # templates are programs, which may raise what they like
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{llm}: the chat template of its tokenizer cannot be used ({reason}); give one of "
            f"{', '.join(TEMPLATES)} as template"
        ) from None
    return template


def _render(tokenizer: Any, messages: list[dict[str, str]], prompt: bool) -> str:
    rendered = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))
    return rendered.replace(CUT, "")  # an export's template marks its pieces


def _stop(tokenizer: PreTrainedTokenizerBase, after_answer: str) -> str:
    """What ends an answer: the first special token behind it, the words there, or the tokenizer's EOS."""
    found = {after_answer.find(token): token for token in control_tokens(tokenizer) if token in after_answer}
    return found[min(found)] if found else after_answer.strip() or str(tokenizer.eos_token)


def end_at_stop(llm: Any, tokenizer: PreTrainedTokenizerBase, template: Template) -> None:
    """Let the LLM's generation config end at the template's stop string if that is a special token.

    Special tokens are left out of the text of an answer, where the stop string is looked for otherwise.
    """
    if template.stop in control_tokens(tokenizer):
        own = llm.generation_config.eos_token_id
        ends = [own] if isinstance(own, int) else list(own or [])
        stop = tokenizer.convert_tokens_to_ids(template.stop)
        llm.generation_config.eos_token_id = [*ends, stop] if stop not in ends else own
