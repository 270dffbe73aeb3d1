from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from formats import read
from minigpt4.data.mixture import Source
from minigpt4.data.pairs import Pair
from minigpt4.errors import UserError
from minigpt4.minigpt4 import MiniGPT4
from minigpt4.training.features import (
    FeatureCache,
    Index,
    Prepare,
    cache_features,
    encode_source,
    features_fingerprint,
    image_key,
)
from tiny import write_shard


@pytest.fixture(scope="module")
def model(tiny_vision: Path, tiny_llm: Path) -> MiniGPT4:
    return MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", device="cpu")


@pytest.fixture
def pairs(tiny_pairs: Path) -> list[Pair]:
    return read(tiny_pairs)[0]


def encode(model: MiniGPT4, cache: FeatureCache, pairs: Iterable[Pair], **settings: Any) -> int:
    return cache_features(model, cache, map(Prepare(model.image_processor, cache.index), pairs), **settings)


def count_encoded(model: MiniGPT4) -> list[int]:
    """A list that grows by the number of pictures each time the vision tower runs."""
    batches: list[int] = []
    model.blip2.vision_model.register_forward_hook(lambda module, args, output: batches.append(len(output[0])))
    return batches


def test_features_are_those_of_the_vision_side(model: MiniGPT4, pairs: list[Pair], tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "vision")
    assert encode(model, cache, pairs) == len(pairs)
    keys = [image_key(pairs[i].image) for i in (31, 2, 17)]
    expected = model.encode_images([pairs[i].image for i in (31, 2, 17)])
    torch.testing.assert_close(cache[keys], expected, rtol=1e-5, atol=1e-5)
    assert not cache[keys].requires_grad


def test_each_picture_is_encoded_once(model: MiniGPT4, pairs: list[Pair], tmp_path: Path) -> None:
    encoded = count_encoded(model)
    twice = [*pairs[:10], *pairs[:10]]
    assert encode(model, FeatureCache(tmp_path, "vision"), twice) == sum(encoded) == 10
    reopened = FeatureCache(tmp_path, "vision")  # another run, other texts: only new pictures are encoded
    assert encode(model, reopened, [Pair("", pair.image, "other text") for pair in pairs[:12]]) == 2
    assert sum(encoded) == 12
    assert len(FeatureCache(tmp_path, "vision")) == 12


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_left_out(model: MiniGPT4, pairs: list[Pair], tmp_path: Path, workers: int) -> None:
    images = [b"not an image", pairs[0].image, pairs[0].image[:60], b"not an image"]
    members = {f"{i}.{end}": data for i, image in enumerate(images) for end, data in (("jpg", image), ("txt", b"text"))}
    write_shard(tmp_path / "0.tar", members)
    source = Source(str(tmp_path / "0.tar"))
    told = encode_source(model, tmp_path, source, workers=workers, max_skipped=0.8)
    assert told.startswith("1 pairs, 1 new images encoded; left out: unreadable image 3; features are in ")
    with pytest.raises(UserError, match="3 of 4 pairs cannot be used"):
        encode_source(model, tmp_path, source, workers=workers)


def test_each_process_encodes_its_share(model: MiniGPT4, pairs: list[Pair], tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "vision")
    shares = [[Prepare(model.image_processor, cache.index, rank, 3)(pair)[2] for pair in pairs] for rank in range(3)]
    assert all(sum(pixels is not None for pixels in pair) == 1 for pair in zip(*shares, strict=True))
    assert all(any(pixels is not None for pixels in share) for share in shares)


def test_what_is_encoded_survives_a_stop(
    model: MiniGPT4, pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minigpt4.training.features.ENCODE_BATCH", 4)
    monkeypatch.setattr("minigpt4.training.features.SHARD_SIZE", 8)
    calls = iter(range(100))

    def stop_at_the_twentieth_picture() -> None:
        if next(calls) == 20:
            raise KeyboardInterrupt

    cache = FeatureCache(tmp_path, "vision")
    with pytest.raises(KeyboardInterrupt):
        encode(model, cache, pairs, check_stop=stop_at_the_twentieth_picture)
    assert len(FeatureCache(tmp_path, "vision")) == 20
    encoded = count_encoded(model)
    encode(model, FeatureCache(tmp_path, "vision"), pairs)
    assert sum(encoded) == len(pairs) - 20


def test_a_damaged_shard_is_made_anew(model: MiniGPT4, pairs: list[Pair], tmp_path: Path) -> None:
    encode(model, FeatureCache(tmp_path, "vision"), pairs)
    (shard,) = (tmp_path / "vision").glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:500])
    cache = FeatureCache(tmp_path, "vision")
    assert len(cache) == 0
    encode(model, cache, pairs)
    assert len(FeatureCache(tmp_path, "vision")) == len(pairs)


def test_the_fingerprint_tells_dtypes_and_preprocessing_apart(
    model: MiniGPT4, tiny_vision: Path, tiny_llm: Path
) -> None:
    same = MiniGPT4.assemble(tiny_vision, tiny_llm, template="blip2", device="cpu", seed=3)
    half = MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", device="cpu", dtype="bfloat16")
    other_mean = MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", device="cpu")
    other_mean.image_processor.image_mean = [0.0, 0.0, 0.0]
    assert features_fingerprint(same) == features_fingerprint(model)
    other_half = MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", device="cpu", dtype="float16")
    assert len({features_fingerprint(m) for m in (model, half, other_half, other_mean)}) == 4


def test_bfloat16_features_keep_their_dtype(tmp_path: Path) -> None:
    cache, features = FeatureCache(tmp_path, "vision"), torch.randn(3, 4, 24, dtype=torch.bfloat16)
    keys = [image_key(bytes([i])) for i in range(3)]
    cache.add(keys, features)
    assert torch.equal(FeatureCache(tmp_path, "vision")[keys[::-1]], features.flip(0))


def test_a_cache_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="feature_cache"):
        FeatureCache(tmp_path / "file", "vision")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_source_is_encoded_as_its_pictures_are(
    model: MiniGPT4, tiny_pairs: Path, pairs: list[Pair], tmp_path: Path, workers: int
) -> None:
    told = encode_source(model, tmp_path, Source(str(tiny_pairs)), workers=workers)
    assert told.startswith("40 pairs, 40 new images encoded; features are in ")
    cache = FeatureCache(tmp_path, features_fingerprint(model))
    expected = model.encode_images([pair.image for pair in pairs])
    torch.testing.assert_close(cache[[image_key(pair.image) for pair in pairs]], expected, rtol=1e-5, atol=1e-5)
    encoded = count_encoded(model)
    assert "40 pairs, 0 new" in encode_source(model, tmp_path, Source(str(tiny_pairs)), workers=workers)
    assert encoded == []


def test_another_tower_finds_nothing_in_the_cache(
    model: MiniGPT4, tiny_pairs: Path, tiny_vision: Path, tiny_llm: Path, tmp_path: Path
) -> None:
    encode_source(model, tmp_path, Source(str(tiny_pairs)))
    without = MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", device="cpu", dtype="bfloat16")
    assert len(FeatureCache(tmp_path, features_fingerprint(without))) == 0
    assert "40 new" in encode_source(without, tmp_path, Source(str(tiny_pairs)))


def test_the_loss_from_the_cache_is_that_from_pictures(
    model: MiniGPT4, tiny_pairs: Path, pairs: list[Pair], tmp_path: Path
) -> None:
    encode_source(model, tmp_path, Source(str(tiny_pairs)))
    cache = FeatureCache(tmp_path, features_fingerprint(model))
    keys = [image_key(pair.image) for pair in pairs[:8]]
    ids = torch.tensor([[model.image_token_id] * model.num_query_tokens + [5, 6, 7, 8]] * 8)

    def loss(features: torch.Tensor) -> torch.Tensor:
        logits = model.logits(model.hidden_states(ids, features))[:, -4:-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, -3:].flatten())

    from_cache, from_pictures = loss(cache[keys]), loss(model.encode_images([pair.image for pair in pairs[:8]]))
    torch.testing.assert_close(from_cache, from_pictures, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(from_cache, loss(cache[keys[::-1]].flip(1)))


def test_the_index_finds_every_key_among_many() -> None:
    keys = np.random.default_rng(0).integers(0, 256, (5000, 32), dtype=np.uint8)
    keys[1::2, :8] = keys[::2, :8]  # pairs of keys that begin alike
    index = Index()
    index.add([], 0)
    index.add([keys[:1500], keys[1500:2000]], 0)
    for shard in range(2, 32):
        index.add([keys[1800 + 100 * shard : 1900 + 100 * shard]], shard)
    assert len(index) == 5000
    assert [index[bytes(key)] for key in keys[:2000]] == [divmod(i, 1500) for i in range(2000)]
    assert [index[bytes(key)] for key in keys[2000:]] == [(2 + i // 100, i % 100) for i in range(3000)]
    assert index.find(bytes(32)) is None


def test_a_large_cache_is_mapped_not_read(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "vision")
    for shard in range(4):
        keys = [image_key(bytes([shard, i])) for i in range(64)]
        cache.add(keys, torch.full((64, 32, 2048), float(shard)))  # 16 MB
    before = psutil.Process().memory_info().rss
    cache = FeatureCache(tmp_path, "vision")
    assert cache[[image_key(bytes([3, 7]))]].mean() == 3
    assert psutil.Process().memory_info().rss - before < 8e6
