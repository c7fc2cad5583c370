"""Weights that are shared out among the ranks give the gradients, runs and files that whole ones do."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from embedtrain import sharding
from embedtrain.config.compose import compose_config
from embedtrain.config.validate import validate
from embedtrain.errors import ConfigError, EmbedtrainError
from embedtrain.training import checkpoint
from embedtrain.training.checkpoint import find_checkpoint, load_checkpoint
from tests.helpers.models import tiny_model_dir
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import tiny_config, tiny_settings, tiny_trainer

SHORT = ("training.epochs=1", "backbone.dropout=0.0")


def sharded_trainer(config):
    trainer = tiny_trainer(config, sharded=True)
    assert sharding.is_sharded(trainer.step.encoder)
    return trainer


def full_weights(trainer):
    return {name: sharding.full(parameter.detach()).clone() for name, parameter in trainer.named}


def gradients(config, sharded):
    """Of the first step, by name, and its norm before clipping."""
    trainer = tiny_trainer(config, sharded=sharded)
    trainer.step.encoder.train()
    for micro_batches in trainer.loader.steps(0, 1):
        trainer.step(micro_batches, 0)
    found = {name: sharding.full(p.grad).clone() for name, p in trainer.named}
    norm = sharding.clip_gradients([p for _, p in trainer.named], 0.01)
    return found, norm, {name: sharding.full(p.grad).clone() for name, p in trainer.named}


@pytest.mark.parametrize(
    "settings",
    [
        ["training.cached_share=0.0"],
        ["training.cached_share=0.5", "training.accumulation_steps=2"],
        ["training.cached_share=1.0", "training.chunk_tokens=16", "backbone.gradient_checkpointing=true"],
        ["training.cached_share=0.5", "backbone.lora={r: 2}", "loss.learn_temperature=true"],
        ["objective=masked_lm", "loss=null"],
        ["objective@auxiliary.words.objective=masked_lm", "auxiliary.words.weight=0.5"],
        ["training.mixed_precision=bf16"],
        ["encoder.projection_dim=8", "encoder.train_only=[projection]"],
        ["loss=starbucks", "loss.pairs=[[1, 16], [2, 32]]", "training.cached_share=0.5"],
        ["loss=splade", "pooling=splade"],
        ["backbone.quantise={bits: 4, block: 16}", "training.cached_share=0.5"],
        ["backbone.new_tokens={\\[Q\\]: null}", "prompts.query='[Q] '", "backbone.lora={r: 2}"],
        ["backbone=contextual", "backbone.num_context=5", "backbone.null_share=0.0", "training.cached_share=0.5"],
    ],
    ids=[
        "plain",
        "half cached, accumulated",
        "cached, recomputed",
        "lora",
        "objective",
        "auxiliary",
        "bf16",
        "head alone",
        "layers",
        "language-model head",
        "quantised",
        "new tokens",
        "contextual",
    ],
)
def test_gradients_are_those_of_whole_weights(tmp_path, settings):
    assert_same_gradients(tiny_config(tmp_path, *SHORT, *settings))


def test_both_models_of_a_bridge_are_shared_out(tmp_path):
    model = tiny_model_dir("llama", tmp_path)
    settings = [word for word in tiny_settings(tmp_path, "training.epochs=1") if not word.startswith("backbone.name")]
    halves = [f"backbone.encoder.name={tmp_path / 'model'}", f"backbone.llm.name={model}"]
    composed = compose_config([*settings, "backbone=bridge", *halves, "training.cached_share=0.5"])
    validate(composed.config, composed.problems)
    for half in ("encoder", "llm"):
        composed.config["backbone"][half]["dropout"] = 0.0
    assert_same_gradients(composed.config)


def assert_same_gradients(config):
    whole, norm, clipped = run_ranks(gradients, 2, config, False)[0]
    for found, found_norm, found_clipped in run_ranks(gradients, 2, config, True):
        assert found.keys() == whole.keys()
        for name in whole:
            atol = 5e-7 + 1e-6 * float(whole[name].abs().max())
            torch.testing.assert_close(found[name], whole[name], rtol=1e-5, atol=atol)
            torch.testing.assert_close(found_clipped[name], clipped[name], rtol=1e-4, atol=atol)
        assert found_norm == pytest.approx(norm, rel=1e-4)  # torch's own is off by 2e-5


def trained(config, sharded, *, stop_after=None):
    """Weights, whole, of a run from wherever it stands."""
    trainer = tiny_trainer(config, sharded=sharded)
    start = trainer.resume()
    if stop_after is not None:
        trainer.total_steps = stop_after
    trainer.save(trainer.fit(start))
    return full_weights(trainer)


def test_a_run_ends_with_the_weights_of_whole_ones(tmp_path):
    """Six updates by AdamW, clipped; the files of both are read by one process without ranks, too."""
    ends = {}
    for name, sharded in (("whole", False), ("sharded", True)):
        # Without a floor under its root Adam makes a step of the rounding in gradients that are zero, as those of key biases.
        config = tiny_config(tmp_path, "backbone.dropout=0.0", "optim.eps=1e-3", name=name)
        ends[name] = run_ranks(trained, 2, config, sharded)[0]
    for name, weight in ends["whole"].items():
        torch.testing.assert_close(ends["sharded"][name], weight, rtol=0, atol=2e-5)
    saved = load_file(find_checkpoint(tmp_path / "sharded" / "checkpoints").path / "model.safetensors")
    assert saved.keys() == ends["sharded"].keys()
    assert all(torch.equal(saved[name], weight) for name, weight in ends["sharded"].items())
    moments = [
        load_file(find_checkpoint(tmp_path / name / "checkpoints").path / "optimizer.safetensors") for name in ends
    ]
    assert {key: value.shape for key, value in moments[0].items()} == {k: v.shape for k, v in moments[1].items()}


def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(tmp_path):
    """Dropout included. From a checkpoint of two ranks; and another number of ranks, or whole weights, can go on from it."""
    settings = ("training.save_every=2", "training.cached_share=0.5")
    through = run_ranks(trained, 2, tiny_config(tmp_path, *settings, name="through"), True)[0]
    config = tiny_config(tmp_path, *settings, name="stopped")
    run_ranks(stopped, 2, config)
    resumed = run_ranks(trained, 2, config, True)[0]
    assert all(torch.equal(resumed[name], weight) for name, weight in through.items())


def stopped(config):
    trained(config, True, stop_after=4)


@pytest.mark.parametrize(("world", "sharded"), [(1, False), (3, True)])
def test_a_checkpoint_is_read_by_any_number_of_ranks(tmp_path, world, sharded):
    config = tiny_config(tmp_path, name="run")
    run_ranks(stopped, 2, config)
    saved = find_checkpoint(tmp_path / "run" / "checkpoints")
    expected = load_file(saved.path / "model.safetensors"), load_file(saved.path / "optimizer.safetensors")
    settings = tiny_config(tmp_path, "training.global_batch_size=6", name="other")
    for weights, moments in run_ranks(reread, world, settings, saved, sharded):
        assert all(torch.equal(weights[name], value) for name, value in expected[0].items())
        assert all(torch.equal(moments[name], value) for name, value in expected[1].items())


def reread(config, saved, sharded):
    trainer = tiny_trainer(config, sharded=sharded)
    load_checkpoint(saved, named=trainer.named, optimizer=trainer.optimizer)
    moments = {
        f"{name}/{key}": sharding.full(value)
        for name, parameter in trainer.named
        for key, value in trainer.optimizer.state[parameter].items()
    }
    return full_weights(trainer), moments


def each_as_many_texts_as_it_likes(config, of_plain):
    """Embeddings by the sharded encoder before a step and after one, and by a plain one with its weights."""
    trainer = sharded_trainer(config)
    encoder = trainer.step.encoder
    texts = [f"text number {i}" for i in range(3 + 40 * torch.distributed.get_rank())]
    with sharding.whole(encoder):
        first = encoder.encode(texts, chunk_tokens=16)
    trainer.total_steps = 1
    trainer.fit()
    with sharding.whole(encoder):
        second = encoder.encode(texts, chunk_tokens=16)
    plain = tiny_trainer(of_plain).step.encoder
    before = plain.encode(texts, chunk_tokens=16)
    sharding.fill(plain, encoder)
    return first, before, second, plain.encode(texts, chunk_tokens=16)


def test_ranks_embed_what_they_like_before_training_and_after(tmp_path):
    configs = [tiny_config(tmp_path, "backbone.dropout=0.0", name=name) for name in ("sharded", "plain")]
    for first, before, second, after in run_ranks(each_as_many_texts_as_it_likes, 2, *configs):
        torch.testing.assert_close(first, before, rtol=0, atol=1e-6)
        torch.testing.assert_close(second, after, rtol=0, atol=1e-6)
        assert (second - first).abs().max() > 1e-3


def test_ranks_of_unequal_texts_make_the_same_passes(tmp_path):
    """Rank 1 has rows with five long negatives, in chunks of one text: more of them than rank 0 has texts."""
    settings = [*SHORT, "training.cached_share=0.5", "training.chunk_tokens=1", "data.num_negatives=5"]
    config = tiny_config(tmp_path, *settings, f"data.path={uneven_rows(tmp_path)}")
    (whole, norm, _), *_ = run_ranks(gradients, 2, config, False)
    for found, found_norm, _ in run_ranks(gradients, 2, config, True):
        assert found_norm == pytest.approx(norm, rel=1e-4)
        for name in whole:
            torch.testing.assert_close(found[name], whole[name], rtol=1e-5, atol=5e-7)


def uneven_rows(folder):
    rows = [
        {"query": f"where is {i}", "positive": f"here {i}", "negatives": [f"there {i} {k}" for k in range(5 * (i % 2))]}
        for i in range(8)
    ]
    path = folder / "uneven.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def after_an_evaluation(config):
    """Which groups, the encoder's own first, let go of their weights after a forward pass; before an evaluation and after."""
    encoder = sharded_trainer(config).step.encoder

    def let_go():
        states = [group._get_fsdp_state() for group in sharding._groups(encoder)]
        return [state._fsdp_param_groups[0].post_forward_mesh_info is not None for state in states]

    before = let_go()
    with sharding.whole(encoder):
        encoder.encode(["a"])
    return before, let_go()


@pytest.mark.parametrize("said", ["true", "false"])
def test_an_evaluation_leaves_what_the_launcher_said_of_layers(tmp_path, monkeypatch, said):
    monkeypatch.setenv("FSDP_RESHARD_AFTER_FORWARD", said)
    for before, after in run_ranks(after_an_evaluation, 2, tiny_config(tmp_path, *SHORT)):
        assert before == after == [False, said == "true", said == "true"]


def save_on_a_full_disk(config):
    trainer = tiny_trainer(config, sharded=True)

    def full(file, headers, tensors):
        next(tensors)  # and no more of them, for which the other rank gives its part
        raise OSError(28, "No space left on device")

    checkpoint.write_tensors = sharding.write_tensors = full
    told = []
    for save in (
        lambda: trainer.save(trainer.fit()),
        lambda: sharding.save_whole(dict(trainer.named), trainer.checkpoints / "best"),
    ):
        with pytest.raises(EmbedtrainError) as caught:
            save()
        told.append(str(caught.value))
    return told


def test_a_rank_that_cannot_write_is_not_waited_for(tmp_path):
    for told in run_ranks(save_on_a_full_disk, 2, tiny_config(tmp_path, *SHORT), timeout=60):
        assert "the disk is full" in told[0]
        assert "could not be written: [Errno 28] No space left" in told[1]


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "launch/fsdp_8gpu.yaml"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "fsdp_version: 2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params"),
    ],
)
def test_another_way_of_sharding_is_refused(monkeypatch, said, match):
    """And not trained in this one without a word."""
    for key, value in said.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(ConfigError, match=match):
        sharding.is_wanted()
