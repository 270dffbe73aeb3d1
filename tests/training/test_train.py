from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import logging
import math
import os
import pickle
import re
import shutil
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from minigpt4.errors import UserError
from minigpt4.files import only_process
from minigpt4.minigpt4 import MiniGPT4
from minigpt4.training.distributed import Processes
from minigpt4.training.recipe import Recipe
from minigpt4.training.speed import has_compiler
from minigpt4.training.train import load_to_train, train
from tiny import picture_file


@pytest.fixture
def stage1(tiny_vision: Path, tiny_llm: Path, tiny_pairs: Path, tmp_path: Path) -> Recipe:
    return Recipe.parse({
        "stage": 1, "vision_qformer": str(tiny_vision), "llm": str(tiny_llm), "template": "pocket",
        "data": str(tiny_pairs), "feature_cache": tmp_path / "features", "output": tmp_path / "stage1", "device": "cpu",
        "steps": 8, "batch_size": 6, "learning_rate": 0.01, "warmup_steps": 2, "save_every": 3,
    })  # fmt: skip


def with_values(recipe: Recipe, **values: Any) -> Recipe:
    return Recipe.parse({**recipe.model_dump(), **values})


def second(stage1: Recipe, tiny_descriptions: Path, tmp_path: Path) -> Recipe:
    return with_values(
        stage1, stage=2, vision_qformer=None, llm=None, template=None, init=str(stage1.output / "alignment"),
        data=str(tiny_descriptions), instructions=["Describe it.", "What is it?"], max_text_tokens=160,
        output=tmp_path / "stage2",
    )  # fmt: skip


def test_both_stages(stage1: Recipe, tiny_descriptions: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Stage 1 from random, stage 2 from stage 1, what each leaves behind; stage 2's pictures are cached already."""
    alignment = train(stage1, progress=False)
    stage2 = second(stage1, tiny_descriptions, tmp_path)
    shards = set((tmp_path / "features").rglob("*.safetensors"))
    polished = train(stage2, progress=False)
    assert set((tmp_path / "features").rglob("*.safetensors")) == shards
    assert polished == tmp_path / "stage2" / "alignment"

    first, last = (MiniGPT4.from_pretrained(path, device="cpu") for path in (alignment, polished))
    assert (first.stage, last.stage) == (1, 2)
    assert not torch.equal(first.blip2.language_projection.weight, last.blip2.language_projection.weight)
    rows = [json.loads(line) for line in (stage1.output / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert all(math.isfinite(row["loss"]) and row["samples_per_second"] > 0 for row in rows)
    curves = Image.open(io.BytesIO((stage1.output / "curves.png").read_bytes()))
    assert curves.size == (960, 540)
    assert len(set(curves.convert("RGB").tobytes())) > 50  # something is drawn
    assert Recipe.load(stage1.output / "recipe.yaml") == with_values(stage1, compile=False)
    # An LLM of random weights guesses. One that learnt its texts is not told of: tests/test_cli.py.
    told = [record.message for record in caplog.records if "near a blind guess's" in record.message]
    assert len(told) == 2


def test_a_finished_run_says_so_and_does_nothing(stage1: Recipe, caplog: pytest.LogCaptureFixture) -> None:
    alignment = train(stage1, progress=False)
    before = {path: path.stat().st_mtime_ns for path in stage1.output.rglob("*")}
    caplog.set_level(logging.INFO, logger="minigpt4")
    caplog.clear()
    assert train(stage1, progress=False) == alignment
    assert [record.message for record in caplog.records] == [f"{alignment}: already trained, nothing to do"]
    assert {path: path.stat().st_mtime_ns for path in stage1.output.rglob("*")} == before


def test_a_second_run_on_the_same_output_is_refused(stage1: Recipe) -> None:
    stage1.output.mkdir(parents=True, exist_ok=True)
    with only_process(stage1.output, "train"), pytest.raises(UserError, match=r"process \d+ is at work on train here"):
        train(stage1, progress=False)
    assert [path.name for path in stage1.output.iterdir()] == [".train.lock"]
    assert train(stage1, progress=False).is_dir()  # the other has ended


def test_an_output_with_another_run_is_refused(stage1: Recipe) -> None:
    train(stage1, progress=False)
    with pytest.raises(UserError, match="holds a run with another steps, seed; give another output"):
        train(with_values(stage1, seed=1, steps=9), progress=False)


def test_an_output_with_something_else_is_refused(stage1: Recipe, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("precious")
    with pytest.raises(UserError, match="something else than a training run"):
        train(with_values(stage1, output=tmp_path / "photos"), progress=False)
    with pytest.raises(UserError, match="is a file"):
        train(with_values(stage1, output=tmp_path / "photos" / "cat.jpg"), progress=False)
    with pytest.raises(UserError, match="cannot be made"):
        train(with_values(stage1, output=tmp_path / "photos" / "cat.jpg" / "run"), progress=False)


def test_missing_data_are_found_before_anything_is_loaded_or_written(stage1: Recipe, tmp_path: Path) -> None:
    nowhere = with_values(stage1, data=str(tmp_path / "nowhere"), llm="no/such-llm")
    with pytest.raises(UserError, match=r"data .*nowhere: no such"):
        train(nowhere, progress=False)
    assert not stage1.output.exists()


def test_a_start_that_was_not_trained_yet(stage1: Recipe, tiny_descriptions: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="stage1/alignment: no such directory"):
        train(second(stage1, tiny_descriptions, tmp_path), progress=False)


def test_of_damaged_checkpoints_the_one_before_is_used(stage1: Recipe, caplog: pytest.LogCaptureFixture) -> None:
    alignment = train(stage1, progress=False)
    trained = (alignment / "projection.safetensors").read_bytes()
    shutil.rmtree(alignment)  # as if it had been killed just before the end
    last, before = sorted((stage1.output / "checkpoints").glob("*.pt"), reverse=True)[:2]
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1  # one bit
    last.write_bytes(content)
    caplog.set_level(logging.INFO, logger="minigpt4")
    train(stage1, progress=False)
    messages = [record.message for record in caplog.records]
    assert f"{last}: the checkpoint is damaged; going on from the one before it" in messages
    assert "continuing from step 6 of 8" in messages
    assert (alignment / "projection.safetensors").read_bytes() == trained
    shutil.rmtree(alignment)
    for path in (stage1.output / "checkpoints").glob("*.pt"):
        path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(UserError, match="every checkpoint is damaged; delete them"):
        train(stage1, progress=False)
    assert before.exists()


def test_checkpoints_of_somebody_else(stage1: Recipe, tmp_path: Path) -> None:
    """Cut at any place, or with a right digest and something else in them: one line, and no code of theirs runs."""
    alignment = train(stage1, progress=False)
    shutil.rmtree(alignment)
    *others, last = sorted((stage1.output / "checkpoints").glob("*.pt"))
    for other in others:
        other.unlink()
    good = last.read_bytes()
    state = torch.load(io.BytesIO(good[32:]), weights_only=True)

    def with_digest(content: Any) -> bytes:
        buffer = io.BytesIO()
        torch.save(content, buffer)
        return hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue()

    command = "import pathlib; pathlib.Path({!r}).touch()".format(str(tmp_path / "ran"))
    evil = pickle.dumps(Evil(command))
    damaged = [good[:length] for length in (33, len(good) - 1)]
    damaged += [hashlib.sha256(evil).digest() + evil, with_digest([1])]
    odd = [
        with_digest({**state, "trained": {}}),
        with_digest({**state, "optimizer": 5}),
        with_digest({**state, "belongs_to": 5}),
    ]
    for content, told in [(c, "every checkpoint is damaged") for c in damaged] + [(c, last.name) for c in odd]:
        last.write_bytes(content)
        with pytest.raises(UserError) as caught:
            train(stage1, progress=False)
        assert told in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
    last.write_bytes(good)
    (last.parent / "notes.pt").touch()
    assert train(stage1, progress=False) == alignment


class Evil:
    """Runs a line of Python when it is unpickled."""

    def __init__(self, line: str) -> None:
        self.line = line

    def __reduce__(self) -> Any:
        return exec, (self.line,)


def test_an_output_that_can_no_longer_be_written(stage1: Recipe) -> None:
    """One line says so, what was saved stays as it is, and the run goes on once it can."""
    alignment = train(stage1, progress=False)
    trained = (alignment / "projection.safetensors").read_bytes()
    shutil.rmtree(alignment)
    checkpoints = stage1.output / "checkpoints"
    max(checkpoints.glob("*.pt")).unlink()
    kept = {path.name: path.read_bytes() for path in checkpoints.iterdir()}
    checkpoints.rename(stage1.output / "away")
    checkpoints.touch()
    with pytest.raises(UserError, match=r"checkpoints/.*\.pt: cannot be written \(.*what was saved before is intact"):
        train(stage1, progress=False)
    checkpoints.unlink()
    (stage1.output / "away").rename(checkpoints)
    assert {path.name: path.read_bytes() for path in checkpoints.iterdir()} == kept
    train(stage1, progress=False)
    assert (alignment / "projection.safetensors").read_bytes() == trained


def test_the_last_checkpoints_and_the_best_are_kept(stage1: Recipe) -> None:
    """Steps 1 to 4 learn, later ones unlearn: the best is old, and stays."""
    recipe = with_values(
        stage1, steps=10, save_every=1, learning_rate=3.0, warmup_steps=9, warmup_learning_rate=1e-3,
        save_total_limit=2, dtype="float32",
    )  # fmt: skip
    train(recipe, progress=False)
    kept = sorted((recipe.output / "checkpoints").glob("*.pt"))
    rows = [json.loads(line) for line in (recipe.output / "metrics.jsonl").read_text().splitlines()]
    best = min(rows, key=lambda row: row["loss"])["step"]
    assert [int(path.name[:8]) for path in kept] == sorted({best, 9, 10})


def test_sample_answers_and_the_summary(stage1: Recipe, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    picture = str(tmp_path / "red.png")
    train(with_values(stage1, sample_every=4, sample_images=[picture], sample_prompt="What?"), progress=False)
    samples = [json.loads(line) for line in (stage1.output / "samples.jsonl").read_text().splitlines()]
    assert [(sample["step"], sample["picture"]) for sample in samples] == [(4, picture), (8, picture)]
    summary = (stage1.output / "summary.md").read_text()
    for part in (
        "| steps | 8 of 8 |",
        "| samples | 48 |",
        "learning_rate: 0.01",
        "torch ",
        "(curves.png)",
        "`" + picture,
    ):
        assert part in summary


def test_sample_images_are_looked_at_first_and_a_resumed_run_tells_each_sample_once(
    stage1: Recipe, tmp_path: Path
) -> None:
    wrong = {"sample_every": 4, "sample_images": [str(tmp_path / "typo.png")]}
    with pytest.raises(UserError, match=r"typo\.png: no such file"):
        train(with_values(stage1, **wrong), progress=False)
    assert not stage1.output.exists()
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    recipe = with_values(stage1, sample_every=4, sample_images=[str(tmp_path / "red.png")])
    train(recipe, progress=False)
    shutil.rmtree(recipe.output / "alignment")
    for path in recipe.output.glob("checkpoints/*.pt"):
        if not path.name.startswith("00000004"):
            path.unlink()
    with (recipe.output / "samples.jsonl").open("a") as file:
        file.write('{"step": 8, "pict')  # as a full disk leaves it
    train(recipe, progress=False)
    samples = [json.loads(line) for line in (recipe.output / "samples.jsonl").read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [4, 8]
    (tmp_path / "red.png").unlink()
    train(recipe, progress=False)  # finished, so nothing is read any more


@pytest.mark.parametrize(
    ("values", "also"),
    [
        ({"projection_layers": 3}, set()),
        ({"lora_rank": 2}, {"lora"}),
        ({"train_qformer": True, "stream": True, "shuffle_buffer": 0}, {"qformer"}),
        ({"qformer": False}, set()),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_the_papers_variants(stage1: Recipe, values: dict[str, Any], also: set[str], tmp_path: Path) -> None:
    """Each trains, is saved, loaded, exported, loaded again, and gives the same logits each time; then stage 2."""
    recipe = with_values(stage1, **values, dtype="float32")
    alignment = train(recipe, progress=False)
    model = MiniGPT4.from_pretrained(alignment, device="cpu")
    names = {name for name, _ in model.named_parameters() if name in model.adapter_names()}
    assert {name.replace("blip2.", "").split(".")[0] for name in names} - {"query_tokens"} == also
    picture = Image.radial_gradient("L").convert("RGB")

    def answer(model: MiniGPT4) -> torch.Tensor:
        ids = torch.tensor([[1, *[model.image_token_id] * model.num_query_tokens, 40, 41]])
        with torch.no_grad():
            return model.logits(model.hidden_states(ids, model.encode_images([picture])))

    expected = answer(model)
    untrained = answer(MiniGPT4.assemble(
        stage1.vision_qformer or "", stage1.llm or "", template="pocket", device="cpu", qformer=recipe.qformer,
        trained=model.trained,
    ))  # fmt: skip
    assert not torch.allclose(untrained, expected, atol=1e-3)
    model.export(tmp_path / "export")
    again = MiniGPT4.from_pretrained(tmp_path / "export", device="cpu")
    torch.testing.assert_close(answer(again), expected, rtol=1e-4, atol=1e-4)
    if "train_qformer" in values:
        assert model.vision_fingerprint != MiniGPT4.assemble(
            stage1.vision_qformer or "", stage1.llm or "", template="pocket", device="cpu"
        ).vision_fingerprint  # fmt: skip


def test_a_run_does_not_go_on_with_other_data(stage1: Recipe, tmp_path: Path, tiny_pairs: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for shard in tiny_pairs.iterdir():
        (data / shard.name).write_bytes(shard.read_bytes())
    recipe = with_values(stage1, data=str(data))
    train(recipe, progress=False)
    (recipe.output / "alignment" / "alignment.json").unlink()
    (data / "00001.tar").unlink()
    with pytest.raises(UserError, match="belongs to other data than"):
        train(recipe, progress=False)


def test_a_run_does_not_go_on_with_another_llm(stage1: Recipe, tmp_path: Path) -> None:
    """Which is known before anything is loaded: the vision side is not even there any more."""
    llm = shutil.copytree(stage1.llm or "", tmp_path / "llm")
    vision = shutil.copytree(stage1.vision_qformer or "", tmp_path / "vision")
    recipe = with_values(stage1, llm=str(llm), vision_qformer=str(vision))
    train(recipe, progress=False)
    (recipe.output / "alignment" / "alignment.json").unlink()
    tensors = load_file(llm / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + 1
    save_file(tensors, llm / "model.safetensors", metadata={"format": "pt"})
    shutil.rmtree(vision)
    with pytest.raises(UserError, match=r"checkpoints/00000008-.*: belongs to other LLM than the recipe's paths hold"):
        train(recipe, progress=False)


def test_outside_the_main_thread(stage1: Recipe) -> None:
    """Where Python lets no one handle signals, as in a notebook's or a server's thread."""
    with ThreadPoolExecutor() as pool:
        assert (pool.submit(train, stage1, progress=False).result() / "alignment.json").is_file()


def test_without_samples_there_is_no_file_of_them(stage1: Recipe) -> None:
    train(stage1, progress=False)
    assert not (stage1.output / "samples.jsonl").exists()


def test_pairs_left_out_are_reported(stage1: Recipe, tiny_pairs: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = (tiny_pairs / "00000.tar").read_bytes()
    data = stage1.output.with_name("cut.tar")
    data.write_bytes(whole[:20_000])
    train(with_values(stage1, data=str(data), steps=1), progress=False)
    assert any("9 pairs used; left out: no caption 1, broken shard" in record.message for record in caplog.records)


@pytest.mark.parametrize("stream", [False, True])
def test_too_many_unreadable_pictures_end_the_run(stage1: Recipe, tmp_path: Path, stream: bool) -> None:
    """Four of twenty; what is allowed is no key of which the losses depend, so the run can go on with more of it."""
    rows = []
    for i in range(20):
        picture = tmp_path / f"{i}.png"
        picture.write_bytes(b"no image" if i % 5 == 0 else picture_file(i))
        rows.append(json.dumps({"image": picture.name, "caption": f"picture {i}"}) + "\n")
    (tmp_path / "pairs.jsonl").write_text("".join(rows))
    few = with_values(stage1, data=str(tmp_path / "pairs.jsonl"), stream=stream, shuffle_buffer=0, max_skipped=0.1)
    with pytest.raises(UserError, match=r"pairs\.jsonl: \d+ of \d+ pairs cannot be used \(unreadable image \d+\)"):
        train(few, progress=False)
    train(with_values(few, max_skipped=0.3), progress=False)
    assert re.search(r"pairs left out \| unreadable image \d+ \|", (stage1.output / "summary.md").read_text())


@pytest.mark.parametrize(
    "values",
    [
        {"load_in": "8bit"},
        {"load_in": "4bit"},
        {"load_in": "fp8"},
        {"load_in": "int8"},
        {"load_in": "fp8", "vision_load_in": "int8", "stream": True, "shuffle_buffer": 0},
    ],
)
def test_training_through_frozen_parts_in_fewer_bits(
    stage1: Recipe, values: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The loss falls, a run that stops goes on to the same weights, and these load in full precision too."""
    recipe = with_values(stage1, **values, steps=12, learning_rate=0.05)
    alignment = train(recipe, progress=False)
    trained = (alignment / "projection.safetensors").read_bytes()
    assert any("int8 without compile=true" in each.message for each in caplog.records) is ("int8" in values.values())
    shutil.rmtree(alignment)  # as if it had been killed after step 9
    max((recipe.output / "checkpoints").glob("*.pt")).unlink()
    assert (train(recipe, progress=False) / "projection.safetensors").read_bytes() == trained
    losses = [json.loads(line)["loss"] for line in (recipe.output / "metrics.jsonl").read_text().splitlines()]
    assert max(losses[-3:]) < min(losses[:2])
    assert MiniGPT4.from_pretrained(alignment, device="cpu").stage == 1
    for key in sorted({"load_in", "vision_load_in"} & values.keys()):  # and each key does something
        other = with_values(recipe, **{key: None}, output=str(recipe.output.parent / f"without {key}"))
        assert (train(other, progress=False) / "projection.safetensors").read_bytes() != trained, key


def test_layers_are_compiled_where_the_run_is_long_enough(stage1: Recipe, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    told = []
    for steps, values in ((12, {}), (10**6, {}), (10**6, {"load_in": "8bit"}), (10**6, {"compile": False})):
        long = with_values(stage1, steps=steps, **values)
        model = load_to_train(long, Processes("cpu"))
        told.append([each.message for each in caplog.records if each.message.startswith("computing in ")])
        assert model.compiled is (steps > 12 and not values and has_compiler())
        caplog.clear()
    assert [len(lines) for lines in told] == [1, 1, 1, 0]
    train(with_values(stage1, steps=2, save_every=1), progress=False)  # how a run began it goes on
    assert not load_to_train(with_values(stage1, steps=10**6), Processes("cpu")).compiled
    assert Recipe.load(stage1.output / "recipe.yaml").differing_keys(with_values(stage1, steps=2)) == []
    assert Recipe.load(stage1.output / "recipe.yaml").differing_keys(with_values(stage1, compile=True)) != []


def test_what_is_offloaded_is_not_trained_through(stage1: Recipe) -> None:
    with pytest.raises(UserError, match="device=auto is for talking"):
        train(with_values(stage1, device="auto"), progress=False)


def in_tensorboard(run: Path) -> dict[int, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    written = [EventAccumulator(str(path)).Reload() for path in run.rglob("events.out.tfevents.*")]
    found = [each for each in written if "loss" in each.Tags()["scalars"]]  # the others hold the recipe
    return {event.step: event.value for events in found for event in events.Scalars("loss")}


def in_trackio(run: Path) -> dict[int, float]:
    (database,) = (run.parent / "trackio").glob("*.db")
    rows = sqlite3.connect(database).execute("select step, metrics, run_name from metrics").fetchall()
    assert len({name for *_, name in rows}) == 1  # gone on with, not begun anew
    return {step: figures["loss"] for step, text, _ in rows if "loss" in (figures := json.loads(text))}


def in_wandb(run: Path) -> dict[int, float]:
    """What its offline files hold: one for each of the two processes, of one run."""
    from wandb.proto.wandb_internal_pb2 import Record

    files = sorted(run.rglob("run-*.wandb"))
    assert len({path.name for path in files}) == 1 < len(files)
    found = {}
    for data in (data for path in files for data in leveldb_records(path.read_bytes(), start=7)):
        record = Record()
        record.ParseFromString(data)
        row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        if "loss" in row:
            found[row["_step"]] = row["loss"]
    return found


def leveldb_records(content: bytes, start: int, block: int = 1 << 15) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format: blocks of pieces, each with its checksum, length and kind."""
    parts = b""
    while start + 7 <= len(content):
        if block - start % block < 7:
            start += block - start % block
        length, kind = struct.unpack_from("<HB", content, start + 4)
        parts += content[start + 7 : start + 7 + length]
        start += 7 + length
        if kind in (1, 4):  # whole, or the last of several
            yield parts
            parts = b""


@pytest.mark.parametrize("tracker", [in_tensorboard, in_trackio, in_wandb])
def test_figures_go_to_a_tracker(stage1: Recipe, tracker: Callable[[Path], dict[int, float]], tmp_path: Path) -> None:
    """Of a run that was stopped and went on too, under one name."""
    name = tracker.__name__.removeprefix("in_")
    pytest.importorskip(name)
    (tmp_path / "recipe.yaml").write_text(with_values(stage1, trackers=[name]).to_yaml())
    command = [sys.executable, "-m", "minigpt4", "train", tmp_path / "recipe.yaml"]
    where = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio")}  # trackio reads it when it is imported
    for _ in range(2):
        subprocess.run(command, env={**os.environ, **where}, check=True, timeout=300)
        shutil.rmtree(stage1.output / "alignment")  # as if killed before its end
        next((stage1.output / "checkpoints").glob("00000008*")).unlink()
    rows = [json.loads(line) for line in (stage1.output / "metrics.jsonl").read_text().splitlines()]
    assert tracker(stage1.output) == {row["step"]: pytest.approx(row["loss"], rel=1e-5) for row in rows}


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_a_tracker_that_is_not_installed(stage1: Recipe) -> None:
    with pytest.raises(UserError, match="wandb is not installed; install it with: pip install wandb"):
        train(with_values(stage1, trackers=["wandb"]), progress=False)
