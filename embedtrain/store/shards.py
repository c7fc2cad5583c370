"""One file of vectors under sorted keys: safetensors, written whole or not at all, read through a memory map.

Layout (https://github.com/huggingface/safetensors): 8 bytes, the length of the header, little-endian; the header, JSON;
the tensors. The header says how long the file is, so one that was cut short is known before anything is read from it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import numpy as np
import xxhash

from embedtrain.data.draws import Ints
from embedtrain.errors import DataError

PATTERN = "shard-*.safetensors"
_UNFINISHED = ".unfinished"
# No file takes that long to write, so one that is still unfinished then was left by a kill.
_SECONDS_TO_WRITE = 3600
_METADATA = "__metadata__"
_DTYPES: Mapping[str, Any] = {"I64": np.dtype("<i8"), "F16": np.dtype("<f2"), "F32": np.dtype("<f4")}


@dataclass(frozen=True, slots=True)
class Shard:
    """n texts. The arrays are maps of the file."""

    keys: Ints  # [n] ascending
    vectors: np.ndarray  # [n, E]
    zeros: Ints  # places of the vectors that are 0


def write_shard(folder: Path, keys: Ints, vectors: np.ndarray) -> str:
    """The name of the new file. `keys` [n] int64 in any order, `vectors` [n, E] float16 or float32."""
    order = np.argsort(keys, kind="stable")
    keys, vectors = keys[order], vectors[order]
    name = f"shard-{xxhash.xxh3_64_hexdigest(keys.tobytes())}.safetensors"
    put(folder / name, lambda file: _write(file, {"keys": keys, "vectors": vectors}))
    return name


def _write(file: BinaryIO, tensors: Mapping[str, np.ndarray]) -> None:
    """By hand: the library copies every tensor first, and makes files that only their owner may read."""
    zeros = np.flatnonzero(~tensors["vectors"].any(axis=1)).tolist()
    header: dict[str, Any] = {_METADATA: {"zeros": json.dumps(zeros)}}
    begin = 0
    for name, tensor in tensors.items():
        dtype = next(known for known, dtype in _DTYPES.items() if dtype == tensor.dtype)
        header[name] = {"dtype": dtype, "shape": tensor.shape, "data_offsets": [begin, begin + tensor.nbytes]}
        begin += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # keys begin at a multiple of their size
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        file.write(np.ascontiguousarray(tensor).data)


def open_shard(path: Path, dim: int, numbers: str, remedy: str) -> Shard:
    """Raises DataError, ending in `remedy`, for a file that is cut short or does not hold vectors [n, dim] of `numbers`."""
    try:
        data = np.memmap(path, dtype=np.uint8, mode="r")
    except FileNotFoundError as error:
        raise DataError(
            f"{path} is not there. A store lies on a disk that all ranks share; name another folder."
        ) from error
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise DataError(f"{path}: cannot be read ({error}). {remedy}") from error
    try:
        header, first = _header(data)
        expected = first + max(entry["data_offsets"][1] for name, entry in header.items() if name != _METADATA)
        if data.size != expected:
            raise DataError(f"{path}: cut short: {data.size:,} bytes, and its header says {expected:,}. {remedy}")
        keys, vectors = (_array(data[first:], header[name]) for name in ("keys", "vectors"))
        zeros = json.loads(header.get(_METADATA, {}).get("zeros", "[]"))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cut short, or not a shard ({error}). {remedy}") from error
    if keys.dtype != np.int64 or vectors.shape != (keys.size, dim) or vectors.dtype != numbers:
        raise DataError(
            f"{path}: expected ({keys.size}, {dim}) of {numbers}, got {vectors.shape} of {vectors.dtype}. {remedy}"
        )
    return Shard(keys, vectors, np.array(zeros, dtype=np.int64))


def _header(data: np.ndarray) -> tuple[dict[str, Any], int]:
    """The header, and where the tensors begin."""
    length = int.from_bytes(data[:8].tobytes(), "little")
    if data.size < 8 + length:
        raise ValueError(f"{data.size:,} bytes, less than its header")
    header = json.loads(data[8 : 8 + length].tobytes())
    if not isinstance(header, dict):
        raise ValueError(f"its header is {type(header).__name__}")
    return header, 8 + length


def _array(tensors: np.ndarray, entry: Mapping[str, Any]) -> np.ndarray:
    begin, end = entry["data_offsets"]
    return tensors[begin:end].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])


def put(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """A file that is there in full or not at all: it is written under another name, which then becomes `path`.

    Raises DataError where it cannot be written, for want of space say.
    """
    unfinished = path.with_name(f"{path.name}.{uuid4().hex[:8]}{_UNFINISHED}")
    try:
        with unfinished.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise DataError(
            f"{path}: cannot be written ({error}). Make room, or name another folder; what was written before is whole, and "
            "the same command goes on from there."
        ) from error


def remove_unfinished(folder: Path) -> None:
    """Removes what kills have left, and nothing that another process may be writing now."""
    for path in folder.glob(f"*{_UNFINISHED}"):
        try:
            if time.time() - path.stat().st_mtime > _SECONDS_TO_WRITE:
                path.unlink()
        except FileNotFoundError:
            pass  # finished, or removed by another rank, in this moment
