"""MiniGPT-4 as the paper draws it: a frozen vision encoder and Q-Former, one linear projection, a frozen LLM.

Read this file first. `AlignedModel.forward` is the paper's figure 1 from the Q-Former's output to the loss:

    images -> encode_images -> features -> project -> image tokens -> embed -> hidden_states -> logits -> loss

The networks are those of transformers' BLIP-2 (`graph.py`). `loading.py` puts a model together, loads and saves it;
`lora.py` says which parts a stage trains; `minigpt4.MiniGPT4` adds generation and chat.
"""

from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Blip2ForConditionalGeneration
from typing_extensions import Self

from minigpt4.model.graph import hide_image_token, logit_scale
from minigpt4.model.loading import Origin
from minigpt4.model.lora import LoRA, Trained
from minigpt4.model.packing import Packer
from minigpt4.model.precision import Placement
from minigpt4.model.vision import VisionSide
from minigpt4.prompts.templates import Template

IGNORED = -100  # the label of a token that is not learned


class AlignedModel(VisionSide):
    """The vision side (`VisionSide.encode_images`), the projection and the LLM.

    *Features* are the Q-Former's output for an image; *image tokens* are the projected features, which the LLM reads in
    place of `<image>`.
    """

    def __init__(
        self,
        blip2: Blip2ForConditionalGeneration,
        tokenizer: Any,
        image_processor: Any,
        template: Template,
        origin: Origin,
        stage: int | None = None,
        placement: Placement | None = None,
        trained: Trained = Trained(),  # noqa: B008  # frozen
    ) -> None:
        super().__init__(blip2, image_processor, origin, trained)
        self.tokenizer = tokenizer
        self.template = template  # that it was aligned for
        self.stage = stage  # the last one of its training
        self.placement = placement  # device and dtypes, if known
        self.lora = LoRA(blip2.language_model, trained.lora_rank) if trained.lora_rank else None
        self.image_token_id: int = blip2.config.image_token_id
        self.compiled = False  # whether training compiles the model
        self.decoding: dict[str, Any] = {}  # what its record suggests of `Decoding`
        # Suppressing `<image>` when a token is sampled is not enough: it must take no probability from other tokens.
        blip2.language_model.register_forward_hook(partial(hide_image_token, self.image_token_id))
        self.requires_grad_(False)
        self.eval()

    def forward(self, input_ids: Tensor, features: Tensor | None, labels: Tensor | None = None) -> Tensor:
        """Token ids (b, t) and features (n, q, d_qformer) -> logits (b, t, vocabulary), or the loss, a float32 scalar.

        `labels` (b, t) are `input_ids` with -100 in place of what is not learned; the loss is their mean cross-entropy
        (paper, sections 3.1 and 3.3). Padding stands on the right. `minigpt4.training.loss` computes the same faster.
        """
        hidden = self.hidden_states(input_ids, features)
        if labels is None:
            return self.logits(hidden)
        targets = labels[:, 1:].to(self.device)  # a token's hidden state predicts the next token
        is_target = targets != IGNORED
        return F.cross_entropy(self.logits(hidden[:, :-1][is_target]).float(), targets[is_target])

    def project(self, features: Tensor) -> Tensor:
        """Features (n, q, d_qformer) -> image tokens (n, q, d_llm), by the only layer that MiniGPT-4 trains."""
        projection = self.blip2.language_projection
        weight = next(projection.parameters())
        return projection(features.to(weight)).to(self.dtype)  # to the weight's device and dtype

    def embed(self, input_ids: Tensor, features: Tensor | None) -> Tensor:
        """Token ids (b, t) -> input embeddings of the LLM (b, t, d_llm), with image tokens in place of `<image>`.

        `features` (n, q, d_qformer) are those of all images of the batch in reading order; each image fills the next q
        positions of `image_token_id`. Raises ValueError if positions and image tokens differ in number.
        """
        ids = input_ids.to(self.device)
        embeddings = self.blip2.language_model.get_input_embeddings()(ids)
        positions = (ids.flatten() == self.image_token_id).nonzero()[:, 0]
        count = 0 if features is None else features.shape[0] * features.shape[1]
        if len(positions) != count:
            raise ValueError(f"input_ids has {len(positions)} positions for image tokens, but features give {count}")
        if features is None:
            return embeddings
        image_tokens = self.project(features).flatten(0, 1)
        return embeddings.flatten(0, 1).index_copy(0, positions, image_tokens).view_as(embeddings)

    def hidden_states(self, input_ids: Tensor, features: Tensor | None, attention_mask: Tensor | None = None) -> Tensor:
        """Token ids (b, t) and features -> the LLM's last hidden states (b, t, d_llm), without the language head."""
        embeddings = self.embed(input_ids, features)
        body = self.blip2.language_model.base_model
        return body(inputs_embeds=embeddings, attention_mask=attention_mask, use_cache=False).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., d_llm) -> logits (..., vocabulary), which are -inf for `<image>`."""
        llm = self.blip2.language_model
        logits = llm.get_output_embeddings()(hidden) * logit_scale(llm.config)
        if cap := getattr(llm.config, "final_logit_softcapping", None):  # Gemma's
            logits = torch.tanh(logits / cap) * cap
        image_column = torch.arange(logits.shape[-1], device=logits.device) == self.image_token_id
        return logits.masked_fill(image_column, float("-inf"))

    @cached_property
    def packer(self) -> Packer | None:
        """Runs the LLM on rows laid end to end; None if its family cannot (tried on first use)."""
        return Packer.try_packing(self.blip2.language_model)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the frozen LLM."""
        return self.blip2.language_model.get_input_embeddings().weight.dtype

    @property
    def llm_fingerprint(self) -> str:
        """Changes when the LLM's weights do."""
        return self.origin.llm_fingerprint

    def train(self, mode: bool = True) -> Self:
        """Training mode for trained modules only: frozen parts never use dropout."""
        super().train(False)
        self.training = mode
        for module in self.modules():
            own = list(module.parameters(recurse=False))
            if own and all(parameter.requires_grad for parameter in own):
                module.training = mode
        return self
