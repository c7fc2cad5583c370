import json
import shutil

import pytest
import torch
from torch import nn

from embedtrain.errors import CheckpointError
from embedtrain.training import checkpoint as module
from embedtrain.training.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from embedtrain.training.optim import adamw, named_trainable, parameter_groups


def setup_model(seed=0, width=8):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(width, width), nn.Linear(width, width))
    named = named_trainable({"encoder": model, "loss": nn.Module()})
    groups = parameter_groups(named, learning_rate=0.01, weight_decay=0.1)
    return model, named, adamw(groups, betas=(0.9, 0.999), eps=1e-8)


def update(model, optimizer, seed):
    optimizer.zero_grad()
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))
    model(x).square().sum().backward()
    optimizer.step()


def save(folder, named, optimizer, step, keep=9):
    return save_checkpoint(folder, named=named, optimizer=optimizer, state={"step": step}, keep=keep)


def test_weights_and_moments_come_back_to_the_bit(tmp_path):
    model, named, optimizer = setup_model()
    for i in range(3):
        update(model, optimizer, i)
    save(tmp_path, named, optimizer, 3)
    update(model, optimizer, 3)

    other, other_named, other_optimizer = setup_model(seed=1)
    found = find_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 3
    load_checkpoint(found, named=other_named, optimizer=other_optimizer)
    update(other, other_optimizer, 3)
    for (_, a), (_, b) in zip(named, other_named, strict=True):
        assert torch.equal(a, b)


def test_only_the_newest_are_kept(tmp_path):
    _, named, optimizer = setup_model()
    for step in (1, 2, 3, 4):
        save(tmp_path, named, optimizer, step, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000003", "step_00000004"]


def test_no_file_is_a_pickle(tmp_path):
    model, named, optimizer = setup_model()
    update(model, optimizer, 0)
    path = save(tmp_path, named, optimizer, 1)
    assert {p.suffix for p in path.iterdir()} == {".safetensors", ".json"}


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_a_checkpoint_cut_short_is_named_and_the_one_before_is_used(tmp_path, name, caplog):
    _, named, optimizer = setup_model()
    save(tmp_path, named, optimizer, 1)
    newest = save(tmp_path, named, optimizer, 2)
    content = (newest / name).read_bytes()
    (newest / name).write_bytes(content[: len(content) // 2])
    with caplog.at_level("WARNING", logger="embedtrain"):
        found = find_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 1
    assert "step_00000002 is damaged" in caplog.text


def test_a_flipped_byte_is_noticed(tmp_path):
    _, named, optimizer = setup_model()
    path = save(tmp_path, named, optimizer, 1) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"no checkpoint is whole .*model\.safetensors is not as it was written"):
        find_checkpoint(tmp_path)


def test_a_full_disk_says_so_and_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    _, named, optimizer = setup_model()
    save(tmp_path, named, optimizer, 1)

    def full(file, headers, tensors):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_tensors", full)
    with pytest.raises(
        CheckpointError,
        match=r"step_00000002 could not be written: the disk is full: .* needed, .* free.*step_00000001",
    ):
        save(tmp_path, named, optimizer, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]
    assert find_checkpoint(tmp_path).step == 1


def test_a_leftover_of_a_crash_is_not_a_checkpoint(tmp_path):
    _, named, optimizer = setup_model()
    path = save(tmp_path, named, optimizer, 1)
    shutil.copytree(path, tmp_path / "step_00000002.partial")
    assert find_checkpoint(tmp_path).step == 1
    save(tmp_path, named, optimizer, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000001", "step_00000002"]


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    _, named, optimizer = setup_model()
    save(tmp_path, named, optimizer, 1)
    _, wider, wider_optimizer = setup_model(width=16)
    with pytest.raises(CheckpointError, match=r"encoder\.0\.weight: \(8, 8\) there, \(16, 16\) here"):
        load_checkpoint(find_checkpoint(tmp_path), named=wider, optimizer=wider_optimizer)


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    assert find_checkpoint(tmp_path / "missing") is None


def test_the_manifest_lists_sizes(tmp_path):
    _, named, optimizer = setup_model()
    path = save(tmp_path, named, optimizer, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["model.safetensors"]["bytes"] == (path / "model.safetensors").stat().st_size
