"""What `minigpt4 train RECIPE --dry-run` says and refuses, without loading a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from minigpt4.cli import app
from minigpt4.errors import UserError
from minigpt4.memory import plan
from minigpt4.model.convert import assemble
from minigpt4.training.checks import dry_run
from minigpt4.training.recipe import Recipe
from tiny import picture_file


@pytest.fixture
def recipe(tiny_vision: Path, tiny_llm: Path, tiny_pairs: Path, tmp_path: Path) -> Recipe:
    return Recipe.parse({
        "stage": 1, "vision_qformer": str(tiny_vision), "llm": str(tiny_llm), "template": "pocket", "device": "cpu",
        "data": [{"path": str(tiny_pairs / "{00000..00001}.tar")}], "feature_cache": tmp_path / "features",
        "output": tmp_path / "out", "steps": 9, "batch_size": 8, "learning_rate": 0.01, "dtype": "bfloat16",
    })  # fmt: skip


def changed(recipe: Recipe, **values: Any) -> Recipe:
    return Recipe.parse({**recipe.model_dump(), **values})


def test_it_tells_samples_parameters_and_memory_and_writes_nothing(recipe: Recipe, tmp_path: Path) -> None:
    mixed = [{"path": str(recipe.sources[0].path), "weight": weight} for weight in (115, 14)]
    said = dry_run(changed(recipe, data=mixed, stream=True, gradient_accumulation_steps=2), processes=2)
    for part in (
        "stage 1: 9 steps of 8 samples: 72 samples",
        "each step: 2 x 4 samples in 2 gradient accumulation steps",
        "}.tar, 89.1% of them",
        "}.tar, 10.9% of them",
        "projection: 800 parameters, trained",  # 24 x 32 and 32
        "memory of each process: about ",
        "a new run",
    ):
        assert part in said
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "features").exists()


def test_its_memory_is_that_of_the_plan(recipe: Recipe, tmp_path: Path) -> None:
    vision, llm, template = recipe.parts
    assemble(vision, llm, tmp_path / "model", template=template)
    init = changed(recipe, vision_qformer=None, llm=None, template=None, init=str(tmp_path / "model"))
    said = dry_run(init, processes=2)

    def needed(**tokens: int) -> str:
        return f"{plan(init.init, batch=4, train=True, **tokens).memory['training on 4']['bfloat16'] / 1e9:.2f}"

    assert f"memory of each process: about {needed(text_tokens=init.max_text_tokens)} GB" in said
    wide = plan(init.init, batch=4, train=True, text_tokens=init.max_text_tokens, wide=True).memory["training on 4"]
    said = dry_run(changed(init, load_in="int8", dtype="float32"), processes=2)
    assert f"memory of each process: about {wide['int8'] / 1e9:.2f} GB" in said
    shown = CliRunner().invoke(app, ["plan", str(init.init), "--train", "--batch", "4"]).stdout
    row = next(line for line in shown.splitlines() if line.startswith("training on 4"))
    assert row.split()[4] == needed()  # "training on 4", float32, bfloat16


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": "nowhere/{00000..00002}.tar"}, "3 of 3 shards are missing: nowhere/00000.tar"),
        ({"vision_qformer": "nowhere"}, "nowhere"),
        ({"llm": "nowhere/llm"}, "nowhere"),
        ({"sample_every": 5, "sample_images": ["cat.png"]}, "cat.png: no such file"),
        ({"device": "cuda:7"}, "cuda:7 is not available"),
        ({"batch_size": 9}, "batch_size 9 cannot be divided over 2 processes x 1 gradient_accumulation_steps"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_would_stop_the_run_stops_it(recipe: Recipe, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        dry_run(changed(recipe, **values), processes=2)
    assert "\n" not in str(error.value)


def test_a_caption_key_that_is_not_there(recipe: Recipe) -> None:
    data = [{"path": recipe.sources[0].path, "caption_key": "blip_caption"}]
    with pytest.raises(UserError, match="'blip_caption'; the keys there are: caption"):
        dry_run(changed(recipe, data=data))


def test_records_with_several_captions_may_fill_a_larger_batch(recipe: Recipe, tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(picture_file(number))
    rows = [{"image": f"{number}.png", "captions": ["a dot", "a red dot", "one dot"]} for number in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = dry_run(changed(recipe, data=str(tmp_path / "rows.jsonl")))
    assert "records in the data: 4, unusable ones included: at most 9.00 epochs" in said
