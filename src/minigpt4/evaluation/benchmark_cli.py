"""`minigpt4 eval coverage`, `hallucination` and `vqa`: parsing and printing only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from minigpt4.evaluation.cli import (
    JudgeName,
    JudgePromptName,
    Limit,
    Models,
    Out,
    answering,
    eval_,
    judge_from,
    run_suite,
)

__all__ = ["eval_"]  # with the commands of this file

Images = Annotated[Path | None, typer.Option(help="The directory of the pictures that the files name.")]
Count = Annotated[int, typer.Option(min=1, max=100_000, help="Pictures to ask about: the first so many.")]


@eval_.command()
@answering
def coverage(
    models: Models,
    data: Annotated[Path | None, typer.Option(help="captions_val2017.json; pocket pictures by default.")] = None,
    images: Images = None,
    out: Out = Path("runs/eval"),
    judge: JudgeName = "truth",
    judge_prompt: JudgePromptName = "coverage",
    count: Count = 200,
    prompt: Annotated[str, typer.Option(help="What the model is asked.")] = "Describe this image in detail.",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest description, in tokens.")] = 300,
    caption_metrics: Annotated[
        bool, typer.Option(help="Ask for short captions too, and score them by CIDEr, BLEU, METEOR, ROUGE.")
    ] = True,
    *,
    how: dict[str, Any],
) -> None:
    """How many of the captions that people wrote a description covers; CIDEr and its kin of short captions.

    Example: minigpt4 eval coverage pocket pocket-blip2 --out runs/eval
    """
    from minigpt4.evaluation.suites.coverage import Coverage

    who = judge_from(judge, judge_prompt, out / Coverage.name, how)
    suite = Coverage(
        data, images, judge=who, count=count, prompt=prompt, max_new_tokens=max_new_tokens,
        caption_metrics=caption_metrics,
    )  # fmt: skip
    run_suite(suite, models, out, how)


@eval_.command()
@answering
def hallucination(
    models: Models,
    data: Annotated[Path | None, typer.Option(help="instances_val2017.json; pocket pictures by default.")] = None,
    images: Images = None,
    captions: Annotated[
        Path | None, typer.Option(help="captions_val2017.json: what people name there is there too.")
    ] = None,
    out: Out = Path("runs/eval"),
    count: Count = 200,
    probes: Annotated[int, typer.Option(min=0, help="Objects that are there to ask about, of each picture.")] = 3,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 300,
    *,
    how: dict[str, Any],
) -> None:
    """Objects that answers name and that are not there (CHAIR), against length; yes-or-no questions (POPE).

    Example: minigpt4 eval hallucination pocket pocket-blip2 --out runs/eval
    """
    from minigpt4.evaluation.suites.hallucination import Hallucination

    suite = Hallucination(
        data, images, captions, count=count, probes=probes, seed=how["seed"], max_new_tokens=max_new_tokens
    )
    run_suite(suite, models, out, how)


@eval_.command()
@answering
def vqa(
    models: Models,
    data: Annotated[
        list[Path] | None, typer.Option(help="A question file of A-OKVQA, GQA or VQA v2; may be given several times.")
    ] = None,
    images: Images = None,
    out: Out = Path("runs/eval"),
    count: Annotated[int, typer.Option(min=1, max=100_000, help="Pocket pictures, without --data.")] = 200,
    limit: Limit = None,
    prompt: Annotated[str | None, typer.Option(help="How a question is put, with {} in its place.")] = None,
    choice: Annotated[str | None, typer.Option(help="How a choice is put as an answer, with {} in its place.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 40,
    *,
    how: dict[str, Any],
) -> None:
    """Short answers: A-OKVQA (multiple choice by likelihood, and direct), GQA, VQA v2's accuracy.

    Example: minigpt4 eval vqa pocket pocket-blip2 --out runs/eval
    """
    from minigpt4.evaluation.suites.vqa import Vqa

    suite = Vqa(data or [], images, count=count, prompt=prompt, choice=choice, max_new_tokens=max_new_tokens)
    run_suite(suite, models, out, how, limit=limit)
