"""The vision side alone: the features and the fingerprint of the whole model, and no LLM."""

from __future__ import annotations

import shutil
import weakref
from pathlib import Path

import pytest
import torch
from PIL import Image

from minigpt4.errors import UserError
from minigpt4.images import to_pixels
from minigpt4.minigpt4 import MiniGPT4
from minigpt4.model import parts
from minigpt4.model.graph import NO_LLM, make_graph, put_tensors
from minigpt4.model.lora import Trained, set_trainable
from minigpt4.model.parts import FAMILIAR_FILE
from minigpt4.model.vision import load_vision_side
from minigpt4.training.features import features_fingerprint

PICTURES = [Image.radial_gradient("L").convert("RGB"), Image.new("RGB", (40, 30), "red")]


def perturb(model: MiniGPT4) -> None:
    """As if what the stages train had been trained."""
    set_trainable(model, 1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.requires_grad_(False)


def test_its_files_are_let_go_as_it_is_copied(tiny_vision: Path) -> None:
    vision = parts.load_vision_qformer(tiny_vision)
    read = [weakref.ref(tensor) for tensor in vision.tensors.values()]
    blip2 = make_graph(vision, NO_LLM, 0)
    put_tensors(blip2, vision, str(tiny_vision), torch.float32)
    assert read
    assert not any(tensor() is not None for tensor in read)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", ["alignment", "export"])
@pytest.mark.parametrize("variant", ["paper", "no Q-Former", "trained Q-Former and LoRA"])
def test_it_is_that_of_the_whole_model(
    tiny_vision: Path, tiny_llm: Path, tmp_path: Path, variant: str, form: str, dtype: str
) -> None:
    """Also when the LLM is not there at all."""
    llm = shutil.copytree(tiny_llm, tmp_path / "llm")
    trained = Trained(qformer=True, lora_rank=2) if "LoRA" in variant else Trained()
    model = MiniGPT4.assemble(
        tiny_vision, llm, template="pocket", device="cpu", qformer=variant != "no Q-Former", trained=trained
    )
    perturb(model)
    (model.save_pretrained if form == "alignment" else model.export)(tmp_path / "model")
    whole = MiniGPT4.from_pretrained(tmp_path / "model", device="cpu", dtype=dtype)
    shutil.rmtree(llm)
    shutil.rmtree(tmp_path / "model" / "llm", ignore_errors=True)
    side = load_vision_side(tmp_path / "model", device="cpu", dtype=dtype)
    assert torch.equal(side.encode_images(PICTURES), whole.encode_images(PICTURES))
    assert features_fingerprint(side) == features_fingerprint(whole)
    assert not any(parameter.requires_grad for parameter in side.parameters())
    assert {name.split(".")[1] for name, _ in side.named_parameters()} <= {"vision_model", "qformer", "query_tokens"}


def test_another_tower_than_it_was_aligned_with(tiny_vision: Path, tiny_llm: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    vision = shutil.copytree(tiny_vision, tmp_path / "vision")
    MiniGPT4.assemble(vision, tiny_llm, template="pocket", device="cpu").save_pretrained(tmp_path / "model")
    tensors = load_file(vision / "model.safetensors")
    tensors["query_tokens"] = tensors["query_tokens"] + 1
    save_file(tensors, vision / "model.safetensors")
    with pytest.raises(UserError, match="was aligned with other weights than those now in"):
        load_vision_side(tmp_path / "model")


def test_it_tells_images_that_are_unlike_those_it_learnt_from(
    tiny_vision: Path, tiny_llm: Path, tmp_path: Path
) -> None:
    """The measure in its directory is used by the vision side alone, the whole model and its export. None: no note."""
    from safetensors.torch import save_file

    def assembled(vision: Path) -> MiniGPT4:
        return MiniGPT4.assemble(vision, tiny_llm, template="pocket", dtype="float32", device="cpu")

    plain = assembled(tiny_vision)
    assert not any(map(plain.is_unfamiliar, PICTURES))
    means = [plain.run_encoder(torch.from_numpy(to_pixels(plain.image_processor, [p]))).mean((0, 1)) for p in PICTURES]
    direction = means[1] - means[0]
    vision = shutil.copytree(tiny_vision, tmp_path / "vision")
    save_file({"direction": direction, "limit": (means[0] + means[1]) @ direction / 2}, vision / FAMILIAR_FILE)
    model = assembled(vision)
    model.save_pretrained(tmp_path / "alignment")
    model.export(tmp_path / "export")
    loaded = [MiniGPT4.from_pretrained(tmp_path / form, device="cpu") for form in ("alignment", "export")]
    for each in (model, *loaded, load_vision_side(tmp_path / "alignment", device="cpu")):
        assert [each.is_unfamiliar(picture) for picture in PICTURES] == [False, True]
    save_file({"direction": torch.ones(3), "limit": torch.tensor(0.0)}, vision / FAMILIAR_FILE)
    with pytest.raises(UserError, match="belongs to another vision encoder"):
        assembled(vision)
