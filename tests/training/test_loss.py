from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from minigpt4.data.batches import Batch, Batches, Samples
from minigpt4.minigpt4 import MiniGPT4
from minigpt4.model.aligned import IGNORED
from minigpt4.model.lora import Trained, set_trainable
from minigpt4.model.packing import Packer, Packing, few
from minigpt4.model.quantization import FORMATS, quantize_linears
from minigpt4.training import loss
from minigpt4.training.loss import head_loss, next_token_loss
from minigpt4.training.speed import WRITTEN_OUT, attention_written_out, make_fast


@pytest.fixture
def model(tiny_vision: Path, tiny_llm: Path) -> MiniGPT4:
    model = MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", device="cpu")
    set_trainable(model, 1)
    return model


@pytest.fixture
def batch(model: MiniGPT4) -> Batch:
    prompt = [model.tokenizer.bos_token_id, *[model.image_token_id] * model.num_query_tokens, 40]
    targets = [list(range(50, 50 + length)) for length in (3, 9, 1, 6)]
    return Batches(Samples([bytes([i]) for i in range(4)], targets, [prompt]), 4, seed=0)[0]


@pytest.fixture
def features(model: MiniGPT4) -> Tensor:
    return torch.randn(4, model.num_query_tokens, 24, generator=torch.Generator().manual_seed(0))


def projection_gradient(model: MiniGPT4, loss: Tensor) -> Tensor:
    return torch.autograd.grad(loss, model.blip2.language_projection.weight)[0]


def plain_loss(model: MiniGPT4, batch: Batch, features: Tensor) -> Tensor:
    """The plain way: transformers' own loss from labels, with an attention mask and all logits."""
    lengths = [int(mask.nonzero().max()) + 1 for mask in batch.is_target]
    attention_mask = torch.arange(batch.input_ids.shape[1]) < torch.tensor(lengths)[:, None]
    language_model = model.blip2.language_model
    with torch.no_grad():  # `<image>` takes no share of the loss
        language_model.lm_head.register_forward_hook(
            lambda module, args, logits: logits.index_fill(-1, torch.tensor([model.image_token_id]), float("-inf"))
        )
    return language_model(
        inputs_embeds=model.embed(batch.input_ids, features),
        attention_mask=attention_mask.long(),
        labels=batch.input_ids.masked_fill(~batch.is_target, -100),
    ).loss


def test_loss_and_gradient_are_those_of_the_plain_way(model: MiniGPT4, batch: Batch, features: Tensor) -> None:
    ours = next_token_loss(model, batch, features)
    gradient = projection_gradient(model, ours)
    plain = plain_loss(model, batch, features)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, projection_gradient(model, plain), rtol=1e-5, atol=1e-6)
    assert gradient.abs().max() > 1e-3


def labels_of(batch: Batch) -> Tensor:
    return batch.input_ids.masked_fill(~batch.is_target, IGNORED)


def test_the_models_own_forward_gives_this_loss_and_gradient(model: MiniGPT4, batch: Batch, features: Tensor) -> None:
    shapes: list[torch.Size] = []
    head = model.blip2.language_model.lm_head
    handle = head.register_forward_hook(lambda module, args, output: shapes.append(output.shape))
    loss = model(batch.input_ids, features, labels_of(batch))
    handle.remove()
    assert [shape[:-1].numel() for shape in shapes] == [3 + 9 + 1 + 6], "logits at target positions only"
    assert loss.dtype is torch.float32
    ours = next_token_loss(model, batch, features)
    torch.testing.assert_close(loss, ours, rtol=1e-6, atol=1e-6)
    gradients = (projection_gradient(model, value) for value in (loss, ours))
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


def test_the_models_own_forward_gives_the_loss_of_transformers_blip2(model: MiniGPT4, batch: Batch) -> None:
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = labels_of(batch)
    plain = model.blip2(pixel_values=pixels, input_ids=batch.input_ids, labels=labels).loss
    torch.testing.assert_close(model(batch.input_ids, model.encode_pixels(pixels), labels), plain, rtol=1e-6, atol=1e-6)
    logits = model(batch.input_ids, model.encode_pixels(pixels))
    assert logits.shape == (*batch.input_ids.shape, len(model.blip2.language_model.lm_head.weight))


def test_padding_changes_nothing(model: MiniGPT4, batch: Batch, features: Tensor) -> None:
    more = 7
    padded = Batch(
        batch.images,
        torch.nn.functional.pad(batch.input_ids, (0, more), value=99),
        torch.nn.functional.pad(batch.is_target, (0, more)),
        batch.num_tokens,
    )
    expected = next_token_loss(model, batch, features)
    torch.testing.assert_close(next_token_loss(model, padded, features), expected, rtol=1e-5, atol=1e-5)


def test_logits_are_computed_at_target_positions_only(model: MiniGPT4, batch: Batch, features: Tensor) -> None:
    shapes: list[torch.Size] = []
    model.blip2.language_model.lm_head.register_forward_hook(lambda module, args, output: shapes.append(output.shape))
    next_token_loss(model, batch, features)
    assert [shape[:-1].numel() for shape in shapes] == [3 + 9 + 1 + 6]


def test_the_image_token_takes_no_share(model: MiniGPT4, batch: Batch, features: Tensor) -> None:
    before = next_token_loss(model, batch, features)
    with torch.no_grad():  # its score alone is raised
        model.blip2.language_model.lm_head.weight[model.image_token_id] *= 100
    torch.testing.assert_close(next_token_loss(model, batch, features), before)


def test_the_prompt_is_not_learned(model: MiniGPT4, batch: Batch, features: Tensor) -> None:
    """The loss is the mean over the targets alone, and would be another one with the prompt's own tokens among them."""
    next_ids, is_target = batch.input_ids[:, 1:], batch.is_target[:, 1:]
    logits = model.logits(model.hidden_states(batch.input_ids[:, :-1], features))
    losses = F.cross_entropy(logits.flatten(0, 1), next_ids.flatten(), reduction="none").view_as(next_ids)
    in_prompt = (is_target.cumsum(1) == 0) & (next_ids != model.image_token_id)
    assert in_prompt.any()
    loss = next_token_loss(model, batch, features)
    torch.testing.assert_close(loss, losses[is_target].mean(), rtol=1e-5, atol=1e-5)
    assert (losses[is_target | in_prompt].mean() - loss).abs() > 1e-3


def test_who_does_not_compile_does_not_import_the_compiler() -> None:
    """It takes most of a second and 40 MB."""
    code = "import sys, minigpt4.training.loss; sys.exit('torch._inductor.compile_fx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")


@needs_compiler
def test_compiled_it_gives_the_same(model: MiniGPT4, batch: Batch, features: Tensor) -> None:
    expected = next_token_loss(model, batch, features)
    gradient = projection_gradient(model, expected)
    make_fast(model, compiled=True)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    compiled = next_token_loss(model, batch, features)
    assert (
        torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 3
    )  # the last layer, the others, what follows the head
    torch.testing.assert_close(compiled, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(projection_gradient(model, compiled), gradient, rtol=1e-5, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize("form", list(FORMATS))
def test_a_tower_in_8_bits_is_compiled_with_the_llm_and_gives_the_same(
    tiny_vision: Path, tiny_llm: Path, form: str
) -> None:
    """Within the format's own steps: a number that is rounded a hair differently may fall to the next one."""
    torch.manual_seed(0)
    pixels = torch.randn(3, 3, 32, 32)
    features = []
    for compiled in (False, True):
        torch._dynamo.reset()
        model = MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", device="cpu")
        quantize_linears(form, model.blip2.vision_model)
        make_fast(model, compiled)
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        features.append(model.encode_pixels(pixels))
        assert (model.blip2.vision_model.config._attn_implementation == WRITTEN_OUT) is compiled
        assert (torch._dynamo.utils.counters["stats"]["unique_graphs"] > before) is compiled
    assert (features[1] - features[0]).norm() < 0.02 * features[0].norm()


@pytest.mark.parametrize("loud", [1, 30])
def test_attention_written_out_gives_the_same(loud: float) -> None:
    query, key, value = (torch.randn(2, 3, n, 16, generator=torch.Generator().manual_seed(n)) for n in (7, 9, 9))
    expected = torch.nn.functional.scaled_dot_product_attention(loud * query, loud * key, value).transpose(1, 2)
    found, _ = attention_written_out(None, loud * query, loud * key, value, None, scaling=0.25)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_rows_laid_end_to_end_give_the_same(model: MiniGPT4, batch: Batch, features: Tensor) -> None:
    """Padding is left out by default, and what that saves is no token that counts."""
    assert model.packer
    lengths: list[int] = []
    for layer in model.blip2.language_model.base_model.layers:
        layer.mlp.down_proj.register_forward_pre_hook(lambda layer, inputs: lengths.append(inputs[0][..., 0].numel()))
    ours = next_token_loss(model, batch, features)
    gradient = projection_gradient(model, ours)
    model.packer = None
    padded = next_token_loss(model, batch, features)
    torch.testing.assert_close(ours, padded, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, projection_gradient(model, padded), rtol=1e-5, atol=1e-6)
    all_tokens = 4 * 16  # of rows of 14, in eights
    # The asked ones of the last layer, and in each so many more that the count is one of a few.
    assert lengths == [few(batch.num_tokens - 4), few(3 + 9 + 1 + 6), all_tokens, all_tokens]
    assert lengths[0] < 1.1 * (batch.num_tokens - 4)


def test_lora_in_packed_rows_gets_the_same_gradient(tiny_vision: Path, tiny_llm: Path, batch: Batch) -> None:
    """Of the last layer queries are computed for some tokens only, those of LoRA too."""
    lora = MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", device="cpu", trained=Trained(lora_rank=2))
    set_trainable(lora, 1)
    features = torch.randn(4, lora.num_query_tokens, 24)
    trained = [parameter for parameter in lora.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data.normal_(std=0.1)
    packed = torch.autograd.grad(next_token_loss(lora, batch, features), trained)
    assert lora.packer
    lora.packer = None
    padded = torch.autograd.grad(next_token_loss(lora, batch, features), trained)
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-5)
    assert all(gradient.abs().max() > 1e-4 for gradient in packed)


def small_llm(kind: str, **settings: Any) -> Any:
    config = AutoConfig.for_model(
        kind, vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, pad_token_id=0, **settings,
    )  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gpt_neox"])
def test_packed_attention_is_that_of_every_family_that_may_use_it(kind: str) -> None:
    llm = small_llm(kind)
    packer = Packer.try_packing(llm)
    assert packer
    is_real = torch.arange(9) < torch.tensor([4, 9, 1])[:, None]
    embeddings = torch.randn(3, 9, 32, requires_grad=True)
    asked, wanted = torch.tensor([3, 6, 12, 13]), torch.randn(4, 32)
    padded = llm.base_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state[is_real][asked]
    packed = packer.hidden_states(embeddings[is_real], Packing(is_real), asked)
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-5)
    expected, found = (torch.autograd.grad((hidden * wanted).sum(), embeddings)[0] for hidden in (padded, packed))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("gemma2", {}), ("mistral", {"sliding_window": 16}), ("opt", {"ffn_dim": 32})],
)
def test_an_llm_with_another_attention_is_trained_on_padded_rows(kind: str, settings: dict[str, Any]) -> None:
    llm = small_llm(kind, **settings)
    before = llm.config._attn_implementation
    assert Packer.try_packing(llm) is None
    assert llm.config._attn_implementation == before


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=needs_compiler)])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_the_head_in_chunks_gives_the_loss_and_gradient_of_all_logits(
    model: MiniGPT4, softcap: float | None, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.compiled = compiled
    monkeypatch.setattr(loss, "CHUNK", {"cpu": 1})  # the least: 16 tokens at a time
    model.blip2.language_model.config.final_logit_softcapping = softcap
    hidden, targets = torch.randn(37, 32, requires_grad=True), torch.randint(5, 300, (37,))
    ours = head_loss(model, hidden, targets)
    plain = torch.nn.functional.cross_entropy(model.logits(hidden), targets)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    found, expected = (torch.autograd.grad(3 * value, hidden)[0] for value in (ours, plain))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        torch.testing.assert_close(head_loss(model, hidden, targets), plain, rtol=1e-5, atol=1e-5)
