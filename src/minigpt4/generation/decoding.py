"""How the next token is chosen, and how many may follow a prompt."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from transformers import GenerationConfig, LogitsProcessor, RepetitionPenaltyLogitsProcessor

from minigpt4.errors import UserError
from minigpt4.model.aligned import AlignedModel


@dataclass(frozen=True)
class Decoding:
    """Generation settings. The defaults are those of the released demo (sampling)."""

    max_new_tokens: int = 300
    do_sample: bool | None = None  # by default with one beam only
    temperature: float = 1.0
    top_p: float = 0.9
    repetition_penalty: float | None = None  # on the answer's own tokens; by default 1.05 when sampling, else 1
    num_beams: int = 1
    seed: int | None = None  # of each prompt's own generator; torch's global one stays as it was

    def __post_init__(self) -> None:
        allowed = (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature > 0, "more than 0 (for the most likely token use do_sample=False)"),
            ("top_p", 0 < self.top_p <= 1, "more than 0 and at most 1"),
            ("repetition_penalty", self.repetition_penalty is None or self.repetition_penalty > 0, "more than 0"),
            ("num_beams", self.num_beams >= 1, "at least 1"),
            ("seed", abs(self.seed or 0) < 2**63, "of at most 63 bits"),
        )
        for name, fits, expected in allowed:
            if not fits:
                raise UserError(f"{name}={getattr(self, name)} does not work: it must be {expected}")

    @classmethod
    def from_settings(cls, settings: dict[str, Any], suggested: dict[str, Any]) -> "Decoding":
        """The decoding for these arguments, or as the model's record suggests. Raises UserError for an unknown one."""
        cls.check_names(settings)
        return cls(**{**suggested, **settings})

    @classmethod
    def check_names(cls, settings: Iterable[str]) -> None:
        """Raises UserError for the first unknown setting."""
        known = [field.name for field in fields(cls)]
        for name in settings:
            if name not in known:
                raise UserError(f"there is no generation setting {name!r}; the settings are {', '.join(known)}")

    @property
    def sampling(self) -> bool:
        return self.num_beams == 1 if self.do_sample is None else self.do_sample

    @property
    def penalty(self) -> float:
        return self.repetition_penalty or (1.05 if self.sampling else 1.0)

    def beam_search_config(self, ends: Sequence[int], image_token_id: int) -> GenerationConfig:
        """transformers' form of it, without any of the defaults that the LLM's own files may carry."""
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens, num_beams=self.num_beams, do_sample=self.sampling,
            temperature=self.temperature if self.sampling else 1.0, top_p=self.top_p if self.sampling else 1.0,
            top_k=0 if self.sampling else 50,  # 50 means "not set"; anything else causes a warning without sampling
            repetition_penalty=1.0,  # `processors` has it; here it would warn that an embedded prompt has none
            suppress_tokens=[image_token_id], eos_token_id=list(ends) or None,
            pad_token_id=ends[0] if ends else 0,  # fills up answers that ended before others in their batch
        )  # fmt: skip

    def processors(self) -> list[LogitsProcessor]:
        return [RepetitionPenaltyLogitsProcessor(self.penalty)] if self.penalty != 1 else []


def fitting(model: AlignedModel, prompt: int, decoding: Decoding) -> Decoding:
    """`decoding` with no more new tokens than fit after `prompt` tokens. Raises UserError if those do not."""
    limit = getattr(model.blip2.language_model.config, "max_position_embeddings", None)
    if limit and prompt >= limit:
        told = f"the conversation is {prompt} tokens long and this LLM reads at most {limit}"
        raise UserError(f"{told}; ask less at once or start a new chat")
    room = limit - prompt if limit else decoding.max_new_tokens
    return replace(decoding, max_new_tokens=min(decoding.max_new_tokens, room))
