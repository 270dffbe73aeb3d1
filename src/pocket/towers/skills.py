"""Pocket LLMs that lack some skill: the same text, but for every request of one ability, or of several.

What a skill of the LLM is worth to the aligned model can only be seen in an LLM that never learnt it. To train one from
nothing takes an hour; these begin as the captioning LM, which has learnt to copy facts out of a context into captions
and nothing else, and are taught to converse by text alone. The first lessons, without any of the skills, can be shared:
what has none of them lacks each. With nothing left out the result is the baseline's own weak LLM, made strong without a
picture.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from minigpt4.prompts.templates import TEMPLATES
from pocket.text.conversations import conversation
from pocket.towers.language import LANGUAGE, TextBatches, text_loss
from pocket.towers.pretrain import Pretraining, pretrain

#: What can be left out, each an ability that is measured on pictures.
SKILLS = ("poem", "story", "recipe", "advertise", "funny", "website", "count")
#: The LLM that the lessons begin with.
BEGINNER = "pocket/captioner"


def build_without(without: Collection[str], out: Path, steps: int, start: str | Path = BEGINNER) -> Path:
    """Teaches an LM to converse in `steps` batches without the skills of `without`.

    Returns `out/llm`, the directory of the finished model; checkpoints lie beside it, and the same call goes on with a
    killed run. All such models read the same samples of text, but for what is left out.

    Raises:
        ValueError: `without` names what is none of `SKILLS`.
        UserError: `start` is no LLM with its tokenizer.
    """
    from minigpt4.files import new_directory
    from minigpt4.model.parts import load_llm

    if unknown := sorted(set(without) - set(SKILLS)):
        raise ValueError(f"there is no skill {unknown[0]!r} to leave out; there are {', '.join(SKILLS)}")
    finished = out / "llm"
    if (finished / "config.json").is_file():
        return finished
    torch.manual_seed(0)
    begun = load_llm(start, torch.float32)
    model = begun.model
    model.set_attn_implementation("eager")  # at this size on a CPU it takes half the time of the fused kernel
    pieces = partial(conversation, system=TEMPLATES["vicuna_v0"].system, without=frozenset(without))
    batches = TextBatches(replace(LANGUAGE, pieces=pieces), begun.tokenizer)
    plan = Pretraining(steps, warmup=min(Pretraining.warmup, steps // 10 + 1))
    pretrain([model], batches, lambda batch: text_loss(model, batch, model.device), plan, out / "run")
    with new_directory(finished, marker="config.json") as directory:
        model.half().save_pretrained(directory)
        begun.tokenizer.save_pretrained(directory)
    return finished
