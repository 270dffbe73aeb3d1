"""Pocket pictures as datasets in the paper's formats, so that both stages read what they would read at full size.

Stage 1: img2dataset tar shards (`00000.tar` with `<key>.jpg`, `<key>.json` whose `caption` is the text). Stage 2: a
`cc_sbu_align` directory (`filter_cap.json` and `image/<id>.jpg`). Which picture and text stands at which place follows
from the seed ranges of `world.SEEDS`; a longer dataset begins with the shorter one.
"""

import io
import json
import random
import tarfile
from pathlib import Path

from minigpt4.errors import UserError
from minigpt4.files import new_directory
from minigpt4.images import encoded
from minigpt4.progress import progress_bar
from pocket.text.phrases import caption, description
from pocket.world.draw import draw
from pocket.world.world import SEEDS, sample

#: Side of the pictures in pixels: more than the tower sees, as real pictures have.
PICTURE_SIZE = 192
PAIRS_PER_SHARD = 1000


def write_stage1(out: Path, count: int, overwrite: bool = False) -> Path:
    """Writes `count` pictures with short captions as tar shards into `out`, which must be empty or not exist.

    Raises:
        UserError: `out` holds something, cannot be written, or `count` is not in the seed range.
    """
    seeds = take_seeds("stage1", SEEDS["stage1"], count)
    with new_directory(out, overwrite=overwrite, marker="00000.tar") as directory, progress_bar() as bar:
        task = bar.add_task("pictures with short captions", total=count, note="")
        for start in range(0, count, PAIRS_PER_SHARD):
            with tarfile.open(directory / f"{start // PAIRS_PER_SHARD:05d}.tar", "w") as shard:
                for seed in seeds[start : start + PAIRS_PER_SHARD]:
                    text = caption(sample(seed), random.Random(f"caption-{seed}"))
                    record = {"caption": text, "key": str(seed), "width": PICTURE_SIZE, "height": PICTURE_SIZE}
                    _add(shard, f"{seed}.jpg", _jpeg(seed))
                    _add(shard, f"{seed}.json", json.dumps(record).encode())
                    bar.advance(task)
    return out


def write_stage2(out: Path, count: int, overwrite: bool = False) -> Path:
    """Writes `count` pictures with detailed descriptions as `cc_sbu_align` into `out`; errors as `write_stage1`."""
    seeds = take_seeds("stage2", SEEDS["stage2"], count)
    annotations = []
    with new_directory(out, overwrite=overwrite, marker="filter_cap.json") as directory, progress_bar() as bar:
        task = bar.add_task("pictures with detailed descriptions", total=count, note="")
        (directory / "image").mkdir()
        for seed in seeds:
            (directory / "image" / f"{seed}.jpg").write_bytes(_jpeg(seed))
            text = description(sample(seed), random.Random(f"description-{seed}"))
            annotations.append({"image_id": str(seed), "caption": text})
            bar.advance(task)
        (directory / "filter_cap.json").write_text(json.dumps({"annotations": annotations}, indent=1))
    return out


def take_seeds(use: str, seeds: tuple[int, int], count: int) -> range:
    """The first `count` of the `seeds` (first, number) for one use. Raises UserError if there are not so many."""
    first, most = seeds
    if not 1 <= count <= most:
        raise UserError(f"count is {count}, expected 1 to {most:,} pictures: the seeds that {use} may use")
    return range(first, first + count)


def _jpeg(seed: int) -> bytes:
    return encoded(draw(sample(seed), PICTURE_SIZE), "JPEG", quality=92)


def _add(shard: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    shard.addfile(member, io.BytesIO(data))
