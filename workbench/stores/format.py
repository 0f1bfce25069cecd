"""The bytes on disk: what a safetensors file of a store looks like, and where its tensors lie in it.

Read `layout`. All shapes are known beforehand: the header is written first, and rows are appended to each
tensor as they come (`writing.py`). Data begin at a multiple of 64 bytes, so that a map of the file can be
viewed as any dtype (`reading.py`). The format knows nothing of prompts or sites.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGN = 64


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its dtype, its shape, and the byte of the file where it begins."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.dtype.itemsize * math.prod(self.shape[1:])

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self.dtype.itemsize * math.prod(self.shape)


def layout(tensors: Mapping[str, tuple[torch.dtype, Sequence[int]]]) -> tuple[bytes, dict[str, Entry]]:
    """The header of a file with these tensors, in their order, and where each lies.

    Wider dtypes come first for alignment.
    """
    header: dict[str, Any] = {}
    offset = 0
    ordered = sorted(tensors.items(), key=lambda item: -item[1][0].itemsize)
    for name, (dtype, shape) in ordered:
        size = dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    # Spaces after the JSON are allowed: they move the data to a multiple of 64 bytes.
    text += b" " * (-(8 + len(text)) % _ALIGN)
    begin = 8 + len(text)
    entries = {
        name: Entry(dtype, tuple(shape), begin + header[name]["data_offsets"][0])
        for name, (dtype, shape) in tensors.items()
    }
    return len(text).to_bytes(8, "little") + text, entries


def memory_of(data: Tensor) -> memoryview:
    """The memory of a flat tensor of bytes."""
    return memoryview(data.numpy())  # pyright: ignore[reportArgumentType]
