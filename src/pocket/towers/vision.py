"""The pocket vision side: a ViT and a Q-Former, pretrained the way BLIP-2's were, on pictures of the pocket world.

Two phases, as in BLIP-2. *Representation*: the tower learns what each patch shows, and the Q-Former learns to put the
facts of a picture into its queries, one fact a query; both from the world's ground truth. *Generation*: one linear
projection carries the queries into the frozen captioning LM, whose caption loss trains the whole vision side; the
ground-truth losses stay on. The result, with that projection and that LM, is the BLIP-2 baseline.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from minigpt4.files import new_directory
from minigpt4.model.four_bits import SLOW_BFLOAT16
from minigpt4.model.sources import load
from pocket.text.phrases import NO_FACT, caption, dense_caption
from pocket.towers.pretrain import Pretraining, pretrain
from pocket.world import world
from pocket.world.draw import draw
from pocket.world.world import SEEDS, Picture, facts, sample

if TYPE_CHECKING:
    from transformers import Blip2Config, Blip2ForConditionalGeneration, PreTrainedTokenizerFast

IMAGE_SIZE = 96
PATCH_SIZE = 12
NUM_QUERY_TOKENS = 20
BATCH_SIZE = 64
#: The vision side's vocabulary: every word that can be a fact, and "none" for a query that has none.
CONCEPTS = (NO_FACT, *dict.fromkeys((
    *world.TYPES, *world.BACKGROUNDS, *world.DISHES, *world.BACKDROPS, *world.TITLES, *world.SIZES, *world.COLOURS,
    *world.KINDS, *world.INGREDIENTS, *world.PRODUCTS, *world.ANIMALS, *world.PROPS, *world.ELEMENTS, *world.PLACES,
)))  # fmt: skip
_INDEX = {word: number for number, word in enumerate(CONCEPTS)}
_TITLE_BOTTOM = 0.24
#: The batches of the representation phase in which seven pictures of ten are crowds: they teach shapes several times
#: faster than scenes of two or three objects, of which the tower had learnt colours but no kinds when these began.
CROWDED = range(500, 1400)
#: Share of the generation phase's pictures that are scenes of four objects. A sixth of all scenes are, and there the
#: queries mixed up the attributes of neighbours: of three objects they named 96 %, of four 80 %.
BUSY = 0.4
#: Smoothing of the queries' target: it pulls all queries that hold one concept together (Müller, Kornblith, Hinton:
#: "When does label smoothing help?", 2019), so that one linear map can carry each concept to its word.
SMOOTHING = 0.1
_IGNORED = -100


class TowerAndQFormer(nn.Module):
    """Tower, queries and Q-Former of a `Blip2ForConditionalGeneration`, with the heads that only pretraining uses."""

    def __init__(self, blip2: Blip2ForConditionalGeneration) -> None:
        super().__init__()
        self.vision_model, self.qformer = blip2.vision_model, blip2.qformer
        self.query_tokens, self.language_projection = blip2.query_tokens, blip2.language_projection
        width = blip2.config.vision_config.hidden_size
        self.patch_concept = nn.Linear(width, len(CONCEPTS))
        self.patch_colour = nn.Linear(width, len(world.COLOURS) + 1)
        self.query_concept = nn.Linear(blip2.config.qformer_config.hidden_size, len(CONCEPTS))

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (n, 3, h, w) -> patches (n, 1 + p, d_vision) and queries (n, q, d_qformer)."""
        patches = self.vision_model(pixel_values).last_hidden_state
        queries = self.query_tokens.expand(len(patches), -1, -1)
        return patches, self.qformer(query_embeds=queries, encoder_hidden_states=patches).last_hidden_state


def configuration(captioner: str | Path) -> Blip2Config:
    """The pocket's BLIP-2 configuration: a ViT of 5 layers, a Q-Former of 4, width 256, around the captioning LM."""
    from transformers import AutoConfig, Blip2Config, Blip2QFormerConfig, Blip2VisionConfig

    vision = Blip2VisionConfig(
        hidden_size=256, intermediate_size=1024, num_hidden_layers=5, num_attention_heads=4,
        image_size=IMAGE_SIZE, patch_size=PATCH_SIZE,
    )  # fmt: skip
    qformer = Blip2QFormerConfig(
        vocab_size=1, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=768,
        cross_attention_frequency=2, encoder_hidden_size=256, max_position_embeddings=1,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    text = load(AutoConfig, captioner)
    text._name_or_path = ""  # else the saved configuration names a directory of the machine that made it
    return Blip2Config(
        vision_config=vision, qformer_config=qformer, text_config=text, num_query_tokens=NUM_QUERY_TOKENS,
        image_token_index=text.vocab_size - 1,
    )  # fmt: skip


def pixels(picture: Picture, rng: random.Random, augment: bool) -> np.ndarray:
    """The picture as the image processor would give it, uint8 (96, 96, 3), through a larger size as users' files are.

    With `augment`, mostly drawn at the size itself (faster), and slightly brighter, darker or flatter.
    """
    size = rng.choice((IMAGE_SIZE, IMAGE_SIZE, IMAGE_SIZE, 160, 224)) if augment else 224
    image = draw(picture, size)
    if size != IMAGE_SIZE:
        image = image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    array: np.ndarray = np.asarray(image, dtype=np.float32)
    if augment:
        array = (array - 128) * rng.uniform(0.9, 1.1) + 128 + rng.uniform(-12, 12)
        array = array + np.random.default_rng(picture.seed).normal(0, rng.uniform(0, 4), array.shape)
    return np.clip(array, 0, 255).astype(np.uint8)


def normalise(images: Sequence[np.ndarray]) -> Tensor:
    """uint8 (h, w, 3) arrays -> pixel values (n, 3, h, w), with CLIP's mean and standard deviation."""
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    mean, deviation = torch.tensor(OPENAI_CLIP_MEAN), torch.tensor(OPENAI_CLIP_STD)
    return (stacked - mean[:, None, None]) / deviation[:, None, None]


def patch_truth(picture: Picture) -> tuple[np.ndarray, np.ndarray]:
    """What each patch shows: concept and colour numbers, (p,) each; 0 where its centre is on no item.

    The title's patches of a website draft carry the title's word.
    """
    side = IMAGE_SIZE // PATCH_SIZE
    y, x = (np.indices((side, side)).reshape(2, -1) + 0.5) / side
    concept, colour = np.zeros(len(x), np.int64), np.zeros(len(x), np.int64)
    if picture.type == "draft":
        concept[y < _TITLE_BOTTOM] = _INDEX[picture.setting]
    for item in picture.items:
        for left, top, right, bottom in item.boxes:
            margin = 0.5 * PATCH_SIZE / IMAGE_SIZE if right - left < 0.2 else 0.0
            inside = (x > left - margin) & (x < right + margin) & (y > top - margin) & (y < bottom + margin)
            concept[inside] = _INDEX[item.kind]
            colour[inside] = world.COLOURS.index(item.colour) + 1 if item.colour else 0
    return concept, colour


def query_truth(picture: Picture) -> list[int]:
    """The concept that each query is to hold: the facts in order, then "none"; nothing is asked of a crowd's."""
    words = facts(picture)
    if len(words) > world.MAX_FACTS:
        return [_IGNORED] * NUM_QUERY_TOKENS
    return [_INDEX[word] for word in words] + [_INDEX[NO_FACT]] * (NUM_QUERY_TOKENS - len(words))


@dataclass
class PictureBatch:
    """Pictures with their truth; captions as ids (n, t) and targets (n, t), -100 where nothing is to be said."""

    pixel_values: Tensor
    patch_concept: Tensor
    patch_colour: Tensor
    query_concept: Tensor
    ids: Tensor
    targets: Tensor


@dataclass
class PictureBatches:
    """Batch number `n`: `size` pictures that follow from `n` alone."""

    tokenizer: PreTrainedTokenizerFast
    size: int
    first_seed: int
    augment: bool = True
    crowded: range = range(0)
    busy: float = 0.0

    def __call__(self, number: int) -> PictureBatch:
        first = self.first_seed + number * self.size
        pictures = [self._picture(seed, number) for seed in range(first, first + self.size)]
        concepts, colours = zip(*map(patch_truth, pictures), strict=True)
        captions = [torch.tensor(self._caption(picture)) for picture in pictures]
        return PictureBatch(
            normalise([pixels(p, random.Random(f"look-{p.seed}"), self.augment) for p in pictures]),
            torch.from_numpy(np.stack(concepts)),
            torch.from_numpy(np.stack(colours)),
            torch.tensor([query_truth(picture) for picture in pictures]),
            pad_sequence(captions, batch_first=True, padding_value=self.tokenizer.pad_token_id),
            pad_sequence(captions, batch_first=True, padding_value=_IGNORED),
        )

    def _picture(self, seed: int, number: int) -> Picture:
        if number in self.crowded and seed % 10 < 7:
            return world.crowd(seed)
        return world.busy(seed) if seed % 100 < 100 * self.busy else sample(seed)

    def _caption(self, picture: Picture) -> list[int]:
        rng = random.Random(f"say-{picture.seed}")
        text = caption(picture, rng) if rng.random() < 0.3 else dense_caption(picture, rng)
        said, end = self.tokenizer([text, "\n"], add_special_tokens=False).input_ids
        return [*said, *end]


def truth_loss(side: TowerAndQFormer, batch: PictureBatch) -> tuple[Tensor, Tensor, dict[str, float]]:
    """(loss against the world's truth, queries, shares of patches and facts right)."""
    with torch.autocast(batch.pixel_values.device.type, dtype=torch.bfloat16, enabled=not SLOW_BFLOAT16):
        patches, queries = side(batch.pixel_values)
        concept, colour = side.patch_concept(patches[:, 1:]).float(), side.patch_colour(patches[:, 1:]).float()
        said = side.query_concept(queries).float()
    loss = _weighted(concept, batch.patch_concept) + 0.5 * _weighted(colour, batch.patch_colour)
    loss = loss + _weighted(said, batch.query_concept, SMOOTHING)
    held = batch.query_concept > 0
    right = (said.argmax(-1) == batch.query_concept)[held].float().mean().item()
    return loss, queries, {"facts": right, "patches": _share(concept, batch.patch_concept)}


def _weighted(logits: Tensor, truth: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy in which "nothing here", true of most patches and many queries, weighs a fifth."""
    weights = torch.where(truth == 0, 0.2, 1.0) * (truth != _IGNORED)
    each = F.cross_entropy(
        logits.flatten(0, 1), truth.flatten(), reduction="none", ignore_index=_IGNORED, label_smoothing=smoothing
    )
    return (each * weights.flatten()).sum() / weights.sum()


def _share(logits: Tensor, truth: Tensor) -> float:
    shown = truth != 0
    return (logits.argmax(-1) == truth)[shown].float().mean().item()


def caption_loss(blip2: Blip2ForConditionalGeneration, queries: Tensor, batch: PictureBatch, bos: int) -> Tensor:
    """The frozen captioning LM's loss (nats per token) on the caption, after BOS and the projected queries."""
    embed = blip2.language_model.get_input_embeddings()
    with torch.autocast(queries.device.type, dtype=torch.bfloat16, enabled=not SLOW_BFLOAT16):
        start = embed(torch.full((len(queries), 1), bos, device=queries.device))
        prefix = blip2.language_projection(queries)
        hidden = blip2.language_model.model(
            inputs_embeds=torch.cat([start, prefix.float(), embed(batch.ids)], dim=1), use_cache=False
        ).last_hidden_state[:, NUM_QUERY_TOKENS:-1]
        said = batch.targets != _IGNORED
        logits = blip2.language_model.lm_head(hidden[said])
    return F.cross_entropy(logits.float(), batch.targets[said])


def build_vision(work: Path, steps: int, generation_steps: int, start: str | None = None) -> Path:
    """Trains the vision side for `steps` batches against the truth, then `generation_steps` through the captioning LM.

    `work` must hold the captioning LM (`work/captioner`, see `language.py`); it keeps checkpoints and the results
    `work/vision` (the vision side) and `work/alignments/pocket-blip2` (the baseline). Resumes a killed run. `start` is
    a finished baseline (a name or an alignment's directory) to train on instead of beginning anew; the captioning LM is
    its own then.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, Blip2ForConditionalGeneration

    from minigpt4.minigpt4 import MiniGPT4

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    captioner, first = str(work / "captioner"), SEEDS["towers"][0]
    if start is not None:
        begun = MiniGPT4.from_pretrained(start, dtype=torch.float32)
        blip2, tokenizer, captioner = begun.blip2, begun.tokenizer, begun.origin.llm
        first += SEEDS["towers"][1] // 2  # pictures that no run from nothing sees
        blip2.config.text_config._name_or_path = ""  # as in `configuration`
        blip2.requires_grad_(True)
    else:
        tokenizer = load(AutoTokenizer, captioner)
        blip2 = Blip2ForConditionalGeneration(configuration(captioner))
        nn.init.normal_(blip2.query_tokens, std=0.5)
        blip2.language_model = load(AutoModelForCausalLM, captioner, dtype=torch.float32)
    blip2.language_model.set_attn_implementation("eager")
    blip2.language_model.requires_grad_(False)
    # At this size eager attention is the faster one on a CPU.
    blip2.vision_model.set_attn_implementation("eager")
    blip2.to(device)
    side = TowerAndQFormer(blip2).to(device)
    batches = PictureBatches(tokenizer, BATCH_SIZE, first, crowded=CROWDED)
    held_out = PictureBatches(tokenizer, 128, SEEDS["development"][0], augment=False)

    def on_device(batch: PictureBatch) -> PictureBatch:
        return PictureBatch(**{name: tensor.to(device) for name, tensor in vars(batch).items()})

    def loss(batch: PictureBatch) -> tuple[Tensor, dict[str, float]]:
        truth, queries, figures = truth_loss(side, on_device(batch))
        if generating:
            captioning = caption_loss(blip2, queries, on_device(batch), tokenizer.bos_token_id)
            return truth + captioning, {**figures, "caption": captioning.item()}
        return truth + 0 * blip2.language_projection.weight.sum(), figures

    def evaluate() -> dict[str, float]:
        with torch.inference_mode():
            batch = on_device(held_out(0))
            _, queries, figures = truth_loss(side, batch)
            spoken = caption_loss(blip2, queries, batch, tokenizer.bos_token_id)
        return {f"held_out_{name}": figure for name, figure in {**figures, "caption": spoken.item()}.items()}

    generating = False
    run = partial(pretrain, side, loss=loss, evaluate=evaluate, evaluate_every=200)
    run(batch=batches, plan=Pretraining(steps), out=work / "vision-run")
    generating = True
    later = PictureBatches(tokenizer, BATCH_SIZE, first + steps * BATCH_SIZE, busy=BUSY)
    plan = Pretraining(generation_steps, muon_lr=0.01, adam_lr=1e-3, decay_share=0.7)
    run(batch=later, plan=plan, out=work / "blip2-run")
    return save_vision_side(blip2, captioner, work)


def save_vision_side(blip2: Blip2ForConditionalGeneration, captioner: str, work: Path) -> Path:
    """Writes the vision side in half precision, and the baseline's alignment; returns the vision side's directory."""
    from safetensors.torch import save_file
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    from minigpt4.minigpt4 import MiniGPT4
    from minigpt4.model.parts import VISION_PREFIXES

    out = work / "vision"
    with new_directory(out, overwrite=True, marker="config.json") as new:
        tensors = {
            name: tensor.detach().cpu().half().contiguous()
            for name, tensor in blip2.state_dict().items()
            if name.removeprefix("model.").startswith(VISION_PREFIXES)
        }
        save_file(tensors, new / "model.safetensors", metadata={"format": "pt"})
        blip2.config.save_pretrained(new)
        BlipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}).save_pretrained(new)
    model = MiniGPT4.assemble(str(out), captioner, template="blip2", dtype=torch.float32)
    model.origin = replace(model.origin, vision_qformer="pocket/vision", llm="pocket/captioner")
    model.blip2.language_projection.load_state_dict(blip2.language_projection.state_dict())
    model.save_pretrained(work / "alignments" / "pocket-blip2", overwrite=True)
    return out
