"""Models that answer questions about images: a MiniGPT-4, any BLIP-2 of transformers, an OpenAI-compatible endpoint."""

import gc
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoProcessor, Blip2ForConditionalGeneration

from minigpt4.endpoint import Endpoint, Unanswered
from minigpt4.errors import UserError
from minigpt4.evaluation.items import Item
from minigpt4.generation.engine import answers
from minigpt4.generation.likelihood import token_likelihoods
from minigpt4.images import image_url, open_image
from minigpt4.minigpt4 import MiniGPT4
from minigpt4.model import sources
from minigpt4.model.loading import weights_fingerprint
from minigpt4.model.precision import Placement
from minigpt4.prompts.encode import encode_chat
from minigpt4.prompts.templates import Message

ENDPOINT_PREFIX, BLIP2_PREFIX = "openai:", "blip2:"
BLIP2_PROMPT = "Question: {} Answer:"  # as its authors ask
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # of options that are put to an endpoint


@dataclass(frozen=True)
class Answering:
    """How models answer. The defaults take the likeliest token each time, so that a run can be repeated."""

    temperature: float = 0.0
    seed: int = 0
    batch_size: int = 8
    concurrency: int = 8  # of an endpoint
    timeout: float = 120.0  # seconds for one answer of an endpoint
    dtype: str | None = None
    load_in: str | None = None
    device: str | None = None

    def decoding(self) -> dict[str, Any]:
        """What of it decides an answer, and so belongs to its key."""
        drawn = {"top_p": 1.0, "seed": self.seed} if self.temperature else {}
        return {"temperature": self.temperature or 0.0, "num_beams": 1, **drawn}

    def sampling(self) -> dict[str, Any]:
        """The same as `generate` takes it, without the seed."""
        drawn = {"temperature": self.temperature, "top_p": 1.0} if self.temperature else {}
        return {"do_sample": bool(drawn), "num_beams": 1, **drawn}


@dataclass(frozen=True)
class ModelReply:
    """What a model said."""

    text: str = ""
    ended: bool = True  # False if it was cut off at the limit of tokens
    scores: tuple[float, ...] = ()  # log-likelihoods of options: natural logarithm, summed over tokens
    lengths: tuple[int, ...] = ()  # of options, in tokens


#: Takes what came of an item: a reply, UserError for an image that cannot be read, Unanswered from an endpoint.
OnReply = Callable[[Item, ModelReply | UserError | Unanswered], None]
Images = Sequence[Image.Image]
Texts = Sequence[str]
Replies = list[ModelReply]


class Answerer(ABC):
    """A model that answers. `identity` is plain JSON: all that tells it from other models, for the record."""

    identity: dict[str, Any]
    settings: Answering

    def close(self) -> None:  # noqa: B027 - an endpoint holds no memory
        """Free the model's memory; it is loaded again if it is asked again."""

    @abstractmethod
    def answer_each(self, items: Sequence[Item], record: OnReply, *, sample: int = 0) -> None:
        """Put every item to the model; what comes of it goes to `record` as soon as it is there."""


class LocalAnswerer(Answerer):
    """A model in this process, loaded when it is first asked, which answers in batches."""

    model: Any  # a cached property
    fingerprint: Callable[[Path], str]  # of the weights in a directory

    def __init__(self, kind: str, name: str, settings: Answering, **more: Any) -> None:
        self.name, self.settings = name, settings
        numbers = {"dtype": settings.dtype, "load_in": settings.load_in}
        source = sources.resolve(name)
        weights = source if isinstance(source, str) else self.fingerprint(source)  # a hub id names them
        self.identity = {"kind": kind, "model": name, "weights": weights, **numbers, **more}

    def close(self) -> None:
        self.__dict__.pop("model", None)
        gc.collect()
        torch.cuda.empty_cache()

    @abstractmethod
    def answer(self, images: Images, prompts: Texts, *, max_new_tokens: int = 300, sample: int = 0) -> Replies:
        """One reply for each prompt about its image, greedy unless the settings say otherwise."""

    @abstractmethod
    def likelihoods(self, images: Images, prompts: Texts, options: Sequence[Texts]) -> Replies:
        """For each prompt the log-likelihood of each of its options as the answer; `text` is the likeliest one's."""

    def seed(self, sample: int) -> int:
        return self.settings.seed + 1_000_003 * sample

    def answer_each(self, items: Sequence[Item], record: OnReply, *, sample: int = 0) -> None:
        groups: dict[tuple[int, bool], list[Item]] = {}
        for item in items:
            groups.setdefault((item.max_new_tokens, bool(item.options)), []).append(item)
        for (limit, scored), members in groups.items():
            for start in range(0, len(members), self.settings.batch_size):
                batch, images = [], []
                for item in members[start : start + self.settings.batch_size]:
                    try:
                        images.append(open_image(item.image))
                        batch.append(item)
                    except UserError as error:
                        record(item, error)
                if not batch:
                    continue
                prompts = [item.prompt for item in batch]
                if scored:
                    replies = self.likelihoods(images, prompts, [item.options for item in batch])
                else:
                    replies = self.answer(images, prompts, max_new_tokens=limit, sample=sample)
                for item, reply in zip(batch, replies, strict=True):
                    record(item, reply)


class MiniGPT4Answerer(LocalAnswerer):
    """A MiniGPT-4: an alignment, an export, or one of the pocket models."""

    fingerprint = staticmethod(weights_fingerprint)

    @cached_property
    def model(self) -> MiniGPT4:
        chosen = self.settings
        return MiniGPT4.from_pretrained(self.name, dtype=chosen.dtype, load_in=chosen.load_in, device=chosen.device)

    def answer(self, images: Images, prompts: Texts, *, max_new_tokens: int = 300, sample: int = 0) -> Replies:
        sampling = self.settings.sampling()
        if sampling["do_sample"]:
            sampling |= {"seed": self.seed(sample), "repetition_penalty": 1.0}
        found = answers(self.model, list(images), list(prompts), max_new_tokens=max_new_tokens, **sampling)
        return [ModelReply(answer.text, answer.ended) for answer in found]

    def likelihoods(self, images: Images, prompts: Texts, options: Sequence[Texts]) -> Replies:
        model = self.model
        image_tokens = model.num_query_tokens, model.image_token_id
        replies = []
        for row, prompt, choices in zip(model.encode_images(list(images)), prompts, options, strict=True):
            head = encode_chat(model.tokenizer, model.template, [Message("user", prompt, 1)], *image_tokens)
            tails = [model.tokenizer(choice, add_special_tokens=False)["input_ids"] for choice in choices]  # as trained
            found = token_likelihoods(model, [head] * len(tails), tails, [row] * len(tails))
            replies.append(_choice(choices, [float(each.sum()) for each in found], tails))
        return replies


class Blip2Answerer(LocalAnswerer):
    """Any `Blip2ForConditionalGeneration` as plain transformers runs it: the paper's baseline."""

    fingerprint = staticmethod(lambda source: sources.fingerprint(sources.Checkpoint(source)))

    def __init__(self, name: str, settings: Answering) -> None:
        if settings.load_in or settings.device == "auto":
            raise UserError(f"{name}: a plain BLIP-2 is loaded whole; leave --load-in and --device auto out for it")
        super().__init__("blip2", name, settings, prompt=BLIP2_PROMPT)

    @cached_property
    def model(self) -> tuple[Any, Any]:
        """(model, processor)."""
        source = sources.resolve(self.name)
        placement = Placement.resolve(self.settings.dtype, self.settings.device, None, None)
        with sources.readable(self.name, "cannot be loaded as a BLIP-2 ({})"):
            processor = sources.load(AutoProcessor, source)
            model = sources.load(Blip2ForConditionalGeneration, source, dtype=placement.dtype)
        processor.tokenizer.padding_side = "left"
        processor.num_query_tokens = model.config.num_query_tokens  # early revisions on the hub do not say
        return model.to(placement.device).eval(), processor

    def _inputs(self, images: Images, prompts: Texts) -> Any:
        model, processor = self.model
        asked = [BLIP2_PROMPT.format(prompt) for prompt in prompts]
        inputs = processor(images=list(images), text=asked, padding=True, return_tensors="pt")
        return inputs.to(model.device, model.dtype)

    def answer(self, images: Images, prompts: Texts, *, max_new_tokens: int = 300, sample: int = 0) -> Replies:
        model, processor = self.model
        inputs, sampling = self._inputs(images, prompts), self.settings.sampling()
        if sampling["do_sample"]:
            torch.manual_seed(self.seed(sample))
        with torch.inference_mode():
            rows = model.generate(**inputs, max_new_tokens=max_new_tokens, **sampling)
        new = rows[:, inputs["input_ids"].shape[1] :] if model.config.use_decoder_only_language_model else rows
        ends = model.generation_config.eos_token_id or model.config.text_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        return [
            ModelReply(text.strip(), len(row) < max_new_tokens or not {*ends}.isdisjoint(row.tolist()))
            for row, text in zip(new, processor.batch_decode(new, skip_special_tokens=True), strict=True)
        ]

    def likelihoods(self, images: Images, prompts: Texts, options: Sequence[Texts]) -> Replies:
        model, processor = self.model
        decoder_only = model.config.use_decoder_only_language_model
        space = " " if decoder_only else ""
        replies = []
        for image, prompt, choices in zip(images, prompts, options, strict=True):
            tails = [processor.tokenizer(space + c, add_special_tokens=False)["input_ids"] for c in choices]
            labels = pad_sequence([torch.tensor(tail) for tail in tails], batch_first=True, padding_value=-100)
            labels = labels.to(model.device)
            read = {k: v.expand(len(tails), *v.shape[1:]) for k, v in self._inputs([image], [prompt]).items()}
            with torch.inference_mode():
                if decoder_only:  # padding on the right of causal attention changes nothing before it
                    ids = torch.cat([read["input_ids"], labels.clamp(min=0)], 1)
                    logits = model(**{**read, "input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits
                    logits = logits[:, -labels.shape[1] - 1 : -1]
                else:
                    logits = model(**read, labels=labels).logits
            nll = F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none")  # 0 for padding
            replies.append(_choice(choices, (-nll.sum(1)).tolist(), tails))
        return replies


def _choice(choices: Sequence[str], scores: Sequence[float], tokens: Sequence[Sequence[int]]) -> ModelReply:
    best = max(range(len(choices)), key=lambda i: scores[i])
    return ModelReply(choices[best], True, tuple(scores), tuple(map(len, tokens)))


def open_endpoint(name: str, timeout: float) -> Endpoint:
    """The endpoint that `openai:URL#MODEL` names. Raises UserError for anything else."""
    url, _, model = name.removeprefix(ENDPOINT_PREFIX).partition("#")
    if not url.startswith(("http://", "https://")) or not model:
        example = "openai:http://127.0.0.1:8000/v1#my-model"
        raise UserError(f"{name}: is no endpoint; give the base URL and the model's name there, as in {example}")
    return Endpoint(url, model, timeout=timeout)


class EndpointAnswerer(Answerer):
    """An endpoint and the model that it is asked for."""

    def __init__(self, name: str, settings: Answering) -> None:
        self.settings = settings
        self.endpoint = open_endpoint(name, settings.timeout)
        self.identity = {"kind": "endpoint", "model": self.endpoint.model, "url": self.endpoint.url}

    def answer(self, images: Images, prompts: Texts, max_new_tokens: int = 300) -> Replies:
        """One answer for each image and prompt, one after the other. Raises Unanswered if there is none."""
        return [self._ask(image_url(image), said, max_new_tokens) for image, said in zip(images, prompts, strict=True)]

    def answer_each(self, items: Sequence[Item], record: OnReply, *, sample: int = 0) -> None:
        """As for all models. Raises UserError as `Endpoint.ask_each`."""

        def work(item: Item) -> ModelReply | UserError:
            try:
                image = image_url(item.image)
            except UserError as error:
                return error
            if item.options:
                return self._choose(image, item.prompt, item.options)
            return self._ask(image, item.prompt, item.max_new_tokens)

        self.endpoint.ask_each(items, work, record, self.settings.concurrency)

    def _ask(self, image: str, prompt: str, max_new_tokens: int) -> ModelReply:
        content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": prompt}]
        said = [{"role": "user", "content": content}]
        try:
            reply = self.endpoint.ask(said, max_tokens=max_new_tokens, temperature=self.settings.temperature)
        except Unanswered as error:
            if not error.empty:
                raise
            return ModelReply()
        return ModelReply(reply.text, reply.ended)

    def _choose(self, image: str, prompt: str, options: Sequence[str]) -> ModelReply:
        """Options by letter; an answer that names none is a reply whose text is none of them."""
        listed = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
        reply = self._ask(image, f"{prompt}\n{listed}\nAnswer with the letter of the right option only.", 16)
        found = re.match(r"\W*(?!A +\w)([A-Z])\b", reply.text.upper())  # "A dog" names no letter
        index = LETTERS.index(found[1]) if found else len(options)
        return ModelReply(options[index], reply.ended) if index < len(options) else reply


def open_answerer(name: str, settings: Answering | None = None) -> Answerer:
    """The model `name`, loaded when first asked: `openai:URL#MODEL`, `blip2:DIRECTORY`, or ours. Raises UserError."""
    settings = settings or Answering()
    if name.startswith(ENDPOINT_PREFIX):
        return EndpointAnswerer(name, settings)
    if name.startswith(BLIP2_PREFIX):
        return Blip2Answerer(name.removeprefix(BLIP2_PREFIX), settings)
    source = sources.resolve(name)
    if sources.find_file(source, "alignment.json"):
        return MiniGPT4Answerer("minigpt4", name, settings)
    if sources.read_json(source, "config.json").get("model_type") == "blip-2":
        return Blip2Answerer(name, settings)
    raise UserError(f"{name}: is neither an alignment, an export nor a BLIP-2; give one of them, or openai:URL#MODEL")
