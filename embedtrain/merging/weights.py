"""Weights of model folders, read and written one tensor at a time.

A tensor is named by its place: `encoder.layer.0.output.dense.weight` is the transformer's, whatever prefix its file puts before
it, and `2_Dense/linear.weight` that of another module, by its folder.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from embedtrain.errors import CheckpointError
from embedtrain.export import layout
from embedtrain.export.bridge import LANGUAGE_MODEL
from embedtrain.export.contextual import CONTEXT_LAYERS, FIRST_ENCODER, is_contextual
from embedtrain.export.heads import FOLDER
from embedtrain.tensor_file import Header, TensorFile, write_tensors

# What stands in files and no encoder reads: a pooler, and buffers that older versions saved.
_UNREAD = re.compile(r"pooler\..*|(.*\.)?(position_ids|rotary_emb\.inv_freq)")
# The head of a language model, which is the input embedding again where the config ties the two.
_TIED = re.compile(r"lm_head\.weight|cls\.predictions\.decoder\.(weight|bias)|lm_head\.decoder\.(weight|bias)")
# Files of settings and of the tokenizer.
_SETTINGS = (".json", ".txt", ".model", ".jinja")


class FolderWeights(Mapping[str, Tensor]):
    """All weights of a model folder by name; what no encoder reads is left out. See the module for names.

    folder: of the model. transformer: of its transformers model; None: the same. Raises CheckpointError where there are no
    weights in safetensors.
    """

    def __init__(self, folder: Path, transformer: Path | None = None) -> None:
        self.folder = folder
        self.transformer = transformer or folder
        self._places: dict[str, tuple[TensorFile, str]] = {}
        config = load_config(self.transformer)
        prefix, tied = _prefix(config), getattr(config, "tie_word_embeddings", False)
        for file in _transformer_files(self.transformer):
            for raw in file:
                name = raw.removeprefix(prefix)
                if not _UNREAD.fullmatch(name) and not (tied and _TIED.fullmatch(name)):
                    self._places[name] = (file, raw)
        for path in _module_files(folder, self.transformer):
            file = TensorFile(path)
            self._places |= {f"{path.parent.relative_to(folder).as_posix()}/{raw}": (file, raw) for raw in file}

    def __getitem__(self, name: str) -> Tensor:
        file, raw = self._places[name]
        return file[raw]

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def header(self, name: str) -> Header:
        """(shape, dtype), without reading the tensor."""
        file, raw = self._places[name]
        return file.header(raw)

    def raw(self, name: str) -> str:
        """The name in its own file."""
        return self._places[name][1]

    @property
    def dtype(self) -> torch.dtype:
        """Of the first tensor of real numbers."""
        return next(dtype for _, dtype in map(self.header, self) if dtype.is_floating_point)


def load_config(folder: Path) -> Any:
    """Raises CheckpointError where the folder holds no transformers model."""
    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} holds no transformers model that can be read: {error}") from error


def _prefix(config: Any) -> str:
    """What the files of a model with a head put before the names of the model without: `bert.`, `model.`."""
    kind = MODEL_MAPPING.get(type(config), None)
    known = getattr(kind, "base_model_prefix", "") if isinstance(kind, type) else ""
    return f"{known}." if known else ""


def _transformer_files(folder: Path) -> list[TensorFile]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        parts = sorted(set(layout.read_json(index)["weight_map"].values()))
        return [TensorFile(folder / part) for part in parts]
    if not (folder / "model.safetensors").is_file():
        raise CheckpointError(
            f"{folder}: no model.safetensors. Weights in other formats (pytorch_model.bin) are pickles and are not read."
        )
    return [TensorFile(folder / "model.safetensors")]


def _module_files(folder: Path, transformer: Path) -> list[Path]:
    """Weight files of all modules but the transformer, of views and of poolings that are ours alone."""
    found = [place / "model.safetensors" for place in _places(folder) if place not in (folder, transformer)]
    return [path for path in found if path.is_file()]


def _places(folder: Path) -> list[Path]:
    """The folders that belong to a model: its own, those of its modules and of what embedtrain alone reads, a second model's.

    Vectors of a context are not among them: a merged model has to make them anew.
    """
    modules, ours = folder / "modules.json", folder / FOLDER
    steps = layout.read_json(modules) if modules.is_file() else []
    heads = [ours, *sorted(path for path in ours.rglob("*") if path.is_dir())] if ours.is_dir() else []
    behind = [folder / step["path"] / LANGUAGE_MODEL for step in steps if step["type"] == layout.BRIDGE]
    if is_contextual(folder):
        behind += [folder / FIRST_ENCODER, folder / CONTEXT_LAYERS]
    return list(dict.fromkeys([folder, *(folder / step["path"] for step in steps), *behind, *heads]))


def write_folder(target: Path, like: FolderWeights, tensors: Iterable[tuple[str, Tensor]]) -> Path:
    """A folder with the files of `like` and these weights: its names, shapes and order; fp32 where it has real numbers.

    One tensor is in memory at a time.
    """
    for place in _places(like.folder):
        copied = target / place.relative_to(like.folder)
        copied.mkdir(parents=True, exist_ok=True)
        for path in place.iterdir():
            if path.name.endswith(_SETTINGS) and not path.name.endswith(".safetensors.index.json"):
                shutil.copyfile(path, copied / path.name)
    for place, group in groupby(tensors, key=lambda item: item[0].rpartition("/")[0]):
        own = [name for name in like if name.rpartition("/")[0] == place]
        headers = {like.raw(name): _stored(*like.header(name)) for name in own}
        folder = target / place if place else target / like.transformer.relative_to(like.folder)
        with (folder / "model.safetensors").open("wb") as file:
            write_tensors(file, headers, (tensor for _, tensor in group))
    return target


def _stored(shape: tuple[int, ...], dtype: torch.dtype) -> Header:
    return shape, torch.float32 if dtype.is_floating_point else dtype
