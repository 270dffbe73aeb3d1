"""The pocket language models: Llamas that learn from text alone and never see an image.

`LANGUAGE` is the pocket LLM, which follows instructions about scenes that are described in words; `LOOKUPS` is the same
taught to look words up; `CAPTIONER` is the small captioning LM that the vision side is pretrained against (and that
stays behind as the BLIP-2 baseline's language model). All are plain `LlamaForCausalLM`, trained on answers only.

While training, the words that describe the picture get Gaussian noise on their embeddings and are made longer by a
random factor: what will stand in their place later are projected image tokens, which never hit a word's embedding
exactly and tend to be several times as long.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt4.errors import UserError
from minigpt4.files import new_directory
from minigpt4.model.precision import training_dtype
from minigpt4.model.sources import load
from minigpt4.prompts.templates import TEMPLATES
from pocket.text.conversations import LOOKUP_SEEDS, Piece, caption_text, conversation, lookup_text
from pocket.towers.lookup_heads import add_lookup_layers
from pocket.towers.pretrain import Pretraining, pretrain
from pocket.towers.tokenizer import train_tokenizer
from pocket.world.world import SEEDS, WORDS

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

#: Tokens, padding included, of one training batch.
BATCH_TOKENS = 8192
#: How many samples are drawn, sorted by length and cut into batches at a time.
POOL = 1024
#: Standard deviation of the noise on the context's embeddings, as a share of an embedding's own (drawn up to this).
CONTEXT_NOISE = 1.2
#: How many times as long the context's embeddings are made (drawn up to this).
CONTEXT_SCALE = 3.0


@dataclass(frozen=True)
class TextModel:
    """What distinguishes the two language models."""

    name: str
    pieces: Callable[[int], list[Piece]]
    context_piece: int
    layers: int
    first_seed: int
    batch_tokens: int = BATCH_TOKENS


LANGUAGE = TextModel("language", lambda seed: conversation(seed, TEMPLATES["vicuna_v0"].system), 1, 6, SEEDS["text"][0])
LOOKUPS = TextModel(
    "language", lambda seed: lookup_text(seed, TEMPLATES["vicuna_v0"].system), 1, 8, LOOKUP_SEEDS, batch_tokens=4096,
)  # fmt: skip
CAPTIONER = TextModel("captioner", caption_text, 0, 4, SEEDS["text"][0] + SEEDS["text"][1] // 2)


@dataclass
class TextBatch:
    """Right-padded ids (n, t), how much each is learnt (n, t; 0: not at all), and where the context stands."""

    ids: Tensor
    weights: Tensor
    context: Tensor
    seed: int


#: Ids, weights, and whether the token belongs to the context.
_Sample = tuple[list[int], list[float], list[int]]


def _sample(kind: TextModel, tokenizer: PreTrainedTokenizerFast, seed: int) -> _Sample:
    ids, weights, context = [tokenizer.bos_token_id], [0.0], [0]
    for number, (text, weight) in enumerate(kind.pieces(seed)):
        tokens = tokenizer(text, add_special_tokens=False).input_ids
        ids += tokens
        weights += [float(weight)] * len(tokens)
        context += [int(number == kind.context_piece)] * len(tokens)
    return ids, weights, context


class TextBatches:
    """Batch number `n` of a text model: samples of similar length, about `BATCH_TOKENS` tokens with padding."""

    def __init__(self, kind: TextModel, tokenizer: PreTrainedTokenizerFast) -> None:
        self.kind, self.tokenizer = kind, tokenizer
        self.first, self.pool_number = 0, -1  # the first batch of the pool, which is number so and so
        self.pool: list[TextBatch] = []

    def __call__(self, number: int) -> TextBatch:
        if number < self.first:
            self.first, self.pool_number, self.pool = 0, -1, []
        # How many batches a pool gives is known only once it is made; a resumed run makes those before its own anew.
        while number >= self.first + len(self.pool):
            self.first += len(self.pool)
            self.pool_number += 1
            self.pool = self._load(self.kind.first_seed + self.pool_number * POOL)
        return self.pool[number - self.first]

    def _load(self, first: int) -> list[TextBatch]:
        samples = (_sample(self.kind, self.tokenizer, seed) for seed in range(first, first + POOL))
        batches: list[TextBatch] = []
        rows: list[_Sample] = []
        for sample in sorted(samples, key=lambda sample: len(sample[0])):
            if rows and (len(rows) + 1) * len(sample[0]) > self.kind.batch_tokens:
                batches.append(self._pad(rows, first + len(batches)))
                rows = []
            rows.append(sample)
        batches.append(self._pad(rows, first + len(batches)))
        random.Random(first).shuffle(batches)
        return batches

    def _pad(self, rows: list[_Sample], seed: int) -> TextBatch:
        length = max(len(row[0]) for row in rows)
        fills = (self.tokenizer.pad_token_id, 0.0, 0)
        ids, weights, context = (
            torch.tensor([[*row[k], *[fills[k]] * (length - len(row[k]))] for row in rows]) for k in range(3)
        )
        return TextBatch(ids, weights, context.bool(), seed)


def text_loss(model: LlamaForCausalLM, batch: TextBatch, device: torch.device) -> tuple[Tensor, dict[str, float]]:
    """Weighted cross-entropy (nats per token) of the learnt tokens, the context's embeddings noisy and stretched."""
    ids, weights, context = (part.to(device) for part in (batch.ids, batch.weights, batch.context))
    generator = torch.Generator(device="cpu").manual_seed(batch.seed)
    embeddings = model.get_input_embeddings()(ids)
    scale = (embeddings - embeddings.mean((0, 1))).detach().std()  # what all have in common does not tell them apart
    strength = torch.rand(ids.shape[0], 1, 1, generator=generator) * CONTEXT_NOISE
    noise = torch.randn(embeddings.shape, generator=generator) * strength
    stretch = CONTEXT_SCALE ** torch.rand(ids.shape[0], 1, 1, generator=generator)
    soft = (embeddings + noise.to(device) * scale) * stretch.to(device)
    embeddings = torch.where(context[..., None], soft, embeddings)
    fast = training_dtype(device) is not None  # else bfloat16 is many times slower
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast):
        hidden = model.model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        learnt = weights[:, 1:] > 0
        logits = model.lm_head(hidden[:, :-1][learnt])
    losses = F.cross_entropy(logits.float(), ids[:, 1:][learnt], reduction="none")
    shares = weights[:, 1:][learnt]
    return (losses * shares).sum() / shares.sum(), {"tokens": float(ids.numel())}


def _tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer both language models share: made once, from text seeds of its own."""
    from transformers import PreTrainedTokenizerFast

    if not (path / "tokenizer.json").exists():
        last = sum(SEEDS["text"])
        seeds = range(last - 30_000, last)
        texts = [text for seed in seeds for text, _ in LANGUAGE.pieces(seed)]
        texts += [text for seed in seeds for text, _ in CAPTIONER.pieces(seed)]
        train_tokenizer(texts).save_pretrained(path)
    return load(PreTrainedTokenizerFast, path)


def _model(kind: TextModel, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=704, num_hidden_layers=kind.layers,
        num_attention_heads=4, max_position_embeddings=2048, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    # Eager attention: at this size on a CPU it takes half the time of the fused kernel.
    config._attn_implementation = "eager"
    return LlamaForCausalLM(config)


def build_text_model(kind: TextModel, work: Path, steps: int, start: Path | None = None) -> Path:
    """Trains one of the language models for `steps` batches; returns the directory of the finished model.

    `work` keeps the tokenizer, checkpoints and the result (`work/<name>`); the same call resumes a killed run. `start`
    is the directory of a finished model to train on, on text that no run from nothing reads and at a gentler rate;
    `LOOKUPS` always starts from one, to which it adds the layers that look words up.

    Raises:
        UserError: there is no LLM in `start`, or, for `LOOKUPS`, one that has these layers already.
    """
    from minigpt4.model.parts import load_llm

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plan = Pretraining(steps)
    if start is None:
        tokenizer = _tokenizer(work / "tokenizer")
        model = _model(kind, tokenizer).to(device)
    else:
        begun = load_llm(start, torch.float32)
        tokenizer, model = begun.tokenizer, begun.model
        model.set_attn_implementation("eager")
        if kind is LOOKUPS:
            plan = replace(plan, muon_lr=0.5 * plan.muon_lr, adam_lr=0.5 * plan.adam_lr, warmup=20, decay_share=0.6)
            if model.config.num_hidden_layers >= kind.layers:
                had = f"{start} has the layers that look words up already"
                raise UserError(f"{had}; --start wants a pocket LLM without")
            words = tokenizer([f" {word}" for word in WORDS], add_special_tokens=False).input_ids
            read = [token for seed in range(12) for token in _sample(kind, tokenizer, kind.first_seed + seed)[0]]
            model = add_lookup_layers(model, [ids[0] for ids in words], read)
            # They work as they are built; training would wear them down before the other layers rely on them.
            for part in (model.get_input_embeddings(), *model.model.layers[:2]):
                part.requires_grad_(False)
        else:
            kind = replace(kind, first_seed=kind.first_seed + SEEDS["text"][1] // 8)
            plan = replace(plan, muon_lr=0.3 * plan.muon_lr, adam_lr=0.3 * plan.adam_lr, decay_share=0.5)
        model.to(device)
    held_out = TextBatches(replace(kind, first_seed=kind.first_seed + SEEDS["text"][1] // 4), tokenizer)

    def evaluate() -> dict[str, float]:
        model.eval()
        with torch.inference_mode():
            losses = [text_loss(model, held_out(n), device)[0].item() for n in range(4)]
        model.train()
        return {"held_out_loss": sum(losses) / len(losses)}

    def loss(batch: TextBatch) -> tuple[Tensor, dict[str, float]]:
        return text_loss(model, batch, device)

    pretrain(model, TextBatches(kind, tokenizer), loss, plan, work / f"{kind.name}-run", evaluate=evaluate)
    out = work / kind.name
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def build_without(without: Collection[str], out: Path, steps: int, start: str | Path) -> Path:
    """Teaches the captioning LM in `start` to converse in `steps` batches, without any request of these abilities.

    What a skill of the LLM is worth to the aligned model can only be seen in an LLM that never learnt it. To train one
    from nothing takes an hour; this begins with one that copies facts out of a context into captions and can do nothing
    else. The first lessons, without any of the skills, can be shared: what has none of them lacks each.

    Returns `out/llm`, the directory of the finished model; checkpoints lie beside it, and the same call goes on with a
    killed run. All such models read the same samples of text, but for what is left out. Raises UserError if `start` is
    no LLM with its tokenizer.
    """
    from minigpt4.model.parts import load_llm

    if (out / "llm" / "config.json").is_file():
        return out / "llm"
    begun = load_llm(start, torch.float32)
    begun.model.set_attn_implementation("eager")
    pieces = partial(conversation, system=TEMPLATES["vicuna_v0"].system, without=frozenset(without))
    return _build(begun.model, begun.tokenizer, replace(LANGUAGE, pieces=pieces), steps, out)


def build_on_captions(captions: Sequence[str], out: Path, steps: int) -> Path:
    """Trains a captioning LM from nothing on these captions alone, in batches of 2,048 tokens; files as above."""
    if (out / "llm" / "config.json").is_file():
        return out / "llm"
    torch.manual_seed(0)
    tokenizer = train_tokenizer(captions)
    kind = replace(CAPTIONER, pieces=partial(_caption, captions), first_seed=0, batch_tokens=2048)
    return _build(_model(kind, tokenizer), tokenizer, kind, steps, out)


def _caption(captions: Sequence[str], seed: int) -> list[Piece]:
    return [("", False), (f"{captions[seed % len(captions)]}\n", True)]


def _build(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, kind: TextModel, steps: int, out: Path) -> Path:
    """Trains an LM as `kind` says; its directory is `out/llm`, and what a killed run goes on from `out/run`."""
    torch.manual_seed(0)
    plan = Pretraining(steps, warmup=min(Pretraining.warmup, steps // 10 + 1))
    batches = TextBatches(kind, tokenizer)
    pretrain(model, batches, lambda batch: text_loss(model, batch, model.device), plan, out / "run")
    with new_directory(out / "llm", marker="config.json") as directory:
        model.half().save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    return out / "llm"
