"""Folders read and written tensor by tensor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from embedtrain.errors import CheckpointError
from embedtrain.export.load import load_encoder
from embedtrain.merging.methods.dare import DareTies
from embedtrain.merging.methods.linear import Linear
from embedtrain.merging.methods.slerp import Slerp
from embedtrain.merging.methods.ties import Ties
from embedtrain.merging.states import merge_states
from embedtrain.merging.weights import FolderWeights, write_folder
from embedtrain.tensor_file import TensorFile
from tests.helpers.models import minilm_dir, tiny_model_dir
from tests.helpers.runs import write_pairs
from tests.merging.folders import write_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("models")
    return [write_model(root, f"m{seed}", "encoder.projection_dim=8", seed=seed) for seed in range(4)]


@pytest.mark.parametrize("method", [Slerp(), Ties(density=0.3), DareTies(seed=3)], ids=lambda m: type(m).__name__)
def test_a_merge_on_disk_is_the_merge_in_memory_to_the_bit(method, folders: list[Path], tmp_path: Path) -> None:
    lazy = [FolderWeights(folder) for folder in folders]
    written = FolderWeights(write_folder(tmp_path / "out", lazy[1], merge_states(method, lazy[1:], lazy[0])))
    loaded = [
        load_file(folder / "model.safetensors")
        | {f"2_Dense/{name}": tensor for name, tensor in load_file(folder / "2_Dense/model.safetensors").items()}
        for folder in folders
    ]
    in_memory = dict(merge_states(method, loaded[1:], loaded[0]))
    assert set(written) == set(in_memory)
    for name, tensor in in_memory.items():
        assert torch.equal(written[name], tensor), name


def test_the_written_folder_is_read_by_transformers_and_by_us(folders: list[Path], tmp_path: Path) -> None:
    weights = FolderWeights(folders[0])
    out = write_folder(tmp_path / "out", weights, ((name, weights[name]) for name in weights))
    for name, tensor in load_file(folders[0] / "model.safetensors").items():
        assert torch.equal(load_file(out / "model.safetensors")[name], tensor)
    texts = ["where is the cat", "a stone"]
    assert torch.equal(load_encoder(out).encode(texts), load_encoder(folders[0]).encode(texts))


@pytest.mark.parametrize(
    "overrides",
    [
        ["pooling=multi_vector", "pooling.dim=8"],
        ["pooling=latent_attention", "pooling.num_latents=4"],
        ["pooling=mean", "+pooling@encoder.views.sparse=bge_m3_sparse"],
        ["pooling=multi_layer"],
        ["pooling=splade"],
    ],
    ids=lambda overrides: overrides[-1],
)
def test_heads_are_merged_with_their_backbone(overrides: list[str], tmp_path: Path) -> None:
    """The mean on disk against the mean of the parameters of two live encoders."""
    if overrides == ["pooling=splade"]:  # needs a language model's head
        Path(tiny_model_dir("bert", tmp_path)).rename(tmp_path / "model")
        write_pairs(tmp_path / "pairs.jsonl")
        config = AutoConfig.from_pretrained(tmp_path / "model")
        AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path / "model")
    folders = [FolderWeights(write_model(tmp_path, f"m{seed}", *overrides, seed=seed)) for seed in (1, 2)]
    out = load_encoder(write_folder(tmp_path / "out", folders[0], merge_states(Linear(), folders)))
    first, second = (load_encoder(weights.folder) for weights in folders)
    with torch.no_grad():
        for parameter, other in zip(first.parameters(), second.parameters(), strict=True):
            parameter.copy_((parameter + other) / 2)
    texts = ["where is the cat", "a stone"]
    expected, found = (encoder.encode_embeddings(texts, views=True) for encoder in (first, out))
    for one, two in zip(expected.tensors(), found.tensors(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_scalars_whole_numbers_and_many_files_are_read_and_written(tmp_path: Path) -> None:
    folder = Path(tiny_model_dir("bert", tmp_path))
    tensors = load_file(folder / "model.safetensors") | {"steps": torch.tensor(7), "scale": torch.tensor(1.5).half()}
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for part, own in parts.items():
        save_file({name: tensors[name] for name in own}, folder / part)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {name: part for part, own in parts.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    weights = FolderWeights(folder)
    merged = merge_states(Slerp(), [weights, weights])
    found = load_file(write_folder(tmp_path / "out", weights, merged) / "model.safetensors")
    assert set(found) == {name for name in tensors if not name.startswith("pooler")}
    assert found["steps"].item() == 7
    assert (found["scale"].item(), found["scale"].dtype) == (1.5, torch.float32)


def test_names_are_those_of_the_model_without_a_head(tmp_path: Path) -> None:
    """A language model on the hub says `bert.` before each name and has a head and a pooler."""
    folder = Path(tiny_model_dir("bert", tmp_path))
    plain = FolderWeights(folder)
    tensors = {f"bert.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    tensors |= {"bert.embeddings.position_ids": torch.arange(4), "cls.predictions.bias": torch.zeros(3)}
    save_file(tensors, folder / "model.safetensors")
    found = FolderWeights(folder)
    assert set(found) == set(plain) | {"cls.predictions.bias"}
    assert found.raw("embeddings.word_embeddings.weight") == "bert.embeddings.word_embeddings.weight"
    assert not [name for name in plain if "pooler" in name or "position_ids" in name]


def test_a_head_that_is_tied_to_the_embedding_is_not_a_tensor_of_its_own(tmp_path: Path) -> None:
    for tied, expected in ((True, False), (False, True)):
        folder = Path(tiny_model_dir("qwen3", tmp_path / str(tied), tie_word_embeddings=tied))
        tensors = load_file(folder / "model.safetensors")
        tensors["lm_head.weight"] = tensors["embed_tokens.weight"].clone()
        save_file(tensors, folder / "model.safetensors")
        assert ("lm_head.weight" in FolderWeights(folder)) is expected


def test_a_mixture_of_experts_goes_through_under_the_names_of_its_files(tmp_path: Path) -> None:
    folder = Path(tiny_model_dir("qwen2_moe", tmp_path))
    weights = FolderWeights(folder)
    out = write_folder(tmp_path / "out", weights, merge_states(Slerp(), [weights, weights]))
    expected, found = (AutoModel.from_pretrained(path).state_dict() for path in (folder, out))
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def test_a_real_model_is_read() -> None:
    weights = FolderWeights(Path(minilm_dir()))
    assert weights.header("embeddings.word_embeddings.weight") == ((30522, 384), weights.dtype)


def test_weights_that_are_pickles_or_broken_are_refused(tmp_path: Path) -> None:
    folder = Path(tiny_model_dir("bert", tmp_path))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"no model.safetensors.*are pickles and are not read"):
        FolderWeights(folder)
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read as safetensors"):
        FolderWeights(folder)
    with pytest.raises(CheckpointError, match="holds no transformers model"):
        FolderWeights(tmp_path)


def test_one_tensor_is_opened_at_a_time(folders: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A tensor of each model, and then the next: what bounds the memory of a merge."""
    asked: list[str] = []
    read = TensorFile.__getitem__

    def noting(self: TensorFile, name: str) -> torch.Tensor:
        asked.append(name)
        return read(self, name)

    monkeypatch.setattr(TensorFile, "__getitem__", noting)
    lazy = [FolderWeights(folder) for folder in folders[:2]]
    write_folder(tmp_path / "out", lazy[0], merge_states(Slerp(), lazy))
    assert asked[::2] == asked[1::2]
    assert len(asked) == 2 * len(lazy[0])
