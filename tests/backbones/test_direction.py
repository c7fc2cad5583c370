"""Attention looks where the configuration says, or the run stops."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel

from embedtrain.backbones import attention
from embedtrain.backbones.direction import observed_direction
from embedtrain.backbones.ragged import Visibility
from embedtrain.backbones.transformer import TransformerBackbone
from embedtrain.errors import ConfigError, TrainingError
from embedtrain.types import RaggedTokens
from tests.helpers.models import DECODERS, ENCODERS, tiny_model_dir


def first_state_moves(backbone, lengths):
    texts = [[10 + i for i in range(n)] for n in lengths]
    changed = [t[:-1] + [99] for t in texts]
    a, b = (RaggedTokens.from_lists(x) for x in (texts, changed))
    with torch.no_grad():
        return ((backbone(a) - backbone(b))[a.offsets[:-1]].abs().amax(1) > 0).tolist()


@pytest.mark.parametrize("kernel", ["ragged", "padded"])
@pytest.mark.parametrize("direction", ["causal", "bidirectional"])
@pytest.mark.parametrize("architecture", DECODERS)
def test_decoders_turn_for_one_text_and_for_several(architecture, direction, kernel, tmp_path):
    backbone = TransformerBackbone(name=tiny_model_dir(architecture, tmp_path), attention=direction, kernel=kernel)
    backbone.eval()
    for lengths in [(6,), (6, 3, 4, 2)]:
        assert first_state_moves(backbone, lengths) == [direction == "bidirectional"] * len(lengths)


def test_a_bidirectional_decoder_stays_so_when_saved_and_loaded_elsewhere(tmp_path):
    folder = tiny_model_dir("qwen3", tmp_path)
    backbone = TransformerBackbone(name=folder, attention="bidirectional").eval()
    backbone.hf_model.save_pretrained(tmp_path / "saved")
    ids = torch.arange(10, 16)[None]
    loaded = AutoModel.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        theirs = loaded(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
        ours = backbone(RaggedTokens.from_lists(ids.tolist()))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert TransformerBackbone(name=str(tmp_path / "saved")).direction == "bidirectional"
    assert TransformerBackbone(name=str(tmp_path / "saved"), attention="causal").direction == "causal"


@pytest.mark.parametrize("architecture", ENCODERS)
def test_a_causal_encoder_is_refused(architecture, tmp_path):
    with pytest.raises(ConfigError, match=r"backbone\.attention: causal was asked for, but .* is an encoder"):
        TransformerBackbone(name=tiny_model_dir(architecture, tmp_path), attention="causal")


def test_a_model_that_does_not_do_as_its_config_says_is_refused(tmp_path, monkeypatch):
    folder = tiny_model_dir("llama", tmp_path)
    monkeypatch.setattr(attention, "_visibility_instead_of_mask", lambda **_: Visibility(right=0))
    # The padded reference is bidirectional, so parity notices too; a padded model that lies has only the probe.
    monkeypatch.setattr("embedtrain.backbones.transformer.disagreement", lambda *_: 0.0)
    with pytest.raises(TrainingError, match=r"bidirectional was asked for, but .* behaves causal on cpu"):
        TransformerBackbone(name=folder, attention="bidirectional")


def test_a_direction_that_depends_on_the_batch_is_refused():
    def states(tokens):  # causal when alone, bidirectional in company
        seen = tokens.ids.double()
        sums = [part.cumsum(0) if len(tokens) == 1 else part.sum().expand(len(part)) for part in
                seen.split(tokens.lengths.tolist())]  # fmt: skip
        return torch.cat(sums)[:, None]

    with pytest.raises(TrainingError, match="depends on the batch"):
        observed_direction(states, 100)


def test_a_direction_that_differs_between_texts_is_refused():
    def states(tokens):
        parts = tokens.ids.double().split(tokens.lengths.tolist())
        return torch.cat([p.cumsum(0) if i else p.sum().expand(len(p)) for i, p in enumerate(parts)])[:, None]

    with pytest.raises(TrainingError, match=r"moved the first hidden state of 1 of 2 texts"):
        observed_direction(states, 100)
