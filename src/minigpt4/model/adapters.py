"""What the paper's variants train beside, or in place of, the one linear layer (section 4.4).

Knows nothing about how they are trained or stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, with_config
from torch import Tensor

#: LoRA stands beside these layers of the LLM's attention; the names of most families.
LORA_LAYERS = ("q_proj", "v_proj", "qkv_proj", "query_key_value", "c_attn")
LORA_SCALE = 2.0  # alpha / rank


@with_config(extra="forbid")  # what another release trains must not be left out in silence
@dataclass(frozen=True)
class Trained:
    """What the stages train: the projection, of so many linear layers; the Q-Former too; LoRA of that rank too."""

    projection_layers: Literal[1, 3] = 1
    qformer: bool = False
    lora_rank: Annotated[int, Field(ge=0, le=1024)] = 0


class LoRA(torch.nn.Module):
    """Low-rank matrices beside an LLM's frozen attention weights: `y = W x + 2 B A x` (Hu et al., 2021).

    They hang on the LLM's layers by hooks, so its own weights keep their names, may be quantised, and are shared out
    as ever. `A` is drawn from a seed of its own and `B` is zero: at first the LLM is unchanged.
    """

    def __init__(self, llm: Any, rank: int) -> None:
        super().__init__()
        self._layers = {
            name: layer for name, layer in llm.named_modules()
            if name.rpartition(".")[2] in LORA_LAYERS and isinstance(layer, torch.nn.Linear)
        }  # fmt: skip
        generator = torch.Generator().manual_seed(0)
        self._off = False
        for i, layer in enumerate(self._layers.values()):
            down = torch.randn(rank, layer.in_features, generator=generator) / layer.in_features**0.5
            device = layer.weight.device
            self.register_parameter(f"{i}_down", torch.nn.Parameter(down.to(device)))
            self.register_parameter(f"{i}_up", torch.nn.Parameter(torch.zeros(layer.out_features, rank, device=device)))
            layer.register_forward_hook(self._hook(i))

    def _hook(self, i: int) -> Any:
        def add(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if self._off:
                return output
            down, up = self.get_parameter(f"{i}_down"), self.get_parameter(f"{i}_up")
            x = inputs[0]
            return output + LORA_SCALE * ((x @ down.to(x).T) @ up.to(x).T).to(output)

        return add

    @contextmanager
    def merged(self) -> Iterator[None]:
        """The LLM's own weights hold the sum while the block runs, as an export needs them."""
        kept = {name: layer.weight.data for name, layer in self._layers.items()}
        try:
            self._off = True
            for i, layer in enumerate(self._layers.values()):
                down, up = self.get_parameter(f"{i}_down"), self.get_parameter(f"{i}_up")
                with torch.no_grad():
                    layer.weight.data = (layer.weight.float() + LORA_SCALE * up @ down).to(layer.weight)
            yield
        finally:
            self._off = False
            for name, layer in self._layers.items():
                layer.weight.data = kept[name]
