"""Chat formats as Jinja chat templates, which transformers and vLLM render with no code of this package."""

from __future__ import annotations

import json
from collections.abc import Collection

from minigpt4.prompts.encode import CUT
from minigpt4.prompts.templates import IMAGE_MARK, IMAGE_TOKEN, Template


def jinja_template(template: Template, bos_token: str | None, control: Collection[str] = (), cut: str = "") -> str:
    """A chat template that renders messages in transformers' form exactly as `Template.prompt` does.

    Images are `{"type": "image"}` parts; each becomes one `<image>` in its place. BOS, if there is one, is written out.
    As in `prompts.encode.plain_message`, a space replaces `control` tokens, `<image>`, the stop string and (except in
    system texts) the template's tags in what users write. `cut` stands around each earlier answer, which
    `prompts.encode.encode_chat` tokenises on its own, and after a text that ends in the character with which the
    template continues (a space if the tokenizer cannot cut).
    """
    before, between, after = template.user_parts
    image = template.image.rstrip(" ").replace(IMAGE_MARK, IMAGE_TOKEN)
    gap = template.image[len(template.image.rstrip(" ")) :]
    values = {
        "bos": bos_token or "", "stop": template.stop, "system": template.system, "system_end": template.system_end,
        "before": before, "between": between, "after": after, "image": image, "gap": gap,
        "before_answer": template.before_answer, "after_answer": template.after_answer, "cut": cut,
        "seam": cut or " ", "follows": (after + template.before_answer)[:1],
        "control": sorted({*control, IMAGE_TOKEN, template.stop, CUT} - {""}, key=lambda text: (-len(text), text)),
        "tags": template.tags,
    }  # fmt: skip
    settings = "".join(f"{{%- set {key} = {json.dumps(value)} -%}}\n" for key, value in values.items())
    return settings + _CHAT_TO_USER + (_IMAGES_FIRST if between else _IMAGES_IN_PLACE) + _CHAT_AFTER_USER


# The chat, in Jinja.
_CHAT_TO_USER = """\
{%- macro words(content, forbidden=tags, follows="") -%}
  {%- set texts = [content] -%}
  {%- if content is not string -%}
    {%- set texts = content | selectattr("type", "equalto", "text") | map(attribute="text") -%}
  {%- endif -%}
  {%- set said = namespace(text=texts | join) -%}
  {%- for token in control + forbidden -%}{%- set said.text = said.text | replace(token, " ") -%}{%- endfor -%}
  {{- said.text -}}{%- if follows.strip() and said.text[-1:] == follows -%}{{ seam }}{%- endif -%}
{%- endmacro -%}
{{- bos -}}
{%- if messages[0].role == "system" -%}{{ words(messages[0].content, [], system_end[:1]) }}
{%- else -%}{{ system }}
{%- endif -%}
{{- system_end -}}
{%- for message in messages -%}
  {%- if message.role == "user" -%}
    {{- before -}}
"""
_CHAT_AFTER_USER = """\
    {{- after -}}
  {%- elif message.role == "assistant" -%}
    {{- before_answer -}}{{- cut -}}
    {{- words(message.content, follows="" if cut else after_answer[:1]) -}}
    {{- cut -}}{{- after_answer -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ before_answer }}{%- endif -%}
"""
_IMAGES_FIRST = """\
    {%- if message.content is not string -%}
      {%- for part in message.content if part.type == "image" -%}{{ image }}{{ gap }}{%- endfor -%}
    {%- endif -%}
    {{- between -}}{{- words(message.content, follows=follows) -}}
"""
_IMAGES_IN_PLACE = """\
    {%- if message.content is string -%}{{ words(message.content, follows=follows) }}
    {%- else -%}
      {%- set said = namespace(text=false) -%}
      {%- for part in message.content -%}
        {%- if part.type == "image" -%}{{ image }}{%- if not said.text -%}{{ gap }}{%- endif -%}
        {%- elif part.type == "text" -%}{{ words([part], follows=follows if loop.last else "") }}
        {%- set said.text = true -%}
        {%- endif -%}
      {%- endfor -%}
    {%- endif -%}
"""
