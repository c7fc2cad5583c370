"""Whose vectors a store holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import xxhash

from embedtrain.errors import ConfigError, DataError
from embedtrain.store.shards import put

VERSION = 2  # 1 had keys and vectors in two .npy files
Numbers = Literal["float16", "float32"]
NAME = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What a store's vectors are.

    identity   all that the vectors depend on, besides the texts and what their keys say. Names to JSON values
    dim        E
    numbers    of the vectors on disk
    """

    identity: Mapping[str, Any]
    dim: int
    numbers: Numbers
    version: int = VERSION

    @property
    def digest(self) -> str:
        """16 hex digits: equal manifests have equal ones, in whatever order their names stand."""
        return xxhash.xxh3_64_hexdigest(json.dumps(_flat(asdict(self)), sort_keys=True).encode())

    def refuse_other(self, other: Manifest, store: Path) -> None:
        """Raises DataError naming what differs, where `other` is what the model of now would write."""
        mine, theirs = _flat(asdict(self)), _flat(asdict(other))
        different = [
            f"{key.removeprefix('identity.')} {mine.get(key)!r} / {theirs.get(key)!r}"
            for key in mine | theirs
            if mine.get(key) != theirs.get(key)
        ]
        if different:
            raise DataError(
                f"{store}: the vectors in this store are not those of this model (store / model): {'; '.join(different)}. "
                "Name the model that filled the store, or another folder for the store."
            )


def read_manifest(store: Path) -> Manifest:
    """Raises ConfigError where there is no store, DataError where its manifest cannot be read."""
    path = store / NAME
    if not path.is_file():
        raise ConfigError(f"{store.absolute()} is no store of vectors yet (it has no {NAME}).")
    try:
        manifest = Manifest(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: not a manifest ({error}). Delete the store and fill it again.") from error
    if manifest.version != VERSION:
        raise DataError(
            f"{path}: a store of version {manifest.version}; this release reads {VERSION}. Delete the store and fill it again."
        )
    return manifest


def start_store(store: Path, manifest: Manifest) -> None:
    """Makes the store, or takes up one with the same manifest.

    Raises DataError for a store of another model, and where none can be.
    """
    try:
        store.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{store}: no folder can be made here ({error}). Name another folder for the store.") from error
    if (store / NAME).is_file():
        read_manifest(store).refuse_other(manifest, store)
    else:
        text = json.dumps(asdict(manifest), indent=2)
        put(store / NAME, lambda file: file.write(text.encode()))


def store_folder(root: Path, manifest: Manifest) -> Path:
    """The store of this model below `root`; `root` itself where that is a store already. Makes nothing."""
    return root if (root / NAME).is_file() else root / manifest.digest


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """{"prompts": {"query": "q: "}} -> {"prompts.query": "q: "}, with lists for tuples, as JSON has them."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{above}{name}.")
        else:
            flat[f"{above}{name}"] = list(value) if isinstance(value, tuple) else value
    return flat
