"""LLMs of further families with weights of our own, for `tools/steps.py`: grown from the pocket's captioning LM.

A Llama's weights go into another family's network wherever they fit, and a short training on the captioning LM's text
makes up for what does not: Qwen3 puts norms on queries and keys, and this Mistral has half as many key-value heads,
each at first the mean of two (as grouped-query attention was introduced, Ainslie et al. 2023). A call goes on where
the last one was stopped.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from minigpt4.model.parts import load_llm
from pocket.towers.language import CAPTIONER, TextBatches, text_loss
from pocket.towers.pretrain import Pretraining, pretrain
from pocket.world.world import SEEDS

#: Family -> its name in transformers, and its key-value heads.
FAMILIES = {"qwen3": ("Qwen3", 4), "mistral": ("Mistral", 2)}


def small_llm(name: str, work: Path, steps: int) -> Path:
    """The directory of the LLM of this family, trained for `steps` batches of about 8,000 tokens if it is not there."""
    out = work / name
    if (out / "config.json").is_file():
        return out
    import transformers

    family, kv_heads = FAMILIES[name]
    llama = load_llm("pocket/captioner", torch.float32)
    known = llama.model.config
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim")
    config: Any = getattr(transformers, f"{family}Config")(
        **{key: getattr(known, key) for key in same},
        num_key_value_heads=kv_heads, max_position_embeddings=2048, tie_word_embeddings=True, rms_norm_eps=1e-6,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, sliding_window=None, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    weights = dict(llama.model.state_dict())
    if kv_heads != known.num_attention_heads:
        for key in [key for key in weights if ".k_proj" in key or ".v_proj" in key]:
            weights[key] = weights[key].view(kv_heads, -1, known.head_dim, known.hidden_size).mean(1).flatten(0, 1)
    model.load_state_dict(weights, strict=False)
    first = CAPTIONER.first_seed + (5 + list(FAMILIES).index(name)) * SEEDS["text"][1] // 16
    batches = TextBatches(replace(CAPTIONER, first_seed=first), llama.tokenizer)
    plan = Pretraining(steps, muon_lr=0.01, adam_lr=1e-3, warmup=10, decay_share=0.5, checkpoint_every=10, log_every=5)
    logging.getLogger("pocket.towers.pretrain").setLevel(logging.INFO)
    device = torch.device("cpu")
    pretrain(model, batches, lambda batch: text_loss(model, batch, device), plan, work / f"{name}-run")
    model.half().save_pretrained(out)
    llama.tokenizer.save_pretrained(out)
    return out
