"""The ragged path against transformers' own padded forward, for every family, direction and gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from embedtrain.backbones.grouped_attention import grouped_attention
from embedtrain.backbones.transformer import TransformerBackbone
from embedtrain.errors import ConfigError
from embedtrain.types import RaggedTokens
from tests.helpers.models import ARCHITECTURES, DECODERS, tiny_model_dir

CASES = [(name, None) for name in ARCHITECTURES] + [(name, "bidirectional") for name in DECODERS]


def texts(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(200, 2000, (n,), generator=generator).tolist() for n in lengths]


def reference(model, batch):
    """transformers' padded forward on right-padded texts, cut back to [S, H]."""
    longest = max(map(len, batch))
    ids = torch.tensor([text + [model.config.pad_token_id] * (longest - len(text)) for text in batch])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in batch])
    return model(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]


def plain(folder, attention):
    model = AutoModel.from_pretrained(folder).eval()
    if attention == "bidirectional":
        model.config.is_causal = False
    return model


@pytest.mark.parametrize(("architecture", "attention"), CASES)
@pytest.mark.parametrize("lengths", [(19,), (1,), (19, 19, 7, 7, 2, 1), (3, 19, 7, 19, 3)])
def test_ragged_states_equal_padded_ones(architecture, attention, lengths, tmp_path):
    folder = tiny_model_dir(architecture, tmp_path)
    backbone = TransformerBackbone(name=folder, attention=attention, kernel="ragged").eval()
    batch = texts(lengths)
    expected = reference(plain(folder, attention), batch)
    torch.testing.assert_close(backbone(RaggedTokens.from_lists(batch)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("architecture", "attention"), CASES)
def test_ragged_gradients_equal_padded_ones(architecture, attention, tmp_path):
    folder = tiny_model_dir(architecture, tmp_path)
    backbone = TransformerBackbone(name=folder, attention=attention, kernel="ragged").eval()
    model = plain(folder, attention)
    batch = texts((19, 7, 7, 3))
    weight = torch.randn(36, backbone.hidden_size, generator=torch.Generator().manual_seed(1))
    (backbone(RaggedTokens.from_lists(batch)) * weight).sum().backward()
    (reference(model, batch) * weight).sum().backward()
    theirs = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    # Some are zero by mathematics (the bias of keys): the largest of all sets the scale of rounding.
    atol = 1e-5 * max(float(gradient.abs().max()) for gradient in theirs.values())
    for name, parameter in backbone.hf_model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name], rtol=1e-3, atol=atol)


@pytest.mark.parametrize("kernel", ["ragged", "padded"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_text_has_the_same_states_alone_and_in_any_company(architecture, kernel, tmp_path):
    backbone = TransformerBackbone(name=tiny_model_dir(architecture, tmp_path), kernel=kernel).eval()
    batch = texts((4, 17, 4, 1, 9, 17))
    with torch.no_grad():
        together = backbone(RaggedTokens.from_lists(batch)).split([len(t) for t in batch])
        for text, states in zip(batch, together, strict=True):
            torch.testing.assert_close(backbone(RaggedTokens.from_lists([text])), states, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", ["ragged", "padded"])
def test_a_pad_id_that_is_also_the_last_token_is_read_like_any_other(kernel, tmp_path):
    backbone = TransformerBackbone(name=tiny_model_dir("mistral", tmp_path), kernel=kernel).eval()
    eos = backbone.config.pad_token_id
    assert eos == backbone.tokenizer().eos_token_id
    short, long = [7, 8, eos], [5, 6, eos, 9, 10, 11, eos]
    with torch.no_grad():
        together = backbone(RaggedTokens.from_lists([long, short]))
        torch.testing.assert_close(together[-3:], backbone(RaggedTokens.from_lists([short])), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "mistral"])
def test_all_layers_are_those_of_transformers(architecture, tmp_path):
    folder = tiny_model_dir(architecture, tmp_path)
    batch = texts((3, 8, 3))
    ours = TransformerBackbone(name=folder).eval()(RaggedTokens.from_lists(batch), all_layers=True)
    model = AutoModel.from_pretrained(folder).eval()
    alone = [model(torch.tensor([text]), output_hidden_states=True).hidden_states for text in batch]
    for layer, states in enumerate(ours):
        expected = torch.cat([hidden[layer][0] for hidden in alone])
        torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "modernbert", "qwen3"])
def test_dropout_replays_from_the_random_state(architecture, tmp_path):
    backbone = TransformerBackbone(name=tiny_model_dir(architecture, tmp_path), dropout=0.3).train()
    tokens = RaggedTokens.from_lists(texts((6, 6, 2)))
    state = torch.get_rng_state()
    first, second = backbone(tokens), backbone(tokens)
    torch.set_rng_state(state)
    assert torch.equal(backbone(tokens), first)
    assert not torch.allclose(first, second)


def test_dropout_zero_makes_training_mode_deterministic(tmp_path):
    backbone = TransformerBackbone(name=tiny_model_dir("bert", tmp_path), dropout=0.0)
    tokens = RaggedTokens.from_lists(texts((6, 2)))
    assert torch.equal(backbone.train()(tokens), backbone.eval()(tokens))


@pytest.mark.parametrize("kernel", ["ragged", "padded"])
@pytest.mark.parametrize("architecture", ["bert", "modernbert", "gemma3_text", "alibi_bert"])
def test_autocast_in_bfloat16_stays_close_and_gives_fp32_gradients(architecture, kernel, tmp_path):
    backbone = TransformerBackbone(name=tiny_model_dir(architecture, tmp_path), kernel=kernel).eval()
    tokens = RaggedTokens.from_lists(texts((9, 9, 4)))
    exact = backbone(tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = backbone(tokens)
    states.float().square().sum().backward()
    assert torch.nn.functional.cosine_similarity(states.float(), exact).min() > 0.99
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in backbone.parameters())


def test_every_weight_gets_a_gradient(tmp_path):
    backbone = TransformerBackbone(name=tiny_model_dir("bert", tmp_path)).train()
    backbone(RaggedTokens.from_lists(texts((9, 4)))).square().sum().backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None] == []


def test_on_the_meta_device_a_model_is_built_without_weights(tmp_path):
    folder = tiny_model_dir("qwen3", tmp_path)
    with torch.device("meta"):
        backbone = TransformerBackbone(name=folder, weights="random", attention="bidirectional", lora={"r": 4})
    assert all(p.is_meta for p in backbone.parameters())


def test_a_family_without_the_attention_interface_is_padded_and_the_log_says_why(tmp_path, caplog):
    folder = tiny_model_dir("mpnet", tmp_path)
    with caplog.at_level("WARNING"):
        backbone = TransformerBackbone(name=folder).eval()
    assert backbone.kernel == "padded"
    assert "cannot run ragged: its class does not use transformers' attention interface" in caplog.text
    batch = texts((9, 4, 9))
    torch.testing.assert_close(
        backbone(RaggedTokens.from_lists(batch)), reference(AutoModel.from_pretrained(folder).eval(), batch)
    )
    with pytest.raises(ConfigError, match=r"backbone\.kernel: .*mpnet\) cannot run ragged.*Use backbone\.kernel=auto"):
        TransformerBackbone(name=folder, kernel="ragged")


def test_a_soft_cap_on_scores_is_not_lost_but_padded(tmp_path, caplog):
    folder = tiny_model_dir("gemma2", tmp_path)
    with caplog.at_level("WARNING"):
        backbone = TransformerBackbone(name=folder).eval()
    assert backbone.kernel == "padded"
    assert "its attention uses softcap" in caplog.text
    batch = texts((9, 4, 9))
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    torch.testing.assert_close(backbone(RaggedTokens.from_lists(batch)), reference(model, batch))


def test_a_kernel_that_changes_embeddings_is_not_used(tmp_path, monkeypatch, caplog):
    def broken(query, *rest, **options):
        return grouped_attention(query, *rest, **options) * 1.01

    monkeypatch.setattr("embedtrain.backbones.attention.grouped_attention", broken)
    folder = tiny_model_dir("bert", tmp_path)
    with caplog.at_level("WARNING"):
        assert TransformerBackbone(name=folder).kernel == "padded"
    assert "its states differ from the padded ones" in caplog.text
    with pytest.raises(ConfigError, match="its states differ"):
        TransformerBackbone(name=folder, kernel="ragged")


@pytest.mark.parametrize("option", [{"kernel": "fast"}, {"attention": "both"}, {"weights": "none"}, {"dtype": "int8"}])
def test_an_unknown_choice_is_refused_with_what_there_is(option, tmp_path):
    key, value = next(iter(option.items()))
    with pytest.raises(ConfigError, match=rf"backbone\.{key}: expected one of .* got '{value}'"):
        TransformerBackbone(name=str(tmp_path), **option)


def test_a_name_that_is_nothing_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"backbone\.name: .*nowhere' is no model folder .*: there is no folder /"):
        TransformerBackbone(name=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(("architecture", "limit"), [("bert", 128), ("roberta", 127), ("mpnet", 126), ("qwen3", None)])
def test_a_text_longer_than_the_learned_positions_is_refused_by_number(architecture, limit, tmp_path):
    backbone = TransformerBackbone(name=tiny_model_dir(architecture, tmp_path)).eval()
    if limit is None:
        assert backbone(RaggedTokens.from_lists([[5] * 300])).shape[0] == 300
        return
    assert backbone(RaggedTokens.from_lists([[5] * limit])).shape[0] == limit
    with pytest.raises(ConfigError, match=rf"a text has {limit + 1} tokens, but .* knows {limit} positions"):
        backbone(RaggedTokens.from_lists([[5] * (limit + 1)]))


def test_a_folder_that_lacks_weights_is_named_with_them(tmp_path, caplog):
    folder = Path(tiny_model_dir("bert", tmp_path))
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with caplog.at_level("WARNING"):
        TransformerBackbone(name=str(folder))
    assert "lacks these weights, they start random: ['encoder.layer.1.output.dense.weight']" in caplog.text
