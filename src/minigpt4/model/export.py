"""The model as one whole Hugging Face directory, which plain transformers loads and which answers the same.

Writes and reads that directory. What our own code does when it builds prompts is written down there in transformers'
terms: a chat template that puts `<image>` placeholders where the images stand, and a generation config that stops
where the template says. Knows nothing about how the parts were found or trained.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, GenerationConfig, LlavaProcessor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from minigpt4.errors import UserError
from minigpt4.model import parts, sources
from minigpt4.model.precision import Placement
from minigpt4.prompts.encode import CUT, control_tokens, puts_space_first
from minigpt4.prompts.templates import IMAGE_MARK, Template

if TYPE_CHECKING:
    from minigpt4.model.alignment import MiniGPT4

ARCHITECTURE = "MiniGPT4ForConditionalGeneration"
#: Key of the template's stop string in generation_config.json, for our plugin for vLLM. It is not `stop_strings`, for
#: with that transformers' `generate` refuses to run without a tokenizer; what stops that is `_biases`.
STOP_STRING = "stop_string"
#: Added to a logit, it decides: more than any difference of logits, and finite, as JSON demands.
SURELY = 10_000.0
#: Ways to write a stop string that are looked for, the shortest first: each is compared at every new token.
SPELLINGS = 32


def write_export(model: MiniGPT4, directory: Path) -> None:
    """Write weights (in their present dtype), configurations, processor and tokenizer to an empty `directory`."""
    with sources.bars_if_long(model.blip2.get_memory_footprint()):
        model.blip2.save_pretrained(directory)
    write_settings(model, directory)


def write_settings(model: MiniGPT4, directory: Path) -> None:
    """Write all of an export but its weights: configurations, processor and tokenizer."""
    blip2, (tokenizer, cut) = model.blip2, _exported_tokenizer(model)
    ends = _end_tokens(blip2.language_model, tokenizer, model.template.stop)
    biases = _biases(tokenizer, model.template, model.image_token_id, ends)
    blip2.config.save_pretrained(directory)
    _edit_json(directory / "config.json", ends, biases)
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=[model.image_token_id],
        sequence_bias=biases,
        renormalize_logits=True,  # else beams are ranked as if `<image>` had a share of the probability
        # The released demo's. Its repetition penalty is left out, for vLLM would apply it to greedy answers too.
        max_new_tokens=300,
        do_sample=True,
        temperature=1.0,
        top_p=0.9,
        **{STOP_STRING: model.template.stop},
    ).save_pretrained(directory)
    # BLIP-2's own processor knows no chat template and puts every image before the text. LLaVA's puts them where
    # `<image>` stands, as one token for each patch and some more: here one patch, and the other query tokens.
    processor = LlavaProcessor(
        model.image_processor,
        tokenizer,
        patch_size=blip2.config.vision_config.image_size,
        num_additional_image_tokens=model.num_query_tokens - 1,
        vision_feature_select_strategy="full",
        chat_template=jinja_template(model.template, tokenizer.bos_token, control_tokens(tokenizer), cut),
        image_token=parts.IMAGE_TOKEN,
    )
    processor.save_pretrained(directory)
    if cut:
        _keep_cutting(directory)
    model.image_processor.save_pretrained(directory)  # preprocessor_config.json, which servers and older releases read


def write_parts(model: MiniGPT4, directory: Path) -> None:
    """Write the frozen parts of a variant that transformers has no model for as two directories, `vision` and `llm`.

    `vision` holds the tower as a Blip2VisionModel or, where there is a Q-Former, a BLIP-2's vision side.
    """
    blip2 = model.blip2
    with sources.bars_if_long(blip2.get_memory_footprint()):
        if model.has_qformer:
            (directory / "vision").mkdir()
            names = [key for key in blip2.state_dict() if key.startswith(parts.VISION_PREFIXES)]
            tensors = {name: blip2.state_dict()[name].cpu().contiguous() for name in names}
            save_file(tensors, directory / "vision" / "model.safetensors", metadata={"format": "pt"})
        else:
            blip2.vision_model.save_pretrained(directory / "vision")
        blip2.language_model.save_pretrained(directory / "llm")
    write_parts_settings(model, directory)
    if model.has_qformer:  # over the tower's own
        config = {
            "model_type": "blip-2",
            "num_query_tokens": model.num_query_tokens,
            "vision_config": blip2.config.vision_config.to_dict(),
            "qformer_config": blip2.config.qformer_config.to_dict(),
        }
        (directory / "vision" / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n")


def write_parts_settings(model: MiniGPT4, directory: Path) -> None:
    """Write all of these two but their weights: configurations, image processor, tokenizer, generation config."""
    llm, (tokenizer, cut) = model.blip2.language_model, _exported_tokenizer(model)
    tower = model.blip2.vision_model
    tower.config.architectures = [type(tower).__name__]
    tower.config.save_pretrained(directory / "vision")
    model.image_processor.save_pretrained(directory / "vision")
    llm.config.architectures = [type(llm).__name__]
    llm.config.save_pretrained(directory / "llm")
    settings = copy.deepcopy(llm.generation_config)
    settings.suppress_tokens, settings.renormalize_logits = [model.image_token_id], True
    ends = _end_tokens(llm, tokenizer, model.template.stop)
    settings.sequence_bias = _biases(tokenizer, model.template, model.image_token_id, ends)
    settings.save_pretrained(directory / "llm")
    tokenizer.chat_template = jinja_template(model.template, tokenizer.bos_token, control_tokens(tokenizer), cut)
    tokenizer.save_pretrained(directory / "llm")
    if cut:
        _keep_cutting(directory / "llm")


def _exported_tokenizer(model: MiniGPT4) -> tuple[Any, str]:
    """A copy of the tokenizer that gives a prompt, tokenised whole, the ids that `prompts.encode` gives its pieces.

    With it, what its chat template has to put where it cuts: `CUT`, or nothing.
    """
    tokenizer = copy.deepcopy(model.tokenizer)
    if model.template.stop in tokenizer.get_vocab() and not puts_space_first(tokenizer):
        # Special tokens are left out when an answer is decoded. (With sentencepiece a space would stand behind them.)
        tokenizer.add_special_tokens(
            {"additional_special_tokens": [model.template.stop]}, replace_extra_special_tokens=False
        )
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and getattr(backend.pre_tokenizer, "prepend_scheme", "never") != "never":
        backend.pre_tokenizer.prepend_scheme = "always"  # the space after special tokens, as the original has it
        tokenizer.legacy = True  # under this name some tokenizers write it down
        tokenizer.init_kwargs["legacy"] = True
    return tokenizer, _cut_pieces(tokenizer)


def read_export(source: str | Path, placement: Placement) -> tuple[Any, Any, Any]:
    """(BLIP-2 model where `placement` says, tokenizer, image processor) of an export."""
    try:
        with sources.bars_if_long(sources.Checkpoint(source).size()):
            blip2 = parts.load_whole(source, placement)
        tokenizer = AutoTokenizer.from_pretrained(source)
        return blip2, tokenizer, BlipImageProcessorPil.from_pretrained(source)
    except Exception as error:  # OSError, ValueError, safetensors' and the tokenizer's own
        raise UserError(
            f"{source}: this export cannot be read ({sources.first_line(error)}); export it again"
        ) from None


def jinja_template(template: Template, bos_token: str | None, control: Collection[str] = (), cut: str = "") -> str:
    """The chat template that renders messages in transformers' form exactly as `Template.prompt` does.

    Images are `{"type": "image"}` parts; each becomes one `<image>` at its place. BOS, if there is one, is written out.
    A space replaces all that texts spell out of `control`, `<image>`, the stop string and, but for system texts, the
    template's tags, as in `prompts.encode.plain_message`.
    `cut` stands around each earlier answer, which `prompts.encode.encode_chat` tokenises on its own, and after a text
    that ends in the sign with which the template goes on; a space does where the tokenizer cannot cut.
    """
    before, between, after = template.user_parts
    image = template.image.rstrip(" ").replace(IMAGE_MARK, parts.IMAGE_TOKEN)
    gap = template.image[len(template.image.rstrip(" ")) :]
    values = {
        "bos": bos_token or "",
        "stop": template.stop,
        "system": template.system,
        "system_end": template.system_end,
        "before": before,
        "between": between,
        "after": after,
        "image": image,
        "gap": gap,
        "before_answer": template.before_answer,
        "after_answer": template.after_answer,
        "cut": cut,
        "seam": cut or " ",
        "follows": (after + template.before_answer)[:1],
        "control": sorted(
            {*control, parts.IMAGE_TOKEN, template.stop, CUT} - {""}, key=lambda text: (-len(text), text)
        ),
        "tags": template.tags,
    }
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


def _cut_pieces(tokenizer: Any) -> str:
    """Make `tokenizer` cut texts at `CUT`, and return that; or return "" if it is not to cut, or nobody can make it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or puts_space_first(tokenizer):  # `encode_chat` tokenises those conversations whole
        return ""
    if CUT not in backend.to_str():  # else it comes from an export
        cut, own = pre_tokenizers.Split(CUT, "removed"), backend.pre_tokenizer
        backend.pre_tokenizer = cut if own is None else pre_tokenizers.Sequence([cut, own])
    return CUT


def _keep_cutting(directory: Path) -> None:
    """Name no class for the tokenizer: its own would build its own pre-tokenizer, whatever tokenizer.json says."""
    path = directory / "tokenizer_config.json"
    settings = {**json.loads(path.read_text(encoding="utf-8")), "tokenizer_class": "TokenizersBackend"}
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _end_tokens(llm: Any, tokenizer: Any, stop: str) -> list[int]:
    """The LLM's own end tokens, and those tokens that are the template's stop string."""
    own = llm.generation_config.eos_token_id
    ends = [own] if isinstance(own, int) else list(own or [])
    spellings = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (stop, " " + stop))
    ends += [ids[0] for ids in spellings if len(ids) == 1]
    return sorted(set(ends))


def _biases(tokenizer: Any, template: Template, image_token_id: int, ends: list[int]) -> list[list[Any]]:
    """`sequence_bias` for transformers' `generate`: `<image>` never, and EOS surely after the template's stop string.

    The end tokens alone cannot do that where the stop string is cut into several tokens. Those tokens are looked for
    that hold nothing but a part of it, and of a space before it.
    """
    biases: list[list[Any]] = [[[image_token_id], -SURELY]]
    if template.before_answer.rstrip().endswith(template.stop.strip()):  # an answer would end before it begins
        return biases
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else ends[0]
    spellings = _spellings(tokenizer.get_vocab(), template.stop, first=True)
    several = sorted((ids for ids in spellings if len(ids) > 1), key=lambda ids: (len(ids), ids))
    return biases + [[[*ids, end], SURELY] for ids in several[:SPELLINGS]]


def _spellings(vocabulary: Mapping[str, int], text: str, first: bool = False) -> Iterator[list[int]]:
    """All ways to write `text` in tokens; the `first` one may hold a space before it, in either sort of vocabulary."""
    if not text:
        yield []
    for length in range(1, len(text) + 1):
        piece = text[:length]
        for token in (piece, "\u2581" + piece, "\u0120" + piece) if first else (piece,):
            if token in vocabulary:
                for rest in _spellings(vocabulary, text[length:]):
                    yield [vocabulary[token], *rest]


def _edit_json(path: Path, ends: list[int], biases: list[list[Any]]) -> None:
    """Say in config.json what vLLM dispatches on, and what the LLM goes by when it gets no generation config."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["architectures"] = [ARCHITECTURE]
    config["text_config"] |= {"eos_token_id": ends, **dict(zip(parts.DECODING, (biases, True), strict=True))}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
