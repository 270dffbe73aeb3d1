"""Visitors' conversations, and the models that they share. Nothing of Gradio is here."""

import contextlib
import functools
import json
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from pydantic import BaseModel, Field

from minigpt4 import shipped
from minigpt4.app.decoder import Decoder
from minigpt4.app.recent import Recent
from minigpt4.errors import UserError
from minigpt4.images import MAX_PIXELS, open_image

if TYPE_CHECKING:
    from minigpt4.app.scheduler import Scheduler
    from minigpt4.generation.chat import Chat

#: A visit ends after so many silent seconds, and the longest silent one when there are more than so many.
IDLE_SECONDS, MAX_VISITS = 3600.0, 64
#: What the page calls the model of drafts, if the others read none.
DRAFTS = "Drafts (pocket)"
MAX_BATCH = 16  # answers decoded together; later questions wait
MAX_IMAGES = 8  # of a question
MAX_FILE = 20_000_000  # bytes of an image
SHOWN = 768  # pixels a side, at most, of an image as it is shown and kept
MAX_QUESTION = 8000  # characters


class Models:
    """The models that the page offers by name; each is loaded once, when it is first asked for."""

    def __init__(self, names: Mapping[str, str], **loading: Any) -> None:
        self.names = dict(names)  # and what `MiniGPT4.from_pretrained` takes for each
        self.first = next(iter(names))
        self.loading = loading
        self.alone = threading.Lock()  # for what takes memory of its own: beams, heat maps
        self._loaded: dict[str, Scheduler] = {}
        self._lock = threading.Lock()

    def get(self, name: str) -> "Scheduler":
        """What answers with this model, loaded now if need be. Raises UserError for an unknown or broken one."""
        if name not in self.names:
            raise UserError(f"there is no model {name!r} here; choose one of {', '.join(self.names)}")
        if name not in self._loaded:
            with self._lock:  # transformers cannot be imported by two threads at once
                from minigpt4.app.scheduler import Scheduler
                from minigpt4.minigpt4 import MiniGPT4

                if name not in self._loaded:
                    model = MiniGPT4.from_pretrained(self.names[name], **self.loading)
                    self._loaded[name] = Scheduler(model, MAX_BATCH, MAX_VISITS)
        return self._loaded[name]

    def suggested(self, name: str) -> dict[str, Any]:
        """How the model's record, if it lies on this machine, says that answers are decoded. It is checked later."""
        known = self.names[name]
        try:
            record = json.loads(Path(str(shipped.models().get(known, known)), "alignment.json").read_bytes())
            return dict(record["decoding"])
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def close(self) -> None:
        """Break off what is being answered and decoded, and take no more questions."""
        with _STARTING:
            if _decoder.cache_info().currsize:
                _decoder().close()
                _decoder.cache_clear()
        for scheduler in self._loaded.values():
            scheduler.close()

    def warm_up(self) -> None:
        """Start to load the first model; if that fails, the first question fails with the same message."""

        def load() -> None:
            with contextlib.suppress(Exception):
                self.get(self.first)

        threading.Thread(target=load, daemon=True).start()


class KeptTurn(BaseModel):
    """A turn as a visitor's browser keeps it; `images` says how many of the conversation's are its own."""

    question: str
    answer: str
    images: int = Field(ge=0, le=MAX_IMAGES)
    stopped: bool = False
    cut: bool = False
    unfamiliar: bool = False


class KeptChat(BaseModel):
    """A conversation as a visitor's browser keeps it, without its images."""

    id: str = Field(pattern="^[0-9a-f]{16}$")
    model: str
    system: str = ""
    turns: list[KeptTurn] = Field(max_length=500)


_new_name = functools.partial(secrets.token_hex, 8)


@dataclass(eq=False)
class Turn:
    """A question with its images, and as much of its answer as there is. `files`: the images as they are shown."""

    question: str
    images: list[Image.Image]
    answer: str = ""
    ended: bool = False
    stopped: bool = False
    cut: bool = False  # by the end of the page on which it was asked
    unfamiliar: bool = False  # an image is unlike those that the model learnt from
    files: list[str] = field(default_factory=list)


@dataclass(eq=False)
class Visit:
    """The conversation `name` of the visitor `key` with the model called `model`. Setting `stop` ends the answer."""

    models: Models
    model: str
    key: str = ""
    name: str = field(default_factory=_new_name)
    system: str = ""  # the system prompt of conversations that begin from now on, or the model's own
    turns: list[Turn] = field(default_factory=list)
    chat: "Chat | None" = None
    stop: threading.Event = field(default_factory=threading.Event)
    answering: threading.Lock = field(default_factory=threading.Lock)
    beside: "list[Visit]" = field(default_factory=list)  # those in which other models answer the same question

    @property
    def images(self) -> list[Image.Image]:
        """All that were shown, in order."""
        return [image for turn in self.turns for image in turn.images]

    def start_again(self, model: str | None = None) -> None:
        """Forget the conversation; the next is with `model`."""
        self.stop.set()
        self.stop_beside()
        self.turns, self.chat, self.stop, self.answering = [], None, threading.Event(), threading.Lock()
        self.model, self.name = model or self.model, _new_name()

    def resume(self, kept: KeptChat, images: Sequence[Any]) -> None:
        """Take up a kept conversation; the model reads it when next asked. Raises UserError; then nothing changed."""
        turns, left = [], iter(images)
        for said in kept.turns:
            shown = [opened(image) for image in islice(left, said.images)]
            for image in shown:
                image.thumbnail((SHOWN, SHOWN))  # as the browser has kept it
            turns.append(Turn(said.question, shown, said.answer, True, said.stopped, said.cut, said.unfamiliar))
        self.start_again(kept.model if kept.model in self.models.names else self.models.first)
        self.name, self.system, self.turns = kept.id, kept.system, turns

    def ask_beside(
        self, names: Sequence[str], question: str, images: list[Any], settings: Mapping[str, Any]
    ) -> Iterator[dict[str, Turn]]:
        """Put one question to all models of these names, outside of this conversation; yields those turns that grew."""
        self.stop_beside()
        self.beside = [Visit(self.models, name, system=self.system) for name in names]
        coming = {visit.model: visit.ask(question, images, settings) for visit in self.beside}
        while coming:
            grown = {name: turn for name, turns in coming.items() if (turn := next(turns, None)) is not None}
            if grown:
                yield grown
            coming = {name: coming[name] for name in grown}

    def stop_beside(self) -> None:
        """End the answers of `ask_beside`, which belong to no question any more."""
        for visit in self.beside:
            visit.stop.set()
        self.beside = []

    def ask(
        self, question: str, images: list[Any], settings: Mapping[str, Any], after: int | None = None
    ) -> Iterator[Turn]:
        """Put a question; yields its turn whenever there is more of its answer.

        With `after` all but the first so many turns are forgotten before. A turn that fails has not happened. Raises
        UserError for what cannot be asked or shown, or while an answer to this visitor is still coming.
        """
        answering = self.answering
        if not answering.acquire(blocking=False):
            raise UserError("An answer is still coming; wait for its end, or stop it")
        try:
            if len(images) > MAX_IMAGES:
                raise UserError(f"{len(images)} images at once; show at most {MAX_IMAGES}")
            if len(question) > MAX_QUESTION:
                raise UserError(f"the question has {len(question):,} characters; at most {MAX_QUESTION:,} are read")
            if not question.strip():
                raise UserError("Type a question, or choose an example")
            turn, former = Turn(question, [opened(image) for image in images]), [*self.turns]
            if after is not None:
                if self.chat is not None:
                    self.chat.rewind(min(after, len(self.turns)))
                del self.turns[after:]
            stop = self.stop = threading.Event()
            self.turns.append(turn)
            try:
                yield turn
                yield from self._answer(turn, stop, settings)
            except BaseException:
                if turn in self.turns:
                    self.turns.remove(turn)
                    if after is not None and not turn.answer:
                        self.turns, self.chat = former, None
                raise
            yield turn
        finally:
            answering.release()

    def _answer(self, turn: Turn, stop: threading.Event, settings: Mapping[str, Any]) -> Iterator[Turn]:
        chat = self.chat
        if chat is None:
            scheduler = self.models.get(self.model)
            from minigpt4.generation.chat import Chat

            chat = Chat(scheduler.model, streaming=scheduler.stream)
            if self.system:
                chat.set_system(self.system)
            for said in self.turns[:-1]:
                chat.recall(said.question, said.images, said.answer)
            if self.stop is stop:  # else a new conversation began meanwhile
                self.chat = chat
        turn.unfamiliar = any(map(chat.model.is_unfamiliar, turn.images))
        if settings.get("num_beams", 1) > 1:
            with self.models.alone:
                turn.answer = chat.ask(turn.question, turn.images, stop, **settings)
        else:
            last = 0.0
            for piece in chat.stream(turn.question, turn.images, stop, **settings):
                turn.answer += piece
                if time.monotonic() - last > 0.1:  # faster than anybody reads; showing one takes time, too
                    yield turn
                    last = time.monotonic()
        for number, image in enumerate(turn.images):  # from here on as it is shown: photos of phones would fill memory
            turn.images[number] = image.copy()
            turn.images[number].thumbnail((SHOWN, SHOWN))
        turn.ended, turn.stopped = True, stop.is_set()


class Visits(Recent[Visit]):
    """The visits by the key of each. `drop` frees what a visitor held; so does an hour without a word."""

    def __init__(self, models: Models) -> None:
        super().__init__(MAX_VISITS, IDLE_SECONDS, Visit.start_again)
        self.models = models

    def of(self, key: str) -> Visit:
        """The visit with this key, begun now if there is none."""
        new = Visit(self.models, self.models.first, key)
        return self.use(key, new) or new


_STARTING = threading.Lock()  # two uploads at once would start one each
_decoder = functools.cache(Decoder)


def opened(image: str | bytes | Image.Image) -> Image.Image:
    """A visitor's image, opened by the decoder unless it is open already. Raises UserError, which tells no folder."""
    if isinstance(image, Image.Image):
        return open_image(image)
    with _STARTING:
        decoder = _decoder()  # its processes start with the first upload
    if isinstance(image, bytes):
        return decoder.open(image, MAX_PIXELS)
    try:
        return decoder.open(Path(image).read_bytes(), MAX_PIXELS)
    except (OSError, UserError) as error:
        what = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else error
        raise UserError(f"{Path(image).name}: {what}") from None


def offered(model: str, beside: list[str]) -> dict[str, str]:
    """The models of a page by the names that it shows. Raises UserError for one that does not exist.

    Beside a shipped one stand stage 1 and BLIP-2; beside those that see as the photo model does, which reads no drafts,
    stands one that reads them.
    """
    if model in ("photo", "pocket") and not beside:  # before torch is imported: the page opens at once
        names = {"Stage 2": model, "Stage 1": f"{model}-stage1", "BLIP-2 baseline": f"{model}-blip2"}
        return names | ({DRAFTS: "pocket-drafts"} if model == "photo" else {})
    from minigpt4.model import loading, sources

    names, drafts = {}, {}
    for each in dict.fromkeys([model, *beside]):
        source, short = sources.resolve(each), Path(each).name or each
        if isinstance(source, Path) and loading.read_record(source).origin.vision_qformer == "photo/vision":
            drafts = {DRAFTS: "pocket-drafts"}
        names[DRAFTS if each == "pocket-drafts" != model else each if short in names else short] = each
    return names | drafts
