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
from typing import TYPE_CHECKING, Any

from PIL import Image

from minigpt4.endpoint import Endpoint, Unanswered
from minigpt4.errors import UserError
from minigpt4.images import image_url, open_image

if TYPE_CHECKING:
    from minigpt4.evaluation.items import Item
    from minigpt4.minigpt4 import MiniGPT4

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
    how: Answering

    def close(self) -> None:  # noqa: B027 - an endpoint has none to give
        """Give the model's memory back; it is loaded again if it is asked again."""

    @abstractmethod
    def answer(
        self, images: Sequence[Image.Image], prompts: Sequence[str], *, max_new_tokens: int = 300, sample: int = 0
    ) -> list[ModelReply]:
        """One reply for each prompt about its picture, greedy unless `how` says otherwise."""

    def likelihoods(
        self, images: Sequence[Image.Image], prompts: Sequence[str], options: Sequence[Sequence[str]]
    ) -> list[ModelReply]:
        """For each prompt the log-likelihood of each of its options as the answer; `text` is the likeliest one's."""
        raise UserError(f"{self.identity['model']}: gives no likelihoods of options")

    def answer_each(self, items: Sequence[Item], record: Callable[[int, ModelReply], None], *, sample: int = 0) -> None:
        """Put every item, and hand each reply to `record` with its item's index, as soon as it is there.

        A picture that cannot be read is a reply with a `fault`, and the others go on.
        """
        groups: dict[tuple[int, bool], list[int]] = {}
        for index, item in enumerate(items):
            groups.setdefault((item.max_new_tokens, bool(item.options)), []).append(index)
        for (limit, scored), members in groups.items():
            for start in range(0, len(members), self.how.batch_size):
                opened: dict[int, Image.Image] = {}
                for index in members[start : start + self.how.batch_size]:
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


def _identity(kind: str, name: str, how: Answering, **more: Any) -> dict[str, Any]:
    from minigpt4.model import sources

    numbers = {"dtype": how.dtype, "load_in": how.load_in}
    return {"kind": kind, "model": name, "weights": weights_signature(sources.resolve(name)), **numbers, **more}


def _sampling(how: Answering, sample: int) -> dict[str, Any]:
    if how.temperature == 0:
        return {"do_sample": False, "num_beams": how.num_beams}
    return {"do_sample": True, "temperature": how.temperature, "top_p": how.top_p, "num_beams": how.num_beams}


class LocalAnswerer(Answerer):
    """A MiniGPT-4: an alignment, an export, or one of the pocket models."""

    def __init__(self, name: str, how: Answering) -> None:
        self.name, self.how = name, how
        self.identity = _identity("minigpt4", name, how)
        self._model: MiniGPT4 | None = None

    def close(self) -> None:
        self._model = None
        _free()

    @property
    def model(self) -> MiniGPT4:
        if self._model is None:
            from minigpt4.minigpt4 import MiniGPT4

            how = self.how
            self._model = MiniGPT4.from_pretrained(self.name, dtype=how.dtype, load_in=how.load_in, device=how.device)
        return self._model

    def answer(
        self, images: Sequence[Image.Image], prompts: Sequence[str], *, max_new_tokens: int = 300, sample: int = 0
    ) -> list[ModelReply]:
        from minigpt4.generation.engine import answers

        settings = _sampling(self.how, sample)
        if settings["do_sample"]:
            settings |= {"seed": self.how.seed + 1_000_003 * sample, "repetition_penalty": 1.0}
        found = answers(self.model, list(images), list(prompts), max_new_tokens=max_new_tokens, **settings)
        return [ModelReply(answer.text, answer.ended) for answer in found]

    def likelihoods(
        self, images: Sequence[Image.Image], prompts: Sequence[str], options: Sequence[Sequence[str]]
    ) -> list[ModelReply]:
        import torch

        from minigpt4.prompts.encode import encode, encode_chat
        from minigpt4.prompts.templates import Message

        model = self.model
        features = model.encode_images(list(images))
        replies = []
        for row, prompt, choices in zip(features, prompts, options, strict=True):
            head = encode_chat(
                model.tokenizer, model.template, [Message("user", prompt, 1)], model.num_query_tokens,
                model.image_token_id,
            )  # fmt: skip
            tails = [
                encode(model.tokenizer, choice, model.num_query_tokens, model.image_token_id, bos=False)
                for choice in choices
            ]
            scores: list[float] = []
            for start in range(0, len(tails), OPTIONS_AT_ONCE):
                part = tails[start : start + OPTIONS_AT_ONCE]
                ids, mask = _right_padded([[*head, *tail] for tail in part])
                with torch.inference_mode():
                    hidden = model.hidden_states(ids, row.expand(len(part), *row.shape), mask.to(model.device))
                    # The state before a token predicts it.
                    said = model.logits(hidden[:, len(head) - 1 : -1]).float().log_softmax(-1).cpu()
                scores += _sums(said, ids[:, len(head) :], part)
            replies.append(_choice(choices, scores, [len(tail) for tail in tails]))
        return replies


class Blip2Answerer(Answerer):
    """Any `Blip2ForConditionalGeneration` as plain transformers runs it: the paper's baseline."""

    def __init__(self, name: str, how: Answering, prompt: str = BLIP2_PROMPT) -> None:
        if how.load_in or how.device == "auto":
            raise UserError(f"{name}: a plain BLIP-2 is loaded whole; leave --load-in and --device auto out for it")
        self.name, self.how, self.prompt = name, how, prompt
        self.identity = _identity("blip2", name, how, prompt=prompt)
        self._loaded: Any = None

    def close(self) -> None:
        self._loaded = None
        _free()

    def _load(self) -> tuple[Any, Any]:
        """(model, processor)."""
        if self._loaded is None:
            import torch
            from transformers import AutoProcessor, Blip2ForConditionalGeneration

            from minigpt4.model import sources
            from minigpt4.model.precision import Placement

            source = sources.resolve(self.name)
            placement = Placement.resolve(self.how.dtype, self.how.device, None, None)
            try:
                processor = sources.load(AutoProcessor, source)
                model = sources.load(Blip2ForConditionalGeneration, source, dtype=placement.dtype)
            except UserError:
                raise
            except Exception as error:  # each part has its own exceptions for broken files
                raise UserError(f"{self.name}: cannot be loaded as a BLIP-2 ({sources.first_line(error)})") from None
            processor.tokenizer.padding_side = "left"
            processor.num_query_tokens = model.config.num_query_tokens  # early revisions on the hub do not say
            self._loaded = model.to(torch.device(placement.device)).eval(), processor
        return self._loaded

    def answer(
        self, images: Sequence[Image.Image], prompts: Sequence[str], *, max_new_tokens: int = 300, sample: int = 0
    ) -> list[ModelReply]:
        import torch

        model, processor = self._load()
        asked = [self.prompt.format(prompt) for prompt in prompts]
        inputs = processor(images=list(images), text=asked, padding=True, return_tensors="pt")
        inputs = inputs.to(model.device, model.dtype)
        settings = _sampling(self.how, sample)
        if settings["do_sample"]:
            torch.manual_seed(self.how.seed + 1_000_003 * sample)
        with torch.inference_mode():
            rows = model.generate(**inputs, max_new_tokens=max_new_tokens, **settings)
        new = rows[:, inputs["input_ids"].shape[1] :] if model.config.use_decoder_only_language_model else rows
        return [
            ModelReply(text.strip(), len(row) < max_new_tokens or _ends(row, model))
            for row, text in zip(new, processor.batch_decode(new, skip_special_tokens=True), strict=True)
        ]

    def likelihoods(
        self, images: Sequence[Image.Image], prompts: Sequence[str], options: Sequence[Sequence[str]]
    ) -> list[ModelReply]:
        import torch

        model, processor = self._load()
        decoder_only = model.config.use_decoder_only_language_model
        replies = []
        for image, prompt, choices in zip(images, prompts, options, strict=True):
            inputs = processor(images=image, text=self.prompt.format(prompt), return_tensors="pt")
            inputs = inputs.to(model.device, model.dtype)
            head = inputs["input_ids"][0].tolist()
            space = " " if decoder_only else ""
            tails = [processor.tokenizer(space + c, add_special_tokens=False)["input_ids"] for c in choices]
            scores: list[float] = []
            for start in range(0, len(tails), OPTIONS_AT_ONCE):
                part = tails[start : start + OPTIONS_AT_ONCE]
                pixels = inputs["pixel_values"].expand(len(part), -1, -1, -1)
                with torch.inference_mode():
                    if decoder_only:
                        ids, mask = (t.to(model.device) for t in _right_padded([[*head, *tail] for tail in part]))
                        logits = model(pixel_values=pixels, input_ids=ids, attention_mask=mask).logits
                        logits, targets = logits[:, len(head) - 1 : -1], ids[:, len(head) :]
                    else:
                        targets, kept = (t.to(model.device) for t in _right_padded(part))
                        read = {k: v.expand(len(part), -1) for k, v in inputs.items() if v.dim() == 2}
                        labels = targets.masked_fill(kept == 0, -100)
                        logits = model(pixel_values=pixels, **read, labels=labels).logits
                scores += _sums(logits.float().log_softmax(-1).cpu(), targets.cpu(), part)
            replies.append(_choice(choices, scores, [len(tail) for tail in tails]))
        return replies


def _free() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _ends(row: Any, model: Any) -> bool:
    ends = model.generation_config.eos_token_id or model.config.text_config.eos_token_id
    return int(row[-1]) in (ends if isinstance(ends, list) else [ends])


def _right_padded(rows: Sequence[Sequence[int]]) -> tuple[Any, Any]:
    """Token ids as one tensor, and its mask; attention is causal, so what stands behind a row's end changes nothing."""
    import torch

    longest = max(len(row) for row in rows)
    ids = torch.zeros((len(rows), longest), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids, mask


def _sums(said: Any, targets: Any, rows: Sequence[Sequence[int]]) -> list[float]:
    """The log-likelihood of every row from the log-probabilities (rows, tokens, vocabulary) at its places."""
    each = said.gather(-1, targets[..., None])[..., 0]
    return [float(each[i, : len(row)].sum()) for i, row in enumerate(rows)]


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

    def __init__(self, name: str, how: Answering) -> None:
        self.how = how
        self.endpoint = open_endpoint(name, how.timeout)
        self.identity = {"kind": "endpoint", "model": self.endpoint.model, "url": self.endpoint.url}

    def answer(
        self, images: Sequence[Image.Image], prompts: Sequence[str], *, max_new_tokens: int = 300, sample: int = 0
    ) -> list[ModelReply]:
        replies: list[ModelReply] = [ModelReply()] * len(prompts)

        def record(index: int, reply: ModelReply | Unanswered) -> None:
            replies[index] = ModelReply(fault=str(reply)) if isinstance(reply, Unanswered) else reply

        def work(index: int) -> ModelReply:
            return self._ask(image_url(images[index]), prompts[index], max_new_tokens)

        self.endpoint.ask_each(range(len(prompts)), work, record, self.how.concurrency)
        return replies

    def answer_each(self, items: Sequence[Item], record: Callable[[int, ModelReply], None], *, sample: int = 0) -> None:
        """As for all models; each reply is recorded as soon as it is there, for it may have been paid.

        Raises UserError as `Endpoint.ask_each`.
        """

        def work(index: int) -> ModelReply:
            item = items[index]
            try:
                picture = image_url(item.image)
            except UserError as error:
                return ModelReply(fault=str(error))
            if item.options:
                return self._choose(picture, item.prompt, item.options)
            return self._ask(picture, item.prompt, item.max_new_tokens)

        def keep(index: int, reply: ModelReply | Unanswered) -> None:
            record(index, ModelReply(fault=str(reply)) if isinstance(reply, Unanswered) else reply)

        self.endpoint.ask_each(range(len(items)), work, keep, self.how.concurrency)

    def _ask(self, picture: str, prompt: str, max_new_tokens: int) -> ModelReply:
        content = [
            {"type": "image_url", "image_url": {"url": picture}},
            {"type": "text", "text": prompt},
        ]
        try:
            said = self.endpoint.ask(
                [{"role": "user", "content": content}], max_tokens=max_new_tokens, temperature=self.how.temperature
            )
        except Unanswered as error:
            if not error.empty:
                raise
            return ModelReply()
        return ModelReply(said.text, said.ended)

    def _choose(self, picture: str, prompt: str, options: Sequence[str]) -> ModelReply:
        """Options by letter; an answer that names none is a reply whose text is none of them."""
        listed = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
        reply = self._ask(picture, f"{prompt}\n{listed}\nAnswer with the letter of the right option only.", 16)
        found = re.match(r"\W*([A-Z])\b", reply.text.upper())
        index = LETTERS.index(found[1]) if found else len(options)
        return ModelReply(options[index], reply.ended) if index < len(options) else reply


def open_answerer(name: str, how: Answering | None = None) -> Answerer:
    """The model called `name`; local weights are loaded when it is first asked.

    `openai:URL#MODEL` is an endpoint, `blip2:DIRECTORY` (or a directory or hub id that holds a BLIP-2 and no record of
    ours) a plain BLIP-2, anything else what `MiniGPT4.from_pretrained` reads. Raises UserError if there is no such
    model.
    """
    how = how or Answering()
    if name.startswith(ENDPOINT_PREFIX):
        return EndpointAnswerer(name, how)
    from minigpt4.model import sources

    if name.startswith(BLIP2_PREFIX):
        return Blip2Answerer(name.removeprefix(BLIP2_PREFIX), how)
    source = sources.resolve(name)
    if sources.find_file(source, "alignment.json"):
        return LocalAnswerer(name, how)
    if sources.read_json(source, "config.json").get("model_type") == "blip-2":
        return Blip2Answerer(name, how)
    raise UserError(f"{name}: is neither an alignment, an export nor a BLIP-2; give one of them, or openai:URL#MODEL")
