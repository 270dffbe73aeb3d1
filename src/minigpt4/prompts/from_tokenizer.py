"""An LLM's own chat format as a `Template`, found by rendering conversations with its tokenizer's chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minigpt4.errors import UserError
from minigpt4.prompts.encode import CUT, check_template, control_tokens
from minigpt4.prompts.templates import IMAGE_MARK, TEMPLATES, Message, Template, get_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Texts that no template contains or trims.
_FIRST, _ANSWER, _SECOND = "qzfirstq", "qzanswerq", "qzsecondq"


def choose_template(template: str | Template | None, tokenizer: PreTrainedTokenizerBase, llm: str) -> Template:
    """The given template; by default the LLM's own or, if its tokenizer has none, the released `vicuna_v0`.

    Raises UserError if the tokenizer of the LLM called `llm` cannot write it.
    """
    if template is not None:
        chosen = get_template(template)
    else:
        chosen = own_template(tokenizer, llm) if tokenizer.chat_template else TEMPLATES["vicuna_v0"]
    check_template(tokenizer, chosen, llm)
    return chosen


def own_template(tokenizer: PreTrainedTokenizerBase, llm: str) -> Template:
    """The chat format of the LLM called `llm`, with images wrapped as in the released formats.

    Raises UserError if its chat template cannot be split into turns.
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
        # Some templates write a space before an answer, but leave it to the LLM when it is to answer.
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
    except Exception as error:  # templates are programs and may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{llm}: the chat template of its tokenizer cannot be used ({reason}); give one of "
            f"{', '.join(TEMPLATES)} as template"
        ) from None
    return template


def _render(tokenizer: Any, messages: list[dict[str, str]], prompt: bool) -> str:
    rendered = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))
    return rendered.replace(CUT, "")  # an export's template marks pieces


def _stop(tokenizer: PreTrainedTokenizerBase, after_answer: str) -> str:
    """The stop string: the first special token after an answer, the text there, or the tokenizer's EOS."""
    found = {after_answer.find(token): token for token in control_tokens(tokenizer) if token in after_answer}
    return found[min(found)] if found else after_answer.strip() or str(tokenizer.eos_token)


def end_at_stop(llm: Any, tokenizer: PreTrainedTokenizerBase, template: Template) -> None:
    """Add the tokenizer's EOS to the LLM's end tokens, and the template's stop string if it is a special token.

    Special tokens are left out of the text of an answer, where other stop strings are looked for.
    """
    ends = eos_tokens(llm)
    stops = [tokenizer.eos_token, *([template.stop] if template.stop in control_tokens(tokenizer) else [])]
    more = {tokenizer.convert_tokens_to_ids(stop) for stop in stops}.difference(ends)
    if more:
        llm.generation_config.eos_token_id = [*ends, *sorted(more)]


def eos_tokens(llm: Any) -> list[int]:
    """The end tokens in an LLM's generation config."""
    own = llm.generation_config.eos_token_id
    return [own] if isinstance(own, int) else list(own or [])
