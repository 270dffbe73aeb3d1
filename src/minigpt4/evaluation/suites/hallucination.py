"""What models claim to see: CHAIR of short and long answers, with their lengths, and yes-or-no questions (POPE).

Over COCO's instances (and captions, if given), or over held-out pocket pictures in the same files, where the annotated
objects are the exact truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minigpt4.errors import UserError
from minigpt4.evaluation import hallucination as chair
from minigpt4.evaluation.coco import Instances, read_captions, read_instances
from minigpt4.evaluation.items import Collection, Item
from minigpt4.evaluation.judges import Answer, Case, Rule, Verdict
from minigpt4.evaluation.objects import Vocabulary, vocabulary, with_article
from minigpt4.evaluation.plots import png
from minigpt4.evaluation.probing import SAMPLINGS, draw_probes, f1, yes_or_no
from minigpt4.evaluation.suite import Figure, Judged, Row, Suite, default_data

#: What is asked for answers of different lengths.
PROMPTS = {"short": "Give a short caption.", "long": "Describe this image in detail."}
PROBE = "Is there {} in the picture?"
PROBE_TOKENS = 40


class Hallucination(Suite):
    """Objects that answers name and pictures do not hold, of an instances file or of `count` pocket pictures.

    Args:
        data: The instances file (`instances_val2017.json`); pocket pictures without it.
        images: The directory of its pictures.
        captions: The captions file of the same pictures: what people name is there too.
        probes: Yes-or-no questions for each picture: so many objects that are there, and as many that are not for each
            way of drawing them; 0 asks none.
    """

    name = "hallucination"
    title = "Objects that are named and not there"

    def __init__(
        self,
        data: Path | None = None,
        images: Path | None = None,
        captions: Path | None = None,
        *,
        count: int = 200,
        probes: int = 3,
        seed: int = 0,
        max_new_tokens: int = 300,
    ) -> None:
        if data is not None and images is None:
            raise UserError(f"{data}: names pictures, so give their directory too (--images)")
        self.data, self.images, self.captions = data, images, captions
        self.count, self.probes, self.seed, self.max_new_tokens = count, probes, seed, max_new_tokens
        self.judge = Rule("annotated objects", self._judge)
        self._words: Vocabulary | None = None

    def load(self, directory: Path) -> Collection:
        path, images, captions = self.data, self.images, self.captions
        if path is None or images is None:
            captions, path, images = default_data().coco(directory, self.count)
        found = Collection()
        instances = read_instances(path)
        self._words = vocabulary(instances.categories)
        found.faults += instances.faults
        told: Mapping[Any, tuple[str, ...]] = {}
        if captions is not None:
            read = read_captions(captions)
            told = read.captions
            found.faults += read.faults
        chosen = list(instances.objects)[: self.count]
        for image in chosen:
            truth = sorted(chair.present_objects(instances.objects[image], told.get(image, ()), self._words))
            file, where = images / instances.file_names[image], f"{path}: image {image}"
            for task, prompt in PROMPTS.items():
                if task == "short" or file.is_file():  # a missing picture is one fault
                    item = Item(f"{image} {task}", file, prompt, task, {"objects": truth}, (), self.max_new_tokens)
                    found.add(item, where)
        self._add_probes(found, instances, [i for i in chosen if (images / instances.file_names[i]).is_file()], images)
        return found.require(path)

    def _add_probes(self, found: Collection, instances: Instances, chosen: Sequence[Any], images: Path) -> None:
        if not self.probes:
            return
        for probe in draw_probes(instances, chosen, per_image=self.probes, seed=self.seed):
            truth = {"present": probe.present, "samplings": list(probe.samplings)}
            name = f"{probe.image} {probe.kind}?"
            file, prompt = images / instances.file_names[probe.image], PROBE.format(with_article(probe.kind))
            found.add(Item(name, file, prompt, "probe", truth, (), PROBE_TOKENS), name)

    def rows(self) -> Sequence[Row]:
        rows = []
        for task in PROMPTS:
            group = f"{task.capitalize()} answers"
            rows += [
                Row(f"{task} chair_i", "CHAIR_i: of named objects", "%", {}, group, True),
                Row(f"{task} chair_s", "CHAIR_s: of answers", "%", {}, group, True),
                Row(f"{task} found", "present objects named", "%", {}, group),
                Row(f"{task} words", "mean length", "words", {}, group),
            ]
        for way in SAMPLINGS if self.probes else ():
            group = f"Is it there? Absent objects {way}"
            rows += [
                Row(f"{way} accuracy", "accuracy", "%", {}, group),
                Row(f"{way} precision", "precision", "%", {}, group),
                Row(f"{way} recall", "recall", "%", {}, group),
                Row(f"{way} f1", "F1", "%", {}, group),
                Row(f"{way} yes", "says yes", "%", {}, group),
                Row(f"{way} neither", "says neither", "%", {}, group, True),
            ]
        return rows

    def cases(self, answer: Answer) -> Sequence[Case]:
        return [Case(answer, {"answer": answer.text})]

    def _judge(self, case: Case) -> Verdict:
        assert self._words is not None
        item, answer = case.item, case.answer.text
        if item.task == "probe":
            said = yes_or_no(answer)
            if said is None:
                return Verdict(None, "says neither yes nor no", {"said": None})
            right = said == item.truth["present"]
            return Verdict(right, "" if right else "says yes" if said else "says no", {"said": said})
        wrong = chair.hallucinated(answer, self._words, item.truth["objects"])
        counts = chair.count_objects(answer, self._words, item.truth["objects"])
        reason = f"names {', '.join(dict.fromkeys(wrong))}, not there" if wrong else ""
        return Verdict(not wrong, reason, vars(counts))

    def summarise(self, judged: Sequence[Judged]) -> Mapping[str, Figure]:
        figures: dict[str, Figure] = {}
        for task in PROMPTS:
            counts = [chair.Named(**one.verdicts[0].detail) for one in judged if one.item.task == task]
            figures[f"{task} chair_i"] = Figure.bootstrapped(counts, chair.chair_i)
            figures[f"{task} chair_s"] = Figure.rate([count.hallucinated > 0 for count in counts])
            figures[f"{task} found"] = Figure.bootstrapped(counts, chair.recall)
            figures[f"{task} words"] = Figure.bootstrapped(counts, chair.mean_words)
        for way in SAMPLINGS:
            answers = [
                (bool(one.item.truth["present"]), one.verdicts[0].detail["said"])
                for one in judged
                if one.item.task == "probe" and way in one.item.truth["samplings"]
            ]
            if answers:
                figures |= {f"{way} {name}": figure for name, figure in probe_figures(answers).items()}
        return figures

    def plots(self, results: Mapping[str, Any]) -> Mapping[str, bytes]:
        """Hallucination against length: a line for each model, from its short answers to its long ones."""
        from matplotlib.figure import Figure as Canvas

        canvas = Canvas(figsize=(6.4, 4.0), layout="constrained")
        axes = canvas.subplots()
        rows = {row["name"]: row["figures"] for row in results["rows"]}
        for model in (model["label"] for model in results["models"]):
            points = [(rows[f"{task} words"].get(model), rows[f"{task} chair_i"].get(model)) for task in PROMPTS]
            drawn = [(x["value"], y) for x, y in points if x and y and None not in (x["value"], y["value"])]
            if drawn:
                lengths, rates = zip(*drawn, strict=True)
                low, high = ([100 * abs(y["value"] - y[edge]) for y in rates] for edge in ("low", "high"))
                shares = [100 * y["value"] for y in rates]
                axes.errorbar(lengths, shares, yerr=(low, high), marker="o", capsize=3, label=model)
        axes.set_xlabel("mean length of answers, words")
        axes.set_ylabel("CHAIR_i, %")
        axes.set_ylim(bottom=0)
        axes.set_title("Objects that are named and not there, against length")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize="small")
        return {"plot-length.png": png(canvas)}


def probe_figures(answers: Sequence[tuple[bool, bool | None]]) -> dict[str, Figure]:
    """Of pairs (is it there, what was answered). What says neither is never right, and missed where yes is true."""
    return {
        "accuracy": Figure.rate([None if said is None else said == there for there, said in answers]),
        "precision": Figure.rate([there for there, said in answers if said]),
        "recall": Figure.rate([said for there, said in answers if there]),
        "f1": Figure.bootstrapped(answers, f1),
        "yes": Figure.rate([said is True for _, said in answers]),
        "neither": Figure.rate([said is None for _, said in answers]),
    }
