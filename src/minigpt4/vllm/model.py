"""MiniGPT-4 as vLLM runs it: vLLM's BLIP-2 with an image at each `<image>` of a prompt, which no answer has."""

from collections.abc import Mapping, Sequence

import torch
from vllm.model_executor.models import blip2
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalKwargsItems
from vllm.multimodal.parse import MultiModalDataItems
from vllm.multimodal.processing import PromptReplacement, PromptUpdate

from minigpt4.prompts.templates import IMAGE_TOKEN


class MiniGPT4ProcessingInfo(blip2.Blip2ProcessingInfo):
    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": None}  # any number of images: the context length is the limit


class MiniGPT4DummyInputsBuilder(blip2.Blip2DummyInputsBuilder):
    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return IMAGE_TOKEN * mm_counts.get("image", 0)


class MiniGPT4MultiModalProcessor(blip2.Blip2MultiModalProcessor):
    """From a prompt with one `<image>` for each image to token ids with `num_query_tokens` places for each."""

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        image_token_id = self.info.get_hf_config().image_token_id
        places = [image_token_id] * self.info.get_num_image_tokens()
        return [PromptReplacement(modality="image", target=[image_token_id], replacement=places)]


@MULTIMODAL_REGISTRY.register_processor(
    MiniGPT4MultiModalProcessor, info=MiniGPT4ProcessingInfo, dummy_inputs=MiniGPT4DummyInputsBuilder
)
class MiniGPT4ForConditionalGeneration(blip2.Blip2ForConditionalGeneration):
    """A frozen vision tower and Q-Former, the projection, and any decoder-only LLM that vLLM knows."""

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """What stands for image number `i` in a chat template that takes texts only."""
        if modality.startswith("image"):
            return IMAGE_TOKEN
        raise ValueError(f"MiniGPT-4 takes images and text, but no {modality}")

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Hidden states (tokens, d_llm) -> logits (tokens, vocabulary), -inf for `<image>`, which is no word."""
        logits = super().compute_logits(hidden_states)
        if logits is not None:  # as on workers of a tensor-parallel group that sample nothing
            logits[..., self.config.image_token_id] = float("-inf")
        return logits
