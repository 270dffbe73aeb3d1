"""The questions that every model of the reproduction is asked, and the figures that its answers give.

Beside the demo's questions there are scenes about which five things are asked: a caption, a description, a story, and
the colour and place of one and the same object. Pictures come from the seeds that nothing was trained on, each seed of
the reproduction has its own, and all judging is by ground truth.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from minigpt4.statistics import Rate
from minigpt4.statistics import text as as_text
from pocket.measure.survey import Judged, Rates, Survey, SurveyQuestion, draw_survey, measure
from pocket.measure.truth import NOUNS, missing_fact, read
from pocket.text.phrases import caption
from pocket.text.requests import Request, request
from pocket.world import world

#: The forms of answer that are compared by length, and how each is asked for.
FORMS = {
    "caption": "Give a short caption.",
    "description": "Describe this image in detail.",
    "story": "Tell me a story about this image.",
}
#: What the questions about the further scenes are counted under, before the form or ability.
SCENES = "scene's "
#: Ground-truth captions of each scene: as many as COCO has.
CAPTIONS = 5
#: The words of a caption of the paper's BLIP-2: what its coverage would be if the baseline were as short-spoken.
SHORT_WORDS = 7


@dataclass(frozen=True)
class Mean(Rate):
    """The mean of scores in a rate's place: `successes` is their sum, `squares` that of their squares."""

    squares: float = 0.0

    @classmethod
    def of(cls, scores: Sequence[float]) -> "Mean":
        """The mean of these scores."""
        return cls(sum(scores), len(scores), squares=sum(score * score for score in scores))  # type: ignore[arg-type]

    def __add__(self, other: Rate) -> "Mean":
        squares = self.squares + getattr(other, "squares", 0.0)
        return Mean(self.successes + other.successes, self.total + other.total, squares=squares)

    __radd__ = __add__  # to a rate of nothing

    @property
    def interval(self) -> tuple[float, float]:
        """The normal 95 % interval; (0, 1) for fewer than two scores."""
        if self.total < 2:
            return 0.0, 1.0
        spread = 1.96 * math.sqrt(max(0.0, self.squares / self.total - self.share**2) / (self.total - 1))
        return self.share - spread, self.share + spread

    def __str__(self) -> str:
        return as_text(self.to_json())


@dataclass
class Figures:
    """What was counted in a model's answers. `rates` and `words` ((words, answers) by form) of two seeds add up."""

    rates: Rates = field(default_factory=Rates)
    words: dict[str, tuple[int, int]] = field(default_factory=dict)

    def __add__(self, other: "Figures") -> "Figures":
        total = Figures(Rates(self.rates), dict(self.words))
        for name, rate in other.rates.items():
            total.rates[name] += rate
        for form, (words, answers) in other.words.items():
            total.count_words(form, words, answers)
        return total

    def count_words(self, form: str, words: int, answers: int = 1) -> None:
        """Add the words of answers of this form."""
        before = self.words.get(form, (0, 0))
        self.words[form] = (before[0] + words, before[1] + answers)

    def mean_words(self, form: str) -> float:
        """Words of an answer of this form, on average; 0 if none was asked for."""
        words, answers = self.words.get(form, (0, 0))
        return words / answers if answers else 0.0


@lru_cache(maxsize=32)
def draw_exam(questions: int, scenes: int, seed: int) -> Survey:
    """The demo's questions, then those about `scenes` further pictures; no scenes, no such questions."""
    survey = draw_survey(questions, seed)
    first = world.SEEDS["evaluation"][0] + world.SEEDS["evaluation"][1] * 3 // 4 + seed * 10_000
    pictures = tuple(world.sample(first + k, "scene") for k in range(scenes))
    asked: list[SurveyQuestion] = []
    for number, picture in enumerate(pictures, len(survey.pictures)):
        # The checks of descriptions read captions and stories too; what is counted of each is `_count_form`'s business.
        for form, text in FORMS.items():
            asked.append(SurveyQuestion(SCENES + form, number, Request("describe", text)))
        for ability in ("colour", "where"):
            about_one = request(ability, picture, random.Random(f"one object of {picture.seed}"))
            asked.append(SurveyQuestion(SCENES + ability, number, about_one))
    asked.sort(key=lambda question: question.ability)  # neighbours of a batch should be of like length
    return Survey(survey.pictures + pictures, (*survey.questions, *asked))


def figures(survey: Survey, records: Sequence[Judged]) -> Figures:
    """Every figure of an exam; `records` may stop where the questions about scenes begin.

    Rates, beside those of `survey.measure`: `false FORM` (kinds that are not there, of those named), `falsely FORM`
    (answers that name such a kind), `covered FORM` (ground-truth captions whose facts the answer holds), `unnamed
    FORM` (of the others, those for want of a thing and not of what it is like), `covered short` (the first words of the
    caption alone), `right kind|colour|size|place` (of the objects in descriptions),
    `scene's colour`, `scene's where` (right answers about one object).
    """
    asked = survey.questions[: len(records)]
    found = Figures(measure(Survey(survey.pictures, asked), records))
    for form in FORMS:
        found.rates.pop(SCENES + form, None)
    for question, record in zip(asked, records, strict=True):
        form = question.ability.removeprefix(SCENES)
        if question.ability.startswith(SCENES) and form in FORMS:
            _count_form(found, form, survey.pictures[question.picture], record.text)
    return found


def _count_form(found: Figures, form: str, picture: world.Picture, text: str) -> None:
    count = found.rates.count
    claims = read(text, NOUNS["scene"])
    there = {item.kind: item for item in picture.items}
    false = len(claims.keys() - there.keys())
    count(f"false {form}", false, len(claims))
    count(f"falsely {form}", false > 0)
    found.count_words(form, len(text.split()))
    if form == "story":
        return
    truths = captions(picture)
    missing = [fact for truth in truths if (fact := missing_fact(truth, text))]
    count(f"covered {form}", len(truths) - len(missing), len(truths))
    count(f"unnamed {form}", sum(fact.startswith("does not name") for fact in missing), len(missing))
    if form == "caption":
        short = " ".join(text.split()[:SHORT_WORDS])
        count("covered short", sum(missing_fact(truth, short) is None for truth in truths), len(truths))
        return
    for kind, item in there.items():
        count("right kind", kind in claims)
        if kind in claims:
            for name, said, true in zip(("colour", "size", "place"), claims[kind].said, item.attributes, strict=True):
                count(f"right {name}", said == {true})


def captions(picture: world.Picture) -> list[str]:
    """The ground-truth captions of a picture, as different people would write them."""
    return [caption(picture, random.Random(f"truth-{picture.seed}-{k}")) for k in range(CAPTIONS)]


@dataclass(frozen=True)
class Evidence:
    """The figures of every arm by name and seed: all that a claim is judged on."""

    of: Mapping[str, Mapping[int, Figures]]

    def __contains__(self, arm: str) -> bool:
        return bool(self.of.get(arm))

    def pooled(self, arm: str) -> Figures:
        """The figures of an arm over all its seeds; empty for an arm that was not run."""
        return sum(self.of.get(arm, {}).values(), Figures())

    def rate(self, arm: str, name: str) -> Rate:
        """A rate over all seeds; nothing of nothing for what was not counted."""
        return self.pooled(arm).rates[name]

    def by_seed(self, arm: str, name: str) -> dict[int, Rate]:
        """The same, seed by seed."""
        return {seed: found.rates[name] for seed, found in self.of.get(arm, {}).items()}
