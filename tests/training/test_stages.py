"""A run with stages: each from the weights before, in its own folder, resumed where it was, to the bit."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from embedtrain.assemble import build_encoder
from embedtrain.cli import main
from embedtrain.config.stages import stage_configs
from embedtrain.errors import CheckpointError
from embedtrain.export.load import load_encoder
from embedtrain.run import Run
from embedtrain.training.export_run import export_run
from embedtrain.training.job import run_training
from embedtrain.training.stages import hand_on, plain_weights, stages_of, take_over
from embedtrain.training.trainer import Terminated, Trainer
from embedtrain.types import RaggedTokens
from tests.helpers.models import tiny_model_dir
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import WORDS, tiny_config, tiny_settings

TOKENS = RaggedTokens.from_lists([[101, 2003, 2004, 102], [101, 2300, 102]])
DROPOUT = "backbone.dropout=0.1"


def two_stages(folder, *overrides, name="run"):
    """Settings of `adapt` (masked words of texts, 4 steps) and `contrast` (pairs, 6 steps)."""
    texts = folder / "texts.txt"
    texts.write_text("".join(f"{a} {b} {c} {a}\n" for a, b, c in zip(WORDS, WORDS[3:], WORDS[7:], strict=False)))
    return [
        "objective@stages.adapt.objective=masked_lm",
        "source@stages.adapt.data.sources.texts=texts",
        f"stages.adapt.data.sources.texts.path={texts}",
        "stages.adapt.data.sources.pairs=null",
        "stages.adapt.training.max_steps=4",
        "stages.adapt.training.global_batch_size=6",
        "stages.contrast={}",
        "training.save_every=2",
        "evaluation.before=false",
        "evaluation.after=false",
        "export.num_probes=2",
        DROPOUT,
        *overrides,
    ]


def config_of(folder, *overrides, name="run"):
    return tiny_config(folder, *two_stages(folder, *overrides), name=name)


def train(config):
    torch.set_num_threads(1)
    AcceleratorState._reset_state()
    run = Run.start(config)
    try:
        return run_training(config, run)
    finally:
        if run._lock is not None:
            run._lock.close()


def train_until(config, update, monkeypatch):
    """As a scheduler does it: SIGTERM during that update of the run, counted over its stages."""
    made = 0
    whole = Trainer._update

    def counted(self, micro_batches, step):
        nonlocal made
        made += 1
        if made == update:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(self, micro_batches, step)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", counted)
        with pytest.raises(Terminated, match="saved in"):
            train(config)


def final(folder):
    files = ("stages/adapt/weights.safetensors", "stages/contrast/checkpoints/step_00000006/model.safetensors")
    return [load_file(folder / file) for file in (*files, "model/model.safetensors")]


def same(a, b):
    return all(x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x) for x, y in zip(a, b, strict=True))


def test_a_run_stopped_in_any_stage_ends_with_the_same_weights_to_the_bit(tmp_path, monkeypatch):
    assert train(config_of(tmp_path, name="straight")) == 0
    expected = final(tmp_path / "straight")

    config = config_of(tmp_path, name="stopped")
    train_until(config, 3, monkeypatch)  # in `adapt`
    assert not (tmp_path / "stopped" / "stages" / "contrast" / "checkpoints").exists()
    train_until(config, 3, monkeypatch)  # one more of `adapt`, two of `contrast`
    assert (tmp_path / "stopped" / "stages" / "contrast" / "checkpoints" / "step_00000002").exists()
    adapted = (tmp_path / "stopped" / "stages" / "adapt" / "weights.safetensors").stat().st_mtime_ns
    assert train(config) == 0
    assert (tmp_path / "stopped" / "stages" / "adapt" / "weights.safetensors").stat().st_mtime_ns == adapted
    assert same(final(tmp_path / "stopped"), expected)
    for stage, steps in (("adapt", 4), ("contrast", 6)):
        lines = (tmp_path / "stopped" / "stages" / stage / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, steps + 1))


def test_the_second_stage_starts_where_the_first_ended_and_the_export_reloads(tmp_path):
    assert train(config_of(tmp_path, "stages.contrast.optim.learning_rate=1e-12")) == 0
    run = tmp_path / "run"
    adapted = load_file(run / "stages" / "adapt" / "weights.safetensors")
    contrasted = load_file(run / "stages" / "contrast" / "checkpoints" / "step_00000006" / "model.safetensors")
    start = build_encoder(tiny_config(tmp_path, name="other")).backbone.hf_model.state_dict()
    learned = 0.0
    for name, tensor in adapted.items():
        torch.testing.assert_close(contrasted[f"encoder.{name.replace('backbone.', 'backbone.hf_model.', 1)}"], tensor)
        learned += float((tensor - start[name.removeprefix("backbone.")]).abs().sum())
    assert learned > 0
    exported = load_file(run / "model" / "model.safetensors")
    assert not any("objective" in name or "cls.predictions" in name for name in exported)
    said = (run / "log.txt").read_text()
    assert "MaskedLanguageModel: 31,642 parameters of its own train, are in checkpoints and are not exported" in said
    card = (run / "model" / "README.md").read_text()
    assert "MaskedLanguageModel(share=0.15" in card
    assert ", then InfoNCE(" in card
    assert "<svg" in (run / "report.html").read_text()  # curves of the last stage
    reloaded = load_encoder(str(run / "model"))
    states = reloaded.backbone.eval()(TOKENS)
    body = build_encoder(tiny_config(tmp_path, name="third"))
    take_over(body, run / "stages" / "adapt" / "weights.safetensors")
    torch.testing.assert_close(body.backbone.eval()(TOKENS), states, atol=1e-5, rtol=1e-5)


def test_a_stopped_run_exports_the_stage_it_was_in(tmp_path, monkeypatch):
    config = config_of(tmp_path)
    train_until(config, 3, monkeypatch)
    report = export_run(tmp_path / "run", tmp_path / "early")
    checkpoint = load_file(
        tmp_path / "run" / "stages" / "adapt" / "checkpoints" / "step_00000003" / "model.safetensors"
    )
    exported = load_file(report.path / "model.safetensors")
    assert all(torch.equal(t, checkpoint[f"encoder.backbone.hf_model.{name}"]) for name, t in exported.items())


@pytest.mark.slow
def test_two_ranks_run_the_stages_together(tmp_path):
    plain = ("backbone.dropout=0", "optim.eps=1e-3")  # a gradient of zero is rounding, which a small eps would blow up
    run_ranks(train, 2, config_of(tmp_path, *plain, name="together"))
    train(config_of(tmp_path, *plain, name="alone"))
    for a, b in zip(final(tmp_path / "together"), final(tmp_path / "alone"), strict=True):
        for key in a:
            torch.testing.assert_close(a[key], b[key], atol=2e-5, rtol=1e-4)


def test_check_shows_a_plan_for_every_stage(tmp_path, capsys):
    assert main(["check", *tiny_settings(tmp_path, *two_stages(tmp_path))]) == 0
    said = capsys.readouterr().out
    adapt, contrast = said.split("stage              ")[1:]
    assert adapt.startswith("adapt\n")
    assert contrast.startswith("contrast\n")
    assert "negatives" not in adapt
    assert "steps              4" in adapt
    assert "1 hard + 14 in-batch" in contrast
    assert main(["check", "output=json", *tiny_settings(tmp_path, *two_stages(tmp_path))]) == 0
    assert set(json.loads(capsys.readouterr().out)["plans"]) == {"adapt", "contrast"}


# ------------------------------------------------------------------------------------------------- handing weights on


def encoder_of(folder, *overrides):
    return build_encoder(tiny_config(folder, *overrides, name="unused")).eval()


def stages_in(folder, *overrides):
    config = config_of(folder, *overrides, name="hand")
    run = Run.start(config)
    run._lock.close()
    return stages_of(run)


LORA = "backbone.lora={r: 2}"


@pytest.mark.parametrize(("before", "after"), [((), ()), ((LORA,), ()), ((), (LORA,)), ((LORA,), (LORA,))])
def test_the_next_stage_begins_with_the_same_states_with_adapters_and_without(tmp_path, before, after):
    first = encoder_of(tmp_path, *before)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # as if trained
    expected = first.backbone(TOKENS)
    stage = stages_in(tmp_path)[0]
    hand_on(first, stage)
    second = encoder_of(tmp_path, *after)
    assert not torch.allclose(second.backbone(TOKENS), expected, atol=1e-3)
    take_over(second, stage.weights)
    torch.testing.assert_close(second.backbone(TOKENS), expected, atol=1e-4, rtol=1e-4)
    assert set(plain_weights(first)) == set(plain_weights(second))


def test_a_head_that_both_stages_have_goes_on_and_another_starts_new_and_is_named(tmp_path):
    first = encoder_of(tmp_path, "encoder.projection_dim=8")
    stage = stages_in(tmp_path)[0]
    said = stage.whole.dir / "log.txt"
    hand_on(first, stage)
    second = encoder_of(tmp_path, "encoder.projection_dim=8")
    take_over(second, stage.weights)
    assert torch.equal(second.projection.weight, first.projection.weight)
    assert "other heads" not in said.read_text()
    take_over(encoder_of(tmp_path, "encoder.projection_dim=4"), stage.weights)
    assert "New in this one: projection.bias, projection.weight" in said.read_text()
    take_over(encoder_of(tmp_path), stage.weights)
    assert "left behind: projection.bias, projection.weight" in said.read_text()


def test_weights_of_another_backbone_and_a_broken_file_are_refused(tmp_path):
    stage = stages_in(tmp_path)[0]
    hand_on(encoder_of(tmp_path), stage)
    other = tiny_model_dir("bert", tmp_path / "other", hidden_size=16, num_attention_heads=2)
    with pytest.raises(CheckpointError, match="its backbone is not the one of this stage"):
        take_over(encoder_of(tmp_path, f"backbone.name={other}"), stage.weights)
    stage.weights.write_bytes(stage.weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"weights\.safetensors is broken.*Remove it"):
        take_over(encoder_of(tmp_path), stage.weights)


def test_results_around_all_stages_are_the_runs_own(tmp_path):
    first, last = stages_in(tmp_path)
    run = first.whole.dir
    assert [s.results(when) for s in (first, last) for when in ("before", "after")] == [
        run / "evaluation" / "before.json",
        run / "stages" / "adapt" / "evaluation" / "after.json",
        run / "stages" / "contrast" / "evaluation" / "before.json",
        run / "evaluation" / "after.json",
    ]
    assert list(stage_configs(first.whole.config)) == ["adapt", "contrast"]
