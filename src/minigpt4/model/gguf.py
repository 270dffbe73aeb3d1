"""An LLM in a GGUF file, the format of llama.cpp: its configuration, tokenizer and tensors, read by transformers.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader, dequantize
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from minigpt4.model import sources
from minigpt4.model.sources import Checkpoint


class GGUFCheckpoint(Checkpoint):
    """The tensors of a GGUF file by transformers' names, unpacked to float32 when read. Raises UserError if broken."""

    def __init__(self, path: Path) -> None:
        self.source, self.prefix, self.path = path, "", path
        try:
            reader = GGUFReader(path, "c")  # mapped so that torch takes it for writable
            self._architecture = reader.fields["general.architecture"].contents()
            self._stored = {tensor.name: tensor for tensor in reader.tensors}
        except Exception as error:  # the reader has no exceptions of its own
            raise sources.broken_gguf(path, error) from None

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        """The names of stored tensors by the names in transformers; experts' gates and ups are one tensor there."""
        try:
            config = sources.load(AutoConfig, self.source)
            with torch.device("meta"):
                skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
            self._processor = TENSOR_PROCESSORS.get(self._architecture, TensorProcessor)(config.to_dict())
            self._mapping = get_gguf_hf_weights_map(skeleton, self._processor)
        except Exception as error:
            raise sources.broken_gguf(self.path, error) from None
        names: dict[str, list[str]] = {}
        for stored in self._stored:
            known = self._mapping.get(stored) or self._mapping.get(stored.removesuffix(".weight"))
            if known:
                names.setdefault(known, []).append(stored)
        return names

    def __getitem__(self, name: str) -> Tensor:
        made: dict[str, Any] = {}  # where processors put what they join
        for stored in self._names[name]:
            tensor = self._stored[stored]
            try:
                values = dequantize(tensor.data, tensor.tensor_type)
            except Exception as error:
                raise sources.broken_gguf(self.path, error) from None
            result = self._processor.process(
                weights=values, name=stored, tensor_key_mapping=self._mapping, parsed_parameters={"tensors": made}
            )
            if result.name is not None:
                made[name] = torch.from_numpy(result.weights.copy())
        return made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def stored(self) -> dict[str, Tensor]:
        """The tensors as they lie in the file, by GGUF's names: blocks are rows of bytes."""
        return {name: torch.from_numpy(tensor.data) for name, tensor in self._stored.items()}

    def file_sizes(self) -> list[int]:
        return [self.path.stat().st_size]


def open_tensors(source: str | Path, prefix: str = "") -> Checkpoint:
    """The tensors of a part, whatever files they are in; with a `prefix`, those whose names start with it."""
    if sources.is_gguf(source):
        return GGUFCheckpoint(Path(source))
    return Checkpoint(source, prefix)
