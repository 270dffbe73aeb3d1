"""The cache of the frozen vision side's output: each picture goes through the vision side once, ever.

A feature tensor is found by the SHA-256 of its picture's file, in a directory that is named after the vision side's
weights; so runs and stages share one cache, and another tower's features are never taken by mistake. Shards are
safetensors files, written aside and renamed, and read memory-mapped. Knows nothing about texts or training.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from minigpt4.data.images import open_image
from minigpt4.data.pairs import Pair
from minigpt4.errors import UserError
from minigpt4.files import write_atomically
from minigpt4.progress import progress_bar

if TYPE_CHECKING:
    from minigpt4.model.alignment import MiniGPT4

logger = logging.getLogger(__name__)

ENCODE_BATCH = 64
SHARD_SIZE = 512


def picture_key(picture: bytes) -> bytes:
    """The key of a picture: the SHA-256 of its file."""
    return hashlib.sha256(picture).digest()


def features_fingerprint(model: MiniGPT4) -> str:
    """A name for all that decides a picture's features: the vision side's weights, its dtype, and the preprocessing."""
    preprocessing = json.dumps(model.image_processor.to_dict(), sort_keys=True, default=str)
    vision = f"{model.vision_fingerprint} {model.blip2.query_tokens.dtype} {preprocessing}"
    return hashlib.sha256(vision.encode()).hexdigest()[:16]


class FeatureCache:
    """Feature tensors of shape (num_query_tokens, d_qformer) by picture key, on disk."""

    def __init__(self, root: str | Path, fingerprint: str) -> None:
        self.directory = Path(root) / fingerprint
        self._shards: list[Tensor] = []
        self._where: dict[bytes, tuple[int, int]] = {}
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise UserError(f"feature_cache {root}: cannot be used as a directory ({error.strerror})") from error
        for path in sorted(self.directory.glob("*.safetensors")):
            self._read(path)

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, key: bytes) -> bool:
        return key in self._where

    def __getitem__(self, keys: Sequence[bytes]) -> Tensor:
        """The features of these pictures, (len(keys), num_query_tokens, d_qformer), in the dtype they were made in."""
        places = [self._where[key] for key in keys]
        return torch.stack([self._shards[shard][row] for shard, row in places])

    def add(self, keys: Sequence[bytes], features: Tensor) -> None:
        """Save the features of these pictures as one shard. Raises UserError if the disk is full."""
        name = hashlib.sha256(b"".join(keys)).hexdigest()[:16]
        rows = torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(len(keys), -1)
        path = self.directory / f"{name}.safetensors"
        write_atomically(path, save({"keys": rows, "features": features.cpu().contiguous()}))
        self._read(path)

    def _read(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as shard:
                keys, features = shard.get_tensor("keys").numpy(), shard.get_tensor("features")
        except (SafetensorError, OSError) as error:
            logger.warning("cached features %s are damaged and made anew (%s)", path, error)
            path.unlink()
            return
        self._where |= {row.tobytes(): (len(self._shards), i) for i, row in enumerate(keys)}
        self._shards.append(features)


def cache_features(
    model: MiniGPT4,
    cache: FeatureCache,
    pairs: Iterable[Pair],
    skipped: Counter[str],
    *,
    progress: bool = True,
    check_stop: Callable[[], None] = lambda: None,
) -> list[tuple[bytes, str]]:
    """Bring every picture of `pairs` into the cache; returns (picture key, text) of those that can be read.

    Pictures that cannot be opened are left out and counted in `skipped`. `check_stop` is called between pictures and
    may raise to end the work; what is encoded by then is kept, and found by the next call.
    """
    usable: list[tuple[bytes, str]] = []
    bad: set[bytes] = set()
    encoder = _Encoder(model, cache)
    try:
        with progress_bar(progress) as bar:
            task = bar.add_task("vision features", total=None, note="")
            for pair in pairs:
                check_stop()
                key = picture_key(pair.picture)
                if key not in cache and key not in encoder and key not in bad:
                    try:
                        encoder.add(key, open_image(pair.picture))
                    except UserError as error:
                        logger.debug("%s: %s", pair.name, error)
                        bad.add(key)
                if key in bad:
                    skipped["unreadable picture"] += 1
                else:
                    usable.append((key, pair.text))
                bar.advance(task)
        encoder.encode()
    finally:
        encoder.save()
    return usable


class _Encoder:
    """Collects pictures into batches for the vision side, and their features into shards of the cache."""

    def __init__(self, model: MiniGPT4, cache: FeatureCache) -> None:
        self._model, self._cache = model, cache
        self._batch: dict[bytes, Image.Image] = {}
        self._shard: dict[bytes, Tensor] = {}

    def __contains__(self, key: bytes) -> bool:
        return key in self._batch or key in self._shard

    def add(self, key: bytes, image: Image.Image) -> None:
        self._batch[key] = image
        if len(self._batch) == ENCODE_BATCH:
            self.encode()
        if len(self._shard) >= SHARD_SIZE:
            self.save()

    def encode(self) -> None:
        if self._batch:
            with torch.inference_mode():
                features = self._model.encode_images(list(self._batch.values()))
            self._shard |= dict(zip(self._batch, features, strict=True))
            self._batch = {}

    def save(self) -> None:
        if self._shard:
            shard, self._shard = self._shard, {}
            self._cache.add(list(shard), torch.stack(list(shard.values())))
