"""The claims on photographs: Flickr8k's test split and COCO's files, real LLMs, rules and readers in place of a truth.

What is asked, the rules and the claims are in photographs.yaml; the weak LLM learns from the captions alone. Positions
are tested in the drawn world, whose truth is known, through the same frozen parts. No photograph and no caption goes
into the page: answers stand beside file names and the names of things.
"""

import json
import math
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt4.data.formats import parquet_rows
from minigpt4.data.pairs import Cause
from minigpt4.errors import UserError
from minigpt4.evaluation.benchmarks import coco, coverage
from minigpt4.evaluation.benchmarks.hallucination import count_objects
from minigpt4.files import find_files, new_directory, write_atomically
from minigpt4.images import read_image
from minigpt4.prompts.templates import TEMPLATES, Message
from minigpt4.statistics import Rate
from minigpt4.telling import table
from minigpt4.text_failures import failure
from pocket.measure.survey import encode
from pocket.reproduce.artifacts import Parts, Workshop, digest, read_rows
from pocket.reproduce.experiments import WEAK_ARM, Arm, Scale, World, find_scale
from pocket.reproduce.survey import Evidence, Figures, Mean
from pocket.shipped import read_table

if TYPE_CHECKING:
    from minigpt4.minigpt4 import MiniGPT4

RULES = read_table("reproduce/photographs")
TASKS: dict[str, dict[str, Any]] = RULES["tasks"]
#: Words after which a description is cut, to be compared with captions: as many as people's have.
CUT = 10
#: A caption follows the bare image, the form of stage 1.
BARE = replace(TEMPLATES["blip2"], name="bare", user="{images}{text}", assistant="{text}\n")
IN_WORDS = "captions in words"
#: What texts name: scenery too where captions are the truth, COCO's categories alone where objects are annotated.
THINGS, COCO = coco.Vocabulary(None, "scenery"), coco.Vocabulary(None)
#: Whose answers are read blindly.
READ = ("one layer", f"{WEAK_ARM} with stage 2", "stage 2", "BLIP-2", "photo as it ships")

PHOTOGRAPHS = World.read("photographs")  # whose forms are asked about COCO's photographs too
#: Abilities that an answer of one line can show, as those in BLIP-2's form are.
PROSE = [task for task in PHOTOGRAPHS.abilities if "lines" not in TASKS[task].get("form", {})]
POCKET_LLM = Arm("the pocket LLM", start="pocket", asked="all")
#: Drawn pictures through the parts for photographs; the pocket model beside them.
DRAWN = replace(World.read("results"), recipes="photo", stage1=PHOTOGRAPHS.stage1, more=[POCKET_LLM])


def scales(quick: bool, seeds: int | None, texts: int) -> tuple[Scale, Scale]:
    """The scales of photographs and of drawn pictures, with so many descriptions in stage 2's whole set."""
    numbers = RULES["scales"]["whole"] | (RULES["scales"]["quick"] if quick else {})
    scale = replace(find_scale(quick, seeds), world=PHOTOGRAPHS, descriptions=texts, **numbers)
    drawn = {"pairs": scale.pairs // 5, "scenes": scale.scenes // 2, **RULES["scales"]["drawn"]}
    return scale, replace(scale, world=DRAWN, **drawn)


@dataclass(frozen=True)
class Photo:
    """A photograph: its file's name and bytes, captions, and what is in it if that is annotated."""

    name: str
    image: bytes
    captions: tuple[str, ...]
    objects: frozenset[str] | None = None

    @cached_property
    def named(self) -> Counter[str]:
        """How many captions name a thing."""
        return Counter(name for caption in self.captions for name in sorted({*THINGS.mentions(caption)}))

    @cached_property
    def subjects(self) -> set[str]:
        """What most captions name, and at least three."""
        most = max(self.named.values(), default=0)
        return {name for name, times in self.named.items() if times == most >= 3}


@cache
def flickr(directory: Path, split: str) -> tuple[Photo, ...]:
    """The photographs of a split, in an order drawn once. Raises UserError."""
    keys = [f"caption_{k}" for k in range(5)]
    files, _ = find_files(directory / "**" / f"{split}-*.parquet")
    rows = [row for file in files for row in parquet_rows(file, {"image", *keys}) if not isinstance(row, Cause)]
    found = [Photo(row["image"]["path"], row["image"]["bytes"], tuple(tidy(row[key]) for key in keys)) for row in rows]
    return tuple(random.Random(f"photographs of {split}").sample(found, len(found)))


@cache
def coco_photos(directory: Path) -> tuple[tuple[Path, tuple[str, ...], frozenset[str]], ...]:
    """(file, captions, objects) of the photographs that lie in a directory with COCO's `annotations`.

    An object is there if it is annotated, or named in a caption. Raises UserError if no photograph is there.
    """
    found = []
    for path in find_files(directory / "annotations" / "instances_*.json")[0]:
        there, split = coco.read_coco(path, instances=True), path.stem.removeprefix("instances_")
        said = coco.read_coco(path.with_name(f"captions_{split}.json"), instances=False).of_image
        for image, name in there.file_names.items():
            if (file := directory / split / name).is_file():
                captions = tuple(said.get(image, ()))
                objects = {*there.of_image[image]}.union(*map(COCO.mentions, captions))
                found.append((file, captions, frozenset(objects)))
    if not found:
        raise UserError(f"{directory}: none of the photographs is there that its annotations name; give them, unpacked")
    return tuple(random.Random("photographs of COCO").sample(found, len(found)))


def tidy(caption: str) -> str:
    """A caption as people write sentences: a capital at the start, a full stop at its end."""
    text = re.sub(r"\s+([,.])", r"\1", " ".join(caption.split())).rstrip(" .")
    return text[:1].upper() + text[1:] + "."


@cache
def descriptions(path: Path) -> list[tuple[str, tuple[str, ...]]]:
    """(file name, a text) of a file of detailed descriptions, in an order drawn once."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found = [(str(row["file_name"]), (str(row["text"]),)) for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path}: expected lines of {{"file_name": ..., "text": ...}} ({error!r})') from None
    return random.Random("descriptions").sample(found, len(found))


def is_in_form(
    text: str, lines: int = 0, line_words: float = math.inf, sentences: int = 0, words: int = 0, says: str = ""
) -> bool:
    """Whether an answer has the form of its task, as photographs.yaml tells."""
    written, spoken = [line for line in text.splitlines() if line.strip()], len(text.split())
    return (
        len(written) >= lines
        and (not written or spoken / len(written) <= line_words)
        and len(re.findall(r"[.!?…][\"')”’]*(?:\s|$)", text)) >= sentences
        and spoken >= words
        and re.search(says, text, re.IGNORECASE) is not None
    )


def judge(task: str, photo: Photo, answer: str, ended: bool) -> dict[str, Any]:
    """What the rules find in an answer about a photograph of Flickr8k; plain JSON."""
    told = {*THINGS.mentions(answer)}
    wrong, content = failure(answer, ended), bool(told & (photo.subjects or photo.named.keys()))
    form = is_in_form(answer, **TASKS[task].get("form", {}))
    return {
        "failure": wrong, "told": sorted(told), "unsupported": sorted(told - photo.named.keys()),
        "subject": bool(told & photo.subjects) if photo.subjects else None, "form": form,
        "success": wrong is None and form and content,
    }  # fmt: skip


@dataclass
class Photographs(Workshop):
    """Makes and asks the arms of the world of photographs. `texts` are stage 2's detailed descriptions."""

    flickr8k: Path = Path()
    coco: Path = Path()
    texts: Path = Path()

    def data_directory(self, data: tuple[int, int]) -> Path:
        place = super().data_directory(data)
        return place if data[0] == 1 else place.with_name(f"{place.name}-{digest([descriptions(self.texts)])}")

    def _answers(self, arm: Arm, seed: int) -> Path:
        path = super()._answers(arm, seed)
        return path.with_stem(f"{path.stem}-{digest([TASKS])}")  # other questions, other answers

    def _write_data(self, stage: int, count: int) -> None:
        """Five captions of each photograph, or a description, in a parquet file."""
        from pyarrow import Table, parquet

        photos = {photo.name: photo for photo in flickr(self.flickr8k, "train")}
        told = [(name, photo.captions) for name, photo in list(photos.items())[: count // 5]]
        told = told if stage == 1 else descriptions(self.texts)[:count]
        if strange := {name for name, _ in told}.difference(photos):
            raise UserError(f"{self.texts}: {min(strange)} is no photograph of Flickr8k's train split")
        rows = [{"image": {"path": name, "bytes": photos[name].image}, "captions": [*texts]} for name, texts in told]
        with new_directory(self.data_directory((stage, count)), marker="pairs.parquet") as directory:
            parquet.write_table(Table.from_pylist(rows), directory / "pairs.parquet", row_group_size=200)

    def llm_directory(self, skill: str) -> Path:
        key = digest([self._captions(), self.scale.first_lessons])
        return self.out / "llms" / f"{skill.replace(' ', '-')}-{key}"

    def _captions(self) -> list[str]:
        """All that the weak LLM reads."""
        return [text for photo in flickr(self.flickr8k, "train")[: self.scale.pairs // 5] for text in photo.captions]

    def _teach(self, skill: str) -> None:
        from pocket.towers.language import build_on_captions

        build_on_captions(self._captions(), self.llm_directory(skill), self.scale.first_lessons)

    # -- asking

    def questions(self, arm: Arm, seed: int) -> list[tuple[str, Photo]]:
        """(task, photograph) of all that an arm is asked, by task; seeds have photographs of their own."""
        scenes, many = self.scale.scenes, self.scale.scenes if arm.asked == "all" else 0
        own, files = flickr(self.flickr8k, "test")[seed * scenes :][:scenes], coco_photos(self.coco)
        files = (files * 2)[seed * many // 2 % len(files) :][: many // 2]
        others = [Photo(file.name, read_image(file), captions, objects) for file, captions, objects in files]
        of_task = {task: own[: scenes if "often" in how else self.scale.questions] for task, how in TASKS.items()}
        asked = ((task, (*own, *(others if task in PHOTOGRAPHS.forms else ()))) for task, own in of_task.items())
        return [(task, photo) for task, photos in asked for photo in photos]

    def _ask(self, arm: Arm, seed: int, aligned: str) -> None:
        from minigpt4.generation.engine import answers
        from minigpt4.minigpt4 import MiniGPT4

        model, asked, rows = MiniGPT4.from_pretrained(aligned), self.questions(arm, seed), list[dict[str, Any]]()
        features = {} if arm.name == IN_WORDS else self._seen(model, [photo for _, photo in asked])
        said: dict[tuple[str, str], list[list[str]]] = {}
        for task, group in groupby(asked, key=lambda each: each[0]):
            photos, how = [photo for _, photo in group], TASKS[task]
            for part in (photos[start : start + 25] for start in range(0, len(photos), 25)):
                before = [said.get((how.get("after", ""), photo.name), []) for photo in part]
                prompts = [prompt(task, *each, not features) for each in zip(part, before, strict=True)]
                given: dict[str, Any] = {"features": [features[photo.name] for photo in part]} if features else {}
                given |= {"template": BARE} if features and not how["ask"] else {}
                given |= {"repetition_penalty": how.get("penalty", 1.0), "max_new_tokens": how["tokens"]}
                found = answers(model, prompts=prompts, do_sample=False, **given)
                for photo, turns, answer in zip(part, before, found, strict=True):
                    text = answer.text.strip()
                    said[task, photo.name] = turns = [*turns, [how["ask"], text]]
                    row = {"ability": task, "question": photo.name, "answer": text, "ended": answer.ended}
                    rows.append({**row, "turns": turns})
        path = self._answers(arm, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(rows, indent=1).encode())

    def _seen(self, model: "MiniGPT4", photos: Sequence[Photo]) -> dict[str, Any]:
        """What a model's vision side gives for photographs, by name; kept on disk with that of the training data."""
        from minigpt4.training.features import FeatureCache, features_fingerprint, image_key

        cached = FeatureCache(self.out / "features", features_fingerprint(model))
        keys = {photo.name: image_key(photo.image) for photo in photos}
        new = list({photo.name: photo for photo in photos if keys[photo.name] not in cached}.values())
        if new:
            cached.add([keys[photo.name] for photo in new], encode(model, [photo.image for photo in new]))
        return dict(zip(keys, cached[list(keys.values())], strict=True))

    # -- reading

    def judged(self, arm: Arm, seed: int) -> list[tuple[str, Photo, dict[str, Any]]]:
        """(task, photograph, its answer with what the rules find in it) of all that an arm was asked."""
        asked = self.questions(arm, seed)
        rows = read_rows(self._answers(arm, seed), [(task, photo.name) for task, photo in asked])
        judged = [judge(*each, row["answer"], row["ended"]) for each, row in zip(asked, rows, strict=True)]
        return [(*each, row | found) for each, row, found in zip(asked, rows, judged, strict=True)]

    def figures(self, arm: Arm, seed: int) -> Figures:
        """As of the base. Rates: `false FORM`, `names FORM` (the main subject), `fails FORM`, `covered FORM` and `cut`,
        `chair FORM` (COCO: of the objects named, those not there), `CIDEr`, each ability, `abilities`, `prose`, `read`.
        """
        found, judged = Figures(), self.judged(arm, seed)
        for each in judged:
            _count(found, *each)
        own = [(photo, row) for task, photo, row in judged if task == "caption" and photo.objects is None]
        found.rates["CIDEr"] += Mean.of(cider({photo.name: (row["answer"], photo.captions) for photo, row in own}))
        if seed == self.scale.seeds[0] and arm.name in READ:
            verdicts = {row["id"]: row["success"] for row in self._judgements()}
            prose = [each for each in judged if each[0] in PROSE and each[1].objects is None]
            ids = [digest([arm.name, task, photo.name, row["answer"]]) for task, photo, row in prose]
            if verdicts.keys() >= {*ids}:
                found.rates["read"] += Rate.from_outcomes(verdicts[name] for name in ids)
        return found

    def _judgements(self) -> list[dict[str, Any]]:
        """What readers wrote. Raises UserError for a line that is no verdict."""
        found = []
        for file in sorted((self.out / "reading").glob("judged*.jsonl")):
            for number, line in enumerate(filter(None, file.read_text(encoding="utf-8").splitlines()), 1):
                try:
                    row = json.loads(line)
                    found.append({"id": row["id"], "success": {True: True, False: False}[row["success"]]})
                except (ValueError, KeyError, TypeError):
                    told = 'is not {"id": ..., "success": true or false, "why": ...}'
                    raise UserError(f"{file}: verdict {number} {told}") from None
        return found

    def tell(self, evidence: Evidence) -> dict[str, Any]:
        """A table of answers to look at; those to be read blindly are written where the arms are."""
        names, seed = [name for name in ("stage 1", *READ) if name in evidence], self.scale.seeds[0]
        rows = ((name, *each) for name in names for each in self.judged(self.arms[name], seed))
        every = [row for row in rows if row[2].objects is None]
        firsts = {photo.name for _, _, photo, _ in every[:2]}
        shown = [
            [photo.name, ", ".join(dict(photo.named.most_common())), task, name, " / ".join(row["answer"].split("\n"))]
            for name, task, photo, row in every
            if photo.name in firsts and task in ("description", *PHOTOGRAPHS.abilities)
        ]
        lines: dict[str, dict[str, Any]] = {}
        for name, task, photo, row in every:
            if name in READ and task in PROSE:
                key = digest([name, task, photo.name, row["answer"]])
                lines[key] = {"id": key, "task": task, "photo": photo.name, "turns": row["turns"]}
        (self.out / "reading").mkdir(parents=True, exist_ok=True)
        # In an order that tells nothing of the model.
        text = "".join(json.dumps(lines[key]) + "\n" for key in sorted(lines))
        write_atomically(self.out / "reading" / "answers.jsonl", text.encode())
        return {
            "shown": table(["photograph", "its captions name", "asked for", "model", "answer"], sorted(shown)).rstrip(),
            "reading": self.out / "reading" / "answers.jsonl", "to_read": len(lines),
            "judged": sum(row["id"] in lines for row in self._judgements()),
        }  # fmt: skip


def _count(found: Figures, task: str, photo: Photo, row: Mapping[str, Any]) -> None:
    text, count = row["answer"], found.rates.count
    if photo.objects is not None:
        counts, _ = count_objects(text, COCO, photo.objects)
        count(f"chair {task}", counts["hallucinated"], counts["mentions"])
        return
    found.count_words(task, len(text.split()))
    count(f"false {task}", len(row["unsupported"]), len(row["told"]))
    count(f"fails {task}", row["failure"] is not None)
    if row["subject"] is not None:
        count(f"names {task}", row["subject"])
    if task in ("caption", "description"):
        count(f"covered {task}", sum(coverage.covers(each, text) for each in photo.captions), len(photo.captions))
    if task == "description":
        short = " ".join(text.split()[:CUT])
        count("covered cut", sum(coverage.covers(each, short) for each in photo.captions), len(photo.captions))
    if task in PHOTOGRAPHS.abilities:
        count(task, row["success"])
        count("abilities", row["success"])
    if task in PROSE:
        count("prose", row["success"])


def cider(said: Mapping[str, tuple[str, Sequence[str]]]) -> list[float]:
    """CIDEr of the first sentence of each answer against its captions, by name; words cut by a plain rule."""
    from pycocoevalcap.cider.cider import Cider

    firsts = {name: [re.split(r"(?<=[.!?])\s", text)[0]] for name, (text, _) in said.items()}
    people = coverage.tokenize({name: captions for name, (_, captions) in said.items()}, java=False)
    scores = Cider().compute_score(people, coverage.tokenize(firsts, java=False))[1] if said else []
    return [float(score) for score in scores]


def prompt(task: str, photo: Photo, turns: list[list[str]], in_words: bool) -> list[Message]:
    """What is asked after former `turns`; `in_words`: with people's captions in place of the image."""
    asks = [ask for ask, _ in turns] + [TASKS[task]["ask"] or ("Write a short caption." if in_words else "")]
    if in_words:
        asks[0] = "\n".join(("Five people wrote of one image:", *photo.captions, "", asks[0]))
    said = [Message("user", ask, images=int(not in_words and ask is asks[0])) for ask in asks]
    answered = [Message("assistant", answer) for _, answer in turns]
    return [message for pair in zip(said, answered, strict=False) for message in pair] + said[-1:]


def workshop(
    out: Path, flickr8k: Path, coco_directory: Path, texts: Path, quick: bool = False, seeds: int | None = None
) -> Photographs:
    """This world's workshop, that of drawn pictures through the same parts beside it. Raises UserError without data."""
    if find_spec("pycocoevalcap") is None:
        raise UserError("captions are measured with pycocoevalcap: pip install 'minigpt4-vlm[eval]'")
    if not texts.is_file():
        raise UserError(f"{texts}: is no file of detailed descriptions; give one with --texts")
    wanted = [(flickr8k, f"**/{split}-*.parquet", "--flickr8k") for split in ("train", "test")]
    for directory, pattern, option in (*wanted, (coco_directory, "annotations/instances_*.json", "--coco")):
        if not any(directory.glob(pattern)):
            raise UserError(f"{directory}: holds no {pattern}; name the directory that does with {option}")
    full, drawn = scales(quick, seeds, len(descriptions(texts)))
    parts = Parts("photo/vision", "photo/language", "photo-blip2", "photo/language", None)
    beside = {"drawn": Workshop(out / "drawn", drawn, parts)}
    return Photographs(out, full, parts, beside=beside, flickr8k=flickr8k, coco=coco_directory, texts=texts)
