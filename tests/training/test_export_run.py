import pytest
import torch
from accelerate.state import AcceleratorState

from embedtrain.cli import main
from embedtrain.errors import CheckpointError
from embedtrain.export.load import load_encoder
from embedtrain.run import Run
from embedtrain.training.export_run import export_run
from embedtrain.training.job import run_training
from tests.helpers.runs import tiny_config, tiny_trainer, train_tiny


def test_a_stopped_run_can_be_exported_from_its_newest_checkpoint(tmp_path, capsys):
    config = tiny_config(tmp_path)
    train_tiny(config, stop_after=2)
    assert main(["export", f"run={tmp_path / 'run'}", f"folder={tmp_path / 'out'}"]) == 0
    assert "gives the same embeddings" in capsys.readouterr().out
    trainer = tiny_trainer(config)
    before = trainer.step.encoder.encode(["where is the cat"])
    trainer.resume()
    expected = trainer.step.encoder.encode(["where is the cat"])
    assert not torch.allclose(before, expected)
    torch.testing.assert_close(load_encoder(tmp_path / "out").encode(["where is the cat"]), expected, atol=1e-5, rtol=0)


def test_a_run_that_whitens_exports_a_whitened_model(tmp_path):
    config = tiny_config(tmp_path, "export.whiten_to=6", "evaluation.before=false", "evaluation.after=false")
    run = Run.start(config)
    AcceleratorState._reset_state()
    assert run_training(config, run) == 0
    run._lock.close()
    texts = ["where is the cat", "a red stone", "old birds"]
    vectors = load_encoder(tmp_path / "run").encode(texts)
    assert vectors.shape == (3, 6)
    export_run(tmp_path / "run", tmp_path / "out")
    torch.testing.assert_close(load_encoder(tmp_path / "out").encode(texts), vectors, atol=1e-4, rtol=0)


def test_a_run_without_a_checkpoint_says_when_there_will_be_one(tmp_path):
    tiny_trainer(tiny_config(tmp_path))
    with pytest.raises(CheckpointError, match=r"has no checkpoint yet.*training\.save_every"):
        export_run(tmp_path / "run")


def test_a_folder_that_is_no_run_is_named(tmp_path, capsys):
    assert main(["export", f"run={tmp_path}"]) == 2
    assert main(["report", f"run={tmp_path}"]) == 2
    assert capsys.readouterr().err.count("is no run directory") == 2
