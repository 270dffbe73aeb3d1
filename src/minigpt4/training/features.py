"""The cache of the frozen vision side's output: each picture goes through the vision side once, ever.

A feature tensor is found by the SHA-256 of its picture's file, in a directory that is named after the vision side's
weights; so runs and stages share one cache, and another tower's features are never taken by mistake. Shards are
safetensors files, written aside and renamed, and read memory-mapped; where each picture's features lie is an index in
memory of 40 bytes a picture.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from minigpt4.data.mixture import PairStream, Source, count_pairs, tell
from minigpt4.data.pairs import Pair
from minigpt4.errors import UserError
from minigpt4.files import write_atomically
from minigpt4.images import open_image
from minigpt4.model.vision import ENCODE_BATCH
from minigpt4.progress import progress_bar

if TYPE_CHECKING:
    from minigpt4.model.vision import VisionSide

logger = logging.getLogger(__name__)

T = TypeVar("T")

SHARD_SIZE = 512
KEY_BYTES = 32
SORTED_AT = 1 << 16  # recent keys that are worth sorting in


def picture_key(picture: bytes) -> bytes:
    """The key of a picture: the SHA-256 of its file."""
    return hashlib.sha256(picture).digest()


def features_fingerprint(model: VisionSide) -> str:
    """A name for all that decides a picture's features: the vision side's weights, its dtype, and the preprocessing."""
    preprocessing = json.dumps(model.image_processor.to_dict(), sort_keys=True, default=str)
    vision = f"{model.vision_fingerprint} {model.blip2.query_tokens.dtype} {preprocessing}"
    return hashlib.sha256(vision.encode()).hexdigest()[:16]


class FeatureCache:
    """Feature tensors of shape (num_query_tokens, d_qformer) by picture key, on disk."""

    def __init__(self, root: str | Path, fingerprint: str) -> None:
        self.directory = Path(root) / fingerprint
        self._shards: list[Tensor] = []
        self.index = Index()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise UserError(f"feature_cache {root}: cannot be used as a directory ({error.strerror})") from error
        opened = (self._open(path) for path in sorted(self.directory.glob("*.safetensors")))
        found = [keys for keys in opened if keys is not None]
        if found:
            places = [np.column_stack([np.full(len(keys), i), np.arange(len(keys))]) for i, keys in enumerate(found)]
            self.index.sort_in(np.concatenate(found), np.concatenate(places).astype(np.int32))

    def __len__(self) -> int:
        return len(self.index)

    def __contains__(self, key: bytes) -> bool:
        return self.index.find(key) is not None

    def __getitem__(self, keys: Sequence[bytes]) -> Tensor:
        """The features of these pictures, (len(keys), num_query_tokens, d_qformer), in the dtype they were made in.

        Raises KeyError for a picture that is not there.
        """
        places = [self.index[key] for key in keys]
        return torch.stack([self._shards[shard][row] for shard, row in places])

    def add(self, keys: Sequence[bytes], features: Tensor) -> None:
        """Save the features of these pictures as one shard. Raises UserError if the disk is full."""
        name = hashlib.sha256(b"".join(keys)).hexdigest()[:16]
        rows = torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(len(keys), -1)
        path = self.directory / f"{name}.safetensors"
        write_atomically(path, save({"keys": rows, "features": features.cpu().contiguous()}))
        written = self._open(path)
        if written is not None:
            self.index.add(written, len(self._shards) - 1)

    def _open(self, path: Path) -> np.ndarray | None:
        """Map a shard's features into memory, as the last of the shards; returns its keys. A damaged one is deleted."""
        try:
            with safe_open(path, framework="pt") as shard:
                keys, features = shard.get_tensor("keys").numpy(), shard.get_tensor("features")
        except (SafetensorError, OSError) as error:
            logger.warning("cached features %s are damaged and made anew (%s)", path, error)
            path.unlink()
            return None
        self._shards.append(features)
        return keys


class Index:
    """(shard, row) by 32-byte key, in sorted arrays: a dict would take gigabytes for millions of keys.

    What is added piece by piece goes into a small dict first, and is sorted in when there is enough of it.
    """

    def __init__(self) -> None:
        self._heads = np.empty(0, dtype=np.uint64)  # first 8 bytes of each key, sorted
        self._tails = np.empty((0, KEY_BYTES - 8), dtype=np.uint8)
        self._places = np.empty((0, 2), dtype=np.int32)
        self._recent: dict[bytes, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._heads) + len(self._recent)

    def __getitem__(self, key: bytes) -> tuple[int, int]:
        place = self.find(key)
        if place is None:
            raise KeyError(key)
        return place

    def find(self, key: bytes) -> tuple[int, int] | None:
        """(shard, row) of a key, or None."""
        if key in self._recent:
            return self._recent[key]
        head = np.frombuffer(key, dtype=">u8", count=1)[0]
        at = int(np.searchsorted(self._heads, head))
        while at < len(self._heads) and self._heads[at] == head:  # more than one turn is a chance in a million
            if self._tails[at].tobytes() == key[8:]:
                shard, row = self._places[at]
                return int(shard), int(row)
            at += 1
        return None

    def add(self, keys: np.ndarray, shard: int) -> None:
        """Keys (n, 32) uint8, in the order of the shard's rows."""
        self._recent |= {key.tobytes(): (shard, row) for row, key in enumerate(keys)}
        if len(self._recent) >= SORTED_AT:
            recent = np.frombuffer(b"".join(self._recent), dtype=np.uint8).reshape(-1, KEY_BYTES)
            self.sort_in(recent, np.array([*self._recent.values()], dtype=np.int32))
            self._recent = {}

    def sort_in(self, keys: np.ndarray, places: np.ndarray) -> None:
        """Keys (n, 32) uint8 and their (shard, row), (n, 2) int32, many at once."""
        heads = np.concatenate([self._heads, keys[:, :8].copy().view(">u8")[:, 0].astype(np.uint64)])
        order = np.argsort(heads, kind="stable")
        self._heads = heads[order]
        self._tails = np.concatenate([self._tails, keys[:, 8:]])[order]
        self._places = np.concatenate([self._places, places])[order]


def cache_features(
    model: VisionSide,
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
    encoder: _Encoder[Image.Image] = _Encoder(cache, model.encode_images)
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


@dataclass(frozen=True)
class Encoded:
    """What `encode_source` has done: pairs read, pictures encoded, what was left out, and where the features are."""

    pairs: int
    new: int
    skipped: Counter[str]
    directory: Path

    def __str__(self) -> str:
        left_out = f"; left out: {tell(self.skipped)}" if self.skipped else ""
        return f"{self.pairs} pairs, {self.new} new pictures encoded{left_out}; features are in {self.directory}"


def encode_source(
    model: VisionSide,
    root: str | Path,
    source: Source,
    *,
    stage: int = 1,
    workers: int = 0,
    max_skipped_share: float = 0.1,
    progress: bool = True,
) -> Encoded:
    """Bring every picture of a source into the cache below `root`: the form for millions of them.

    `workers` processes read, decode and resize; what is cached already is neither. Whatever ends this early, the same
    call goes on with the pictures that are missing. Raises UserError as `PairStream` does, or if the disk is full.
    """
    cache = FeatureCache(root, features_fingerprint(model))
    encoder: _Encoder[Tensor] = _Encoder(cache, lambda pixels: model.encode_pixels(torch.stack(pixels)))
    stream = PairStream(
        [source], stage=stage, seed=0, shuffle_buffer=0, workers=workers, repeat=False,
        prepare=_Pixels(model.image_processor, cache.index), max_skipped_share=max_skipped_share,
    )  # fmt: skip
    pairs = new = 0
    try:
        with progress_bar(progress) as bar:
            task = bar.add_task("vision features", total=count_pairs([source]), note="")
            for key, pixels in stream:
                pairs += 1
                if pixels is not None and key not in cache and key not in encoder:
                    encoder.add(key, pixels)
                    new += 1
                bar.advance(task)
        encoder.encode()
    finally:
        encoder.save()
    return Encoded(pairs, new, stream.skipped, cache.directory)


@dataclass(frozen=True)
class _Pixels:
    """What a worker makes of a pair: its picture's key and, unless it is cached, pixel values (3, h, w)."""

    processor: Any
    known: Index

    def __call__(self, pair: Pair) -> tuple[bytes, Tensor | None]:
        key = picture_key(pair.picture)
        if self.known.find(key) is not None:
            return key, None
        return key, self.processor([open_image(pair.picture)], return_tensors="pt")["pixel_values"][0]


class _Encoder(Generic[T]):
    """Collects pictures into batches for the vision side, and their features into shards of the cache."""

    def __init__(self, cache: FeatureCache, encode: Callable[[list[T]], Tensor]) -> None:
        self._cache, self._encode = cache, encode
        self._batch: dict[bytes, T] = {}
        self._shard: dict[bytes, Tensor] = {}

    def __contains__(self, key: bytes) -> bool:
        return key in self._batch or key in self._shard

    def add(self, key: bytes, picture: T) -> None:
        self._batch[key] = picture
        if len(self._batch) == ENCODE_BATCH:
            self.encode()
        if len(self._shard) >= SHARD_SIZE:
            self.save()

    def encode(self) -> None:
        if self._batch:
            with torch.inference_mode():
                features = self._encode(list(self._batch.values()))
            self._shard |= dict(zip(self._batch, features, strict=True))
            self._batch = {}

    def save(self) -> None:
        if self._shard:
            shard, self._shard = self._shard, {}
            self._cache.add(list(shard), torch.stack(list(shard.values())))
