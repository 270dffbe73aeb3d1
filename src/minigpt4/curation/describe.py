"""The first step: the stage-1 model describes every picture, and goes on when it has said too little (paper, 3.2).

The model is a local one, in batches, or any OpenAI-compatible endpoint. Every text is recorded as soon as it is whole,
so a run that is stopped goes on with the pictures that have none.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt4.curation.ledger import Ledger, Picture
from minigpt4.data.formats import read_annotations
from minigpt4.data.pairs import unusable_text
from minigpt4.endpoint import STOPPED, Endpoint, Unanswered
from minigpt4.errors import UserError
from minigpt4.files import expand
from minigpt4.images import find_image, find_images, image_url
from minigpt4.progress import progress_bar
from minigpt4.stopping import StopSignals

if TYPE_CHECKING:
    from minigpt4.minigpt4 import MiniGPT4

logger = logging.getLogger(__name__)

BATCH = 32


@dataclass(frozen=True)
class Describing:
    """How pictures are described. The defaults are the paper's; sampling is the released demo's."""

    instruction: str = "Describe this image in detail. Give as many details as possible. Say everything you see."
    continuation: str = "Continue"
    min_tokens: int = 80  # a shorter text is taken as incomplete, and the model is asked to continue
    max_continuations: int = 1
    max_new_tokens: int = 300
    temperature: float = 1.0  # 0 always takes the likeliest word
    seed: int = 0


def add_folder(ledger: Ledger, folder: Path) -> int:
    """Add every picture below `folder`, named by its path there without ending; returns how many there are.

    Those that cannot be opened are left out, with a warning. Raises UserError if there is none.
    """
    folder = expand(folder)
    named: dict[str, Path] = {}
    for path in find_images(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        named[name if name not in named else path.relative_to(folder).as_posix()] = path
    refused = ledger.add_pictures(named.items())
    _warn_refused(refused)
    if len(refused) == len(named):
        raise UserError(f"{folder}: holds no picture that can be opened")
    return len(named) - len(refused)


def add_dataset(ledger: Ledger, directory: Path) -> int:
    """Add the pictures and texts of a `cc_sbu_align` directory; returns how many texts are new.

    A text goes the way of one that a model wrote. Pictures that are missing or broken are left out, with a warning.
    """
    annotations = read_annotations(str(directory))
    refused = {}
    files = {}
    for image_id, caption in annotations:
        try:
            files[image_id] = find_image(directory / "image", image_id, inside=True)
        except UserError as error:
            refused[image_id] = str(error)
        if cause := unusable_text(image_id, caption):
            files.pop(image_id, None)
            refused[image_id] = cause.detail
    refused |= ledger.add_pictures(files.items())
    _warn_refused(refused)
    settings = ledger.settings("describe", {"model": "imported", "from": str(directory.resolve())})
    texts: dict[str, list[str]] = {}
    for image_id, caption in annotations:
        if image_id not in refused:
            texts.setdefault(image_id, []).append(caption.strip())
    rows = [
        ((image_id, sample), 0, {"text": text, "tokens": None, "continuations": 0, "ended": True})
        for image_id, captions in texts.items()
        for sample, text in enumerate(captions)
    ]
    return ledger.add("describe", settings, rows)


def _warn_refused(refused: dict[str, str]) -> None:
    for name, reason in list(refused.items())[:5]:
        logger.warning("left out: %s (%s)", name, reason)
    if len(refused) > 5:
        logger.warning("left out: %d more", len(refused) - 5)


def describe(
    ledger: Ledger,
    model: str | Path | Endpoint,
    how: Describing,
    *,
    samples: int = 1,
    only: Iterable[str] = (),
    redo: bool = False,
    concurrency: int = 4,
) -> dict[str, int]:
    """Describe every picture that has no description with these settings yet; returns counts of what was done.

    `model` is a local one (its name or directory) or an `Endpoint`. `only` names the pictures to take, `redo` describes
    them again though they are done. Raises UserError for what does not work, KeyboardInterrupt once all is recorded.
    """
    with ledger.lock("describe"):
        wanted = set(only)
        pictures = [picture for picture in ledger.pictures() if not wanted or picture.name in wanted]
        if unknown := wanted - {picture.name for picture in pictures}:
            raise UserError(f"{ledger.project}: there is no picture named {min(unknown)!r}")
        local = None if isinstance(model, Endpoint) else _Local(model, how)
        record = local.record() if local else {"model": model.model}  # type: ignore[union-attr]
        settings = ledger.settings("describe", {**record, **asdict(how)})
        done = {(event.picture, event.sample) for event in ledger.events("describe") if event.settings == settings}
        turn = ledger.next_turn("describe") if redo else 0
        todo = [(p, sample) for p in pictures for sample in range(samples) if redo or (p.name, sample) not in done]
        counts = {"described": 0, "continued": 0, "left out": 0, "done before": len(pictures) * samples - len(todo)}

        def keep(rows: Sequence[tuple[tuple[str, int], dict[str, Any] | None]]) -> None:
            found = [(key, 0, data) for key, data in rows if data is not None]
            counts["described"] += ledger.add("describe", settings, found, turn)
            counts["continued"] += sum(data["continuations"] > 0 for _, _, data in found)
            counts["left out"] += len(rows) - len(found)

        with progress_bar() as bar:
            task = bar.add_task("describe", total=len(todo), note="")
            if local:
                with StopSignals() as stop:
                    for start in range(0, len(todo), BATCH):
                        if stop.received:
                            raise KeyboardInterrupt(STOPPED)
                        batch = todo[start : start + BATCH]
                        keep(local.describe(batch))
                        bar.update(task, advance=len(batch), note=f"{counts['continued']} continued")
            else:
                failures = ledger.next_turn("describe-failed")

                def keep_one(asked: tuple[Picture, int], found: dict[str, Any] | Unanswered | None) -> None:
                    key = asked[0].name, asked[1]
                    if isinstance(found, Unanswered):
                        row = (key, 0, {"reason": str(found), "tokens": found.tokens})
                        ledger.add("describe-failed", settings, [row], failures)
                        found = None
                    keep([(key, found)])
                    bar.advance(task)

                assert isinstance(model, Endpoint)
                model.ask_each(todo, partial(_describe_remotely, model, how), keep_one, concurrency)
        return counts


class _Local:
    """The stage-1 model, loaded when there is something to describe."""

    def __init__(self, name: str | Path, how: Describing) -> None:
        self.name, self.how = name, how
        self._model: MiniGPT4 | None = None

    @property
    def model(self) -> MiniGPT4:
        if self._model is None:
            from minigpt4.minigpt4 import MiniGPT4

            self._model = MiniGPT4.from_pretrained(self.name)
        return self._model

    def record(self) -> dict[str, Any]:
        return {"model": str(self.name), "projection": model_fingerprint(self.model)}

    def describe(self, batch: Sequence[tuple[Picture, int]]) -> list[tuple[tuple[str, int], dict[str, Any] | None]]:
        """A record for each (picture, sample), or None where the picture is gone."""
        from minigpt4.generation.engine import answers
        from minigpt4.prompts.templates import Message

        how = self.how
        opened = {name: data for name, data in ((p.name, _open(p)) for p, _ in batch) if data is not None}
        here = [(picture.name, sample) for picture, sample in batch if picture.name in opened]
        rows: list[tuple[tuple[str, int], dict[str, Any] | None]] = [
            ((picture.name, sample), None) for picture, sample in batch if picture.name not in opened
        ]
        if not here:
            return rows
        names = list(opened)
        encoded = self.model.encode_images([opened[name] for name in names])
        features = encoded[[names.index(name) for name, _ in here]]
        sampling: dict[str, Any] = {"do_sample": False, "max_new_tokens": how.max_new_tokens}
        if how.temperature > 0:
            # From what is described, so that a run that was stopped says what it would have said, batch by batch.
            sampling |= {"do_sample": True, "temperature": how.temperature, "seed": _seed(how.seed, here)}
        first = answers(self.model, prompts=[how.instruction] * len(here), features=features, **sampling)
        parts = [[answer.text] for answer in first]
        tokens = [len(answer.tokens) for answer in first]
        ended = [answer.ended for answer in first]
        for _ in range(how.max_continuations):
            short = [i for i in range(len(here)) if tokens[i] < how.min_tokens]
            if not short:
                break
            talks = []
            for i in short:
                talk = [Message("user", how.instruction, images=1)]
                for part in parts[i]:
                    talk += [Message("assistant", part), Message("user", how.continuation)]
                talks.append(talk)
            more = answers(self.model, prompts=talks, features=features[short], **sampling)
            for i, answer in zip(short, more, strict=True):
                parts[i].append(answer.text)
                tokens[i] += len(answer.tokens)
                ended[i] = answer.ended
        for i, key in enumerate(here):
            rows.append((key, _record(parts[i], tokens[i], ended[i])))
        return rows


def model_fingerprint(model: MiniGPT4) -> str:
    """A name for all weights that decide what a model says: those of its frozen parts and of its projection."""
    import hashlib

    digest = hashlib.sha256(f"{model.vision_fingerprint} {model.llm_fingerprint}".encode())
    for tensor in model.blip2.language_projection.state_dict().values():
        digest.update(tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _seed(seed: int, keys: Sequence[tuple[str, int]]) -> int:
    import hashlib

    return int.from_bytes(hashlib.sha256(f"{seed} {keys}".encode()).digest()[:4], "big")


def _open(picture: Picture) -> bytes | None:
    try:
        return picture.read()
    except UserError as error:
        logger.warning("left out: %s", error)
        return None


def _record(parts: Sequence[str], tokens: int, ended: bool) -> dict[str, Any]:
    text = " ".join(part for part in parts if part)
    return {"text": text, "tokens": tokens, "continuations": len(parts) - 1, "ended": ended}


def _describe_remotely(endpoint: Endpoint, how: Describing, task: tuple[Picture, int]) -> dict[str, Any] | None:
    """A record for one picture, or None if it is gone."""
    data = _open(task[0])
    if data is None:
        return None
    shown = {"type": "image_url", "image_url": {"url": image_url(data)}}
    talk: list[dict[str, Any]] = [{"role": "user", "content": [shown, {"type": "text", "text": how.instruction}]}]
    parts: list[str] = []
    tokens = 0
    while True:
        reply = endpoint.ask(talk, max_tokens=how.max_new_tokens, temperature=how.temperature)
        parts.append(reply.text)
        tokens += reply.answer_tokens - reply.thought_tokens
        if tokens >= how.min_tokens or len(parts) > how.max_continuations:
            return {**_record(parts, tokens, reply.ended), "endpoint": endpoint.url}
        talk += [{"role": "assistant", "content": reply.text}, {"role": "user", "content": how.continuation}]
