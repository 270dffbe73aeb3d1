"""`MiniGPT4`: the aligned model with everything that users do with it: assemble, load, save, export, generate, chat."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from minigpt4.errors import UserError
from minigpt4.generation.chat import Chat
from minigpt4.generation.engine import answers
from minigpt4.model import export, loading
from minigpt4.model.aligned import AlignedModel
from minigpt4.model.lora import Trained
from minigpt4.model.parts import PATCHES_PER_TOKEN
from minigpt4.model.precision import Placement
from minigpt4.prompts.templates import Template, get_template


class MiniGPT4(AlignedModel):
    """A frozen vision encoder and Q-Former, a frozen LLM, and the linear projection between them (paper, section 3)."""

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        load_in: str | None = None,
        max_memory: Mapping[int | str, int | str] | None = None,
    ) -> "MiniGPT4":
        """The model of an alignment or an export: a directory, or the name of a shipped one such as `pocket`.

        `dtype` defaults to bfloat16 on CUDA and float32 elsewhere; for "4bit" to bfloat16 where a CPU multiplies it,
        for a directory of a large LLM (1B) in 4 bits to that of its files. `device` defaults to CUDA if there is one.
        `load_in` ("8bit", "4bit", "fp8" or "int8"; not on every device) quantizes the LLM's linear layers while they
        are read. With `device="auto"` the LLM's layers fill the GPUs, then the CPU's memory, then the disk, up to
        `max_memory` (such as `{0: "10GiB"}`). Raises UserError if anything is missing, broken, or does not fit.
        """
        return loading.load(cls, name_or_path, Placement.resolve(dtype, device, load_in, max_memory))

    @classmethod
    def assemble(
        cls,
        vision_qformer: str | Path | None = None,
        llm: str | Path | None = None,
        *,
        vision: str | Path | None = None,
        template: str | Template | None = None,
        qformer: bool = True,
        group: int = PATCHES_PER_TOKEN,
        trained: Trained = Trained(),  # noqa: B008  # frozen
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        load_in: str | None = None,
        max_memory: Mapping[int | str, int | str] | None = None,
        seed: int = 0,
    ) -> "MiniGPT4":
        """Frozen parts and a fresh projection, drawn from `seed`.

        `vision_qformer` and `llm` are directories, hub ids or names of shipped parts. `template` defaults to the LLM's
        own chat format, and to `vicuna_v0` if it has none. Without `qformer`, the projection reads groups of `group`
        neighbouring patches of the vision encoder (paper, section 4.4), which may be any one of transformers: it may
        be given as `vision` then. `trained` names the other variants. For `dtype`, `device`, `load_in` and `max_memory`
        see `from_pretrained`. Raises UserError if a part does not exist or does not fit.
        """
        side = vision_qformer or vision
        if not side or not llm or (vision and vision_qformer):
            raise UserError("give the vision side as vision_qformer, or an encoder alone as vision, and the llm")
        return loading.assemble(
            cls, side, llm, Placement.resolve(dtype, device, load_in, max_memory),
            template=template, qformer=qformer and not vision, group=group, trained=trained, seed=seed,
        )  # fmt: skip

    def save_pretrained(self, directory: str | Path, overwrite: bool = False) -> None:
        """Write the alignment: projection, and a record of the frozen parts. Raises UserError, unless `overwrite`."""
        loading.save(self, directory, overwrite)

    def export(self, directory: str | Path, overwrite: bool = False) -> None:
        """Write a whole Hugging Face directory, which transformers loads without this package and answers the same.

        Variants that transformers has no model for (without a Q-Former, several projection layers) are written as an
        alignment with its parts beside it. LoRA is added to the LLM's weights. Raises UserError if `directory` exists
        and is not empty, or if the LLM is quantized or spread; `overwrite` replaces an earlier export.
        """
        export.export(self, directory, overwrite)

    def generate(self, *args: Any, **settings: Any) -> list[str]:
        """Answers to prompts about images, in batches: see `minigpt4.generation.engine.answers`."""
        return [answer.text for answer in answers(self, *args, **settings)]

    def start_chat(self, template: str | Template | None = None) -> Chat:
        """A conversation in the model's chat format, or in `template`."""
        return Chat(self, get_template(template or self.template))
