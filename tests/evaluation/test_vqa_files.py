"""Question files and COCO's files: what is read, and how records that are wrong are named."""

import json
from pathlib import Path

import pytest

from minigpt4.errors import UserError
from minigpt4.evaluation.benchmarks.coco import read_coco
from minigpt4.evaluation.benchmarks.vqa import AOKVQA, GQA, VQA, read_questions
from minigpt4.evaluation.items import DUPLICATE, MALFORMED


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def aokvqa(number: int, **changes: object) -> dict[str, object]:
    record = {
        "split": "val", "image_id": number, "question_id": f"q{number}", "question": "What is it?",
        "choices": ["cat", "dog", "cow", "hen"], "correct_choice_idx": 1, "direct_answers": ["dog"] * 10,
        "difficult_direct_answer": False, "rationales": [],
    }  # fmt: skip
    return record | changes


def test_aokvqa(tmp_path):
    path = write(tmp_path / "aokvqa.json", [aokvqa(7), aokvqa(8, difficult_direct_answer=True)])
    (easy, hard), faults = read_questions([path])
    assert not faults
    assert (easy.benchmark, easy.id, easy.choices[easy.correct or 0], easy.answers[0]) == (AOKVQA, "q7", "dog", "dog")
    assert "000000000007.jpg" in easy.images
    assert hard.answers == ()  # for multiple choice only, as the official evaluation has it


def test_gqa(tmp_path):
    rows = {"201": {"imageId": "n1", "question": "Is it red?", "answer": "yes", "types": {"structural": "verify"}}}
    (question,), faults = read_questions([write(tmp_path / "gqa.json", rows)])
    assert not faults
    assert (question.benchmark, question.id, question.images[0]) == (GQA, "201", "n1.jpg")
    assert (question.answers, question.kind) == (("yes",), "verify")


def vqa_pair(tmp_path: Path) -> list[Path]:
    questions = {"questions": [{"question_id": 1, "image_id": 42, "question": "How many?"}]}
    people = [{"answer": "2", "answer_confidence": "yes", "answer_id": k} for k in range(1, 11)]
    answers = {"annotations": [{"question_id": 1, "image_id": 42, "answer_type": "number", "answers": people}]}
    return [write(tmp_path / "questions.json", questions), write(tmp_path / "annotations.json", answers)]


def test_vqa_v2_in_any_order(tmp_path):
    for paths in (vqa_pair(tmp_path), vqa_pair(tmp_path)[::-1]):
        (question,), faults = read_questions(paths)
        assert not faults
        assert (question.benchmark, question.kind, question.answers) == (VQA, "number", ("2",) * 10)
        assert "COCO_val2014_000000000042.jpg" in question.images


def test_vqa_v2_needs_both_files(tmp_path):
    questions, annotations = vqa_pair(tmp_path)
    with pytest.raises(UserError, match=r"questions\.json: .*annotations too"):
        read_questions([questions])
    with pytest.raises(UserError, match=r"annotations\.json: .*questions too"):
        read_questions([annotations])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"choices": ["cat"]}, "'correct_choice_idx' is 1"),
        ({"choices": "cat"}, "'choices' is 'cat'"),
        ({"question": "  "}, "'question' is empty"),
        ({"question": None}, "'question' is None"),
        ({"direct_answers": []}, "'direct_answers' is []"),
        ({"image_id": [1]}, "'image_id' is [1]"),
    ],
)
def test_a_wrong_record_is_named_and_the_others_go_on(tmp_path, changes, reason):
    path = write(tmp_path / "aokvqa.json", [aokvqa(1), aokvqa(2, **changes), "nonsense", aokvqa(3), aokvqa(1)])
    questions, faults = read_questions([path])
    assert [question.id for question in questions] == ["q1", "q3"]
    by_place = {fault.where: fault for fault in faults}
    assert by_place[f"{path}: [1]"].kind == by_place[f"{path}: [2]"].kind == MALFORMED
    assert reason in by_place[f"{path}: [1]"].reason
    assert by_place[f"{path}: [4]"].kind == DUPLICATE
    assert "[0]" in by_place[f"{path}: [4]"].reason


def test_wrong_gqa_and_vqa_records(tmp_path):
    rows = {"1": {"imageId": "n1", "question": "Is it?", "answer": "no"}, "2": {"imageId": 5}, "3": []}
    questions, faults = read_questions([write(tmp_path / "gqa.json", rows)])
    assert [question.id for question in questions] == ["1"]
    assert [fault.where.split(": ")[1] for fault in faults] == ["'2'", "'3'"]
    paths = vqa_pair(tmp_path)
    paths[0].write_text(json.dumps({"questions": [{"question_id": 9, "image_id": 1, "question": "Why?"}]}))
    questions, faults = read_questions(paths)
    assert not questions
    assert "no annotations for the question_id 9" in faults[0].reason


@pytest.mark.parametrize("content", [{}, 5, "text"])
def test_a_file_of_another_sort_is_refused(tmp_path, content):
    with pytest.raises(UserError, match=r"some\.json: is no question file"):
        read_questions([write(tmp_path / "some.json", content)])


def test_broken_json_names_file_and_line(tmp_path):
    path = tmp_path / "cut.json"
    path.write_text('[\n{"question_id": 1,\n')
    with pytest.raises(UserError, match=r"cut\.json:\d+: broken JSON"):
        read_questions([path])


IMAGES = [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "2.jpg"}]


def test_captions_in_order_and_by_picture(tmp_path):
    annotations = [
        {"id": 10, "image_id": 2, "caption": "Two\n dogs "}, {"id": 11, "image_id": 2, "caption": "A pair of dogs"},
    ]  # fmt: skip
    path = write(tmp_path / "captions.json", {"images": IMAGES, "annotations": annotations})
    found = read_coco(path, instances=False)
    assert found.of_image == {1: [], 2: ["Two dogs", "A pair of dogs"]}
    assert found.file_names == {1: "1.jpg", 2: "2.jpg"}
    assert not found.faults


def test_wrong_captions_are_named(tmp_path):
    annotations = [
        {"id": 1, "image_id": 1, "caption": "A dog"}, {"id": 1, "image_id": 1, "caption": "A cat"},
        {"id": 2, "image_id": 9, "caption": "A hen"}, {"id": 3, "image_id": 1}, {"image_id": 1, "caption": "A cow"},
        {"id": 4, "image_id": 1, "caption": " "},
    ]  # fmt: skip
    images = [*IMAGES, {"id": 1, "file_name": "x.jpg"}, 3]
    path = write(tmp_path / "captions.json", {"images": images, "annotations": annotations})
    found = read_coco(path, instances=False)
    assert found.of_image == {1: ["A dog"], 2: []}
    faults = [(fault.kind, fault.where.split(": ")[1], fault.reason) for fault in found.faults]
    assert [(kind, where) for kind, where, _ in faults] == [
        (DUPLICATE, "images[2]"),
        (MALFORMED, "images[3]"),
        (DUPLICATE, "annotations[1]"),
        *((MALFORMED, f"annotations[{k}]") for k in range(2, 6)),
    ]
    assert "annotations[0], which is kept" in faults[2][2]
    assert "9, which is not among the images" in faults[3][2]


def test_instances(tmp_path):
    categories = [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}]
    annotations = [
        {"id": 1, "image_id": 1, "category_id": 18}, {"id": 2, "image_id": 1, "category_id": 18},
        {"id": 3, "image_id": 1, "category_id": 99},
    ]  # fmt: skip
    content = {"images": IMAGES, "annotations": annotations, "categories": categories}
    found = read_coco(write(tmp_path / "instances.json", content), instances=True)
    assert found.categories == ("dog", "person")
    assert found.of_image == {1: ["dog"], 2: []}
    assert ["99" in fault.reason for fault in found.faults] == [True]


def test_a_captions_file_is_no_instances_file(tmp_path):
    path = write(tmp_path / "captions.json", {"images": IMAGES, "annotations": []})
    with pytest.raises(UserError, match=r"captions\.json: holds no list 'categories'"):
        read_coco(path, instances=True)
