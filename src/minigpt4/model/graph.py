"""The network: transformers' BLIP-2 graph, made without weights, and the parts' tensors put into it.

Also the paper's variant without a Q-Former, in which the tower's patch tokens go to the projection, several at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import Blip2Config, Blip2ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from minigpt4.errors import UserError
from minigpt4.model import parts
from minigpt4.model.parts import PATCHES_PER_TOKEN


class PatchGroups(torch.nn.Module):
    """Stands where the Q-Former stands, and has no weights.

    Drops the class token and puts every `PATCHES_PER_TOKEN` patch tokens that follow each other together:
    (n, 1 + p, d) -> (n, p / 4, 4 d). (Paper, section 4.4; the projection is then `Linear(4 d, d_llm)`.)
    """

    def forward(self, query_embeds: Tensor, encoder_hidden_states: Tensor) -> BaseModelOutput:
        patches = encoder_hidden_states[:, 1:]
        count, _, width = patches.shape
        return BaseModelOutput(last_hidden_state=patches.reshape(count, -1, PATCHES_PER_TOKEN * width))


def _take_out_qformer(blip2: Any) -> None:
    """Make a BLIP-2 graph the variant's: `PatchGroups` for the Q-Former, and query tokens that nothing reads."""
    blip2.qformer = PatchGroups()
    del blip2.query_tokens
    empty = torch.zeros(1, blip2.config.num_query_tokens, blip2.config.qformer_config.hidden_size)
    blip2.register_buffer("query_tokens", empty, persistent=False)  # says device and dtype, as the others' do


def make_graph(vision: parts.VisionQFormer, text_config: Any, image_token_id: int) -> Any:
    """The network of these parts without weights: its tensors are on torch's meta device and take no memory."""
    return empty_graph(
        Blip2Config(
            vision_config=vision.vision_config,
            qformer_config=vision.qformer_config,
            text_config=text_config,
            num_query_tokens=vision.num_query_tokens,
            image_token_index=image_token_id,
        )
    )


def empty_graph(config: Blip2Config) -> Any:
    """The network of this configuration without weights. One whose Q-Former has no layers has `PatchGroups` there."""
    with parts.readable("the parts' config.json", "network"), torch.device("meta"):
        blip2 = Blip2ForConditionalGeneration(config)
    if config.qformer_config.num_hidden_layers == 0:
        _take_out_qformer(blip2)
    return blip2


def fresh_projection(vision: parts.VisionQFormer, text_config: Any, seed: int, layers: int = 1) -> torch.nn.Module:
    """The untrained projection between these parts: `Linear(d_qformer, d_llm)` with bias, torch's own start.

    With more `layers`, those after the first are `Linear(d_llm, d_llm)`, a GELU before each (paper, section 4.4).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # float32 in every model: it is small, and training goes on from it
        width = text_config.hidden_size
        projection = torch.nn.Linear(vision.qformer_config.hidden_size, width)
        more = [module for _ in range(layers - 1) for module in (torch.nn.GELU(), torch.nn.Linear(width, width))]
    return torch.nn.Sequential(projection, *more) if more else projection


def hide_image_token(image_token_id: int, llm: Any, arguments: Any, output: Any) -> Any:
    """A forward hook of the LLM: `<image>` gets the logit -inf, so it takes no probability and is never chosen."""
    column = torch.tensor([image_token_id], device=output.logits.device)
    output.logits = output.logits.index_fill(-1, column, float("-inf"))
    return output


def check_tensors(name: str, tensors: Mapping[str, Tensor], expected: Mapping[str, torch.Size], asks: str) -> None:
    """Raises UserError for the first tensor that is missing or has another shape than `asks` asks for."""
    for key, shape in expected.items():
        if key not in tensors:
            raise UserError(f"{name}: the tensor {key} {tuple(shape)} that {asks} asks for is missing")
        if tensors[key].shape != shape:
            found = tuple(tensors[key].shape)
            raise UserError(f"{name}: the tensor {key} has shape {found}, {asks} asks for {tuple(shape)}")


def put_tensors(blip2: Any, vision: parts.VisionQFormer, name: str, dtype: torch.dtype) -> None:
    """Put the vision side's tensors in their places, in the dtypes that transformers would load them in."""
    expected = {key: t.shape for key, t in blip2.state_dict().items() if key.startswith(parts.VISION_PREFIXES)}
    check_tensors(name, vision.tensors, expected, "its config.json")
    blip2.query_tokens.data = blip2.query_tokens.data.to(dtype)
    qformer_dtype = torch.float32 if dtype == torch.float16 else dtype
    tensors = {
        # A copy, for what was read lies in a mapped file that somebody may replace.
        key: vision.tensors[key].to(dtype if key.startswith("vision_model.") else qformer_dtype, copy=True)
        for key in expected
    }
    blip2.load_state_dict(tensors, strict=False, assign=True)
