"""LoRA, and which parts each stage of a variant trains (paper, sections 3 and 4.4)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field, with_config
from torch import Tensor

from minigpt4.errors import UserError

if TYPE_CHECKING:
    from minigpt4.model.aligned import AlignedModel

#: The attention layers of the LLM that get LoRA, by their names in most families.
LORA_LAYERS = ("q_proj", "v_proj", "qkv_proj", "query_key_value", "c_attn")
LORA_SCALE = 2.0  # alpha / rank


@with_config(extra="forbid")  # what another release trains must not be left out in silence
@dataclass(frozen=True)
class Trained:
    """What the stages train: a projection of `projection_layers` linear layers, the Q-Former, LoRA of `lora_rank`."""

    projection_layers: Literal[1, 3] = 1
    qformer: bool = False
    lora_rank: Annotated[int, Field(ge=0, le=1024)] = 0


def set_trainable(model: "AlignedModel", stage: int) -> list[str]:
    """Freeze all but what `stage` trains (paper, 3.1, 3.3; `model.trained`); returns its names. Raises UserError."""
    if stage not in (1, 2):
        raise UserError(f"there is no stage {stage!r}; the stages are 1, 2")
    trained, adapters = [], set(model.adapter_names())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("blip2.language_projection.") or name in adapters)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # steps of 1e-4 vanish in bfloat16
            trained.append(name)
    model.stage = stage
    return trained


class LoRA(torch.nn.Module):
    """Low-rank matrices beside an LLM's frozen attention, added by hooks: `y = W x + 2 B A x` (Hu et al., 2021)."""

    def __init__(self, llm: Any, rank: int) -> None:
        super().__init__()
        named = (layer for name, layer in llm.named_modules() if name.rpartition(".")[2] in LORA_LAYERS)
        self._layers = [layer for layer in named if isinstance(layer, torch.nn.Linear)]
        if not self._layers:
            raise UserError(f"lora_rank: LoRA is made for no layer of a {llm.config.model_type}; leave it out")
        generator = torch.Generator().manual_seed(0)  # for A; B starts at zero
        self._off = False
        for i, layer in enumerate(self._layers):
            down = torch.randn(rank, layer.in_features, generator=generator) / layer.in_features**0.5
            device = "cpu" if layer.weight.is_meta else layer.weight.device  # meta: of a layer on the disk
            self.register_parameter(f"{i}_down", torch.nn.Parameter(down.to(device)))
            self.register_parameter(f"{i}_up", torch.nn.Parameter(torch.zeros(layer.out_features, rank, device=device)))
            layer.register_forward_hook(partial(self._add, i))

    def _matrices(self, i: int) -> tuple[Tensor, Tensor]:
        return self.get_parameter(f"{i}_down"), self.get_parameter(f"{i}_up")

    def _add(self, i: int, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if self._off:
            return output
        (down, up), x = self._matrices(i), inputs[0]
        return output + LORA_SCALE * ((x @ down.to(x).T) @ up.to(x).T).to(output)

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Add the matrices to the LLM's own weights while the block runs, as an export needs them."""
        kept = [layer.weight.data for layer in self._layers]
        try:
            self._off = True
            for i, layer in enumerate(self._layers):
                down, up = self._matrices(i)
                with torch.no_grad():
                    layer.weight.data = (layer.weight.float() + LORA_SCALE * up @ down).to(layer.weight)
            yield
        finally:
            self._off = False
            for layer, weight in zip(self._layers, kept, strict=True):
                layer.weight.data = weight
