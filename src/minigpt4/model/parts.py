"""The frozen parts: the vision side and the LLM, read from their files (`sources.py`).

A part is a directory or a hub id: for the vision side anything that holds a BLIP-2's `vision_model.*`, `query_tokens`
and `qformer.*` (alone, or inside a whole BLIP-2 checkpoint) or, without a Q-Former, any vision encoder of transformers;
for the LLM any decoder-only causal LM of transformers, also in a GGUF file.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file
from sentencepiece import SentencePieceProcessor
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    GenerationConfig,
    LlamaTokenizer,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from minigpt4.documents import check
from minigpt4.errors import UserError
from minigpt4.images import size_of
from minigpt4.model import encoders, sources
from minigpt4.model.four_bits import LARGE
from minigpt4.model.gguf import GGUFCheckpoint, open_tensors
from minigpt4.model.precision import Placement, resolve_dtype
from minigpt4.model.quantization import IN_FILES, arrange, is_in_files
from minigpt4.model.sources import Checkpoint, fingerprint, read_json, readable, resolve
from minigpt4.prompts.templates import IMAGE_TOKEN
from minigpt4.shipped import Pinned

ENCODER_PREFIX = "vision_model."
VISION_PREFIXES = (ENCODER_PREFIX, "query_tokens", "qformer.")
LLM_PREFIX = "language_model."

#: How an export's config.json lets transformers' `generate` decode with its LLM. Another template asks for otherwise.
DECODING = ("sequence_bias", "renormalize_logits")

#: A text that tokenizers cut differently if they are not the same.
PROBE = "### Human: Où sont the 12 red balls, 3.5 cm apart?\n It's 猫!"

#: In a vision side's directory, if anybody made it (tools/familiar.py): see `VisionSide.is_unfamiliar`.
FAMILIAR_FILE = "familiar.safetensors"

#: Neighbouring patches that the variant without a Q-Former puts together into one image token, if nothing else is said.
PATCHES_PER_TOKEN = 4


@dataclass(frozen=True)
class VisionQFormer:
    """The vision side as it was read; tensors have their names in transformers. Without a Q-Former see `no_qformer`."""

    vision_config: Any
    qformer_config: Blip2QFormerConfig
    num_query_tokens: int
    tensors: dict[str, Tensor]
    image_processor: BlipImageProcessorPil
    fingerprint: str
    familiar: dict[str, Tensor] = field(default_factory=dict)  # what `FAMILIAR_FILE` holds


def read_vision_config(
    name: str | Path, qformer: bool = True, group: int = PATCHES_PER_TOKEN
) -> tuple[Any, Blip2QFormerConfig, int]:
    """What a vision side's files say: encoder, Q-Former (`no_qformer` without one), tokens of an image."""
    source = resolve(name)
    config = read_json(source, "config.json")
    needed = {"vision_config", "qformer_config"} if qformer else {"vision_config"}
    whole = config.get("model_type") == "blip-2"
    if (whole and not needed <= config.keys()) or (qformer and not whole):
        expected = f"a BLIP-2 config.json with {' and '.join(sorted(needed, reverse=True))}"
        raise UserError(f"{name}: is no vision side (model_type {config.get('model_type')!r}); expected {expected}")
    with readable(name):
        vision = encoders.encoder_config(config, name)
        if not isinstance(vision, Blip2VisionConfig):
            encoders.measure(vision, size_of(read_image_processor(vision, source))[0], name)
        if not qformer:
            return vision, *no_qformer(vision, group)
        return vision, Blip2QFormerConfig(**config["qformer_config"]), config.get("num_query_tokens", 32)


_NO_LLM = "is no decoder-only LLM with a tokenizer ({}); give the directory of one, or a hub id"


def load_vision_qformer(name: str | Path, qformer: bool = True, group: int = PATCHES_PER_TOKEN) -> VisionQFormer:
    """The vision side of a BLIP-2, or the encoder alone of that, a CLIP and so on; memory-mapped where it can be."""
    source = resolve(name)
    configs = read_vision_config(name, qformer, group)
    config, checkpoint = read_json(source, "config.json"), Checkpoint(source)
    prefixes = VISION_PREFIXES if qformer else ENCODER_PREFIX
    if config["model_type"] == "blip-2":
        names = {key: key.removeprefix("model.") for key in checkpoint}
        tensors = {short: checkpoint[key] for key, short in names.items() if short.startswith(prefixes)}
    elif isinstance(configs[0], Blip2VisionConfig):
        tensors = {ENCODER_PREFIX + key: checkpoint[key] for key in checkpoint}
    else:  # transformers knows the names that its files have, alone and in a whole, now and formerly
        with readable(name):
            encoder = sources.load_model(AutoModel, checkpoint, config=configs[0], dtype="auto")
        tensors = {ENCODER_PREFIX + key: tensor for key, tensor in encoder.state_dict().items()}
    if "vision_weights" in config:
        if not isinstance(source, Path):
            what = "its config.json names a package (vision_weights), which only a local part may do"
            raise UserError(f"{name}: {what}")
        pinned = check(TypeAdapter(Pinned), config["vision_weights"], f"{name}: vision_weights in its config.json")
        found = sources.read_pickled(pinned.find(str(name)))
        tensors |= {ENCODER_PREFIX + key: tensor for key, tensor in found.items()}
    with readable(name):
        processor = read_image_processor(configs[0], source)
    return VisionQFormer(*configs, tensors, processor, fingerprint(tensors), _read_familiar(source, configs[0]))


def _read_familiar(source: str | Path, vision_config: Any) -> dict[str, Tensor]:
    """The measure in a local directory, which knows the shape of the encoder's output; nothing if there is none."""
    if not isinstance(source, Path) or not (path := source / FAMILIAR_FILE).is_file():
        return {}
    with readable(path):
        found = load_file(path)
    if {key: t.shape for key, t in found.items()} != {"direction": (vision_config.hidden_size,), "limit": ()}:
        raise UserError(f"{path}: belongs to another vision encoder; make it again (tools/familiar.py), or remove it")
    return found


def read_image_processor(vision_config: Any, source: str | Path) -> BlipImageProcessorPil:
    """The image processor of a vision side, by its own config file. Raises UserError if it does not make squares."""
    own, both = (sources.find_file(source, f"{name}_config.json") for name in ("preprocessor", "processor"))
    if both and not own:
        settings = read_json(source, "processor_config.json")["image_processor"]
    else:
        settings = read_json(source, "preprocessor_config.json")
    if isinstance(vision_config, Blip2VisionConfig):
        return image_processor(vision_config, settings)
    whole = not settings.get("do_center_crop")
    processor = BlipImageProcessorPil.from_dict({**settings, "default_to_square": whole})
    width, height, _, edge = size_of(processor)
    if width is None or width != height or (edge is None) != whole:
        told = f"preprocessor_config.json makes no squares of one size (size {settings.get('size')!r:.60})"
        give = "give `size` with equal height and width, or a shortest_edge, do_center_crop and a square crop_size"
        raise UserError(f"{source}: {told}; {give}")
    return processor


def image_processor(vision_config: Blip2VisionConfig, settings: dict[str, Any] | None = None) -> BlipImageProcessorPil:
    """The image processor with these settings (BLIP-2's own if there are none), at the encoder's image size."""
    size = {"height": vision_config.image_size, "width": vision_config.image_size}
    return BlipImageProcessorPil.from_dict({**(settings or {}), "size": size})


def no_qformer(vision_config: Any, group: int = PATCHES_PER_TOKEN) -> tuple[Blip2QFormerConfig, int]:
    """A Q-Former's configuration without layers, and the number of tokens. Raises UserError if patches are left."""
    side, tokens = encoders.image_tokens(vision_config)
    patches = tokens - encoders.placeless(tokens)
    if patches % group:
        divisors = ", ".join(str(n) for n in range(1, min(patches, 100) + 1) if patches % n == 0)
        told = f"{group} patches go into each image token, and an image of {side} px has {patches}"
        give = f"use another image size, or groups of {divisors}"
        raise UserError(f"without a Q-Former {told}, which cannot be divided so; {give}")
    width = vision_config.hidden_size
    config = Blip2QFormerConfig(
        hidden_size=group * width, num_hidden_layers=0, num_attention_heads=1, encoder_hidden_size=width
    )
    return config, patches // group


@dataclass(frozen=True)
class LLM:
    """A causal LM with its tokenizer, in which `<image>` is one token."""

    model: Any
    tokenizer: Any
    image_token_id: int
    fingerprint: str
    dtype: torch.dtype


def load_llm(name: str | Path, dtype: torch.dtype, placement: Placement | None = None) -> LLM:
    """The decoder-only LLM `name`, alone or in an export. If it lacks `<image>`, that is added, its embedding zero."""
    config, tokenizer, files = read_llm_config(name), load_tokenizer(name), llm_files(name)
    placement, tensors = placement or Placement(torch.device("cpu"), dtype), None
    packed = is_in_files(name, config)
    if packed and not placement.dtype_given and config.hidden_size >= LARGE:
        placement = replace(placement, dtype=resolve_dtype(config.dtype, placement.device))
    settings = placement.loading()
    if packed:
        if placement.load_in not in (None, "4bit"):
            raise UserError(f"{name}: its LLM is held in 4 bits, not in {placement.load_in!r}; leave load_in out")
        tensors = dict(files)
    elif isinstance(files, GGUFCheckpoint) and not placement.spread:
        if placement.load_in and (placement.load_in != "4bit" or placement.device.type != "cpu"):
            held = f"unpacked to {str(placement.dtype).removeprefix('torch.')}, not to load_in={placement.load_in!r}"
            raise UserError(f"{name}: a GGUF file is {held}; leave load_in out (or, on a CPU, use '4bit')")
        packed = placement.load_in is not None
        tensors = files.in_four_bits() if packed else {name: files[name].to(placement.dtype) for name in files}
    own_name = config.name_or_path
    if packed:
        config.quantization_config = dict(IN_FILES)
    if tensors is not None:
        settings |= {"quantization_config": None, "state_dict": tensors}
    elif files.prefix:
        settings["key_mapping"] = {f"^{files.prefix}": ""}
    with readable(name, _NO_LLM):
        kind = AutoModelForCausalLM if tensors is None else MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        model = sources.load_model(kind, files, config=config, **settings)
    if tensors is not None:
        tensors.clear()  # so that each layer, when it is arranged, lets go of its part of a mapped file
    arrange(model)
    if files.prefix or tensors is not None:  # else its generation config and its name are those of the whole
        model.generation_config, model.config.name_or_path = read_generation_config(files, config), own_name
    model.generation_config.sequence_bias = None  # as in `read_llm_config`, for the LLM beside an export's parts
    image_token_id = image_token(tokenizer)
    rows = model.get_input_embeddings().num_embeddings
    if image_token_id >= rows:  # other rows stay as they are
        model.resize_token_embeddings(image_token_id + 1, mean_resizing=False)
        for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
            embedding.weight.data[rows:] = 0
    return LLM(model, tokenizer, image_token_id, fingerprint(files), placement.dtype)


def read_generation_config(files: Checkpoint, config: Any) -> GenerationConfig:
    """That in the files of an LLM, if it is alone there; else one made from its configuration."""
    if not files.prefix and sources.find_file(files.source, "generation_config.json"):
        return sources.load(GenerationConfig, files.source)
    return GenerationConfig.from_model_config(config)


def llm_files(name: str | Path) -> Checkpoint:
    """The tensors of an LLM, alone or in an export."""
    source = resolve(name)
    whole = read_json(source, "config.json").get("model_type") == "blip-2"
    return open_tensors(source, LLM_PREFIX if whole else "")


def read_llm_config(name: str | Path) -> Any:
    """The configuration of a decoder-only LLM, alone or in an export. Raises UserError for anything else."""
    source = resolve(name)
    found = read_json(source, "config.json")
    with readable(name, _NO_LLM):
        config = AutoConfig.for_model(**found) if sources.is_gguf(source) else sources.load(AutoConfig, source)
    kind = found.get("model_type")
    if kind == "blip-2":
        if not config.use_decoder_only_language_model or not len(llm_files(name)):
            raise UserError(f"{name}: {_NO_LLM.format('a BLIP-2 without a decoder-only LLM')}")
        for key in DECODING:
            vars(config.text_config).pop(key, None)
        return config.text_config
    decoder = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(str(kind))
    architectures = found.get("architectures") or [decoder]
    names = architectures if isinstance(architectures, list) else []
    decodes = any(each == decoder or str(each).endswith("ForCausalLM") for each in names)
    if decoder is None or config.is_encoder_decoder or not decodes or not hasattr(config, "hidden_size"):
        raise UserError(f"{name}: {_NO_LLM.format(f'model_type {kind!r:.40}, {architectures!r:.80}')}")
    return config


def load_tokenizer(name: str | Path) -> Any:
    """An LLM's tokenizer; what it lacks for padding, it gets. Raises UserError if it cannot be used."""
    source = resolve(name)
    with readable(name, _NO_LLM):
        tokenizer = _llama_tokenizer(source) or sources.load(AutoTokenizer, source)
    files = {"tokenizer.json", *tokenizer.vocab_files_names.values()}
    # Without them transformers would go on with an empty one.
    if not sources.is_gguf(source) and not any(sources.find_file(source, filename) for filename in files):
        raise UserError(f"{name}: {_NO_LLM.format('no ' + ' or '.join(sorted(files)))}")
    if tokenizer.eos_token_id is None:
        mend = "name one as eos_token in its tokenizer_config.json"
        raise UserError(f"{name}: its tokenizer has no EOS token, so no answer could end; {mend}")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _llama_tokenizer(source: str | Path) -> Any:
    """The tokenizer of a LLaMA with a sentencepiece model, whose ids it gives; None for others. Raises UserError."""
    path = sources.find_file(source, "tokenizer.model")
    settings = read_json(source, "tokenizer_config.json") if sources.find_file(source, "tokenizer_config.json") else {}
    named = settings.get("tokenizer_class") or "LlamaTokenizer"  # in 2023 LLaMATokenizer, which transformers lacks
    if not path or read_json(source, "config.json").get("model_type") != "llama" or "llama" not in str(named).lower():
        return None
    try:
        pieces = SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError):  # Llama 3's file of this name is another one
        return None
    tokens = {"bos_token": pieces.bos_id(), "eos_token": pieces.eos_id(), "unk_token": pieces.unk_id()}
    given = {key: value.get("content") if isinstance(value := settings.get(key), dict) else value for key in tokens}
    empty = {key: pieces.id_to_piece(number) for key, number in tokens.items() if not given[key] and number >= 0}
    spaced = pieces.encode("a", out_type=str)[0][0] == "\u2581"  # the model says whether a space comes first
    tokenizer = sources.load(LlamaTokenizer, source, add_prefix_space=spaced, **empty)
    if tokenizer(PROBE, add_special_tokens=False)["input_ids"] != pieces.encode(PROBE):
        told = f"its tokenizer gives other token ids than its own {path.name}; remove tokenizer.json"
        mend = f"set tokenizer_class (now {named!r:.40}) to LlamaTokenizer in tokenizer_config.json"
        raise UserError(f"{source}: {told}, and {mend}")
    return tokenizer


def image_token(tokenizer: Any) -> int:
    """The id of `<image>`, added to the tokenizer if it lacks it."""
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False)
    return int(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
