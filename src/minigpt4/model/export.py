"""Write a whole Hugging Face directory that plain transformers loads and that answers the same.

Its settings say in transformers' terms what this package's code does: a chat template puts `<image>` where an image
stands, and a generation config stops where the template says. Weights come from a model, or in pieces from files.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import Blip2VisionModel, GenerationConfig, LlavaProcessor
from transformers.core_model_loading import revert_weight_conversion

from minigpt4.documents import read_document
from minigpt4.errors import UserError
from minigpt4.files import new_directory
from minigpt4.model import four_bits, parts
from minigpt4.model.aligned import AlignedModel
from minigpt4.model.loading import ALIGNMENT_FILE, PROJECTION_FILE, Origin, write_json, write_record, write_tensors
from minigpt4.model.lora import Trained
from minigpt4.model.quantization import IN_FILES, layers_in, scale_name
from minigpt4.model.quantization import quantize as in_eight_bits
from minigpt4.model.sources import fingerprint
from minigpt4.prompts.encode import CUT, control_tokens, puts_space_first
from minigpt4.prompts.jinja import eos_tokens, jinja_template
from minigpt4.prompts.templates import IMAGE_TOKEN, Template

ARCHITECTURE = "MiniGPT4ForConditionalGeneration"
#: Key of the template's stop string in generation_config.json, for our vLLM plugin. It is not `stop_strings`, since
#: with that transformers' `generate` refuses to run without a tokenizer; transformers stops by `_biases`.
STOP_STRING = "stop_string"
SURELY = 10_000.0  # a bias that outweighs any difference of logits, and is finite, as JSON demands
#: How many tokenizations of a stop string are looked for, the shortest first: each is compared at every new token.
SPELLINGS = 32
SHARD_SIZE = 2 * 10**9  # bytes
#: Tensors by name, each read when it is written. A matrix in 4 or 8 bits comes as its two parts.
Unread = Mapping[str, Callable[[], Any]]


def export(model: AlignedModel, directory: str | Path, overwrite: bool = False, quantize: str | None = None) -> None:
    """Write a loaded model as an export: see `MiniGPT4.export`; `quantize` ("4bit") as `convert.export` does."""
    given, spread = (model.placement.load_in, model.placement.spread) if model.placement else (None, False)
    in_files = any(isinstance(layer, four_bits.FourBitLinear) for layer in model.blip2.language_model.modules())
    if given or spread or in_files:
        held = f"load_in={given!r}" if given else "device='auto'" if spread else "an LLM in 4 bits"
        raise UserError(f"a model loaded with {held} cannot be exported whole; load it without that, then export")
    blip2, origin = model.blip2, model.origin
    merged = model.lora.merged() if model.lora else nullcontext()
    with new_directory(directory, overwrite=overwrite, marker=ALIGNMENT_FILE) as new, merged:
        # Of tied weights only the first has a name here.
        once = {name for name, _ in (*blip2.named_parameters(), *blip2.named_buffers())}
        state = {name: tensor for name, tensor in blip2.state_dict().items() if name in once}
        own = {name: state.pop(name) for name in state.copy() if name.startswith(parts.ENCODER_PREFIX)}
        state = own | revert_weight_conversion(blip2, state)  # other encoders keep the names of today
        for part in (blip2,) if _is_whole(model) else (blip2.vision_model, blip2.language_model):
            part.config.dtype = part.dtype
        tensors: dict[str, Any] = {name: partial(state.__getitem__, name) for name in state}
        for name in four_bit_names(blip2.language_model) if quantize else ():
            tensors[name] = partial(four_bits.quantize, state[name])
        write_export(model, new, tensors, origin, quantize=quantize)


def four_bit_names(llm: Any) -> list[str]:
    """The names, in a whole model, of the LLM's matrices that 4 bits hold."""
    return [f"{parts.LLM_PREFIX}{name}.weight" for name in layers_in("4bit", llm)]


def write_export(
    model: AlignedModel,
    directory: Path,
    tensors: Unread,
    origin: Origin,
    *,
    shard_size: int = SHARD_SIZE,
    dtype: torch.dtype | None = None,
    quantize: str | None = None,
) -> None:
    """Write `tensors`, by their names in `model.blip2`, and the settings of `model` to an empty `directory`.

    The weights in `model` may be on the meta device. Tensors keep their dtype unless `dtype` is given. Variants for
    which transformers has no model are written as an alignment with its parts beside it, in `vision` and `llm`.
    `origin` is recorded, with the fingerprint of the written LLM if it has none; of an LLM in 4 bits it is `directory`.
    """
    eight_bits: set[str] = set()
    if quantize:  # read by `parts.load_llm`
        model.blip2.language_model.config.quantization_config = dict(IN_FILES)
        if isinstance(encoder := model.blip2.vision_model, Blip2VisionModel):  # the other large part
            eight_bits = {f"{name}.weight" for name in layers_in("int8", encoder)}
    write = partial(_write_shards, capacity=shard_size, dtype=dtype, eight_bits=eight_bits)
    if _is_whole(model):
        write(directory, tensors)
        _write_settings(model, directory)
        if quantize or model.lora or model.trained.qformer:  # its parts are not those that it was made of
            origin = Origin(".", "", ".", "")
        if origin.vision_qformer == ".":  # as it was written: `dtype` may have changed it
            origin = replace(origin, vision_fingerprint=parts.load_vision_qformer(directory).fingerprint)
        if not origin.llm_fingerprint:
            origin = replace(origin, llm_fingerprint=fingerprint(parts.llm_files(directory)))
    else:
        alone = "" if model.has_qformer else parts.ENCODER_PREFIX  # the encoder, or the vision side of a BLIP-2
        write(directory / "vision", _named(tensors, parts.VISION_PREFIXES, alone))
        write(directory / "llm", _named(tensors, parts.LLM_PREFIX, parts.LLM_PREFIX))
        projection = _named(tensors, "language_projection.", "language_projection.")
        write_tensors({name: read() for name, read in projection.items()}, directory / PROJECTION_FILE)
        _write_parts_settings(model, directory)
        vision = parts.load_vision_qformer(directory / "vision", model.has_qformer, model.group).fingerprint
        origin = Origin("./vision", vision, "./llm", fingerprint(parts.llm_files(directory / "llm")))
    if model.familiar:
        write_tensors(model.familiar, directory / ("" if _is_whole(model) else "vision") / parts.FAMILIAR_FILE)
    write_record(model, directory, origin, Trained(model.trained.projection_layers))


def _is_whole(model: AlignedModel) -> bool:
    own = isinstance(model.blip2.vision_model, Blip2VisionModel)
    return own and model.has_qformer and model.trained.projection_layers == 1


def _named(tensors: Unread, prefixes: str | tuple[str, ...], removed: str) -> Unread:
    return {name.removeprefix(removed): read for name, read in tensors.items() if name.startswith(prefixes)}


def _write_shards(
    directory: Path, tensors: Unread, capacity: int, dtype: torch.dtype | None, eight_bits: set[str]
) -> None:
    """Write a checkpoint in Hugging Face's layout, each shard as soon as it holds `capacity` bytes."""
    directory.mkdir(exist_ok=True)
    pending: dict[str, Tensor] = {}
    shards: list[list[str]] = []
    total = 0
    for i, (name, read) in enumerate(tensors.items()):
        found = read()
        if name.removeprefix(parts.ENCODER_PREFIX) in eight_bits:
            found = in_eight_bits(found, torch.int8)
        if isinstance(found, tuple):
            pending |= dict(zip((name, scale_name(name)), found, strict=True))
        else:
            pending[name] = (found.to(dtype) if dtype and found.is_floating_point() else found).contiguous()
        size = sum(held.nbytes for held in pending.values())
        if size >= capacity or i == len(tensors) - 1:
            save_file(pending, directory / f"shard-{len(shards)}.safetensors", metadata={"format": "pt"})
            shards.append(list(pending))
            total += size
            pending = {}
    weight_map: dict[str, str] = {}
    for i, names in enumerate(shards):
        number = f"-{i + 1:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        path = (directory / f"shard-{i}.safetensors").rename(directory / f"model{number}.safetensors")
        weight_map |= dict.fromkeys(names, path.name)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(directory / "model.safetensors.index.json", index)


def _write_settings(model: AlignedModel, directory: Path) -> None:
    blip2, (tokenizer, cut) = model.blip2, _exported_tokenizer(model)
    ends, biases = _endings(model, tokenizer)
    blip2.config.save_pretrained(directory)
    # For vLLM, which looks for the architecture, and for `generate` without a generation config.
    config = read_document(directory / "config.json") | {"architectures": [ARCHITECTURE]}
    config["text_config"] |= {"eos_token_id": ends, **dict(zip(parts.DECODING, (biases, True), strict=True))}
    write_json(directory / "config.json", config)
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=[model.image_token_id], sequence_bias=biases,
        renormalize_logits=True,  # else beams are ranked as if `<image>` had a share of the probability
        # The released demo's, without its repetition penalty, which vLLM would apply to greedy answers too.
        max_new_tokens=300, do_sample=True, temperature=1.0, top_p=0.9,
        **{STOP_STRING: model.template.stop},
    ).save_pretrained(directory)  # fmt: skip
    # BLIP-2's own processor has no chat template and puts every image before the text. LLaVA's puts them where
    # `<image>` stands: a token for each patch and additional ones. Here one patch, and the other image tokens.
    LlavaProcessor(
        model.image_processor, tokenizer, patch_size=blip2.config.vision_config.image_size,
        num_additional_image_tokens=model.num_query_tokens - 1, vision_feature_select_strategy="full",
        chat_template=tokenizer.chat_template, image_token=IMAGE_TOKEN,
    ).save_pretrained(directory)  # fmt: skip
    _keep_cutting(directory, cut)
    model.image_processor.save_pretrained(directory)  # preprocessor_config.json, which servers and older releases read


def _write_parts_settings(model: AlignedModel, directory: Path) -> None:
    """Write the settings of `vision` (an encoder, or the vision side of a BLIP-2) and of `llm`."""
    blip2, (tokenizer, cut) = model.blip2, _exported_tokenizer(model)
    vision, llm = directory / "vision", directory / "llm"
    for part in (blip2.language_model, blip2.vision_model):
        part.config.architectures = [type(part).__name__]
    if model.has_qformer:
        configs = {"vision_config": blip2.vision_model.config, "qformer_config": blip2.config.qformer_config}
        config = {"model_type": "blip-2", "num_query_tokens": model.num_query_tokens}
        write_json(vision / "config.json", config | {key: value.to_dict() for key, value in configs.items()})
    else:
        blip2.vision_model.config.save_pretrained(vision)
    model.image_processor.save_pretrained(vision)
    blip2.language_model.config.save_pretrained(llm)
    settings = copy.deepcopy(blip2.language_model.generation_config)
    settings.suppress_tokens, settings.renormalize_logits = [model.image_token_id], True
    settings.sequence_bias = _endings(model, tokenizer)[1]
    settings.to_json_file(llm / "generation_config.json")  # `save_pretrained` refuses that of Vicuna
    tokenizer.save_pretrained(llm)
    _keep_cutting(llm, cut)


def _exported_tokenizer(model: AlignedModel) -> tuple[Any, bool]:
    """A copy that gives a rendered chat the ids that `prompts.encode` gives its pieces; True if it cuts at `CUT`."""
    tokenizer = copy.deepcopy(model.tokenizer)
    one_piece = puts_space_first(tokenizer)  # `encode_chat` tokenises these conversations whole
    if model.template.stop in tokenizer.get_vocab() and not one_piece:
        # Special tokens are left out when an answer is decoded. (With sentencepiece a space would stand behind them.)
        stop = {"additional_special_tokens": [model.template.stop]}
        tokenizer.add_special_tokens(stop, replace_extra_special_tokens=False)
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and getattr(backend.pre_tokenizer, "prepend_scheme", "never") != "never":
        backend.pre_tokenizer.prepend_scheme = "always"  # the space after special tokens, as the original has it
        tokenizer.legacy = True  # some tokenizers save it under this name
        tokenizer.init_kwargs["legacy"] = True
    cut = backend is not None and not one_piece
    if cut and CUT not in backend.to_str():  # an export's tokenizer cuts already
        split, own = pre_tokenizers.Split(CUT, "removed"), backend.pre_tokenizer
        backend.pre_tokenizer = split if own is None else pre_tokenizers.Sequence([split, own])
    control = control_tokens(tokenizer)
    tokenizer.chat_template = jinja_template(model.template, tokenizer.bos_token, control, CUT if cut else "")
    return tokenizer, cut


def _keep_cutting(directory: Path, cut: bool) -> None:
    """Name a general tokenizer class: the original class would ignore the pre-tokenizer in tokenizer.json."""
    if cut:
        path = directory / "tokenizer_config.json"
        write_json(path, {**read_document(path), "tokenizer_class": "TokenizersBackend"})


def _endings(model: AlignedModel, tokenizer: Any) -> tuple[list[int], list[list[Any]]]:
    """The LLM's end tokens with those that are the whole stop string of the template, and `_biases`."""
    stop = model.template.stop
    spellings = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (stop, " " + stop))
    ends = sorted({*eos_tokens(model.blip2.language_model), *(ids[0] for ids in spellings if len(ids) == 1)})
    return ends, _biases(tokenizer, model.template, model.image_token_id, ends)


def _biases(tokenizer: Any, template: Template, image_token_id: int, ends: list[int]) -> list[list[Any]]:
    """`sequence_bias` for transformers: never `<image>`, and always EOS after a stop string of several tokens."""
    biases: list[list[Any]] = [[[image_token_id], -SURELY]]
    if template.before_answer.rstrip().endswith(template.stop.strip()):  # an answer would end before it begins
        return biases
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else ends[0]
    spellings = _spellings(tokenizer.get_vocab(), template.stop, first=True)
    several = sorted((ids for ids in spellings if len(ids) > 1), key=lambda ids: (len(ids), ids))
    return biases + [[[*ids, end], SURELY] for ids in several[:SPELLINGS]]


def _spellings(vocabulary: Mapping[str, int], text: str, first: bool = False) -> Iterator[list[int]]:
    """All ways to write `text` in tokens; a space (in either kind of vocabulary) may precede the `first` token."""
    if not text:
        yield []
    for length in range(1, len(text) + 1):
        piece = text[:length]
        for token in (piece, "\u2581" + piece, "\u0120" + piece) if first else (piece,):
            if token in vocabulary:
                for rest in _spellings(vocabulary, text[length:]):
                    yield [vocabulary[token], *rest]
