"""Makes a toy LLM say what a test wants, by its weights alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


def make_it_say(llm: Any, tokenizer: Any, pieces: Sequence[str], again: bool = False) -> None:
    """From now on `llm` (a Llama) answers all that ends in "Assistant: " with `pieces`, one token each, none twice.

    What is not one token becomes one. After the last there is silence: padding, up to the token limit; or, with
    `again`, the first once more, and so on for ever. The layers pass on what they get, and the head gives each token
    the next one as its likeliest successor.
    """

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    start = ids("Assistant: ")[-1]
    tokenizer.add_tokens([piece for piece in pieces if len(ids(piece)) > 1])
    llm.resize_token_embeddings(max(len(tokenizer), llm.get_input_embeddings().num_embeddings))
    chain = [start, *(ids(piece)[0] for piece in pieces), tokenizer.pad_token_id]
    assert len(set(chain)) == len(chain), "no token may have two successors"
    embeddings, head = llm.get_input_embeddings().weight, llm.get_output_embeddings().weight
    vectors = torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(0))
    vectors = torch.nn.functional.normalize(vectors)
    with torch.no_grad():
        for layer in llm.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        embeddings.copy_(vectors)
        head.zero_()
        after = [*chain[:-1], chain[1]] if again else [*chain, chain[-1]]
        for token, successor in itertools.pairwise(after):
            head[successor] += vectors[token]


def endless_llm(tiny_llm: Path, directory: Path) -> Path:
    """An LLM in `directory` that says "Yes" and then falls silent without an end, up to a token limit far away."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_llm)
    llm = LlamaForCausalLM.from_pretrained(tiny_llm, max_position_embeddings=100_000)
    make_it_say(llm, tokenizer, ["Y", "e", "s"])
    llm.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def talking_llm(tiny_llm: Path, directory: Path) -> Path:
    """An LLM in `directory` that talks without an end, with so many layers that a thousand tokens take seconds."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_llm)
    llm = LlamaForCausalLM.from_pretrained(tiny_llm, max_position_embeddings=100_000, num_hidden_layers=16)
    make_it_say(llm, tokenizer, ["on", " and", " again "], again=True)
    llm.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
