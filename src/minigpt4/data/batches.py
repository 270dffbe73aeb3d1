"""Samples as token ids, and the batch of a step, which follows from (seed, step) and has samples of like length."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from minigpt4.data.pairs import Pair
from minigpt4.errors import UserError
from minigpt4.prompts.encode import encode, plain, puts_space_first
from minigpt4.prompts.templates import Template, stage1_text, stage2_text, without_marks

#: Batches whose samples are sorted by length together. Larger: less padding, but batches more of one kind.
POOL = 16


@dataclass(frozen=True)
class Samples:
    """What a stage learns from: per sample an image key and the token ids to learn, after any one of the prompts."""

    images: list[bytes]
    targets: list[list[int]]
    prompts: list[list[int]]
    own_prompts: Mapping[int, list[int]] = field(default_factory=dict)  # of samples with a question of their own
    mended: int = 0  # texts that held the stop string

    def __len__(self) -> int:
        return len(self.images)

    def fingerprint(self) -> str:
        """Changes with any image, token or prompt, and with their order."""
        digest = hashlib.sha256(b"".join(self.images))
        own = ([i, *ids] for i, ids in sorted(self.own_prompts.items()))
        for ids in (*self.targets, *self.prompts, *own):
            digest.update(np.array([len(ids), *ids], dtype=np.int64).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Batch:
    """One step's samples, padded on the right."""

    images: list[bytes]  # their keys
    input_ids: Tensor  # (batch, length) int64; each row is prompt (with its image placeholders), target, padding
    is_target: Tensor  # (batch, length) bool; the tokens that the loss is on
    num_tokens: int  # ids that are not padding

    @classmethod
    def of(cls, images: Sequence[bytes], prompts: Sequence[list[int]], targets: Sequence[list[int]]) -> "Batch":
        """One row for each image: its prompt, then its target."""
        lengths = [len(prompt) + len(target) for prompt, target in zip(prompts, targets, strict=True)]
        input_ids = torch.zeros(len(images), max(lengths), dtype=torch.int64)
        is_target = torch.zeros(len(images), max(lengths), dtype=torch.bool)
        for row, (prompt, target, length) in enumerate(zip(prompts, targets, lengths, strict=True)):
            input_ids[row, :length] = torch.tensor(prompt + target)
            is_target[row, len(prompt) : length] = True
        return cls([*images], input_ids, is_target, sum(lengths))

    def rows(self, chosen: slice) -> "Batch":
        """Some of the rows, as long as the longest of them."""
        is_target = self.is_target[chosen]
        ends = self.input_ids.shape[1] - is_target.flip(1).int().argmax(1)  # behind each row's last target
        longest = int(ends.max())
        return Batch(self.images[chosen], self.input_ids[chosen, :longest], is_target[:, :longest], int(ends.sum()))


def tokenise(
    tokenizer: PreTrainedTokenizerBase,
    usable: Sequence[tuple[bytes, str] | tuple[bytes, Pair]],
    instructions: Sequence[str],
    *,
    max_text_tokens: int,
    num_query_tokens: int,
    image_token_id: int,
    template: Template | None = None,
) -> Samples:
    """Samples from (image key, text) or (image key, pair): stage 1's form without instructions, stage 2's with.

    A pair that brings its own question or conversation is put in stage 2's form (by `template`, or the paper's) with
    that. Text, end symbol and prompt are tokenised apart, as the model meets them when it generates; text and end are
    together where the tokenizer puts a space before every text (as in the original). What is longer than
    `max_text_tokens` is cut, and teaches no end. Stage 2's texts are rid of the stop string.
    """

    def prompt_ids(prompt: str) -> list[int]:
        starts = tokenizer.bos_token or ""
        return encode(tokenizer, prompt.removeprefix(starts), num_query_tokens, image_token_id)

    forms = [stage2_text(instruction, "", template) for instruction in instructions] or [stage1_text("")]
    pairs = [pair if isinstance(pair, Pair) else Pair("", b"", pair) for _, pair in usable]
    stop = forms[0][1] if instructions else ""

    def clean(text: str) -> str:
        return plain(tokenizer, without_stop(text, stop), *["###"] * bool(stop))

    own = {}
    for i, pair in enumerate(pairs if instructions else ()):
        if pair.messages or pair.instruction:
            turns = [replace(turn, text=clean(turn.text)) for turn in pair.messages[:-1]]
            asked = turns or clean(without_marks(pair.instruction or ""))
            own[i] = prompt_ids(stage2_text(asked, "", template)[0])
    texts, end = [plain(tokenizer, without_stop(pair.text, stop)) for pair in pairs], []
    mended = sum(without_stop(pair.text, stop) != pair.text for pair in pairs)
    if puts_space_first(tokenizer):
        texts = [text + forms[0][1] for text in texts]
    else:
        end = encode(tokenizer, forms[0][1], num_query_tokens, image_token_id, bos=False)
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    targets = [(text_ids + end)[:max_text_tokens] for text_ids in ids]
    return Samples([key for key, _ in usable], targets, [prompt_ids(prompt) for prompt, _ in forms], own, mended)


def without_stop(text: str, stop: str) -> str:
    """`text` without the stop string, which would end it early: headings lose it, elsewhere a space stands for it."""
    if stop and stop in text:
        text = re.sub(rf"(?m)^[ \t]*{re.escape(stop)}{re.escape(stop[-1])}*[ \t]*", "", text).replace(stop, " ").strip()
    return f"{text} " if stop and (text + stop).find(stop) < len(text) else text  # "C#" before "###"


class Batches:
    """The batch of every step, by the seed. An epoch sees each sample once; those that fill no batch sit it out."""

    def __init__(self, samples: Samples, batch_size: int, seed: int | tuple[int, ...], pool: int = POOL) -> None:
        if not len(samples):
            raise UserError("the data hold no usable sample")
        if batch_size > len(samples):
            raise UserError(f"batch_size {batch_size} is more than the {len(samples)} samples in the data; lower it")
        self.samples, self.batch_size, self._pool = samples, batch_size, pool
        self._seed = (seed,) if isinstance(seed, int) else seed
        self.per_epoch = len(samples) // batch_size
        self._lengths = np.array([len(target) for target in samples.targets])
        self._prompt_lengths = np.array([len(prompt) for prompt in samples.prompts])
        self._epoch = -1

    def __getitem__(self, step: int) -> Batch:
        """The batch of this step, counted from 0 over all epochs."""
        return Batch.of(*self.rows(step))

    def rows(self, step: int) -> tuple[list[bytes], list[list[int]], list[list[int]]]:
        """Image keys, prompts and targets of the batch of this step."""
        chosen = self.chosen(step)
        prompts = [self.samples.own_prompts.get(i) or self.samples.prompts[self._prompt[i]] for i in chosen]
        return [self.samples.images[i] for i in chosen], prompts, [self.samples.targets[i] for i in chosen]

    def chosen(self, step: int) -> np.ndarray:
        """The numbers of the samples in the batch of this step."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._draw(epoch)
        return self._order[position]

    def _draw(self, epoch: int) -> None:
        """Draw this epoch's prompts and order: shuffled, sorted by length within pools, pools' batches shuffled."""
        rng = np.random.default_rng([*self._seed, epoch])
        self._prompt = rng.integers(len(self.samples.prompts), size=len(self.samples))
        prompt_lengths = self._prompt_lengths[self._prompt]
        for i, prompt in self.samples.own_prompts.items():
            prompt_lengths[i] = len(prompt)
        lengths = self._lengths + prompt_lengths
        order = rng.permutation(len(self.samples))[: self.per_epoch * self.batch_size]
        pool = self._pool * self.batch_size
        pools = [order[start : start + pool] for start in range(0, len(order), pool)]
        sorted_order = np.concatenate([p[np.argsort(lengths[p], kind="stable")] for p in pools])
        self._order = rng.permutation(sorted_order.reshape(self.per_epoch, self.batch_size))
        self._epoch = epoch
