"""Held-out pocket pictures as benchmarks in the formats of COCO, A-OKVQA, GQA and VQA v2.

So that what is measured on the published files can be measured on a fresh clone too, from the same readers on.
Pictures come from a part of the evaluation's seeds that nothing else uses.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minigpt4.files import new_directory
from minigpt4.progress import progress_bar
from pocket.data.training_sets import take_seeds
from pocket.text.phrases import NUMBERS, caption
from pocket.text.requests import Request, request
from pocket.world import world
from pocket.world.draw import draw
from pocket.world.world import Picture

#: (first, count) of the seeds for benchmarks.
SEEDS = (world.SEEDS["evaluation"][0] + 400_000, 100_000)
SIDE = 256
#: Half of the pictures are scenes, about which most can be asked. Website drafts hold no objects.
TYPES = ("scene", "food", "scene", "odd", "scene", "product")
CAPTIONS_PER_PICTURE = 5

IMAGES, TRUTH = "images", "truth.jsonl"
CAPTIONS, INSTANCES = "captions_pocket.json", "instances_pocket.json"
AOKVQA, GQA = "aokvqa_pocket.json", "gqa_pocket.json"
VQA_QUESTIONS, VQA_ANNOTATIONS = "vqav2_questions_pocket.json", "vqav2_annotations_pocket.json"

_OBJECTS = {
    "object": world.KINDS, "ingredient": world.INGREDIENTS, "product": world.PRODUCTS, "animal": world.ANIMALS,
    "prop": world.PROPS,
}  # fmt: skip
#: What can be asked about a picture of each type so that one word answers it.
_ASKED = {"scene": ("colour", "where", "what", "count", "exists"), "odd": ("colour", "setting"), "product": ("colour",)}
#: From which words a wrong choice is drawn.
_DOMAINS = {
    "colour": world.COLOURS, "where": world.PLACES, "what": world.KINDS, "count": NUMBERS[1:],
    "setting": world.BACKGROUNDS,
}  # fmt: skip
#: GQA's types of a question, structural and semantic.
_GQA_TYPES = {
    "colour": ("query", "attr"), "where": ("query", "rel"), "what": ("query", "obj"), "count": ("query", "obj"),
    "setting": ("query", "global"), "exists": ("verify", "obj"),
}  # fmt: skip


def pictures(count: int) -> list[Picture]:
    """The first `count` pictures, of all `TYPES` in turn. Raises UserError if there are not so many seeds."""
    return [world.sample(seed, TYPES[k % len(TYPES)]) for k, seed in enumerate(take_seeds("benchmarks", SEEDS, count))]


def write_benchmarks(out: Path, count: int, overwrite: bool = False) -> Path:
    """Writes `count` pictures and the benchmark files about them into `out`, which must be empty or not exist.

    `images/`, `truth.jsonl` (one line for each picture: `Picture.to_dict` and `file`), captions and instances as COCO
    has them, questions as A-OKVQA, GQA and VQA v2 have them. Raises UserError as `pictures`, or if `out` cannot be
    written.
    """
    drawn = pictures(count)
    with new_directory(out, overwrite=overwrite, marker=TRUTH) as directory, progress_bar() as bar:
        task = bar.add_task("held-out pictures", total=count, note="")
        (directory / IMAGES).mkdir()
        for picture in drawn:
            draw(picture, SIDE).save(directory / IMAGES / file_name(picture))
            bar.advance(task)
        lines = (json.dumps({"file": f"{IMAGES}/{file_name(p)}", **p.to_dict()}) + "\n" for p in drawn)
        (directory / TRUTH).write_text("".join(lines), encoding="utf-8")
        for name, content in _files(drawn).items():
            (directory / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
    return out


def kept_benchmarks(directory: Path, count: int) -> Path:
    """The benchmarks of `count` pictures, in a directory of their own in `directory`; written unless they are there."""
    out = directory / f"pocket-{count}"
    return out if (out / TRUTH).is_file() else write_benchmarks(out, count)


def file_name(picture: Picture) -> str:
    """The picture's file: its seed in COCO's twelve digits."""
    return f"{picture.seed:012d}.png"


def _files(drawn: list[Picture]) -> dict[str, Any]:
    images = [{"id": p.seed, "file_name": file_name(p), "width": SIDE, "height": SIDE} for p in drawn]
    aokvqa: list[dict[str, Any]] = []
    gqa: dict[str, dict[str, Any]] = {}
    questions: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for picture in drawn:
        for number, (asked, answer, rng) in enumerate(_asked(picture)):
            identity = 10 * picture.seed + number
            if asked.ability in _DOMAINS:
                aokvqa.append(_aokvqa(picture, identity, asked, answer, rng))
            gqa[str(identity)] = _gqa(picture, asked, answer)
            questions.append({"question_id": identity, "image_id": picture.seed, "question": asked.text})
            annotations.append(_vqa(picture, identity, asked, answer))
    return {
        CAPTIONS: {"images": images, "annotations": list(_captions(drawn))},
        INSTANCES: {"images": images, "annotations": list(_instances(drawn)), "categories": _categories()},
        AOKVQA: aokvqa,
        GQA: gqa,
        VQA_QUESTIONS: {"questions": questions},
        VQA_ANNOTATIONS: {"annotations": annotations},
    }


def _captions(drawn: list[Picture]) -> Iterator[dict[str, Any]]:
    number = 0
    for picture in drawn:
        rng = random.Random(f"benchmark captions {picture.seed}")
        texts = dict.fromkeys(caption(picture, rng) for _ in range(4 * CAPTIONS_PER_PICTURE))
        for text in list(texts)[:CAPTIONS_PER_PICTURE]:
            number += 1
            yield {"id": number, "image_id": picture.seed, "caption": f"{text[0].upper()}{text[1:]}."}


def _categories() -> list[dict[str, Any]]:
    kinds: dict[str, str] = {}
    for group, names in _OBJECTS.items():
        for name in names:
            kinds.setdefault(name, group)
    return [{"id": k, "name": name, "supercategory": group} for k, (name, group) in enumerate(kinds.items(), start=1)]


def _instances(drawn: list[Picture]) -> Iterator[dict[str, Any]]:
    ids = {category["name"]: category["id"] for category in _categories()}
    number = 0
    for picture in drawn:
        for item in picture.items:
            for left, top, right, bottom in item.boxes:
                number += 1
                box = [round(SIDE * value, 2) for value in (left, top, right - left, bottom - top)]
                yield {
                    "id": number, "image_id": picture.seed, "category_id": ids[item.kind], "bbox": box,
                    "area": round(box[2] * box[3], 2), "iscrowd": 0,
                }  # fmt: skip


def _asked(picture: Picture) -> Iterator[tuple[Request, str, random.Random]]:
    """Two questions about the picture (fewer where less can be asked), the right word, and a generator for choices."""
    rng = random.Random(f"benchmark questions {picture.seed}")
    abilities = _ASKED.get(picture.type, ())
    for ability in rng.sample(abilities, min(2, len(abilities))):
        asked = request(ability, picture, rng)
        yield asked, str(asked.expected), rng


def _aokvqa(picture: Picture, identity: int, asked: Request, answer: str, rng: random.Random) -> dict[str, Any]:
    there = {item.kind for item in picture.items}
    wrong = [word for word in _DOMAINS[asked.ability] if word != answer and word not in there]
    choices = [answer, *rng.sample(wrong, 3)]
    rng.shuffle(choices)
    return {
        "split": "val", "image_id": picture.seed, "question_id": f"pocket-{identity}", "question": asked.text,
        "choices": choices, "correct_choice_idx": choices.index(answer), "direct_answers": [answer] * 10,
        "difficult_direct_answer": False, "rationales": [],
    }  # fmt: skip


def _gqa(picture: Picture, asked: Request, answer: str) -> dict[str, Any]:
    structural, semantic = _GQA_TYPES[asked.ability]
    return {
        "imageId": f"{picture.seed:012d}", "question": asked.text, "answer": answer, "isBalanced": True,
        "types": {"structural": structural, "semantic": semantic, "detailed": asked.ability},
    }  # fmt: skip


def _vqa(picture: Picture, identity: int, asked: Request, answer: str) -> dict[str, Any]:
    """Ten answers, three of them written in another way, as people do."""
    digits = {word: str(number) for number, word in enumerate(NUMBERS)}
    words = [answer] * 7 + [digits.get(answer, f"{answer}."), answer.capitalize(), f"the {answer}"]
    kind = {"count": "number", "exists": "yes/no"}.get(asked.ability, "other")
    return {
        "question_id": identity, "image_id": picture.seed, "answer_type": kind, "multiple_choice_answer": answer,
        "answers": [{"answer_id": k, "answer": word} for k, word in enumerate(words, start=1)],
    }  # fmt: skip
