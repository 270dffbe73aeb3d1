"""The first step (paper, 3.2): the stage-1 model describes each image, here or at an endpoint; short texts go on."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from minigpt4.curation.ledger import Ledger, LedgerImage
from minigpt4.data.formats import read_annotations
from minigpt4.data.pairs import unusable_text
from minigpt4.endpoint import Endpoint, Unanswered
from minigpt4.errors import UserError
from minigpt4.files import expand
from minigpt4.images import find_image, find_images, image_url
from minigpt4.progress import progress_bar
from minigpt4.prompts.templates import Message
from minigpt4.stopping import StopSignals

BATCH = 32
#: Descriptions as the ledger keeps them, by the image's name and the sample.
Described = dict[tuple[str, int], dict[str, Any]]


@dataclass(frozen=True)
class Describing:
    """How images are described. The defaults are the paper's; sampling is the released demo's."""

    instruction: str = "Describe this image in detail. Give as many details as possible. Say everything you see."
    continuation: str = "Continue"
    min_tokens: int = 80  # a shorter text is taken as incomplete, and the model is asked to continue
    max_continuations: int = 1
    max_new_tokens: int = 300
    temperature: float = 1.0  # 0 always takes the likeliest word
    seed: int = 0


def add_folder(ledger: Ledger, folder: Path) -> int:
    """Add all images below `folder` by their paths without ending; returns how many. Raises UserError for none."""
    folder = expand(folder)
    named: dict[str, Path] = {}
    for path in find_images(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        named[name if name not in named else path.relative_to(folder).as_posix()] = path
    refused = ledger.add_images(named.items())
    if len(refused) == len(named):
        raise UserError(f"{folder}: holds no image that can be opened")
    return len(named) - len(refused)


def add_dataset(ledger: Ledger, directory: Path) -> int:
    """Add images and texts of a `cc_sbu_align`, with warnings of broken images; returns how many texts are new."""
    files: dict[str, Path] = {}
    refused: dict[str, str] = {}
    captions: dict[str, list[str]] = {}
    for image_id, caption in read_annotations(str(directory)):
        captions.setdefault(image_id, []).append(caption.strip())
        try:
            files[image_id] = find_image(directory / "image", image_id, inside=True)
        except UserError as error:
            refused[image_id] = str(error)
        if cause := unusable_text(image_id, caption):
            refused[image_id] = cause.detail
    left_out = ledger.add_images(files.items(), refused)
    settings = ledger.settings("describe", {"model": "imported", "from": str(directory.resolve())})
    known = {item.key: item.raw.data["text"] for item in ledger.items()}
    rows = [
        ((image_id, sample), 0, {"text": text, "tokens": None, "continuations": 0, "ended": True})
        for image_id, texts in captions.items()
        for sample, text in enumerate(texts)
        if image_id not in left_out and known.get((image_id, sample)) != text
    ]
    return ledger.add("describe", settings, rows, ledger.next_turn("describe"))


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
    """Describe each image that was not with these settings, or `redo` all; returns counts. Raises UserError."""
    with ledger.lock("describe"):
        images = ledger.images(only)
        asked: Any
        if isinstance(model, Endpoint):
            asked, record = model, {"model": model.model}
        else:
            from minigpt4.minigpt4 import MiniGPT4
            from minigpt4.model.loading import weights_fingerprint

            asked = MiniGPT4.from_pretrained(model)
            record = {"model": str(model), "projection": weights_fingerprint(model)}
        settings = ledger.settings("describe", {**record, **asdict(how)})
        done = {(event.image, event.sample) for event in ledger.events("describe") if event.settings == settings}
        todo = [(p, sample) for p in images for sample in range(samples) if redo or (p.name, sample) not in done]
        turn, failures = ledger.next_turn("describe") if redo else 0, ledger.next_turn("describe-failed")
        counts = {"described": 0, "continued": 0, "left out": 0, "done before": len(images) * samples - len(todo)}

        def keep(tasks: Sequence[tuple[LedgerImage, int]], found: Described) -> None:
            counts["described"] += ledger.add("describe", settings, [(key, 0, found[key]) for key in found], turn)
            counts["continued"] += sum(data["continuations"] > 0 for data in found.values())
            counts["left out"] += len(tasks) - len(found)
            bar.update(task, advance=len(tasks), note=f"{counts['continued']} continued")

        def keep_one(one: tuple[LedgerImage, int], found: Described | Unanswered) -> None:
            if isinstance(found, Unanswered):
                row = ((one[0].name, one[1]), 0, {"reason": str(found), "tokens": found.tokens})
                ledger.add("describe-failed", settings, [row], failures)
                found = {}
            keep([one], found)

        with progress_bar() as bar:
            task = bar.add_task("describe", total=len(todo), note="")
            if isinstance(asked, Endpoint):
                asked.ask_each(todo, partial(_describe_remotely, asked, how), keep_one, concurrency)
                return counts
            with StopSignals() as stop:
                # An image is in a batch once: rows with the same seed and image would draw the same words.
                for part in ([each for each in todo if each[1] == sample] for sample in range(samples)):
                    for batch in (part[start : start + BATCH] for start in range(0, len(part), BATCH)):
                        stop.check()
                        keep(batch, _describe_batch(asked, how, batch))
        return counts


def _describe_batch(model: Any, how: Describing, batch: Sequence[tuple[LedgerImage, int]]) -> Described:
    """Descriptions of those whose image is there, written together."""
    from minigpt4.generation.engine import answers  # takes seconds

    images = dict.fromkeys(image for image, _ in batch)
    opened = {each.name: data for each in images if (data := each.read_if_there()) is not None}
    keys = [(image.name, sample) for image, sample in batch if image.name in opened]
    if not keys:
        return {}
    features = model.encode_images(list(opened.values()))[[list(opened).index(name) for name, _ in keys]]
    sampling: dict[str, Any] = {"do_sample": False, "max_new_tokens": how.max_new_tokens}
    if how.temperature > 0:
        # From what is described, so that a run that was stopped says what it would have said, batch by batch.
        seed = int.from_bytes(hashlib.sha256(f"{how.seed} {keys}".encode()).digest()[:4], "big")
        sampling |= {"do_sample": True, "temperature": how.temperature, "seed": seed}
    talks = [[Message("user", how.instruction, images=1)] for _ in keys]
    found: list[dict[str, Any]] = [{} for _ in keys]
    short = list(range(len(keys)))
    for _ in range(1 + how.max_continuations):
        more = answers(model, prompts=[talks[i] for i in short], features=features[short], **sampling)
        for i, answer in zip(short, more, strict=True):
            found[i] = _described(found[i], answer.text, len(answer.tokens), answer.ended)
            talks[i] += [Message("assistant", answer.text), Message("user", how.continuation)]
        short = [i for i in short if found[i]["tokens"] < how.min_tokens]
        if not short:
            break
    return dict(zip(keys, found, strict=True))


def _describe_remotely(endpoint: Endpoint, how: Describing, one: tuple[LedgerImage, int]) -> Described:
    image, sample = one
    data = image.read_if_there()
    if data is None:
        return {}
    shown = {"type": "image_url", "image_url": {"url": image_url(data)}}
    talk: list[dict[str, Any]] = [{"role": "user", "content": [shown, {"type": "text", "text": how.instruction}]}]
    found: dict[str, Any] = {}
    for _ in range(1 + how.max_continuations):
        reply = endpoint.ask(talk, max_tokens=how.max_new_tokens, temperature=how.temperature)
        found = _described(found, reply.text, reply.answer_tokens - reply.thought_tokens, reply.ended)
        if found["tokens"] >= how.min_tokens:
            break
        talk += [{"role": "assistant", "content": reply.text}, {"role": "user", "content": how.continuation}]
    return {(image.name, sample): {**found, "endpoint": endpoint.url}}


def _described(before: Mapping[str, Any], text: str, tokens: int, ended: bool) -> dict[str, Any]:
    """A description, from what was said before (empty for the first answer) and one answer more."""
    return {
        "text": " ".join(filter(None, (before.get("text"), text))),
        "tokens": before.get("tokens", 0) + tokens,
        "continuations": before.get("continuations", -1) + 1,
        "ended": ended,
    }
