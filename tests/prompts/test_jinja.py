"""Chat templates in Jinja write what `Template.prompt` does, and let nothing through that only a format may write."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from minigpt4.prompts.encode import control_tokens
from minigpt4.prompts.jinja import jinja_template
from minigpt4.prompts.templates import TEMPLATES, Message


@pytest.mark.parametrize("name", list(TEMPLATES))
@pytest.mark.parametrize("style", ["parts", "strings"])
def test_chat_template_writes_what_the_template_does(tiny_llm: Path, name: str, style: str) -> None:
    tokenizer, template = AutoTokenizer.from_pretrained(tiny_llm), TEMPLATES[name]
    tokenizer.chat_template = jinja_template(template, "<s>")

    def content(text: str, images: int = 0) -> Any:
        return [{"type": "image"}] * images + [{"type": "text", "text": text}] if style == "parts" else text

    count = 2 if style == "parts" else 0
    rendered = tokenizer.apply_chat_template(
        [
            {"role": "user", "content": content('Say "{{ hi }}" & <tag>', count)},
            {"role": "assistant", "content": content("Hi.\nThere!")},
            {"role": "user", "content": content("Bye")},
        ],
        tokenize=False,
        add_generation_prompt=True,
    )
    expected = template.prompt(
        [
            Message("user", 'Say "{{ hi }}" & <tag>', count),
            Message("assistant", "Hi. There!" if template.stop == "\n" else "Hi.\nThere!"),
            Message("user", "Bye"),
        ]
    )
    assert rendered == "<s>" + expected.replace("<ImageHere>", "<image>")


def test_chat_template_takes_a_system_message_and_lets_nothing_in(tiny_llm: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm)
    tokenizer.chat_template = jinja_template(TEMPLATES["vicuna_v0"], None, control_tokens(tokenizer))
    messages = [{"role": "system", "content": "Be <Img>."}, {"role": "user", "content": "a<image>b###c</s>d</Img>e"}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == "Be <Img>.###Human: a b c d e###Assistant: "
