"""Keep the best N texts by grounding and fluency, one of an image, in proportion from each kind of images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minigpt4.curation.grounding import ImageFeatures
from minigpt4.curation.ledger import Description, Ledger
from minigpt4.errors import UserError
from minigpt4.minigpt4 import MiniGPT4


def cluster(vectors: np.ndarray, count: int, seed: int = 0, rounds: int = 30) -> np.ndarray:
    """k-means with k-means++ seeding: the cluster, 0 to `count` - 1, of each row of `vectors` (n, d)."""
    rng = np.random.default_rng(seed)
    centres = vectors[[rng.integers(len(vectors))]]
    while len(centres) < count:
        distance = ((vectors[:, None] - centres[None]) ** 2).sum(-1).min(1)
        if distance.sum() <= 0:
            break  # fewer distinct rows than clusters
        centres = np.vstack([centres, vectors[rng.choice(len(vectors), p=distance / distance.sum())]])
    for _ in range(rounds):
        nearest = ((vectors[:, None] - centres[None]) ** 2).sum(-1).argmin(1)
        moved = np.stack(
            [vectors[nearest == k].mean(0) if (nearest == k).any() else centres[k] for k in range(len(centres))]
        )
        if np.allclose(moved, centres):
            break
        centres = moved
    return nearest


def choose(best: int, scores: np.ndarray, groups: np.ndarray) -> list[int]:
    """The indices of `best` rows: the best of each group, in proportion to its size (largest remainders)."""
    names, sizes = np.unique(groups, return_counts=True)
    exact = best * sizes / sizes.sum()
    quota = np.floor(exact).astype(int)
    for k in np.argsort(quota - exact, kind="stable")[: best - int(quota.sum())]:
        quota[k] += 1
    chosen: list[int] = []
    for name, count in zip(names, quota, strict=True):
        members = np.flatnonzero(groups == name)
        chosen += members[np.argsort(-scores[members], kind="stable")[:count]].tolist()
    return sorted(chosen)


def select(ledger: Ledger, best: int | None, *, model: str | Path | None = None, clusters: int = 10) -> dict[str, int]:
    """Select the `best` texts that no rule caught, spread by features of `model`; None undoes it. Raises UserError."""
    with ledger.lock("select"):
        items, candidates = ledger.items(), list[Description]()
        chosen: dict[tuple[str, int], float] = {}
        if best is not None:
            allowed = [item for item in items if item.verdict is not None and not item.verdict.data["caught"]]
            if not allowed:
                if any(item.verdict for item in items):
                    raise UserError(f"{ledger.project}: no text has passed the rules; {ledger.left_out()}")
                raise UserError(f"{ledger.project}: no text was judged by the rules; run minigpt4 curate filter first")
            candidates, scores = best_samples(allowed)
            if best > len(candidates):
                raise UserError(f"--best {best}: only {len(candidates)} images have a text that passed the rules")
            groups = _groups(ledger, model, candidates, min(clusters, best))
            chosen = {candidates[i].key: float(scores[i]) for i in choose(best, scores, groups)}
        settings = ledger.settings("select", {"best": best, "clusters": clusters, "model": str(model)})
        rows: list[tuple[tuple[str, int], int, dict[str, Any]]] = []
        for item in items:
            data = {"selected": best and item.key in chosen, "quality": chosen.get(item.key)}
            if data != (item.selection.data if item.selection is not None else {"selected": None, "quality": None}):
                rows.append((item.key, item.source.seq, data))
        ledger.add("select", settings, rows, ledger.next_turn("select"))
        return {"selected": len(chosen), "candidates": len(candidates), "changed": len(rows)}


def best_samples(items: Sequence[Description]) -> tuple[list[Description], np.ndarray]:
    """Each image's best text, and quality (0 to 1): the mean rank by grounding and fluency. Raises UserError."""
    measured = [item.grounding for item in items if item.grounding]
    if missing := len(items) - len(measured):
        raise UserError(f"{missing} texts have no grounding; measure it with minigpt4 curate filter --model first")
    scores = np.zeros(len(items))
    for name in ("whole", "fluency"):  # the least grounded sentence is mostly a filler that fits any image
        order = np.argsort([data[name] for data in measured], kind="stable")
        scores[order] += 0.5 * (np.arange(len(items)) / max(1, len(items) - 1))
    best: dict[str, int] = {}
    for i, item in enumerate(items):
        if item.image.name not in best or scores[i] > scores[best[item.image.name]]:
            best[item.image.name] = i
    chosen = list(best.values())
    return [items[i] for i in chosen], scores[chosen]


def _groups(ledger: Ledger, model: str | Path | None, items: Sequence[Description], count: int) -> np.ndarray:
    if count < 2 or model is None:
        return np.zeros(len(items), dtype=int)
    features = ImageFeatures(MiniGPT4.from_pretrained(model), ledger)
    found = {item.image.name: features.get(item.image.name) for item in items}
    if gone := [name for name, feature in found.items() if feature is None]:
        raise UserError(f"{ledger.project}: {len(gone)} images are gone (the first is {gone[0]!r}); put them back")
    vectors = np.stack([feature.float().mean(0).cpu().numpy() for feature in found.values() if feature is not None])
    vectors -= vectors.mean(0)
    return cluster(vectors / (np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-9), count)
