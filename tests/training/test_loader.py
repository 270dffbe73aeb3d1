"""Streams of pictures as batches, and reading ahead."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch

from minigpt4.data.batches import tokenise
from minigpt4.data.mixture import PairStream, Source
from minigpt4.data.pairs import read_pairs
from minigpt4.errors import UserError
from minigpt4.model.alignment import MiniGPT4, set_trainable
from minigpt4.training.loader import Loaded, StreamedLoader, read_ahead, rows_of_each
from minigpt4.training.loss import next_token_loss
from minigpt4.training.recipe import Recipe


@pytest.fixture(scope="module")
def model(tiny_vision: Path, tiny_llm: Path) -> MiniGPT4:
    model = MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", device="cpu")
    set_trainable(model, 1)
    return model


def loader(model: MiniGPT4, pairs: Path, workers: int = 0) -> StreamedLoader:
    stream = partial(PairStream, [Source(str(pairs))], stage=1, seed=0, shuffle_buffer=20, workers=workers)
    tokenised = partial(
        tokenise, model.tokenizer, instructions=(), max_text_tokens=32, num_query_tokens=model.num_query_tokens,
        image_token_id=model.image_token_id,
    )  # fmt: skip
    return StreamedLoader(stream, model.image_processor, tokenised, 5, (0, 0))


def pictures(pairs: Path) -> dict[str, bytes]:
    """The picture file of every pair, by the pair's name."""
    return {pair.name: pair.picture for pair in read_pairs(str(pairs), Counter())}


def test_every_row_has_the_pixels_of_its_own_picture(model: MiniGPT4, tiny_pairs: Path) -> None:
    """And so the loss and the gradient that features of the pictures, encoded apart, have."""
    files = pictures(tiny_pairs)
    for loaded in islice(loader(model, tiny_pairs).start(0), 6):
        features = model.encode_images([files[name.decode()] for name in loaded.batch.pictures])
        assert loaded.pixels is not None
        weight = model.blip2.language_projection.weight
        ends = [
            (loss, torch.autograd.grad(loss, weight)[0])
            for loss in (
                next_token_loss(model, loaded.batch, each) for each in (features, model.encode_pixels(loaded.pixels))
            )
        ]
        torch.testing.assert_close(ends[0][0], ends[1][0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ends[0][1], ends[1][1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("workers", [0, 2])
def test_it_goes_on_from_any_batch(model: MiniGPT4, tiny_pairs: Path, workers: int) -> None:
    whole = list(islice(loader(model, tiny_pairs, workers).start(0), 11))
    assert len({loaded.batch.input_ids.shape[1] for loaded in whole}) > 1  # those of like length share a batch
    for after in (1, 4, 6):  # within a pool, and at its end
        rest = islice(loader(model, tiny_pairs, workers).start(after, whole[after - 1].state), 11 - after)
        for expected, found in zip(whole[after:], rest, strict=True):
            assert found.batch.pictures == expected.batch.pictures
            assert found.pixels is not None
            assert expected.pixels is not None
            assert torch.equal(found.pixels, expected.pixels)


def test_each_pass_sees_every_pair_once(model: MiniGPT4, tiny_pairs: Path) -> None:
    seen = [name for loaded in islice(loader(model, tiny_pairs).start(0), 8) for name in loaded.batch.pictures]
    assert sorted(name.decode() for name in seen) == sorted(pictures(tiny_pairs))


def test_reading_ahead_keeps_order_passes_errors_on_and_ends_its_thread() -> None:
    def items() -> Iterator[int]:
        yield from range(10)
        raise UserError("a broken shard")

    before = threading.active_count()
    ahead = read_ahead(items())
    assert list(islice(ahead, 10)) == list(range(10))
    with pytest.raises(UserError, match="a broken shard"):
        next(ahead)
    stopped = read_ahead(iter(range(10**9)))
    assert next(stopped) == 0
    stopped.close()
    assert threading.active_count() == before


def test_rows_of_a_part_are_as_long_as_their_longest(model: MiniGPT4, tiny_pairs: Path) -> None:
    loaded: Loaded = next(loader(model, tiny_pairs).start(0))
    parts = [loaded.part(slice(start, start + 2)) for start in (0, 2, 4)]
    assert sum(part.batch.num_tokens for part in parts) == loaded.batch.num_tokens
    for part in parts:
        assert part.batch.is_target[:, -1].any()
        assert part.pixels is not None
        assert len(part.pixels) == len(part.batch.pictures)


def test_a_batch_comes_out_even() -> None:
    recipe = Recipe.load("pocket-stage1", ["batch_size=24", "accumulate=3"])
    assert rows_of_each(recipe, 4) == 6
    with pytest.raises(UserError, match="24 cannot be divided over 5 processes x 3 parts"):
        rows_of_each(recipe, 5)
