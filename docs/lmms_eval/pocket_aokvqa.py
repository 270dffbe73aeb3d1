"""What lmms-eval calls for the task beside it: the image, the question, the answer, and the score of a reply."""

from pathlib import Path

from PIL import Image

from minigpt4.evaluation.benchmarks.vqa import contained

IMAGES = Path("runs/benchmarks/images")


def image(doc):
    return [Image.open(IMAGES / f"{doc['image_id']:012d}.png").convert("RGB")]


def question(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def answer(doc):
    return doc["choices"][doc["correct_choice_idx"]]


def score(doc, results):
    return {"inside_the_reply": float(bool(contained(results[0], doc["direct_answers"])))}
