"""The layers that look words up do so before any training, and leave the rest of the LLM as it was."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from minigpt4.pocket.lookup_layers import OFFSETS, add_lookup_layers

#: "... large red kite top ... where is the kite", as ids of a vocabulary of 300.
CONTEXT = [7, 20, 31, 42, 53, 64, 21, 32, 43, 54, 8, 9]
KITE, BEFORE, AFTER = 43, 32, (54, 8, 9)


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=256, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        tie_word_embeddings=True,
    )  # fmt: skip
    config._attn_implementation = "eager"
    before = LlamaForCausalLM(config).eval()
    with torch.no_grad():  # words that have much in common, as a trained LLM's
        before.model.embed_tokens.weight.copy_(0.003 * torch.randn(300, 48) @ torch.randn(48, 256))
    return before, add_lookup_layers(before, range(5, 300)).eval()


def _attention(model, ids):
    with torch.inference_mode():
        return model(torch.tensor([ids]), output_attentions=True).attentions


def test_the_first_layer_looks_back_and_the_second_finds_the_word(models):
    _, grown = models
    ids = [1, *CONTEXT, 10, 11, 12, KITE]
    gather, match = _attention(grown, ids)[:2]
    last, where = len(ids) - 1, ids.index(KITE)
    for head, offset in enumerate(OFFSETS):
        assert gather[0, head, last].argmax() == last - offset
    assert match[0, 0, last].argmax() == where
    for head in (1, 2, 3):
        assert match[0, head, last].argmax() == where + head, "what stood so many tokens after the word"


def test_what_was_found_is_added_to_the_word(models):
    _, grown = models
    ids = [1, *CONTEXT, 10, 11, 12, KITE]
    with torch.inference_mode():
        states = grown(torch.tensor([ids]), output_hidden_states=True).hidden_states
    table = grown.get_input_embeddings().weight.detach()
    table = table - table.mean(0)
    likeness = torch.nn.functional.cosine_similarity((states[2] - states[1])[0, -1][None], table, dim=1)
    best = set(likeness.topk(4).indices.tolist())
    assert {BEFORE, *AFTER} == best


def test_the_other_weights_stay_and_the_head_is_still_tied(models):
    before, grown = models
    assert len(grown.model.layers) == len(before.model.layers) + 2
    assert grown.lm_head.weight is grown.model.embed_tokens.weight
    for old, new in zip(before.model.layers, grown.model.layers[2:], strict=True):
        for name, tensor in old.mlp.state_dict().items():
            assert torch.equal(tensor, new.mlp.state_dict()[name])
    # Logits of the same hidden state differ by one constant, which softmax does not see.
    state = torch.randn(5, 256)
    moved = grown.lm_head(state) - before.lm_head(state)
    direction = torch.linalg.svd(before.lm_head.weight, full_matrices=False).Vh[-1]
    moved += ((before.lm_head.weight @ direction)[:, None] @ (state @ direction)[None]).T
    torch.testing.assert_close(moved, moved[:, :1].expand_as(moved), atol=1e-4, rtol=0)
