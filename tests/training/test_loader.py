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

from formats import read
from minigpt4.data.batches import tokenise
from minigpt4.data.mixture import PairStream, Source
from minigpt4.errors import UserError
from minigpt4.minigpt4 import MiniGPT4
from minigpt4.model.lora import set_trainable
from minigpt4.training.checks import rows_per_process
from minigpt4.training.loader import Loaded, StreamedLoader, joined, lanes, read_ahead
from minigpt4.training.loss import next_token_loss
from minigpt4.training.recipe import Recipe


@pytest.fixture(scope="module")
def model(tiny_vision: Path, tiny_llm: Path) -> MiniGPT4:
    model = MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", device="cpu")
    set_trainable(model, 1)
    return model


def loader(
    model: MiniGPT4, pairs: Path, workers: int = 0, rank: int = 0, world: int = 1, batch: int = 8, buffer: int = 20
) -> StreamedLoader:
    recipe = Recipe.load(
        "pocket-stage1", [f"batch_size={batch}", f"shuffle_buffer={buffer}", f"workers={workers}", f"data={pairs}"]
    )
    stream = partial(PairStream, [Source(str(pairs))], stage=1, seed=0)
    tokenised = partial(
        tokenise, model.tokenizer, instructions=(), max_text_tokens=32, num_query_tokens=model.num_query_tokens,
        image_token_id=model.image_token_id,
    )  # fmt: skip
    return StreamedLoader(stream, model.image_processor, tokenised, recipe, rank, world)


def pictures(pairs: Path) -> dict[str, bytes]:
    """The picture file of every pair, by the pair's name."""
    return {pair.name: pair.image for pair in read(pairs)[0]}


def test_every_row_has_the_pixels_of_its_own_picture(model: MiniGPT4, tiny_pairs: Path) -> None:
    """And so the loss and the gradient that features of the pictures, encoded apart, have."""
    files = pictures(tiny_pairs)
    for loaded in islice(loader(model, tiny_pairs).start(0), 6):
        features = model.encode_images([files[name.decode()] for name in loaded.batch.images])
        weight = model.blip2.language_projection.weight
        ends = [
            (loss, torch.autograd.grad(loss, weight)[0])
            for loss in (
                next_token_loss(model, loaded.batch, each) for each in (features, model.encode_pixels(loaded.images))
            )
        ]
        torch.testing.assert_close(ends[0][0], ends[1][0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ends[0][1], ends[1][1], rtol=1e-5, atol=1e-5)


def same(found: Loaded, expected: Loaded, rows: slice | None = None) -> bool:
    """Whether two loaders gave the same samples, or one gave those rows of the other's."""
    part = expected if rows is None else expected.part(rows)
    return (
        found.batch.images == part.batch.images
        and torch.equal(found.batch.input_ids, part.batch.input_ids)
        and torch.equal(found.images, part.images)
    )


@pytest.mark.parametrize(("workers", "later"), [(0, 2), (2, 0)])
def test_it_goes_on_from_any_batch(model: MiniGPT4, tiny_pairs: Path, workers: int, later: int) -> None:
    """With any other number of workers too."""
    whole = list(islice(loader(model, tiny_pairs, workers).start(0), 11))
    for after in (1, 4, 6):  # within a pool, and at its end
        rest = islice(loader(model, tiny_pairs, later).start(after, whole[after - 1].state), 11 - after)
        assert all(same(found, expected) for found, expected in zip(rest, whole[after:], strict=True))


def test_any_number_of_processes_gives_the_batches_of_one(model: MiniGPT4, tiny_pairs: Path) -> None:
    """And goes on with what another number of them has left."""
    whole = list(islice(loader(model, tiny_pairs).start(0), 9))
    for world in (2, 4, 8):
        states = []
        for rank in range(world):
            found = list(islice(loader(model, tiny_pairs, rank=rank, world=world).start(0), 5))
            assert all(same(f, e, slice(rank, None, world)) for f, e in zip(found, whole, strict=False))
            states.append(found[-1].state)
        rest = islice(loader(model, tiny_pairs).start(5, joined(states)), 4)
        assert all(same(f, e) for f, e in zip(rest, whole[5:], strict=True))
    odd = loader(model, tiny_pairs)
    with pytest.raises(UserError, match="was read in 4 lanes, now there are 8"):
        next(odd.start(9, {"lanes": 4, "states": {}}))


def test_each_pass_sees_every_pair_once(model: MiniGPT4, tiny_pairs: Path) -> None:
    batches = islice(loader(model, tiny_pairs, buffer=40).start(0), 20)  # four passes; a lane has five pairs
    seen = Counter(name.decode() for loaded in batches for name in loaded.batch.images)
    assert seen == dict.fromkeys(pictures(tiny_pairs), 4)


def test_samples_of_like_length_share_a_batch(model: MiniGPT4, tiny_pairs: Path) -> None:
    found = islice(loader(model, tiny_pairs, batch=5).start(0), 8)
    assert len({loaded.batch.input_ids.shape[1] for loaded in found}) > 2


def test_reading_ahead_keeps_order_passes_errors_on_and_ends_its_thread() -> None:
    def items() -> Iterator[int]:
        yield from range(10)
        raise UserError("a broken shard")

    ahead = read_ahead(items())
    assert list(islice(ahead, 10)) == list(range(10))
    with pytest.raises(UserError, match="a broken shard"):
        next(ahead)
    stopped = read_ahead(iter(range(10**9)))
    assert next(stopped) == 0
    stopped.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read_ahead")]


def test_rows_of_a_part_are_as_long_as_their_longest(model: MiniGPT4, tiny_pairs: Path) -> None:
    loaded: Loaded = next(loader(model, tiny_pairs).start(0))
    parts = [loaded.part(slice(start, start + 2)) for start in (0, 2, 4, 6)]
    assert sum(part.batch.num_tokens for part in parts) == loaded.batch.num_tokens
    for part in parts:
        assert part.batch.is_target[:, -1].any()
        assert len(part.images) == len(part.batch.images)


def test_a_batch_comes_out_even() -> None:
    recipe = Recipe.load("pocket-stage1", ["batch_size=24", "gradient_accumulation_steps=3"])
    assert rows_per_process(recipe, 4) == 6
    with pytest.raises(UserError, match="24 cannot be divided over 5 processes x 3 gradient_accumulation_steps"):
        rows_per_process(recipe, 5)


@pytest.mark.parametrize(
    ("batch", "world", "number"),
    [(256, 1, 32), (256, 8, 32), (256, 64, 64), (12, 1, 4), (12, 2, 4), (12, 3, 6), (12, 12, 12), (7, 1, 1)],
)
def test_lanes_divide_the_batch_and_are_divided_by_the_processes(batch: int, world: int, number: int) -> None:
    assert lanes(Recipe.load("pocket-stage1", [f"batch_size={batch}"]), world) == number
