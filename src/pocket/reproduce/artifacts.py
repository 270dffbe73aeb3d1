"""Where arms are made: data drawn, models trained, questions put, each once and for all.

An arm's directory is named after all that decides its result: the recipe, the content of the data, the weights of the
frozen parts and of what it begins with. So nothing that is done is done again, whatever ended the run before, and
nothing that was made of other weights is taken for the same. What models answered is kept as text; it is judged anew
each time, so a better judge needs no new answers.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt4.errors import UserError
from minigpt4.evaluation.results import machine
from minigpt4.files import write_atomically
from minigpt4.statistics import Rate
from minigpt4.training.recipe import Recipe
from pocket.measure.survey import Judged, Survey, encode, put, write_pictures
from pocket.measure.truth import check
from pocket.reproduce.experiments import ALL_SKILLS, NO_SKILLS, SKILLS, Arm, Scale, arms, jobs
from pocket.reproduce.survey import Evidence, Figures, draw_exam, figures
from pocket.text.conversations import Piece, conversation
from pocket.world.world import SEEDS

if TYPE_CHECKING:
    from torch import Tensor

    from minigpt4.minigpt4 import MiniGPT4


@dataclass(frozen=True)
class Parts:
    """The frozen parts that every arm shares, the baseline, and the LLM that lessons begin with."""

    vision_qformer: str = "pocket/vision"
    llm: str = "pocket/language"
    baseline: str = "pocket-blip2"
    beginner: str = "pocket/captioner"
    template: str | None = "pocket"


@dataclass
class Workshop:
    """Makes the arms of a scale below `out`. `changes` go into every recipe."""

    out: Path
    scale: Scale
    parts: Parts = Parts()
    changes: Mapping[str, Any] = field(default_factory=dict)
    beside: "Mapping[str, Workshop]" = field(default_factory=dict)  # other workshops of the same page, by a short name
    _features: "dict[tuple[str, int], Tensor]" = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def arms(self) -> dict[str, Arm]:
        """The arms of the scale by name."""
        return {arm.name: arm for arm in arms(self.scale)}

    # -- what decides an arm's result

    def key(self, arm: Arm, seed: int) -> str:
        """Twelve hexadecimal digits that change when anything does that decides the arm's weights.

        Raises LookupError if its data or its LLM are not made yet.
        """
        if arm.recipe is None:
            if arm.start in self.arms:
                return self.key(self.arms[arm.start], seed)
            return digest(_fingerprint(self._llm(arm))) if arm.llm else _alignment_key(self._shipped(arm))
        # Keys that stand at their defaults are left out, so that one which a later release adds changes nothing.
        recipe = self.recipe(arm, seed).model_dump(mode="json", exclude_defaults=True)
        elsewhere = ("base", "data", "init", "vision_qformer", "llm", "output", "feature_cache", "save_every")
        content = {
            "recipe": {key: value for key, value in recipe.items() if key not in elsewhere},
            "data": _data_key(self.data_directory(arm.data)),
        }
        if arm.start:
            return digest({**content, "start": self.key(self.arms[arm.start], seed)})
        parts = [_fingerprint(self.parts.vision_qformer), _fingerprint(self._llm(arm))]
        return digest({**content, "parts": parts})

    def weights(self) -> str:
        """The frozen parts by name, each with the first digits of its fingerprint."""
        parts = dict.fromkeys((self.parts.vision_qformer, self.parts.llm, self.parts.beginner))
        return ", ".join(f"{Path(part).name} {_fingerprint(part)[:8]}" for part in parts)

    def data_directory(self, data: tuple[int, int]) -> Path:
        """Where the pictures of (stage, count) lie."""
        return self.out / "data" / f"stage{data[0]}-{data[1]}"

    def llm_directory(self, skill: str) -> Path:
        """Where the LLM whose text lacks `skill` is, or will be; named after all that decides its weights."""
        batches = [self.scale.first_lessons, *([] if skill == NO_SKILLS else [self.scale.skill_steps])]
        key = digest([_fingerprint(self.parts.beginner), batches, _text_without(skill)])
        return self.out / "llms" / f"{skill.replace(' ', '-')}-{key}"

    def _shipped(self, arm: Arm) -> str:
        """The alignment of an arm that is not trained here."""
        return arm.start if arm.start and arm.name != "BLIP-2" else self.parts.baseline

    def _llm(self, arm: Arm) -> str:
        if arm.llm is None:
            return self.parts.llm
        finished = self.llm_directory(arm.llm) / "llm"
        if not finished.is_dir():
            raise LookupError(f"{finished} is not trained yet")
        return str(finished)

    def recipe(self, arm: Arm, seed: int) -> Recipe:
        """The recipe of a trained arm; its output is not named yet."""
        begun: dict[str, Any] = {"init": "an arm"}
        if arm.start is None:
            begun = {"vision_qformer": self.parts.vision_qformer, "llm": self._llm(arm), "init": None}
            begun["template"] = self.parts.template
        changes = {
            **begun, **dict(arm.changes), "seed": seed, "data": str(self.data_directory(arm.data)), **self.changes,
            "output": "runs", "feature_cache": str(self.out / "features"),
        }  # fmt: skip
        return Recipe.load(arm.recipe or "", [f"{key}={json.dumps(value)}" for key, value in changes.items()])

    # -- making

    def directory(self, arm: Arm, seed: int) -> Path:
        """Where an arm's run and answers are, or will be. Raises LookupError as `key`."""
        name = "".join(letter if letter.isalnum() else "-" for letter in arm.name)
        return self.out / "arms" / f"{name}-seed{seed}-{self.key(arm, seed)}"

    def is_done(self, arm: Arm, seed: int) -> bool:
        """Whether an arm is trained and has answered all that it is to be asked."""
        try:
            directory = self.directory(arm, seed)
        except LookupError:
            return False
        trained = arm.recipe is None or (directory / "run" / "alignment" / "alignment.json").is_file()
        return trained and (arm.asked == "none" or self._answers(arm, seed).is_file())

    def make(self, arm: Arm, seed: int, command: str) -> None:
        """Draw the arm's data, train its LLM if it has its own, train it, and put the questions to it.

        Beside it is noted which `command` made it, where, and its seconds of processor time.
        """
        before = sum(os.times()[:4])
        if arm.recipe and not self.data_directory(arm.data).exists():
            self._write_data(*arm.data)
        if arm.llm:
            self._teach(arm.llm)
        aligned = self.train(arm, seed)
        if arm.asked != "none" and not self._answers(arm, seed).is_file():
            self._ask(arm, seed, aligned)
        found = machine()
        where = f"{found['cores']} CPU cores ({found['processor']}), torch {found['torch']}"
        path = self.directory(arm, seed) / "made.json"
        # Seconds of an earlier command, which asked other questions, count too.
        earlier = json.loads(path.read_text())["seconds"] if path.is_file() else 0.0
        seconds = round(earlier + sum(os.times()[:4]) - before, 1)
        row = {"command": command, "machine": where, "seconds": seconds}
        path.parent.mkdir(parents=True, exist_ok=True)  # an arm that is only an LLM has no other files here
        write_atomically(path, json.dumps(row).encode())

    def notes(self) -> list[dict[str, Any]]:
        """The notes of all arms of the scale that are done."""
        done = [self.directory(arm, seed) / "made.json" for arm, seed in jobs(self.scale) if self.is_done(arm, seed)]
        notes = [json.loads(path.read_text()) for path in done if path.is_file()]
        return [*notes, *(note for other in self.beside.values() for note in other.notes())]

    def missing(self) -> list[str]:
        """The arms of the scale that are not done."""
        own = [f"{arm.name} (seed {seed})" for arm, seed in jobs(self.scale) if not self.is_done(arm, seed)]
        return [*own, *(f"{name}: {arm}" for name, other in self.beside.items() for arm in other.missing())]

    def _write_data(self, stage: int, count: int) -> None:
        from pocket.data.training_sets import write_stage1, write_stage2

        (write_stage1 if stage == 1 else write_stage2)(self.data_directory((stage, count)), count)

    def _teach(self, skill: str) -> None:
        """Train the LLM whose text lacks `skill`, unless it is there, and measure it on pictures told in words."""
        from pocket.towers.language import build_without

        first = build_without(SKILLS, self.llm_directory(NO_SKILLS), self.scale.first_lessons, self.parts.beginner)
        if skill != NO_SKILLS:
            build_without(_left_out(skill), self.llm_directory(skill), self.scale.skill_steps, first)
        self.in_words(skill)

    def train(self, arm: Arm, seed: int) -> str:
        """The alignment of an arm (its directory, or the name of one that ships), trained if it is not yet."""
        from minigpt4.training.train import train

        if arm.recipe is None:
            return self.train(self.arms[arm.start], seed) if arm.start in self.arms else self._shipped(arm)
        changes: dict[str, Any] = {"output": self.directory(arm, seed) / "run"}
        if arm.start:
            changes["init"] = self.train(self.arms[arm.start], seed)
        return str(train(self.recipe(arm, seed).model_copy(update=changes)))

    # -- asking

    def exam(self, arm: Arm, seed: int) -> Survey:
        """The questions that are put to an arm: of one seed the same for all, or the first part of the same."""
        return draw_exam(self.scale.questions, self.scale.scenes if arm.asked == "all" else 0, seed)

    def _answers(self, arm: Arm, seed: int) -> Path:
        asked = [self.scale.questions, self.scale.scenes if arm.asked == "all" else 0]
        return self.directory(arm, seed) / f"answers-{'-'.join(map(str, asked))}.json"

    def _ask(self, arm: Arm, seed: int, aligned: str) -> None:
        from minigpt4.minigpt4 import MiniGPT4

        survey = self.exam(arm, seed)
        model = MiniGPT4.from_pretrained(aligned)
        records = put(survey, model, self._encode(model, seed))
        rows = [
            {
                "ability": question.ability, "picture": survey.pictures[question.picture].seed,
                "question": question.request.text, "answer": record.text, "failure": record.failure,
                "right": record.verdict.success, "wrong": record.verdict.reason,
            }
            for question, record in zip(survey.questions, records, strict=True)
        ]  # fmt: skip
        path = self._answers(arm, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(rows, indent=1).encode())

    def _encode(self, model: "MiniGPT4", seed: int) -> "Tensor":
        """What the model's vision side gives for all pictures of a seed's exam; once for models that share it."""
        key = (model.vision_fingerprint, seed)
        if key not in self._features:
            survey = draw_exam(self.scale.questions, self.scale.scenes, seed)
            paths = write_pictures(survey, self.out / "pictures")
            self._features[key] = encode(model, paths)
        return self._features[key]

    # -- reading

    def records(self, arm: Arm, seed: int) -> list[Judged]:
        """An arm's answers, judged. Raises UserError if the file does not hold this exam's answers."""
        survey = self.exam(arm, seed)
        asked = [(question.ability, question.request.text) for question in survey.questions]
        rows = read_rows(self._answers(arm, seed), asked)
        verdicts = [
            check(question.request, survey.pictures[question.picture], row["answer"])
            for question, row in zip(survey.questions, rows, strict=True)
        ]
        return [Judged(row["answer"], row["failure"], found) for row, found in zip(rows, verdicts, strict=True)]

    def figures(self, arm: Arm, seed: int) -> Figures:
        """An arm's figures, from its answers on disk."""
        return figures(self.exam(arm, seed), self.records(arm, seed))

    def tell(self, evidence: Evidence) -> dict[str, Any]:
        """What the page of this world tells beside claims and figures."""
        return {}

    def in_words(self, skill: str) -> dict[str, Rate]:
        """What the LLM whose text lacks `skill` can do with pictures told in words, by ability; measured once."""
        from pocket.measure.text_only import read_in_words

        directory = self.llm_directory(skill)
        path = directory / f"in-words-{self.scale.questions}.json"
        if not path.is_file():
            rates = read_in_words(directory / "llm", self.scale.questions)
            counts = {name: [rate.successes, rate.total] for name, rate in rates.items()}
            write_atomically(path, json.dumps(counts).encode())
        return {name: Rate(*counts) for name, counts in json.loads(path.read_text()).items()}


def read_rows(path: Path, asked: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """The rows of an arm's answers. Raises UserError if they are not those to these (ability, question)."""
    try:
        rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        found = [(row["ability"], row["question"]) for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error!r}); delete it, and the questions are put again") from None
    if found != [*asked]:
        raise UserError(f"{path}: answers other questions; delete it, and the questions are put again")
    return rows


def _left_out(skill: str) -> tuple[str, ...]:
    """What the text of the LLM of an arm lacks."""
    return {ALL_SKILLS: (), NO_SKILLS: SKILLS}.get(skill, (skill,))


@cache
def _text_without(skill: str) -> list[list[Piece]]:
    """The first samples of that text."""
    first = SEEDS["text"][0]
    return [conversation(seed, "", frozenset(_left_out(skill))) for seed in range(first, first + 200)]


@cache
def _fingerprint(part: str) -> str:
    from minigpt4.model.gguf import open_tensors
    from minigpt4.model.sources import fingerprint, resolve

    return fingerprint(open_tensors(resolve(part), ""))


def _alignment_key(alignment: str) -> str:
    from minigpt4.model.sources import find_file, resolve

    files = [find_file(resolve(alignment), name) for name in ("alignment.json", "projection.safetensors")]
    return digest([hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path])


@cache
def _data_key(directory: Path) -> str:
    if not directory.is_dir():
        raise LookupError(f"{directory} is not drawn yet")
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return digest([[path.name, hashlib.sha256(path.read_bytes()).hexdigest()] for path in files])


def digest(content: Any) -> str:
    """Twelve hexadecimal digits for plain JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
