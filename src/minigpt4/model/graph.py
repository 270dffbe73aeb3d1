"""The network: transformers' BLIP-2 graph, made without weights, and the parts' tensors put into it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2VisionConfig, LlamaConfig
from transformers.modeling_outputs import BaseModelOutput

from minigpt4.errors import UserError
from minigpt4.model import encoders, parts, sources
from minigpt4.model.quantization import quantize_linears

#: A tiny LLM for the network of a vision side alone, which transformers makes with one.
NO_LLM = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
#: A tiny encoder of BLIP-2's kind, which transformers makes first where another one comes.
SMALLEST = Blip2VisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)


def make_graph(vision: parts.VisionQFormer, text_config: Any, image_token_id: int) -> Any:
    """The network of these parts without weights: its tensors are on torch's meta device."""
    config = Blip2Config(
        vision_config=vision.vision_config, qformer_config=vision.qformer_config, text_config=text_config,
        num_query_tokens=vision.num_query_tokens, image_token_index=image_token_id,
    )  # fmt: skip
    blip2 = empty_graph(config)
    if any(tensor.dtype is torch.int8 for tensor in vision.tensors.values()):
        quantize_linears("int8", blip2.vision_model, packed=True)
    words, head = blip2.language_model.get_input_embeddings(), blip2.language_model.get_output_embeddings()
    if head is None or words is None or words.weight.shape[1] != text_config.hidden_size:
        needs = "it needs a language head, and word embeddings as wide as its layers"  # which image tokens replace
        raise UserError(f"a {text_config.model_type!r} LLM of these sizes cannot be used: {needs}; choose another")
    kinds = getattr(text_config, "layer_types", None) or ["" if blip2.language_model._is_stateful else "attention"]
    if any("attention" not in kind or "linear" in kind for kind in kinds):
        told = "it keeps a state in place of keys and values, which answers here are made with"
        raise UserError(f"a {text_config.model_type!r} LLM cannot be used: {told}; choose another")
    return blip2


def empty_graph(config: Blip2Config) -> Any:
    """The network of a configuration without weights: any encoder, and `PatchGroups` for a Q-Former without layers."""
    vision = config.vision_config
    own = isinstance(vision, Blip2VisionConfig)
    with sources.readable("the parts' config.json"):
        config.vision_config = vision if own else SMALLEST  # transformers makes no other
        with torch.device("meta"):
            blip2: Any = Blip2ForConditionalGeneration(config)
        if not own:
            blip2.vision_model, config.vision_config = encoders.make_encoder(vision), vision
    if config.qformer_config.num_hidden_layers == 0:
        blip2.qformer = PatchGroups(config.qformer_config.hidden_size // vision.hidden_size)
        del blip2.query_tokens
        unused = torch.zeros(1, config.num_query_tokens, config.qformer_config.hidden_size)
        blip2.register_buffer("query_tokens", unused, persistent=False)  # tells device and dtype, as real ones do
    return blip2


class PatchGroups(torch.nn.Module):
    """In place of the Q-Former (paper, section 4.4): joins every `group` (4) patches, (n, p, d) -> (n, p / 4, 4 d)."""

    def __init__(self, group: int) -> None:
        super().__init__()
        self.group = group

    def forward(self, query_embeds: Tensor, encoder_hidden_states: Tensor) -> BaseModelOutput:
        patches = encoder_hidden_states[:, encoders.placeless(encoder_hidden_states.shape[1]) :]
        count, _, width = patches.shape
        return BaseModelOutput(last_hidden_state=patches.reshape(count, -1, self.group * width))


def fresh_projection(vision: parts.VisionQFormer, text_config: Any, seed: int, layers: int = 1) -> torch.nn.Module:
    """An untrained `Linear(d_qformer, d_llm)` in float32; more `layers` come after a GELU each (paper, section 4.4)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width = text_config.hidden_size
        projection = torch.nn.Linear(vision.qformer_config.hidden_size, width)
        more = [module for _ in range(layers - 1) for module in (torch.nn.GELU(), torch.nn.Linear(width, width))]
    return torch.nn.Sequential(projection, *more) if more else projection


def logit_scale(llm_config: Any) -> float:
    """What an LLM multiplies its head's outputs by: 1 but for Cohere's and Granite's families."""
    return getattr(llm_config, "logit_scale", None) or 1 / (getattr(llm_config, "logits_scaling", None) or 1)


def hide_image_token(image_token_id: int, llm: Any, arguments: Any, output: Any) -> Any:
    """A forward hook of the LLM that sets the logit of `<image>` to -inf, so that it takes no probability."""
    column = torch.tensor([image_token_id], device=output.logits.device)
    output.logits = output.logits.index_fill(-1, column, float("-inf"))
    return output


def check_shapes(name: str, found: Mapping[str, Sequence[int]], expected: Mapping[str, Sequence[int]]) -> None:
    """Raises UserError if a tensor is missing or has another shape than expected; `name` is for the message."""
    for key, shape in expected.items():
        asked = f"{tuple(shape)}"
        if key not in found:
            raise UserError(f"{name}: the tensor {key} {asked} that its config.json asks for is missing")
        if tuple(found[key]) != tuple(shape):
            raise UserError(f"{name}: the tensor {key} has shape {tuple(found[key])}, its config.json asks for {asked}")


def check_vision(blip2: Any, vision: parts.VisionQFormer, name: str) -> list[str]:
    """The names of the vision side's tensors. Raises UserError if one is missing or has another shape."""
    expected = {key: t.shape for key, t in blip2.state_dict().items() if key.startswith(parts.VISION_PREFIXES)}
    check_shapes(name, {key: tensor.shape for key, tensor in vision.tensors.items()}, expected)
    return list(expected)


def check_projection(what: str, blip2: Any, tensors: Mapping[str, Tensor], llm: str | Path) -> None:
    """Raises UserError if `tensors` do not fit this network's projection; `what` and `llm` are for the message."""
    found = {key: tensor.shape for key, tensor in tensors.items()}
    if found != {key: tensor.shape for key, tensor in blip2.language_projection.state_dict().items()}:
        linear = [shape for shape in found.values() if len(shape) == 2]
        widths = f"goes from {linear[0][1]} to {linear[-1][0]}" if linear else "has no weight"
        group, vision, text = getattr(blip2.qformer, "group", 0), blip2.config.qformer_config, blip2.config.text_config
        side = {0: "the Q-Former's", 4: "the four patches'"}.get(group, f"the {group} patches'")
        told = f"but {side} width is {vision.hidden_size} and that of the LLM {llm} is {text.hidden_size}"
        raise UserError(f"{what} {widths}, {told}; give the projection of this LLM (4096 wide: 7B, 5120 wide: 13B)")


def put_tensors(blip2: Any, vision: parts.VisionQFormer, name: str, dtype: torch.dtype) -> None:
    """Move the vision side's tensors into the network, in the dtypes in which transformers would load them."""
    blip2.query_tokens.data = blip2.query_tokens.data.to(dtype)
    qformer_dtype, tensors = torch.float32 if dtype == torch.float16 else dtype, {}
    for key in check_vision(blip2, vision, name):
        found, wanted = vision.tensors.pop(key), dtype if key.startswith(parts.ENCODER_PREFIX) else qformer_dtype
        # A copy, since the tensors are mapped from a file that may be replaced; each lets go of its part of the file.
        tensors[key] = found.to(wanted if found.is_floating_point() else found.dtype, copy=True)
    blip2.load_state_dict(tensors, strict=False, assign=True)
