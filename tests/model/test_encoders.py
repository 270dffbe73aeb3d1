"""Other vision encoders than BLIP-2's, from the files of transformers to answers, exports and heat maps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ResNetConfig,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from converting import run
from encoders import PICTURES, efficientnet, with_qformer
from minigpt4 import MiniGPT4, UserError
from minigpt4.app.page.attention import patch_attention
from minigpt4.images import seen, size_of, to_pixels
from minigpt4.memory import plan
from minigpt4.model import parts
from minigpt4.model.encoders import placeless
from minigpt4.model.vision import load_vision_side
from minigpt4.training.checks import dry_run
from minigpt4.training.features import features_fingerprint
from minigpt4.training.recipe import Recipe
from minigpt4.training.train import train

SIZES: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
TEXT = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
SQUARE = {"height": 32, "width": 32}


def clip(where: Path) -> Any:
    model = CLIPVisionModel(CLIPVisionConfig(**SIZES))
    model.save_pretrained(where)
    CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size=SQUARE).save_pretrained(where)
    return model


def whole_clip(where: Path) -> Any:
    model = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=SIZES))
    model.save_pretrained(where)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE).save_pretrained(where)
    return model.vision_model


def siglip(where: Path) -> Any:
    model = SiglipVisionModel(SiglipVisionConfig(**SIZES))
    model.save_pretrained(where)
    SiglipImageProcessorPil(size=SQUARE, resample=2).save_pretrained(where)
    return model


def whole_siglip(where: Path) -> Any:
    model = SiglipModel(SiglipConfig(text_config=TEXT | {"projection_size": 16}, vision_config=SIZES))
    model.save_pretrained(where)
    settings = {"image_processor": SiglipImageProcessorPil(size=SQUARE).to_dict()}
    (where / "processor_config.json").write_text(json.dumps(settings))  # as a whole processor is saved
    return model.vision_model


def dinov2(where: Path) -> Any:
    """Whose images are smaller than those that it was trained with, as the published ones'."""
    sizes = {key: value for key, value in SIZES.items() if key != "intermediate_size"}
    model = Dinov2Model(Dinov2Config(**sizes | {"image_size": 48}))
    model.save_pretrained(where)
    BitImageProcessorPil(size={"shortest_edge": 36}, crop_size=SQUARE).save_pretrained(where)
    return model


def registers(where: Path) -> Any:
    sizes = {key: value for key, value in SIZES.items() if key != "intermediate_size"}
    model = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**sizes, num_register_tokens=4))
    model.save_pretrained(where)
    BitImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE).save_pretrained(where)
    return model


@pytest.mark.parametrize(
    ("make", "leading", "group"),
    [(clip, 1, 4), (whole_clip, 1, 2), (siglip, 0, 4), (whole_siglip, 0, 8), (dinov2, 1, 4), (registers, 5, 4),
     (efficientnet, 2, 8)],
)  # fmt: skip
def test_an_encoder_of_transformers(
    tiny_llm: Path, tmp_path: Path, make: Callable[[Path], Any], leading: int, group: int
) -> None:
    torch.manual_seed(1)
    own = make(tmp_path / "vision").eval()
    model = MiniGPT4.assemble(
        vision=tmp_path / "vision", llm=tiny_llm, group=group, template="pocket", dtype="float32", device="cpu"
    )
    pixels = torch.from_numpy(to_pixels(model.image_processor, PICTURES))
    with torch.no_grad():
        tokens = own(pixel_values=pixels).last_hidden_state
    assert placeless(tokens.shape[1]) == leading
    features = model.encode_images(PICTURES)
    assert features.shape == (2, 16 // group, 16 * group)
    torch.testing.assert_close(features.reshape(2, 16, 16), tokens[:, leading:])
    [heat] = patch_attention(model, PICTURES[:1])
    assert heat.shape == (16 // group, 4, 4)
    assert heat[0].flatten().nonzero().flatten().tolist() == list(range(group))

    answer = model.generate(PICTURES, ["What is it?"] * 2, do_sample=False, max_new_tokens=6)
    model.save_pretrained(tmp_path / "alignment")
    model.export(tmp_path / "export")
    result = run("export", tmp_path / "alignment", "--out", tmp_path / "from files")
    assert result.exit_code == 0, result.output
    for form in ("alignment", "export", "from files"):
        again = MiniGPT4.from_pretrained(tmp_path / form, dtype="float32", device="cpu")
        assert again.generate(PICTURES, ["What is it?"] * 2, do_sample=False, max_new_tokens=6) == answer
        side = load_vision_side(tmp_path / form, dtype="float32", device="cpu")
        assert torch.equal(side.encode_images(PICTURES), features)
        assert features_fingerprint(side) == features_fingerprint(model)
        sizes = {part.name: part.parameters for part in plan(tmp_path / form, train=True).parts}
        assert sizes["vision tower"] == sum(parameter.numel() for parameter in own.parameters())
    alone = AutoModel.from_pretrained(tmp_path / "export" / "vision").eval()
    with torch.no_grad():
        assert torch.equal(alone(pixel_values=pixels).last_hidden_state, tokens)


@pytest.mark.parametrize("make", [clip, dinov2, siglip])
def test_images_are_prepared_as_its_files_say(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    make(tmp_path)
    kind = {clip: CLIPImageProcessorPil, dinov2: BitImageProcessorPil, siglip: SiglipImageProcessorPil}[make]
    processor = parts.load_vision_qformer(tmp_path, qformer=False).image_processor
    for size in ((90, 61), (61, 90), (32, 32), (40, 41), (5, 3)):
        image = PICTURES[0].resize(size)
        expected = kind.from_pretrained(tmp_path)(image, return_tensors="np")["pixel_values"]
        assert abs(to_pixels(processor, [image]) - expected).max() < 1e-6
    whole = Image.new("RGB", (900, 600))
    shown = {clip: (480, 480), dinov2: (533, 533), siglip: (900, 600)}[make]
    assert seen(whole, *size_of(processor)).size == shown
    assert to_pixels(processor, [Image.new("RGB", (1, 100_000))]).shape == (1, 3, 32, 32)


def test_commands_and_a_run(tiny_llm: Path, tiny_pairs: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    clip(tmp_path / "vision")
    given = ("--vision", tmp_path / "vision", "--llm", tiny_llm, "--out", tmp_path / "untrained")
    assert run("assemble", *given, "--group", "2").exit_code == 0
    assert MiniGPT4.from_pretrained(tmp_path / "untrained", device="cpu").num_query_tokens == 8
    for wrong in (["--vision-qformer", "x"], ["--group", "3"]):
        assert run("assemble", *given[:4], "--out", tmp_path / "none", *wrong).exit_code == 2
    common = {
        "stage": 1, "data": str(tiny_pairs), "steps": 2, "batch_size": 4, "learning_rate": 0.01,
        "feature_cache": tmp_path / "features", "device": "cpu", "dtype": "float32",
    }  # fmt: skip
    parted = {"vision_qformer": str(tmp_path / "vision"), "llm": str(tiny_llm), "template": "pocket", "qformer": False}
    streamed = {"stream": True, "vision_load_in": "int8", "group": 8}
    for number, keys in enumerate((parted, parted | streamed, {"init": str(tmp_path / "untrained")})):
        recipe = Recipe.parse({**common, **keys, "output": tmp_path / f"run{number}"})
        trained = MiniGPT4.from_pretrained(train(recipe, progress=False), dtype="float32", device="cpu")
        assert trained.group == (4, 8, 2)[number]
        assert trained.start_chat().ask("What is it?", image=PICTURES[0], do_sample=False, max_new_tokens=4) is not None
    assert len(list((tmp_path / "features").iterdir())) == 2  # groups of another size are other features


@pytest.mark.parametrize("kind", ["siglip2-smollm2", "clip-qwen3"])
def test_the_recipes_for_the_hub(tiny_llm: Path, tiny_pairs: Path, tmp_path: Path, kind: str) -> None:
    """Their keys, on small parts of the same kinds: the hub's are not to be had here."""
    torch.manual_seed(1)
    {"siglip2-smollm2": siglip, "clip-qwen3": clip}[kind](tmp_path / "vision")
    MiniGPT4.assemble(vision=tmp_path / "vision", llm=tiny_llm, device="cpu").save_pretrained(tmp_path / "untrained")
    for stage in (1, 2):
        recipe = Recipe.load(f"{kind}-stage{stage}")
        assert recipe.stage == stage
        assert recipe.sources[0].path.startswith("hub:")
        assert stage == 1 or recipe.init == f"{Recipe.load(f'{kind}-stage1').output}/alignment"
        here = [f"init={tmp_path}/untrained", f"data={tiny_pairs}", "device=cpu", f"output={tmp_path}/run"]
        said = dry_run(Recipe.load(f"{kind}-stage{stage}", here))
        assert f"stage {stage}: {recipe.steps:,} steps of {recipe.batch_size} samples" in said
        assert "vision tower: " in said


@pytest.mark.parametrize("make", [efficientnet, dinov2])
def test_with_a_qformer(tiny_llm: Path, tmp_path: Path, make: Callable[[Path], Any]) -> None:
    torch.manual_seed(1)
    make(tmp_path / "encoder")
    with_qformer(tmp_path / "encoder", 16, tmp_path / "vision")
    model = MiniGPT4.assemble(tmp_path / "vision", tiny_llm, template="pocket", dtype="float32", device="cpu")
    [heat] = patch_attention(model, PICTURES[:1])
    assert heat.shape == (3, 4, 4)
    assert torch.allclose(heat.sum((1, 2)), torch.ones(3))
    answer = model.generate(PICTURES, ["What is it?"] * 2, do_sample=False, max_new_tokens=6)
    model.save_pretrained(tmp_path / "alignment")
    model.export(tmp_path / "export")
    for form in ("alignment", "export"):
        again = MiniGPT4.from_pretrained(tmp_path / form, dtype="float32", device="cpu")
        assert again.generate(PICTURES, ["What is it?"] * 2, do_sample=False, max_new_tokens=6) == answer
        assert len(plan(tmp_path / form).parts) == 4
    half = MiniGPT4.from_pretrained(tmp_path / "alignment", dtype="bfloat16", device="cpu")
    assert half.encode_images(PICTURES).dtype is torch.bfloat16


def test_what_is_no_encoder_of_images(tiny_llm: Path, tiny_vision: Path, tmp_path: Path) -> None:
    def refused(vision: Path, reason: str, **variant: Any) -> None:
        with pytest.raises(UserError, match=reason) as caught:
            MiniGPT4.assemble(vision=vision, llm=tiny_llm, template="pocket", device="cpu", **variant)
        assert "\n" not in str(caught.value)
        assert str(vision) in str(caught.value) or "without a Q-Former" in str(caught.value)

    refused(tiny_llm, "is no vision encoder .model_type 'llama'")
    AutoModel.from_config(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])).save_pretrained(tmp_path / "r")
    SiglipImageProcessorPil().save_pretrained(tmp_path / "r")
    refused(tmp_path / "r", "cannot be read .*hidden_size|makes no row of tokens")
    clip(tmp_path / "clip")
    refused(
        tmp_path / "clip", "3 patches go into each image token, .* 32 px has 16, .* groups of 1, 2, 4, 8, 16", group=3
    )
    settings = json.loads((tmp_path / "clip" / "preprocessor_config.json").read_text())
    for wrong, reason in (
        ({"do_center_crop": False}, "makes no squares of one size"),
        ({"size": {"longest_edge": 32}}, "makes no squares of one size"),
        ({"crop_size": {"height": 24, "width": 32}}, "makes no squares of one size"),
        ({"crop_size": {"height": 24, "width": 24}}, r"cannot be read .*24\*24"),
    ):
        (tmp_path / "clip" / "preprocessor_config.json").write_text(json.dumps(settings | wrong))
        refused(tmp_path / "clip", reason)
    (tmp_path / "clip" / "preprocessor_config.json").unlink()
    refused(tmp_path / "clip", "holds no preprocessor_config.json")
    siglip(tmp_path / "siglip")
    tensors = load_file(tmp_path / "siglip" / "model.safetensors")
    save_file(dict(list(tensors.items())[1:]), tmp_path / "siglip" / "model.safetensors", metadata={"format": "pt"})
    refused(tmp_path / "siglip", "is missing")
    with pytest.raises(UserError, match="give the vision side as vision_qformer, or an encoder alone as vision"):
        MiniGPT4.assemble(tiny_vision, tiny_llm, vision=tiny_vision)
