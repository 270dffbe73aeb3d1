"""The suites coverage, hallucination and vqa as people run them: on pocket pictures, and on files in COCO's format.

Models and judges behind endpoints are real servers on loopback; `find:WORD` judges by a word, `say:TEXT` says it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from endpoint import Server
from evaluating import figures, picture_folder, results, run
from minigpt4.errors import UserError
from minigpt4.evaluation.benchmarks.coco import read_coco
from minigpt4.evaluation.benchmarks.coverage import Coverage
from minigpt4.evaluation.benchmarks.hallucination import Hallucination
from minigpt4.evaluation.benchmarks.vqa import Vqa, read_questions
from minigpt4.evaluation.judges import JudgePrompt, LLMJudge
from minigpt4.evaluation.run import evaluate
from pocket.data import benchmarks as pocket
from pocket.measure.truth import missing_fact
from pocket.text.phrases import description

Serve = Callable[..., Server]


def model(server: Server) -> str:
    return f"m=openai:{server.url}#some-model"


def value(directory: Path, row: str, label: str = "m") -> float | None:
    """A figure of the results, as it is written."""
    [found] = [entry["figures"][label] for entry in results(directory)["rows"] if entry["name"] == row]
    return found["value"]


# The pocket files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pocket.write_benchmarks(tmp_path_factory.mktemp("benchmarks") / "data", 12)


def test_the_pocket_files_are_read_without_a_fault_and_tell_the_truth(files: Path) -> None:
    pictures = {picture.seed: picture for picture in pocket.pictures(12)}
    captions = read_coco(files / pocket.CAPTIONS, instances=False)
    instances = read_coco(files / pocket.INSTANCES, instances=True)
    assert not captions.faults + instances.faults
    assert all(2 <= len(texts) <= 5 for texts in captions.of_image.values())
    for seed, picture in pictures.items():
        assert set(instances.of_image[seed]) == {item.kind for item in picture.items}
        assert (files / pocket.IMAGES / instances.file_names[seed]).is_file()
    questions, faults = read_questions(
        [files / name for name in (pocket.AOKVQA, pocket.GQA, pocket.VQA_QUESTIONS, pocket.VQA_ANNOTATIONS)]
    )
    assert not faults
    assert {question.benchmark for question in questions} == {"A-OKVQA", "GQA", "VQA v2"}
    for question in questions:
        assert any((files / pocket.IMAGES / name).is_file() for name in question.images)
        if question.correct is not None:
            assert question.choices[question.correct] == question.answers[0]
            assert len(set(question.choices)) == 4


def test_more_pictures_than_seeds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected 1 to 100,000"):
        pocket.write_benchmarks(tmp_path / "data", 100_001)


def test_a_full_description_covers_every_caption_and_that_of_another_picture_none(files: Path) -> None:
    pictures = pocket.pictures(12)
    captions = read_coco(files / pocket.CAPTIONS, instances=False).of_image
    told = [description(picture, random.Random(picture.seed)) for picture in pictures]
    for number, picture in enumerate(pictures):
        for caption in captions[picture.seed]:
            assert missing_fact(caption, told[number]) is None
            assert missing_fact(caption, told[number - 1])


@pytest.mark.parametrize(
    ("description", "missing"),
    [
        ("There is a small red ball at the top-left on a beach.", None),
        ("There is a red ball at the top-left on a beach.", "does not say that ball is small"),
        ("There is a small red ball on the left on a beach.", "does not say that ball is top-left"),
        ("A small red ball at the top-left. The ball is blue. A beach.", "does not say that ball is red"),
        ("A small red box at the top-left on a beach.", "does not name ball"),
        ("A small red ball at the top-left on a meadow.", "does not name beach"),
    ],
)
def test_a_missing_fact_is_named(description: str, missing: str | None) -> None:
    assert missing_fact("A small red ball at the top-left on a beach.", description) == missing


# The pocket model


def test_the_pocket_model_through_all_three_suites(tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(Hallucination(count=6, probes=1), ["pocket"], out)
    hallucinated = figures(out / "hallucination", "pocket")
    assert hallucinated["long chair_s"][1:] == (6, 0)
    assert hallucinated["random accuracy"][1] == 12
    assert value(out / "hallucination", "short words", "pocket") < value(out / "hallucination", "long words", "pocket")
    assert (out / "hallucination" / "plot-length.png").read_bytes().startswith(b"\x89PNG")

    evaluate(Coverage(count=6, caption_metrics=False), ["pocket"], out)
    covered = figures(out / "coverage", "pocket")["covered"]
    assert covered[0] > 0.6 * covered[1] > 0  # it describes what it sees
    assert "content words" in (out / "coverage" / "results.md").read_text()

    evaluate(Vqa(count=6), ["pocket"], out)
    written = results(out / "vqa")
    choices = [answer for answer in written["answers"] if answer["options"]]
    assert choices
    assert all(len(answer["scores"]) == 4 and answer["answer"] in answer["options"] for answer in choices)
    assert value(out / "vqa", "GQA contained", "pocket") > 0.5


# Files of others


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Three pictures, of which the third is missing, with captions and instances."""
    picture_folder(tmp_path / "images", 2)
    images = [{"id": k, "file_name": f"{k}.png"} for k in range(3)]
    captions = ["A dog catches a frisbee", "A puppy in the park", "A cat sleeps", "A cat", "A hen"]
    rows = [{"id": k, "image_id": k // 2, "caption": text} for k, text in enumerate(captions)]
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": rows}))
    categories = [{"id": k, "name": name} for k, name in enumerate(("dog", "cat", "car", "frisbee"))]
    boxes = [{"id": 0, "image_id": 0, "category_id": 0}, {"id": 1, "image_id": 1, "category_id": 1}]
    whole = {"images": images, "annotations": boxes, "categories": categories}
    (tmp_path / "instances.json").write_text(json.dumps(whole))
    return tmp_path


def judge(server: Server) -> LLMJudge:
    return LLMJudge(f"openai:{server.url}#judge", JudgePrompt.load("coverage"))


def test_coverage_asks_the_judge_about_every_caption_and_again(coco: Path, serve: Serve) -> None:
    describes, judges = serve("say:A dog with a frisbee."), serve("find:Reference caption: A dog")
    suite = Coverage(coco / "captions.json", coco / "images", judge=judge(judges), caption_metrics=False)
    evaluate(suite, [model(describes)], coco / "out")
    written = results(coco / "out" / "coverage")
    assert figures(coco / "out" / "coverage", "m")["covered"] == (1, 4, 0)
    assert figures(coco / "out" / "coverage", "m")["lexical"] == (0, 4, 0)  # no "catches"
    assert written["left_out"] == {"missing image": 1}
    assert written["judge"]["version"] == JudgePrompt.load("coverage").version
    pairs = {tuple(pair["judges"])[1]: pair for pair in written["agreement"]}
    assert pairs["itself, asked again"] == {
        "judges": ["the judge", "itself, asked again"], "cases": 4, "agreed": 1.0, "kappa": 1.0,
    }  # fmt: skip
    assert pairs["content words (at least 75%)"]["agreed"] == 0.75
    asked = len(judges.requests)
    assert asked == 8  # four captions, each twice
    evaluate(suite, [model(describes)], coco / "out")
    assert len(judges.requests) == asked


def test_a_judge_out_of_form_is_undecided_and_no_success(coco: Path, serve: Serve) -> None:
    judges = serve("say:Perhaps, in part.")
    told = run(
        "coverage", model(serve("say:A dog.")), "--judge", f"openai:{judges.url}#judge", "--out", coco / "out",
        "--data", coco / "captions.json", "--images", coco / "images", "--no-caption-metrics",
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert figures(coco / "out" / "coverage", "m")["covered"] == (0, 4, 4)
    assert "could not decide 4 cases" in told.stdout


def test_chair_and_probes_over_coco(coco: Path, serve: Serve) -> None:
    server = serve("say:Yes, there is a dog beside a car.")
    told = run(
        "hallucination", model(server), "--data", coco / "instances.json", "--images", coco / "images",
        "--captions", coco / "captions.json", "--probes", 1, "--out", coco / "out",
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    out = coco / "out" / "hallucination"
    # Picture 0 holds a dog and, by its caption, a frisbee; picture 1 a cat. Each answer names a dog and a car.
    assert value(out, "short chair_i") == value(out, "long chair_i") == 3 / 4
    assert figures(out, "m")["long chair_s"] == (2, 2, 0)
    assert value(out, "long found") == 1 / 3
    assert value(out, "long words") == 8
    assert figures(out, "m")["popular accuracy"] == (2, 4, 0)
    assert figures(out, "m")["popular recall"] == (2, 2, 0)
    assert figures(out, "m")["popular precision"] == (2, 4, 0)
    assert results(out)["left_out"] == {"missing image": 1}
    asked = [request["body"]["messages"][-1]["content"] for request in server.requests]
    assert sum("Is there a dog in the picture?" in json.dumps(content) for content in asked) >= 1


def test_aokvqa_by_an_endpoint(coco: Path, serve: Serve) -> None:
    record: dict[str, Any] = {
        "image_id": 0, "question_id": "q", "question": "What is it?", "choices": ["cat", "dog", "cow", "hen"],
        "correct_choice_idx": 1, "direct_answers": ["b"] * 2 + ["dog"] * 8, "difficult_direct_answer": False,
    }  # fmt: skip
    (coco / "images" / "0.png").rename(coco / "images" / "000000000000.png")
    rows = [record, {**record, "question_id": "away", "image_id": 7}, record]
    (coco / "aokvqa.json").write_text(json.dumps(rows))
    images = ("--images", coco / "images", "--out", coco / "out")
    told = run("vqa", model(serve("say:B")), "--data", coco / "aokvqa.json", *images)
    assert told.returncode == 0, told.stderr
    out = coco / "out" / "vqa"
    assert figures(out, "m")["A-OKVQA choice"] == (1, 1, 0)  # the letter of the second choice
    assert value(out, "A-OKVQA exact") == pytest.approx(2 / 3)
    assert results(out)["left_out"] == {"duplicate id": 1, "missing image": 1}
    assert "58.2" in (out / "results.md").read_text()


@pytest.fixture
def captioned(tmp_path: Path) -> tuple[Path, Path]:
    """(file, folder) of two made images with two captions each, in COCO's format."""
    images = picture_folder(tmp_path / "images", 2)
    said = ["A man rides a bike .", "Someone cycles by the sea ."]
    captions = {
        "images": [{"id": n, "file_name": f"{n}.png"} for n in range(2)],
        "annotations": [{"id": n, "image_id": n // 2, "caption": said[n % 2]} for n in range(4)],
    }
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    return tmp_path / "captions.json", images


def test_coverage_without_a_judge_is_lexical_and_knows_synonyms(captioned: tuple[Path, Path], serve: Serve) -> None:
    out = captioned[0].parent / "out"
    evaluate(Coverage(*captioned, caption_metrics=False), [model(serve("say:A guy rides a bicycle."))], out)
    assert figures(out / "coverage", "m")["covered"] == (2, 4, 0)  # the first caption of both
    assert results(out / "coverage")["judge"] == {"judge": "content words"}
    assert results(out / "coverage")["agreement"] == [], "a rule that is compared with itself"


def test_things_that_no_caption_names_are_counted_without_annotations(
    captioned: tuple[Path, Path], serve: Serve
) -> None:
    captions, images = captioned
    says = serve("say:A man on a bike at the ocean, under a tree.")
    evaluate(Hallucination(images=images, captions=captions), [model(says)], captions.parent / "out")
    out = captions.parent / "out" / "hallucination"
    assert value(out, "long chair_i") == pytest.approx(1 / 4)  # the tree; the ocean is the sea
    assert value(out, "long chair_s") == 1
    assert not [row for row in results(out)["rows"] if "accuracy" in row["name"]], "what none names is not asked about"


def test_what_is_missing_is_said_before_anything_is_loaded(coco: Path) -> None:
    captions, instances = coco / "captions.json", coco / "instances.json"
    for make in (lambda: Hallucination(instances), lambda: Vqa([instances]), lambda: Coverage(captions)):
        with pytest.raises(UserError, match="--images"):
            make()
    with pytest.raises(UserError, match="the place of the question"):
        Vqa(prompt="What?")


def test_labelled_cases_of_the_coverage_prompt_can_be_put_to_a_judge(tmp_path: Path, serve: Serve) -> None:
    done = run("judge", f"openai:{serve('say:no').url}#judge", "--judge-prompt", "coverage", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "right: 67 %" in done.stdout  # eight of the twelve cases are to be refused
