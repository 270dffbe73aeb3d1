"""The claims on photographs, with random stand-ins for the parts and made images in the layouts of the real files."""

import json
import re
from dataclasses import replace

import pyarrow
import pyarrow.parquet
import pytest
from rich.console import Console

from minigpt4.errors import UserError
from minigpt4.statistics import Rate
from pocket.measure.survey import difference
from pocket.reproduce import photographs
from pocket.reproduce.artifacts import Parts, Workshop
from pocket.reproduce.claims import Outcome, read_claims
from pocket.reproduce.experiments import WEAK_ARM, WEAK_LLM, Arm, World, arms, jobs
from pocket.reproduce.photographs import DRAWN, PHOTOGRAPHS, Photo, cider, is_in_form, judge, scales, tidy
from pocket.reproduce.run import collect, reproduce, write
from pocket.reproduce.survey import Figures, Mean, draw_exam, figures
from tiny import picture_file

#: As people might write of one photograph.
CAPTIONS = ["a brown dog runs on grass .", "A puppy in a field .", "The dog has a ball", "A dog .", "One dog plays"]
PHOTO = Photo("a.jpg", b"", tuple(map(tidy, CAPTIONS)))


def flickr8k(directory):
    """Twelve made images with five captions each, as a parquet file for each split."""
    directory.mkdir()
    for first, split in enumerate(("train", "validation", "test")):
        rows = [
            {"image": {"path": f"{split}{n}.jpg", "bytes": picture_file(100 * first + n)}}
            | {f"caption_{k}": f"{CAPTIONS[k]} {n}" for k in range(5)}
            for n in range(12)
        ]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), directory / f"{split}-00000-of-00001.parquet")
    return directory


def coco(directory):
    """Four made images in COCO's layout; each has a dog, and a caption that names a cat."""
    for place in ("annotations", "val2017"):
        (directory / place).mkdir(parents=True)
    images = [{"id": n, "file_name": f"{n}.png"} for n in range(4)]
    for image in images:
        (directory / "val2017" / image["file_name"]).write_bytes(picture_file(300 + image["id"]))
    said = [{"id": n, "image_id": n, "caption": "A cat."} for n in range(4)]
    there = [{"id": n, "image_id": n, "category_id": 18} for n in range(4)]
    files = {
        "captions": {"images": images, "annotations": said},
        "instances": {"images": images, "annotations": there, "categories": [{"id": 18, "name": "dog"}]},
    }
    for name, content in files.items():
        (directory / "annotations" / f"{name}_val2017.json").write_text(json.dumps(content))
    return directory


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """(Flickr8k's directory, COCO's, the file of descriptions), made up."""
    directory = tmp_path_factory.mktemp("data")
    texts = [{"file_name": f"train{n}.jpg", "text": f"A dog plays, number {n}."} for n in range(6)]
    (directory / "texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    return flickr8k(directory / "flickr8k"), coco(directory / "coco"), directory / "texts.jsonl"


@pytest.fixture(scope="module")
def run(data, tiny_vision, tiny_llm, tmp_path_factory):
    """(workshop, page, outcomes) of a run at toy size, whose drawn world has one arm."""
    from minigpt4.minigpt4 import MiniGPT4

    out = tmp_path_factory.mktemp("photographs")
    MiniGPT4.assemble(tiny_vision, tiny_llm, template="blip2", seed=1).save_pretrained(out / "baseline")
    parts = Parts(str(tiny_vision), str(tiny_llm), str(out / "baseline"), str(tiny_llm), None)
    full, drawn = scales(True, None, 6)
    small = {"pairs": 40, "stage1_steps": 2, "stage2_steps": 2, "questions": 2, "scenes": 3, "first_lessons": 1}
    variants = [("no Q-Former", "photo-stage1", {"qformer": False})]
    words = Arm("captions in words", start="stage 1", asked="all")
    only = ("BLIP-2", "stage 1", "stage 2", "no Q-Former, stage 1", WEAK_LLM, WEAK_ARM, words.name)
    world = replace(PHOTOGRAPHS, variants=variants, more=(words,), whole=World.whole)
    scale = replace(full, world=world, stage1_shares=(), stage2_sets=(), only=only, **small)
    drawn = replace(drawn, **small, only=("stage 1",))
    changes = {"batch_size": 4, "warmup_steps": 1}
    beside = {"drawn": Workshop(out / "drawn", drawn, parts, changes)}
    flickr, files, texts = data
    made = photographs.Photographs(out, scale, parts, changes, beside, flickr8k=flickr, coco=files, texts=texts)
    return made, out / "page.md", reproduce(made, out / "page.md", "a test", Console(quiet=True))


def test_every_arm_is_made_and_asked_the_same_photographs(run):
    workshop, page, outcomes = run
    evidence = collect(workshop)
    asked = {arm.name for arm in workshop.arms.values() if arm.asked != "none"}
    assert evidence.of.keys() == asked | {"drawn: stage 1"}
    assert {evidence.rate(arm, "abilities").total for arm in asked} == {4 * 2}
    assert {evidence.rate(arm, "CIDEr").total for arm in asked} == {3}
    assert evidence.rate("stage 2", "covered description").total == 3 * 5
    assert outcomes.keys() == {claim.key for claim in read_claims(PHOTOGRAPHS)}
    before = {path: path.stat().st_mtime_ns for path in workshop.out.rglob("*.safetensors")}
    reproduce(workshop, page, "a test", Console(quiet=True))
    assert {path: path.stat().st_mtime_ns for path in workshop.out.rglob("*.safetensors")} == before


def test_page_shows_answers_beside_file_names_and_no_caption(run):
    _, page, _ = run
    text = page.read_text()
    for claim in read_claims(PHOTOGRAPHS):
        assert f'<a id="{claim.key}"></a>' in text
    assert re.search(r"\| test\d+\.jpg \| dog.* \| poem \| stage 2 \|", text)
    assert not [caption for caption in CAPTIONS if tidy(caption).rstrip(".") in text.replace("A dog", "")]
    pictures = re.findall(r"\]\((assets/[^)]+)\)", text)
    assert pictures
    assert all((page.parent / picture).stat().st_size > 1000 for picture in pictures)
    assert "captions in words" in text


def test_readers_do_not_see_whose_answer_it_is_and_their_verdicts_count(run):
    workshop, page, _ = run
    lines = [json.loads(line) for line in (workshop.out / "reading" / "answers.jsonl").read_text().splitlines()]
    assert {frozenset(line) for line in lines} == {frozenset({"id", "task", "photo", "turns"})}
    assert {len(line["turns"]) for line in lines if line["task"] == "follow_up"} == {2}
    assert collect(workshop).rate("stage 2", "read") == Rate(0, 0)
    judged = workshop.out / "reading" / "judged-one.jsonl"
    verdicts = [json.dumps({"id": line["id"], "success": True, "why": ""}) + "\n" for line in lines]
    try:
        judged.write_text("".join(verdicts[:-1]))
        assert {collect(workshop).rate(arm, "read").total for arm in ("stage 2", "BLIP-2")} == {0, 3 * 2}, "all or none"
        judged.write_text('{"id": "a", "success": "yes"}\n')
        with pytest.raises(UserError, match=r"judged-one.jsonl: verdict 1 is not \{"):
            collect(workshop)
        judged.write_text("".join(verdicts))
        evidence = collect(workshop)
        totals = [evidence.rate(arm, "read").total for arm in ("stage 2", "BLIP-2")]
        assert sum(totals) == len(lines)
        assert set(totals) == {3 * 2}, "no poems: an answer in BLIP-2's form has one line"
        assert evidence.rate("stage 2", "read").share == 1
        write(workshop, page, "a test")
        assert f"{len(lines)} are\n  judged" in page.read_text()
    finally:
        judged.unlink()


def test_weak_llm_has_read_the_captions_alone(run):
    from minigpt4.model.parts import load_tokenizer

    (llm,) = run[0].out.glob("llms/captions-alone-*/llm")
    tokenizer = load_tokenizer(llm)
    assert len(tokenizer(" dog", add_special_tokens=False)["input_ids"]) == 1
    assert len(tokenizer(" umbrella", add_special_tokens=False)["input_ids"]) > 1


def test_seeds_have_photographs_of_their_own(run):
    workshop = replace(run[0], scale=replace(run[0].scale, seeds=(0, 1)))
    asked = [{p.name for _, p in workshop.questions(workshop.arms["stage 2"], seed)} for seed in (0, 1)]
    assert not asked[0] & asked[1]


@pytest.mark.parametrize(
    ("task", "answer", "success"),
    [
        ("poem", "A dog so brown,\nruns up and down,\nand all through town.", True),
        ("poem", "A dog runs up and down through all the town.", False),  # one line
        ("poem", "A cat so brown,\nruns up and down,\nand all through town.", False),  # another subject
        ("story", "The dog was happy. It ran and ran over the field all day. Then it slept, and in its dreams it ran "
         "further than it ever had before.", True),
        ("story", "A dog runs on the grass.", False),
        ("advertisement", "Your dog deserves the best ball in town. Order one today!", True),
        ("advertisement", "A dog with a ball stands on the green grass.", False),
        ("follow_up", "One could hear the dog bark.", True),
        ("follow_up", "The dog is brown.", False),
    ],
)  # fmt: skip
def test_form_and_content_decide_an_ability(task, answer, success):
    assert judge(task, PHOTO, answer, True)["success"] is success
    assert not judge(task, PHOTO, answer, False)["success"], "an answer without its end"


def test_subject_is_what_most_captions_name_and_what_none_names_is_unsupported():
    assert PHOTO.subjects == {"dog"}
    found = judge("description", PHOTO, "A dog and a cat lie on the grass.", True)
    assert found["told"] == ["cat", "dog", "grass"]
    assert found["unsupported"] == ["cat"]
    assert found["subject"] is True
    assert Photo("b.jpg", b"", ("A dog.", "A cat.")).subjects == set()


def test_form_is_counted_in_lines_sentences_and_words():
    assert is_in_form("One. Two!\nThree?", lines=2, sentences=3, words=3, line_words=1.5)
    assert not is_in_form("One. Two!\nThree?", line_words=1)
    assert not is_in_form("One. Two", sentences=2)
    assert not is_in_form("", words=1)


def test_cider_is_high_for_what_people_write_and_counts_the_first_sentence():
    pytest.importorskip("pycocoevalcap")
    people = {"a": ("A dog runs.", "A brown dog runs on grass."), "b": ("A man sits.", "A man sits on a bench.")}
    said = {"a": ("A brown dog runs on grass. It is a cat.", people["a"]), "b": ("A cat.", people["b"])}
    good, bad = cider(said)
    assert good > 1 > bad


def test_mean_adds_up_and_compares_like_a_rate():
    scores = [0.1, 0.5, 1.2, 0.0]
    total = Figures().rates["CIDEr"] + Mean.of(scores[:2]) + Mean.of(scores[2:])
    assert isinstance(total, Mean)
    assert (total.share, total.interval) == (Mean.of(scores).share, Mean.of(scores).interval)
    assert str(Mean.of([0.5] * 10)) == "50 (50–50)"
    found, low, high = difference(Mean.of(scores), Mean.of([0.0] * 9))
    assert low < found == total.share < high


def test_claims_name_what_is_trained_and_measured():
    full, drawn = scales(False, None, 338)
    for scale in (full, scales(True, None, 338)[0]):
        assert len(jobs(scale)) == sum(len(arm.seeds or scale.seeds) for arm in arms(scale))
    trained = {arm.name for arm in arms(full)} | {f"drawn: {arm.name}" for arm in arms(drawn)}
    forms = PHOTOGRAPHS.forms
    rates = {
        "CIDEr", "abilities", "prose", "read", "covered caption", "covered cut", "covered description",
        *PHOTOGRAPHS.abilities,
        *(f"{what} {task}" for what in ("false", "fails", "names", "words") for task in photographs.TASKS),
        *(f"chair {form}" for form in forms),
    }  # fmt: skip
    exam = draw_exam(1, 1, 0)
    from pocket.measure.survey import Judged
    from pocket.measure.truth import Finding

    kinds = [exam.pictures[question.picture].items[0].kind for question in exam.questions]
    rates |= {*figures(exam, [Judged(f"There is a {kind}.", None, Finding(False)) for kind in kinds]).rates}
    for claim in read_claims(PHOTOGRAPHS):
        measures = [test[side] for test in claim.tests for side in ("one", "other") if isinstance(test[side], list)]
        for arm, name in [*measures, *(row[1:] for row in claim.ours)]:
            assert arm in trained, f"{claim.key}: {arm}"
            assert name in rates, f"{claim.key}: {name}"
    assert {arm.name for arm in arms(drawn)} == {"stage 1", "stage 2", "the pocket LLM"}
    assert drawn.world is DRAWN


def test_data_that_are_missing_are_told_before_any_work(data, tmp_path):
    flickr, files, texts = data
    for given, message in (
        ((tmp_path, files, texts), "--flickr8k"), ((flickr, tmp_path, texts), "--coco"),
        ((flickr, files, tmp_path / "none"), "--texts"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            photographs.workshop(tmp_path / "out", *given)
    (tmp_path / "broken.jsonl").write_text('{"file_name": "a.jpg"}\n')
    with pytest.raises(UserError, match=r"broken.jsonl: expected lines of"):
        photographs.workshop(tmp_path / "out", flickr, files, tmp_path / "broken.jsonl")
    assert not (tmp_path / "out").exists()


def test_other_descriptions_are_other_data_and_other_questions_other_answers(run, tmp_path, monkeypatch):
    workshop = run[0]
    arm, other = workshop.arms["stage 2"], tmp_path / "other.jsonl"
    other.write_text(workshop.texts.read_text().replace("A dog plays", "A dog sleeps"))
    assert replace(workshop, texts=other).data_directory(arm.data) != workshop.data_directory(arm.data)
    strange = tmp_path / "strange.jsonl"
    strange.write_text('{"file_name": "none.jpg", "text": "A dog."}\n')
    with pytest.raises(UserError, match=r"none.jpg is no photograph of Flickr8k's train split"):
        replace(workshop, texts=strange, out=tmp_path)._write_data(2, 1)
    before = workshop._answers(arm, 0)
    monkeypatch.setattr(photographs, "TASKS", {**photographs.TASKS, "caption": {"ask": "What?", "tokens": 9}})
    assert workshop._answers(arm, 0) != before


def test_photographs_of_coco_that_are_not_at_hand_are_left_out(tmp_path):
    directory = coco(tmp_path / "coco")
    (directory / "val2017" / "2.png").unlink()
    assert sorted(file.name for file, _, _ in photographs.coco_photos(directory)) == ["0.png", "1.png", "3.png"]


def test_outcome_without_readers_is_open(run):
    assert run[2]["strong-llm"] in (Outcome.OPEN, Outcome.FAILS)
