"""Likelihoods against those computed one text at a time with the whole network."""

from __future__ import annotations

from pathlib import Path

import torch

from curating import picture_file
from minigpt4.generation.likelihood import token_likelihoods
from minigpt4.minigpt4 import MiniGPT4
from minigpt4.prompts.encode import encode_chat
from minigpt4.prompts.templates import Message


def test_likelihoods_are_those_of_the_plain_network(tiny_vision: Path, tiny_llm: Path) -> None:
    model = MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", seed=1, dtype="float32")
    texts = ["A red ball.", "The small cup in the centre is blue, and a star is on the right."]
    questions = ["Describe it.", "What is there, and what colour has it?"]
    features = model.encode_images([picture_file(n) for n in range(3)])
    targets = [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    prompts = [
        encode_chat(
            model.tokenizer, model.template, [Message("user", question, 1)], model.num_query_tokens,
            model.image_token_id,
        ) for question in questions
    ]  # fmt: skip
    rows = [(0, 1, 0), (1, 0, 2), (0, 0, 0), (1, 1, 1), (0, 1, 2)]  # prompt, text, image
    found = token_likelihoods(
        model, [prompts[p] for p, _, _ in rows], [targets[t] for _, t, _ in rows], [features[i] for _, _, i in rows], 3
    )
    for (p, t, i), likelihoods in zip(rows, found, strict=True):
        ids = torch.tensor([prompts[p] + targets[t]])
        with torch.no_grad():
            logits = model.blip2.language_model(inputs_embeds=model.embed(ids, features[[i]])).logits[0]
        logits[:, model.image_token_id] = float("-inf")
        every = torch.log_softmax(logits.float(), -1)
        expected = torch.stack([every[len(prompts[p]) + n - 1, token] for n, token in enumerate(targets[t])])
        assert likelihoods.shape == expected.shape
        torch.testing.assert_close(likelihoods, expected, rtol=1e-4, atol=1e-4)


def test_a_text_beyond_the_context_is_cut(tiny_vision: Path, tiny_llm: Path) -> None:
    model = MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", seed=1, dtype="float32")
    limit = model.blip2.language_model.config.max_position_embeddings
    image = model.encode_images([picture_file(0)])[0]
    prompt = encode_chat(
        model.tokenizer, model.template, [Message("user", "?", 1)], model.num_query_tokens, model.image_token_id
    )
    long, short = token_likelihoods(model, [prompt] * 2, [[5] * limit, [5, 5]], [image] * 2)
    assert len(long) == limit - len(prompt)
    torch.testing.assert_close(long[:2], short, rtol=1e-4, atol=1e-4)
