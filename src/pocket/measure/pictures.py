"""Pocket pictures to measure on: drawn from the held-out seeds, each suite from its own part of them."""

from __future__ import annotations

from pathlib import Path

from pocket.world import world

#: Where each suite's pictures begin in the seeds that nothing was trained on; the demo's survey begins at 0, and those
#: of `pocket.data.benchmarks` at 400,000.
_PARTS = {"abilities": 200_000, "reliability": 300_000}
SIDE = 256


def held_out_seeds(suite: str, count: int, skip: int = 0) -> range:
    """`count` seeds for a suite, after `skip` others of its own."""
    first = world.SEEDS["evaluation"][0] + _PARTS[suite] + skip
    return range(first, first + count)


def draw_picture(directory: Path, seed: int, type: str | None = None) -> Path:
    """The file of one picture in `directory`, which is drawn unless it is there."""
    from pocket.world.draw import draw

    path = directory / f"{seed}.png"
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        temporary = directory / f".{seed}.png"
        draw(world.sample(seed, type), SIDE).save(temporary, "PNG")
        temporary.replace(path)
    return path


def draw_held_out(
    directory: Path, suite: str, count: int, types: tuple[str, ...] = ("scene", "food", "product", "odd")
) -> list[Path]:
    """`count` pictures of these types in turn; the default is all that a poem fits."""
    seeds = held_out_seeds(suite, count)
    return [draw_picture(directory, seed, types[k % len(types)]) for k, seed in enumerate(seeds)]
