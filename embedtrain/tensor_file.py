"""Safetensors files, read and written one tensor at a time. The library's own writer wants all tensors at once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from embedtrain.errors import CheckpointError

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

Header = tuple[tuple[int, ...], torch.dtype]  # shape and type


class TensorFile(Mapping[str, Tensor]):
    """A file that is opened once; each tensor is read when it is asked for. Raises CheckpointError for one that is broken."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error
        self._names = dict.fromkeys(self._file.keys())
        self.path = path

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._file.get_tensor(name)

    def __contains__(self, name: object) -> bool:  # the inherited one reads the tensor
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def header(self, name: str) -> Header:
        """(shape, dtype), without reading the tensor."""
        part = self._file.get_slice(name)
        if part.get_dtype() not in _DTYPES:
            raise CheckpointError(f"{self.path}: {name} is of type {part.get_dtype()}, which is not read here.")
        return tuple(part.get_shape()), _DTYPES[part.get_dtype()]


def write_tensors(file: BinaryIO, headers: Mapping[str, Header], tensors: Iterable[Tensor]) -> None:
    """A safetensors file: length of the header (8 bytes), header, and the tensors' bytes in its order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (shape, dtype) in headers.items():
        start, end = end, end + torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for (shape, dtype), tensor in zip(headers.values(), tensors, strict=True):
        assert (tuple(tensor.shape), tensor.dtype) == (shape, dtype)
        file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
