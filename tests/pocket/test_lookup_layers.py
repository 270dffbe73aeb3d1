"""The layers that look words up do so before any training, and the LLM behind them says what it said before."""

import pytest
import torch

from minigpt4.model.parts import load_llm
from pocket.text.conversations import conversation
from pocket.towers import lookup_heads as lookup_layers
from pocket.world import world

#: After the start of a text: a context, and a question about one of its words.
BEFORE, WORD, AFTER = [" large", " black"], " flower", [" left", " small", " red", " kite"]
QUESTION = [" Where", " is", " the", WORD]


@pytest.fixture(scope="module")
def parts():
    """A pocket LM without such layers, its tokenizer, the words to look up, and what it usually reads."""
    part = load_llm("pocket/captioner", torch.float32)
    part.model.set_attn_implementation("eager")
    words = part.tokenizer([f" {word}" for word in world.WORDS], add_special_tokens=False).input_ids
    pieces = [text for seed in range(8) for text, _ in conversation(world.SEEDS["development"][0] + seed, "Look.")]
    read = part.tokenizer("".join(pieces), add_special_tokens=False).input_ids
    return part.model.eval(), part.tokenizer, [ids[0] for ids in words], read


@pytest.fixture(scope="module")
def grown(parts):
    model, _, words, read = parts
    torch.manual_seed(0)
    return lookup_layers.add_lookup_layers(model, words, read).eval()


def _ids(tokenizer, words):
    ids = tokenizer(words, add_special_tokens=False).input_ids
    assert all(len(word) == 1 for word in ids)
    return [tokenizer.bos_token_id, *(word[0] for word in ids)]


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_the_first_layer_looks_back_and_the_second_finds_the_word(parts, grown, noise):
    tokenizer = parts[1]
    ids = _ids(tokenizer, [*BEFORE, WORD, *AFTER, *QUESTION])
    states = grown.get_input_embeddings()(torch.tensor([ids]))
    scale = (states - states.mean((0, 1))).std()
    states = states + noise * scale * torch.randn(states.shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        gather, match = grown(inputs_embeds=states, output_attentions=True).attentions[:2]
    last, where = len(ids) - 1, 1 + len(BEFORE)
    for head, offset in enumerate(lookup_layers.OFFSETS):
        assert gather[0, head, last].argmax() == last - offset
    for head, (offset, _) in enumerate(lookup_layers.FINDS):
        assert match[0, head, last].argmax() == where + offset


def test_what_stood_around_the_word_is_written_down_there(parts, grown):
    """The code of a neighbour is that of the same word wherever it was found, and of no other word."""
    tokenizer = parts[1]

    def found(context):
        with torch.inference_mode():
            states = grown.model(torch.tensor([_ids(tokenizer, [*context, *QUESTION])]), output_hidden_states=True)
        return (states.hidden_states[2] - states.hidden_states[1])[0, -1]

    same = [*BEFORE, WORD, *AFTER]
    moved = [" meadow", *same]
    other = [" small", " white", WORD, " right", " large", " green", " kite"]
    likeness = torch.nn.functional.cosine_similarity(found(same), torch.stack([found(moved), found(other)]), dim=-1)
    assert likeness[0] > 0.9
    assert likeness[1] < 0.6


def test_what_is_written_disturbs_nothing(parts, monkeypatch):
    """Before it is made louder for later layers, the LLM behind it says nearly what it said before."""
    before, tokenizer, words, read = parts
    monkeypatch.setattr(lookup_layers, "LOUDER", 1.0)
    torch.manual_seed(0)
    grown = lookup_layers.add_lookup_layers(before, words, read).eval()
    assert len(grown.model.layers) == len(before.model.layers) + 2
    ids = torch.tensor([_ids(tokenizer, [*BEFORE, WORD, *AFTER])])
    with torch.inference_mode():
        old, new = (model(ids).logits[0].log_softmax(-1) for model in (before, grown))
        shuffled = before(ids.flip(1)).logits[0].log_softmax(-1)
    apart = (old.exp() * (old - new)).sum(-1).mean()
    assert apart < 0.2 * (old.exp() * (old - shuffled)).sum(-1).mean()
