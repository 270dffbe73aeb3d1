"""The loss of both stages: next-token cross-entropy on the target tokens only."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt4.data.batches import Batch
from minigpt4.memory import CHUNK
from minigpt4.minigpt4 import MiniGPT4
from minigpt4.model.graph import logit_scale
from minigpt4.model.packing import LONGEST, Packing, few, filled


def next_token_loss(model: MiniGPT4, batch: Batch, features: Tensor) -> Tensor:
    """Mean cross-entropy over the batch's target tokens, a float32 scalar (paper, sections 3.1 and 3.3).

    `features` (batch, num_query_tokens, d_qformer) belong to the batch's images, in order. Logits are computed only
    where a target is predicted. Padding is left out if the LLM allows it; if not, it stands on the right, where causal
    attention does not see it without a mask either.
    """
    device = model.device
    input_ids, is_target = batch.input_ids.to(device), batch.is_target.to(device)
    more = (0, (1 - input_ids.shape[1]) % 8)  # for fewer shapes, as in `few`
    inputs, predicts_target = F.pad(input_ids[:, :-1], more), F.pad(is_target[:, 1:], more)
    if model.packer and inputs.shape[1] <= LONGEST:
        matters = predicts_target | (inputs == model.image_token_id)
        is_read = filled(matters.flip(1).cumsum(1).flip(1) > 0)  # up to its last prediction, some rows further
        embeddings = model.embed(inputs[is_read][None], features.to(device))[0]
        hidden = model.packer.hidden_states(embeddings, Packing(is_read), predicts_target[is_read].nonzero()[:, 0])
    else:
        hidden = model.hidden_states(inputs, features.to(device))[predicts_target]
    return head_loss(model, hidden, input_ids[:, 1:][is_target[:, 1:]])


def head_loss(model: MiniGPT4, hidden: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of `targets` (n,) by the frozen language head, from hidden states (n, d_llm)."""
    return _HeadLoss.apply(hidden, targets, model) / len(targets)


class _HeadLoss(torch.autograd.Function):
    """Sum of cross-entropies of targets (n,) by a frozen head of hidden states (n, d), with some logits at a time."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, model: MiniGPT4) -> Tensor:
        head = model.blip2.language_model.get_output_embeddings()
        scale = logit_scale(model.blip2.language_model.config)
        cap = getattr(model.blip2.language_model.config, "final_logit_softcapping", None)  # Gemma's
        count, losses = len(hidden), []
        hidden, targets = (F.pad(x, (0, 0) * (x.dim() - 1) + (0, few(count) - count)) for x in (hidden, targets))
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        at_logits = _compiled_at_logits() if model.compiled else _at_logits
        size = max(16, CHUNK.get(hidden.device.type, 2**24) // head.weight.shape[0] // 16 * 16)
        for start in range(0, len(hidden), size):  # the gradient goes through the head at once: (n, d) is kept
            part = slice(start, start + size)
            loss, logit_gradient = at_logits(head(hidden[part]) * scale, targets[part], model.image_token_id, cap)
            losses.append(loss)
            if gradient is not None:
                torch.mm(logit_gradient * scale, head.weight, out=gradient[part])
        ctx.gradient = None if gradient is None else gradient[:count]
        return torch.cat(losses)[:count].sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.gradient * gradient, None, None


def _at_logits(logits: Tensor, targets: Tensor, never: int, cap: float | None) -> tuple[Tensor, Tensor]:
    """Cross-entropies (n,) of targets, never `never`, of soft-capped logits (n, vocabulary); their sum's gradient."""
    if cap:
        capped = torch.tanh(logits / cap)
        logits = capped * cap
    logits[:, never] = float("-inf")
    logs = logits.log_softmax(-1, dtype=torch.float32)
    at_target = targets[:, None]
    loss = -logs.gather(1, at_target)[:, 0]
    probs = logs.exp_()
    probs.scatter_add_(1, at_target, probs.new_full((1, 1), -1.0).expand_as(at_target))
    if cap:
        probs *= 1 - capped.float() ** 2
    return loss, probs.to(logits.dtype)


@cache
def _compiled_at_logits() -> Callable[..., tuple[Tensor, Tensor]]:
    """The same in two passes over the logits. Made when asked for: the compiler is heavy to import."""
    return torch.compile(_at_logits, dynamic=True)
