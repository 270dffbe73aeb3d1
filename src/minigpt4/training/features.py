"""The cache of the frozen vision side's output: by its fingerprint, then by the SHA-256 of an image's file."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from minigpt4.data.mixture import PairStream, count_pairs, tell
from minigpt4.data.pairs import Pair
from minigpt4.data.sources import Source
from minigpt4.errors import UserError
from minigpt4.files import write_atomically
from minigpt4.images import open_image, to_pixels
from minigpt4.model.parts import PATCHES_PER_TOKEN
from minigpt4.model.vision import ENCODE_BATCH, VisionSide
from minigpt4.progress import progress_bar

logger = logging.getLogger(__name__)

SHARD_SIZE = 512
KEY = np.dtype("S32")


def image_key(image: bytes) -> bytes:
    """The key of an image: the SHA-256 of its file."""
    return hashlib.sha256(image).digest()


def features_fingerprint(model: VisionSide) -> str:
    """A name for all that decides an image's features: the vision side's weights, its dtype, and the preprocessing."""
    preprocessing = json.dumps(model.image_processor.to_dict(), sort_keys=True, default=str)
    vision = f"{model.vision_fingerprint} {model.blip2.vision_model.dtype} {preprocessing}"
    if model.group != PATCHES_PER_TOKEN:
        vision += f" {model.group}"
    return hashlib.sha256(vision.encode()).hexdigest()[:16]


class FeatureCache:
    """Feature tensors of shape (num_query_tokens, d_qformer) by image key, on disk."""

    def __init__(self, root: str | Path, fingerprint: str) -> None:
        self.directory = Path(root) / fingerprint
        self._shards: list[Tensor] = []
        self.index = Index()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise UserError(f"feature_cache {root}: cannot be used as a directory ({error.strerror})") from error
        opened = [self._open(path) for path in sorted(self.directory.glob("*.safetensors"))]
        self.index.add([keys for keys in opened if keys is not None], 0)

    def __len__(self) -> int:
        return len(self.index)

    def __contains__(self, key: bytes) -> bool:
        return self.index.find(key) is not None

    def __getitem__(self, keys: Sequence[bytes]) -> Tensor:
        """Features of images, (len(keys), num_query_tokens, d_qformer), in their own dtype. Raises KeyError."""
        return torch.stack([self._shards[shard][row] for shard, row in map(self.index.__getitem__, keys)])

    def add(self, keys: Sequence[bytes], features: Tensor) -> None:
        """Save the features of these images as one shard. Raises UserError if the disk is full."""
        joined = b"".join(keys)
        rows = torch.frombuffer(bytearray(joined), dtype=torch.uint8).view(len(keys), -1)
        path = self.directory / f"{hashlib.sha256(joined).hexdigest()[:16]}.safetensors"
        write_atomically(path, save({"keys": rows, "features": features.cpu().contiguous()}))
        written = self._open(path)
        if written is not None:
            self.index.add([written], len(self._shards) - 1)

    def _open(self, path: Path) -> np.ndarray | None:
        """Map a shard's features into memory, as the last of the shards; returns its keys. A damaged one is deleted."""
        try:
            with safe_open(path, framework="pt") as shard:
                keys, features = shard.get_tensor("keys").numpy(), shard.get_tensor("features")
        except (SafetensorError, OSError) as error:
            logger.warning("cached features %s are damaged and computed again (%s)", path, error)
            path.unlink()
            return None
        self._shards.append(features)
        return keys


class Index:
    """(shard, row) by 32-byte key, in sorted arrays: a dict would take gigabytes for millions of keys."""

    def __init__(self) -> None:
        self._keys = np.empty(0, dtype=KEY)
        self._places = np.empty((0, 2), dtype=np.int32)

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, key: bytes) -> tuple[int, int]:
        place = self.find(key)
        if place is None:
            raise KeyError(key)
        return place

    def find(self, key: bytes) -> tuple[int, int] | None:
        """(shard, row) of a key, or None."""
        at = int(np.searchsorted(self._keys, key))
        if at == len(self._keys) or self._keys[at] != key.rstrip(b"\0"):  # numpy leaves out zeros at the end
            return None
        shard, row = self._places[at]
        return int(shard), int(row)

    def add(self, shards: Sequence[np.ndarray], first: int) -> None:
        """The keys (n, 32) uint8 of shards with numbers from `first` on, each in the order of the shard's rows."""
        if shards:
            keys = np.ascontiguousarray(np.concatenate(shards)).view(KEY)[:, 0]
            sizes = [len(shard) for shard in shards]
            numbers = np.repeat(np.arange(first, first + len(shards)), sizes)
            places = np.column_stack([numbers, np.concatenate([np.arange(size) for size in sizes])]).astype(np.int32)
            order = np.argsort(keys, kind="stable")
            at = np.searchsorted(self._keys, keys[order])
            self._keys = np.insert(self._keys, at, keys[order])
            self._places = np.insert(self._places, at, places[order], axis=0)


Prepared = tuple[bytes, Pair, np.ndarray | None]


@dataclass(frozen=True)
class Prepare:
    """Makes of a pair its image key, the pair without the image, and pixels (3, h, w): None if cached or another's."""

    image_processor: Any
    cached: Index
    rank: int = 0
    world: int = 1

    def __call__(self, pair: Pair) -> Prepared:
        key = image_key(pair.image)
        mine = int.from_bytes(key[:4], "big") % self.world == self.rank and self.cached.find(key) is None
        pixels = to_pixels(self.image_processor, [open_image(pair.image)])[0] if mine else None
        return key, replace(pair, image=b""), pixels


def cache_features(
    model: VisionSide,
    cache: FeatureCache,
    prepared: Iterable[Prepared],
    *,
    total: int | None = None,
    progress: bool = True,
    check_stop: Callable[[], None] = lambda: None,
) -> int:
    """Encode the images whose pixels come with `prepared`, each once; returns how many. `check_stop` may end it."""
    batch: dict[bytes, np.ndarray] = {}
    shard: dict[bytes, Tensor] = {}
    encoded = 0

    def encode() -> None:
        with torch.inference_mode():
            features = model.encode_pixels(torch.from_numpy(np.stack([*batch.values()])))
        shard.update(zip(batch, features, strict=True))
        batch.clear()

    def save() -> None:
        if shard:
            cache.add(list(shard), torch.stack([*shard.values()]))
            shard.clear()

    try:
        with progress_bar(progress) as bar:
            task = bar.add_task("vision features", total=total, note="")
            for key, _, pixels in prepared:
                check_stop()
                if pixels is not None and not (key in batch or key in shard or key in cache):
                    batch[key] = pixels
                    encoded += 1
                    if len(batch) == ENCODE_BATCH:
                        encode()
                    if len(shard) >= SHARD_SIZE:
                        save()
                bar.advance(task)
        if batch:
            encode()
    finally:
        save()
    return encoded


def encode_source(
    model: VisionSide, root: str | Path, source: Source, *, stage: int = 1, workers: int = 0, max_skipped: float = 0.1
) -> str:
    """Encode the images of a source that the cache below `root` lacks; returns what was done. Raises UserError."""
    cache = FeatureCache(root, features_fingerprint(model))
    stream = PairStream(
        [source], stage=stage, seed=0, shuffle_buffer=0, workers=workers, repeat=False,
        prepare=Prepare(model.image_processor, cache.index), max_skipped_share=max_skipped,
    )  # fmt: skip
    encoded = cache_features(model, cache, stream, total=count_pairs([source]))
    left_out = f"; left out: {tell(stream.skipped)}" if stream.skipped else ""
    return f"{stream.yielded} pairs, {encoded} new images encoded{left_out}; features are in {cache.directory}"
