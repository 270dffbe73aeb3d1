"""How the projection starts its training: among word embeddings, or from another BLIP-2's projection.

A Q-Former comes with a projection into the LLM that it was trained with. Both LLMs embed many of the same words, so a
ridge regression from one LLM's embeddings to the other's carries that projection over, without training or images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, Blip2ForConditionalGeneration

from minigpt4.errors import UserError
from minigpt4.model import parts, sources
from minigpt4.model.aligned import AlignedModel
from minigpt4.model.gguf import open_tensors
from minigpt4.model.loading import ALIGNMENT_FILE, read_projection, read_record

MIN_SHARED = 256  # a regression on fewer words in common is meaningless


def carry_projection(model: AlignedModel, name: str | Path) -> None:
    """Start the projection from that of `name`: an alignment or BLIP-2 with one layer and the same vision side."""
    llm: str | Path = name
    if check_projection_from(name):
        origin = read_record(name).origin
        llm, vision = origin.llm, origin.vision_fingerprint
    else:
        vision = parts.load_vision_qformer(name).fingerprint
    if vision != model.vision_fingerprint:
        raise UserError(
            f"projection_from {name}: its vision side is another one than {model.origin.vision_qformer}, so its "
            "projection reads other features; give the BLIP-2 that this vision side comes from"
        )
    theirs = read_projection(name)
    if theirs.keys() != {"weight", "bias"}:
        raise UserError(f"projection_from {name}: its projection has several layers; give one of a single layer")
    x, y = _shared_words(llm, model, name)
    carry = ridge(x, y)
    projection: Any = model.blip2.language_projection
    with torch.no_grad():
        projection.weight.copy_((theirs["weight"].float().T @ carry[:-1]).T)
        projection.bias.copy_(theirs["bias"].float() @ carry[:-1] + carry[-1])


def _shared_words(llm: str | Path, model: AlignedModel, name: str | Path) -> tuple[Tensor, Tensor]:
    """The embeddings (n, d) and (n, d_llm) of the words that both LLMs know. Raises UserError if these are few."""
    theirs, ours = _embeddings(llm), model.blip2.language_model.get_input_embeddings().weight.detach().float().cpu()
    their_rows, our_rows = _rows(parts.load_tokenizer(llm)), _rows(model.tokenizer)
    shared = sorted(word for word in our_rows.keys() & their_rows.keys() if their_rows[word] < len(theirs))
    if len(shared) < MIN_SHARED:
        raise UserError(
            f"projection_from {name}: its LLM and {model.origin.llm} have {len(shared)} words in common, too few to "
            f"carry a projection over ({MIN_SHARED} are needed); leave it out"
        )
    return theirs[[their_rows[word] for word in shared]], ours[[our_rows[word] for word in shared]]


def _rows(tokenizer: Any) -> dict[str, int]:
    """The rows of words in the embeddings, with the same space before a word whatever the tokenizer writes."""
    return {word.replace("Ġ", " ").replace("▁", " "): row for word, row in tokenizer.get_vocab().items()}


def start_among_words(model: AlignedModel) -> None:
    """Start image tokens near the LLM's mean word embedding, which becomes the bias of the projection's last layer.

    An LLM may need in every token what all its words have in common: the pocket LLM finds positions by it.
    """
    projection: Any = model.blip2.language_projection
    last: Any = projection[-1] if isinstance(projection, torch.nn.Sequential) else projection
    with torch.no_grad():
        last.bias.copy_(model.blip2.language_model.get_input_embeddings().weight.mean(0, dtype=torch.float32))


@torch.no_grad()
def fit_to_words(model: AlignedModel, features: Tensor) -> None:
    """Shift and scale a projection of one layer, so that image tokens get the mean and spread of word embeddings.

    `features` (n, q, d_qformer) are those of some images. The spread is the mean distance from the mean. A carried-over
    projection starts with many times that of words.
    """
    projection: Any = model.blip2.language_projection
    embeddings = model.blip2.language_model.get_input_embeddings().weight.float()
    made = projection(features.to(projection.weight)).flatten(0, 1)
    mean, wanted = made.mean(0), embeddings.mean(0).to(made)
    spread, wanted_spread = (x.sub(x.mean(0)).norm(dim=-1).mean().to(made) for x in (made, embeddings))
    projection.weight.mul_(wanted_spread / spread)
    projection.bias.sub_(mean).mul_(wanted_spread / spread).add_(wanted)


def check_projection_from(name: str | Path) -> bool:
    """True if `name` is an alignment, False if it is a BLIP-2 checkpoint; else raises UserError."""
    source = sources.resolve(name)
    if sources.find_file(source, "config.json") is None and sources.find_file(source, ALIGNMENT_FILE):
        return True
    if sources.read_json(source, "config.json").get("model_type") != "blip-2":
        raise UserError(f"projection_from {name}: is no BLIP-2; give an alignment or a BLIP-2 checkpoint")
    return False


def ridge(x: Tensor, y: Tensor) -> Tensor:
    """Ridge regression with bias from x (n, d) to y (n, e): (d + 1, e), the bias last."""
    a = torch.cat([x, torch.ones(len(x), 1)], 1)
    gram = a.T @ a
    penalty = 1e-2 * gram.diagonal().mean()  # the mean squared norm of the regressors
    return torch.linalg.solve(gram + penalty * torch.eye(len(gram)), a.T @ y)


def _embeddings(name: str | Path) -> Tensor:
    """The word embeddings of an LLM, alone or in a BLIP-2, under any of their names in the model."""
    source = sources.resolve(name)
    config = sources.load(AutoConfig, source)
    with torch.device("meta"):
        if config.model_type == "blip-2":
            llm: Any = Blip2ForConditionalGeneration(config).language_model
        else:
            llm = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    words, checkpoint = llm.get_input_embeddings().weight, open_tensors(source)
    names = [key for key, p in llm.named_parameters(remove_duplicate=False) if p is words]
    stored = {key.rpartition(parts.LLM_PREFIX)[2]: key for key in checkpoint}
    found = next((stored[key] for key in names if key in stored), None)
    if found is None:
        raise UserError(f"{name}: holds none of {', '.join(names)}, which should be its word embeddings")
    return checkpoint[found].float()
