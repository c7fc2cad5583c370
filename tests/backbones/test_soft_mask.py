"""A mask that opens: its weights against the formula, both paths, both ends, and whole runs."""

from __future__ import annotations

import math

import pytest
import torch

from embedtrain.backbones.grouped_attention import grouped_attention
from embedtrain.backbones.padded_attention import padded_attention
from embedtrain.backbones.ragged import RaggedLayout, Visibility
from embedtrain.backbones.soft_mask import Opening, SoftMask, set_step
from embedtrain.backbones.transformer import TransformerBackbone
from embedtrain.cli import main
from embedtrain.errors import ConfigError
from embedtrain.export import verify
from embedtrain.export.load import load_encoder
from embedtrain.export.modules.reload import with_sentence_transformers
from embedtrain.export.sentence_transformers import export
from embedtrain.training.export_run import export_run
from embedtrain.types import RaggedTokens
from tests.backbones.test_grouped_attention import LENGTHS, SCALE, inputs, slow
from tests.helpers.models import tiny_model_dir
from tests.helpers.runs import tiny_config, tiny_settings, tiny_trainer, train_tiny

ALPHAS = {
    "linear": lambda t, end: t / end,
    "accelerating": lambda t, end: (t / end) ** 2,
    "decelerating": lambda t, end: 1 - (1 - t / end) ** 2,
}


def weight(alpha, i, j, length):
    """M of query i and key j, counted from 1."""
    return 1.0 if j <= i else min(alpha * length / j, 1.0)


@pytest.mark.parametrize("shape", ALPHAS)
@pytest.mark.parametrize("step", [0, 1, 4, 9])
def test_weights_are_those_of_the_formula(shape, step):
    mask = SoftMask(steps=10, shape=shape)
    set_step(mask, step)
    bias = mask.bias
    assert bias is not None
    for length in (1, 2, 7):
        alpha = ALPHAS[shape](step, 10)
        expected = [[weight(alpha, i, j, length) for j in range(1, length + 1)] for i in range(1, length + 1)]
        torch.testing.assert_close(
            bias.pattern(length, torch.device("cpu"), torch.float32).exp(), torch.tensor(expected)
        )


def test_keys_in_front_open_first_and_all_of_them_at_the_end():
    mask = SoftMask(steps=10)
    rows = []
    for step in (1, 3, 6, 9):
        set_step(mask, step)
        assert mask.bias is not None
        rows.append(mask.bias.pattern(10, torch.device("cpu"), torch.float32).exp()[0])
    assert [int((row == 1).sum()) for row in rows] == [1, 3, 6, 9]
    set_step(mask, 10)
    assert mask.bias is None


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("attention", [grouped_attention, padded_attention])
def test_attention_multiplies_its_weights_by_it(alpha, attention):
    q, k, v = inputs(2)
    options = {"layout": RaggedLayout(LENGTHS), "visibility": Visibility(), "scale": SCALE}
    out = attention(q, k, v, **options, bias=Opening(alpha))

    def bias(head, i, j, length):
        m = weight(alpha, i + 1, j + 1, length)
        return math.log(m) if m else -math.inf

    expected = slow(q, k, v, Visibility(), bias=bias)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    ours, theirs = (torch.autograd.grad(x.square().sum(), (q, k, v), retain_graph=True) for x in (out, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def tokens(lengths=(9, 9, 4, 1, 6)):
    generator = torch.Generator().manual_seed(0)
    return RaggedTokens.from_lists([torch.randint(200, 2000, (n,), generator=generator).tolist() for n in lengths])


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "mistral", "gemma3_text"])
def test_ragged_equals_padded_at_every_step_and_the_ends_are_the_two_directions(architecture, tmp_path):
    folder = tiny_model_dir(architecture, tmp_path)
    soft = {"attention": "soft", "soft_mask": {"steps": 8}}
    ragged, padded = (TransformerBackbone(name=folder, kernel=kernel, **soft).eval() for kernel in ("ragged", "padded"))
    assert ragged.direction == padded.direction == "bidirectional"
    assert (ragged.config.is_causal, ragged.soft_mask.step) == (False, 0)
    with torch.no_grad():
        for step in (0, 1, 3, 7, 8):
            for backbone in (ragged, padded):
                set_step(backbone, step)
            torch.testing.assert_close(ragged(tokens()), padded(tokens()), rtol=1e-4, atol=1e-5)
        bidirectional = TransformerBackbone(name=folder, attention="bidirectional").eval()
        assert torch.equal(ragged(tokens()), bidirectional(tokens()))
        if architecture == "llama":  # without windows, which reach to both sides in a model that is to be bidirectional
            set_step(ragged, 0)
            causal = TransformerBackbone(name=folder, attention="causal").eval()
            torch.testing.assert_close(ragged(tokens()), causal(tokens()), rtol=1e-4, atol=1e-5)


def soft_config(folder, *overrides, steps=6, name="run"):
    model = tiny_model_dir("llama", folder)
    return tiny_config(
        folder,
        f"backbone.name={model}",
        "backbone.attention=soft",
        f"backbone.soft_mask={{steps: {steps}}}",
        *overrides,
        name=name,
    )


def test_a_stopped_run_goes_on_with_the_mask_of_its_step_and_cached_chunks_replay_it(tmp_path):
    expected = train_tiny(soft_config(tmp_path, name="straight"))[1]
    config = soft_config(tmp_path, name="stopped")
    train_tiny(config, stop_after=3)
    assert torch.equal(train_tiny(config)[1], expected)
    cached = train_tiny(soft_config(tmp_path, "training.cached_share=1.0", name="cached"))[1]
    assert torch.equal(cached, expected)
    other = train_tiny(soft_config(tmp_path, steps=5, name="other"))[1]
    assert not torch.equal(other, expected)


def test_at_the_end_the_exported_model_is_bidirectional(tmp_path, monkeypatch):
    def in_process(folder, task, library):
        return with_sentence_transformers(str(folder), task["texts"], task["prompts"])

    monkeypatch.setattr(verify, "_embed_in_fresh_process", in_process)  # a new interpreter takes seconds
    config = soft_config(tmp_path)
    train_tiny(config)
    export_run(tmp_path / "run", tmp_path / "out")
    encoder = load_encoder(tmp_path / "out")
    assert encoder.backbone.direction == "bidirectional"
    assert encoder.backbone.config.is_causal is False
    trainer = tiny_trainer(config)
    trainer.fit(trainer.resume())
    texts = ["where is the cat", "a red stone"]
    torch.testing.assert_close(encoder.encode(texts), trainer.step.encoder.encode(texts), rtol=1e-4, atol=1e-5)


def test_a_mask_that_is_half_open_is_not_exported(tmp_path):
    train_tiny(soft_config(tmp_path), stop_after=3)
    with pytest.raises(ConfigError, match=r"the soft mask is at update 3 of 6"):
        export_run(tmp_path / "run", tmp_path / "out")
    with pytest.raises(ConfigError, match=r"the soft mask is at update 0 of 6"):
        export(tiny_trainer(soft_config(tmp_path, name="new")).step.encoder, tmp_path / "out", probes=[])


def test_a_run_that_ends_before_the_mask_is_open_is_refused_by_check_and_at_the_start(tmp_path, capsys):
    with pytest.raises(ConfigError, match=r"backbone\.soft_mask\.steps=7: the run ends after 6 steps"):
        tiny_trainer(soft_config(tmp_path, steps=7))
    model = tiny_model_dir("llama", tmp_path)
    soft = [f"backbone.name={model}", "backbone.attention=soft", "backbone.soft_mask={steps: 7}"]
    assert main(["check", *tiny_settings(tmp_path, *soft)]) == 2
    assert "backbone.soft_mask.steps=7: the run ends after 6 steps" in capsys.readouterr().err


def test_early_stopping_could_leave_it_half_open_and_is_refused(tmp_path, capsys):
    model = tiny_model_dir("llama", tmp_path)
    soft = [f"backbone.name={model}", "backbone.attention=soft", "backbone.soft_mask={steps: 3}"]
    assert main(["check", *tiny_settings(tmp_path, *soft, "training.early_stop.patience=2")]) == 2
    assert "could end the run before the soft mask of backbone is open" in capsys.readouterr().err


REFUSED = {
    r"attention=soft: a soft mask needs both": {"attention": "soft"},
    r"soft_mask=\{'steps': 3\}, with backbone\.attention=causal": {"attention": "causal", "soft_mask": {"steps": 3}},
    r"soft_mask: expected keys out of steps, shape, among them steps; got \{'shape': 'linear'\}": {
        "attention": "soft",
        "soft_mask": {"shape": "linear"},
    },
    r"soft_mask\.steps=0: expected the number of updates": {"attention": "soft", "soft_mask": {"steps": 0}},
    r"soft_mask\.shape: expected one of linear, .*, got 'cosine'": {
        "attention": "soft",
        "soft_mask": {"steps": 3, "shape": "cosine"},
    },
}


@pytest.mark.parametrize("message", REFUSED)
def test_settings_that_make_no_mask_are_refused(message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        TransformerBackbone(name=tiny_model_dir("llama", tmp_path), **REFUSED[message])


def test_an_encoder_has_no_future_to_open(tmp_path):
    with pytest.raises(ConfigError, match=r"soft was asked for, but .* is an encoder"):
        TransformerBackbone(name=tiny_model_dir("bert", tmp_path), attention="soft", soft_mask={"steps": 3})
