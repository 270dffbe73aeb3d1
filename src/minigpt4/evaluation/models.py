"""Models that answer questions about images: a MiniGPT-4, any BLIP-2 in transformers, any OpenAI-compatible endpoint.

One interface, so that all of them can stand in one table. An endpoint is `openai:http://127.0.0.1:8000/v1#name`; its
key is read from the environment. It gives no likelihoods, so options are put to it by letter.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from PIL import Image

from minigpt4.endpoint import Endpoint, Unanswered
from minigpt4.errors import UserError
from minigpt4.images import image_url, open_image

if TYPE_CHECKING:
    from minigpt4.evaluation.items import Item
    from minigpt4.minigpt4 import MiniGPT4

T = TypeVar("T")
ENDPOINT_PREFIX, BLIP2_PREFIX = "openai:", "blip2:"
#: How BLIP-2 is asked, as its authors do.
BLIP2_PROMPT = "Question: {} Answer:"
#: Options that are scored together; many times the prompt's length in memory.
OPTIONS_AT_ONCE = 16
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # of options that are put to an endpoint


@dataclass(frozen=True)
class Answering:
    """How models answer. The defaults take the likeliest word each time, so that a run can be repeated."""

    temperature: float = 0.0
    top_p: float = 1.0
    num_beams: int = 1
    seed: int = 0
    batch_size: int = 8
    concurrency: int = 8  # of an endpoint
    timeout: float = 120.0  # seconds for one answer of an endpoint
    dtype: str | None = None
    load_in: str | None = None
    device: str | None = None

    def decoding(self) -> dict[str, Any]:
        """What of it decides an answer, and so belongs to its key."""
        if self.temperature == 0:
            return {"temperature": 0.0, "num_beams": self.num_beams}
        return {"temperature": self.temperature, "top_p": self.top_p, "seed": self.seed, "num_beams": self.num_beams}


@dataclass(frozen=True)
class ModelReply:
    """What a model said. `ended` is False if it was cut off at the limit of tokens.

    `fault` is why there is no answer; `scores` are the options' log-likelihoods (natural logarithm, summed over their
    tokens) and `lengths` their tokens, where options were scored.
    """

    text: str = ""
    ended: bool = True
    fault: str | None = None
    scores: tuple[float, ...] = ()
    lengths: tuple[int, ...] = ()


class Answerer(ABC):
    """A model that answers. `identity` is plain JSON: all that tells it from other models, for the record."""

    identity: dict[str, Any]
    settings: Answering

    def close(self) -> None:  # noqa: B027 - an endpoint holds no memory
        """Free the model's memory; it is loaded again if it is asked again."""

    @abstractmethod
    def answer_each(self, items: Sequence[Item], record: Callable[[int, ModelReply], None], *, sample: int = 0) -> None:
        """Put every item to the model; each reply goes to `record` with its item's index as soon as it is there.

        An image that cannot be read is a reply with a `fault`.
        """


class LocalAnswerer(Answerer, Generic[T]):
    """A model in this process, loaded when it is first asked, which answers in batches."""

    def __init__(self, kind: str, name: str, settings: Answering, **more: Any) -> None:
        from minigpt4.model import sources

        self.name, self.settings = name, settings
        numbers = {"dtype": settings.dtype, "load_in": settings.load_in}
        weights = weights_signature(sources.resolve(name))
        self.identity = {"kind": kind, "model": name, "weights": weights, **numbers, **more}
        self._loaded: T | None = None

    @abstractmethod
    def load(self) -> T: ...

    @property
    def model(self) -> T:
        if self._loaded is None:
            self._loaded = self.load()
        return self._loaded

    def close(self) -> None:
        import gc

        import torch

        self._loaded = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @abstractmethod
    def answer(
        self, images: Sequence[Image.Image], prompts: Sequence[str], *, max_new_tokens: int = 300, sample: int = 0
    ) -> list[ModelReply]:
        """One reply for each prompt about its image, greedy unless the settings say otherwise."""

    @abstractmethod
    def likelihoods(
        self, images: Sequence[Image.Image], prompts: Sequence[str], options: Sequence[Sequence[str]]
    ) -> list[ModelReply]:
        """For each prompt the log-likelihood of each of its options as the answer; `text` is the likeliest one's."""

    def sampling(self) -> dict[str, Any]:
        chosen = self.settings
        if chosen.temperature == 0:
            return {"do_sample": False, "num_beams": chosen.num_beams}
        drawn = {"do_sample": True, "temperature": chosen.temperature, "top_p": chosen.top_p}
        return {**drawn, "num_beams": chosen.num_beams}

    def seed(self, sample: int) -> int:
        return self.settings.seed + 1_000_003 * sample

    def answer_each(self, items: Sequence[Item], record: Callable[[int, ModelReply], None], *, sample: int = 0) -> None:
        groups: dict[tuple[int, bool], list[int]] = {}
        for index, item in enumerate(items):
            groups.setdefault((item.max_new_tokens, bool(item.options)), []).append(index)
        for (limit, scored), members in groups.items():
            for start in range(0, len(members), self.settings.batch_size):
                opened: dict[int, Image.Image] = {}
                for index in members[start : start + self.settings.batch_size]:
                    try:
                        opened[index] = open_image(items[index].image)
                    except UserError as error:
                        record(index, ModelReply(fault=str(error)))
                images, prompts = list(opened.values()), [items[index].prompt for index in opened]
                if not images:
                    continue
                if scored:
                    replies = self.likelihoods(images, prompts, [items[index].options for index in opened])
                else:
                    replies = self.answer(images, prompts, max_new_tokens=limit, sample=sample)
                for index, reply in zip(opened, replies, strict=True):
                    record(index, reply)


def weights_signature(source: str | Path) -> str:
    """Tells a model's files apart without reading all of them: names, sizes, and what stands in them.

    Of files over 64 MB only the first and last megabyte are read. A hub id stands for itself.
    """
    if isinstance(source, str):
        return source
    found = hashlib.sha256()
    for path in sorted(p for p in source.rglob("*") if p.suffix in (".json", ".safetensors", ".bin") and p.is_file()):
        size = path.stat().st_size
        found.update(f"{path.relative_to(source).as_posix()} {size}\n".encode())
        with path.open("rb") as file:
            if size <= 64_000_000:
                found.update(file.read())
            else:
                found.update(file.read(1_000_000))
                file.seek(-1_000_000, 2)
                found.update(file.read())
    return found.hexdigest()[:16]


class MiniGPT4Answerer(LocalAnswerer["MiniGPT4"]):
    """A MiniGPT-4: an alignment, an export, or one of the pocket models."""

    def load(self) -> MiniGPT4:
        from minigpt4.minigpt4 import MiniGPT4

        chosen = self.settings
        return MiniGPT4.from_pretrained(self.name, dtype=chosen.dtype, load_in=chosen.load_in, device=chosen.device)

    def answer(
        self, images: Sequence[Image.Image], prompts: Sequence[str], *, max_new_tokens: int = 300, sample: int = 0
    ) -> list[ModelReply]:
        from minigpt4.generation.engine import answers

        sampling = self.sampling()
        if sampling["do_sample"]:
            sampling |= {"seed": self.seed(sample), "repetition_penalty": 1.0}
        found = answers(self.model, list(images), list(prompts), max_new_tokens=max_new_tokens, **sampling)
        return [ModelReply(answer.text, answer.ended) for answer in found]

    def likelihoods(
        self, images: Sequence[Image.Image], prompts: Sequence[str], options: Sequence[Sequence[str]]
    ) -> list[ModelReply]:
        from minigpt4.generation.likelihood import token_likelihoods
        from minigpt4.prompts.encode import encode, encode_chat
        from minigpt4.prompts.templates import Message

        model = self.model
        image_tokens = model.num_query_tokens, model.image_token_id
        replies = []
        for row, prompt, choices in zip(model.encode_images(list(images)), prompts, options, strict=True):
            head = encode_chat(model.tokenizer, model.template, [Message("user", prompt, 1)], *image_tokens)
            tails = [encode(model.tokenizer, choice, *image_tokens, bos=False) for choice in choices]
            count = len(tails)
            found = token_likelihoods(model, [head] * count, tails, [row] * count, OPTIONS_AT_ONCE)
            replies.append(_choice(choices, [float(each.sum()) for each in found], [len(tail) for tail in tails]))
        return replies


class Blip2Answerer(LocalAnswerer[tuple[Any, Any]]):
    """Any `Blip2ForConditionalGeneration` as plain transformers runs it: the paper's baseline."""

    def __init__(self, name: str, settings: Answering) -> None:
        if settings.load_in or settings.device == "auto":
            raise UserError(f"{name}: a plain BLIP-2 is loaded whole; leave --load-in and --device auto out for it")
        super().__init__("blip2", name, settings, prompt=BLIP2_PROMPT)

    def load(self) -> tuple[Any, Any]:
        """(model, processor)."""
        import torch
        from transformers import AutoProcessor, Blip2ForConditionalGeneration

        from minigpt4.model import sources
        from minigpt4.model.precision import Placement

        source = sources.resolve(self.name)
        placement = Placement.resolve(self.settings.dtype, self.settings.device, None, None)
        try:
            processor = sources.load(AutoProcessor, source)
            model = sources.load(Blip2ForConditionalGeneration, source, dtype=placement.dtype)
        except UserError:
            raise
        except Exception as error:  # each part has its own exceptions for broken files
            raise UserError(f"{self.name}: cannot be loaded as a BLIP-2 ({sources.first_line(error)})") from None
        processor.tokenizer.padding_side = "left"
        processor.num_query_tokens = model.config.num_query_tokens  # early revisions on the hub do not say
        return model.to(torch.device(placement.device)).eval(), processor

    def answer(
        self, images: Sequence[Image.Image], prompts: Sequence[str], *, max_new_tokens: int = 300, sample: int = 0
    ) -> list[ModelReply]:
        import torch

        model, processor = self.model
        asked = [BLIP2_PROMPT.format(prompt) for prompt in prompts]
        inputs = processor(images=list(images), text=asked, padding=True, return_tensors="pt")
        inputs = inputs.to(model.device, model.dtype)
        sampling = self.sampling()
        if sampling["do_sample"]:
            torch.manual_seed(self.seed(sample))
        with torch.inference_mode():
            rows = model.generate(**inputs, max_new_tokens=max_new_tokens, **sampling)
        new = rows[:, inputs["input_ids"].shape[1] :] if model.config.use_decoder_only_language_model else rows
        return [
            ModelReply(text.strip(), len(row) < max_new_tokens or _ends(row, model))
            for row, text in zip(new, processor.batch_decode(new, skip_special_tokens=True), strict=True)
        ]

    def likelihoods(
        self, images: Sequence[Image.Image], prompts: Sequence[str], options: Sequence[Sequence[str]]
    ) -> list[ModelReply]:
        import torch
        import torch.nn.functional as F
        from torch.nn.utils.rnn import pad_sequence

        model, processor = self.model
        decoder_only = model.config.use_decoder_only_language_model
        replies = []
        for image, prompt, choices in zip(images, prompts, options, strict=True):
            inputs = processor(images=image, text=BLIP2_PROMPT.format(prompt), return_tensors="pt")
            inputs = inputs.to(model.device, model.dtype)
            space = " " if decoder_only else ""
            tails = [processor.tokenizer(space + c, add_special_tokens=False)["input_ids"] for c in choices]
            scores: list[float] = []
            for start in range(0, len(tails), OPTIONS_AT_ONCE):
                part = [torch.tensor(tail) for tail in tails[start : start + OPTIONS_AT_ONCE]]
                labels = pad_sequence(part, batch_first=True, padding_value=-100).to(model.device)
                read = {k: v.expand(len(part), *v.shape[1:]) for k, v in inputs.items()}
                with torch.inference_mode():
                    if decoder_only:  # padding on the right of causal attention changes nothing before it
                        head = read.pop("input_ids")
                        read["attention_mask"] = torch.ones(len(part), head.shape[1] + labels.shape[1]).to(head)
                        logits = model(input_ids=torch.cat([head, labels.clamp(min=0)], 1), **read).logits
                        logits = logits[:, head.shape[1] - 1 : -1]
                    else:
                        logits = model(**read, labels=labels).logits
                nll = F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none")  # 0 for padding
                scores += (-nll.sum(1)).tolist()
            replies.append(_choice(choices, scores, [len(tail) for tail in tails]))
        return replies


def _ends(row: Any, model: Any) -> bool:
    ends = model.generation_config.eos_token_id or model.config.text_config.eos_token_id
    return int(row[-1]) in (ends if isinstance(ends, list) else [ends])


def _choice(choices: Sequence[str], scores: Sequence[float], lengths: Sequence[int]) -> ModelReply:
    best = max(range(len(choices)), key=lambda i: scores[i])
    return ModelReply(choices[best], True, None, tuple(scores), tuple(lengths))


def split_name(name: str) -> tuple[str, str]:
    """(URL, model) of `openai:URL#MODEL`. Raises UserError for anything else."""
    url, _, model = name.removeprefix(ENDPOINT_PREFIX).partition("#")
    if not url.startswith(("http://", "https://")) or not model:
        raise UserError(
            f"{name}: is no endpoint; give the base URL and the model's name there, as in "
            "openai:http://127.0.0.1:8000/v1#my-model"
        )
    return url, model


def open_endpoint(name: str, timeout: float = 120.0, attempts: int = 6) -> Endpoint:
    """The endpoint that `openai:URL#MODEL` names."""
    url, model = split_name(name)
    return Endpoint(url, model, timeout=timeout, attempts=attempts)


class EndpointAnswerer(Answerer):
    """An endpoint and the model that it is asked for."""

    def __init__(self, name: str, settings: Answering) -> None:
        self.settings = settings
        self.endpoint = open_endpoint(name, settings.timeout)
        self.identity = {"kind": "endpoint", "model": self.endpoint.model, "url": self.endpoint.url}

    def answer(self, images: Sequence[Image.Image], prompts: Sequence[str], max_new_tokens: int = 300) -> list[ModelReply]:
        """One answer for each image and prompt, in order."""
        replies = [ModelReply()] * len(prompts)

        def keep(index: int, reply: ModelReply | Unanswered) -> None:
            replies[index] = ModelReply(fault=str(reply)) if isinstance(reply, Unanswered) else reply

        asked = [(image_url(image), prompt) for image, prompt in zip(images, prompts, strict=True)]
        work = lambda index: self._ask(*asked[index], max_new_tokens)  # noqa: E731
        self.endpoint.ask_each(range(len(asked)), work, keep, self.settings.concurrency)
        return replies

    def answer_each(self, items: Sequence[Item], record: Callable[[int, ModelReply], None], *, sample: int = 0) -> None:
        """As for all models; each reply is recorded as soon as it is there, for it may have been paid.

        Raises UserError as `Endpoint.ask_each`.
        """

        def work(index: int) -> ModelReply:
            item = items[index]
            try:
                image = image_url(item.image)
            except UserError as error:
                return ModelReply(fault=str(error))
            if item.options:
                return self._choose(image, item.prompt, item.options)
            return self._ask(image, item.prompt, item.max_new_tokens)

        def keep(index: int, reply: ModelReply | Unanswered) -> None:
            record(index, ModelReply(fault=str(reply)) if isinstance(reply, Unanswered) else reply)

        self.endpoint.ask_each(range(len(items)), work, keep, self.settings.concurrency)

    def _ask(self, image: str, prompt: str, max_new_tokens: int) -> ModelReply:
        content = [
            {"type": "image_url", "image_url": {"url": image}},
            {"type": "text", "text": prompt},
        ]
        try:
            said = self.endpoint.ask(
                [{"role": "user", "content": content}], max_tokens=max_new_tokens, temperature=self.settings.temperature
            )
        except Unanswered as error:
            if not error.empty:
                raise
            return ModelReply()
        return ModelReply(said.text, said.ended)

    def _choose(self, image: str, prompt: str, options: Sequence[str]) -> ModelReply:
        """Options by letter; an answer that names none is a reply whose text is none of them."""
        listed = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
        reply = self._ask(image, f"{prompt}\n{listed}\nAnswer with the letter of the right option only.", 16)
        found = re.match(r"\W*([A-Z])\b", reply.text.upper())
        index = LETTERS.index(found[1]) if found else len(options)
        return ModelReply(options[index], reply.ended) if index < len(options) else reply


def open_answerer(name: str, settings: Answering | None = None) -> Answerer:
    """The model called `name`; local weights are loaded when it is first asked.

    `openai:URL#MODEL` is an endpoint, `blip2:DIRECTORY` (or a directory or hub id that holds a BLIP-2 and no record of
    ours) a plain BLIP-2, anything else what `MiniGPT4.from_pretrained` reads. Raises UserError if there is no such
    model.
    """
    settings = settings or Answering()
    if name.startswith(ENDPOINT_PREFIX):
        return EndpointAnswerer(name, settings)
    from minigpt4.model import sources

    if name.startswith(BLIP2_PREFIX):
        return Blip2Answerer(name.removeprefix(BLIP2_PREFIX), settings)
    source = sources.resolve(name)
    if sources.find_file(source, "alignment.json"):
        return MiniGPT4Answerer("minigpt4", name, settings)
    if sources.read_json(source, "config.json").get("model_type") == "blip-2":
        return Blip2Answerer(name, settings)
    raise UserError(f"{name}: is neither an alignment, an export nor a BLIP-2; give one of them, or openai:URL#MODEL")
