"""Weights on a grid: against the loops of ggml's formats, straight through in the backward, and lossless a second time."""

from __future__ import annotations

import math
import struct
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from embedtrain.backbones.quantise import Grid, QuantisedLinear, rounded_weights
from embedtrain.backbones.transformer import TransformerBackbone
from embedtrain.errors import ConfigError
from embedtrain.export import verify
from embedtrain.export.load import load_encoder
from embedtrain.export.modules.reload import with_sentence_transformers
from embedtrain.training.export_run import export_run
from embedtrain.types import RaggedTokens
from tests.helpers.models import tiny_model_dir
from tests.helpers.runs import tiny_config, tiny_trainer, train_tiny

ROW = 64
FORMATS = {"Q4_0": Grid(4, 32), "Q8_0": Grid(8, 32), "4 bits a row": Grid(4, None), "8 bits a row": Grid(8, None)}


def half(x: float) -> float:
    """As two bytes, and back."""
    return struct.unpack("e", struct.pack("e", x))[0]


def slow(row: list[float], bits: int, block: int) -> list[float]:
    """One number at a time, in double precision."""
    found = []
    for a, b in pairwise(range(0, len(row) + 1, block)):
        part = row[a:b]
        largest = max(part, key=abs)
        d = largest / -8 if bits == 4 else abs(largest) / 127
        for w in part:
            x = w / d if d else 0.0
            q = min(7, math.floor(x + 0.5)) if bits == 4 else math.copysign(math.floor(abs(x) + 0.5), x)
            found.append(half(d) * q)
    return found


@pytest.mark.parametrize("name", FORMATS)
def test_values_are_those_of_a_slow_loop(name):
    grid = FORMATS[name]
    weight = 0.02 * torch.randn(5, ROW, generator=torch.Generator().manual_seed(0))
    weight[0, :32] = 0
    weight[1, 3] = 1.0
    expected = [slow(row, grid.bits, grid.block or ROW) for row in weight.tolist()]
    torch.testing.assert_close(grid.round(weight), torch.tensor(expected), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), scale=st.floats(1e-9, 100.0), repeats=st.booleans())
def test_what_is_on_the_grid_stays_to_the_bit(name, seed, scale, repeats):
    generator = torch.Generator().manual_seed(seed)
    weight = scale * torch.randn(3, ROW, generator=generator)
    if repeats:  # several numbers of the largest size, of both signs
        weight[:, ::5] = weight.abs().max() * torch.randn(weight[:, ::5].shape, generator=generator).sign()
    once = FORMATS[name].round(weight)
    assert torch.equal(FORMATS[name].round(once), once)


@pytest.mark.parametrize("name", ["Q4_0", "Q8_0"])
def test_the_quantiser_of_ggml_finds_the_same_weights_and_loses_nothing_of_ours(name):
    quants = pytest.importorskip("gguf.quants", reason="an outside check: ggml's own rounding, in the package gguf")
    kind = pytest.importorskip("gguf").GGMLQuantizationType[name]
    weight = 0.02 * torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    ours = FORMATS[name].round(weight)
    theirs = torch.from_numpy(quants.dequantize(quants.quantize(weight.numpy(), kind), kind))
    assert torch.equal(ours, theirs)
    again = torch.from_numpy(quants.dequantize(quants.quantize(ours.numpy(), kind), kind))
    assert torch.equal(again, ours)


def test_the_gradient_passes_as_if_nothing_were_rounded():
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(ROW, 3), torch.randn(4, ROW)
    layer.__class__ = QuantisedLinear
    layer.grid = FORMATS["Q4_0"]
    out = layer(x)
    torch.testing.assert_close(out, F.linear(x, FORMATS["Q4_0"].round(layer.weight), layer.bias))
    upstream = torch.randn_like(out)
    out.backward(upstream)
    torch.testing.assert_close(layer.weight.grad, upstream.T @ x)  # dL/dW', with the weights not in it


def tokens():
    generator = torch.Generator().manual_seed(0)
    return RaggedTokens.from_lists([torch.randint(200, 2000, (n,), generator=generator).tolist() for n in (9, 4, 4)])


SIZES = {"intermediate_size": 64}
MIXED = {"bits": 4, "block": None, "embeddings": True, "others": {"self_attn": 8}}


@pytest.mark.parametrize("kernel", ["ragged", "padded"])
@pytest.mark.parametrize(
    ("architecture", "quantise"), [("bert", {}), ("qwen3", {"bits": 8}), ("gemma3_text", MIXED), ("alibi_bert", {})]
)
def test_a_model_computes_with_its_rounded_weights_whatever_its_family(architecture, quantise, kernel, tmp_path):
    folder = tiny_model_dir(architecture, tmp_path, **SIZES)
    ours = TransformerBackbone(name=folder, kernel=kernel, quantise=quantise).eval()
    plain = TransformerBackbone(name=folder, kernel=kernel).eval()
    assert ours.hf_model.state_dict().keys() == plain.hf_model.state_dict().keys()
    before = {name: tensor.clone() for name, tensor in plain.hf_model.state_dict().items()}
    found = ours(tokens())
    assert not torch.allclose(found, plain(tokens()), atol=1e-3)
    rounded = rounded_weights(ours.hf_model)
    linear = {f"{n}.weight" for n, m in plain.hf_model.named_modules() if isinstance(m, torch.nn.Linear)}
    table = {"embed_tokens.weight"} if quantise.get("embeddings") else set()
    assert rounded.keys() == linear | table
    plain.hf_model.load_state_dict(rounded, strict=False)
    torch.testing.assert_close(found, plain(tokens()))
    for name, tensor in ours.hf_model.state_dict().items():  # the weights that train are as they were
        assert torch.equal(tensor, before[name])


def test_a_mixed_model_has_the_bits_that_its_patterns_say(tmp_path):
    folder = tiny_model_dir("gemma3_text", tmp_path, **SIZES)
    model = TransformerBackbone(name=folder, quantise=MIXED).hf_model
    levels = {name: [len(row.unique()) for row in weight] for name, weight in rounded_weights(model).items()}
    assert max(levels["layers.0.mlp.up_proj.weight"]) <= 16 < min(levels["layers.0.self_attn.q_proj.weight"])
    assert max(levels["embed_tokens.weight"]) <= 16


def quantised_config(folder, *overrides, name="run"):
    model = tiny_model_dir("bert", folder / "own", **SIZES)
    return tiny_config(
        folder,
        f"backbone.name={model}",
        "backbone.quantise={bits: 4}",
        *overrides,
        name=name,
    )


def test_a_run_resumes_to_the_bit_and_exports_weights_on_the_grid(tmp_path, monkeypatch):
    def in_process(folder, task, library):
        return with_sentence_transformers(str(folder), task["texts"], task["prompts"])

    monkeypatch.setattr(verify, "_embed_in_fresh_process", in_process)  # a new interpreter takes seconds
    expected = train_tiny(quantised_config(tmp_path, name="straight"))[1]
    config = quantised_config(tmp_path)
    train_tiny(config, stop_after=3)
    assert torch.equal(train_tiny(config)[1], expected)
    cached = train_tiny(quantised_config(tmp_path, "training.cached_share=1.0", name="cached"))[1]
    assert torch.equal(cached, expected)
    assert not torch.equal(train_tiny(quantised_config(tmp_path, "backbone.quantise=null", name="not"))[1], expected)

    report = export_run(tmp_path / "run", tmp_path / "out")
    assert any("are on it: a quantiser of the same format loses nothing" in note for note in report.notes)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    layer = "encoder.layer.0.intermediate.dense.weight"
    assert torch.equal(FORMATS["Q4_0"].round(stored[layer]), stored[layer])
    trainer = tiny_trainer(config)
    trainer.resume()
    encoder = trainer.step.encoder
    assert not torch.equal(encoder.backbone.hf_model.state_dict()[layer], stored[layer])
    texts = ["where is the cat", "a red stone"]
    torch.testing.assert_close(
        load_encoder(tmp_path / "out").encode(texts), encoder.encode(texts), rtol=1e-4, atol=1e-5
    )


REFUSED = {
    r"backbone\.quantise\.bits=3: expected 4 or 8": {"quantise": {"bits": 3}},
    r"backbone\.quantise\.others\.mlp=5: expected 4 or 8": {"quantise": {"others": {"mlp": 5}}},
    r"backbone\.quantise\.block=1: expected the numbers": {"quantise": {"block": 1}},
    r"backbone\.quantise\.block=24: .*query of .* has rows of 32 numbers": {"quantise": {"block": 24}},
    r"backbone\.quantise\.others: no layer of .* matches 'self_attn'. Names look like: encoder\.layer\.0": {
        "quantise": {"others": {"self_attn": 8}}
    },
    r"backbone\.quantise: expected keys out of bits, block, embeddings, others; got \{'bit': 4\}": {
        "quantise": {"bit": 4}
    },
    r"backbone\.quantise: expected keys .*; got 4": {"quantise": 4},
    r"backbone\.quantise and backbone\.lora": {"quantise": {}, "lora": {"r": 2}},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_makes_no_grid_is_refused(message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        TransformerBackbone(name=tiny_model_dir("bert", tmp_path, **SIZES), **REFUSED[message])
