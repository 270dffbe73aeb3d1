from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from minigpt4.data.batches import Batch, Batches, Samples, tokenise
from minigpt4.data.pairs import Pair
from minigpt4.errors import UserError

IMAGE = 3


@pytest.fixture(scope="module")
def tokenizer(tiny_llm: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_llm)


def make_samples(count: int = 50, prompts: int = 3) -> Samples:
    """Samples whose every target token says which sample it is."""
    targets = [[1000 + i] * (1 + i * 7 % 30) for i in range(count)]
    return Samples([bytes([i]) for i in range(count)], targets, [[10 + k] * (k + 2) for k in range(prompts)])


def seen(batch: Batch) -> list[int]:
    return [key[0] for key in batch.images]


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_stage1_form(tokenizer: PreTrainedTokenizerBase) -> None:
    """BOS, image, caption, newline; caption and newline are the targets (paper, section 3.1)."""
    samples = tokenise(
        tokenizer, [(b"k", "a red ball")], (), max_text_tokens=32, num_query_tokens=4, image_token_id=IMAGE
    )
    assert samples.prompts == [[tokenizer.bos_token_id, *[IMAGE] * 4]]
    assert samples.targets == [ids_of(tokenizer, "a red ball") + ids_of(tokenizer, "\n")]
    assert samples.images == [b"k"]


def test_stage2_form(tokenizer: PreTrainedTokenizerBase) -> None:
    """The conversation form with each instruction; description and ### are the targets (paper, section 3.3)."""
    samples = tokenise(
        tokenizer, [(b"k", "A ball.")], ("What?", "Say."), max_text_tokens=99, num_query_tokens=2, image_token_id=IMAGE
    )
    head, mid = ids_of(tokenizer, "###Human: <Img>"), ids_of(tokenizer, "</Img> What? ###Assistant: ")
    assert samples.prompts[0] == [tokenizer.bos_token_id, *head, IMAGE, IMAGE, *mid]
    assert len(samples.prompts) == 2
    assert samples.targets == [ids_of(tokenizer, "A ball.") + ids_of(tokenizer, "###")]


def test_a_text_that_is_cut_teaches_no_end(tokenizer: PreTrainedTokenizerBase) -> None:
    samples = tokenise(
        tokenizer, [(b"k", "a red ball " * 9)], (), max_text_tokens=8, num_query_tokens=4, image_token_id=IMAGE
    )
    assert samples.targets == [ids_of(tokenizer, "a red ball " * 9)[:8]]


def test_control_tokens_in_captions_are_no_control_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    samples = tokenise(
        tokenizer, [(b"k", "a <image> </s> ball")], (), max_text_tokens=32, num_query_tokens=4, image_token_id=IMAGE
    )
    assert not {IMAGE, tokenizer.eos_token_id} & set(samples.targets[0])


def test_half_a_character_is_learnt_as_a_space(tokenizer: PreTrainedTokenizerBase) -> None:
    halves, spaces = (
        tokenise(
            tokenizer, [(b"k", Pair("k", b"", f"A caf{letter}.", instruction=f"caf{letter}?"))], ("What?",),
            max_text_tokens=99, num_query_tokens=2, image_token_id=IMAGE,
        )
        for letter in ("\udce9", " ")
    )  # fmt: skip
    assert halves == spaces


def test_rows_are_prompt_target_padding() -> None:
    samples = make_samples()
    batch = Batches(samples, 8, seed=0)[0]
    for row, mask, index in zip(batch.input_ids, batch.is_target, seen(batch), strict=True):
        target = samples.targets[index]
        assert row[mask].tolist() == target
        start = int(mask.int().argmax())
        assert row[:start].tolist() in samples.prompts
        assert not row[start + len(target) :].any()
    prompt_tokens = sum(int(mask.int().argmax()) for mask in batch.is_target)
    assert batch.num_tokens == prompt_tokens + int(batch.is_target.sum())


def test_each_epoch_sees_each_sample_once_but_for_those_that_fill_no_batch() -> None:
    batches = Batches(make_samples(50), 8, seed=0)
    assert batches.per_epoch == 6
    left_out = set()
    for epoch in range(8):
        counts = Counter(i for step in range(6) for i in seen(batches[epoch * 6 + step]))
        assert len(counts) == 48
        assert set(counts.values()) == {1}
        left_out |= set(range(50)) - set(counts)
    assert len(left_out) > 4  # not the same two each time


def test_a_batch_follows_from_seed_and_step_alone() -> None:
    first, later = Batches(make_samples(), 8, seed=5), Batches(make_samples(), 8, seed=5)
    expected = [first[step] for step in range(30)]
    for step in (29, 3, 17, 4):
        batch = later[step]
        assert batch.images == expected[step].images
        assert torch.equal(batch.input_ids, expected[step].input_ids)
    assert seen(Batches(make_samples(), 8, seed=6)[0]) != seen(expected[0])
    assert seen(expected[0]) != seen(expected[6])  # epochs differ


def test_every_instruction_is_drawn_and_not_always_the_same_for_a_sample() -> None:
    batches = Batches(make_samples(), 10, seed=0)
    drawn: dict[int, set[int]] = {}
    for step in range(5 * 12):
        batch = batches[step]
        for row, index in zip(batch.input_ids, seen(batch), strict=True):
            drawn.setdefault(index, set()).add(int(row[0]))
    assert all(len(prompts) > 1 for prompts in drawn.values())
    assert set.union(*drawn.values()) == {10, 11, 12}


def test_samples_of_like_length_share_a_batch() -> None:
    batches = Batches(make_samples(240, prompts=1), 8, seed=0)
    used = sum(batches[step].num_tokens for step in range(30))
    space = sum(batches[step].input_ids.numel() for step in range(30))
    assert used / space > 0.9  # one in a random order: about 0.6


def test_the_fingerprint_sees_every_part() -> None:
    samples = make_samples()
    swapped = Samples(samples.images[::-1], samples.targets, samples.prompts)
    other_text = Samples(samples.images, [[7], *samples.targets[1:]], samples.prompts)
    other_prompt = Samples(samples.images, samples.targets, samples.prompts[:2])
    assert make_samples().fingerprint() == samples.fingerprint()
    assert len({s.fingerprint() for s in (samples, swapped, other_text, other_prompt)}) == 4


def test_too_few_samples() -> None:
    with pytest.raises(UserError, match="batch_size 64 is more than the 50 samples"):
        Batches(make_samples(50), 64, seed=0)
    with pytest.raises(UserError, match="no usable sample"):
        Batches(make_samples(0), 1, seed=0)
