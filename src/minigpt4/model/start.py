"""Starts for the projection that are better than chance: among words, or another BLIP-2's own, carried over.

A Q-Former comes with a projection into the LLM that it was trained with. Both LLMs have embeddings of many of the same
words, so a ridge regression from the one's to the other's carries what is projected there over to here. Nothing is
trained, and no picture is needed. Knows nothing about recipes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Blip2Config, Blip2ForConditionalGeneration

from minigpt4.errors import UserError
from minigpt4.model import parts, sources
from minigpt4.model.record import ALIGNMENT_FILE, PROJECTION_FILE, load_tensors, read_record

if TYPE_CHECKING:
    from minigpt4.model.alignment import MiniGPT4

RIDGE = 1e-2  # of the mean squared length of what is regressed on
#: Fewer words in common than this cannot tell how the embeddings belong together.
MIN_SHARED = 256
SPACES = ("Ġ", "▁")  # how tokenizers write the space before a word


@dataclass(frozen=True)
class Projected:
    """A projection with the word embeddings of the LLM that it projects into.

    `weight` (d_llm, d_qformer), `bias` (d_llm), `embeddings` (vocabulary, d_llm), all float32; `vocabulary` has the row
    of each word, `vision_fingerprint` belongs to the vision side before it.
    """

    weight: Tensor
    bias: Tensor
    embeddings: Tensor
    vocabulary: Mapping[str, int]
    vision_fingerprint: str


def carry_projection(model: MiniGPT4, name: str | Path) -> None:
    """Let the model's projection start as that of another BLIP-2 with the same vision side, `name`.

    `name` is an alignment or a BLIP-2 checkpoint, with whatever LLM. Raises UserError if it has no such projection or
    another vision side.
    """
    theirs = read_projected(name)
    if theirs.vision_fingerprint != model.vision_fingerprint:
        raise UserError(
            f"projection_from {name}: its vision side is another one than {model.origin.vision_qformer}, so its "
            "projection reads other features; give the BLIP-2 that this vision side comes from"
        )
    ours = {_plain(word): row for word, row in model.tokenizer.get_vocab().items()}
    shared = sorted(ours.keys() & theirs.vocabulary.keys())
    if len(shared) < MIN_SHARED:
        raise UserError(
            f"projection_from {name}: its LLM and {model.origin.llm} have {len(shared)} words in common, too few to "
            f"carry a projection over ({MIN_SHARED} are needed); leave it out"
        )
    embeddings = model.blip2.language_model.get_input_embeddings().weight.detach().float().cpu()
    carry = ridge(
        theirs.embeddings[[theirs.vocabulary[word] for word in shared]], embeddings[[ours[w] for w in shared]]
    )
    projection: Any = model.blip2.language_projection
    with torch.no_grad():
        projection.weight.copy_((theirs.weight.T @ carry[:-1]).T)
        projection.bias.copy_(theirs.bias @ carry[:-1] + carry[-1])


def start_among_words(model: MiniGPT4) -> None:
    """Let image tokens start around the LLM's mean word embedding: it becomes the bias of the projection's last layer.

    What all words have in common an LLM may need in every token that it reads; the pocket LLM finds positions by it.
    Where they have little in common, as in most LLMs, this changes little.
    """
    projection: Any = model.blip2.language_projection
    last: Any = projection[-1] if isinstance(projection, torch.nn.Sequential) else projection
    llm: Any = model.blip2.language_model
    with torch.no_grad():
        last.bias.copy_(llm.get_input_embeddings().weight.mean(0, dtype=torch.float32))


@torch.no_grad()
def fit_to_words(model: MiniGPT4, features: Tensor) -> None:
    """Move and scale a projection of one layer: what it makes of `features` gets the words' mean and spread.

    `features` (n, q, d_qformer) are those of some pictures. The spread is the mean distance from the mean, over all
    image tokens and over all of the LLM's word embeddings. A carried-over projection comes out many times as wide.
    """
    projection: Any = model.blip2.language_projection
    embeddings = model.blip2.language_model.get_input_embeddings().weight.float()
    made = projection(features.to(projection.weight)).flatten(0, 1)
    mean, wanted = made.mean(0), embeddings.mean(0).to(made)
    spread, wanted_spread = (x.sub(x.mean(0)).norm(dim=-1).mean().to(made) for x in (made, embeddings))
    projection.weight.mul_(wanted_spread / spread)
    projection.bias.sub_(mean).mul_(wanted_spread / spread).add_(wanted)


def check_projection_from(name: str | Path) -> bool:
    """Whether `name` is an alignment, in a moment. Raises UserError if it is that no more than a BLIP-2 checkpoint."""
    source = sources.resolve(name)
    if sources.find_file(source, "config.json") is None and sources.find_file(source, ALIGNMENT_FILE):
        return True
    if sources.read_json(source, "config.json").get("model_type") != "blip-2":
        raise UserError(f"projection_from {name}: is no BLIP-2; give an alignment or a BLIP-2 checkpoint")
    return False


def read_projected(name: str | Path) -> Projected:
    """The projection of an alignment or of a BLIP-2 checkpoint, its LLM's words, and which vision side it has."""
    source = sources.resolve(name)
    if check_projection_from(name):
        origin = read_record(source)[0]
        tensors = load_tensors(sources.find_file(source, PROJECTION_FILE), str(name), PROJECTION_FILE)
        llm, vision = origin.llm, origin.vision_fingerprint
        words, prefix = parts.llm_skeleton(sources.resolve(llm)), ""
    else:
        with torch.device("meta"):
            words = Blip2ForConditionalGeneration(sources.load(Blip2Config, source)).language_model
        whole = sources.Checkpoint(source)
        prefix = next((key.partition("language_model.")[0] for key in whole if "language_model." in key), "")
        tensors = {key: whole[f"{prefix}language_projection.{key}"] for key in ("weight", "bias")}
        llm, vision, prefix = str(name), parts.load_vision_qformer(name).fingerprint, prefix + "language_model."
    if tensors.keys() != {"weight", "bias"}:
        raise UserError(f"projection_from {name}: its projection has several layers; give one of a single layer")
    vocabulary = {_plain(word): row for word, row in parts.load_tokenizer(llm).get_vocab().items()}
    embeddings = _embeddings(sources.Checkpoint(sources.resolve(llm), prefix), words, str(llm))
    known = {word: row for word, row in vocabulary.items() if row < len(embeddings)}
    return Projected(tensors["weight"].float(), tensors["bias"].float(), embeddings, known, vision)


def ridge(x: Tensor, y: Tensor, strength: float = RIDGE) -> Tensor:
    """(d + 1, e): the linear map with bias from x (n, d) to y (n, e) that fits best, held small by `strength`."""
    a = torch.cat([x, torch.ones(len(x), 1)], 1)
    gram = a.T @ a
    return torch.linalg.solve(gram + strength * gram.diagonal().mean() * torch.eye(len(gram)), a.T @ y)


def _embeddings(checkpoint: sources.Checkpoint, skeleton: Any, name: str) -> Tensor:
    """The word embeddings in a checkpoint, by any of the names under which the model has them."""
    words = skeleton.get_input_embeddings().weight
    names = [key for key, p in skeleton.named_parameters(remove_duplicate=False) if p is words]
    found = next((key for key in names if key in checkpoint), None)
    if found is None:
        raise UserError(f"{name}: holds none of {', '.join(names)}, which should be its word embeddings")
    return checkpoint[found].float()


def _plain(word: str) -> str:
    """A token as text, the space before it written in one way, whichever tokenizer it is of."""
    return word.replace(SPACES[0], " ").replace(SPACES[1], " ")
