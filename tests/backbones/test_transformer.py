"""The ragged path against transformers' own padded forward, for every family, direction and gradient."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel

from embedtrain.backbones.transformer import TransformerBackbone
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
