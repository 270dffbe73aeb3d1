from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from formats import read
from minigpt4 import memory
from minigpt4.data.batches import Batches, tokenise
from minigpt4.errors import UserError
from minigpt4.minigpt4 import MiniGPT4
from minigpt4.model.lora import set_trainable
from minigpt4.stopping import StopSignals
from minigpt4.training.distributed import Processes
from minigpt4.training.features import FeatureCache, Prepare, cache_features, image_key
from minigpt4.training.loader import CachedLoader, Loaded
from minigpt4.training.loop import Step, make_optimizer, make_scaler, training_steps
from minigpt4.training.recipe import Recipe

Setting = tuple[MiniGPT4, Batches, FeatureCache, Recipe]


@pytest.fixture(params=[(1, "float32"), (2, "float32"), (1, "bfloat16")], ids=lambda p: f"stage{p[0]}-{p[1]}")
def setting(
    request: pytest.FixtureRequest,
    tiny_vision: Path,
    tiny_llm: Path,
    tiny_pairs: Path,
    tiny_descriptions: Path,
    tmp_path: Path,
) -> Setting:
    stage, dtype = request.param
    data = tiny_pairs if stage == 1 else tiny_descriptions
    parts = [f"vision_qformer={tiny_vision}", f"llm={tiny_llm}", "template=pocket", "init=null", f"dtype={dtype}"]
    how = ["steps=12", "batch_size=6", "learning_rate=0.01", "warmup_steps=2", f"data={data}"]
    recipe = Recipe.load(f"pocket-stage{stage}", [*parts, *how])
    model = MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", device="cpu", dtype=dtype)
    set_trainable(model, stage)
    pairs = read(data, stage)[0]
    features = FeatureCache(tmp_path, "vision")
    cache_features(model, features, map(Prepare(model.image_processor, features.index), pairs))
    samples = tokenise(
        model.tokenizer,
        [(image_key(pair.image), pair.text) for pair in pairs],
        recipe.instructions,
        max_text_tokens=recipe.max_text_tokens,
        num_query_tokens=model.num_query_tokens,
        image_token_id=model.image_token_id,
    )
    return model, Batches(samples, recipe.batch_size, recipe.seed), features, recipe


def run(setting: Setting, loaded: Iterator[Loaded] | None = None) -> list[Step]:
    model, batches, features, recipe = setting
    loaded = loaded or CachedLoader(batches, features).start(0)
    optimizer, scaler = make_optimizer(model, recipe), make_scaler(model)
    return list(training_steps(model, optimizer, scaler, loaded, recipe, Processes("cpu"), StopSignals()))


def hashes(model: MiniGPT4) -> dict[str, str]:
    """A hash of every tensor of the model."""
    return {
        name: hashlib.sha256(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, tensor in model.state_dict().items()
    }


def test_only_the_projection_trains(setting: Setting) -> None:
    before = hashes(setting[0])
    run(setting)
    after = hashes(setting[0])
    assert len(before) > 50
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"blip2.language_projection.weight", "blip2.language_projection.bias"}


def test_the_loss_falls_and_the_figures_are_plausible(setting: Setting) -> None:
    steps = run(setting)
    assert [step.step for step in steps] == list(range(1, 13))
    losses = [step.loss for step in steps]
    assert sum(losses[-3:]) < 0.98 * sum(losses[:3])
    assert max(step.learning_rate for step in steps) == steps[2].learning_rate == 0.01
    assert all(step.gradient_norm > 0 and step.samples_per_second > 0 for step in steps)
    assert all(step.tokens_per_second > 6 * step.samples_per_second for step in steps)


def test_the_projection_is_kept_in_float32(setting: Setting) -> None:
    run(setting)
    assert {p.dtype for p in setting[0].parameters() if p.requires_grad} == {torch.float32}


def test_no_gradient_is_kept_for_frozen_weights(setting: Setting) -> None:
    run(setting)
    with_gradient = {name for name, p in setting[0].named_parameters() if p.grad is not None}
    assert with_gradient == {"blip2.language_projection.weight", "blip2.language_projection.bias"}


def test_biases_do_not_decay(setting: Setting) -> None:
    model, _, _, recipe = setting
    matrices, biases = make_optimizer(model, recipe).param_groups
    assert (matrices["weight_decay"], biases["weight_decay"]) == (recipe.weight_decay, 0.0)
    assert recipe.weight_decay > 0
    assert [p.dim() for p in matrices["params"]] == [2]
    assert [p.dim() for p in biases["params"]] == [1]


def test_divergence_stops_with_the_step(setting: Setting) -> None:
    model, batches, features, recipe = setting
    wild = recipe.model_copy(update={"learning_rate": 1e37, "warmup_steps": 0, "warmup_learning_rate": 0.0})
    message = r"diverged at step 2: loss .*gradient norm nan, with (all|[45] of) 6 samples.*'.*\(image .*below 1e\+37"
    with pytest.raises(UserError, match=message):
        run((model, batches, features, wild))
    assert all(p.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_the_samples_at_fault_are_named(setting: Setting) -> None:
    """One picture whose features are not finite: its text is named, and no other."""
    _, batches, features, _ = setting
    loaded = CachedLoader(batches, features).start(0)

    def spoiled() -> Iterator[Loaded]:
        first = next(loaded)
        broken = first.images.clone()
        broken[2] = float("nan")
        yield replace(first, images=broken)

    with pytest.raises(UserError, match="with 1 of 6 samples: '") as error:
        run(setting, spoiled())
    picture = batches[0].images[2].hex()[:12]
    assert f"(image {picture})" in str(error.value)


def test_in_parts_the_losses_and_the_projection_are_the_same(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of 6 in 3 parts (accumulation), or in parts that keep little, has the gradient of the whole batch."""
    model, batches, features, recipe = setting
    if model.dtype is not torch.float32:
        pytest.skip("exact in float32 only")
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    ends = []
    for parts, at_a_time in ((1, 1e9), (3, 1e9), (1, 1)):
        model.load_state_dict(start, strict=False)
        monkeypatch.setattr(memory, "AT_A_TIME", at_a_time)
        split = recipe.model_copy(update={"gradient_accumulation_steps": parts})
        steps = run((model, batches, features, split))
        ends.append(([step.loss for step in steps], model.blip2.language_projection.weight.detach().clone()))
    for end in ends[1:]:
        assert end[0] == pytest.approx(ends[0][0], abs=1e-5)
        torch.testing.assert_close(end[1], ends[0][1], rtol=1e-3, atol=1e-5)


def test_a_model_in_float16_learns_with_a_scaled_loss(setting: Setting) -> None:
    model, batches, features, recipe = setting
    if model.dtype is not torch.float32:
        pytest.skip("once is enough")
    for part in (model.blip2.language_model, model.blip2.vision_model):
        part.half()
    steps = run((model, batches, features, recipe))
    assert model.dtype is torch.float16
    assert sum(step.loss for step in steps[-3:]) < 0.98 * sum(step.loss for step in steps[:3])
