"""The gguf package made quicker for transformers, which reads a file's vocabulary again and again."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import gguf
import numpy as np


class QuickReader(gguf.GGUFReader):
    """gguf's reader, which makes ten views of each word: here arrays have parts for their elements alone."""

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[Any]]:
        if raw_type != gguf.GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        kind = self._get(orig_offs, np.uint32)
        number = self.gguf_scalar_to_np.get(kind[0])
        if number is None and kind[0] != gguf.GGUFValueType.STRING:
            return super()._get_field_parts(orig_offs, raw_type)
        count, end = self._get(orig_offs + 4, np.uint64), orig_offs + 12
        parts: list[Any] = []
        if number is not None:
            values = self._get(end, number, count[0]).view(np.ndarray)
            end, parts = end + values.nbytes, list(values.reshape(-1, 1))
        else:
            content: Any = self.data.view(np.ndarray)
            length = struct.Struct(f"{count.dtype.str[0]}Q")
            for _ in range(int(count[0])):
                (size,) = length.unpack_from(content, end)
                parts.append(content[end + 8 : end + 8 + size])
                end += 8 + size
        if len(parts) < count[0] or end > len(self.data):
            raise ValueError("an array ends after the file")
        types = [gguf.GGUFValueType.ARRAY, *([gguf.GGUFValueType(kind[0])] if parts else [])]
        return end - orig_offs, [kind, count, *parts], list(range(2, 2 + len(parts))), types


@contextmanager
def quick_gguf() -> Iterator[None]:
    """Has transformers, which looks them up in gguf, find `QuickReader`, and make one map of names instead of 400."""
    found, quick = vars(gguf), {"GGUFReader": QuickReader, "get_tensor_name_map": cache(gguf.get_tensor_name_map)}
    former = {name: found[name] for name in quick}
    found.update(quick)
    try:
        yield
    finally:
        found.update(former)
