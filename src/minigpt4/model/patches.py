"""The paper's variant without a Q-Former: the vision tower's patch tokens go to the projection, several at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from minigpt4.model.parts import PATCHES_PER_PLACE


class PatchGroups(torch.nn.Module):
    """Stands where the Q-Former stands, and has no weights.

    Drops the class token and puts every `PATCHES_PER_PLACE` patch tokens that follow each other together:
    (n, 1 + p, d) -> (n, p / 4, 4 d). (Paper, section 4.4; the projection is then `Linear(4 d, d_llm)`.)
    """

    def forward(self, query_embeds: Tensor, encoder_hidden_states: Tensor) -> BaseModelOutput:
        patches = encoder_hidden_states[:, 1:]
        count, _, width = patches.shape
        return BaseModelOutput(last_hidden_state=patches.reshape(count, -1, PATCHES_PER_PLACE * width))


def take_out_qformer(blip2: Any) -> None:
    """Make a BLIP-2 graph the variant's: `PatchGroups` for the Q-Former, and query tokens that nothing reads."""
    blip2.qformer = PatchGroups()
    del blip2.query_tokens
    empty = torch.zeros(1, blip2.config.num_query_tokens, blip2.config.qformer_config.hidden_size)
    blip2.register_buffer("query_tokens", empty, persistent=False)  # says device and dtype, as the others' do
