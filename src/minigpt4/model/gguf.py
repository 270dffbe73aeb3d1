"""An LLM in a GGUF file, the format of llama.cpp: its configuration, tokenizer and tensors, read by transformers.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import dequantize
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from minigpt4.model import four_bits, sources
from minigpt4.model.quantization import layers_in, scale_name
from minigpt4.model.quick_gguf import QuickReader, quick_gguf
from minigpt4.model.sources import Checkpoint


class GGUFCheckpoint(Checkpoint):
    """The tensors of a GGUF file by transformers' names, unpacked to float32 when read. Raises UserError if broken."""

    def __init__(self, path: Path) -> None:
        self.source, self.prefix, self.path = path, "", path
        with sources.readable(path, sources.BROKEN_GGUF):
            reader = QuickReader(path, "c")  # mapped so that torch takes it for writable
            self._architecture = reader.fields["general.architecture"].contents()
            self._stored = {tensor.name: tensor for tensor in reader.tensors}

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        """The names of stored tensors by the names in transformers; experts' gates and ups are one tensor there."""
        with sources.readable(self.path, sources.BROKEN_GGUF):
            config = AutoConfig.for_model(**sources.read_json(self.source, "config.json"))
            with torch.device("meta"):
                self._skeleton = skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
            self._processor = TENSOR_PROCESSORS.get(self._architecture, TensorProcessor)(config.to_dict())
            with quick_gguf():
                self._mapping = get_gguf_hf_weights_map(skeleton, self._processor)
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
            with sources.readable(self.path, sources.BROKEN_GGUF):
                values = dequantize(tensor.data.view(np.ndarray), tensor.tensor_type)
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

    def in_four_bits(self) -> dict[str, Tensor]:
        """What `FourBitLinear`s hold of its matrices, by their names in files; all other tensors as they are."""
        found: dict[str, Tensor] = {}
        for name in self:
            if name in self.four_bit_names:
                found |= dict(zip((name, scale_name(name)), self.packed(name), strict=True))
            else:
                found[name] = self[name]
        return found

    @cached_property
    def four_bit_names(self) -> set[str]:
        """The matrices that a model in 4 bits holds so."""
        assert self._names
        return {f"{name}.weight" for name in layers_in("4bit", self._skeleton)}

    def packed(self, name: str) -> tuple[Tensor, Tensor]:
        """One matrix in the form of `four_bits.held`. Blocks of Q4_0, Q4_1 and Q8_0 are kept, all others rounded.

        Of blocks only the scales are rounded, to bfloat16. 8 bits are held as a sum of two matrices in 4 bits.
        """
        tensor = self._stored[self._names[name][0]]
        kind = tensor.tensor_type.name
        order = self._order(tensor.name, tensor.data.shape[0]) if len(self._names[name]) == 1 else None
        if order is None or kind not in ("Q4_0", "Q4_1", "Q8_0"):
            return four_bits.quantize(self[name])
        sizes = {"Q4_0": (2, 16), "Q4_1": (4, 16), "Q8_0": (2, 32)}[kind]
        blocks = torch.from_numpy(tensor.data)[order].unflatten(1, (-1, sum(sizes)))
        numbers, content = blocks.split(sizes, dim=-1)
        scale, *offset = numbers.contiguous().view(torch.float16).float().unbind(-1)
        if kind == "Q8_0":
            codes = torch.cat([((content ^ 128) >> 4).flatten(1), (content & 15).flatten(1)], 1)
            return four_bits.held(codes, torch.cat([16 * scale, scale], 1), torch.cat([0 * scale, 8 * scale], 1))
        codes = torch.cat([content & 15, content >> 4], -1).flatten(1)
        return four_bits.held(codes, scale, offset[0] + 8 * scale if offset else 0 * scale)

    def _order(self, stored: str, rows: int) -> Tensor | None:
        """Where the rows of a stored matrix go in transformers' (Llama's are in another order); None if not rows."""
        numbers = np.arange(rows, dtype=np.float32)[:, None]
        made = self._processor.process(
            weights=numbers, name=stored, tensor_key_mapping=self._mapping, parsed_parameters={"tensors": {}}
        )
        order = torch.from_numpy(made.weights.copy()).flatten().long()
        return order if made.weights.shape == (rows, 1) and torch.equal(order.sort()[0], torch.arange(rows)) else None

    @property
    def stored(self) -> dict[str, Tensor]:
        """The tensors as they lie in the file, by GGUF's names: blocks are rows of bytes."""
        return {name: torch.from_numpy(tensor.data) for name, tensor in self._stored.items()}

    def file_sizes(self) -> list[int]:
        return [self.path.stat().st_size]


def open_tensors(source: str | Path, prefix: str = "") -> Checkpoint:
    """The tensors of a part, whatever files they are in; with a `prefix`, those whose names start with it."""
    return GGUFCheckpoint(Path(source)) if sources.is_gguf(source) else Checkpoint(source, prefix)
