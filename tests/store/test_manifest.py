from __future__ import annotations

import json
from pathlib import Path

import pytest

from embedtrain.errors import ConfigError, DataError
from embedtrain.store.manifest import Manifest, read_manifest, start_store, store_folder
from embedtrain.store.ranks import on_main
from embedtrain.store.reader import VectorStore
from tests.helpers.ranks import run_ranks
from tests.store.folders import IDENTITY, filled, manifest


def test_a_store_of_another_model_is_refused_with_what_differs(tmp_path):
    filled(tmp_path / "s", [1])
    changed = {"weights": "xyz", "prompts": {"query": "other: ", "document": ""}, "new": 1}
    with pytest.raises(
        DataError,
        match=r"weights 'abc' / 'xyz'; prompts\.query 'q: ' / 'other: '; dim 3 / 4; new None / 1\. .*another folder",
    ):
        start_store(tmp_path / "s", manifest(identity=changed, dim=4))


def test_the_same_model_is_taken_up_again(tmp_path):
    one = manifest(identity={"layers": (1, 2), "name": "x"})
    start_store(tmp_path / "s", one)
    start_store(tmp_path / "s", manifest(identity={"name": "x", "layers": [1, 2]}))
    assert read_manifest(tmp_path / "s").digest == one.digest


def test_the_digest_is_of_what_the_manifest_says():
    digest = manifest().digest
    assert len(digest) == 16
    assert int(digest, 16) >= 0
    assert manifest(identity=dict(reversed(IDENTITY.items()))).digest == digest
    others = [
        manifest(dim=4),
        manifest(numbers="float16"),
        manifest(version=1),
        manifest(identity={**IDENTITY, "weights": "abd"}),
        manifest(identity={**IDENTITY, "prompts": {"query": "q:", "document": ""}}),
    ]
    assert len({digest, *(other.digest for other in others)}) == 6


def test_a_root_has_a_folder_for_each_model(tmp_path):
    one, other = manifest(), manifest(dim=4)
    assert store_folder(tmp_path, one) == tmp_path / one.digest
    assert store_folder(tmp_path, other) != store_folder(tmp_path, one)
    assert not list(tmp_path.iterdir())


def test_a_root_that_is_a_store_already_is_that_store(tmp_path):
    start_store(tmp_path, manifest())
    assert store_folder(tmp_path, manifest()) == tmp_path
    with pytest.raises(DataError, match="not those of this model"):
        start_store(store_folder(tmp_path, manifest(dim=4)), manifest(dim=4))


def test_no_store_and_a_broken_manifest_are_told_apart(tmp_path):
    with pytest.raises(ConfigError, match="is no store of vectors yet"):
        VectorStore(tmp_path)
    path = filled(tmp_path / "s", [1])
    (path / "manifest.json").write_text('{"dim": 3', encoding="utf-8")
    with pytest.raises(DataError, match="not a manifest"):
        VectorStore(path)


def test_a_store_of_an_earlier_version_is_refused_for_reading_and_for_filling(tmp_path):
    old = {"identity": IDENTITY, "dim": 3, "numbers": "float32", "version": 1}
    (tmp_path / "manifest.json").write_text(json.dumps(old), encoding="utf-8")
    message = r"manifest\.json: a store of version 1; this release reads 2\. Delete the store and fill it again"
    with pytest.raises(DataError, match=message):
        VectorStore(tmp_path)
    with pytest.raises(DataError, match=message):
        start_store(tmp_path, manifest())


def test_a_place_where_no_store_can_be_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/s: no folder can be made here .*another folder"):
        start_store(tmp_path / "file" / "s", manifest())


def start_on_ranks(folder: str, dim: int) -> str:
    try:
        on_main(lambda: start_store(Path(folder), Manifest(identity=IDENTITY, dim=dim, numbers="float32")))
    except DataError as error:
        return str(error)
    return ""

    return Path(folder)


def test_every_rank_hears_what_the_first_one_refused(tmp_path):
    filled(tmp_path / "s", [1])
    first, second = run_ranks(start_on_ranks, 2, str(tmp_path / "s"), 4)
    assert first == second
    assert "dim 3 / 4" in first
