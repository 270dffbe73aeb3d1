"""The loss of both stages: next-token cross-entropy on the text that is to be learned, and on nothing else.

Knows nothing about where samples come from or how weights are stepped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from minigpt4.data.batches import Batch
    from minigpt4.model.alignment import MiniGPT4


def next_token_loss(model: MiniGPT4, batch: Batch, features: Tensor) -> Tensor:
    """Mean cross-entropy over the batch's target tokens, a float32 scalar (paper, sections 3.1 and 3.3).

    `features` (batch, num_query_tokens, d_qformer) belong to the batch's pictures, in order. Logits are computed where
    a target is predicted only. Padding stands on the right of causal attention, so nothing real sees it and no
    attention mask is needed.
    """
    device = model.device
    input_ids, is_target = batch.input_ids.to(device), batch.is_target.to(device)
    predicts_target = is_target[:, 1:]
    hidden = model.hidden_states(input_ids[:, :-1], features.to(device))
    logits = model.logits(hidden[predicts_target])
    return F.cross_entropy(logits.float(), input_ids[:, 1:][predicts_target])
