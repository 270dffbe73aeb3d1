"""Any OpenAI-compatible endpoint as a model to evaluate: `openai:http://127.0.0.1:8000/v1#name`.

The key is read from the environment. An endpoint gives no likelihoods, so options are put to it by letter.
"""

from __future__ import annotations

import base64
import io
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from minigpt4.errors import UserError
from minigpt4.evaluation.answerers import ENDPOINT_PREFIX, Answerer, Answering, Reply
from minigpt4.generation.endpoint import Endpoint, Unanswered, run_until_stopped
from minigpt4.images import open_image
from minigpt4.stopping import StopSignals

if TYPE_CHECKING:
    from minigpt4.evaluation.items import Item

_ORIENTATION = 0x0112  # EXIF: which way up
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


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


def data_url(image: Image.Image) -> str:
    """The picture as a PNG in a data URL."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return _data_url(buffer.getvalue(), "png")


def picture_url(path: Path) -> str:
    """A picture file as a data URL: as it is if every endpoint can read it, else as a PNG.

    Raises UserError if it cannot be read.
    """
    image = open_image(path)
    data = path.expanduser().read_bytes()
    with Image.open(io.BytesIO(data)) as file:
        upright = file.getexif().get(_ORIENTATION, 1) == 1
        kind = (file.format or "").lower()
    return _data_url(data, kind) if kind in ("jpeg", "png") and upright else data_url(image)


def _data_url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


class EndpointAnswerer(Answerer):
    """An endpoint and the model that it is asked for."""

    def __init__(self, name: str, how: Answering) -> None:
        self.how = how
        self.endpoint = open_endpoint(name, how.timeout)
        self.identity = {"kind": "endpoint", "model": self.endpoint.model, "url": self.endpoint.url}

    def answer(
        self, images: Sequence[Image.Image], prompts: Sequence[str], *, max_new_tokens: int = 300, sample: int = 0
    ) -> list[Reply]:
        replies: list[Reply] = [Reply()] * len(prompts)

        def record(index: int, reply: Reply | Unanswered) -> bool:
            replies[index] = Reply(fault=str(reply)) if isinstance(reply, Unanswered) else reply
            return True

        self._each(range(len(prompts)), lambda i: self._ask(data_url(images[i]), prompts[i], max_new_tokens), record)
        return replies

    def answer_each(self, items: Sequence[Item], record: Callable[[int, Reply], None], *, sample: int = 0) -> None:
        """As for all models; each reply is recorded as soon as it is there, for it may have been paid.

        Raises UserError if the endpoint refuses, or fails several times running.
        """
        failed: list[str] = []

        def work(index: int) -> Reply | Unanswered:
            item = items[index]
            try:
                picture = picture_url(item.image)
            except UserError as error:
                return Reply(fault=str(error))
            if item.options:
                return self._choose(picture, item.prompt, item.options)
            return self._ask(picture, item.prompt, item.max_new_tokens)

        def keep(index: int, reply: Reply | Unanswered) -> bool:
            if isinstance(reply, Unanswered):
                failed.append(str(reply))
                record(index, Reply(fault=str(reply)))
            else:
                failed.clear()
                record(index, reply)
            return len(failed) < max(3, self.how.concurrency)

        self._each(range(len(items)), work, keep)
        if len(failed) >= max(3, self.how.concurrency) or (failed and len(failed) == len(items)):
            raise UserError(
                f"endpoint {self.endpoint.url}: {failed[-1]}; what was answered is recorded, try again later"
            )

    def _each(self, tasks: Sequence[int], work: Callable[[int], Any], record: Callable[[int, Any], bool]) -> None:
        self.endpoint.stopped = stopped = threading.Event()
        with StopSignals() as stop:
            run_until_stopped(tasks, work, record, self.how.concurrency, stopped, lambda: stop.received)

    def _ask(self, picture: str, prompt: str, max_new_tokens: int) -> Reply | Unanswered:
        content = [
            {"type": "image_url", "image_url": {"url": picture}},
            {"type": "text", "text": prompt},
        ]
        try:
            said = self.endpoint.ask(
                [{"role": "user", "content": content}], max_tokens=max_new_tokens, temperature=self.how.temperature
            )
        except Unanswered as error:
            return Reply() if error.empty else error
        return Reply(said.text, said.ended)

    def _choose(self, picture: str, prompt: str, options: Sequence[str]) -> Reply | Unanswered:
        """Options by letter; an answer that names none is a reply whose text is none of them."""
        listed = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
        reply = self._ask(picture, f"{prompt}\n{listed}\nAnswer with the letter of the right option only.", 16)
        if isinstance(reply, Unanswered):
            return reply
        found = re.match(r"\W*([A-Z])\b", reply.text.upper())
        index = LETTERS.index(found[1]) if found else len(options)
        return Reply(options[index], reply.ended) if index < len(options) else reply
